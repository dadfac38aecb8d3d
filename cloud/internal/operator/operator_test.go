package operator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

var quiet = slog.New(slog.DiscardHandler)

func TestTokens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	running, err := OpenTokens(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	token, err := NewToken(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(token) != tokenChars || !strings.HasPrefix(token, TokenPrefix) {
		t.Errorf("token = %q, want %s and 43 characters", token, TokenPrefix)
	}
	if name, ok := running.Check(token); !ok || name != "operator-1" {
		t.Errorf("a new token is not good at once: %q, %v", name, ok)
	}
	text, err := os.ReadFile(filepath.Join(dir, TokensFile))
	if err != nil || bytes.Contains(text, []byte(token)) || bytes.Contains(text, []byte(token[len(TokenPrefix):])) {
		t.Errorf("the file tells the token: %q, %v", text, err)
	}
	if want := fmt.Sprintf("%x ", sha256.Sum256([]byte(token))); !bytes.HasPrefix(text, []byte(want)) {
		t.Errorf("file = %q, want it to begin with %q", text, want)
	}
	if info, _ := os.Stat(filepath.Join(dir, TokensFile)); info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, want 0600", info.Mode().Perm())
	}
	last := token[len(token)-1]
	for _, bad := range []string{"", "crt_", token[:len(token)-1], token + "A", strings.ToUpper(token),
		token[:len(token)-1] + string(rune('A'+(last+1-'A')%26))} {
		if _, ok := running.Check(bad); ok && bad != token {
			t.Errorf("Check(%q) is true", bad)
		}
	}
	second, err := NewToken(dir, "phone")
	if err != nil || second == token {
		t.Fatalf("second token = %q, %v", second, err)
	}
	if _, err := NewToken(dir, "phone"); err == nil {
		t.Error("a second token of the same name was made")
	}
	if _, err := NewToken(dir, "two words"); !errors.Is(err, ErrName) {
		t.Errorf("a name with a space: %v, want ErrName", err)
	}
	if err := RevokeToken(dir, "operator-1"); err != nil {
		t.Fatal(err)
	}
	running.file.looked.Store(0) // as if a second had passed
	if _, ok := running.Check(token); ok {
		t.Error("a revoked token is still good")
	}
	if _, ok := running.Check(second); !ok {
		t.Error("revoking one token took another with it")
	}
	if err := RevokeToken(dir, "operator-1"); err == nil {
		t.Error("revoking twice succeeded")
	}
	if list, err := ListTokens(dir); err != nil || len(list) != 1 || list[0].Name != "phone" || time.Since(list[0].Created) > time.Minute {
		t.Errorf("ListTokens = %+v, %v", list, err)
	}
}

func TestBrokenVersionIsNotTakenOver(t *testing.T) {
	dir := t.TempDir()
	token, err := NewToken(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	running, err := OpenTokens(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"nonsense\n", "00 2026-01-01T00:00:00Z a\n", strings.Repeat("0", 64) + " yesterday a\n", strings.Repeat("0", 64) + " 2026-01-01T00:00:00Z a b\n"} {
		if err := os.WriteFile(filepath.Join(dir, TokensFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		running.file.looked.Store(0)
		if _, ok := running.Check(token); !ok {
			t.Errorf("%q ended the tokens before it", text)
		}
		if _, err := NewToken(dir, "b"); err == nil {
			t.Errorf("%q was overwritten by a new token", text)
		}
		if _, err := OpenTokens(dir, quiet); err == nil {
			t.Errorf("%q was read at start without an error", text)
		}
	}
}

func TestConcurrentEdits(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := NewToken(dir, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := ListTokens(dir); err != nil || len(list) != 8 {
		t.Errorf("%d tokens, %v, want 8", len(list), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func der(t *testing.T, pub any) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseKey(t *testing.T) {
	ed, _, _ := ed25519.GenerateKey(rand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	r, _ := rsa.GenerateKey(rand.Reader, 2048)
	for name, c := range map[string]struct {
		pub any
		ok  bool
	}{"Ed25519": {ed, true}, "P-256": {&p256.PublicKey, true}, "P-384": {&p384.PublicKey, false}, "RSA": {&r.PublicKey, false}} {
		want := der(t, c.pub)
		for form, text := range map[string][]byte{
			"base64": []byte(" " + base64.StdEncoding.EncodeToString(want) + "\n"),
			"PEM":    pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: want}),
		} {
			got, err := ParseKey(text)
			if c.ok && (err != nil || !bytes.Equal(got, want)) || !c.ok && !errors.Is(err, ErrKey) {
				t.Errorf("%s as %s: %x, %v", name, form, got, err)
			}
		}
	}
	for _, bad := range []string{"", "AAAA", "hello world", "-----BEGIN PUBLIC KEY-----"} {
		if _, err := ParseKey([]byte(bad)); !errors.Is(err, ErrKey) {
			t.Errorf("ParseKey(%q) = %v, want ErrKey", bad, err)
		}
	}
}

func TestDeviceList(t *testing.T) {
	dir := t.TempDir()
	running, err := OpenDevices(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	a, b := tether.NewDeviceID([]byte("a")), tether.NewDeviceID([]byte("b"))
	one, _, _ := ed25519.GenerateKey(rand.Reader)
	two, _, _ := ed25519.GenerateKey(rand.Reader)
	if _, ok := running.Key(a); ok {
		t.Error("an empty list knows a device")
	}
	if err := AddDevice(dir, a, der(t, one)); err != nil {
		t.Fatal(err)
	}
	if err := AddDevice(dir, b, der(t, one)); err != nil {
		t.Fatal(err)
	}
	if key, ok := running.Key(b); !ok || key != sha256.Sum256(der(t, one)) {
		t.Errorf("Key = %x, %v, want the one that was added", key, ok)
	}
	if err := AddDevice(dir, a, der(t, two)); err != nil { // replaces
		t.Fatal(err)
	}
	running.list.looked.Store(0)
	before := running.Version()
	if key, ok := running.Key(a); !ok || key != sha256.Sum256(der(t, two)) {
		t.Errorf("Key = %x, %v, want the second one", key, ok)
	}
	if err := RemoveDevice(dir, b); err != nil {
		t.Fatal(err)
	}
	running.list.looked.Store(0)
	if _, ok := running.Key(b); ok || running.Version() == before {
		t.Error("a removed device is still known")
	}
	if err := RemoveDevice(dir, b); err == nil {
		t.Error("removing twice succeeded")
	}
	if list, err := ListDevices(dir); err != nil || len(list) != 1 || list[0].ID != a {
		t.Errorf("ListDevices = %+v, %v", list, err)
	}
	for _, bad := range []string{"x y\n", string(a) + "\n", string(a) + " AAAA\n"} {
		if _, err := parseDevices([]byte(bad)); err == nil {
			t.Errorf("parseDevices(%q) gave no error", bad)
		}
	}
}

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte(strings.Repeat("0", 64) + " 2026-01-01T00:00:00Z a\n# x\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parseTokens(text)
		if err != nil {
			return
		}
		for _, tok := range *list {
			if !validName(tok.Name) {
				t.Errorf("name %q was taken", tok.Name)
			}
		}
	})
}
