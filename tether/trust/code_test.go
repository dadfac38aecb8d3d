package trust

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the test vector anew")

// vector is testdata/pair.json (SPEC.md §11.4).
type vector struct {
	ClientNonce string `json:"client_nonce"`
	DeviceNonce string `json:"device_nonce"`
	Commitment  string `json:"commitment"`
	Pin         string `json:"pin"`
	Exporter    string `json:"exporter"`
	Code        string `json:"code"`
	OneStep     string `json:"code_one_step"`
}

func run(first byte) []byte {
	b := make([]byte, NonceSize)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func TestVector(t *testing.T) {
	client, device, exporter := run(0x00), run(0x40), run(0xa0)
	pin := hex.EncodeToString(run(0xc0))
	v := vector{
		hex.EncodeToString(client), hex.EncodeToString(device), hex.EncodeToString(Commit(client)), pin, hex.EncodeToString(exporter),
		Code(pin, exporter, client, device), Code(pin, exporter, nil, device),
	}
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "../testdata/pair.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the code gives\n%s%s holds\n%s(%v)", got, file, want, err)
	}
	spec, err := os.ReadFile("../SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	if text := "```json\n" + string(got) + "```\n"; !strings.Contains(string(spec), text) {
		t.Errorf("SPEC.md §11.4 does not hold\n%s", text)
	}
}

func TestCommitted(t *testing.T) {
	nonce := run(1)
	if !Committed(Commit(nonce), nonce) {
		t.Error("a nonce does not fit its own commitment")
	}
	for name, bad := range map[string]struct{ commitment, nonce []byte }{
		"another nonce":     {Commit(nonce), run(2)},
		"a short nonce":     {Commit(nonce[:31]), nonce[:31]},
		"no nonce":          {Commit(nil), nil},
		"no commitment":     {nil, nonce},
		"half a commitment": {Commit(nonce)[:16], nonce},
	} {
		if Committed(bad.commitment, bad.nonce) {
			t.Errorf("%s fits", name)
		}
	}
}

// Every part counts, at its place: moving bytes from one to the next is another input.
func TestCodeSeparatesItsParts(t *testing.T) {
	base := Code("ab", []byte("cd"), []byte("ef"), []byte("gh"))
	for _, p := range [][4]string{
		{"abc", "d", "ef", "gh"}, {"ab", "cde", "f", "gh"}, {"ab", "cd", "efg", "h"}, {"", "abcd", "ef", "gh"}, {"ab", "cd", "efgh", ""},
		{"ab", "cd", "gh", "ef"}, {"ab", "ef", "cd", "gh"}, {"ab", "cd", "", "efgh"}, {"xb", "cd", "ef", "gh"}, {"ab", "xd", "ef", "gh"},
		{"ab", "cd", "xf", "gh"}, {"ab", "cd", "ef", "xh"},
	} {
		if got := Code(p[0], []byte(p[1]), []byte(p[2]), []byte(p[3])); got == base || len(got) != CodeDigits || strings.Trim(got, "0123456789") != "" {
			t.Errorf("Code(%q) = %s, want six other digits than %s", p, got, base)
		}
	}
}

// The codes of many exchanges spread over all digits at every place.
func TestCodeSpreads(t *testing.T) {
	const n = 20000
	var seen [CodeDigits][10]int
	for i := range n {
		for at, digit := range Code("pin", []byte(fmt.Sprint(i)), nil, nil) {
			seen[at][digit-'0']++
		}
	}
	for at, digits := range seen {
		for digit, count := range digits {
			if count < n/10*85/100 || count > n/10*115/100 {
				t.Errorf("digit %d at place %d in %d of %d codes, want about a tenth", digit, at, count, n)
			}
		}
	}
}
