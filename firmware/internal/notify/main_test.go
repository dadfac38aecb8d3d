package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/store"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// The test binary is also the daemon that is killed, and the programs that write.
const (
	roleVar = "NOTIFY_TEST_ROLE"
	argVar  = "NOTIFY_TEST_ARGS"
)

func TestMain(m *testing.M) {
	args := strings.Split(os.Getenv(argVar), "|")
	switch os.Getenv(roleVar) {
	case "daemon":
		if err := daemon(args[0], args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "writer":
		if err := writer(args[0], args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

func child(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, argVar+"="+strings.Join(args, "|"))
	cmd.Stderr = os.Stderr
	return cmd
}

// daemon is a notifier on dir/fifo that serves its events at dir/http and says "ready".
func daemon(dir, volatile, entries string) error {
	s, err := store.Open(store.Config{Dir: filepath.Join(dir, "state"), VolatileDir: volatile, Volatile: volatile != ""})
	if err != nil {
		return err
	}
	bound, err := strconv.Atoi(entries)
	if err != nil {
		return err
	}
	n, err := New(Config{Store: s, FIFO: filepath.Join(dir, "fifo"), Entries: bound, Bytes: 1 << 30})
	if err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(dir, "http"))
	l, err := net.Listen("unix", filepath.Join(dir, "http"))
	if err != nil {
		return err
	}
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = sse.Serve(w, r, n.Log(), sse.Options{}) }))
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	fmt.Println("ready")
	if err := n.Run(ctx); err != nil {
		return err
	}
	fmt.Printf("%+v\n", n.Stats())
	return s.Close()
}

// writer writes count numbered lines of many lengths to the pipe, each with one write.
func writer(fifo, name, count string) error {
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := f.Write(append([]byte(writerLine(name, i)), '\n')); err != nil {
			return err
		}
	}
	return nil
}

func writerLine(name string, i int) string {
	line := fmt.Sprintf("%s %d ", name, i)
	return line + strings.Repeat(name[:1], (i*i*37)%(4095-len(line)))
}

// running is a notifier that runs.
type running struct {
	*Notifier
	stop func() // returns when Run has
}

// run starts a notifier in a directory of its own, or in that of c.Store.
func run(t *testing.T, c Config) *running {
	t.Helper()
	if c.Store == nil {
		c.Store = openStore(t, t.TempDir())
	}
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	n.lookEvery = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	ended := false
	stop := func() {
		t.Helper()
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	t.Cleanup(stop)
	return &running{n, stop}
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// waitFor waits until ok, or fails after a time that is generous on purpose.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// open waits for the pipe and opens it for writing.
func (r *running) open(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	waitFor(t, "the pipe", func() (ok bool) {
		fi, err := os.Lstat(r.cfg.FIFO)
		if err != nil || fi.Mode().Type() != os.ModeNamedPipe {
			return false
		}
		f, err = os.OpenFile(r.cfg.FIFO, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if errors.Is(err, syscall.ENXIO) {
			return false // nobody reads yet
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// all is every event in the journal.
func all(t *testing.T, n *Notifier) (evs []sse.Event) {
	t.Helper()
	for pos := uint64(0); ; {
		got, next, _ := n.Log().Read(nil, pos, 1000)
		if evs = append(evs, got...); len(got) == 0 {
			return evs
		}
		pos = next
	}
}

func texts(evs []sse.Event) (out []string) {
	for _, e := range evs {
		out = append(out, string(e.Data))
	}
	return out
}

func post(t *testing.T, n *Notifier, text string) tether.EventID {
	t.Helper()
	id, err := n.Post(t.Context(), "", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return id
}
