package openwrt

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long the daemon may take to answer or to end.
const startTimeout = 60 * time.Second

// router is the daemon as the init script starts it, time and again.
type router struct{ program, config, umdns string }

// start asks the init script what procd is to run, runs that, and returns the script's calls
// and how the daemon is once it answers. stop ends the daemon.
func (r *router) start(t *testing.T) (calls string, status map[string]any, stop func()) {
	t.Helper()
	text, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	run := filepath.Dir(r.config)
	cmd := exec.CommandContext(t.Context(), "busybox", "ash", "-eu", "testdata/procd.sh", initScript, r.config, filepath.Join(run, "run"), "start_service")
	cmd.Env = append(os.Environ(), "TEST_UMDNS="+r.umdns, "TEST_PROG="+r.program)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("run the init script: %v\n%s\n%s", err, out, text)
	}
	calls = string(out)
	var argv, env []string
	for line := range strings.Lines(calls) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "set_param command "); ok {
			argv = strings.Fields(rest)
		}
		if rest, ok := strings.CutPrefix(line, "append_param env "); ok {
			env = append(env, rest)
		}
	}
	if len(argv) == 0 {
		t.Fatalf("the init script starts nothing:\n%s", calls)
	}
	log := new(strings.Builder) // read after the end only
	ctx, cancel := context.WithCancel(t.Context())
	daemon := exec.CommandContext(ctx, argv[0], argv[1:]...)
	daemon.Env, daemon.Stdout, daemon.Stderr = env, log, log
	daemon.Cancel = func() error { return daemon.Process.Signal(syscall.SIGTERM) }
	daemon.WaitDelay = startTimeout
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		daemon.Wait()
		close(ended)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	deadline := time.After(startTimeout)
	for {
		text, err := exec.CommandContext(t.Context(), r.program, "status", "--json", "--config", r.config).CombinedOutput()
		var report struct{ Status map[string]any }
		if err == nil {
			if err := json.Unmarshal(text, &report); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			if report.Status["url"] != "" {
				var all map[string]any
				json.Unmarshal(text, &all)
				return calls, all, stop
			}
		}
		select {
		case <-ended:
			t.Fatalf("the daemon ended: %s", log)
		case <-deadline:
			t.Fatalf("the daemon does not answer: %v: %s", err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestBesideUmdns starts the daemon twice as a router with umdns does. The first start makes
// the id and the pin; from the second one on umdns has them, and the daemon announces nothing.
// What the daemon tells then, the page can show.
func TestBesideUmdns(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed (make deps)")
	}
	dir := t.TempDir()
	program, config, umdns := filepath.Join(dir, "cloudrestd"), filepath.Join(dir, "config"), filepath.Join(dir, "umdns")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../firmware/cmd/cloudrestd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	text := "config cloudrest 'main'\n\toption origin 'http://127.0.0.1:9'\n\toption https '127.0.0.1:0'\n\toption http 'off'\n\toption uid_source 'random'\n" +
		"\toption name 'My garden'\n\toption mdns 'on'\n\toption udp_discovery 'off'\n\tlist interfaces 'lo'\n\toption fifo 'off'\n\toption state_dir '" + dir + "/state'\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(umdns, []byte("#!/bin/sh\n[ \"$1\" = enabled ]\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &router{program: program, config: config, umdns: umdns}
	mdns := func(report map[string]any) any {
		return report["status"].(map[string]any)["discovery"].(map[string]any)["mdns"]
	}

	calls, report, stop := r.start(t)
	if strings.Contains(calls, "add_mdns") || mdns(report) == "off" {
		t.Errorf("at the first start mDNS is %v; want the daemon's own; calls:\n%s", mdns(report), calls)
	}
	stop()
	if st, err := os.Stat(dir + "/state"); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the state directory is %v, %v; want only its owner in it", st, err)
	}

	calls, report, stop = r.start(t)
	status := report["status"].(map[string]any)
	if mdns(report) != "off" {
		t.Errorf("umdns announces, and the daemon's own mDNS is %q, want off", mdns(report))
	}
	want := "add_mdns_service cloudrest tcp 0 id=" + status["id"].(string) + " name=My garden fp=" + status["certificate_sha256"].(string) + " path=/\n"
	if !strings.Contains(calls, want) || !regexp.MustCompile(`fp=[0-9a-f]{64} `).MatchString(calls) {
		t.Errorf("calls:\n%swant among them\n%s", calls, want)
	}

	p := runPage(t, map[string]any{"reports": []any{report}})
	for _, w := range []string{"My garden, version ", status["id"].(string), status["url"].(string), status["certificate_sha256"].(string),
		"Does not answer: ", "Off: no relay is set", "Paired clients; 0 paired", "0 answers, 0B of "} {
		if !strings.Contains(p.Shown[0], w) {
			t.Errorf("the page shows\n%s\nwant %q in it", p.Shown[0], w)
		}
	}
	stop()
}
