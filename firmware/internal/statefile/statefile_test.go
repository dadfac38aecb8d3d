package statefile_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile/powercut"
)

func TestWriteRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := statefile.Prepare(dir); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != fs.FileMode(0o700) {
		t.Errorf("directory mode = %v, want %v", st.Mode().Perm(), fs.FileMode(0o700))
	}
	name := filepath.Join(dir, "x.json")
	if _, err := statefile.Read(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of nothing = %v, want ErrNotExist", err)
	}
	// What a power cut during an earlier write left does no harm, even a link.
	if err := os.Symlink("/dev/null", filepath.Join(dir, ".x.json.new")); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two, longer", ""} {
		if err := statefile.Write(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := statefile.Read(name); err != nil || string(got) != text {
			t.Errorf("Read = %q, %v, want %q", got, err, text)
		}
	}
	if st, _ := os.Lstat(name); st.Mode() != fs.FileMode(0o600) {
		t.Errorf("mode = %v, want %v", st.Mode(), fs.FileMode(0o600))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*.new")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620} {
		name := filepath.Join(dir, mode.String())
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chmod(name, mode)
		if _, err := statefile.Read(name); !errors.Is(err, statefile.ErrPermissions) {
			t.Errorf("mode %v: %v, want ErrPermissions", mode, err)
		}
	}
	link := filepath.Join(dir, "link")
	os.Symlink(filepath.Join(dir, "target"), link)
	if _, err := statefile.Read(link); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("link: %v, want ErrPermissions", err)
	}
	if _, err := statefile.Read(dir); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("directory: %v, want ErrPermissions", err)
	}
	big := filepath.Join(dir, "big")
	if err := statefile.Write(big, bytes.Repeat([]byte{'x'}, statefile.MaxSize+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := statefile.Read(big); err == nil {
		t.Error("too large: no error")
	}
}

func TestWriteFailureKeepsTheOld(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	if err := statefile.Write(name, []byte("old")); err != nil {
		t.Fatal(err)
	}
	// A directory in the way of the temporary file that cannot be removed.
	if err := os.MkdirAll(filepath.Join(filepath.Dir(name), ".x.new", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := statefile.Write(name, []byte("new")); err == nil {
		t.Fatal("no error")
	}
	if got, err := statefile.Read(name); err != nil || string(got) != "old" {
		t.Errorf("after a failed write: %q, %v, want old", got, err)
	}
}

func TestPrepareRefusesOpenDirectory(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	if err := statefile.Prepare(dir); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("Prepare = %v, want ErrPermissions", err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	release, err := statefile.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := statefile.Lock(dir); !errors.Is(err, statefile.ErrLocked) {
		t.Errorf("second Lock = %v, want ErrLocked", err)
	}
	release()
	again, err := statefile.Lock(dir)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again()
}

// The power goes at every operation in turn: afterwards there is the old content or the new
// one, whole; and the new one, whatever happens, once statefile.Write has returned nil.
func TestPowerCut(t *testing.T) {
	const name, before, after = "d/x.json", "old content", "new content, longer"
	for cut := 1; ; cut++ {
		d := powercut.New(cut, map[string][]byte{name: []byte(before), "d/.x.json.new": []byte("left behind")})
		err := statefile.WriteOn(d, name, []byte(after))
		if (err == nil) == d.Lost() {
			t.Fatalf("cut %d: Write = %v, power lost = %v", cut, err, d.Lost())
		}
		for i, state := range d.After() {
			if got := string(state[name]); got != after && (got != before || err == nil) {
				t.Errorf("cut %d, state %d: %q after Write = %v", cut, i, got, err)
			}
		}
		if err == nil {
			if want := 8; cut != want {
				t.Errorf("Write did %d operations, want %d: does it still sync?", cut-1, want-1)
			}
			return
		}
	}
}

func TestLockRefusesNewerState(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "format")
	lock := func() error {
		release, err := statefile.Lock(dir)
		if err == nil {
			release()
		}
		return err
	}
	if err := lock(); err != nil {
		t.Fatal(err)
	}
	ours := fmt.Sprintln(statefile.Format)
	for _, test := range []struct {
		name, content, after string
		err                  error
		says                 string
	}{
		{"of this version", ours, ours, nil, ""},
		{"of a newer one", fmt.Sprintln(statefile.Format + 1), fmt.Sprintln(statefile.Format + 1), statefile.ErrNewer, "install that version again"},
		{"of a much newer one", "1000000", "1000000", statefile.ErrNewer, "format 1000000"},
		{"no number", "x", "x", nil, "want the number"},
		{"zero", "0", "0", nil, "want the number"},
		{"empty", "", "", nil, "want the number"},
	} {
		if err := statefile.Write(name, []byte(test.content)); err != nil {
			t.Fatal(err)
		}
		err := lock()
		if (err == nil) != (test.says == "") || test.err != nil && !errors.Is(err, test.err) || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %v, %q", test.name, err, test.err, test.says)
		}
		if got, err := statefile.Read(name); err != nil || string(got) != test.after {
			t.Errorf("%s: left %q, %v, want %q", test.name, got, err, test.after)
		}
	}
}
