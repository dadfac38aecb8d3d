// Package store keeps what the device must remember in one bbolt database: small values in
// Buckets, and Journals of records in order. It is the only package of the device that knows bbolt.
//
// bbolt maps its file into memory, shared and writable. JFFS2, which is what OpenWrt routers with
// SPI-NOR flash have, and an overlay over it refuse that with EINVAL (etcd-io/bbolt#258, #949), other
// file systems with ENODEV. So Open tries, and falls back to a database on a RAM file system with
// snapshots on flash, at most one in SnapshotEvery and one at Close. What is really given then is in Status.Durability:
//
//   - "every commit": what a call reported as done survives kill -9 and a power cut.
//   - "snapshot every 5m0s": it survives kill -9 and a restart of the daemon, because the RAM file system
//     stays; a power cut or reboot without Close loses what came after the last snapshot.
//
// A database or snapshot that is damaged is moved aside (one is kept, for those who want to look), counted
// and logged, and a new one begins: a device must not crash in a loop because of a bad flash cell. Damage is
// looked for at Open, in every page, and noticed later by the faults and panics it
// causes in bbolt.
//
// A full disk fails the call that wanted to write, with everything as before it, and is counted; the
// next call tries again.
package store

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// MinSnapshotEvery is the shortest time between two snapshots, and the default: flash wears out.
const MinSnapshotEvery = 5 * time.Minute

// DefaultLockWait is how long Open waits for another process to let go of the database.
const DefaultLockWait = 2 * time.Second

// Config says where the state lies.
type Config struct {
	Dir           string        // on flash; required; made with mode 0700 when absent
	VolatileDir   string        // on a RAM file system, used if Dir cannot hold a database; default cloudrest-<uid> in os.TempDir
	Volatile      bool          // use VolatileDir without trying Dir first, to spare the flash
	SnapshotEvery time.Duration // from VolatileDir to Dir; default and least MinSnapshotEvery
	LockWait      time.Duration // default DefaultLockWait
	Logger        *slog.Logger  // nil: silence

	open      opener       // a test's file system; nil: bbolt.Open
	committed func() error // a test's error after a commit that is in the file all the same
}

// Validate reports every mistake at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("state directory is not set"))
	}
	if c.SnapshotEvery != 0 && c.SnapshotEvery < MinSnapshotEvery {
		errs = append(errs, fmt.Errorf("snapshots every %v, at least %v are needed between two", c.SnapshotEvery, MinSnapshotEvery))
	}
	if c.LockWait < 0 {
		errs = append(errs, fmt.Errorf("lock wait %v is negative", c.LockWait))
	}
	return errors.Join(errs...)
}

var (
	// ErrInUse means that another process, most likely another cloudrestd, has the database open.
	ErrInUse = errors.New("state is in use by another process")
	// ErrDamaged means that the database broke under this call. It was replaced: a retry may
	// work, on what the last snapshot held or on nothing.
	ErrDamaged = errors.New("state database damaged")
	// ErrClosed means that Close was called before.
	ErrClosed = errors.New("store closed")
	// ErrNotFound means that a bucket has no such key.
	ErrNotFound = errors.New("no such key")
	// ErrTooLarge means that a key, value or record exceeds its bound.
	ErrTooLarge = errors.New("too large for the store")
)

// Durability is what the store gives to a call that it reports as done.
type Durability struct {
	SnapshotEvery time.Duration // 0: each commit is on flash
}

// String is "every commit" or "snapshot every 5m0s".
func (d Durability) String() string {
	if d.SnapshotEvery == 0 {
		return "every commit"
	}
	return "snapshot every " + d.SnapshotEvery.String()
}

// MarshalText is String, so that a status in JSON says it in words.
func (d Durability) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Status is the state of the store at one moment.
type Status struct {
	Durability Durability
	File       string    // the database in use
	Bytes      int64     // its size
	Damaged    int64     // databases and snapshots found damaged and moved aside since Open began
	Errors     int64     // calls and snapshots that failed since Open
	LastError  string    // of the last of them; "" once a write worked again
	Snapshot   time.Time // when the last snapshot of this process was written; zero: none
}
