package boltdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// maxEpochs is how many starts of one device's daemon are remembered for telling
// duplicates. A device sends its journal oldest first, so an epoch that is not among
// the last 16 has long been acknowledged.
const maxEpochs = 16

// eventHead is the fixed part of a stored event: epoch, seq and time, each u64, and the
// length of the topic u8. Topic and payload follow.
const eventHead = 8 + 8 + 8 + 1

// Acker is told of its events once they are on disk, once for each transaction: the last
// of them, which stands for all before it, and how many Append calls are done with.
// last is zero when none of them has an id. It is called from the committing goroutine
// and must not block.
type Acker interface {
	Stored(last tether.EventID, n int)
}

// stored is what an Acker will be told.
type stored struct {
	last tether.EventID
	n    int
}

// ring is the stored state of one device's events: u64 next position, u64 first
// position, u64 bytes, then for each epoch, oldest first, epoch u64 and last seq u64.
// Positions rise for ever, also across restarts; they never name two events.
type ring struct {
	next, first uint64
	bytes       uint64
	last        []tether.EventID
}

func decodeRing(b []byte) (r ring, err error) {
	if b == nil {
		return ring{}, nil
	}
	if len(b) < 24 || (len(b)-24)%16 != 0 {
		return r, errors.New("ring record of a wrong size")
	}
	r.next, r.first, r.bytes = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	for b = b[24:]; len(b) > 0; b = b[16:] {
		r.last = append(r.last, tether.EventID{Epoch: binary.BigEndian.Uint64(b), Seq: binary.BigEndian.Uint64(b[8:])})
	}
	return r, nil
}

func (r *ring) encode() []byte {
	b := make([]byte, 0, 24+16*len(r.last))
	b = binary.BigEndian.AppendUint64(b, r.next)
	b = binary.BigEndian.AppendUint64(b, r.first)
	b = binary.BigEndian.AppendUint64(b, r.bytes)
	for _, e := range r.last {
		b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, e.Epoch), e.Seq)
	}
	return b
}

// has reports whether the event was stored already, by the highest number of its epoch.
func (r *ring) has(id tether.EventID) bool {
	for _, e := range r.last {
		if e.Epoch == id.Epoch {
			return id.Seq <= e.Seq
		}
	}
	return false
}

func (r *ring) note(id tether.EventID) {
	for i, e := range r.last {
		if e.Epoch == id.Epoch {
			r.last[i].Seq = id.Seq
			return
		}
	}
	r.last = append(r.last, id)
	if extra := len(r.last) - maxEpochs; extra > 0 {
		r.last = slices.Delete(r.last, 0, extra)
	}
}

func eventKey(k key, pos uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, len(k)+8), k[:]...), pos)
}

// Append queues a notification of a device; once it is on disk a is told, and not
// before. One that is stored already is acknowledged again and not stored twice. A
// number (n.Seq) of 0 is best effort: it is kept for listeners, but has no id and no
// acknowledgement. Payload is copied. The errors are ErrFull, ErrClosed, and a refusal
// of an event that no gateway makes.
func (db *DB) Append(id tether.DeviceID, n frame.Notify, a Acker) error {
	k, err := keyOf(id)
	if err != nil {
		return err
	}
	if len(n.Topic) > 0xff || len(n.Payload) > frame.MaxNotify || n.Seq > 0 && n.Epoch == 0 {
		return fmt.Errorf("notification of %d bytes, topic of %d, epoch %d: not storable", len(n.Payload), len(n.Topic), n.Epoch)
	}
	eid := tether.EventID{Epoch: n.Epoch, Seq: n.Seq}
	if n.Seq == 0 {
		eid, n.Epoch = tether.EventID{}, 0
	}
	v := make([]byte, 0, eventHead+len(n.Topic)+len(n.Payload))
	v = binary.BigEndian.AppendUint64(v, n.Epoch)
	v = binary.BigEndian.AppendUint64(v, n.Seq)
	v = binary.BigEndian.AppendUint64(v, n.Time)
	v = append(append(append(v, byte(len(n.Topic))), n.Topic...), n.Payload...)
	return db.push(op{size: len(v) + 192, apply: func(tx *bolt.Tx, c *commit) error {
		return db.store(tx, c, k, eid, v, a)
	}})
}

// store puts one event into the ring of its device and makes room.
func (db *DB) store(tx *bolt.Tx, c *commit, k key, id tether.EventID, v []byte, a Acker) error {
	rings, events := tx.Bucket(bucketRing), tx.Bucket(bucketEvent)
	done := c.acks[a]
	done.n++
	c.acks[a] = done
	if tx.Bucket(bucketDevice).Get(k[:]) == nil {
		return nil // forgotten meanwhile: neither kept nor acknowledged
	}
	r, err := decodeRing(rings.Get(k[:]))
	if err != nil {
		return fmt.Errorf("device %s: %w", k.id().Short(), err)
	}
	if !id.IsZero() {
		done.last = id
		c.acks[a] = done
	}
	if !id.IsZero() && r.has(id) {
		c.duplicates++
		return nil
	}
	if err := events.Put(eventKey(k, r.next), v); err != nil {
		return err
	}
	r.next++
	r.bytes += uint64(len(v))
	if !id.IsZero() {
		r.note(id)
	}
	for r.next-r.first > uint64(db.cfg.RingEntries) || r.bytes > uint64(db.cfg.RingBytes) && r.next-r.first > 1 {
		at := eventKey(k, r.first)
		r.bytes -= min(r.bytes, uint64(len(events.Get(at))))
		if err := events.Delete(at); err != nil {
			return err
		}
		r.first++
		c.dropped++
	}
	c.events++
	c.changed[k] = struct{}{}
	return rings.Put(k[:], r.encode())
}

