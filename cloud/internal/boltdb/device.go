package boltdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cloudrest/cloudrest/tether"
)

// Device is what the store knows of one device.
type Device struct {
	ID       tether.DeviceID
	Key      []byte    // the public key it proved first, as the caller wrote it
	Enrolled time.Time // when that was
	Name     string    // from its descriptor; empty until one came
	Since    time.Time // last change between online and offline; while offline: when it was last heard of
	// Generation of the owner: the highest that the device told; 0: none (SPEC.md §4.11).
	Generation uint32
}

// record is the stored form of a device: version u8 (2), enrolled in unix milliseconds
// u64, generation u32, length of the key u16, the key, and the name to the end. Version 1
// had no generation. Ten thousand of them are mapped into the relay's memory, so they are
// not JSON.
type record struct {
	key        []byte // empty: forgotten, the next one that is proved counts
	enrolled   time.Time
	generation uint32
	name       string
}

const (
	recordVersion = 2
	recordHead    = 1 + 8 + 4 + 2
)

func (r record) encode() []byte {
	b := append(make([]byte, 0, recordHead+len(r.key)+len(r.name)), recordVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(r.enrolled.UnixMilli()))
	b = binary.BigEndian.AppendUint32(b, r.generation)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.key)))
	return append(append(b, r.key...), r.name...)
}

func decodeRecord(id tether.DeviceID, b []byte) (r record, err error) {
	const generation = 1 + 8 // where it stands, from version 2 on
	if len(b) > 0 && b[0] == 1 {
		b = slices.Insert(bytes.Clone(b), min(generation, len(b)), 0, 0, 0, 0)
		b[0] = recordVersion
	}
	if len(b) < recordHead || b[0] != recordVersion || len(b) < recordHead+int(binary.BigEndian.Uint16(b[recordHead-2:])) {
		return r, fmt.Errorf("read device %s: not a record of this version", id.Short())
	}
	name := recordHead + int(binary.BigEndian.Uint16(b[recordHead-2:]))
	return record{
		key: bytes.Clone(b[recordHead:name]), enrolled: time.UnixMilli(int64(binary.BigEndian.Uint64(b[1:]))).UTC(),
		generation: binary.BigEndian.Uint32(b[generation:]), name: string(b[name:]),
	}, nil
}

// seen is the stored form of "online since" and "offline since": unix milliseconds
// u64, then 1 while online.
type seen struct {
	at     time.Time
	online bool
}

func (s seen) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 9), uint64(s.at.UnixMilli()))
	if s.online {
		return append(b, 1)
	}
	return append(b, 0)
}

func decodeSeen(b []byte) seen {
	if len(b) != 9 {
		return seen{}
	}
	return seen{at: time.UnixMilli(int64(binary.BigEndian.Uint64(b))), online: b[8] == 1}
}

// Enrol keeps the first key that an ID came with and returns the key that counts from
// then on: the given one when created is true, else the one kept earlier, which may
// differ. A device that is new begins with the given owner generation. It returns once the
// key is on disk. ErrTooMany: the store is full of devices.
func (db *DB) Enrol(ctx context.Context, id tether.DeviceID, public []byte, generation uint32) (kept []byte, created bool, err error) {
	k, err := keyOf(id)
	if err != nil {
		return nil, false, err
	}
	if d, ok, err := db.Device(id); err != nil || ok && len(d.Key) > 0 {
		return d.Key, false, err
	}
	r := record{key: bytes.Clone(public), generation: generation, enrolled: time.Now().UTC().Truncate(time.Millisecond)}
	var other []byte
	var full bool
	err = db.do(ctx, func(tx *bolt.Tx, c *commit) error {
		other, full = nil, false
		if v := tx.Bucket(bucketDevice).Get(k[:]); v != nil { // another connection was first
			have, err := decodeRecord(id, v)
			if err != nil || len(have.key) > 0 {
				other = have.key
				return err
			}
			have.key = r.key // it was forgotten
			return tx.Bucket(bucketDevice).Put(k[:], have.encode())
		}
		if full = db.devices+c.devices >= db.cfg.MaxDevices; full {
			return nil
		}
		c.devices++
		s := seen{at: r.enrolled}
		if err := tx.Bucket(bucketSeen).Put(k[:], s.encode()); err != nil {
			return err
		}
		return tx.Bucket(bucketDevice).Put(k[:], r.encode())
	})
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("enrol device: %w", err)
	case full:
		return nil, false, ErrTooMany
	case other != nil:
		return other, false, nil
	}
	return r.key, true, nil
}

// SetKey writes the key of a device whatever was kept before: the operator decides.
// Nothing is written when it is the same already.
func (db *DB) SetKey(ctx context.Context, id tether.DeviceID, public []byte, generation uint32) error {
	d, ok, err := db.Device(id)
	if err != nil || ok && bytes.Equal(d.Key, public) {
		return err
	}
	if !ok {
		if _, created, err := db.Enrol(ctx, id, public, generation); err != nil || created {
			return err
		}
	}
	return db.change(ctx, id, func(r *record) { r.key = bytes.Clone(public) })
}

// ForgetKey makes the next key that a device proves the one that counts: the operator
// decides. It returns once that is on disk; an unknown device stays unknown.
func (db *DB) ForgetKey(ctx context.Context, id tether.DeviceID) error {
	return db.change(ctx, id, func(r *record) { r.key = nil })
}

