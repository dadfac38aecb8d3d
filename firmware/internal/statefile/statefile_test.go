package statefile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != dirMode {
		t.Errorf("directory mode = %v, want %v", st.Mode().Perm(), dirMode)
	}
	name := filepath.Join(dir, "x.json")
	if _, err := Read(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of nothing = %v, want ErrNotExist", err)
	}
	// What a power cut during an earlier write left does no harm, even a link.
	if err := os.Symlink("/dev/null", filepath.Join(dir, ".x.json.new")); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two, longer", ""} {
		if err := Write(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(name); err != nil || string(got) != text {
			t.Errorf("Read = %q, %v, want %q", got, err, text)
		}
	}
	if st, _ := os.Lstat(name); st.Mode() != fileMode {
		t.Errorf("mode = %v, want %v", st.Mode(), fileMode)
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
		if _, err := Read(name); !errors.Is(err, ErrPermissions) {
			t.Errorf("mode %v: %v, want ErrPermissions", mode, err)
		}
	}
	link := filepath.Join(dir, "link")
	os.Symlink(filepath.Join(dir, "target"), link)
	if _, err := Read(link); !errors.Is(err, ErrPermissions) {
		t.Errorf("link: %v, want ErrPermissions", err)
	}
	if _, err := Read(dir); !errors.Is(err, ErrPermissions) {
		t.Errorf("directory: %v, want ErrPermissions", err)
	}
	big := filepath.Join(dir, "big")
	if err := Write(big, bytes.Repeat([]byte{'x'}, MaxSize+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(big); err == nil {
		t.Error("too large: no error")
	}
}

func TestWriteFailureKeepsTheOld(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	if err := Write(name, []byte("old")); err != nil {
		t.Fatal(err)
	}
	// A directory in the way of the temporary file that cannot be removed.
	if err := os.MkdirAll(filepath.Join(filepath.Dir(name), ".x.new", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(name, []byte("new")); err == nil {
		t.Fatal("no error")
	}
	if got, err := Read(name); err != nil || string(got) != "old" {
		t.Errorf("after a failed write: %q, %v, want old", got, err)
	}
}

func TestPrepareRefusesOpenDirectory(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	if err := Prepare(dir); !errors.Is(err, ErrPermissions) {
		t.Errorf("Prepare = %v, want ErrPermissions", err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	release, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second Lock = %v, want ErrLocked", err)
	}
	release()
	again, err := Lock(dir)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	again()
}