// LastEvent is the newest event of the device that is on disk, for ACCEPT; zero: none.
func (db *DB) LastEvent(id tether.DeviceID) (last tether.EventID, err error) {
	k, err := keyOf(id)
	if err != nil {
		return last, err
	}
	err = db.bolt.View(func(tx *bolt.Tx) error {
		r, err := decodeRing(tx.Bucket(bucketRing).Get(k[:]))
		if err == nil && len(r.last) > 0 {
			last = r.last[len(r.last)-1]
		}
		return err
	})
	return last, err
}

// Log is the ring of one device as listeners read it, with the ids that the device gave.
// It holds nothing of its own, so any number may exist.
func (db *DB) Log(id tether.DeviceID) sse.Log {
	k, err := keyOf(id)
	if err != nil {
		panic("boltdb: Log of " + err.Error())
	}
	return &deviceLog{db, k}
}

type deviceLog struct {
	db *DB
	k  key
}

// Seek finds the position after the event with that id. An id that the relay does not
// hold itself, but whose epoch it knows, leads to the newest event before it: a phone
// that saw an event on the LAN first goes on where it was. "" is the end.
func (l *deviceLog) Seek(id string) (pos uint64, ok bool) {
	want, err := tether.ParseEventID(id)
	if id != "" && err != nil {
		return 0, false
	}
	err = l.db.bolt.View(func(tx *bolt.Tx) error {
		r, err := decodeRing(tx.Bucket(bucketRing).Get(l.k[:]))
		if err != nil {
			return err
		}
		if id == "" {
			pos, ok = r.next, true
			return nil
		}
		c := tx.Bucket(bucketEvent).Cursor()
		for at, v := lastBefore(c, l.k, r.next); bytes.HasPrefix(at, l.k[:]); at, v = c.Prev() {
			if len(v) < eventHead || len(at) != len(l.k)+8 {
				return errors.New("event record of a wrong size")
			}
			if binary.BigEndian.Uint64(v) == want.Epoch && binary.BigEndian.Uint64(v[8:]) <= want.Seq {
				pos, ok = binary.BigEndian.Uint64(at[len(l.k):])+1, true
				return nil
			}
		}
		return nil
	})
	if err != nil {
		l.db.log.Error("event log is damaged", "device", l.k.id(), "err", err)
		return 0, false
	}
	return pos, ok
}

// End is the present end and the newest id, for listeners that begin there.
func (l *deviceLog) End() (id string, pos uint64) {
	err := l.db.bolt.View(func(tx *bolt.Tx) error {
		r, err := decodeRing(tx.Bucket(bucketRing).Get(l.k[:]))
		if n := len(r.last); n > 0 {
			id = r.last[n-1].String()
		}
		pos = r.next
		return err
	})
	if err != nil {
		l.db.log.Error("event log is damaged", "device", l.k.id(), "err", err)
	}
	return id, pos
}

// lastBefore moves to the entry before position pos, which may belong to another device.
func lastBefore(c *bolt.Cursor, k key, pos uint64) (at, v []byte) {
	if at, _ := c.Seek(eventKey(k, pos)); at == nil {
		return c.Last()
	}
	return c.Prev()
}

// Read appends up to max events from position pos on; lost means that the ring went
// past pos.
func (l *deviceLog) Read(dst []sse.Event, pos uint64, max int) (evs []sse.Event, next uint64, lost bool) {
	evs, next = dst, pos
	err := l.db.bolt.View(func(tx *bolt.Tx) error {
		r, err := decodeRing(tx.Bucket(bucketRing).Get(l.k[:]))
		if err != nil {
			return err
		}
		if pos < r.first || pos > r.next { // dropped, or of a life before the device was forgotten
			next, lost = r.first, true
		}
		c := tx.Bucket(bucketEvent).Cursor()
		for at, v := c.Seek(eventKey(l.k, next)); bytes.HasPrefix(at, l.k[:]) && max > 0; at, v = c.Next() {
			if len(v) < eventHead || len(v) < eventHead+int(v[eventHead-1]) || len(at) != len(l.k)+8 {
				return errors.New("event record of a wrong size")
			}
			evs = append(evs, decodeEvent(v))
			next = binary.BigEndian.Uint64(at[len(l.k):]) + 1
			max--
		}
		return nil
	})
	if err != nil {
		l.db.log.Error("event log is damaged", "device", l.k.id(), "err", err)
	}
	return evs, next, lost
}

func decodeEvent(v []byte) sse.Event {
	id := tether.EventID{Epoch: binary.BigEndian.Uint64(v), Seq: binary.BigEndian.Uint64(v[8:])}
	topic := int(v[eventHead-1])
	e := sse.Event{Name: string(v[eventHead : eventHead+topic]), Data: bytes.Clone(v[eventHead+topic:])}
	if id.Seq > 0 {
		e.ID = id.String()
	}
	return e
}

// Changed returns a channel that is closed when the next event of the device is on disk.
func (l *deviceLog) Changed() <-chan struct{} {
	l.db.mu.Lock()
	defer l.db.mu.Unlock()
	ch := l.db.watch[l.k]
	if ch == nil {
		ch = make(chan struct{})
		l.db.watch[l.k] = ch
	}
	return ch
}
