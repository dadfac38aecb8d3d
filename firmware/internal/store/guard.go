package store

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// maxReplaced bounds how often a running store begins anew. A replaced database stays mapped, because bbolt's
// locks may hang in it and closing could wait for ever.
const maxReplaced = 3

// guard runs f, which uses bbolt, and turns what a damaged file does there, panics and reads beyond the
// end of the file (SIGBUS), into ErrDamaged. It works for faults in the calling goroutine only, which is why
// bbolt features that start their own (Tx.Check, NoFreelistSync) are not used here.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	if err = f(); errors.Is(err, berrors.ErrIncompatibleValue) {
		// A bucket where a value should be, or the other way round: we never mix them.
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// damaged reports whether err from opening means that the file's content is bad.
func damaged(err error) bool {
	for _, e := range []error{ErrDamaged, berrors.ErrInvalid, berrors.ErrVersionMismatch, berrors.ErrChecksum, berrors.ErrInvalidMapping} {
		if errors.Is(err, e) {
			return true
		}
	}
	// bbolt v1.5.0 has no sentinel for this one (db.go, mmap).
	return err != nil && strings.HasPrefix(err.Error(), "file size too small")
}

// view and update run one transaction. fn must be this package's own code: a panic in it counts as
// damage. What the transaction gave out is valid within fn only.
func (s *Store) view(fn func(*bbolt.Tx) error) error {
	s.mu.RLock()
	db, generation := s.db, s.generation
	err := s.usable()
	if err == nil {
		err = guard(func() error { return db.View(fn) })
	}
	s.mu.RUnlock()
	if errors.Is(err, ErrDamaged) {
		s.writer.Lock()
		defer s.writer.Unlock()
		s.replace(generation, err)
	}
	return err
}

func (s *Store) update(fn func(*bbolt.Tx) error) error {
	// One writer at a time, waiting here and not in bbolt, where a damaged transaction may
	// leave the lock held.
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.RLock()
	db, generation := s.db, s.generation
	err := s.usable()
	if err == nil {
		err = guard(func() error { return db.Update(fn) })
		if err == nil && s.cfg.committed != nil {
			err = s.cfg.committed()
		}
	}
	s.mu.RUnlock()
	if errors.Is(err, ErrDamaged) {
		s.replace(generation, err)
	}
	if err == nil {
		s.changes.Add(1)
	}
	s.note("write state", err)
	return err
}

// usable says why there is no database now; s.mu is held.
func (s *Store) usable() error {
	switch {
	case s.closed:
		return ErrClosed
	case s.db == nil:
		return fmt.Errorf("%w, and no new one could be made", ErrDamaged)
	}
	return nil
}

// replace begins anew after generation proved damaged; s.writer is held.
func (s *Store) replace(generation uint64, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.generation != generation || s.generation >= maxReplaced {
		return
	}
	s.generation++
	s.db = nil // and never closed, see maxReplaced
	s.aside(s.path, cause)
	db, err := s.openAt(s.path)
	if err != nil {
		s.log.Error("no new state database", "file", s.path, "err", err)
		return
	}
	s.db = db
}
