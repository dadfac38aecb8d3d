package store

import (
	"bytes"
	"fmt"

	"go.etcd.io/bbolt"
)

// Bounds of a Bucket.
const (
	MaxKey   = 256       // bytes
	MaxValue = 256 << 10 // bytes
)

// bucketPrefix keeps the buckets of callers apart from the store's own.
const bucketPrefix = "values:"

// Bucket holds small values by name. It is safe for concurrent use.
type Bucket struct {
	s    *Store
	name []byte
}

// Bucket returns the bucket of that name; it comes into being with its first value.
func (s *Store) Bucket(name string) *Bucket {
	return &Bucket{s, []byte(bucketPrefix + name)}
}

// Get returns a copy of the value, or ErrNotFound.
func (b *Bucket) Get(key string) (value []byte, err error) {
	err = b.s.view(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(b.name)
		if bucket == nil || key == "" {
			return ErrNotFound
		}
		v := bucket.Get([]byte(key))
		if v == nil {
			return ErrNotFound
		}
		value = bytes.Clone(v)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("get %q: %w", key, err)
	}
	return value, nil
}

// Put sets the value of key, which must not be empty. It is durable when Put returns nil, as far as
// Status.Durability says. Errors: ErrTooLarge; what the disk says.
func (b *Bucket) Put(key string, value []byte) error {
	return b.Change(map[string][]byte{key: value})
}

// Delete removes key; that there is none is no error.
func (b *Bucket) Delete(key string) error {
	return b.Change(map[string][]byte{key: nil})
}

// Change sets several values in one transaction, all or none. nil deletes; an empty value is a value.
func (b *Bucket) Change(values map[string][]byte) error {
	for k, v := range values {
		if k == "" || len(k) > MaxKey || len(v) > MaxValue {
			return fmt.Errorf("put %q: %w: key of %d bytes (1 to %d), value of %d bytes (at most %d)", k[:min(len(k), MaxKey)], ErrTooLarge, len(k), MaxKey, len(v), MaxValue)
		}
	}
	if err := b.s.update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(b.name)
		if err != nil {
			return err
		}
		for k, v := range values {
			if v == nil {
				err = bucket.Delete([]byte(k))
			} else {
				err = bucket.Put([]byte(k), v)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	return nil
}

// All returns a copy of everything in the bucket.
func (b *Bucket) All() (map[string][]byte, error) {
	all := map[string][]byte{}
	err := b.s.view(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(b.name)
		if bucket == nil {
			return nil
		}
		return bucket.ForEach(func(k, v []byte) error {
			all[string(k)] = append([]byte{}, v...)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("get all: %w", err)
	}
	return all, nil
}
