package notify

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/store"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// process is a running daemon.
type process struct {
	*exec.Cmd
	out *bufio.Scanner
}

func startDaemon(t *testing.T, dir, volatile string, entries int) *process {
	t.Helper()
	cmd := child(t, "daemon", dir, volatile, fmt.Sprint(entries))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, bufio.NewScanner(out)}
	if !p.out.Scan() || p.out.Text() != "ready" {
		t.Fatalf("the daemon says %q", p.out.Text())
	}
	return p
}

// kill -9 at any moment: an event that somebody saw is there afterwards with the same id and text, no id ever had
// two texts, and no event came twice under two ids. As the listener resumes, it misses nothing either.
func TestKill(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		t.Run(fmt.Sprintf("volatile=%v", volatile), func(t *testing.T) {
			const trials, entries = 50, 1 << 20
			dir, vdir := t.TempDir(), ""
			if volatile {
				vdir = filepath.Join(t.TempDir(), "v")
			}
			seen := map[string]string{}  // text by id
			found := map[string]string{} // id by text: each line is written once
			lastID, line := "", 0
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", filepath.Join(dir, "http"))
			}}}
			note := func(id, text string) {
				if before, ok := seen[id]; ok && before != text {
					t.Fatalf("id %s was %q and is %q", id, before, text)
				}
				if before, ok := found[text]; ok && before != id {
					t.Fatalf("%q was %s and is %s", text, before, id)
				}
				seen[id], found[text] = text, id
			}
			for trial := range trials {
				d := startDaemon(t, dir, vdir, entries)
				fifo, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
				for errors.Is(err, os.ErrNotExist) {
					time.Sleep(time.Millisecond)
					fifo, err = os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
				dead := make(chan struct{})
				var writing sync.WaitGroup
				writing.Go(func() { // until there is no reader any more
					for ; ; line++ {
						select {
						case <-dead:
							return
						default:
						}
						if _, err := fmt.Fprintf(fifo, "line %d\n", line); err != nil {
							return
						}
					}
				})
				req, err := http.NewRequestWithContext(t.Context(), "GET", "http://device/", nil)
				if err != nil {
					t.Fatal(err)
				}
				if lastID != "" {
					req.Header.Set("Last-Event-ID", lastID)
				}
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(rand.N(25*time.Millisecond), func() { _ = d.Process.Kill() })
				r := sse.NewReader(res.Body)
				for {
					e, err := r.Next()
					if err != nil {
						break
					}
					if e.Name == sse.ResetName {
						t.Fatalf("trial %d: reset %s after %q", trial, e.Data, lastID)
					}
					note(e.ID, string(e.Data))
					lastID = e.ID
				}
				res.Body.Close()
				_ = d.Wait()
				close(dead)
				fifo.Close()
				writing.Wait()
				line++ // the last one may be there or not
			}
			s, err := store.Open(store.Config{Dir: filepath.Join(dir, "state"), VolatileDir: vdir, Volatile: volatile})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			n, err := New(Config{Store: s, Entries: entries, Bytes: 1 << 30})
			if err != nil {
				t.Fatal(err)
			}
			evs, there, order, early := all(t, n), map[string]bool{}, -1, len(seen)
			for _, e := range evs {
				if there[e.ID] {
					t.Fatalf("id %s is there twice", e.ID)
				}
				there[e.ID] = true
				note(e.ID, string(e.Data))
				i, err := strconv.Atoi(strings.TrimPrefix(string(e.Data), "line "))
				if err != nil || i <= order {
					t.Fatalf("%q comes after line %d", e.Data, order)
				}
				order = i
			}
			if early < trials {
				t.Errorf("only %d events were seen", early)
			}
			for id, text := range seen {
				if !there[id] {
					t.Errorf("%s %q was seen and is lost", id, text)
				}
			}
			if s.Status().Damaged != 0 || len(evs) < trials {
				t.Errorf("damaged %d, %d events in %d trials", s.Status().Damaged, len(evs), trials)
			}
			t.Logf("%d events survived %d kills, %d of them seen before", len(evs), trials, early)
		})
	}
}

