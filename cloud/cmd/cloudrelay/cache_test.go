package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// A size that cannot be is told with its setting and with what may stand there.
func TestBadCacheSizes(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []string{"1KiB", "1023KiB", "0", "-1", "-1MiB", "lots", "1.5MiB", "10MiBs", "", "on", "99999999999999999999", "9999999999GiB"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		out, err := exec.CommandContext(ctx, path, "--listen", "127.0.0.1:0", "--metrics", "off", "--domain", "relay.example", "--tls", "off", "--state-dir", t.TempDir(), "--cache", size).CombinedOutput()
		cancel()
		code := -1
		if e, ok := err.(*exec.ExitError); ok {
			code = e.ExitCode()
		}
		if code != 2 || !strings.Contains(string(out), "--cache") || !strings.Contains(string(out), "want off, or a size of 1MiB or more") {
			t.Errorf("--cache %q: exit %d, %s\nwant 2, the setting and what is wanted", size, code, out)
		}
	}
}

// What --cache says holds in the program: nothing is stored, or as much as fits.
func TestCacheSetting(t *testing.T) {
	const length, paths = 50 << 10, 40 // more than a MiB together
	for _, c := range []struct {
		size string
		most int64 // bytes stored; 0: there is no cache
	}{{"off", 0}, {"1MiB", 1 << 20}, {"64MiB", 64 << 20}} {
		t.Run(c.size, func(t *testing.T) {
			dir := t.TempDir()
			_, token, _ := call("token", "--state-dir", dir)
			p := launch(t, dir, "--cache", c.size)
			d := newThing(t)
			var asked atomic.Int64
			d.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Header().Set("Cache-Control", "public, max-age=600")
				w.Write(make([]byte, length))
			})
			told := make(chan frame.Invalidated, 1)
			d.OnInvalidated = func(v frame.Invalidated) { told <- v }
			s, _ := d.dial(t, p)
			defer func() { s.Close(1000, "test over"); <-s.Done() }()
			if _, err := s.Invalidate(frame.Invalidate{Epoch: 7}); err != nil { // it tells of writes
				t.Fatal(err)
			}
			select {
			case <-told:
			case <-time.After(patience):
				t.Fatal("the relay does not say that it has heard of it")
			}
			get := func(path string) (*http.Response, []byte) {
				req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+p.addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("X-CloudREST-Token", strings.TrimSpace(token))
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return resp, body
			}
			hits := 0
			for i := range 2 * paths {
				resp, body := get(fmt.Sprintf("/d/%s/%d", d.ID, i%paths))
				status := resp.Header.Get("Cache-Status")
				if resp.StatusCode != 200 || len(body) != length {
					t.Fatalf("GET %d: %d with %d bytes", i, resp.StatusCode, len(body))
				}
				if strings.Contains(status, "; hit") {
					hits++
				}
				if (status == "") != (c.most == 0) {
					t.Fatalf("GET %d: Cache-Status %q", i, status)
				}
			}
			resp, body := get("/v1/devices/" + string(d.ID) + "/cache")
			if c.most == 0 {
				if resp.StatusCode != 404 || hits != 0 || asked.Load() != 2*paths {
					t.Errorf("the list: %d, %d hits, the device was asked %d times, want 404, none and %d", resp.StatusCode, hits, asked.Load(), 2*paths)
				}
				return
			}
			var list struct{ Stored []struct{ Bytes int64 } }
			if err := json.Unmarshal(body, &list); err != nil {
				t.Fatal(err)
			}
			var sum int64
			for _, e := range list.Stored {
				sum += e.Bytes
			}
			// Read in turn, what does not fit altogether gives no hit at all.
			all := c.most > paths*length
			if sum > c.most || sum < min(c.most*9/10, paths*length) || (hits > 0) != all {
				t.Errorf("%d answers of %d bytes are stored, %d hits, the device was asked %d times: want at most %d bytes, and hits only where all fit",
					len(list.Stored), sum, hits, asked.Load(), c.most)
			}
		})
	}
}
