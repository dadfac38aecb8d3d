package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// programs are built once for all runs: the benches, and what they measure.
var programs = []string{
	"./tools/bench/lan", "./tools/bench/remote", "./tools/bench/idle", "./tools/bench/cache", "./firmware/cmd/cloudrestd", "./cloud/cmd/cloudrelay",
}

func build(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("processor times of other processes are only read on Linux")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-o", dir}, programs...)...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

type report struct {
	Bench, Machine string
	Rows           []map[string]any
	Goals          []struct {
		What string
		Is   float64
	}
}

// run makes a small run of a bench and decodes what it prints.
func run(t *testing.T, dir, name string, args ...string) report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // an answer to a hang, not a measurement
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, name), append(args, "--json", "--bin", dir)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, said.String())
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%s printed no JSON: %v\n%s", name, err, out)
	}
	if r.Bench != name || r.Machine == "" {
		t.Errorf("report of %q on %q, want %q and a machine", r.Bench, r.Machine, name)
	}
	return r
}

func names(r report, key string) (list []string) {
	for _, row := range r.Rows {
		name, _ := row[key].(string)
		list = append(list, name)
	}
	return list
}

// positive checks that these figures of every row are there.
func positive(t *testing.T, r report, keys ...string) {
	t.Helper()
	for _, row := range r.Rows {
		for _, key := range keys {
			if v, _ := row[key].(float64); v <= 0 {
				t.Errorf("%s: %s = %v, want more than 0 in %v", r.Bench, key, row[key], row)
			}
		}
	}
}

func TestBenchesRun(t *testing.T) {
	dir := build(t)
	small := []string{"-n", "40", "-blocks", "2", "-c", "2"}
	t.Run("lan", func(t *testing.T) {
		r := run(t, dir, "lan", small...)
		want := []string{"nginx", "httputil.ReverseProxy", "cloudrestd", "gateway package, in-memory handler", "net/http, in-memory handler"}
		nginx := slices.Contains(names(r, "server"), "nginx")
		if !nginx {
			want = want[1:]
		}
		if got := names(r, "server"); !slices.Equal(got, want) {
			t.Errorf("rows = %q, want %q", got, want)
		}
		positive(t, r, "cpu_us_per_request", "ratio_to_reverseproxy", "requests_per_second", "rss_bytes")
		t.Run("nginx", func(t *testing.T) {
			if !nginx {
				t.Skip("nginx is not installed (make deps)")
			}
			positive(t, r, "ratio_to_nginx")
			if len(r.Goals) != 1 {
				t.Errorf("goals = %v, want one", r.Goals)
			}
		})
	})
	t.Run("cache", func(t *testing.T) {
		r := run(t, dir, "cache", small...)
		want := []string{"nginx proxy_cache", "nginx", "cloudrestd, from its cache", "cloudrestd, validating", "cloudrestd, no cache fields", "cloudrestd --cache=off", "net/http, in-memory handler"}
		goals := 5
		if !slices.Contains(names(r, "server"), "nginx") {
			want, goals = want[2:], 4
		}
		if got := names(r, "server"); !slices.Equal(got, want) {
			t.Errorf("rows = %q, want %q", got, want)
		}
		positive(t, r, "cpu_us_per_request", "ratio_to_validating", "ratio_to_uncached", "requests_per_second", "rss_bytes")
		if len(r.Goals) != goals {
			t.Errorf("goals = %v, want %d", r.Goals, goals)
		}
	})
	t.Run("remote", func(t *testing.T) {
		r := run(t, dir, "remote", small...)
		want := []string{"httputil.ReverseProxy, one hop", "cloudrelay + cloudrestd", "cloudrelay + gateway package, in-memory handler", "cloudrelay + tether alone, in-memory handler"}
		if got := names(r, "path"); !slices.Equal(got, want) {
			t.Errorf("rows = %q, want %q", got, want)
		}
		positive(t, r, "cpu_us_per_request", "ratio_to_plain_hop", "requests_per_second")
		r.Rows = r.Rows[1:]
		positive(t, r, "cpu_us_relay", "cpu_us_device")
		if len(r.Goals) != 1 {
			t.Errorf("goals = %v, want one", r.Goals)
		}
	})
	t.Run("idle", func(t *testing.T) {
		r := run(t, dir, "idle", "-n", "20", "-hold", "500ms")
		if got, want := strings.Join(names(r, "mode"), " "), "plain tls"; got != want {
			t.Errorf("rows = %s, want %s", got, want)
		}
		positive(t, r, "devices", "relay_cpu_us_per_connect", "rss_before", "rss_peak", "rss_after")
		if len(r.Goals) != 2 {
			t.Errorf("goals = %v, want two", r.Goals)
		}
	})
}
