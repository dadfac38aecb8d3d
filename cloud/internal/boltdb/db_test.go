package boltdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// running opens a store and runs it until the test ends or stop is called.
func running(t *testing.T, cfg Config) (db *DB, stop func()) {
	t.Helper()
	db, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); db.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-ended; db.Close() })
	t.Cleanup(stop)
	return db, stop
}

func path(t *testing.T) string { return filepath.Join(t.TempDir(), "relay.db") }

func device(n int) tether.DeviceID { return tether.NewDeviceID(fmt.Append(nil, "device", n)) }

// acks collects what was acknowledged.
type acks struct {
	mu   sync.Mutex
	last tether.EventID
	n    int
	ch   chan struct{}
}

func newAcks() *acks { return &acks{ch: make(chan struct{}, 1)} }

func (a *acks) Stored(id tether.EventID, n int) {
	a.mu.Lock()
	a.last = id
	a.n += n
	a.mu.Unlock()
	select {
	case a.ch <- struct{}{}:
	default:
	}
}

func (a *acks) wait(t *testing.T, want tether.EventID) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		a.mu.Lock()
		last := a.last
		a.mu.Unlock()
		if last == want {
			return
		}
		select {
		case <-a.ch:
		case <-limit:
			t.Fatalf("last acknowledged = %v, want %v", last, want)
		}
	}
}

func note(epoch, seq uint64, text string) frame.Notify {
	return frame.Notify{Epoch: epoch, Seq: seq, Time: 1, Topic: "t", Payload: []byte(text)}
}

func enrol(t *testing.T, db *DB, id tether.DeviceID) {
	t.Helper()
	if _, _, err := db.Enrol(t.Context(), id, []byte("key"), 7); err != nil {
		t.Fatal(err)
	}
}

