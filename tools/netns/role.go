//go:build linux

package netns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// A goroutine cannot stay in another namespace, since the threads under it change. So
// code under test runs there in a copy of the test binary: TestMain hands its roles to
// Roles, and a test starts one with Actor.
const (
	roleVar = "CLOUDREST_NETNS_ROLE"
	argVar  = "CLOUDREST_NETNS_ARG"
)

// Role is what a copy of the test binary does in a namespace, until ctx is done (SIGTERM)
// or it has no more to do. It takes commands from in, which is closed when ctx is done, and
// tells the test what happens by writing lines to out. An error ends the copy with exit status 1.
type Role func(ctx context.Context, arg string, in <-chan string, out io.Writer) error

// Roles plays a role and ends the process, when this process is a copy that Actor
// started; else it returns at once. Call it first in TestMain.
func Roles(roles map[string]Role) {
	name := os.Getenv(roleVar)
	if name == "" {
		return
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "netns: no role %q\n", name)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	lines := make(chan string)
	go func() { // ends with the process: a read of standard input cannot be called off
		for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
			lines <- sc.Text()
		}
		stop()
	}()
	in := make(chan string)
	go func() {
		defer close(in)
		for {
			select {
			case line := <-lines:
				select {
				case in <- line:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	err := role(ctx, os.Getenv(argVar), in, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Actor is a copy of this program that plays a role. Its Daemon logs standard error.
type Actor struct {
	*Daemon
	in    io.Writer
	lines chan string
}

// Actor starts a copy of this program in the namespace, in the role given to Roles.
func (s *Space) Actor(role, arg string) (*Actor, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("%s: start role %s: %w", s.Name, role, err)
	}
	cmd := s.Command(context.Background(), exe)
	cmd.Env = append(os.Environ(), roleVar+"="+role, argVar+"="+arg)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("%s: start role %s: %w", s.Name, role, err)
	}
	r, w := io.Pipe()
	cmd.Stdout = w
	// 1024 lines wait for the test, then the copy does.
	a := &Actor{in: in, lines: make(chan string, 1024)}
	if a.Daemon, err = s.StartDaemon(cmd); err != nil {
		return nil, err
	}
	go func() {
		<-a.Done()
		w.Close()
	}()
	go func() {
		defer close(a.lines)
		for sc := bufio.NewScanner(r); sc.Scan(); {
			select {
			case a.lines <- sc.Text():
			case <-a.Done():
				return
			}
		}
	}()
	return a, nil
}

// Say sends the role one line.
func (a *Actor) Say(line string) error {
	_, err := io.WriteString(a.in, line+"\n")
	return err
}

// ErrSilent means that a role wrote nothing in time.
var ErrSilent = errors.New("nothing was said in time")

// Next returns the next line of the role. The error is io.EOF after its end, with what it logged.
func (a *Actor) Next(within time.Duration) (string, error) {
	select {
	case line, ok := <-a.lines:
		if !ok {
			return "", fmt.Errorf("%w: it logged: %s", io.EOF, a.Log())
		}
		return line, nil
	case <-time.After(within):
		return "", fmt.Errorf("%w: it logged: %s", ErrSilent, a.Log())
	}
}

// Expect passes over lines until one holds want, and returns that line.
func (a *Actor) Expect(want string, within time.Duration) (string, error) {
	deadline := time.Now().Add(within)
	var passed []string
	for {
		line, err := a.Next(time.Until(deadline))
		if err != nil {
			return "", fmt.Errorf("wait for %q: %w; the last lines passed over: %q", want, err, passed)
		}
		if strings.Contains(line, want) {
			return line, nil
		}
		passed = append(passed, line)
		passed = passed[max(0, len(passed)-10):]
	}
}
