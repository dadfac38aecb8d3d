package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/board/boardtest"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/proof"
)

var flashUID = []byte("\xd1\x62\x3c\x94\x0f\x2a\x51\x2d")

// *boardtest.Hardware has what *uid.Reader has.
var _ Hardware = (*boardtest.Hardware)(nil)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	hw := boardtest.NewHardware(flashUID)
	if _, err := Load(t.Context(), dir, hw); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of nothing = %v, want ErrNotExist", err)
	}
	first, made, err := Open(t.Context(), dir, hw)
	if err != nil || !made {
		t.Fatalf("first Open: made=%v, %v", made, err)
	}
	if first.ID != tether.NewDeviceID(flashUID) || first.Source != "test" || first.Strength != board.Hardware || !first.Verified || !bytes.Equal(first.UID(), flashUID) {
		t.Errorf("identity = %+v", first)
	}
	st, err := os.Stat(filepath.Join(dir, File))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file = %v, %v, want mode 0600", st, err)
	}
	second, made, err := Open(t.Context(), dir, hw)
	if err != nil || made || second.ID != first.ID || second.Strength != board.Hardware || !second.Verified || second.Reason != "" || !bytes.Equal(second.UID(), flashUID) {
		t.Fatalf("second Open = %+v, made=%v, %v", second, made, err)
	}
	digest := sha256.Sum256([]byte("challenge"))
	sig, err := second.Key().Sign(rand.Reader, digest[:], nil)
	if err != nil || !ecdsa.VerifyASN1(first.key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Errorf("the key changed over a restart (%v)", err)
	}
}

func TestOpenOtherBoard(t *testing.T) {
	dir := t.TempDir()
	hw := boardtest.NewHardware(flashUID)
	first, _, err := Open(t.Context(), dir, hw)
	if err != nil {
		t.Fatal(err)
	}
	content, _ := os.ReadFile(filepath.Join(dir, File))

	// The content of the flash on another board: refused, with what to do, and unharmed.
	other := bytes.Clone(flashUID)
	other[0] ^= 1
	_, _, err = Open(t.Context(), dir, boardtest.NewHardware(other))
	if !errors.Is(err, ErrClone) {
		t.Fatalf("on another board: %v, want ErrClone", err)
	}
	for _, want := range []string{File, "test", "remove the file"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want %q in it", err, want)
		}
	}
	for _, u := range [][]byte{flashUID, other} {
		if strings.Contains(err.Error(), hex.EncodeToString(u)) || strings.Contains(err.Error(), string(u)) {
			t.Errorf("the error tells a UID: %v", err)
		}
	}
	if after, _ := os.ReadFile(filepath.Join(dir, File)); !bytes.Equal(after, content) {
		t.Error("the file was touched")
	}

	// The source cannot be read now: the device goes on and says so.
	boom := errors.New("bus is stuck")
	hw.Set(board.UID{}, boom)
	id, made, err := Open(t.Context(), dir, hw)
	if err != nil || made || id.ID != first.ID || id.Verified || !strings.Contains(id.Reason, "bus is stuck") {
		t.Errorf("unreadable source: %+v, made=%v, %v, want unverified with the reason", id, made, err)
	}
	// Nor is it in the list of sources any more, or there is no hardware at all.
	hw.Set(board.UID{Bytes: other, Source: "mac", Strength: board.Board}, nil)
	for name, hw := range map[string]Hardware{"other source": hw, "nil": nil} {
		id, _, err := Open(t.Context(), dir, hw)
		if err != nil || id.ID != first.ID || id.Verified || id.Reason == "" {
			t.Errorf("%s: %+v, %v, want unverified with the reason", name, id, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Open(ctx, dir, hw); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v, want canceled", err)
	}
}

func TestOpenRandom(t *testing.T) {
	dir := t.TempDir()
	a, made, err := Open(t.Context(), dir, nil)
	if err != nil || !made || a.Source != board.Random || a.Strength != board.Software || a.Verified || a.Reason == "" {
		t.Fatalf("Open without hardware = %+v, made=%v, %v", a, made, err)
	}
	again, made, err := Open(t.Context(), dir, nil)
	if err != nil || made || again.ID != a.ID || again.Verified || again.Reason != a.Reason {
		t.Errorf("second Open = %+v, made=%v, %v, want %+v", again, made, err, a)
	}
	if b, _, err := Open(t.Context(), t.TempDir(), nil); err != nil || b.ID == a.ID {
		t.Errorf("another random identity = %+v, %v", b, err)
	}
}

// A file as the first program versions wrote it, without strength. Its key is nobody's.
const version1 = `{
  "version": 1,
  "id": "b36f1edde3d607a765013567780df873bf5afeeeb2dc86bcb123f6e34304faa8",
  "uid": "ebadb2d153a86711166389b00f72bd18",
  "uid_source": "random",
  "key": "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgw9Oqep2xZpQT7koD\nXadTv+1hpoUlf59Zm0I/g8158ouhRANCAAQXQ/6UKocaSF3z8pz3prHPAIuTB7p3\n+dqoA42WQdRk1n8ae24nlknka3ly+ljYTD0M/gXBTSiQYYMYaIOJW3Ax\n-----END PRIVATE KEY-----\n"
}
`

func TestOpenFirstVersion(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, File)
	if err := os.WriteFile(path, []byte(version1), 0o600); err != nil {
		t.Fatal(err)
	}
	id, made, err := Open(t.Context(), dir, boardtest.NewHardware(flashUID))
	if err != nil || made {
		t.Fatalf("Open: made=%v, %v", made, err)
	}
	if id.Strength != 0 || id.Strength.String() != "unknown" || id.Verified || id.Source != board.Random {
		t.Errorf("identity = %+v", id)
	}
	if after, _ := os.ReadFile(path); string(after) != version1 {
		t.Error("the file was rewritten; it is written once")
	}
}

