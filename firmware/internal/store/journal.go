package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
)

// MaxRecord bounds one record of a Journal, in bytes.
const MaxRecord = 64 << 10

// recordOverhead is what a record counts in Limits.Bytes besides its data.
const recordOverhead = 24

// maxLeftover is more records than one commit can have left behind.
const maxLeftover = 1 << 16

const (
	journalPrefix = "journal:"
	statePrefix   = "journal-state:"
	stateKey      = "state"
	// Records are appended and dropped in order, so a page need not keep room for
	// others to come in between.
	journalFill = 0.95
)

// Limits of a Journal. The newest record is kept even if it alone exceeds them.
type Limits struct {
	Entries int   // at least 1
	Bytes   int64 // of records, each counted with a little more than its length
}

// Record is one entry of a Journal.
type Record struct {
	Pos  uint64 // grows by one from record to record
	Data []byte
}

// State is where a Journal stands. All of it but Bytes and Entries is kept with the records, in the same
// transactions.
type State struct {
	First          uint64 // position of the oldest record kept; Next if there is none
	Next           uint64 // position of the next record
	Mark           uint64 // records before this position are done with (acknowledged)
	Entries        int
	Bytes          int64
	Dropped        uint64 // records that had to go because of Limits, ever
	DroppedPending uint64 // those of them that were not done with
}

// Journal is a bounded log of records in the order of appending; the oldest are dropped when it is full. It is safe
// for concurrent use.
type Journal struct {
	s           *Store
	name, state []byte
	limits      Limits

	mu         sync.Mutex // guards what follows; held while appending
	st         State
	generation uint64
	stale      bool // a failed commit may have changed the file: count again
}

// Journal opens the journal of that name. There must be only one Journal of a name at a time.
func (s *Store) Journal(name string, l Limits) (*Journal, error) {
	if l.Entries < 1 || l.Bytes < 1 {
		return nil, fmt.Errorf("open journal: limits %+v, at least 1 entry and 1 byte are needed", l)
	}
	j := &Journal{s: s, name: []byte(journalPrefix + name), state: []byte(statePrefix + name), limits: l}
	if err := j.load(); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return j, nil
}

// load counts what the file holds. Positions that were given out are never given out again, even if the
// database was replaced by an older one. j.mu is held, or j is new.
func (j *Journal) load() error {
	j.s.mu.RLock()
	generation := j.s.generation
	j.s.mu.RUnlock()
	st, old := State{}, j.st
	err := j.s.view(func(tx *bbolt.Tx) error {
		st = State{}
		if b := tx.Bucket(j.state); b != nil {
			st.decode(b.Get([]byte(stateKey)))
		}
		if generation != j.generation || j.stale {
			st.Next = max(old.Next, st.Next)
			st.Mark = max(old.Mark, st.Mark)
		}
		if j.stale && old.Next != 0 {
			st.Next = old.Next // what a failed commit left behind it was never given out
		}
		st.First = st.Next
		b := tx.Bucket(j.name)
		if b == nil {
			return nil
		}
		c := b.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			pos := position(k)
			if pos >= st.Next && j.stale {
				break
			}
			if st.Entries == 0 {
				st.First = pos
			}
			st.Entries++
			st.Bytes += recordSize(v)
			st.Next = max(st.Next, pos+1)
		}
		return nil
	})
	if err == nil {
		j.st, j.generation, j.stale = st, generation, false
	}
	return err
}

// fresh loads again if the database is not the one that was counted.
func (j *Journal) fresh() error {
	j.s.mu.RLock()
	generation := j.s.generation
	j.s.mu.RUnlock()
	if generation != j.generation || j.stale {
		return j.load()
	}
	return nil
}

// State returns where the journal stands.
func (j *Journal) State() State {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.st
}

