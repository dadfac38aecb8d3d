package memory

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	startWait = 60 * time.Second // until the daemon is ready
	stopWait  = 30 * time.Second // until it has ended
	logLines  = 40               // of what it said that an error shows
	mib       = 1 << 20
)

// Board runs a cloudrestd as on a board.
type Board struct {
	Program string // the cloudrestd; a copy runs, so that the cgroup pays for reading it
	Memory  int64  // of the board, in bytes
	Dir     string // an empty folder, best on a real disk: what lies on tmpfs is memory
	Origin  string // URL of the maker's service
	// LAN is the network interface on which the daemon announces itself and answers
	// questions; empty: discovery is off, which takes 0.6 MB less.
	LAN string
}

// Daemon is a running cloudrestd.
type Daemon struct {
	Base string // https://127.0.0.1:port
	PID  int
	// Limit is what the daemon has chosen for Go's memory (GOMEMLIMIT), in bytes.
	Limit int64
	// Cgroup is nil where none could be made; then Why says why.
	Cgroup *Cgroup
	Why    error

	settled chan struct{} // closed when it has given back what only its start has needed

	fifo  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended, with err
	err   error

	mu  sync.Mutex // guards log
	log []string
}

// Start starts it with the settings of a router. It is ready when Start returns. The caller
// stops it.
func (b Board) Start(ctx context.Context) (*Daemon, error) {
	d := &Daemon{fifo: filepath.Join(b.Dir, "notify"), settled: make(chan struct{}), ended: make(chan struct{})}
	procs := ""
	env := []string{"PATH=" + os.Getenv("PATH")}
	args := []string{"--origin", b.Origin, "--https", "127.0.0.1:0", "--http", "off", "--uid-source", "random",
		"--state-dir", filepath.Join(b.Dir, "state"), "--fifo", d.fifo,
		"--notify-socket", filepath.Join(b.Dir, "notify.sock"), "--log-format", "json", "--log-level", "debug"}
	if b.LAN == "" {
		args = append(args, "--mdns", "off", "--udp-discovery", "off")
	} else {
		args = append(args, "--interfaces", b.LAN)
	}
	if d.Cgroup, d.Why = MakeCgroup(b.Memory); d.Cgroup != nil {
		procs = d.Cgroup.Procs
	} else {
		// What the daemon chooses by itself for 32 and 64 MB (memorySteps of cloudrestd).
		limit, cache := "16MiB", "512KiB"
		if b.Memory > 48*mib {
			limit, cache = "24MiB", "1MiB"
		}
		env = append(env, "GOMEMLIMIT="+limit, "GOGC=50")
		args = append(args, "--cache", cache)
	}
	// A shell enters the cgroup, copies the program, and becomes it: all its memory counts.
	program := filepath.Join(b.Dir, "cloudrestd")
	d.cmd = exec.Command("/bin/sh", append([]string{"-c", `{ [ -z "$0" ] || echo $$ >"$0"; } && cp "$1" "$2" && shift && exec "$@"`, procs, b.Program, program}, args...)...)
	d.cmd.Env = env
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := d.cmd.StderrPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start cloudrestd: %w", err), d.remove())
	}
	d.PID = d.cmd.Process.Pid
	ready := make(chan string, 1)
	announced := make(chan struct{}, 1)
	if b.LAN == "" {
		announced <- struct{}{}
	}
	go func() {
		defer close(d.ended)
		d.follow(out, ready, announced)
		d.err = d.cmd.Wait()
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, startWait, fmt.Errorf("not ready after %v", startWait))
	defer cancel()
	for left := 2; left > 0 && err == nil; left-- {
		select {
		case addr := <-ready:
			d.Base = "https://" + addr
		case <-announced:
		case <-d.ended:
			err = fmt.Errorf("it ended: %w", errors.Join(d.err, d.killed()))
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err == nil {
		return d, nil
	}
	return nil, errors.Join(fmt.Errorf("start cloudrestd: %w\n%s", err, d.said()), d.Stop())
}

// follow reads the log until its end.
func (d *Daemon) follow(out io.Reader, ready chan<- string, announced chan<- struct{}) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, mib)
	for lines.Scan() {
		d.mu.Lock()
		if len(d.log) == logLines {
			d.log = append(d.log[:0], d.log[1:]...)
		}
		d.log = append(d.log, lines.Text())
		var record struct {
			Msg, HTTPS string
			Limit      int64 `json:"limit_mib"`
		}
		if json.Unmarshal(lines.Bytes(), &record) == nil {
			switch record.Msg {
			case "memory set for a small board":
				d.Limit = record.Limit * mib
			case "the gateway is ready":
				select {
				case ready <- record.HTTPS:
				default: // said before
				}
			case "memory of the start given back":
				select {
				case <-d.settled: // said again after a factory reset
				default:
					close(d.settled)
				}
			case "announced by mDNS":
				select {
				case announced <- struct{}{}:
				default:
				}
			}
		}
		d.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, out) // after a line that is too long
}

// Settle waits until the daemon has given back what only its start has needed, some
// seconds after it was ready. A board that is large for it gives nothing back.
func (d *Daemon) Settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startWait, fmt.Errorf("not settled after %v", startWait))
	defer cancel()
	select {
	case <-d.settled:
		return nil
	case <-d.ended:
		return fmt.Errorf("cloudrestd ended: %w\n%s", errors.Join(d.err, d.killed()), d.said())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *Daemon) said() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b bytes.Buffer
	for _, line := range d.log {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// Usage reads what the daemon takes now.
func (d *Daemon) Usage() (Usage, error) {
	u, err := Of(d.PID)
	if err != nil {
		err = errors.Join(err, d.killed())
	}
	return u, err
}

// killed is an error if the kernel has killed a process in the cgroup.
func (d *Daemon) killed() error {
	if d.Cgroup == nil {
		return nil
	}
	n, err := d.Cgroup.Kills()
	if err == nil && n > 0 {
		err = fmt.Errorf("the kernel killed %d processes of the cgroup: out of memory", n)
	}
	return err
}

// Notify writes a line to the daemon's pipe, as programs on the board do.
func (d *Daemon) Notify(_ context.Context, line string) error {
	// Without O_NONBLOCK this would wait for ever for a daemon that has gone.
	f, err := os.OpenFile(d.fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// Stop ends the daemon as procd does and takes the cgroup away. The error says also
// whether the daemon ended by itself, badly, or was killed for want of memory.
func (d *Daemon) Stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // or it has ended: then err tells
	select {
	case <-d.ended:
	case <-time.After(stopWait):
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
	err := d.err
	if err != nil {
		err = fmt.Errorf("cloudrestd, process %d: %w\n%s", d.PID, err, d.said())
	}
	return errors.Join(err, d.killed(), d.remove())
}

func (d *Daemon) remove() error {
	if d.Cgroup == nil {
		return nil
	}
	return d.Cgroup.Remove()
}
