package boltdb

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/cloudrest/cloudrest/tether"
)

// Bounds that hold where Config leaves a field zero.
const (
	DefaultRingEntries = 256       // notifications kept for one device
	DefaultRingBytes   = 256 << 10 // bytes of them, topics and payloads
	DefaultQueueBytes  = 16 << 20  // writes that wait for their transaction
	DefaultMaxDevices  = 100_000   // enrolled
	DefaultGather      = 16 * time.Millisecond

	aliveEvery = 30 * time.Second // how old "last alive" may be after a crash
	retryEvery = time.Second      // after a transaction failed (disk full)
	lockWait   = time.Second      // for the file lock of another process
	allocStep  = 1 << 20          // the file grows by this; bbolt's own step is 16 MiB
)

// Sentinels. Match with errors.Is.
var (
	// ErrFull means that the queue of writes is at its bound: the event was not taken
	// and must not be acknowledged; the device is to send it again later.
	ErrFull = errors.New("store queue full")
	// ErrClosed means that Run has ended.
	ErrClosed = errors.New("store closed")
	// ErrTooMany means that MaxDevices are enrolled already.
	ErrTooMany = errors.New("the store has as many devices as it may")
	// ErrInUse means that another process holds the file.
	ErrInUse = errors.New("the store is in use by another process")
)

// Config says where the store is and how much it may hold.
type Config struct {
	Path        string        // the bbolt file; its directory must exist
	RingEntries int           // per device; default 256
	RingBytes   int           // per device; default 256 KiB
	MaxDevices  int           // that may enrol; default 100,000. With trust on first use anybody can make some up
	QueueBytes  int           // waiting writes, all devices together; default 16 MiB
	Gather      time.Duration // shortest time between two transactions; default 16 ms, that is at most about 60 fsyncs a second
	Logger      *slog.Logger  // nil: silent
}

// Buckets. Keys begin with the 32 bytes of the device ID.
var (
	bucketDevice     = []byte("device")     // id -> record
	bucketDescriptor = []byte("descriptor") // id -> the JSON as the device sent it
	bucketSeen       = []byte("seen")       // id -> seen
	bucketRing       = []byte("ring")       // id -> ring
	bucketEvent      = []byte("event")      // id | position u64 -> event
	bucketMeta       = []byte("meta")
	keyAlive         = []byte("alive") // in meta: unix milliseconds u64
)

// DB is the open store. Its methods may be called from any goroutine.
type DB struct {
	cfg  Config
	log  *slog.Logger
	bolt *bolt.DB
	kick chan struct{} // capacity 1: there is something to commit
	done chan struct{} // closed when Run has ended

	devices int // enrolled; only the committing goroutine looks at it

	mu      sync.Mutex
	pending []op                     // guarded by mu
	queued  int                      // bytes in pending; guarded by mu
	seen    map[tether.DeviceID]seen // states to write; guarded by mu
	watch   map[key]chan struct{}    // who waits for the next event of a device; guarded by mu
	stats   Stats                    // guarded by mu
	closed  bool                     // guarded by mu
}

// Stats counts since Open.
type Stats struct {
	Commits    uint64 // transactions
	Failures   uint64 // transactions that failed and were tried again
	Events     uint64 // notifications stored
	Duplicates uint64 // notifications that were already stored
	Dropped    uint64 // notifications that left a full ring
	QueueBytes int    // waiting now
}

// op is one write. apply runs inside a transaction and may run again when the
// transaction fails, so it must not count or keep anything on its own.
type op struct {
	apply func(tx *bolt.Tx, c *commit) error
	wait  chan error // an answer is awaited: such an op is not tried again
	size  int
}

// commit gathers what one transaction did, to be told once it is on disk.
type commit struct {
	events, duplicates, dropped uint64
	devices                     int // more than before, or fewer
	changed                     map[key]struct{}
	acks                        map[Acker]stored
}

// key is a device ID as bytes: half as long as its text.
type key [32]byte

