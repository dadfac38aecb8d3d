package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Names within Dir.
const (
	fileName     = "state.db"
	snapshotName = "state.snapshot"
	asideSuffix  = ".damaged"
)

// bbolt's settings for a small device.
const (
	allocSize = 1 << 20 // the file grows in such steps instead of 16 MiB
	// mapSize is address space only. A file that outgrew its map would wait for all readers,
	// and a snapshot reads for as long as the flash takes to write it.
	mapSize = 16 << 20
)

// metaBucket marks a database of ours and says which format it has. A database without it is new.
const (
	metaBucket    = "store"
	formatKey     = "format"
	formatVersion = "1"
)

type opener func(path string, mode fs.FileMode, o *bbolt.Options) (*bbolt.DB, error)

// Store is an open store. It is safe for concurrent use.
type Store struct {
	cfg      Config
	log      *slog.Logger
	path     string // of the database
	volatile bool
	lock     *os.File // Dir, locked

	writer sync.Mutex // one write transaction at a time; taken before mu

	mu         sync.RWMutex // held for reading during each transaction; guards what follows
	db         *bbolt.DB    // nil: damaged, and no new one could be made
	generation uint64       // how often db was replaced
	closed     bool

	snapshots sync.Mutex    // one snapshot at a time; guards saved
	saved     uint64        // changes in the last snapshot
	changes   atomic.Uint64 // commits so far

	damage   atomic.Int64
	failures atomic.Int64
	lastErr  atomic.Pointer[string]
	lastSnap atomic.Int64 // Unix nanoseconds; 0: none
}

// Open opens the store, or makes it. Errors: ErrInUse; what the file system says if neither Dir nor VolatileDir
// can be used. Close it in the end; Run takes the snapshots.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	c.fill()
	s := &Store{cfg: c, log: c.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	var err error
	if s.lock, err = lockDir(c.Dir, c.LockWait); err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

// fill puts defaults in.
func (c *Config) fill() {
	if c.VolatileDir == "" {
		c.VolatileDir = filepath.Join(os.TempDir(), fmt.Sprintf("cloudrest-%d", os.Geteuid()))
	}
	if c.SnapshotEvery == 0 {
		c.SnapshotEvery = MinSnapshotEvery
	}
	if c.LockWait == 0 {
		c.LockWait = DefaultLockWait
	}
	if c.open == nil {
		c.open = bbolt.Open
	}
}

// open finds out where the database can be.
func (s *Store) open() error {
	reason := errors.New("asked for")
	if s.cfg.Volatile {
		if err := s.convert(); err != nil {
			return fmt.Errorf("take state over from flash: %w", err)
		}
	} else {
		if reason = s.openDir(); reason == nil {
			return nil
		}
		if !mayFallBack(reason) {
			return fmt.Errorf("open state: %w", reason)
		}
	}
	if err := s.openVolatile(); err != nil {
		return fmt.Errorf("open state in memory, because of %q on flash: %w", reason, err)
	}
	s.log.Warn("state is kept in memory with snapshots on flash", "file", s.path, "durability", s.durability(), "reason", reason)
	return nil
}

// openDir opens the database on flash.
func (s *Store) openDir() error {
	s.path = filepath.Join(s.cfg.Dir, fileName)
	_, statErr := os.Lstat(s.path)
	db, err := s.openAt(s.path)
	if err == nil {
		s.db = db
		// Its content was taken over in the transaction that made the database.
		if err := os.Remove(s.snapshotPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("old snapshot stays", "err", err)
		}
		return nil
	}
	if mayFallBack(err) {
		if errors.Is(statErr, fs.ErrNotExist) || isEmptyDB(s.path) {
			_ = os.Remove(s.path) // bbolt wrote four pages before it was refused
		} else if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV) {
			s.aside(s.path, err) // from a time when this file system was another one
		}
	}
	return err
}

