package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

// mustOpen opens a store that is closed at the end of the test.
func mustOpen(t *testing.T, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustClose(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// crash ends a store as kill -9 does: without a last snapshot.
func crash(t *testing.T, s *Store) {
	t.Helper()
	if err := errors.Join(s.db.Close(), s.lock.Close()); err != nil {
		t.Fatal(err)
	}
	s.closed = true
}

// onJFFS2 is bbolt on a file system that refuses a shared writable map in dir: as PLATFORM notes, bbolt
// has written its first four pages by then.
func onJFFS2(dir string, refusal error) opener {
	return func(path string, mode fs.FileMode, o *bbolt.Options) (*bbolt.DB, error) {
		if filepath.Dir(path) != dir {
			return bbolt.Open(path, mode, o)
		}
		if _, err := os.Lstat(path); err != nil {
			if err := os.WriteFile(path, make([]byte, 16384), mode); err != nil {
				return nil, err
			}
		}
		return nil, refusal
	}
}

func TestBucket(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "made", "here")}
	s := mustOpen(t, c)
	b := s.Bucket("pairs")
	if _, err := b.Get("a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get before any Put = %v, want ErrNotFound", err)
	}
	if err := b.Change(map[string][]byte{"a": []byte("1"), "b": {}, "c": []byte("3")}); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete("c"); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string][]byte{"": nil, strings.Repeat("k", MaxKey+1): nil, "big": make([]byte, MaxValue+1)} {
		if err := b.Put(key, value); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Put(%.10q, %d bytes) = %v, want ErrTooLarge", key, len(value), err)
		}
	}
	mustClose(t, s)
	if err := b.Put("a", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Put after Close = %v, want ErrClosed", err)
	}
	s = mustOpen(t, c)
	got, err := s.Bucket("pairs").All()
	if want := map[string][]byte{"a": []byte("1"), "b": {}}; err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("All after reopening = %v, %v, want %v", got, err, want)
	}
	if v, err := s.Bucket("pairs").Get("b"); err != nil || v == nil && len(v) != 0 {
		t.Errorf("Get of an empty value = %v, %v", v, err)
	}
	if _, err := s.Bucket("other").Get("a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get from another bucket = %v, want ErrNotFound", err)
	}
	st := s.Status()
	if st.Durability.String() != "every commit" || st.Damaged != 0 || st.Errors != 0 || st.Bytes == 0 {
		t.Errorf("status = %+v", st)
	}
	if fi, err := os.Stat(st.File); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("database file: %v, %v, want mode 0600", fi.Mode(), err)
	}
}

func TestConfig(t *testing.T) {
	_, err := Open(Config{SnapshotEvery: time.Minute, LockWait: -1})
	for _, word := range []string{"directory", "1m0s", "-1ns"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("Open = %v, want a word about %s", err, word)
		}
	}
}

func TestInUse(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		c := Config{Dir: t.TempDir(), VolatileDir: filepath.Join(t.TempDir(), "v"), Volatile: volatile, LockWait: 10 * time.Millisecond}
		s := mustOpen(t, c)
		if _, err := Open(c); !errors.Is(err, ErrInUse) {
			t.Errorf("second Open (volatile %v) = %v, want ErrInUse", volatile, err)
		}
		mustClose(t, s)
		mustClose(t, mustOpen(t, c))
	}
}

