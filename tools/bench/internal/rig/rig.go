// Package rig is what the benches share: servers as processes of their own, clients that
// keep their connections busy, and the clocks that tell what the servers used. What is
// compared runs in turn, block by block, so that a noisy machine disturbs all alike; only
// ratios within one run mean anything.
package rig

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// Rig is the surroundings of one bench. It is for one goroutine.
type Rig struct {
	Dir   string // of the run, removed by Close
	Bin   string // where the programs are
	Cert  string // PEM file: a P-256 certificate for localhost and 127.0.0.1, its own authority
	Key   string // PEM file
	Roots *x509.CertPool

	servers []*Server
}

// New makes the directory and the certificate. bin holds built programs; empty: Program
// builds them into the run's directory.
func New(name, bin string) (*Rig, error) {
	dir, err := os.MkdirTemp("", "cloudrest-bench-"+name+"-")
	if err != nil {
		return nil, err
	}
	r := &Rig{Dir: dir, Bin: bin}
	if err := r.certify(); err != nil {
		return nil, errors.Join(fmt.Errorf("make a certificate: %w", err), os.RemoveAll(dir))
	}
	return r, nil
}

// Close ends the servers, the last one first, and removes the directory.
func (r *Rig) Close() {
	for i := len(r.servers) - 1; i >= 0; i-- {
		r.servers[i].Stop()
	}
	_ = os.RemoveAll(r.Dir)
}

const module = "github.com/cloudrest/cloudrest/"

// Program returns the path of a program of this module, built now if it is not in Bin.
// pkg is its package below the module's root: "cloud/cmd/cloudrelay".
func (r *Rig) Program(ctx context.Context, pkg string) (string, error) {
	name := filepath.Base(pkg)
	if r.Bin != "" {
		return filepath.Join(r.Bin, name), nil
	}
	path := filepath.Join(r.Dir, "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, module+pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	var said bytes.Buffer
	build.Stderr = &said
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build %s (run this inside the module): %w\n%s", name, err, strings.TrimSpace(said.String()))
	}
	return path, nil
}

// roleVariable makes a bench, run again by itself, one of the servers instead.
const roleVariable = "CLOUDREST_BENCH_ROLE"

// Role is a server inside the bench's own program. It ends with ctx.
type Role func(ctx context.Context, args []string) error

// Main is the main function of a bench: bench, or the role that Again has asked for.
func Main(name string, roles map[string]Role, bench func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := error(nil)
	if role := os.Getenv(roleVariable); role == "" {
		err = bench(ctx)
	} else if run := roles[role]; run != nil {
		err = run(ctx, os.Args[1:])
	} else {
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench %s: %v\n", name, err)
		os.Exit(1)
	}
}

// again is the command of this program in a role.
func again(role string, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd, nil
}
