package store

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockEvery is how often a lock is tried for.
const lockEvery = 50 * time.Millisecond

// lockDir takes the state directory for this process, for at most wait, until the returned file is closed. bbolt locks
// its file as well, but only once it has it open: too late for looking through the file, or moving it aside. A lock
// on the directory needs no file of its own, so it works on a full or read-only disk too.
func lockDir(dir string, wait time.Duration) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	for end := time.Now().Add(wait); ; time.Sleep(lockEvery) {
		err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return d, nil
		}
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			d.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w: %s is locked, is another cloudrestd running?", ErrInUse, dir)
			}
			return nil, fmt.Errorf("lock state directory: %w", err)
		}
	}
}