// SetGeneration keeps the highest owner generation of a device and returns the one before.
// It returns once that is on disk.
func (db *DB) SetGeneration(ctx context.Context, id tether.DeviceID, generation uint32) (before uint32, err error) {
	d, ok, err := db.Device(id)
	if err != nil || !ok || d.Generation >= generation {
		return d.Generation, err
	}
	err = db.change(ctx, id, func(r *record) {
		before = r.generation
		r.generation = max(before, generation)
	})
	return before, err
}

// Describe keeps what the device says of itself; nothing is written when it says the
// same as last time. The device must be enrolled.
func (db *DB) Describe(id tether.DeviceID, name string, raw []byte) error {
	k, err := keyOf(id)
	if err != nil {
		return err
	}
	same := false
	err = db.bolt.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketDescriptor).Get(k[:])
		same = v != nil && bytes.Equal(v, raw)
		return nil
	})
	if err != nil || same {
		return err
	}
	raw = bytes.Clone(raw)
	return db.push(op{size: len(raw) + 128, apply: func(tx *bolt.Tx, _ *commit) error {
		v := tx.Bucket(bucketDevice).Get(k[:])
		if v == nil {
			return nil
		}
		r, err := decodeRecord(id, v)
		if err != nil {
			return err
		}
		r.name = name
		if err := tx.Bucket(bucketDescriptor).Put(k[:], raw); err != nil {
			return err
		}
		return tx.Bucket(bucketDevice).Put(k[:], r.encode())
	}})
}

// change rewrites one record and waits until it is on disk; an unknown device is left alone.
func (db *DB) change(ctx context.Context, id tether.DeviceID, edit func(*record)) error {
	k, err := keyOf(id)
	if err != nil {
		return err
	}
	return db.do(ctx, func(tx *bolt.Tx, _ *commit) error {
		v := tx.Bucket(bucketDevice).Get(k[:])
		if v == nil {
			return nil
		}
		r, err := decodeRecord(id, v)
		if err != nil {
			return err
		}
		edit(&r)
		return tx.Bucket(bucketDevice).Put(k[:], r.encode())
	})
}

// Online notes that the device is there since at; Offline that it was last heard of
// at. Both return at once: the note is written with the next transaction, and only the
// last one of a device counts.
func (db *DB) Online(id tether.DeviceID, at time.Time) { db.setSeen(id, seen{at, true}) }

// Offline is described at Online.
func (db *DB) Offline(id tether.DeviceID, at time.Time) { db.setSeen(id, seen{at, false}) }

func (db *DB) setSeen(id tether.DeviceID, s seen) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.closed {
		db.seen[id] = s // at most one for each device, so bounded by their number
		db.wake()
	}
}

// Device returns one device; ok is false when it never enrolled.
func (db *DB) Device(id tether.DeviceID) (d Device, ok bool, err error) {
	k, err := keyOf(id)
	if err != nil {
		return d, false, err
	}
	err = db.bolt.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketDevice).Get(k[:])
		if v == nil {
			return nil
		}
		ok = true
		d, err = db.device(tx, k, v)
		return err
	})
	return d, ok && err == nil, err
}

// device joins the buckets; a state that still waits to be written wins.
func (db *DB) device(tx *bolt.Tx, k key, v []byte) (Device, error) {
	id := k.id()
	r, err := decodeRecord(id, v)
	if err != nil {
		return Device{}, err
	}
	s := decodeSeen(tx.Bucket(bucketSeen).Get(k[:]))
	db.mu.Lock()
	if newer, ok := db.seen[id]; ok {
		s = newer
	}
	db.mu.Unlock()
	return Device{ID: id, Key: r.key, Enrolled: r.enrolled, Name: r.name, Since: s.at.UTC(), Generation: r.generation}, nil
}

// Devices returns up to limit devices whose ID follows after, in the order of their
// IDs. Begin with after = ""; fewer than limit means that there are no more. No
// transaction stays open between two calls.
func (db *DB) Devices(after tether.DeviceID, limit int) (list []Device, err error) {
	var start key
	if after != "" {
		if start, err = keyOf(after); err != nil {
			return nil, err
		}
	}
	err = db.bolt.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketDevice).Cursor()
		for k, v := c.Seek(start[:]); k != nil && len(list) < limit; k, v = c.Next() {
			if after != "" && bytes.Equal(k, start[:]) {
				continue
			}
			d, err := db.device(tx, key(k), v)
			if err != nil {
				return err
			}
			list = append(list, d)
		}
		return nil
	})
	return list, err
}

// Descriptor returns the last JSON the device sent of itself, nil if none came.
func (db *DB) Descriptor(id tether.DeviceID) (raw []byte, err error) {
	k, err := keyOf(id)
	if err != nil {
		return nil, err
	}
	err = db.bolt.View(func(tx *bolt.Tx) error {
		raw = bytes.Clone(tx.Bucket(bucketDescriptor).Get(k[:]))
		return nil
	})
	return raw, err
}

// Forget removes everything that names the device, its notifications too.
func (db *DB) Forget(ctx context.Context, id tether.DeviceID) error {
	k, err := keyOf(id)
	if err != nil {
		return err
	}
	return db.do(ctx, func(tx *bolt.Tx, c *commit) error {
		if tx.Bucket(bucketDevice).Get(k[:]) != nil {
			c.devices--
		}
		for _, name := range [][]byte{bucketDevice, bucketDescriptor, bucketSeen, bucketRing} {
			if err := tx.Bucket(name).Delete(k[:]); err != nil {
				return err
			}
		}
		events := tx.Bucket(bucketEvent).Cursor()
		for at, _ := events.Seek(k[:]); bytes.HasPrefix(at, k[:]); at, _ = events.Seek(k[:]) {
			if err := events.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}
