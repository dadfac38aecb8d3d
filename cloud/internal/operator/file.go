// Package operator owns the small text files by which the person who runs a relay speaks
// to it while it runs, and before it runs: the operator tokens that let clients in, the
// list of devices that are known beforehand, the devices that are revoked, and those whose
// key is to be forgotten. The command line writes them, in one piece or not at all; the
// running relay notices within a second. No secret is stored: of a token only its SHA-256,
// of a device only its public key.
package operator

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// lookEvery is how old an answer may be before the file is looked at again.
const lookEvery = time.Second

// maxFile bounds each file in bytes: about 300,000 devices.
const maxFile = 64 << 20

// ErrTooLarge means that a file would be larger than a relay reads.
var ErrTooLarge = fmt.Errorf("more than %d MB", maxFile>>20)

// watched is a file that is read again when it changed. A version that cannot be read
// is logged once and the one before it stays in force.
type watched[T any] struct {
	path  string
	parse func(text []byte) (*T, error)
	log   *slog.Logger

	now    atomic.Pointer[T]
	count  atomic.Uint64 // of the versions taken over
	looked atomic.Int64  // unix nanoseconds
	mu     sync.Mutex
	last   signature // of the version read last, good or not; guarded by mu
}

// signature tells versions of a file apart: a rename gives a new inode, an edit in
// place a new time or size.
type signature struct {
	mtime int64
	size  int64
	inode uint64
}

// open reads the file for the first time; one that does not exist is empty.
func (w *watched[T]) open() error {
	_, err := w.look()
	if w.now.Load() == nil && err == nil {
		err = errors.New("no version of " + filepath.Base(w.path)) // unreachable: look stores or fails
	}
	return err
}

// get returns the version in force, looking at the file first when fresh is asked for
// or the last look is a second ago.
func (w *watched[T]) get(fresh bool) *T {
	now := time.Now().UnixNano()
	if last := w.looked.Load(); fresh || now-last >= int64(lookEvery) && w.looked.CompareAndSwap(last, now) {
		if _, err := w.look(); err != nil {
			w.log.Error("file not taken over, the version before stays in force", "file", filepath.Base(w.path), "err", err)
		}
	}
	return w.now.Load()
}

// look reads the file if it is not the version read last.
func (w *watched[T]) look() (changed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var sig signature
	var text []byte
	info, err := os.Stat(w.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		sig.inode = ^uint64(0) // differs from "never looked"
	case err != nil:
		return false, err
	default:
		sig = signature{mtime: info.ModTime().UnixNano(), size: info.Size(), inode: inode(info)}
	}
	if sig == w.last {
		return false, nil
	}
	w.last = sig
	if err == nil {
		if sig.size > maxFile {
			return false, fmt.Errorf("%s has %d bytes: %w", filepath.Base(w.path), sig.size, ErrTooLarge)
		}
		if text, err = os.ReadFile(w.path); err != nil {
			return false, err
		}
	}
	v, err := w.parse(text)
	if err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Base(w.path), err)
	}
	w.now.Store(v)
	w.count.Add(1)
	return true, nil
}

func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// edit lets one process at a time read the file, change it and put it back whole:
// written beside, synced, renamed. change returns the new text, nil to leave the file
// as it is.
func edit(dir, name string, change func(text []byte) ([]byte, error)) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// The lock is on the directory, so that no lock file stays behind; it ends with the process.
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	path := filepath.Join(dir, name)
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text, err = change(text)
	if err != nil || text == nil {
		return err
	}
	if len(text) > maxFile {
		return fmt.Errorf("write %s: %w", name, ErrTooLarge)
	}
	tmp, err := os.CreateTemp(dir, "."+name+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing to remove
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	// Whoever runs the command as root must not lock the relay's own user out.
	if info, err := os.Stat(dir); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
			_ = os.Chown(tmp.Name(), int(s.Uid), int(s.Gid))
		}
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return d.Sync()
}