func TestEnrolKeepsTheFirstKey(t *testing.T) {
	file := path(t)
	db, stop := running(t, Config{Path: file})
	id := device(1)
	// Many connections at once: exactly one key wins, and all are told the same.
	var wg sync.WaitGroup
	kept := make([][]byte, 20)
	made := make([]bool, 20)
	for i := range kept {
		wg.Go(func() {
			var err error
			kept[i], made[i], err = db.Enrol(t.Context(), id, fmt.Append(nil, "key ", i), 7)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	winners := 0
	for i := range kept {
		if made[i] {
			winners++
		}
		if !bytes.Equal(kept[i], kept[0]) {
			t.Errorf("kept key = %q and %q, want one key", kept[i], kept[0])
		}
	}
	if winners != 1 {
		t.Errorf("%d calls made the device, want 1", winners)
	}
	stop()
	db, _ = running(t, Config{Path: file})
	again, created, err := db.Enrol(t.Context(), id, []byte("a foreign key"), 7)
	if err != nil || created || !bytes.Equal(again, kept[0]) {
		t.Errorf("after a restart: Enrol = %q, %v, %v, want the first key %q", again, created, err, kept[0])
	}
	if err := db.SetKey(t.Context(), id, []byte("new"), 7); err != nil {
		t.Fatal(err)
	}
	if d, ok, err := db.Device(id); err != nil || !ok || string(d.Key) != "new" {
		t.Errorf("after SetKey: %+v, %v, %v", d, ok, err)
	}
}

func TestDevicesInPages(t *testing.T) {
	db, _ := running(t, Config{Path: path(t)})
	want := map[tether.DeviceID]bool{}
	for i := range 7 {
		enrol(t, db, device(i))
		want[device(i)] = true
	}
	if err := db.Describe(device(3), "Garden", []byte(`{"name":"Garden"}`)); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Truncate(time.Millisecond).UTC()
	db.Online(device(3), at)
	if d, _, _ := db.Device(device(3)); !d.Since.Equal(at) {
		t.Errorf("Since = %v before it is written, want %v", d.Since, at)
	}
	enrol(t, db, device(99)) // a later awaited write: the earlier ones are on disk now
	var after tether.DeviceID
	got := 0
	for {
		page, err := db.Devices(after, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page {
			if after != "" && d.ID <= after {
				t.Errorf("%s does not follow %s", d.ID, after)
			}
			after = d.ID
			got++
			if d.ID == device(3) && (d.Name != "Garden" || !d.Since.Equal(at)) {
				t.Errorf("device = %+v, want its name and %v", d, at)
			}
		}
		if len(page) < 3 {
			break
		}
	}
	if got != len(want)+1 {
		t.Errorf("%d devices in all pages, want %d", got, len(want)+1)
	}
	if raw, err := db.Descriptor(device(3)); err != nil || string(raw) != `{"name":"Garden"}` {
		t.Errorf("Descriptor = %q, %v", raw, err)
	}
}

func TestEventsSurviveAndResume(t *testing.T) {
	file := path(t)
	db, stop := running(t, Config{Path: file})
	id, other := device(1), device(2)
	enrol(t, db, id)
	enrol(t, db, other)
	a := newAcks()
	changed := db.Log(id).Changed()
	for seq := uint64(1); seq <= 5; seq++ {
		db.Append(id, note(7, seq, fmt.Sprint("old ", seq)), a)
		db.Append(other, note(7, seq, "other"), nil)
	}
	db.Append(id, frame.Notify{Topic: "best", Payload: []byte("effort")}, a)
	db.Append(id, note(9, 1, "new 1"), a)
	a.wait(t, tether.EventID{Epoch: 9, Seq: 1})
	if a.n != 7 {
		t.Errorf("%d events are done with, want 7", a.n)
	}
	select {
	case <-changed:
	default:
		t.Error("Changed was not closed although events are acknowledged")
	}
	stop()

	db, _ = running(t, Config{Path: file})
	if last, err := db.LastEvent(id); err != nil || last != (tether.EventID{Epoch: 9, Seq: 1}) {
		t.Errorf("LastEvent = %v, %v, want 9-1", last, err)
	}
	// What the device did not see acknowledged it sends again: stored once, acknowledged again.
	again := newAcks()
	for _, n := range []frame.Notify{note(7, 4, "old 4"), note(7, 5, "old 5"), note(9, 1, "new 1"), note(9, 2, "new 2")} {
		if err := db.Append(id, n, again); err != nil {
			t.Fatal(err)
		}
	}
	again.wait(t, tether.EventID{Epoch: 9, Seq: 2})
	if s := db.Stats(); s.Duplicates != 3 || s.Events != 1 {
		t.Errorf("stats = %+v, want 3 duplicates and 1 event", s)
	}
	l := db.Log(id)
	pos, ok := l.Seek("0000000000000007-4")
	if !ok {
		t.Fatal("Seek does not find an event of before the restart")
	}
	evs, next, lost := l.Read(nil, pos, 100)
	want := []sse.Event{
		{ID: "0000000000000007-5", Name: "t", Data: []byte("old 5")},
		{Name: "best", Data: []byte("effort")},
		{ID: "0000000000000009-1", Name: "t", Data: []byte("new 1")},
		{ID: "0000000000000009-2", Name: "t", Data: []byte("new 2")},
	}
	if !reflect.DeepEqual(evs, want) || lost {
		t.Errorf("Read = %v, lost %v, want %v", evs, lost, want)
	}
	if evs, end, lost := l.Read(nil, next, 100); len(evs) != 0 || end != next || lost {
		t.Errorf("Read at the end = %v, %d, %v", evs, end, lost)
	}
	if eid, end := l.(sse.Ender).End(); eid != "0000000000000009-2" || end != next {
		t.Errorf("End = %q, %d, want the last event and %d", eid, end, next)
	}
	for _, c := range []struct {
		name, id string
		pos      uint64
		ok       bool
	}{
		{"the end", "", next, true},
		{"seen on the LAN before it came here", "0000000000000009-17", next, true},
		{"unknown epoch", "0000000000000008-1", 0, false},
		{"not an id", "hello", 0, false},
	} {
		if pos, ok := l.Seek(c.id); pos != c.pos || ok != c.ok {
			t.Errorf("%s: Seek(%q) = %d, %v, want %d, %v", c.name, c.id, pos, ok, c.pos, c.ok)
		}
	}
}

func TestRingIsBounded(t *testing.T) {
	db, _ := running(t, Config{Path: path(t), RingEntries: 4, RingBytes: 1000})
	id := device(1)
	enrol(t, db, id)
	a := newAcks()
	for seq := uint64(1); seq <= 10; seq++ {
		db.Append(id, note(7, seq, "x"), a)
	}
	a.wait(t, tether.EventID{Epoch: 7, Seq: 10})
	l := db.Log(id)
	evs, pos, lost := l.Read(nil, 0, 100)
	if len(evs) != 4 || evs[0].ID != "0000000000000007-7" || !lost {
		t.Errorf("kept %v, lost %v, want the last four and lost", evs, lost)
	}
	if _, ok := l.Seek("0000000000000007-6"); ok {
		t.Error("Seek finds an event that was dropped")
	}
	// Bytes: the newest stays even if it is too large alone.
	db.Append(id, note(7, 11, string(make([]byte, 5000))), a)
	a.wait(t, tether.EventID{Epoch: 7, Seq: 11})
	if evs, _, lost = l.Read(nil, pos, 100); len(evs) != 1 || lost {
		t.Errorf("kept %d events, lost %v, want the one large event", len(evs), lost)
	}
	if evs, _, lost = l.Read(nil, pos-2, 100); len(evs) != 1 || !lost {
		t.Errorf("kept %d events, lost %v, want the one large event after a loss", len(evs), lost)
	}
	if s := db.Stats(); s.Dropped != 10 {
		t.Errorf("dropped = %d, want 10", s.Dropped)
	}
	if err := db.Append(id, note(7, 12, string(make([]byte, frame.MaxNotify+1))), a); err == nil {
		t.Error("an oversized payload was taken")
	}
}

// A write queue at its bound refuses; it neither blocks the device's reader nor grows.
func TestQueueIsBounded(t *testing.T) {
	db, err := Open(Config{Path: path(t), QueueBytes: 2000}) // Run is not called: nothing drains
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var taken int
	for taken = 0; taken < 100; taken++ {
		if err = db.Append(device(1), note(7, uint64(taken+1), "x"), nil); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) || taken == 0 || taken > 10 {
		t.Errorf("after %d events: %v, want ErrFull within 2000 bytes", taken, err)
	}
}

// While the disk refuses, nothing is acknowledged; when it takes writes again, nothing
// that was queued is missing.
func TestFailedCommitIsRepeated(t *testing.T) {
	db, err := Open(Config{Path: path(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	broken := true
	db.push(op{apply: func(*bolt.Tx, *commit) error {
		if broken {
			return errors.New("no space left on device")
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	id := device(1)
	if _, _, err := db.Enrol(ctx, id, []byte("key"), 7); err == nil {
		t.Error("Enrol did not end with its context")
	}
	a := newAcks()
	db.Append(id, note(7, 1, "x"), a)
	if err := db.flush(); err == nil {
		t.Fatal("flush succeeded, want the error of the disk")
	}
	if (a.last != tether.EventID{}) {
		t.Error("acknowledged although the transaction failed")
	}
	broken = false
	db.push(op{apply: func(tx *bolt.Tx, _ *commit) error { // Enrol was told its failure, so it is not repeated
		k, _ := keyOf(id)
		return tx.Bucket(bucketDevice).Put(k[:], record{key: []byte("key")}.encode())
	}})
	db.Append(id, note(7, 2, "y"), a)
	// The event came before the device was there and is gone by design; the second is kept.
	if err := db.flush(); err != nil {
		t.Fatal(err)
	}
	if (a.last != tether.EventID{Epoch: 7, Seq: 2}) || db.Stats().QueueBytes != 0 {
		t.Errorf("acknowledged %v, %d bytes queued, want 7-2 and none", a.last, db.Stats().QueueBytes)
	}
}

func TestCrashTurnsOnlineIntoOffline(t *testing.T) {
	file := path(t)
	db, err := Open(Config{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	id := device(1)
	k, _ := keyOf(id)
	db.push(op{apply: func(tx *bolt.Tx, _ *commit) error {
		return tx.Bucket(bucketDevice).Put(k[:], record{}.encode())
	}})
	since := time.Now().Add(-time.Hour)
	db.Online(id, since)
	db.touch()
	if err := db.flush(); err != nil {
		t.Fatal(err)
	}
	db.Close() // as a crash would: nobody said Offline
	db, err = Open(Config{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if d, ok, err := db.Device(id); err != nil || !ok || time.Since(d.Since) > time.Minute {
		t.Errorf("offline since %v (%v, %v), want the time the relay last lived", d.Since, ok, err)
	}
}

func TestRecord(t *testing.T) {
	want := record{key: []byte("key"), enrolled: time.Now().UTC().Truncate(time.Millisecond), name: "Garden"}
	text := want.encode()
	if got, err := decodeRecord("x", text); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("decode(encode) = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range [][]byte{nil, text[:recordHead], text[:recordHead+2], append([]byte{9}, text[1:]...)} {
		if _, err := decodeRecord("x", bad); err == nil {
			t.Errorf("decode(%q) gave no error", bad)
		}
	}
}

// Relax changes nothing but where the pages are.
func TestRelax(t *testing.T) {
	db, _ := running(t, Config{Path: path(t)})
	for i := range 50 {
		enrol(t, db, device(i))
	}
	var wg sync.WaitGroup
	for w := range 4 { // beside readers, and a writer that makes the file grow
		wg.Go(func() {
			for i := range 50 {
				if w == 0 {
					enrol(t, db, device(1000+i))
				}
				if d, ok, err := db.Device(device(i)); err != nil || !ok || string(d.Key) != "key" {
					t.Errorf("device %d: %+v, %v, %v", i, d, ok, err)
				}
				if err := db.Relax(); err != nil {
					t.Errorf("Relax: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestForget(t *testing.T) {
	db, _ := running(t, Config{Path: path(t)})
	id, other := device(1), device(2)
	a, b := newAcks(), newAcks()
	for _, x := range []tether.DeviceID{id, other} {
		enrol(t, db, x)
		db.Describe(x, "n", []byte("{}"))
		db.Online(x, time.Now())
	}
	for seq := uint64(1); seq <= 3; seq++ {
		db.Append(id, note(7, seq, "x"), a)
		db.Append(other, note(7, seq, "x"), b)
	}
	b.wait(t, tether.EventID{Epoch: 7, Seq: 3})
	if err := db.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	k, _ := keyOf(id)
	db.bolt.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(at, _ []byte) error {
				if bytes.HasPrefix(at, k[:]) {
					t.Errorf("bucket %s still names the forgotten device", name)
				}
				return nil
			})
		})
	})
	if evs, _, _ := db.Log(other).Read(nil, 0, 10); len(evs) != 3 {
		t.Errorf("the other device has %d events, want 3", len(evs))
	}
}

func TestDevicesAreBounded(t *testing.T) {
	file := path(t)
	db, stop := running(t, Config{Path: file, MaxDevices: 2})
	enrol(t, db, device(1))
	enrol(t, db, device(2))
	stop()
	db, _ = running(t, Config{Path: file, MaxDevices: 2})
	if _, _, err := db.Enrol(t.Context(), device(3), []byte("key"), 7); !errors.Is(err, ErrTooMany) {
		t.Errorf("third device: %v, want ErrTooMany", err)
	}
	enrol(t, db, device(2)) // is known
	if err := db.Forget(t.Context(), device(1)); err != nil {
		t.Fatal(err)
	}
	enrol(t, db, device(3))
}

func TestSecondProcessIsRefused(t *testing.T) {
	file := path(t)
	running(t, Config{Path: file})
	if _, err := Open(Config{Path: file}); !errors.Is(err, ErrInUse) {
		t.Errorf("second Open = %v, want ErrInUse", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v, want 0600", info.Mode(), err)
	}
}

func TestAfterRun(t *testing.T) {
	db, stop := running(t, Config{Path: path(t)})
	stop()
	if err := db.Append(device(1), note(7, 1, "x"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Append = %v, want ErrClosed", err)
	}
	if _, _, err := db.Enrol(t.Context(), device(1), nil, 7); err == nil {
		t.Error("Enrol after the end succeeded")
	}
}

func TestForgetKeyAndGeneration(t *testing.T) {
	file := path(t)
	db, stop := running(t, Config{Path: file})
	id := device(1)
	enrol(t, db, id) // with generation 7
	if err := db.Describe(id, "Garden", []byte(`{"name":"Garden"}`)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ tell, before, keeps uint32 }{{7, 7, 7}, {9, 7, 9}, {8, 9, 9}, {0, 9, 9}} {
		before, err := db.SetGeneration(t.Context(), id, c.tell)
		d, _, _ := db.Device(id)
		if err != nil || before != c.before || d.Generation != c.keeps {
			t.Errorf("SetGeneration(%d) = %d, %v, keeps %d, want %d and %d", c.tell, before, err, d.Generation, c.before, c.keeps)
		}
	}
	if before, err := db.SetGeneration(t.Context(), device(2), 5); before != 0 || err != nil {
		t.Errorf("an unknown device: %d, %v", before, err)
	}
	if err := db.ForgetKey(t.Context(), device(2)); err != nil {
		t.Errorf("forget the key of an unknown device: %v", err)
	}
	if err := db.ForgetKey(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	stop()
	db, _ = running(t, Config{Path: file})
	kept, created, err := db.Enrol(t.Context(), id, []byte("another"), 3)
	if err != nil || !created || string(kept) != "another" {
		t.Errorf("Enrol after ForgetKey = %q, %v, %v, want the new key", kept, created, err)
	}
	if kept, created, err := db.Enrol(t.Context(), id, []byte("a third"), 3); err != nil || created || string(kept) != "another" {
		t.Errorf("Enrol after that = %q, %v, %v, want no other key", kept, created, err)
	}
	if d, ok, err := db.Device(id); err != nil || !ok || d.Name != "Garden" || d.Generation != 9 {
		t.Errorf("the rest of the device = %+v, %v, %v, want it as it was", d, ok, err)
	}
	if list, err := db.Devices("", 10); err != nil || len(list) != 1 {
		t.Errorf("%d devices, %v, want 1", len(list), err)
	}
}

// Records of the version before are read, and written in the present one.
func TestRecordVersions(t *testing.T) {
	at := time.UnixMilli(1767225600000).UTC()
	want := record{key: []byte("key"), enrolled: at, generation: 0x01020304, name: "Garden"}
	b := want.encode()
	if got, err := decodeRecord(device(1), b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read again: %+v, %v, want %+v", got, err, want)
	}
	old := append([]byte{1}, b[1:9]...)
	old = append(old, b[13:]...)
	want.generation = 0
	if got, err := decodeRecord(device(1), old); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("version 1: %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range [][]byte{nil, {1}, {2}, {3}, old[:10], b[:14], b[:16]} {
		if _, err := decodeRecord(device(1), bad); err == nil {
			t.Errorf("%x was read", bad)
		}
	}
}
