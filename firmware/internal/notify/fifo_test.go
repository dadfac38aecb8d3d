package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "fifo")
	n := run(t, Config{FIFO: path})
	for i := range 3 { // writers come and go
		f := n.open(t)
		fmt.Fprintf(f, "writer %d\r\n\n", i)
		f.Close()
	}
	f := n.open(t)
	fmt.Fprintf(f, "%s\nbinary \xff\nhalf", strings.Repeat("x", 5000))
	waitFor(t, "the lines", func() bool { return n.Stats().Appended == 5 })
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != fs.ModeNamedPipe|DefaultFIFOMode {
		t.Errorf("mode = %v, %v, want a pipe with %o", fi.Mode(), err, DefaultFIFOMode)
	}
	if di, err := os.Stat(filepath.Dir(path)); err != nil || di.Mode().Perm() != dirMode {
		t.Errorf("mode of the directory = %v, %v, want %o", di.Mode(), err, dirMode)
	}
	n.stop() // what was begun is a line now
	want := []string{"writer 0", "writer 1", "writer 2", strings.Repeat("x", MaxLine), "binary \ufffd", "half"}
	if got := texts(all(t, n.Notifier)); !reflect.DeepEqual(got, want) {
		t.Errorf("events = %.60q, want %.60q", got, want)
	}
	if st := n.Stats(); st.CutLines != 1 || st.RepairedLines != 1 || st.Shed != 0 {
		t.Errorf("stats = %+v, want one cut and one repaired", st)
	}
}

