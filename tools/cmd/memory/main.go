//go:build linux

// Command memory is the gate on the gateway's memory: it runs cloudrestd as on boards with
// 32 and 64 MB, in memory cgroups of that size, in front of the sample service; it puts the
// load of package memory on it, prints what the daemon takes, and fails where that is more
// than its budget or where the kernel had to kill it.
//
//	memory --program bin/cloudrestd-386 --beside bin/cloudrestd-amd64
//
// The budget is for the 32-bit program: its pointers are as large as a router's. The other
// is printed beside it, on the smaller board only: a 64-bit one has larger values and a larger file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/memory"
	"github.com/cloudrest/cloudrest/tools/netns"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// The budget of a board, in bytes.
const (
	maxIdle   = 11_000_000
	maxLoaded = 16_000_000
)

// boards are the memories, in bytes, that the daemon is run with, and what it must choose
// for Go's own limit then: it reads the cgroup's limit.
var boards = []struct{ memory, limit int64 }{{32 << 20, 16 << 20}, {64 << 20, 24 << 20}}

// runTime bounds one run with one board.
const runTime = 3 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "memory:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	f := flag.NewFlagSet("memory", flag.ContinueOnError)
	f.SetOutput(errOut)
	program := f.String("program", "", "the 32-bit cloudrestd, which the budget is for: a `file`")
	beside := f.String("beside", "", "another cloudrestd, which is only measured: a `file`")
	lan := f.String("lan", "", "the network `interface` for discovery; without it, one of a private network if we can make that (root), or discovery is off")
	load := memory.Standard()
	f.IntVar(&load.Requests, "requests", load.Requests, "how many requests")
	f.IntVar(&load.Rate, "rate", load.Rate, "requests in a second")
	f.Int64Var(&load.Upload, "upload", load.Upload, "size of the upload, in bytes")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *program == "" || f.NArg() > 0 || load.Rate < 1 {
		return errors.New("want --program FILE, and nothing but flags; see memory --help")
	}
	for _, name := range []*string{program, beside} {
		var err error
		if *name, err = absolute(*name); err != nil {
			return err
		}
	}
	if *lan == "" {
		if err := netns.Available(); err == nil {
			return again(ctx, append(args, "--program", *program, "--beside", *beside), out, errOut)
		} else {
			fmt.Fprintln(out, "memory: without discovery, which takes 0.6 MB:", err)
		}
	}
	origin, stop, err := serveOrigin(ctx)
	if err != nil {
		return err
	}
	defer stop()

	fmt.Fprintf(out, "memory: %d event streams, %d requests a second on %d connections, an upload of %d MB; all over TLS; MB of 10^6 bytes\n",
		load.Listeners, load.Rate, load.Clients, load.Upload/1e6)
	fmt.Fprintf(out, "%-18s %-6s %10s %10s %10s %10s %10s %6s\n", "program", "board", "idle", "loaded", "peak", "own", "cgroup", "kills")
	var failed []error
	for _, p := range []struct {
		name, file string
		boards     int // how many of them
		gated      bool
	}{{"32 bit, gated", *program, len(boards), true}, {"beside", *beside, 1, false}} {
		if p.file == "" {
			continue
		}
		for _, b := range boards[:p.boards] {
			m, err := measure(ctx, memory.Board{Program: p.file, Memory: b.memory, Origin: origin, LAN: *lan}, load)
			if err != nil {
				failed = append(failed, fmt.Errorf("%s on a board of %d MB: %w", p.name, b.memory>>20, err))
				continue
			}
			cgroup, kills := "-", "-"
			if m.why == nil {
				cgroup, kills = megabytes(m.cgroup), "0" // else measure had failed
			}
			fmt.Fprintf(out, "%-18s %3d MB %10s %10s %10s %10s %10s %6s\n", p.name, b.memory>>20,
				megabytes(m.idle.Resident), megabytes(m.loaded.Resident), megabytes(m.loaded.Peak), megabytes(m.loaded.Own), cgroup, kills)
			fmt.Fprintf(out, "%-18s        %d answers, %d events, %d MB up in %.1f s\n", "",
				m.done.Requests, m.done.Events, m.done.Uploaded/1e6, m.done.Took.Seconds())
			if m.why != nil {
				fmt.Fprintf(out, "%-18s        without the limit of a cgroup: %v\n", "", m.why)
			} else if m.limit != b.limit {
				failed = append(failed, fmt.Errorf("%s on a board of %d MB: the daemon gives Go %d bytes, want %d: it does not see the cgroup's limit", p.name, b.memory>>20, m.limit, b.limit))
			}
			if p.gated {
				failed = append(failed, over(b.memory, "idle", m.idle.Resident, maxIdle), over(b.memory, "under load", m.loaded.Peak, maxLoaded))
			}
		}
	}
	fmt.Fprintf(out, "memory: the 32-bit program may take %s MB idle, %s MB at its peak\n", megabytes(maxIdle), megabytes(maxLoaded))
	return errors.Join(failed...)
}

