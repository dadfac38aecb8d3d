package provisioning

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
)

var (
	uid = []byte("0123456789abcdef")
	id  = tether.NewDeviceID(uid)
)

func keys(t testing.TB) []crypto.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return []crypto.Signer{ec, ed}
}

func goodClaim(t testing.TB, key crypto.Signer) Claim {
	t.Helper()
	csr, err := devcert.Request(id, key)
	if err != nil {
		t.Fatal(err)
	}
	return Claim{UID: hex.EncodeToString(uid), UIDSource: "spi-flash", CSR: csr, Descriptor: json.RawMessage(`{"name":"x","mine":[1]}`),
		Daemon: "v1", LANPin: strings.Repeat("0f", 32), LabelSecret: "abc_-9"}
}

func TestClaim(t *testing.T) {
	key := keys(t)[0]
	body, _ := json.Marshal(goodClaim(t, key))
	c, got, pub, err := ParseClaim(body)
	if err != nil || got != id || !devcert.SameKey(pub, key.Public()) {
		t.Fatalf("ParseClaim = %s, %v; want %s with its key", got, err, id)
	}
	if string(c.Descriptor) != `{"name":"x","mine":[1]}` {
		t.Errorf("the descriptor is %s, want it as it was", c.Descriptor)
	}
	for name, change := range map[string]func(*Claim){
		"UID too short":     func(c *Claim) { c.UID = "0011" },
		"UID not hex":       func(c *Claim) { c.UID = "zz112233445566778899" },
		"another UID":       func(c *Claim) { c.UID = "00112233445566778899" },
		"no request":        func(c *Claim) { c.CSR = nil },
		"bad descriptor":    func(c *Claim) { c.Descriptor = json.RawMessage(`[]`) },
		"pin in upper case": func(c *Claim) { c.LANPin = strings.Repeat("0F", 32) },
		"long source":       func(c *Claim) { c.UIDSource = strings.Repeat("x", MaxField+1) },
		"secret with space": func(c *Claim) { c.LabelSecret = "a b" },
	} {
		c := goodClaim(t, key)
		change(&c)
		body, _ := json.Marshal(c)
		if _, _, _, err := ParseClaim(body); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v, want ErrMessage", name, err)
		}
	}
	for _, body := range []string{"", "[]", "null", "{}", `{"uid":1}`, string(body) + "x", strings.Repeat(" ", MaxBody) + string(body)} {
		if _, _, _, err := ParseClaim([]byte(body)); !errors.Is(err, ErrMessage) {
			t.Errorf("%.20q: %v, want ErrMessage", body, err)
		}
	}
}

func TestConfirmation(t *testing.T) {
	a, err := devcert.NewAuthority("Test", time.Now(), time.Now().AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	all := keys(t)
	for i, key := range all {
		chain, err := a.Issue(id, key.Public(), time.Now(), time.Now().AddDate(1, 0, 0))
		if err != nil {
			t.Fatal(err)
		}
		c, err := Sign(id, chain[0], key)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := json.Marshal(c)
		if c, err = ParseConfirmation(body); err != nil || !c.Verify(chain[0]) {
			t.Errorf("%T: a good confirmation is refused: %v", key, err)
		}
		again, _ := a.Issue(id, key.Public(), time.Now(), time.Now().AddDate(1, 0, 0))
		if c.Verify(again[0]) {
			t.Errorf("%T: taken for another certificate", key)
		}
		forged, _ := Sign(id, chain[0], all[1-i])
		if forged.Verify(chain[0]) {
			t.Errorf("%T: another key's signature is taken", key)
		}
		c.ID = tether.NewDeviceID([]byte("other"))
		if c.Verify(chain[0]) {
			t.Errorf("%T: taken for another device", key)
		}
	}
}

func TestSmall(t *testing.T) {
	if n, err := ParseNetwork([]byte(`{"ssid":"Line 2","passphrase":"12345678"}`)); err != nil || n.SSID != "Line 2" {
		t.Errorf("network: %+v, %v", n, err)
	}
	if _, err := ParseNetwork([]byte(`{"ssid":"` + strings.Repeat("x", MaxNetwork+1) + `"}`)); err == nil {
		t.Error("a long SSID is taken")
	}
	if _, err := ParseNetwork([]byte(`{"passphrase":"secret\nsecret"}`)); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("passphrase with a line break: %v, want a refusal that does not quote it", err)
	}
	if e := ParseError(403, []byte(`{"error":1,"reason":"token","message":"a\nb"}`)); e != (Error{403, ReasonToken, "a b"}) {
		t.Errorf("error: %+v", e)
	}
	if e := ParseError(502, []byte(`<html>`)); e != (Error{Status: 502}) {
		t.Errorf("error of a stranger: %+v", e)
	}
	f, got, err := ParseFailure([]byte(`{"uid":"` + hex.EncodeToString(uid) + `","reason":"service","message":"` + strings.Repeat("ö", MaxMessage) + `"}`))
	if err != nil || got != id || f.Reason != ReasonService || len(f.Message) != MaxMessage {
		t.Errorf("failure: %d bytes of message for %s, %v", len(f.Message), got, err)
	}
	good := TokenPrefix + strings.Repeat("a", tokenText)
	for s, want := range map[string]bool{good: true, good + "a": false, good[1:]: false, good[:len(good)-1] + " ": false, "": false} {
		if got := ValidToken(s); got != want {
			t.Errorf("ValidToken(%q) = %v, want %v", s, got, want)
		}
	}
	if _, err := ParseGrant([]byte(`{"id":"x"}`)); !errors.Is(err, ErrMessage) {
		t.Errorf("grant without an ID: %v", err)
	}
}

func FuzzParseClaim(f *testing.F) {
	body, _ := json.Marshal(goodClaim(f, keys(f)[0]))
	f.Add(body)
	f.Add([]byte(`{"uid":"0011223344556677"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, got, key, err := ParseClaim(b); err == nil && (key == nil || len(got) != 64 || len(c.Descriptor) > tether.MaxDescriptor) {
			t.Errorf("taken: %+v", c)
		}
	})
}

// FuzzAnswers covers what a device reads from a station, and a station from a device, apart from claims.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"id":"` + string(id) + `","chain":["AAAA"],"batch":"b"}`))
	f.Add([]byte(`{"uid":"30313233343536373839","reason":"x","message":"\ud800"}`))
	f.Add([]byte(`{"ssid":"x","error":4}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := ParseGrant(b); err == nil {
			devcert.Parse(g.Chain)
		}
		ParseConfirmation(b)
		ParseNetwork(b)
		e := ParseError(500, b)
		fail, _, _ := ParseFailure(b)
		for _, s := range []string{e.Message, fail.Message} {
			if len(s) > MaxMessage || !utf8.ValidString(s) || strings.ContainsAny(s, "\r\n\x00") {
				t.Errorf("unfit to be shown: %q", s)
			}
		}
	})
}
