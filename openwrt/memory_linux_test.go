package openwrt

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a router can spare, in bytes, and what is asked of it meanwhile.
const (
	mib       = 1 << 20
	maxIdle   = 11 * 1000 * 1000
	maxLoaded = 16 * 1000 * 1000

	listeners = 50
	requests  = 400
	clients   = 4
	upload    = 16 * mib
)

// TestMemory runs the daemon as on a board with 32 MB and with 64 MB: the limits that it
// sets itself there, and a memory cgroup of that size where this machine lets us make one.
// It must stay within its budget, idle and under load, and never be killed.
func TestMemory(t *testing.T) {
	program := filepath.Join(t.TempDir(), "cloudrestd")
	if runtime.GOARCH != "amd64" {
		t.Skip("only an amd64 machine runs 32-bit x86 programs, whose pointers are as large as a router's")
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "../firmware/cmd/cloudrestd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=386")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	if err := exec.CommandContext(t.Context(), program, "version").Run(); err != nil {
		t.Skipf("this kernel runs no 32-bit x86 programs: %v", err)
	}
	for _, board := range []struct {
		name  string
		bytes int64
		env   []string // as setMemory of cloudrestd chooses
	}{
		{"32 MB", 32 * mib, []string{"GOMEMLIMIT=16MiB", "GOGC=50"}},
		{"64 MB", 64 * mib, []string{"GOMEMLIMIT=24MiB", "GOGC=50"}},
	} {
		t.Run(board.name, func(t *testing.T) { onBoard(t, program, board.bytes, board.env) })
	}
}

func onBoard(t *testing.T, program string, size int64, env []string) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, `{"got": %d}`, n)
	}))
	defer origin.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()

	dir := t.TempDir()
	// A shell steps into the cage before it becomes the daemon, so that all memory counts.
	procs := cage(t, size)
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `[ -z "$0" ] || echo $$ >"$0" && exec "$@"`, procs, program, "--origin", origin.URL, "--https", addr, "--http", "off", "--access", "open",
		"--mdns=off", "--udp-discovery=off", "--state-dir", dir, "--fifo", filepath.Join(dir, "notify"), "--log-level", "error")
	cmd.Env = env
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			t.Errorf("the daemon ended: %v\n%s", err, log.Bytes())
		}
	}()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ask := func(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, body)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(r)
		if err == nil && resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		return resp, err
	}
	for try := 0; ; try++ {
		resp, err := ask(t.Context(), "GET", "/zones", nil)
		if err == nil {
			resp.Body.Close()
			break
		}
		if try == 300 {
			t.Fatalf("the daemon does not answer: %v\n%s", err, log.Bytes())
		}
		time.Sleep(100 * time.Millisecond)
	}
	idle := resident(t, cmd.Process.Pid, "VmRSS")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range listeners {
		resp, err := ask(ctx, "GET", "/.cloudrest/v1/events", nil)
		if err != nil {
			t.Fatalf("listener %d: %v", i, err)
		}
		defer resp.Body.Close()
	}
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for i := range requests / clients {
				resp, err := ask(ctx, "GET", "/zones/"+strconv.Itoa(i), nil)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	group.Go(func() {
		resp, err := ask(ctx, "POST", "/firmware", io.LimitReader(zeros{}, upload))
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); string(text) != fmt.Sprintf(`{"got": %d}`, upload) {
			t.Errorf("upload: %s, want %d bytes", text, upload)
		}
	})
	group.Wait()
	loaded, peak, anon := resident(t, cmd.Process.Pid, "VmRSS"), resident(t, cmd.Process.Pid, "VmHWM"), resident(t, cmd.Process.Pid, "RssAnon")
	t.Logf("resident: idle %.1f MB, after the load %.1f MB (%.1f MB of it the program's own), peak %.1f MB; memory cgroup: %v",
		float64(idle)/1e6, float64(loaded)/1e6, float64(anon)/1e6, float64(peak)/1e6, procs != "")
	if idle > maxIdle {
		t.Errorf("idle: %d bytes resident, at most %d", idle, maxIdle)
	}
	if peak > maxLoaded {
		t.Errorf("under load: %d bytes resident, at most %d", peak, maxLoaded)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// resident reads a line of /proc/PID/status, in bytes.
func resident(t *testing.T, pid int, key string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s in /proc/%d/status", key, pid)
	return 0
}

// cage makes a memory cgroup and returns the file that takes the process into it; empty if
// this machine does not let us: that needs root. Both versions of cgroups are known.
func cage(t *testing.T, limit int64) (procs string) {
	for _, v := range []struct{ root, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir, err := os.MkdirTemp(v.root, "cloudrest-test-")
		if err != nil {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, v.limit), os.O_WRONLY, 0) // never create it
		if err == nil {
			_, err = fmt.Fprint(f, limit)
			f.Close()
		}
		if err != nil {
			os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			for range 100 { // until the kernel has seen the process go
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Errorf("%s cannot be removed", dir)
		})
		return filepath.Join(dir, "cgroup.procs")
	}
	return ""
}