// On a file system that cannot map, the state lives in memory: it survives a restart of the daemon as it was,
// and a power cut as of the last snapshot.
func TestFallback(t *testing.T) {
	for _, refusal := range []error{syscall.EINVAL, syscall.ENODEV, syscall.ENOSPC, syscall.EROFS} {
		t.Run(refusal.Error(), func(t *testing.T) {
			dir, volatile := t.TempDir(), filepath.Join(t.TempDir(), "v")
			var log bytes.Buffer
			c := Config{Dir: dir, VolatileDir: volatile, open: onJFFS2(dir, &fs.PathError{Op: "mmap", Path: dir, Err: refusal}),
				Logger: slog.New(slog.NewTextHandler(&log, nil))}
			put := func(s *Store, v string) {
				if err := s.Bucket("b").Put("k", []byte(v)); err != nil {
					t.Error(err)
				}
			}
			want := func(s *Store, v string) {
				t.Helper()
				if got, err := s.Bucket("b").Get("k"); string(got) != v {
					t.Errorf("value = %q, %v, want %q", got, err, v)
				}
			}
			s := mustOpen(t, c)
			if got, want := s.Status().Durability.String(), "snapshot every 5m0s"; got != want {
				t.Errorf("durability = %q, want %q", got, want)
			}
			if !strings.Contains(log.String(), "kept in memory") {
				t.Errorf("log = %q, want a warning", &log)
			}
			if _, err := os.Lstat(filepath.Join(dir, fileName)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what bbolt left on flash: %v, want it removed", err)
			}
			put(s, "1")
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			put(s, "2") // not in the snapshot
			crash(t, s) // no snapshot, the file in memory stays

			s = mustOpen(t, c)
			want(s, "2")
			put(s, "3")
			mustClose(t, s) // this one has a snapshot
			if err := os.RemoveAll(volatile); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, c) // after a reboot
			want(s, "3")
			put(s, "4")
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			put(s, "5")
			crash(t, s)
			os.RemoveAll(volatile) // power cut
			s = mustOpen(t, c)
			want(s, "4")
			mustClose(t, s)

			// The flash gets a file system that can map: the state moves there.
			c.open = nil
			s = mustOpen(t, c)
			want(s, "4")
			if got := s.Status().Durability.String(); got != "every commit" {
				t.Errorf("durability = %q", got)
			}
			put(s, "6")
			mustClose(t, s)
			// And back into memory, because the owner wants to spare the flash.
			os.RemoveAll(volatile)
			c.Volatile = true
			s = mustOpen(t, c)
			want(s, "6")
			if s.Status().Damaged != 0 {
				t.Errorf("status = %+v, want nothing damaged", s.Status())
			}
		})
	}
}

func mustCopy(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Other errors are not a reason to forget the state: the daemon says what is wrong.
func TestNoFallback(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(Config{Dir: dir, VolatileDir: filepath.Join(t.TempDir(), "v"), open: onJFFS2(dir, fs.ErrPermission)})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Open = %v, want permission denied", err)
	}
}

func TestVolatileDirOfOthers(t *testing.T) {
	parent := t.TempDir()
	open := filepath.Join(parent, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Mkdir(filepath.Join(parent, "mine"), 0o700),
		os.Symlink("mine", filepath.Join(parent, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"open", "link"} {
		if _, err := Open(Config{Dir: t.TempDir(), VolatileDir: filepath.Join(parent, name), Volatile: true}); err == nil {
			t.Errorf("%s: Open took it", name)
		}
	}
}

// Snapshots come at most once in SnapshotEvery, and none without a change.
func TestSnapshotRate(t *testing.T) {
	dir, volatile := t.TempDir(), filepath.Join(t.TempDir(), "v")
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Config{Dir: dir, VolatileDir: volatile, Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		seen := map[time.Time]bool{}
		look := func() { seen[s.Status().Snapshot] = true }
		for i := range 30 * 60 { // half an hour of a change in each second
			if err := s.Bucket("b").Put("k", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			look()
		}
		delete(seen, time.Time{})
		if got, want := len(seen), 6; got != want {
			t.Errorf("%d snapshots in 30 minutes, want %d", got, want)
		}
		time.Sleep(10 * time.Minute)
		last := s.Status().Snapshot
		time.Sleep(24 * time.Hour)
		if got := s.Status().Snapshot; got != last {
			t.Errorf("a snapshot of nothing new at %v", got)
		}
		if err := s.Close(); err != nil || s.Status().Snapshot != last {
			t.Errorf("Close = %v, or it wrote a snapshot of nothing new", err)
		}
	})
}

// A snapshot that cannot be written is counted and tried again, and the old one stays whole.
func TestSnapshotFails(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Config{Dir: dir, VolatileDir: filepath.Join(t.TempDir(), "v"), Volatile: true})
	put := func(v string) {
		if err := s.Bucket("b").Put("k", []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	put("1")
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	before := mustCopy(t, s.snapshotPath())
	if err := os.Mkdir(s.snapshotPath()+".new", 0o700); err != nil { // in the way
		t.Fatal(err)
	}
	put("2")
	if err := s.Sync(); err == nil {
		t.Error("Sync = nil, want an error")
	}
	if st := s.Status(); st.Errors != 1 || !strings.Contains(st.LastError, "write snapshot") {
		t.Errorf("status = %+v, want one error", st)
	}
	if !bytes.Equal(before, mustCopy(t, s.snapshotPath())) {
		t.Error("the old snapshot changed")
	}
	os.Remove(s.snapshotPath() + ".new")
	if err := s.Sync(); err != nil {
		t.Errorf("Sync = %v, want nil", err)
	}
	if st := s.Status(); st.Errors != 1 || st.LastError != "" {
		t.Errorf("status = %+v, want the error over", st)
	}
}
