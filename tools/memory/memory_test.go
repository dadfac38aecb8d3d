package memory_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tools/memory"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// server plays a gateway: the sample service, and events.
func server(t *testing.T, events http.HandlerFunc, ring *sse.Ring) (memory.Load, *atomic.Int64) {
	t.Helper()
	service := sample.New(sample.Config{Slow: time.Millisecond})
	asked := new(atomic.Int64)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			http.Error(w, "who?", http.StatusUnauthorized)
		case r.URL.Path == "/.cloudrest/v1/events" && events != nil:
			events(w, r)
		case r.URL.Path == "/.cloudrest/v1/events":
			sse.Serve(w, r, ring, sse.Options{})
		default:
			if r.Method == http.MethodGet {
				asked.Add(1)
			}
			if r.ProtoMajor != 1 {
				t.Errorf("HTTP/%d, want 1.1: each client with a connection of its own", r.ProtoMajor)
			}
			service.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	l := memory.Standard()
	l.Base, l.Token, l.TLS = s.URL, "secret", &tls.Config{InsecureSkipVerify: true}
	l.Listeners, l.Requests, l.Rate, l.Upload = 5, 30, 10, 1<<20
	return l, asked
}

func TestLoad(t *testing.T) {
	ring := sse.NewRing(100, 1<<20)
	l, asked := server(t, nil, ring)
	lines := 0
	l.Notify = func(_ context.Context, line string) error {
		lines++
		ring.Append(sse.Event{ID: line, Data: []byte(line)})
		return nil
	}
	held := false
	got, err := l.Run(t.Context(), func() error { held = true; return nil })
	got.Took = 0
	if want := (memory.Result{Requests: 30, Events: 15, Uploaded: 1 << 20}); err != nil || got != want {
		t.Errorf("Run = %+v, %v; want %+v", got, err, want)
	}
	if asked.Load() != 30 || lines != 3 || !held {
		t.Errorf("%d requests, %d notifications, held %v; want 30, 3, true", asked.Load(), lines, held)
	}
}

// TestLoadFails: nothing that goes wrong looks like a load that was borne.
func TestLoadFails(t *testing.T) {
	ring := sse.NewRing(100, 1<<20)
	full := func(w http.ResponseWriter, r *http.Request) { http.Error(w, "full", http.StatusServiceUnavailable) }
	end := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
	}
	errHeld := errors.New("not now")
	for name, tc := range map[string]struct {
		events http.HandlerFunc
		change func(*memory.Load)
		held   func() error
		want   string
	}{
		"the token is refused":   {change: func(l *memory.Load) { l.Token = "" }, want: "listener 1: GET /.cloudrest/v1/events: 401"},
		"a listener is refused":  {events: full, change: func(*memory.Load) {}, want: "listener 1: GET /.cloudrest/v1/events: 503"},
		"a listener is cut off":  {events: end, change: func(*memory.Load) {}, want: "listener"},
		"a request is refused":   {change: func(l *memory.Load) { l.Paths = []string{"/nothing"} }, want: "request: GET /nothing: 404"},
		"the upload is refused":  {change: func(l *memory.Load) { l.UploadPath = "/zones" }, want: "upload: POST /zones: 405"},
		"the upload is not read": {change: func(l *memory.Load) { l.UploadPath = "/zones/1/stop" }, want: "want the number of bytes"},
		"notifications fail":     {change: func(l *memory.Load) { l.Notify = func(context.Context, string) error { return io.ErrClosedPipe } }, want: "notify: io"},
		"held fails":             {change: func(*memory.Load) {}, held: func() error { return errHeld }, want: errHeld.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := server(t, tc.events, ring)
			tc.change(&l)
			if _, err := l.Run(t.Context(), tc.held); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

const status = "Name:\tx\nVmHWM:\t   13900 kB\nVmRSS:\t   10800 kB\nRssAnon:\t    1364 kB\nRssFile:\t 9 kB\n"

func TestParseStatus(t *testing.T) {
	if got, err := memory.ParseStatus(status); err != nil || got != (memory.Usage{Resident: 10800 << 10, Own: 1364 << 10, Peak: 13900 << 10}) {
		t.Errorf("usage = %+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"a process that has ended": "Name:\tx\nState:\tZ (zombie)\n",
		"one is missing":           strings.Replace(status, "RssAnon", "Rss", 1),
		"another unit":             strings.Replace(status, "kB", "MB", 1),
		"no number":                strings.Replace(status, "10800", "many", 1),
	} {
		if u, err := memory.ParseStatus(text); err == nil {
			t.Errorf("%s: %+v, want an error", name, u)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(status)
	f.Add("VmRSS: 99999999999999999999 kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		if u, err := memory.ParseStatus(text); err == nil && (u.Resident < 0 || u.Own < 0 || u.Peak < 0) {
			t.Errorf("%q: %+v", text, u)
		}
	})
}

// TestKilled: a cgroup tells that the kernel has killed what was too large.
func TestKilled(t *testing.T) {
	const limit = 8 << 20
	c, err := memory.MakeCgroup(limit)
	if errors.Is(err, memory.ErrNoCgroup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	}()
	for _, step := range []struct {
		size  string
		kills int64
	}{{"1M", 0}, {"64M", 1}} {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `echo $$ >"$0" && exec dd if=/dev/zero of=/dev/null count=1 bs="$1"`, c.Procs, step.size)
		err := cmd.Run()
		kills, kerr := c.Kills()
		if kerr != nil || kills != step.kills || (err == nil) != (step.kills == 0) {
			t.Errorf("%s of %d bytes: %v; %d kills, %v; want %d", step.size, limit, err, kills, kerr, step.kills)
		}
	}
	if p := c.Peak(); p < 1<<20 || p > limit {
		t.Errorf("peak %d bytes, want 1 MB to %d", p, limit)
	}
}
