//go:build linux

package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Daemon is a process that runs in a namespace until it is stopped or the lab closes.
type Daemon struct {
	name string
	cmd  *exec.Cmd
	out  tail
	done chan struct{}
	err  error // set before done is closed
}

// Daemon starts a long-running command in the namespace.
func (s *Space) Daemon(name string, arg ...string) (*Daemon, error) {
	return s.StartDaemon(s.Command(context.Background(), name, arg...))
}

// StartDaemon starts cmd, which Command made; the caller may have set its Env, Dir,
// Stdin and ExtraFiles. Standard output and error are kept for Log where they are nil.
func (s *Space) StartDaemon(cmd *exec.Cmd) (*Daemon, error) {
	d := &Daemon{name: cmd.Args[len(cmd.Args)-1], cmd: cmd, done: make(chan struct{})}
	for i, a := range cmd.Args {
		if a == "--" && i+1 < len(cmd.Args) {
			d.name = cmd.Args[i+1]
			break
		}
	}
	if cmd.Stdout == nil {
		cmd.Stdout = &d.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &d.out
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", s.Name, d.name, err)
	}
	go func() {
		d.err = cmd.Wait()
		close(d.done)
	}()
	s.mu.Lock()
	s.daemons = append(s.daemons, d)
	s.mu.Unlock()
	return d, nil
}

// PID is the process's id; after its end it may belong to another.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Done is closed when the process has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Err is the result of the process, once Done is closed.
func (d *Daemon) Err() error {
	<-d.done
	return d.err
}

// Signal sends a signal to the process.
func (d *Daemon) Signal(sig os.Signal) error { return d.cmd.Process.Signal(sig) }

// Stop asks the process to end (SIGTERM) and kills it when it has not within the
// given time. It returns the process's result, or an error that says it was killed.
func (d *Daemon) Stop(within time.Duration) error {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
		return d.err
	case <-time.After(within):
		d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("%s: killed, it did not end within %v of SIGTERM", d.name, within)
	}
}

// Kill ends the process at once (SIGKILL) and waits for it.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill()
	<-d.done
}

// Log is the last part of what the process wrote.
func (d *Daemon) Log() string { return d.out.String() }

// tail keeps the last tailSize bytes written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