// A flood of lines: memory stays small, the order is kept, and what had to go is counted exactly.
func TestFlood(t *testing.T) {
	const lines, entries = 300_000, 4096
	dir := t.TempDir()
	d := startDaemon(t, dir, "", entries)
	fifo, err := os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
	for errors.Is(err, os.ErrNotExist) {
		time.Sleep(time.Millisecond)
		fifo, err = os.OpenFile(filepath.Join(dir, "fifo"), os.O_WRONLY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(fifo, 4096)
	for i := range lines {
		if _, err := fmt.Fprintf(w, "line %d of a flood\n", i); err != nil {
			t.Fatal(err)
		}
	}
	// And one line of 1 MiB, one that is binary, and one that its writer did not end.
	fmt.Fprintf(w, "%s\n%s\nthe end", strings.Repeat("x", 1<<20), strings.Repeat("\x00\xff", 1000))
	if err := errors.Join(w.Flush(), fifo.Close()); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !d.out.Scan() {
		t.Fatal("no stats")
	}
	stats := d.out.Text()
	if err := d.Wait(); err != nil {
		t.Fatal(err)
	}
	const total = lines + 3
	for _, want := range []string{fmt.Sprintf(" Appended:%d ", total), fmt.Sprintf(" Dropped:%d ", total-entries), fmt.Sprintf(" DroppedUnacked:%d ", total-entries),
		fmt.Sprintf(" Entries:%d ", entries), " Shed:0 ", " CutLines:1 ", " RepairedLines:1 "} {
		if !strings.Contains(stats, want) {
			t.Errorf("stats = %s, want %s", stats, want)
		}
	}
	for l := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(l, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.Fields(text)[0])
			t.Logf("resident memory at most %d KiB", kib)
			if err != nil || kib > 32<<10 && !raceEnabled { // the race detector needs several times as much
				t.Errorf("resident memory at most %d KiB, %v, want 32 MiB", kib, err)
			}
		}
	}
	n, err := New(Config{Store: openStore(t, filepath.Join(dir, "state")), Entries: entries, Bytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	kept := texts(all(t, n))
	for i, text := range kept[:entries-3] {
		if want := fmt.Sprintf("line %d of a flood", lines-(entries-3)+i); text != want {
			t.Fatalf("kept entry %d = %q, want %q", i, text, want)
		}
	}
	if got := kept[entries-1]; got != "the end" {
		t.Errorf("last = %q", got)
	}
}

// inNamespace runs the calling test once more in a process with mounts of its own and a small RAM disk at
// the returned directory. ok is true in that process only.
func inNamespace(t *testing.T, size string) (dir string, ok bool) {
	t.Helper()
	const dirVar = "NOTIFY_TEST_DISK"
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

// fill takes all the room on a disk, and give gives it back.
func fill(t *testing.T, dir string) (give func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	if err := os.WriteFile(path, make([]byte, 64<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v, want no space", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A full disk: for StallLimit everything waits and nothing is lost; then the oldest go, counted, so that nobody
// hangs; when there is room again it all goes on.
func TestDiskFull(t *testing.T) {
	dir, ok := inNamespace(t, "4m")
	if !ok {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(store.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		n, err := New(Config{Store: s, Entries: 1 << 20, Bytes: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() { n.collect(stop); close(ended) }()
		defer func() { close(stop); <-ended }()
		before, err := n.Post(t.Context(), "", []byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		give := fill(t, dir)
		type answer struct {
			i   int
			id  tether.EventID
			err error
		}
		answers := make(chan answer, 1000)
		send := func(i int) {
			go func() {
				id, err := n.Post(t.Context(), "", append(fmt.Appendf(nil, "%d:", i), make([]byte, MaxData-16)...))
				answers <- answer{i, id, err}
			}()
			synctest.Wait()
		}
		stored := 0
		for n.Stats().WriteErrors == 0 { // what the file has room for still goes in
			send(stored)
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			stored++
		}
		stored--
		for i := range stored {
			if a := <-answers; a.err != nil || a.id.Seq != uint64(a.i+2) {
				t.Fatalf("answer %d: %+v, want it stored", i, a)
			}
		}
		send(stored + 1)
		time.Sleep(5 * time.Second)
		if st := n.Stats(); len(answers) != 0 || st.WriteErrors < 3 || st.Shed != 0 || !strings.Contains(st.Journal, "no space") {
			t.Fatalf("after 5 s: %d answers, stats %+v, want everything to wait", len(answers), st)
		}
		if evs, err := n.Pending(nil, tether.EventID{}, 1); err != nil || len(evs) != 1 || evs[0].ID != before {
			t.Errorf("reading meanwhile: %v, %v", evs, err)
		}
		give()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for range 2 { // in any order: each Post has a goroutine of its own
			if a := <-answers; a.err != nil || a.id != (tether.EventID{Epoch: n.Epoch(), Seq: uint64(a.i + 2)}) {
				t.Errorf("answer %+v with room again, want it stored", a)
			}
		}
		if st := n.Stats(); st.Journal != "" || st.Shed != 0 {
			t.Errorf("with room again: stats %+v", st)
		}
		stored += 2

		give = fill(t, dir)
		for errs := n.Stats().WriteErrors; n.Stats().WriteErrors == errs; stored++ {
			send(stored)
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		for len(answers) > 0 {
			if a := <-answers; a.err != nil {
				t.Fatal(a.err)
			}
		}
		const more = 30 // of 32 KiB: much more than may wait
		for i := range more {
			send(stored + i)
		}
		time.Sleep(2 * StallLimit)
		synctest.Wait()
		shed := int(n.Stats().Shed)
		if waiting := more + 1 - shed; waiting > commitBytes/(MaxData-16) || waiting < 5 {
			t.Errorf("%d given up, %d wait, want at most %d bytes to wait", shed, waiting, commitBytes)
		}
		for range shed {
			if a := <-answers; !errors.Is(a.err, ErrShed) {
				t.Errorf("answer %+v, want ErrShed", a)
			}
		}
		give()
		time.Sleep(2 * commitSlowly)
		synctest.Wait()
		for range more + 1 - shed {
			if a := <-answers; a.err != nil {
				t.Errorf("answer %+v with room again", a)
			}
		}
		seq := uint64(0)
		for _, e := range all(t, n) { // no gap and no half record
			if seq++; e.ID != (tether.EventID{Epoch: n.Epoch(), Seq: seq}).String() || seq > 1 && len(e.Data) < MaxData-16 {
				t.Fatalf("event %d is %s with %d bytes", seq, e.ID, len(e.Data))
			}
		}
		if st := n.Stats(); seq != st.Appended {
			t.Errorf("%d events, stats %+v", seq, st)
		}
	})
}

// The pipe on a full disk: it fills up, a writer that does not wait is told so, and nothing that was written is lost.
func TestDiskFullBackpressure(t *testing.T) {
	dir, ok := inNamespace(t, "4m")
	if !ok {
		return
	}
	// A journal that takes more each time, so that the disk is really needed.
	n := run(t, Config{Store: openStore(t, dir), FIFO: filepath.Join(t.TempDir(), "fifo"), Entries: 1 << 20, Bytes: 1 << 30})
	f, err := os.OpenFile(n.open(t).Name(), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat("x", 3000)
	written := 0
	write := func() (err error) { // one write(2): File.Write would wait
		text := fmt.Appendf(nil, "%d:%s\n", written, pad)
		if cerr := raw.Write(func(fd uintptr) bool { _, err = syscall.Write(int(fd), text); return true }); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil {
			written++
		}
		return err
	}
	give := fill(t, dir)
	for n.Stats().WriteErrors == 0 {
		if err := write(); err != nil && !errors.Is(err, syscall.EAGAIN) {
			t.Fatal(err)
		}
	}
	for err = nil; err == nil; {
		err = write()
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("write = %v, want EAGAIN", err)
	}
	give()
	waitFor(t, "all lines", func() bool { return n.Stats().Appended == uint64(written) })
	for i, text := range texts(all(t, n.Notifier)) {
		if want := fmt.Sprintf("%d:%s", i, pad); text != want {
			t.Fatalf("line %d = %.20q", i, text)
		}
	}
	if st := n.Stats(); st.Shed != 0 {
		t.Errorf("stats = %+v", st)
	}
}
