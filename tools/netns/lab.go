//go:build linux

package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stepTime bounds one ip(8), tc(8) or sysctl step, and each wait while cleaning up.
const stepTime = 30 * time.Second

// ErrUnavailable is wrapped by what Available returns: private networks cannot be
// made here, and the text names what is missing.
var ErrUnavailable = errors.New("network namespaces are not available")

// Available returns nil when New will work. It makes one namespace to find out, once
// per process.
func Available() error { return available() }

var available = sync.OnceValue(func() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: not root", ErrUnavailable)
	}
	for _, tool := range []string{"ip", "unshare", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: %s is not installed", ErrUnavailable, tool)
		}
	}
	l := New()
	defer l.Close()
	a, err := l.Space("probe-a")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	b, err := l.Space("probe-b")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := l.Join(Port{Space: a, Dev: "v0"}, Port{Space: b, Dev: "v0"}); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
})

// Lab is a set of namespaces and what runs in them. It may be used from several
// goroutines. Close must be called.
type Lab struct {
	mu     sync.Mutex // guards what follows
	spaces []*Space
	wires  []*os.File
	closed bool
}

// New returns an empty lab.
func New() *Lab { return &Lab{} }

// TB is what Test needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Test returns a lab that is closed at the end of the test, or skips the test and
// says why.
func Test(t TB) *Lab {
	t.Helper()
	if err := Available(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	l := New()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the private network: %v", err)
		}
	})
	return l
}

// Space is one network namespace with a mount namespace of its own, in which /run is
// an empty tmpfs: daemons of two spaces do not see each other's sockets and pid files.
// The loopback interface is up.
type Space struct {
	Name string // for messages

	holder *exec.Cmd
	stdin  io.Closer
	inode  string // link text of /proc/<holder>/ns/net

	mu      sync.Mutex // guards daemons
	daemons []*Daemon
}

// Space makes a namespace. The name is for messages only.
func (l *Lab) Space(name string) (*Space, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("make namespace %s: the lab is closed", name)
	}
	// The holder ends when its standard input does: with us, however we end.
	cmd := exec.Command("unshare", "--net", "--mount", "--propagation", "private", "sh", "-c",
		"mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec cat >/dev/null")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr tail
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	giveUp := time.AfterFunc(stepTime, func() { cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	giveUp.Stop()
	s := &Space{Name: name, holder: cmd, stdin: stdin}
	if err == nil {
		s.inode, err = os.Readlink(s.Path())
	}
	if err == nil {
		var own string
		if own, err = os.Readlink("/proc/self/ns/net"); err == nil && own == s.inode {
			err = errors.New("unshare gave our own namespace back") // Close would kill strangers
		}
	}
	if err != nil || line != "ready\n" {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("make namespace %s: %w: %s", name, err, stderr.String())
	}
	l.spaces = append(l.spaces, s)
	return s, nil
}

// PID is a process that lives in the namespace as long as the lab.
func (s *Space) PID() int { return s.holder.Process.Pid }

// Path names the namespace in the file system, as setns(2) and `ip link set netns` take it.
func (s *Space) Path() string { return fmt.Sprintf("/proc/%d/ns/net", s.PID()) }

// Command is exec.CommandContext in the namespace; its process is the command itself,
// so that signals reach it. It is killed when this process dies. Use Daemon for what
// should run on.
func (s *Space) Command(ctx context.Context, name string, arg ...string) *exec.Cmd {
	pid := strconv.Itoa(s.PID())
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", pid, "--net", "--mount", "--", name}, arg...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // a grandchild that keeps the pipe open must not hold Wait
	return cmd
}

// Run runs a command in the namespace, for half a minute at most, and returns its
// standard output. The error holds what it wrote to standard error.
func (s *Space) Run(name string, arg ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	return s.RunContext(ctx, name, arg...)
}

// RunContext is Run with the caller's deadline.
func (s *Space) RunContext(ctx context.Context, name string, arg ...string) (string, error) {
	cmd := s.Command(ctx, name, arg...)
	var stdout strings.Builder
	var stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s", s.Name, name, strings.Join(arg, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Close ends every process in the lab's namespaces and removes the namespaces, with
// all links in them. A second call does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for _, f := range l.wires {
		errs = append(errs, f.Close())
	}
	for _, s := range l.spaces {
		errs = append(errs, s.close())
	}
	l.wires, l.spaces = nil, nil
	return errors.Join(errs...)
}

func (s *Space) close() error {
	s.mu.Lock()
	daemons := s.daemons
	s.daemons = nil
	s.mu.Unlock()
	for _, d := range daemons {
		d.cmd.Process.Kill()
	}
	err := s.killInside()
	for _, d := range daemons {
		select {
		case <-d.done:
		case <-time.After(stepTime):
			err = errors.Join(err, fmt.Errorf("%s: %s does not end", s.Name, d.name))
		}
	}
	s.stdin.Close()
	s.holder.Process.Kill()
	s.holder.Wait()
	return err
}

// killInside kills whatever else lives in the namespace: children of daemons that
// were not ours to wait for.
func (s *Space) killInside() error {
	deadline := time.Now().Add(stepTime)
	for {
		left := 0
		links, err := filepath.Glob("/proc/[0-9]*/ns/net")
		if err != nil {
			return err
		}
		for _, link := range links {
			inode, err := os.Readlink(link)
			if err != nil || inode != s.inode {
				continue
			}
			pid, err := strconv.Atoi(strings.Split(link, "/")[2])
			if err != nil || pid == s.PID() || pid == os.Getpid() {
				continue
			}
			left++
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %d processes survive SIGKILL", s.Name, left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
