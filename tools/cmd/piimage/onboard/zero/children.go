package main

import (
	"context"
	"errors"
	"io"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
)

// children are the processes. Init must wait for all of them, for those too whose parents
// have ended: one goroutine does, and package os's own waiting would take its children away.
type children struct {
	mu      sync.Mutex // guards what follows, and is held while a child is made
	alive   map[int]*child
	screen  screen
	logs    map[string]*ring
	stopped bool
}

type child struct {
	pid  int
	done chan syscall.WaitStatus // one value
	said chan struct{}           // closed when all that it printed was read
}

// screen is the console. It may be slow or stuck; nobody waits for it, so what is too much
// for it is lost there, and only there.
type screen chan []byte

const screenRoom = 256 // writes

func newScreen() screen {
	s := make(screen, screenRoom)
	go func() {
		for b := range s {
			os.Stderr.Write(b)
		}
	}()
	return s
}

func (s screen) Write(b []byte) (int, error) {
	select {
	case s <- append([]byte(nil), b...):
	default:
	}
	return len(b), nil
}

func newChildren(s screen) *children {
	c := &children{alive: map[int]*child{}, screen: s, logs: map[string]*ring{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			c.reap()
		}
	}()
	return c
}

func (c *children) reap() {
	for {
		var status syscall.WaitStatus
		c.mu.Lock()
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		kid := c.alive[pid]
		delete(c.alive, pid)
		c.mu.Unlock()
		switch {
		case err == syscall.EINTR:
		case err != nil || pid <= 0:
			return
		case kid != nil:
			kid.done <- status
		}
	}
}

// start runs a program whose output goes to out and to the console.
func (c *children) start(argv []string, dir string, out *ring) (*child, error) {
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return nil, err
	}
	defer syscall.Close(pipe[1])
	from := os.NewFile(uintptr(pipe[0]), argv[0])
	null, err := os.Open(os.DevNull)
	if err != nil {
		from.Close()
		return nil, err
	}
	defer null.Close()
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		from.Close()
		return nil, errors.New("the system is about to restart")
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: dir, Env: []string{"PATH=/bin", "HOME=" + dir, "TMPDIR=/tmp"}, Files: []uintptr{null.Fd(), uintptr(pipe[1]), uintptr(pipe[1])},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	kid := &child{pid, make(chan syscall.WaitStatus, 1), make(chan struct{})}
	if err == nil {
		c.alive[pid] = kid
	}
	c.mu.Unlock()
	if err != nil {
		from.Close()
		return nil, err
	}
	go func() {
		defer close(kid.said)
		defer from.Close()
		io.Copy(io.MultiWriter(out, c.screen), from)
	}()
	return kid, nil
}

const (
	firstPause = time.Second
	maxPause   = 30 * time.Second
	// steady is how long a program must have run for the pauses to begin anew.
	steady = time.Minute
)

// supervise runs a program until ctx is done; it starts it again when it ends, after a
// pause that grows.
func (c *children) supervise(ctx context.Context, p device.Program) {
	out := new(ring)
	c.mu.Lock()
	c.logs[p.Name] = out
	c.mu.Unlock()
	pause := firstPause
	for ctx.Err() == nil {
		begin := time.Now()
		err := os.MkdirAll(p.Dir, 0o700)
		var kid *child
		if err == nil {
			kid, err = c.start(p.Args, p.Dir, out)
		}
		if err != nil {
			log.Printf("start %s: %v", p.Name, err)
		} else {
			status := <-kid.done // stop ends it
			if ctx.Err() == nil {
				log.Printf("%s ended: %v", p.Name, describe(status))
			}
		}
		if time.Since(begin) > steady {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func describe(s syscall.WaitStatus) any {
	if s.Signaled() {
		return s.Signal()
	}
	return s.ExitStatus()
}

// stop ends all processes.
func (c *children) stop(wait time.Duration) {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	syscall.Kill(-1, syscall.SIGTERM) // all but init
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		c.mu.Lock()
		left := len(c.alive)
		c.mu.Unlock()
		if left == 0 {
			break
		}
	}
	syscall.Kill(-1, syscall.SIGKILL)
}

func (c *children) log(program string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.logs[program]; r != nil {
		return r.bytes(), nil
	}
	return nil, errors.New("there is no such program")
}

// ringSize is how much of a program's output is kept, in bytes.
const ringSize = 64 << 10

// ring keeps the last bytes that were written. It is ready to use.
type ring struct {
	mu  sync.Mutex
	buf []byte
	at  int // where the next byte goes, once buf is full
}

func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(p)
	p = p[max(0, n-ringSize):]
	k := min(ringSize-len(r.buf), len(p))
	r.buf = append(r.buf, p[:k]...)
	for p = p[k:]; len(p) > 0; p = p[k:] {
		k = copy(r.buf[r.at:], p)
		r.at = (r.at + k) % ringSize
	}
	return n, nil
}

func (r *ring) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(append([]byte(nil), r.buf[r.at:]...), r.buf[:r.at]...)
}
