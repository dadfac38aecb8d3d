package relay

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// counting is a device that counts what it is asked.
func counting(t *testing.T, r *running) (d *thing, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	d = newThing(t, "Counter", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
		if strings.HasPrefix(req.RequestURI, "/mine") {
			w.Header().Set("Cache-Control", "private, max-age=60")
		}
		fmt.Fprintf(w, "%d", asked.Add(1))
	})
	s := d.connect(r)
	if _, err := s.Invalidate(frame.Invalidate{Epoch: 9}); err != nil {
		t.Fatal(err)
	}
	r.until("the device has said that it tells of writes", func() bool { return r.node.Lease(t.Context(), d.ID) })
	return d, asked
}

func TestStoredAnswers(t *testing.T) {
	r := start(t, nil)
	d, asked := counting(t, r)
	want := func(what, path, token string, body string, n int64) {
		t.Helper()
		resp, err := r.do("GET", d.path(path), "", func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+token) })
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if string(b) != body || asked.Load() != n || len(resp.Header.Get("X-Cloudrest-Id")) != 36 {
			t.Errorf("%s: %q with %v, the device was asked %d times, want %q and %d", what, b, resp.Header, asked.Load(), body, n)
		}
	}
	second, err := NewToken(r.dir, "second")
	if err != nil {
		t.Fatal(err)
	}
	want("first", "/a?x", r.token, "1", 1)
	want("again", "/a?x", r.token, "1", 1)
	want("another user, an answer for everybody", "/a?x", second, "1", 1)
	want("for one user", "/mine", r.token, "2", 2)
	want("for one user, again", "/mine", r.token, "2", 2)
	want("for one user, another user", "/mine", second, "3", 3)
	want("what the gateway serves itself", "/.cloudrest/v1/status", r.token, "4", 4)
	want("what the gateway serves itself, again", "/.cloudrest/v1/status", r.token, "5", 5)

	var list struct {
		Stored []struct {
			Path, User string
			Fresh      float64
		}
	}
	api := "/v1/devices/" + string(d.ID) + "/cache"
	_, body := r.get(api)
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Stored) != 3 || list.Stored[0].Path != "/mine" || list.Stored[0].User != "second" || list.Stored[0].Fresh < 1 {
		t.Errorf("%v: %s, want three answers, the last used first", err, body)
	}
	if _, b := r.get("/v1/devices/list"); !strings.Contains(b, string(d.ID)) {
		t.Errorf("list: %s", b)
	}
	resp, err := r.do("DELETE", api, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.Contains(string(b), `"purged":3`) {
		t.Errorf("purge: %d %s, want 3 purged", resp.StatusCode, b)
	}
	want("after the purge", "/a?x", r.token, "6", 6)

	// A write over the relay itself.
	if resp, err := r.do("PUT", d.path("/a"), "x", nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	want("after a write", "/a?x", r.token, "8", 8)

	metrics, err := http.Get("http://" + r.Addrs().Metrics.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer metrics.Body.Close()
	text, _ := io.ReadAll(metrics.Body)
	for _, line := range []string{`cache_requests_total{result="hit"} 3`, "cache_saved_bytes_total 3", "cache_entries 1"} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("metrics lack %s", line)
		}
	}
}

func TestStoredAnswersAndConnections(t *testing.T) {
	r := start(t, nil)
	d, asked := counting(t, r)
	get := func(want int64, what string) {
		t.Helper()
		if status, b := r.get(d.path("/a")); status != 200 || asked.Load() != want {
			t.Errorf("%s: %d %q, the device was asked %d times, want %d", what, status, b, asked.Load(), want)
		}
	}
	get(1, "first")
	get(1, "stored")
	for _, tc := range []struct {
		what string
		tell *frame.Invalidate
		want int64
	}{
		{"nothing was missed", &frame.Invalidate{Epoch: 9}, 1},
		{"a write was missed", &frame.Invalidate{Epoch: 9, Seq: 1}, 2},
		{"the daemon is new", &frame.Invalidate{Epoch: 10, Seq: 1}, 3},
		{"it does not tell", nil, 4},
	} {
		s := d.connect(r)
		if tc.tell != nil {
			if _, err := s.Invalidate(*tc.tell); err != nil {
				t.Fatal(err)
			}
			r.until("it is told", func() bool { return r.node.Lease(t.Context(), d.ID) })
		}
		get(tc.want, tc.what)
	}
	s := d.connect(r)
	s.Invalidate(frame.Invalidate{Epoch: 10, Seq: 1})
	r.until("it is told", func() bool { return r.node.Lease(t.Context(), d.ID) })
	get(4, "nothing was missed meanwhile")
	s.Close(1000, "")
	<-s.Done()
	r.until("the device is offline", func() bool { status, _ := r.get(d.path("/a")); return status == http.StatusServiceUnavailable })
	get2, _ := r.get(d.path("/a"))
	if get2 != http.StatusServiceUnavailable {
		t.Errorf("while the device is offline: %d, want 503", get2)
	}
	s = d.connect(r)
	s.Invalidate(frame.Invalidate{Epoch: 10, Seq: 1})
	r.until("it is told", func() bool { return r.node.Lease(t.Context(), d.ID) })
	get(4, "nothing was missed while it was offline")
}

