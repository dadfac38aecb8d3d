package store

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the process that is killed, and the one that has a disk of its own.
const (
	roleVar  = "STORE_TEST_ROLE"
	roleArgs = "STORE_TEST_ARGS"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "append":
		fmt.Fprintln(os.Stderr, appendForEver(os.Getenv(roleArgs)))
		os.Exit(1)
	}
}

// child is this binary in a role.
func child(t *testing.T, role, args string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, roleArgs+"="+args)
	cmd.Stderr = os.Stderr
	return cmd
}

// appendForEver appends to a journal and says each position once it is durable.
func appendForEver(args string) error {
	dir, volatile, _ := strings.Cut(args, "|")
	s, err := Open(Config{Dir: dir, VolatileDir: volatile, Volatile: volatile != ""})
	if err != nil {
		return err
	}
	j, err := s.Journal("events", Limits{Entries: 200, Bytes: 1 << 20})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		st := j.State()
		var recs [][]byte
		for n := range uint64(1 + i%7) {
			recs = append(recs, record(st.Next+n))
		}
		if st, err = j.Append(recs, st.Next/2); err != nil {
			return err
		}
		fmt.Println(st.Next)
		if volatile != "" && i%10 == 0 {
			if err := s.Sync(); err != nil {
				return err
			}
		}
	}
}

// kill -9 at any moment: what was reported is there, in order and whole, and bbolt finds nothing wrong.
func TestKill(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		args := t.TempDir() + "|"
		c := Config{Dir: strings.TrimSuffix(args, "|")}
		if volatile {
			c.Volatile, c.VolatileDir = true, filepath.Join(t.TempDir(), "v")
			args += c.VolatileDir
		}
		reported := uint64(0)
		for trial := range 25 {
			cmd := child(t, "append", args)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for first := true; lines.Scan(); first = false {
				if reported, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
					t.Fatal(err)
				}
				if first { // it runs: kill it a moment later
					time.AfterFunc(rand.N(30*time.Millisecond), func() { _ = cmd.Process.Kill() })
				}
			}
			_ = cmd.Wait()
			s, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			path := s.path
			j, err := s.Journal("events", Limits{Entries: 200, Bytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			st := j.State()
			recs, _, _, err := j.Read(nil, st.First, 1000, 1<<20)
			if err != nil || st.Next < reported || len(recs) != st.Entries || reported > 200 && st.Entries < 200 || s.Status().Damaged != 0 {
				t.Fatalf("trial %d: reported up to %d, state %+v, %d records, %v, status %+v", trial, reported, st, len(recs), err, s.Status())
			}
			for i, r := range recs {
				if r.Pos != st.First+uint64(i) || string(r.Data) != string(record(r.Pos)) {
					t.Fatalf("trial %d: record %d at %d = %.20q", trial, i, r.Pos, r.Data)
				}
			}
			crash(t, s)
			bboltCheck(t, path)
			if volatile && trial%5 == 4 { // a power cut: back to a snapshot, never to half of one
				os.RemoveAll(c.VolatileDir)
				s, err := Open(c)
				if err != nil {
					t.Fatal(err)
				}
				j, err := s.Journal("events", Limits{Entries: 200, Bytes: 1 << 20})
				if err != nil || s.Status().Damaged != 0 || j.State().Next == 0 {
					t.Fatalf("trial %d: after a power cut %+v, %v", trial, s.Status(), err)
				}
				reported = j.State().Next
				crash(t, s)
			}
		}
		t.Logf("volatile %v: %d records survived", volatile, reported)
	}
}

// inNamespace runs the calling test once more in a process with mounts of its own and a small RAM disk at
// the returned directory. ok is true in that process only.
func inNamespace(t *testing.T, size string) (dir string, ok bool) {
	t.Helper()
	const dirVar = "STORE_TEST_DISK"
	if dir = os.Getenv(dirVar); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size="+size); err != nil {
			t.Fatal(err)
		}
		return dir, true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), dirVar+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}}
	}
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Skipf("no mount namespace here: %v", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return "", false
}

// A full disk fails calls, is counted, leaves nothing half done and is over when there is room again.
func TestDiskFull(t *testing.T) {
	dir, ok := inNamespace(t, "2m")
	if !ok {
		return
	}
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	j, err := s.Journal("events", Limits{Entries: 1 << 20, Bytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	b := s.Bucket("b")
	if err := b.Put("k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	for round := range 3 {
		if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		failed := 0
		for failed < 5 {
			before := j.State()
			st, err := j.Append([][]byte{make([]byte, 20000), make([]byte, 3000)}, 0)
			if err == nil {
				continue
			}
			if failed++; !errors.Is(err, syscall.ENOSPC) || st != before || j.State() != before {
				t.Fatalf("Append = %+v, %v, want no space and the state %+v", st, err, before)
			}
			if v, err := b.Get("k"); string(v) != "v" || err != nil {
				t.Errorf("Get on a full disk = %q, %v", v, err)
			}
		}
		if st := s.Status(); st.Errors != int64(5*(round+1)) || st.LastError == "" || st.Damaged != 0 {
			t.Errorf("status = %+v, want %d errors", st, 5*(round+1))
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		before := j.State()
		st, err := j.Append([][]byte{[]byte("fits")}, 0)
		if err != nil || st.Next != before.Next+1 || st.Entries != before.Entries+1 {
			t.Fatalf("Append with room again = %+v, %v, before %+v", st, err, before)
		}
		if st := s.Status(); st.LastError != "" {
			t.Errorf("status = %+v, want the error over", st)
		}
		// Room for the next round: records are dropped.
		j.limits = Limits{Entries: 1, Bytes: 1 << 20}
		if st, err = j.Append([][]byte{[]byte("last")}, 0); err != nil || st.Entries != 1 {
			t.Fatalf("trim = %+v, %v", st, err)
		}
		j.limits = Limits{Entries: 1 << 20, Bytes: 1 << 30}
	}
	mustClose(t, s)
	bboltCheck(t, s.path)

	// A device that starts with a full disk and no database yet works in memory.
	os.Remove(s.path)
	if err := os.WriteFile(filler, make([]byte, 4<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill = %v, want no space", err)
	}
	volatile := filepath.Join(t.TempDir(), "v")
	s, err = Open(Config{Dir: dir, VolatileDir: volatile})
	if err != nil || s.Status().Durability.SnapshotEvery == 0 {
		t.Fatalf("Open on a full disk = %v", err)
	}
	if err := s.Bucket("b").Put("k", []byte("w")); err != nil {
		t.Error(err)
	}
	if err := s.Sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Sync = %v, want no space", err)
	}
	os.Remove(filler)
	if err := s.Sync(); err != nil {
		t.Errorf("Sync with room again = %v", err)
	}
	mustClose(t, s)
}
