package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// without is what each build tag takes away: the feature, and settings that ask for it.
var without = map[string][][]string{
	"board":     {{"run", "--button", "GPIO17"}, {"run", "--led", "green:status"}},
	"cache":     {{"run", "--cache", "1MiB"}, {"run", "--cache-rules", "/x ttl=5s"}, {"run", "--cache-flash", "on"}},
	"http2":     nil,
	"mdns":      {{"run", "--mdns", "on"}},
	"page":      nil,
	"provision": {{"provision"}},
	"tether":    {{"run", "--relay", "wss://relay.example"}},
}

// TestTags builds the daemon without each feature and without all. What is missing is told,
// in version --json and when it is asked for; all else works.
func TestTags(t *testing.T) {
	if got := features.List(); len(got) != len(without) {
		t.Skipf("this build has only %q", got)
	}
	all := []string{}
	for name := range without {
		all = append(all, name)
	}
	slices.Sort(all)
	for _, leftOut := range append([][]string{all}, func() (one [][]string) {
		for _, name := range all {
			one = append(one, []string{name})
		}
		return one
	}()...) {
		t.Run(strings.Join(leftOut, " "), func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "cloudrestd")
			build := exec.CommandContext(t.Context(), "go", "build", "-tags=no_"+strings.Join(leftOut, ",no_"), "-o", program, ".")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build: %v\n%s", err, out)
			}
			out, err := exec.CommandContext(t.Context(), program, "version", "--json").Output()
			var v struct{ Features []string }
			if err == nil {
				err = json.Unmarshal(out, &v)
			}
			want := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return slices.Contains(leftOut, name) })
			if err != nil || v.Features == nil || !slices.Equal(v.Features, want) {
				t.Errorf("version --json = %s, %v, want the features %q", out, err, want)
			}
			for _, name := range leftOut {
				for _, args := range without[name] {
					args := args
					if args[0] == "run" {
						args = append(slices.Clone(args), "--state-dir", t.TempDir())
					}
					out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
					e, ok := errors.AsType[*exec.ExitError](err)
					if !ok || e.ExitCode() != settings.ExitUsage || !strings.Contains(string(out), features.Missing(name).Error()) {
						t.Errorf("%q: %v, %s, want exit code %d and %q", args, err, out, settings.ExitUsage, features.Missing(name))
					}
				}
			}
			if len(leftOut) == len(all) {
				starts(t, program)
			}
		})
	}
}

// starts runs a daemon with the defaults of a build, asks how it is over its socket, and
// stops it.
func starts(t *testing.T, program string) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, program, "run", "--https", "127.0.0.1:0", "--http", "off", "--state-dir", dir, "--fifo", "off",
		"--udp-discovery", "off", "--uid-source", "random")
	log, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "the gateway is ready") {
		t.Log(lines.Text())
	}
	if status, err := exec.CommandContext(ctx, program, "status", "--state-dir", dir).CombinedOutput(); err != nil || !strings.Contains(string(status), "relay      off") {
		t.Errorf("status: %v\n%s", err, status)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(log)
	if err := c.Wait(); err != nil {
		t.Errorf("the daemon ended with %v\n%s", err, rest)
	}
}
