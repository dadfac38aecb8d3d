//go:build linux

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/memory"
)

// TestGate runs a cloudrestd for this machine with a small load; "make memory" judges.
func TestGate(t *testing.T) {
	program := filepath.Join(t.TempDir(), "cloudrestd")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../../firmware/cmd/cloudrestd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cloudrestd: %v\n%s", err, out)
	}
	load := memory.Standard()
	load.Listeners, load.Requests, load.Upload = 3, 100, 1<<20
	origin, stop, err := serveOrigin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	m, err := measure(t.Context(), memory.Board{Program: program, Memory: 32 << 20, Origin: origin}, load)
	if err != nil {
		t.Fatal(err)
	}
	if m.done.Requests != 100 || m.done.Events != 3 || m.done.Uploaded != 1<<20 {
		t.Errorf("done: %+v, want 100 requests, 3 events, the upload", m.done)
	}
	if m.idle.Resident < 1<<20 || m.loaded.Peak < m.idle.Own || m.loaded.Own < 1<<18 {
		t.Errorf("usage: idle %+v, loaded %+v", m.idle, m.loaded)
	}
	if m.why == nil && (m.limit != 16<<20 || m.cgroup < m.idle.Own || m.cgroup > 32<<20) {
		t.Errorf("the daemon gives Go %d bytes, the cgroup held %d; want 16 MiB, and at most 32", m.limit, m.cgroup)
	} else if m.why != nil && !errors.Is(m.why, memory.ErrNoCgroup) {
		t.Errorf("no cgroup: %v", m.why)
	}

	if m.why != nil {
		t.Skip("that a killed daemon fails the gate is not tested:", m.why)
	}
	// It takes memory without end that the kernel cannot take back: that of a program's file
	// could be, and cloudrestd would crawl on a busy machine instead of being killed.
	greedy := filepath.Join(t.TempDir(), "greedy")
	if err := os.WriteFile(greedy, []byte("#!/bin/sh\nexec tail /dev/zero\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = measure(t.Context(), memory.Board{Program: greedy, Memory: 32 << 20, Origin: origin}, load)
	if err == nil || !strings.Contains(err.Error(), "out of memory") {
		t.Errorf("a program that takes all memory: %v, want that the kernel has killed it", err)
	}
}

func TestOver(t *testing.T) {
	if err := over(32<<20, "idle", maxIdle, maxIdle); err != nil {
		t.Error(err)
	}
	if err, want := over(32<<20, "idle", maxIdle+1, maxIdle), "on a board of 32 MB, idle: 11000001 bytes resident, at most 11000000"; err == nil || err.Error() != want {
		t.Errorf("error = %v, want %q", err, want)
	}
}