func TestInfo(t *testing.T) {
	id, _, err := Open(t.Context(), t.TempDir(), boardtest.NewHardware(flashUID))
	if err != nil {
		t.Fatal(err)
	}
	spki, _ := x509.MarshalPKIXPublicKey(id.Key().Public())
	want := Info{Device: tether.NewDeviceID(flashUID), Source: "test", Strength: "hardware", Verified: true, Key: "ECDSA P-256", KeyID: proof.KeyID(spki)}
	if got, err := id.Info(); err != nil || got != want {
		t.Errorf("Info = %+v, %v, want %+v", got, err, want)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	_, good, err := create(t.Context(), boardtest.NewHardware(flashUID))
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
		if _, _, err := Open(t.Context(), dir, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		} else if strings.Contains(err.Error(), hex.EncodeToString(flashUID)) {
			t.Errorf("%s: the error tells the UID", name)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
			t.Errorf("%s: the damaged file was touched", name)
		}
	}

	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, File), good, 0o600)
	os.Chmod(filepath.Join(dir, File), 0o644)
	if _, _, err := Open(t.Context(), dir, nil); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("mode 0644: %v, want ErrPermissions", err)
	}
}

func TestOpenHardwareErrors(t *testing.T) {
	boom := errors.New("no flash")
	cases := map[string]struct {
		uid  string
		err  error
		want error
	}{
		"error": {"", boom, boom}, "blank": {strings.Repeat("\xff", 8), nil, board.ErrBlank},
		"short": {"1", nil, nil}, "long": {strings.Repeat("0123456-", 8) + "9", nil, nil},
	}
	for name, c := range cases {
		dir := t.TempDir()
		hw := boardtest.NewHardware(nil)
		hw.Set(board.UID{Bytes: []byte(c.uid), Source: "test"}, c.err)
		if _, _, err := Open(t.Context(), dir, hw); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

func FuzzParse(f *testing.F) {
	_, good, err := create(f.Context(), boardtest.NewHardware(flashUID))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(version1))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := parse(b)
		if err == nil && (id.key == nil || id.ID.Label() == "" || tether.NewDeviceID(id.uid) != id.ID) {
			t.Errorf("half an identity: %+v", id)
		}
	})
}