func keyOf(id tether.DeviceID) (k key, err error) {
	if _, err := tether.ParseDeviceID(string(id)); err != nil || len(id) != 2*len(k) {
		return k, tether.ErrDeviceID
	}
	_, err = hex.Decode(k[:], []byte(id))
	return k, err
}

func (k key) id() tether.DeviceID { return tether.DeviceID(hex.EncodeToString(k[:])) }

// Open opens or makes the store. After a crash, devices that were online count as
// offline since the relay was last known to live, which is exact to half a minute.
// Call Run next, and Close after Run has ended.
func Open(cfg Config) (*DB, error) {
	if cfg.RingEntries <= 0 {
		cfg.RingEntries = DefaultRingEntries
	}
	if cfg.RingBytes <= 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	if cfg.QueueBytes <= 0 {
		cfg.QueueBytes = DefaultQueueBytes
	}
	if cfg.MaxDevices <= 0 {
		cfg.MaxDevices = DefaultMaxDevices
	}
	if cfg.Gather <= 0 {
		cfg.Gather = DefaultGather
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := bolt.Open(cfg.Path, 0o600, &bolt.Options{
		Timeout:        lockWait,
		FreelistType:   bolt.FreelistMapType,
		NoFreelistSync: true, // it is found again at open; each commit writes less
		NoStatistics:   true,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", filepath.Base(cfg.Path), ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	b.AllocSize = allocStep
	db := &DB{
		cfg: cfg, log: cfg.Logger, bolt: b,
		kick: make(chan struct{}, 1), done: make(chan struct{}),
		seen: map[tether.DeviceID]seen{}, watch: map[key]chan struct{}{},
	}
	err = b.Update(func(tx *bolt.Tx) error {
		if err := prepare(tx); err != nil {
			return err
		}
		db.devices = tx.Bucket(bucketDevice).Stats().KeyN
		return nil
	})
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("prepare store: %w", err)
	}
	return db, nil
}

// prepare makes the buckets and closes what a crash left open.
func prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{bucketDevice, bucketDescriptor, bucketSeen, bucketRing, bucketEvent, bucketMeta} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	alive := time.UnixMilli(0)
	if v := tx.Bucket(bucketMeta).Get(keyAlive); len(v) == 8 {
		alive = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
	}
	var open []key
	b := tx.Bucket(bucketSeen)
	err := b.ForEach(func(k, v []byte) error {
		if s := decodeSeen(v); s.online && len(k) == len(key{}) {
			open = append(open, key(k))
		}
		return nil
	})
	for _, k := range open {
		s := decodeSeen(b.Get(k[:]))
		s.online = false
		if alive.After(s.at) {
			s.at = alive
		}
		err = errors.Join(err, b.Put(k[:], s.encode()))
	}
	return err
}

// Close closes the file. What Run did not commit is lost; it was not acknowledged.
func (db *DB) Close() error {
	db.mu.Lock()
	db.closed = true
	db.mu.Unlock()
	return db.bolt.Close()
}

// Stats returns the counters.
func (db *DB) Stats() Stats {
	db.mu.Lock()
	defer db.mu.Unlock()
	s := db.stats
	s.QueueBytes = db.queued
	return s
}

// Run commits writes until ctx is done, then once more what is left, and returns nil.
// A transaction that fails, because the disk is full, is tried again each second; its
// beginning and its end are logged.
func (db *DB) Run(ctx context.Context) error {
	defer close(db.done)
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	failing := false
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-db.kick:
		case <-alive.C:
			db.touch()
		}
		err := db.flush()
		switch {
		case err != nil && !failing:
			db.log.Error("store does not take writes", "err", err, "retry_in", retryEvery)
		case err == nil && failing:
			db.log.Info("store takes writes again")
		}
		failing = err != nil
		rest := db.cfg.Gather
		if failing {
			rest = retryEvery
			db.wake()
		}
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
	db.mu.Lock()
	db.closed = true
	db.mu.Unlock()
	db.touch()
	err := db.flush()
	db.mu.Lock()
	for _, o := range db.pending {
		if o.wait != nil {
			o.wait <- ErrClosed
		}
	}
	db.pending, db.queued = nil, 0
	db.mu.Unlock()
	if err != nil {
		db.log.Error("last writes lost", "err", err)
	}
	return nil
}

