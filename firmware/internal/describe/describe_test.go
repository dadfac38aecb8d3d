package describe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

// service is a maker's service that can be switched off.
type service struct {
	mu      sync.Mutex
	up      bool
	handler http.HandlerFunc
	asked   []time.Duration // since the start, also when down
	start   time.Time
	inside  int
	most    int
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	h := s.handler
	s.inside++
	s.most = max(s.most, s.inside)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.inside--
		s.mu.Unlock()
	}()
	h(w, r)
}

func (s *service) set(up bool, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.handler, s.asked, s.start = up, h, nil, time.Now()
}

func (s *service) times() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Trim(fmt.Sprint(s.asked), "[]")
}

// Do is the watcher's Origin.
type asker struct {
	*service
	c *origin.Client
}

func (a asker) Do(ctx context.Context, q *origin.Request) (*origin.Response, error) {
	a.mu.Lock()
	up := a.up
	a.asked = append(a.asked, time.Since(a.start))
	a.mu.Unlock()
	if !up {
		return nil, fmt.Errorf("%w: %w", origin.ErrUnreachable, &net.OpError{Op: "dial", Err: errors.New("refused")})
	}
	return a.c.Do(ctx, q)
}

func run(t *testing.T, test func(t *testing.T, s *service, w *Watcher, log *bytes.Buffer)) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{start: time.Now()}
		c, err := origin.New(origin.Config{Handler: s})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var log bytes.Buffer
		w, err := New(Config{Origin: asker{s, c}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		test(t, s, w, &log)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

func answer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestWaitsForTheService(t *testing.T) {
	run(t, func(t *testing.T, s *service, w *Watcher, log *bytes.Buffer) {
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got, want := s.times(), "0s 250ms 750ms 1.75s 3.75s 7.75s 12.75s 17.75s"; got != want {
			t.Errorf("asked at %s, want %s", got, want)
		}
		if _, ok := w.Current(); ok {
			t.Error("a descriptor from nowhere")
		}
		if n := strings.Count(log.String(), "waiting for the service"); n != 1 {
			t.Errorf("said %d times that it waits, want once:\n%s", n, log)
		}
		changed := w.Changed()
		s.set(true, answer(`{"name":"Garden","version":"1","color":"green"}`))
		time.Sleep(LongestRetry)
		synctest.Wait()
		d, ok := w.Current()
		if !ok || d.Name != "Garden" || string(d.Raw) != `{"name":"Garden","version":"1","color":"green"}` {
			t.Errorf("descriptor = %+v, %v", d, ok)
		}
		if !closed(changed) || closed(w.Changed()) {
			t.Error("Changed is not closed exactly once")
		}
		if !strings.Contains(log.String(), "can be read again") {
			t.Errorf("the end of the failure is not in the log:\n%s", log)
		}
		// When it goes away again, the descriptor stays and the patience begins anew.
		s.set(false, nil)
		time.Sleep(Refresh + time.Second)
		synctest.Wait()
		if d, ok := w.Current(); !ok || d.Name != "Garden" {
			t.Errorf("after the service went away: %+v, %v", d, ok)
		}
	})
}

func TestConditional(t *testing.T) {
	run(t, func(t *testing.T, s *service, w *Watcher, log *bytes.Buffer) {
		var mu sync.Mutex
		version, seen := "1", ""
		s.set(true, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			etag := `"` + version + `"`
			seen = r.Header.Get("If-None-Match") + " " + r.Header.Get("If-Modified-Since")
			w.Header().Set("Etag", etag)
			w.Header().Set("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
			if r.Header.Get("If-None-Match") == etag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			fmt.Fprintf(w, `{"name":"Garden","version":%s}`, version) // a number: one warning
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		if want := `"1" Sun, 22 Nov 2026 10:00:00 GMT`; seen != want {
			t.Errorf("validators = %q, want %q", seen, want)
		}
		mu.Unlock()
		if n := strings.Count(log.String(), "has mistakes"); n != 1 {
			t.Errorf("warned %d times, want once:\n%s", n, log)
		}
		changed := w.Changed()
		mu.Lock()
		version = "2"
		mu.Unlock()
		time.Sleep(Refresh)
		synctest.Wait()
		if d, _ := w.Current(); d.Version != "2" || !closed(changed) {
			t.Errorf("after the change: %+v, changed %v", d, closed(changed))
		}
		if n := strings.Count(log.String(), "has mistakes"); n != 2 {
			t.Errorf("warned %d times, want once per change:\n%s", n, log)
		}
	})
}

func TestSameBodyIsNoChange(t *testing.T) {
	run(t, func(t *testing.T, s *service, w *Watcher, _ *bytes.Buffer) {
		s.set(true, answer(`{"name":"Garden"}`))
		time.Sleep(time.Second)
		synctest.Wait()
		changed := w.Changed()
		time.Sleep(time.Minute)
		synctest.Wait()
		if closed(changed) {
			t.Error("the same body counts as a change")
		}
	})
}

func TestNoDescriptor(t *testing.T) {
	run(t, func(t *testing.T, s *service, w *Watcher, log *bytes.Buffer) {
		s.set(true, http.NotFound)
		time.Sleep(2*RetryNone + time.Second)
		synctest.Wait()
		if got, want := s.times(), "250ms 30.25s 1m0.25s"; got != want && got != "0s 30s 1m0s" {
			t.Errorf("asked at %s, want every %v", got, RetryNone)
		}
		if n := strings.Count(log.String(), "no GET /device"); n != 1 {
			t.Errorf("warned %d times, want once:\n%s", n, log)
		}
	})
}

func TestBadAnswers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"not JSON": answer("<html>"),
		"too long": answer(`{"name":"` + strings.Repeat("x", tether.MaxDescriptor) + `"}`),
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		},
		"status":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"unasked 304": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		"silent":      func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"panic":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, s *service, w *Watcher, log *bytes.Buffer) {
				s.set(true, h)
				time.Sleep(time.Minute)
				synctest.Wait()
				if d, ok := w.Current(); ok {
					t.Errorf("descriptor = %+v", d)
				}
				if n := strings.Count(log.String(), "\n"); n == 0 || n > 2 {
					t.Errorf("%d lines of log, want one for each kind of failure:\n%s", n, log)
				}
				s.set(true, answer(`{"name":"Garden"}`))
				time.Sleep(askTimeout + LongestRetry)
				synctest.Wait()
				if d, ok := w.Current(); !ok || d.Name != "Garden" {
					t.Errorf("afterwards: %+v, %v", d, ok)
				}
				if s.most > 1 {
					t.Errorf("%d readings at once, want one", s.most)
				}
			})
		})
	}
}
