package notify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// dirMode is for directories that are made: the group may come in, to write to the pipe.
const dirMode = 0o750

// errReplaced means that the path is not our pipe or socket any more; it is made anew at once.
var errReplaced = errors.New("it was removed or replaced")

// fifo makes and reads the pipe until ctx is done or something is wrong with it.
func (n *Notifier) fifo(ctx, hand context.Context) error {
	f, err := n.openFIFO(n.cfg.FIFO)
	if err != nil {
		return fmt.Errorf("open the pipe: %w", err)
	}
	defer f.Close()
	n.note("pipe", nil)
	mine, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at the pipe: %w", err)
	}
	return n.readLines(ctx, hand, f, func(time.Time) error {
		// Without the pipe, echo would make a plain file there and nobody would notice.
		if fi, err := os.Lstat(n.cfg.FIFO); err != nil || !os.SameFile(fi, mine) {
			return errReplaced
		}
		return nil
	})
}

// openFIFO makes the pipe at path unless it is there, and opens it. It is opened for writing too, so that there is no end of
// file when writers come and go, and without waiting for a writer (fifo(7)).
func (n *Notifier) openFIFO(path string) (*os.File, error) {
	if err := n.prepare(path, fs.ModeNamedPipe); err != nil {
		return nil, err
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, &fs.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", ErrUnsafe, path)
	}
	if err != nil {
		return nil, err
	}
	// Whatever was found before, only this is the file that we have.
	fi, err := f.Stat()
	if err == nil {
		err = acceptable(path, fi, fs.ModeNamedPipe)
	}
	if err == nil {
		err = f.Chmod(n.cfg.FIFOMode) // umask(2) took from it
	}
	if err == nil && n.cfg.Group > 0 {
		err = f.Chown(-1, n.cfg.Group)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// prepare makes the directory of path and sees to it that path is free, or is something of the wanted type that
// belongs to us. Anything else of ours is removed if the directory is ours alone: most likely somebody
// wrote to the pipe before it was there. A link, and what belongs to others, is refused: ErrUnsafe.
func (n *Notifier) prepare(path string, want fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = acceptable(path, fi, want)
	if err == nil || !owned(fi) || fi.Mode().Type() == fs.ModeSymlink || fi.IsDir() {
		return err
	}
	if di, statErr := os.Stat(dir); statErr != nil || !owned(di) || di.Mode().Perm()&0o022 != 0 {
		return err
	}
	n.log.Warn("notifications: something else was in the way and is removed", "path", path, "mode", fi.Mode())
	return os.Remove(path)
}

// acceptable says why fi is not a thing of the wanted type that belongs to us.
func acceptable(path string, fi fs.FileInfo, want fs.FileMode) error {
	switch {
	case fi.Mode().Type() == fs.ModeSymlink:
		return fmt.Errorf("%w: %s is a symbolic link", ErrUnsafe, path)
	case !owned(fi):
		return fmt.Errorf("%w: %s belongs to another user than %d", ErrUnsafe, path, os.Geteuid())
	case fi.Mode().Type() != want:
		return fmt.Errorf("%w: %s has mode %v, want a %v", ErrUnsafe, path, fi.Mode(), want)
	}
	return nil
}

func owned(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