// What lies in the pipe when the daemon ends in order is not lost, although nobody else has the pipe open.
func TestFIFODrained(t *testing.T) {
	n := run(t, Config{FIFO: filepath.Join(t.TempDir(), "fifo"), Entries: 1 << 20})
	f := n.open(t)
	lines := 0
	for ; lines < 2000; lines++ {
		if _, err := fmt.Fprintf(f, "line %d\n", lines); errors.Is(err, syscall.EAGAIN) {
			lines--
			time.Sleep(time.Millisecond)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	n.stop()
	for i, text := range texts(all(t, n.Notifier)) {
		if want := fmt.Sprintf("line %d", i); text != want {
			t.Fatalf("event %d = %q, want %q", i, text, want)
		}
	}
	if got := n.Stats().Appended; got != uint64(lines) {
		t.Errorf("%d events of %d lines", got, lines)
	}
}

// Lines of several programs at once: none torn, none lost, each program's in its order.
func TestSeveralWriters(t *testing.T) {
	const writers, count = 5, 300
	n := run(t, Config{FIFO: filepath.Join(t.TempDir(), "fifo"), Entries: 1 << 20, Bytes: 1 << 30})
	n.open(t).Close()
	var all5 sync.WaitGroup
	for w := range writers {
		cmd := child(t, "writer", n.cfg.FIFO, string(rune('a'+w)), fmt.Sprint(count))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all5.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	all5.Wait()
	n.stop()
	next := map[string]int{}
	evs := all(t, n.Notifier)
	for _, text := range texts(evs) {
		name := text[:1]
		if want := writerLine(name, next[name]); text != want {
			t.Fatalf("line %d of %s = %.40q (%d bytes), want %.40q (%d)", next[name], name, text, len(text), want, len(want))
		}
		next[name]++
	}
	if len(evs) != writers*count {
		t.Errorf("%d events of %d lines", len(evs), writers*count)
	}
}

// What may be at the path already, and what is done about it.
func TestFIFOPath(t *testing.T) {
	foreign := func(t *testing.T, path string) {
		if os.Geteuid() != 0 {
			t.Skip("needs root to make a file of another user")
		}
		if err := os.Lchown(path, 65534, -1); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make   func(t *testing.T, path string) error
		refuse string
	}{
		"our pipe":                               {make: func(t *testing.T, path string) error { return syscall.Mkfifo(path, 0o600) }},
		"plain file, made by echo before we ran": {make: func(t *testing.T, path string) error { return os.WriteFile(path, []byte("x\n"), 0o644) }},
		"socket": {make: func(t *testing.T, path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		}},
		"link to a pipe": {refuse: "symbolic link", make: func(t *testing.T, path string) error {
			return errors.Join(syscall.Mkfifo(path+".other", 0o600), os.Symlink(path+".other", path))
		}},
		"link to nothing": {refuse: "symbolic link", make: func(t *testing.T, path string) error { return os.Symlink("nothing", path) }},
		"directory":       {refuse: "want a p", make: func(t *testing.T, path string) error { return os.Mkdir(path, 0o700) }},
		"pipe of another user": {refuse: "another user", make: func(t *testing.T, path string) error {
			defer foreign(t, path)
			return syscall.Mkfifo(path, 0o666)
		}},
		"plain file in a directory for all": {refuse: "want a p", make: func(t *testing.T, path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(filepath.Dir(path), 0o777))
		}},
		"pipe in a directory for all": {make: func(t *testing.T, path string) error {
			return errors.Join(syscall.Mkfifo(path, 0o600), os.Chmod(filepath.Dir(path), 0o777|fs.ModeSticky))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "fifo")
			if err := c.make(t, path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			n := run(t, Config{FIFO: path, FIFOMode: 0o660, Group: os.Getegid()})
			if c.refuse == "" {
				f := n.open(t)
				fmt.Fprintln(f, "works")
				waitFor(t, "the line", func() bool { return n.Stats().Appended == 1 })
				if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
					t.Errorf("mode = %v, %v, want 0660", fi.Mode(), err)
				}
				return
			}
			waitFor(t, "the refusal", func() bool { return n.Stats().FIFO != "" })
			if got := n.Stats().FIFO; !strings.Contains(got, c.refuse) || !strings.Contains(got, ErrUnsafe.Error()) {
				t.Errorf("refusal = %q, want a word about %q", got, c.refuse)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || before.Mode() != after.Mode() {
				t.Errorf("what was there: %v, %v, want it as before", after, err)
			}
			post(t, n.Notifier, "the rest works")
		})
	}
}

// The pipe is made again when somebody removes it or puts a file there.
func TestFIFOReplaced(t *testing.T) {
	var log bytes.Buffer
	n := run(t, Config{FIFO: filepath.Join(t.TempDir(), "fifo"), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	n.open(t)
	if err := os.Remove(n.cfg.FIFO); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(n.open(t), "first")
	waitFor(t, "the first line", func() bool { return n.Stats().Appended == 1 })
	if err := os.WriteFile(n.cfg.FIFO+".new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(n.cfg.FIFO+".new", n.cfg.FIFO); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(n.open(t), "second")
	waitFor(t, "the second line", func() bool { return n.Stats().Appended == 2 })
	n.stop()
	if !strings.Contains(log.String(), "removed or replaced") || !strings.Contains(log.String(), "in the way") {
		t.Errorf("log = %s, want both said", &log)
	}
}

// A writer that goes silent in the middle of a line has written one.
func TestIdleFlush(t *testing.T) {
	n, err := New(Config{Store: openStore(t, t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		n.queue = make(chan batch, 10) // of this bubble
		near, far := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.readLines(ctx, t.Context(), far, func(time.Time) error { return nil }) }()
		write := func(text string) {
			t.Helper()
			if _, err := io.WriteString(near, text); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		want := func(want string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for len(n.queue) > 0 {
				got += fmt.Sprintf("%s", (<-n.queue).data)
			}
			if got != want {
				t.Errorf("lines %q, want %q", got, want)
			}
		}
		write("a\nb")
		time.Sleep(IdleFlush - time.Nanosecond)
		want("[a]")
		write("c") // not silent
		time.Sleep(IdleFlush - time.Nanosecond)
		want("")
		time.Sleep(time.Nanosecond)
		want("[bc]")
		write("d\n")
		want("[d]")
		time.Sleep(9 * time.Second)
		write("e")
		time.Sleep(IdleFlush)
		want("[e]")
		time.Sleep(time.Hour)
		write("f")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want("[f]")
	})
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "sock")
	n := run(t, Config{Socket: path, Connections: 2})
	dial := func() (c net.Conn) {
		t.Helper()
		waitFor(t, "the socket", func() (ok bool) {
			var err error
			c, err = net.Dial("unix", path)
			return err == nil
		})
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, b := dial(), dial()
	fmt.Fprint(a, "from a, ha")
	fmt.Fprint(b, "from b, whole\nfrom b, the end")
	b.Close()
	waitFor(t, "what b wrote", func() bool { return n.Stats().Appended == 2 })
	fmt.Fprint(a, "lf by half\n")
	waitFor(t, "what a wrote", func() bool { return n.Stats().Appended == 3 })
	want := []string{"from b, whole", "from b, the end", "from a, half by half"}
	if got := texts(all(t, n.Notifier)); !reflect.DeepEqual(got, want) {
		t.Errorf("events = %q, want %q", got, want)
	}
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode() != fs.ModeSocket|DefaultSocketMode {
		t.Errorf("mode = %v, %v, want a socket with %o", fi.Mode(), err, DefaultSocketMode)
	}
	// With two connected, a third one waits; its line is not lost.
	b, c := dial(), dial()
	fmt.Fprintln(c, "from c")
	waitFor(t, "two connections", func() bool { return n.Stats().Connections == 2 })
	b.Close()
	waitFor(t, "what c wrote", func() bool { return n.Stats().Appended == 4 })
	fmt.Fprintln(a, "last\nwords")
	// A second notifier does not take the path away.
	m := run(t, Config{Socket: path})
	waitFor(t, "the refusal", func() bool { return strings.Contains(m.Stats().Socket, "another process listens") })
	n.stop()
	if got := texts(all(t, n.Notifier)); len(got) != 6 {
		t.Errorf("events = %q, want 6", got)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket at the end: %v, want it removed", err)
	}
}

// A socket that a killed daemon left behind is replaced, a removed one made again.
func TestSocketReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	n := run(t, Config{Socket: path})
	for i := range uint64(2) {
		waitFor(t, "the socket", func() bool {
			c, err := net.Dial("unix", path)
			if err != nil {
				return false
			}
			defer c.Close()
			fmt.Fprintln(c, "x")
			return true
		})
		waitFor(t, "the line", func() bool { return n.Stats().Appended == i+1 })
		os.Remove(path)
	}
}