// touch queues a note that the relay lives.
func (db *DB) touch() {
	v := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))
	db.mu.Lock()
	defer db.mu.Unlock()
	db.pending = append(db.pending, op{apply: func(tx *bolt.Tx, _ *commit) error {
		return tx.Bucket(bucketMeta).Put(keyAlive, v)
	}})
}

// push queues one write; events are refused above the bound, and awaited writes too.
func (db *DB) push(o op) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	switch {
	case db.closed:
		return ErrClosed
	case db.queued+o.size > db.cfg.QueueBytes:
		return ErrFull
	}
	db.pending = append(db.pending, o)
	db.queued += o.size
	db.wake()
	return nil
}

// wake never blocks and needs no lock.
func (db *DB) wake() {
	select {
	case db.kick <- struct{}{}:
	default:
	}
}

// do queues a write and waits until it is on disk, or ctx is done.
func (db *DB) do(ctx context.Context, apply func(tx *bolt.Tx, c *commit) error) error {
	o := op{
		apply: apply,
		wait:  make(chan error, 1), // the committer never waits for us
		size:  256,
	}
	if err := db.push(o); err != nil {
		return err
	}
	select {
	case err := <-o.wait:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the store: %w", context.Cause(ctx))
	case <-db.done:
		select {
		case err := <-o.wait:
			return err
		default:
			return ErrClosed
		}
	}
}

// flush commits everything that waits in one transaction, and tells those concerned.
func (db *DB) flush() error {
	db.mu.Lock()
	ops, states := db.pending, db.seen
	db.pending, db.seen = nil, map[tether.DeviceID]seen{}
	db.mu.Unlock()
	if len(ops) == 0 && len(states) == 0 {
		return nil
	}
	c := commit{changed: map[key]struct{}{}, acks: map[Acker]stored{}}
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		for _, o := range ops {
			if err := o.apply(tx, &c); err != nil {
				return err
			}
		}
		b := tx.Bucket(bucketSeen)
		for id, s := range states {
			k, err := keyOf(id)
			if err != nil || tx.Bucket(bucketDevice).Get(k[:]) == nil {
				continue // forgotten meanwhile
			}
			if err := b.Put(k[:], s.encode()); err != nil {
				return err
			}
		}
		return nil
	})
	db.mu.Lock()
	var again []op
	for _, o := range ops {
		switch {
		case o.wait != nil:
			o.wait <- err
			db.queued -= o.size
		case err != nil:
			again = append(again, o)
		default:
			db.queued -= o.size
		}
	}
	if err != nil {
		db.stats.Failures++
		db.pending = append(again, db.pending...)
		for id, s := range states {
			if _, newer := db.seen[id]; !newer {
				db.seen[id] = s
			}
		}
		db.mu.Unlock()
		return fmt.Errorf("commit: %w", err)
	}
	db.devices += c.devices
	db.stats.Commits++
	db.stats.Events += c.events
	db.stats.Duplicates += c.duplicates
	db.stats.Dropped += c.dropped
	for k := range c.changed {
		if ch := db.watch[k]; ch != nil {
			close(ch)
			delete(db.watch, k)
		}
	}
	db.mu.Unlock()
	for a, s := range c.acks {
		if a != nil {
			a.Stored(s.last, s.n)
		}
	}
	return nil
}

// Writable reports whether the directory of the store takes a file, for readiness.
func (db *DB) Writable() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return ErrClosed
	}
	_, err := os.Stat(db.cfg.Path)
	return err
}