// Append appends recs, drops the oldest beyond the limits, and sets the mark if it is further than the present one
// (0 leaves it), all in one transaction. recs may be empty. It returns the state after it, so the first of
// recs has the position State.Next-len(recs). On an error nothing has changed, and the same records may
// be tried again.
func (j *Journal) Append(recs [][]byte, mark uint64) (State, error) {
	for _, r := range recs {
		if len(r) > MaxRecord {
			return State{}, fmt.Errorf("append: %w: record of %d bytes, at most %d", ErrTooLarge, len(r), MaxRecord)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.fresh(); err != nil {
		return j.st, fmt.Errorf("append: %w", err)
	}
	var st State
	if err := j.s.update(func(tx *bbolt.Tx) (err error) {
		st = j.st
		st.Mark = max(st.Mark, min(mark, st.Next+uint64(len(recs))))
		b, err := tx.CreateBucketIfNotExists(j.name)
		if err != nil {
			return err
		}
		if err := j.put(b, &st, recs); err != nil {
			return err
		}
		if err := j.trim(b, &st); err != nil {
			return err
		}
		sb, err := tx.CreateBucketIfNotExists(j.state)
		if err != nil {
			return err
		}
		return sb.Put([]byte(stateKey), st.encode())
	}); err != nil {
		j.stale = true
		return j.st, fmt.Errorf("append: %w", err)
	}
	j.st = st
	return st, nil
}

func (j *Journal) put(b *bbolt.Bucket, st *State, recs [][]byte) error {
	b.FillPercent = journalFill
	// A commit that failed in its last step may be in the file all the same.
	for c, n := b.Cursor(), 0; ; n++ {
		k, _ := c.Seek(key(st.Next))
		if k == nil {
			break
		}
		if n > maxLeftover {
			return fmt.Errorf("%w: journal has records without end", ErrDamaged)
		}
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	for _, r := range recs {
		if err := b.Put(key(st.Next), r); err != nil {
			return err
		}
		if st.Entries == 0 {
			st.First = st.Next
		}
		st.Next++
		st.Entries++
		st.Bytes += recordSize(r)
	}
	return nil
}

// trim drops the oldest records until the limits hold.
func (j *Journal) trim(b *bbolt.Bucket, st *State) error {
	for st.Entries > 1 && (st.Entries > j.limits.Entries || st.Bytes > j.limits.Bytes) {
		c := b.Cursor()
		k, v := c.Seek(key(st.First))
		if k == nil {
			return fmt.Errorf("%w: journal of %d entries has none", ErrDamaged, st.Entries)
		}
		pos, n := position(k), recordSize(v)
		if err := b.Delete(k); err != nil {
			return err
		}
		st.Entries--
		st.Bytes -= n
		st.First = pos + 1
		st.Dropped++
		if pos >= st.Mark {
			st.DroppedPending++
		}
	}
	return nil
}

// Read appends copies of the records from pos on to dst: at most max of them, and no more once they
// have maxBytes bytes (but one if there is one). next is the position after the last. lost means that records
// at pos are gone: reading went on at the oldest after them, or at the end.
func (j *Journal) Read(dst []Record, pos uint64, max int, maxBytes int) (recs []Record, next uint64, lost bool, err error) {
	end := j.State().Next // later records are not counted yet
	recs, next = dst, pos
	if pos >= end {
		return dst, end, false, nil
	}
	total, n := 0, 0
	err = j.s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(j.name)
		if b == nil {
			next, lost = end, true
			return nil
		}
		c := b.Cursor()
		k, v := c.Seek(key(pos))
		lost = k == nil || position(k) != pos
		for ; n < max; k, v = c.Next() {
			if k == nil || position(k) >= end {
				next = end
				return nil
			}
			if total += len(v); n > 0 && total > maxBytes {
				return nil
			}
			n++
			next = position(k) + 1
			recs = append(recs, Record{position(k), bytes.Clone(v)})
		}
		return nil
	})
	if err != nil {
		return dst, pos, false, fmt.Errorf("read journal: %w", err)
	}
	return recs, next, lost, nil
}

func key(pos uint64) []byte { return binary.BigEndian.AppendUint64(nil, pos) }

func position(k []byte) uint64 {
	if len(k) != 8 {
		panic(fmt.Sprintf("store: journal key of %d bytes", len(k))) // guard makes it ErrDamaged
	}
	return binary.BigEndian.Uint64(k)
}

func recordSize(v []byte) int64 { return int64(len(v)) + recordOverhead }

func (st *State) encode() []byte {
	var b []byte
	for _, n := range []uint64{st.Next, st.Mark, st.Dropped, st.DroppedPending} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func (st *State) decode(b []byte) {
	for _, n := range []*uint64{&st.Next, &st.Mark, &st.Dropped, &st.DroppedPending} {
		if len(b) >= 8 {
			*n, b = binary.BigEndian.Uint64(b), b[8:]
		}
	}
}
