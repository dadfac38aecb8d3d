//go:build !no_http2

package http1

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// decodeBoth decodes with ours and with x/net's, up to the first error of either.
func decodeBoth(blocks ...[]byte) (ours, theirs []string, ourErr, theirErr error) {
	var d hpackDecoder
	ref := hpack.NewDecoder(hpackTableSize, func(f hpack.HeaderField) {
		theirs = append(theirs, fmt.Sprintf("%q: %q", strings.ToLower(f.Name), f.Value))
	})
	for _, b := range blocks {
		ourErr = d.decode(b, func(f *hpackField) {
			ours = append(ours, fmt.Sprintf("%q: %q", strings.ToLower(f.name), f.value))
		})
		if _, theirErr = ref.Write(b); theirErr == nil {
			theirErr = ref.Close()
		}
		if ourErr != nil || theirErr != nil {
			return
		}
	}
	return
}

// What x/net's encoder writes, with tables that fill up, shrink and are emptied
// (RFC 7541 §2.3.2, §4.2, §5.2, §6).
func TestHPACKDecode(t *testing.T) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	rnd := rand.New(rand.NewPCG(1, 2))
	var blocks [][]byte
	var want []string
	for i := range 300 {
		buf.Reset()
		switch i {
		case 100:
			enc.SetMaxDynamicTableSize(200)
		case 150:
			enc.SetMaxDynamicTableSize(0)
			enc.SetMaxDynamicTableSize(1000)
		case 250:
			enc.SetMaxDynamicTableSize(4096)
		}
		for range rnd.IntN(8) {
			f := hpack.HeaderField{Name: strings.ToLower(hpackStatic[1+rnd.IntN(61)][0]), Value: "same", Sensitive: rnd.IntN(5) == 0}
			if rnd.IntN(3) == 0 {
				f.Name = fmt.Sprintf("x-%d", rnd.IntN(30))
			}
			if rnd.IntN(2) == 0 {
				v := make([]byte, rnd.IntN(60))
				for i := range v {
					if v[i] = byte(rnd.IntN(256)); i%2 == 0 {
						v[i] = 'a'
					}
				}
				f.Value = string(v)
			}
			if err := enc.WriteField(f); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%q: %q", f.Name, f.Value))
		}
		blocks = append(blocks, bytes.Clone(buf.Bytes()))
	}
	ours, _, err, _ := decodeBoth(blocks...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if i >= len(ours) || ours[i] != want[i] {
			t.Fatalf("field %d of %d decoded as %s, want %s", i, len(ours), ours[i:][:1], want[i])
		}
	}
}

func TestHPACKRefused(t *testing.T) {
	for name, b := range map[string]string{
		"§2.3.3 index 0":              "\x80",
		"§2.3.3 index too large":      "\xbe",
		"§2.3.3 name too large":       "\x7f\x00\x01a",
		"§5.1 integer too long":       "\xff\x80\x80\x80\x80\x80\x01",
		"§5.1 integer cut":            "\xff",
		"§5.2 string cut":             "\x40\x05abc",
		"§5.2 no value":               "\x40\x01a",
		"§5.2 EOS":                    "\x40\x01a\x84\xff\xff\xff\xff",
		"§5.2 padding of zeros":       "\x40\x01a\x81\x00",
		"§5.2 padding too long":       "\x40\x01a\x82\x1f\xff",
		"§6.3 table too large":        "\x3f\xe2\x1f",
		"§4.2 size update at the end": "\x82\x20",
		"§4.2 size update in between": "\x82\x20\x82",
	} {
		var d hpackDecoder
		if err := d.decode([]byte(b), func(*hpackField) {}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What a peer can make the decoder keep is bounded by the table's size (RFC 7541 §4).
func TestHPACKTableBound(t *testing.T) {
	var d hpackDecoder
	drop := func(*hpackField) {}
	for i := range 10_000 {
		if err := d.decode([]byte{0x40, 2, 'x', byte('a' + i%26), 1, byte('0' + i%10)}, drop); err != nil {
			t.Fatal(err)
		}
		if d.size > hpackTableSize || len(d.table) > hpackTableSize/fieldOverhead || cap(d.table) > 4*hpackTableSize/fieldOverhead {
			t.Fatalf("table of %d bytes, %d fields, room for %d", d.size, len(d.table), cap(d.table))
		}
	}
	big := append(appendHPACKInt([]byte{0x40, 1, 'x'}, 0, 7, 5000), bytes.Repeat([]byte{'v'}, 5000)...)
	if err := d.decode(big, drop); err != nil || d.size != 0 {
		t.Errorf("a field larger than the table: %v, %d bytes kept, want none (§4.4)", err, d.size)
	}
}

func TestHPACKEncode(t *testing.T) {
	for _, status := range []int{100, 200, 204, 206, 304, 400, 404, 500, 503, 999} {
		b := appendHPACKStatus([]byte{hpackNoTable}, status)
		for name, value := range map[string]string{"Content-Type": "text/html", "X-Other": strings.Repeat("v", 20_000), "Date": "", "Www-Authenticate": " Basic ",
			"Bad\r\n": "x", "X-Bad": "a\r\nb"} {
			b = appendHPACK(b, name, value)
		}
		fields, err := hpack.NewDecoder(hpackTableSize, nil).DecodeFull(b)
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		for _, f := range fields[1:] {
			if strings.ToLower(f.Name) != f.Name {
				t.Errorf("name %q is not in lower case", f.Name)
			}
			h.Set(f.Name, f.Value)
		}
		if got := fields[0].Name + fields[0].Value; got != fmt.Sprintf(":status%d", status) || len(h) != 4 ||
			h.Get("Content-Type") != "text/html" || len(h.Get("X-Other")) != 20_000 || h.Get("Www-Authenticate") != "Basic" {
			t.Errorf("%d encoded as %s, %d fields", status, got, len(h))
		}
	}
}

// FuzzHPACK: what we accept x/net's decoder accepts too, and reads the same.
func FuzzHPACK(f *testing.F) {
	f.Add([]byte("\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"), []byte("\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf")) // RFC 7541, C.4
	f.Add([]byte("\x20\x3f\xe1\x1f\x40\x01a\x01b"), []byte("\xbe\x0f\x2f\x03123"))
	f.Add([]byte("\x10\x08password\x06secret"), []byte("\x7f\x80"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ours, theirs, ourErr, theirErr := decodeBoth(a, b)
		if ourErr == nil && theirErr != nil {
			t.Fatalf("x/net refuses %x %x: %v", a, b, theirErr)
		}
		if ourErr == nil && fmt.Sprint(ours) != fmt.Sprint(theirs) {
			t.Fatalf("%x %x decoded to\n%v\nwant\n%v", a, b, ours, theirs)
		}
	})
}
