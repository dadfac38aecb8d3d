package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// A snapshot is not bbolt's file, which has free pages and the machine's byte order in it, but only
// what counts:
//
//	"cloudrest state 1\n"
//	'B' name            a bucket, then its pairs
//	'K' key value       name, key and value: length as unsigned varint, bytes
//	'E'
//	SHA-256 of all before
const (
	snapshotMagic  = "cloudrest state 1\n"
	snapshotBucket = 'B'
	snapshotPair   = 'K'
	snapshotEnd    = 'E'
	maxSnapshot    = 64 << 20 // bytes; a larger file is not one of ours
)

// errSnapshot means that a snapshot is damaged.
var errSnapshot = errors.New("snapshot damaged")

func (s *Store) snapshotPath() string { return filepath.Join(s.cfg.Dir, snapshotName) }

// writeSnapshot puts all of the database into the snapshot file: a power cut leaves the old one or the new one.
func (s *Store) writeSnapshot() error {
	return writeFile(s.snapshotPath(), func(w io.Writer) error {
		return s.view(func(tx *bbolt.Tx) error { return dump(w, tx) })
	})
}

// dump writes the snapshot of tx.
func dump(w io.Writer, tx *bbolt.Tx) error {
	sum := sha256.New()
	bw := bufio.NewWriterSize(io.MultiWriter(w, sum), 32<<10)
	text := func(b []byte) {
		_, _ = bw.Write(binary.AppendUvarint(bw.AvailableBuffer(), uint64(len(b))))
		_, _ = bw.Write(b) // the error stays in bw until Flush
	}
	_, _ = bw.WriteString(snapshotMagic)
	err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		_ = bw.WriteByte(snapshotBucket)
		text(name)
		return b.ForEach(func(k, v []byte) error {
			_ = bw.WriteByte(snapshotPair)
			text(k)
			text(v)
			return nil
		})
	})
	if err != nil {
		return err
	}
	_ = bw.WriteByte(snapshotEnd)
	if err := bw.Flush(); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// restore puts what the snapshot file holds into tx; without one it does nothing.
// A damaged one is errSnapshot.
func (s *Store) restore(tx *bbolt.Tx) error {
	f, err := os.Open(s.snapshotPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open snapshot: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSnapshot+1))
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	var bucket *bbolt.Bucket
	return parseSnapshot(b, func(name []byte) (err error) {
		bucket, err = tx.CreateBucketIfNotExists(name)
		return err
	}, func(k, v []byte) error {
		return bucket.Put(k, v)
	})
}

// parseSnapshot calls onBucket and onPair in the order of b. Both may keep the slices. Every refusal
// is errSnapshot, given before the first call if the checksum is wrong.
func parseSnapshot(b []byte, onBucket func(name []byte) error, onPair func(k, v []byte) error) error {
	if len(b) > maxSnapshot || len(b) < len(snapshotMagic)+1+sha256.Size || string(b[:len(snapshotMagic)]) != snapshotMagic {
		return fmt.Errorf("%w: %d bytes, or not begun as one", errSnapshot, len(b))
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return fmt.Errorf("%w: wrong checksum", errSnapshot)
	}
	return parseRecords(body[len(snapshotMagic):], onBucket, onPair)
}

func parseRecords(rest []byte, onBucket func(name []byte) error, onPair func(k, v []byte) error) error {
	text := func() []byte {
		n, width := binary.Uvarint(rest)
		if width <= 0 || n > uint64(len(rest)-width) {
			rest = nil // what follows fails
			return nil
		}
		t := rest[width : width+int(n)]
		rest = rest[width+int(n):]
		return t
	}
	inBucket := false
	for len(rest) > 0 {
		kind := rest[0]
		rest = rest[1:]
		var err error
		switch {
		case kind == snapshotEnd && len(rest) == 0:
			return nil
		case kind == snapshotBucket:
			name := text()
			if len(name) == 0 {
				return fmt.Errorf("%w: bucket without a name", errSnapshot)
			}
			inBucket, err = true, onBucket(name)
		case kind == snapshotPair && inBucket:
			k := text()
			v := text()
			if rest == nil || len(k) == 0 || len(k) > bbolt.MaxKeySize {
				return fmt.Errorf("%w: pair cut off, or a key of %d bytes", errSnapshot, len(k))
			}
			err = onPair(k, v)
		default:
			return fmt.Errorf("%w: record %q out of place", errSnapshot, kind)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: cut off", errSnapshot)
}

// writeFile replaces path atomically: beside it, sync, rename, sync the directory.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name()) // or a full disk would stay full
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