// convert makes a snapshot of a database in Dir from a time when Config.Volatile was not set.
func (s *Store) convert() error {
	path := filepath.Join(s.cfg.Dir, fileName)
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	db, err := s.openAt(path)
	if err != nil {
		if mayFallBack(err) {
			return nil
		}
		return err
	}
	err = writeFile(s.snapshotPath(), func(w io.Writer) error {
		return guard(func() error {
			return db.View(func(tx *bbolt.Tx) error { return dump(w, tx) })
		})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return os.Remove(path)
}

// mayFallBack reports whether the state can live in memory because of err: the file system cannot map
// a file, or takes no new one.
func mayFallBack(err error) bool {
	for _, e := range []error{syscall.EINVAL, syscall.ENODEV, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// isEmptyDB reports whether the file is no larger than what bbolt writes first.
func isEmptyDB(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Size() <= int64(4*os.Getpagesize())
}

// openVolatile opens the database in memory, with what the last snapshot held if there is none yet.
func (s *Store) openVolatile() error {
	if err := os.MkdirAll(s.cfg.VolatileDir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := ownDir(s.cfg.VolatileDir); err != nil {
		return err
	}
	path, err := s.cfg.volatilePath()
	if err != nil {
		return err
	}
	s.path, s.volatile = path, true
	s.db, err = s.openAt(s.path)
	return err
}

// ownDir refuses a directory that others could have prepared: /tmp is everybody's.
func ownDir(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at directory: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || !ok || int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s must be a directory of user %d that nobody else may write to", path, os.Geteuid())
	}
	return nil
}

// openAt opens the database at path, once more with a new one if it is damaged.
func (s *Store) openAt(path string) (*bbolt.DB, error) {
	db, err := s.tryOpen(path)
	if damaged(err) {
		s.aside(path, err)
		db, err = s.tryOpen(path)
	}
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%w: %s is locked, is another cloudrestd running?", ErrInUse, path)
	}
	return db, err
}

func (s *Store) tryOpen(path string) (*bbolt.DB, error) {
	var db *bbolt.DB
	if err := checkFile(path); err != nil {
		return nil, err
	}
	err := guard(func() (err error) {
		db, err = s.cfg.open(path, 0o600, &bbolt.Options{
			Timeout:         s.cfg.LockWait,
			InitialMmapSize: mapSize,
			FreelistType:    bbolt.FreelistMapType,
			NoStatistics:    true,
			// NoFreelistSync would spare a page for each commit, but then bbolt searches the free
			// pages in a goroutine of its own, whose panic on a damaged file nobody can catch.
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = allocSize
	if err = guard(func() error { return s.prepare(db) }); err != nil {
		if !errors.Is(err, ErrDamaged) { // else closing may hang
			_ = db.Close()
		}
		return nil, err
	}
	return db, nil
}

// prepare makes a new database one of ours, in one transaction with what a snapshot holds.
func (s *Store) prepare(db *bbolt.DB) error {
	isOurs := false
	if err := db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(metaBucket))
		if isOurs = b != nil; isOurs {
			if v := string(b.Get([]byte(formatKey))); v != formatVersion {
				return fmt.Errorf("%w: format %q, this program reads %q", ErrDamaged, v, formatVersion)
			}
		}
		return nil
	}); err != nil || isOurs {
		return err
	}
	err := db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
		if err != nil {
			return err
		}
		if err := b.Put([]byte(formatKey), []byte(formatVersion)); err != nil {
			return err
		}
		return s.restore(tx)
	})
	if errors.Is(err, errSnapshot) {
		s.aside(s.snapshotPath(), err)
		return s.prepare(db)
	}
	if err != nil {
		return err
	}
	// bbolt synced the file, but not the directory that has its name.
	return syncDir(filepath.Dir(db.Path()))
}

// aside moves a damaged file out of the way; the one that was there before goes.
func (s *Store) aside(path string, cause error) {
	s.damage.Add(1)
	s.log.Warn("damaged state moved aside", "file", path, "to", path+asideSuffix, "err", cause)
	if err := os.Rename(path, path+asideSuffix); err != nil {
		s.log.Warn("damaged state is removed instead", "file", path, "err", err)
		_ = os.Remove(path)
	}
}

// Run takes the snapshots until ctx is done; it is idle where none are needed. It returns nil.
func (s *Store) Run(ctx context.Context) error {
	if !s.volatile {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(s.cfg.SnapshotEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			_ = s.Sync() // counted and logged there
		}
	}
}

// Sync puts on flash what was committed before the call. It does nothing where each commit does, or if nothing
// changed. It is for a rare change that a person waits for, such as a pairing: flash wears out.
func (s *Store) Sync() error {
	if !s.volatile {
		return nil
	}
	s.snapshots.Lock()
	defer s.snapshots.Unlock()
	changes := s.changes.Load()
	if changes == s.saved {
		return nil
	}
	err := s.writeSnapshot()
	if err == nil {
		s.saved = changes
		s.lastSnap.Store(time.Now().UnixNano())
	}
	s.note("write snapshot", err)
	return err
}

// Close writes the last snapshot if one is due and closes the database. The store must not be in use any more:
// calls that come later get ErrClosed. A second Close does nothing.
func (s *Store) Close() error {
	s.mu.RLock()
	closed := s.closed
	s.mu.RUnlock()
	if closed {
		return nil
	}
	err := s.Sync()
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
	}
	err = errors.Join(err, s.lock.Close())
	if err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// Status is for the status page and metrics.
func (s *Store) Status() Status {
	st := Status{Durability: s.durability(), File: s.path, Damaged: s.damage.Load(), Errors: s.failures.Load()}
	if fi, err := os.Stat(s.path); err == nil {
		st.Bytes = fi.Size()
	}
	if e := s.lastErr.Load(); e != nil {
		st.LastError = *e
	}
	if n := s.lastSnap.Load(); n != 0 {
		st.Snapshot = time.Unix(0, n)
	}
	return st
}

func (s *Store) durability() Durability {
	if !s.volatile {
		return Durability{}
	}
	return Durability{SnapshotEvery: s.cfg.SnapshotEvery}
}

// note counts and logs what a write gave: the start of a failure, its change and its end.
func (s *Store) note(act string, err error) {
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrTooLarge) {
		return // the caller's mistakes
	}
	last := s.lastErr.Load()
	if err == nil {
		if last != nil && s.lastErr.CompareAndSwap(last, nil) {
			s.log.Info("state can be written again")
		}
		return
	}
	s.failures.Add(1)
	text := act + ": " + err.Error()
	if s.lastErr.Swap(&text); last == nil || *last != text {
		s.log.Error("state cannot be written", "err", text)
	}
}
