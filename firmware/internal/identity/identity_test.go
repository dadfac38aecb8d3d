package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
)

// fixed is a source with a known UID.
type fixed struct {
	uid []byte
	err error
}

func (f fixed) Name() string         { return "fixed" }
func (f fixed) UID() ([]byte, error) { return f.uid, f.err }

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	uid := []byte("0123456789abcdef")
	first, made, err := Open(dir, fixed{uid: uid})
	if err != nil || !made {
		t.Fatalf("first Open: made=%v, %v", made, err)
	}
	if first.ID != tether.NewDeviceID(uid) || first.Source != "fixed" {
		t.Errorf("identity = %+v", first)
	}
	st, err := os.Stat(filepath.Join(dir, File))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file = %v, %v, want mode 0600", st, err)
	}
	// The file counts from now on, whatever the hardware says.
	second, made, err := Open(dir, fixed{err: errors.New("asked again")})
	if err != nil || made || second.ID != first.ID {
		t.Fatalf("second Open = %+v, made=%v, %v", second, made, err)
	}
	digest := sha256.Sum256([]byte("challenge"))
	sig, err := second.Key().Sign(rand.Reader, digest[:], nil)
	if err != nil || !ecdsa.VerifyASN1(first.key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Errorf("the key changed over a restart (%v)", err)
	}
	other, _, err := Open(t.TempDir(), Random{})
	if err != nil || other.ID == first.ID {
		t.Errorf("random identity = %+v, %v", other, err)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	_, good, err := create(fixed{uid: []byte("0123456789abcdef")})
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(m map[string]any)) []byte {
		m := map[string]any{}
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		b, _ := json.Marshal(m)
		return b
	}
	cases := map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "zeros": make([]byte, len(good)), "twice": append(bytes.Clone(good), good...),
		"version":    edit(func(m map[string]any) { m["version"] = 2 }),
		"unknown":    edit(func(m map[string]any) { m["x"] = 1 }),
		"id":         edit(func(m map[string]any) { m["id"] = strings.Repeat("0", 64) }),
		"uid":        edit(func(m map[string]any) { m["uid"] = hex.EncodeToString([]byte("fedcba9876543210")) }),
		"short uid":  edit(func(m map[string]any) { m["uid"] = "00" }),
		"key":        edit(func(m map[string]any) { m["key"] = "" }),
		"key cut":    edit(func(m map[string]any) { m["key"] = strings.Replace(m["key"].(string), "M", "", 1) }),
		"not string": edit(func(m map[string]any) { m["key"] = 7 }),
	}
	for name, content := range cases {
		dir := t.TempDir()
		path := filepath.Join(dir, File)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(dir, Random{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		} else if strings.Contains(err.Error(), hex.EncodeToString([]byte("0123456789abcdef"))) {
			t.Errorf("%s: the error tells the UID", name)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
			t.Errorf("%s: the damaged file was touched", name)
		}
	}

	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, File), good, 0o600)
	os.Chmod(filepath.Join(dir, File), 0o644)
	if _, _, err := Open(dir, Random{}); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("mode 0644: %v, want ErrPermissions", err)
	}
}

func TestOpenSourceErrors(t *testing.T) {
	boom := errors.New("no flash")
	for name, s := range map[string]Source{"error": fixed{err: boom}, "short": fixed{uid: []byte("1")}, "long": fixed{uid: make([]byte, 65)}} {
		dir := t.TempDir()
		if _, _, err := Open(dir, s); err == nil || s.(fixed).err != nil && !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

func FuzzParse(f *testing.F) {
	_, good, err := create(fixed{uid: []byte("0123456789abcdef")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := parse(b)
		if err == nil && (id.key == nil || id.ID.Label() == "") {
			t.Errorf("half an identity: %+v", id)
		}
	})
}
