package operator

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

var (
	devA = tether.NewDeviceID([]byte("a"))
	devB = tether.NewDeviceID([]byte("b"))
)

func newKey(t testing.TB) []byte {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRevoke(t *testing.T) {
	dir := t.TempDir()
	running, err := OpenDevices(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	before := running.Version()
	for i, want := range []bool{true, false} {
		if added, err := Revoke(dir, devA); added != want || err != nil {
			t.Errorf("Revoke, time %d = %v, %v, want %v", i+1, added, err, want)
		}
	}
	if !running.Revoked(devA) || running.Revoked(devB) {
		t.Errorf("revoked: a %v, b %v, want a alone, at once", running.Revoked(devA), running.Revoked(devB))
	}
	if running.Version() == before {
		t.Error("a revocation is no new version")
	}
	list, err := ListRevoked(dir)
	if err != nil || len(list) != 1 || list[0].ID != devA || time.Since(list[0].At) > time.Minute {
		t.Errorf("ListRevoked = %v, %v, want a, now", list, err)
	}
	// One version that cannot be read does not let anybody in.
	if err := os.WriteFile(filepath.Join(dir, RevokedFile), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !running.Revoked(devA) {
		t.Error("a broken file lets a revoked device in")
	}
	if _, err := OpenDevices(dir, quiet); err == nil {
		t.Error("a relay starts with revocations that it cannot read")
	}
	if _, err := Revoke(dir, devB); err == nil {
		t.Error("a broken file was overwritten")
	}
	if err := os.WriteFile(filepath.Join(dir, RevokedFile), []byte("# by hand\n"+devA.Label()+"\n\n"+string(devB)+" 2026-01-02T03:04:05Z"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !running.Revoked(devA) || !running.Revoked(devB) {
		t.Error("a file written by hand is not read")
	}
	if err := Unrevoke(dir, devA); err != nil {
		t.Fatal(err)
	}
	if running.Revoked(devA) || !running.Revoked(devB) {
		t.Error("Unrevoke took the wrong device")
	}
	if err := Unrevoke(dir, devA); err == nil {
		t.Error("Unrevoke of a device that is not revoked succeeded")
	}
	if err := Unrevoke(dir, devB); err != nil || running.Revoked(devB) {
		t.Errorf("the last one: %v, still revoked %v", err, running.Revoked(devB))
	}
}

func TestRekeyFile(t *testing.T) {
	dir := t.TempDir()
	if list, err := Rekeys(dir); len(list) != 0 || err != nil {
		t.Errorf("Rekeys without a file = %v, %v", list, err)
	}
	for _, id := range []tether.DeviceID{devA, devB, devA} {
		if err := Rekey(dir, id); err != nil {
			t.Fatal(err)
		}
	}
	list, err := Rekeys(dir)
	if err != nil || len(list) != 2 {
		t.Fatalf("Rekeys = %v, %v, want two devices", list, err)
	}
	if err := Rekeyed(dir, devA); err != nil {
		t.Fatal(err)
	}
	if list, err := Rekeys(dir); err != nil || len(list) != 1 || list[0].ID != devB {
		t.Errorf("Rekeys = %v, %v, want b alone", list, err)
	}
	if err := AddDevice(dir, devB, newKey(t)); err != nil {
		t.Fatal(err)
	}
	if err := Rekey(dir, devB); !errors.Is(err, ErrListed) {
		t.Errorf("Rekey of a listed device = %v, want ErrListed", err)
	}
}

func importLines(t testing.TB, pairs ...any) string {
	t.Helper()
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, `{"serial":%d,"id":%q,"key":%q,"descriptor":{"id":"x"}}`+"\n", i, pairs[i], base64.StdEncoding.EncodeToString(pairs[i+1].([]byte)))
	}
	return b.String()
}

func TestImport(t *testing.T) {
	dir := t.TempDir()
	one, two, three := newKey(t), newKey(t), newKey(t)
	running, err := OpenDevices(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, in string
		replace  bool
		want     Imported
		err      error
	}{
		{"two new ones, one of them twice", importLines(t, devA, one, devB, two, devA, one), false, Imported{Added: 2}, nil},
		{"the same again, without a line feed at the end", strings.TrimSpace(importLines(t, devA, one, devB, two)), false, Imported{Unchanged: 2}, nil},
		{"another key", importLines(t, devA, three, tether.NewDeviceID(nil), one), false, Imported{}, ErrKeyChanges},
		{"another key, wanted", importLines(t, devA, three, devB, two), true, Imported{Changed: 1, Unchanged: 1}, nil},
		{"two keys for one device", importLines(t, devA, one, devA, two), true, Imported{}, ErrImport},
		{"a line cut short", importLines(t, tether.NewDeviceID(nil), one)[:100], false, Imported{}, ErrImport},
		{"no key", `{"id":"` + string(devA) + `"}`, false, Imported{}, ErrImport},
		{"not JSON", "ID,KEY\n", false, Imported{}, ErrImport},
		{"a line without end", `{"id":"` + strings.Repeat("x", maxLine), false, Imported{}, ErrImport},
		{"nothing", "\n\n", false, Imported{}, nil},
	} {
		before, _ := os.ReadFile(filepath.Join(dir, DevicesFile))
		got, err := Import(dir, strings.NewReader(c.in), c.replace, nil)
		if got != c.want || !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
			t.Errorf("%s: %+v, %v, want %+v, %v", c.name, got, err, c.want, c.err)
		}
		if after, _ := os.ReadFile(filepath.Join(dir, DevicesFile)); c.err != nil && !bytes.Equal(before, after) {
			t.Errorf("%s: the list was changed", c.name)
		}
	}
	if key, ok := running.Key(devA); !ok || key != sha256.Sum256(three) {
		t.Errorf("the running relay has the key %x, %v, want the third", key, ok)
	}
}

func TestImportLarge(t *testing.T) {
	dir := t.TempDir()
	const n = 20_000
	key := base64.StdEncoding.EncodeToString(newKey(t))
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"id\":%q,\"key\":%q}\n", tether.NewDeviceID(fmt.Append(nil, i)), key)
	}
	told := 0
	done, err := Import(dir, strings.NewReader(b.String()), false, func(lines int) { told = lines })
	if err != nil || done.Added != n || told != n {
		t.Fatalf("Import = %+v, %v, progress up to %d, want %d added", done, err, told, n)
	}
	running, err := OpenDevices(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := running.Key(tether.NewDeviceID(fmt.Append(nil, n-1))); !ok {
		t.Error("the last line is not on the list")
	}
	if done, err := Import(dir, strings.NewReader(b.String()), false, nil); err != nil || done.Unchanged != n {
		t.Errorf("again: %+v, %v, want %d unchanged", done, err, n)
	}
}

func FuzzImport(f *testing.F) {
	key := newKey(f)
	f.Add(importLines(f, devA, key, devB, key))
	f.Add(importLines(f, devA, key)[:90])
	f.Add("{}\n\n[]\n{\"id\":1}")
	f.Fuzz(func(t *testing.T, text string) {
		keys, order, err := readImport(strings.NewReader(text), nil)
		if err != nil {
			if !errors.Is(err, ErrImport) {
				t.Errorf("%v is not ErrImport", err)
			}
			return
		}
		if len(keys) != len(order) {
			t.Errorf("%d keys of %d devices", len(keys), len(order))
		}
		for _, id := range order {
			if again, err := ParseKey([]byte(base64.StdEncoding.EncodeToString(keys[id]))); err != nil || !bytes.Equal(again, keys[id]) {
				t.Errorf("the key of %s is not in its one form: %v", id, err)
			}
			if _, err := idOf(id); err != nil {
				t.Errorf("%q was taken as a device", id)
			}
		}
	})
}

func FuzzParseMarks(f *testing.F) {
	f.Add([]byte(string(devA) + " 2026-01-02T03:04:05Z\n# x\n\n" + devB.Label()))
	f.Add([]byte("x y z"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseMarks(text)
		if err != nil {
			return
		}
		// What is read, written and read again is the same devices.
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, RevokedFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := ListRevoked(dir)
		if err != nil || len(list) != len(*m) {
			t.Fatalf("%d listed, %v, want %d", len(list), err, len(*m))
		}
		for _, l := range list {
			if err := Unrevoke(dir, l.ID); err != nil {
				t.Errorf("Unrevoke: %v", err)
			}
		}
		if list, err := ListRevoked(dir); err != nil || len(list) != 0 {
			t.Errorf("%d left, %v", len(list), err)
		}
	})
}