func absolute(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	return filepath.Abs(name)
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f", float64(n)/1e6) }

func over(board int64, when string, got, most int64) error {
	if got <= most {
		return nil
	}
	return fmt.Errorf("on a board of %d MB, %s: %d bytes resident, at most %d", board>>20, when, got, most)
}

type measured struct {
	idle, loaded memory.Usage
	cgroup       int64 // the most that the cgroup held, files and all
	limit        int64 // that the daemon has set for Go
	done         memory.Result
	why          error // there is no cgroup
}

func measure(ctx context.Context, board memory.Board, load memory.Load) (m measured, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runTime, fmt.Errorf("not done after %v", runTime))
	defer cancel()
	if board.Dir, err = os.MkdirTemp("", "cloudrest-memory-"); err != nil {
		return m, err
	}
	defer os.RemoveAll(board.Dir)
	d, err := board.Start(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }() // which looks for kills once more
	m.why, m.limit = d.Why, d.Limit

	token, pin, err := memory.Pair(ctx, d.Base)
	if err != nil {
		return m, err
	}
	load.Base, load.Token, load.TLS, load.Notify = d.Base, token, trust.Client(pin), d.Notify
	// Idle: it has settled, a phone has come and gone, and now it serves nobody.
	if d.Cgroup != nil {
		if err := d.Settle(ctx); err != nil {
			return m, err
		}
	}
	if err := load.Once(ctx); err != nil {
		return m, err
	}
	if m.idle, err = d.Usage(); err != nil {
		return m, err
	}
	m.done, err = load.Run(ctx, func() (err error) {
		if m.loaded, err = d.Usage(); err == nil && d.Cgroup != nil {
			m.cgroup = d.Cgroup.Peak()
		}
		return err
	})
	return m, err
}

// again runs this program in a private network, where the daemon may announce itself.
func again(ctx context.Context, args []string, out, errOut io.Writer) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	lab := netns.New()
	defer func() { err = errors.Join(err, lab.Close()) }()
	var ports []netns.Port
	for i, name := range []string{"board", "phones"} {
		space, err := lab.Space(name)
		if err != nil {
			return err
		}
		ports = append(ports, netns.Port{Space: space, Dev: "lan", Addrs: []string{fmt.Sprintf("192.0.2.%d/24", i+1)}})
	}
	if err := lab.Join(ports[0], ports[1]); err != nil {
		return err
	}
	cmd := ports[0].Space.Command(ctx, exe, append([]string{"--lan", "lan"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, errOut
	return cmd.Run()
}

// serveOrigin runs the sample service in this process, outside of the cgroups.
func serveOrigin(ctx context.Context) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	service := sample.New(sample.Config{})
	server := &http.Server{Handler: service, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{}, 2)
	go func() { _ = service.Run(ctx); ended <- struct{}{} }()
	go func() { _ = server.Serve(l); ended <- struct{}{} }()
	return "http://" + l.Addr().String(), func() {
		cancel()
		server.Close()
		<-ended
		<-ended
	}, nil
}