// What is stored of a device that is no more, or that is another one now, goes at once: also what
// could otherwise be given out while it is offline.
func TestStoredAnswersOfAnotherDevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		enroll string
		change func(r *running, d *thing) error
	}{
		{"nothing", EnrollFirstUse, nil},
		{"revoked", EnrollFirstUse, func(r *running, d *thing) error { _, err := RevokeDevice(r.dir, d.ID); return err }},
		{"taken off the list", EnrollList, func(r *running, d *thing) error { return RemoveDevice(r.dir, d.ID) }},
		{"rekeyed", EnrollFirstUse, func(r *running, d *thing) error { return RekeyDevice(r.dir, d.ID) }},
		{"listed with another key", EnrollList, func(r *running, d *thing) error {
			return AddDevice(r.dir, d.ID, derOf(r.t, newThing(r.t, "Garden", nil)))
		}},
		{"factory reset", EnrollFirstUse, func(r *running, d *thing) error {
			d.Generation = func() uint32 { return 2 }
			s := d.connect(r)
			s.Close(1000, "")
			<-s.Done()
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, func(cfg *Config) { cfg.Enroll = c.enroll })
			d := newThing(t, "Garden", func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60, stale-if-error=3600")
				fmt.Fprint(w, "the owner's")
			})
			d.Generation = func() uint32 { return 1 }
			if c.enroll == EnrollList {
				if err := AddDevice(r.dir, d.ID, derOf(t, d)); err != nil {
					t.Fatal(err)
				}
			}
			var s *mux.Session
			r.until("the device is in", func() (ok bool) {
				var err error
				s, _, err = d.dial(r)
				return err == nil
			})
			r.until("it answers", func() bool { status, _ := r.get(d.path("/x")); return status == 200 })
			s.Close(1000, "")
			<-s.Done()
			offline := func() (int, string) { return r.get(d.path("/x")) }
			r.until("the relay answers for it", func() bool { status, body := offline(); return status == 200 && body == "the owner's" })
			if c.change == nil {
				return
			}
			if err := c.change(r, d); err != nil {
				t.Fatal(err)
			}
			r.until("its answers are gone", func() bool { return len(r.cache.Entries(d.ID, 9)) == 0 })
			r.until("the relay has nothing to say", func() bool { status, _ := offline(); return status != 200 })
		})
	}
}

func derOf(t *testing.T, d *thing) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(d.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(der))
}

// A new token with the name of one that was revoked is somebody else's.
func TestStoredAnswersOfAnotherToken(t *testing.T) {
	r := start(t, nil)
	d, asked := counting(t, r)
	mine := func() string {
		token, err := NewToken(r.dir, "phone")
		if err != nil {
			t.Fatal(err)
		}
		defer RevokeToken(r.dir, "phone")
		var b []byte
		for range 2 {
			resp, err := r.do("GET", d.path("/mine"), "", func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+token) })
			if err != nil {
				t.Fatal(err)
			}
			b, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		return string(b)
	}
	if first, second := mine(), mine(); first == second || asked.Load() < 2 {
		t.Errorf("the first phone got %q, the second %q, the device was asked %d times, want another answer and 2", first, second, asked.Load())
	}
	if list := r.cache.Entries(d.ID, 9); len(list) != 2 || list[0].Principal != "phone" {
		t.Errorf("%+v, want two answers for a phone", list)
	}
}

func TestCacheOff(t *testing.T) {
	r := start(t, func(c *Config) { c.Cache = -1 })
	asked := 0
	d := newThing(t, "d", func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Cache-Control", "max-age=60")
	})
	s := d.connect(r)
	if _, err := s.Invalidate(frame.Invalidate{Epoch: 9, Seq: 1, Flags: frame.FlagAll}); err != nil {
		t.Fatal(err)
	}
	r.get(d.path("/"))
	r.get(d.path("/"))
	if status, _ := r.get("/v1/devices/" + string(d.ID) + "/cache"); status != 404 || asked != 2 {
		t.Errorf("cache off: %d, asked %d times, want 404 and 2", status, asked)
	}
}
