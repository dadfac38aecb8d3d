package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startWait = 30 * time.Second // for a server to say that it is ready
	stopWait  = 5 * time.Second  // for it to end after SIGTERM
	tailLines = 12               // of what it said, for an error
	lineBytes = 64 << 10         // longest line that is looked at
)

// Server is a running process.
type Server struct {
	Name string
	PID  int
	Addr string // host:port, as it said

	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex
	tail []string // guarded by mu
}

// Again starts this program in a role. The role's first line on standard output is its
// address.
func (r *Rig) Again(ctx context.Context, name, role string, args ...string) (*Server, error) {
	cmd, err := again(role, args...)
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var addr string
	s, err := r.start(ctx, name, cmd, out, func(line string) bool { addr = line; return true })
	if err != nil {
		return nil, err
	}
	s.Addr = addr
	return s, nil
}

// Logged starts a program that logs JSON to standard error, and waits for the record with
// the given message; it is decoded into ready.
func (r *Rig) Logged(ctx context.Context, name string, cmd *exec.Cmd, message string, ready any) (*Server, error) {
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	return r.start(ctx, name, cmd, out, func(line string) bool {
		var record struct{ Msg string }
		return json.Unmarshal([]byte(line), &record) == nil && record.Msg == message && json.Unmarshal([]byte(line), ready) == nil
	})
}

// start runs cmd until ready says yes to one of its lines.
func (r *Rig) start(ctx context.Context, name string, cmd *exec.Cmd, out io.Reader, ready func(line string) bool) (*Server, error) {
	s := &Server{Name: name, cmd: cmd, done: make(chan struct{})}
	cmd.SysProcAttr = deathSignal()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.PID = cmd.Process.Pid
	r.servers = append(r.servers, s)
	up := make(chan struct{})
	go func() {
		defer close(s.done)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, lineBytes)
		for waiting := true; lines.Scan(); {
			s.note(lines.Text())
			if waiting && ready(lines.Text()) {
				waiting = false
				close(up)
			}
		}
		_, _ = io.Copy(io.Discard, out) // after a line that is too long
		_ = cmd.Wait()                  // ended by us, or seen by whoever asks it something
	}()
	t := time.NewTimer(startWait)
	defer t.Stop()
	err := error(nil)
	select {
	case <-up:
		return s, nil
	case <-s.done:
		err = errors.New("it ended")
	case <-t.C:
		err = fmt.Errorf("not ready after %v", startWait)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("start %s: %w\n%s", name, err, s.Said())
}

func (s *Server) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tail) == tailLines {
		s.tail = append(s.tail[:0], s.tail[1:]...)
	}
	s.tail = append(s.tail, line)
}

// Said returns the last lines of what the server said.
func (s *Server) Said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.tail, "\n")
}

// Stop ends the server and waits for that.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(stopWait)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}
