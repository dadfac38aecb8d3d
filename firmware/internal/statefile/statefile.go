// Package statefile keeps small files in the state directory so that a power cut leaves
// either the old content or the new one: write beside, sync, rename, sync the directory.
// Files hold keys, so nobody but the daemon's user may read them; the package refuses a
// file that others could have read or changed. It does not know what the files mean.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600

	// Format numbers what programs write into the state directory, all of it together. It rises
	// when an older program would misread something, or take it for damaged and put it aside.
	Format     = 1
	formatFile = "format"

	// MaxSize is the size of the largest file that Read takes, in bytes.
	MaxSize = 64 << 10
)

// ErrPermissions means that others than the owner may read or change a state file, or
// change what is in the state directory. The error around it says what to type.
var ErrPermissions = errors.New("permissions are too open")

// ErrNewer means that a newer version of the program has written the state. Going back is
// possible only with the state of before.
var ErrNewer = errors.New("the state was written by a newer version of this program")

// ErrLocked means that another process holds the lock of the state directory.
var ErrLocked = errors.New("another gateway is using this state directory")

// Prepare creates the state directory (0700) if it is missing, and refuses one in which
// others may write.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("create the state directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at the state directory: %w", err)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory %s: mode %04o: %w: type chmod 700 %s", dir, st.Mode().Perm(), ErrPermissions, dir)
	}
	return nil
}

// Lock takes the directory for this process until release is called or the process
// ends, however it ends. ErrLocked if another one has it, ErrNewer if what is in it is not for
// this version: nothing was read or changed then.
func Lock(dir string) (release func(), err error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
	}
	if err := checkFormat(dir); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// checkFormat compares the format of a directory with ours, and writes ours down.
func checkFormat(dir string) error {
	name := filepath.Join(dir, formatFile)
	b, err := Read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist): // new, or from before there was the file
		return Write(name, fmt.Appendln(nil, Format))
	case err != nil:
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	switch {
	case err != nil || n < 1:
		return fmt.Errorf("%s: holds %.20q, want the number of the state's format", name, b)
	case n > Format:
		return fmt.Errorf("state directory %s: %w (format %d, this one knows %d): install that version again, put back the state of before, or start anew in another directory",
			dir, ErrNewer, n, Format)
	case n < Format:
		return Write(name, fmt.Appendln(nil, Format))
	}
	return nil
}

// Read returns the content of a state file. A missing one is fs.ErrNotExist; one that
// others may read or change is ErrPermissions, and so are a link and anything else that
// is not a plain file.
func Read(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s: is a link: %w", name, ErrPermissions)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a plain file: %w", name, ErrPermissions)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %04o: %w: if nobody else has read it, type chmod 600 %s", name, st.Mode().Perm(), ErrPermissions, name)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, MaxSize)
	}
	return b, nil
}

// Write replaces a state file (0600). When it returns nil the new content survives a
// power cut; when it fails the old content is still there, or, if only the last sync
// failed, the new one.
func Write(name string, content []byte) error { return WriteOn(disk{}, name, content) }

// Disk is what Write needs of the file system. Tests bring one that loses power.
type Disk interface {
	Remove(name string) error
	Create(name string) (File, error) // a new file, 0600; never follows or opens what is there
	Rename(from, to string) error
	SyncDir(dir string) error // makes what was done in dir lasting
}

// File is a file that Disk created.
type File interface {
	io.WriteCloser
	Sync() error
}

// WriteOn is Write on another disk.
func WriteOn(d Disk, name string, content []byte) error {
	dir, base := filepath.Split(name)
	beside := filepath.Join(dir, "."+base+".new") // one fixed name: what a power cut left is used again, not piled up
	err := write(d, beside, content)
	if err == nil {
		err = d.Rename(beside, name)
	}
	if err != nil {
		d.Remove(beside)
	} else {
		err = d.SyncDir(filepath.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func write(d Disk, name string, content []byte) error {
	if err := d.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// disk is the file system of the machine.
type disk struct{}

func (disk) Remove(name string) error     { return os.Remove(name) }
func (disk) Rename(from, to string) error { return os.Rename(from, to) }

func (disk) Create(name string) (File, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
}

// SyncDir makes a rename lasting. Some file systems cannot sync a directory and say
// EINVAL; their rename is ordered anyway.
func (disk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
