package sse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// answer is a ResponseWriter over one end of a net.Pipe: writing waits for the reader, and
// deadlines work, all within a synctest bubble.
type answer struct {
	net.Conn
	header http.Header
	status int
}

func (a *answer) Header() http.Header             { return a.header }
func (a *answer) WriteHeader(status int)          { a.status = status }
func (a *answer) Flush()                          {}
func (a *answer) SetReadDeadline(time.Time) error { return nil }
func (a *answer) Write(p []byte) (n int, err error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.Conn.Write(p)
}

// listener is one call of Serve in its own goroutine.
type listener struct {
	*Reader
	conn   net.Conn // what Serve writes comes out here
	cancel context.CancelFunc
	err    chan error // what Serve returned
}

func listen(t *testing.T, l Log, o Options, lastID string) *listener {
	t.Helper()
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "GET", "/events", nil)
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	li := &listener{NewReader(near), near, cancel, make(chan error, 1)}
	go func() {
		li.err <- Serve(&answer{Conn: far, header: http.Header{}}, r, l, o)
		far.Close()
	}()
	return li
}

func (l *listener) want(t *testing.T, evs ...Event) {
	t.Helper()
	for _, want := range evs {
		got, err := l.Next()
		if err != nil || got.ID != want.ID || got.Name != want.Name || string(got.Data) != string(want.Data) {
			t.Fatalf("event %q %q %q, %v, want %q %q %q", got.ID, got.Name, got.Data, err, want.ID, want.Name, want.Data)
		}
	}
}

func TestServe(t *testing.T) {
	gone := Event{Name: "reset", Data: []byte(`{"reason":"gone"}`)}
	for name, c := range map[string]struct {
		lastID string
		want   []Event
	}{
		"without an id only new events":            {"", []Event{numbered(6)}},
		"after a kept event":                       {"4", []Event{numbered(5), numbered(6)}},
		"after the newest":                         {"5", []Event{numbered(6)}},
		"after a dropped event: reset, all kept":   {"1", []Event{gone, numbered(3), numbered(4), numbered(5), numbered(6)}},
		"after an unknown event: reset, all kept":  {"no such event", []Event{gone, numbered(3), numbered(4), numbered(5), numbered(6)}},
		"after a text that is no id at all: reset": {"\xff\x01", []Event{gone, numbered(3), numbered(4), numbered(5), numbered(6)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ring := NewRing(3, 1<<20)
				for i := 1; i <= 5; i++ {
					ring.Append(numbered(i)) // 1 and 2 are dropped
				}
				li := listen(t, ring, Options{}, c.lastID)
				go func() {
					synctest.Wait()
					ring.Append(numbered(6))
				}()
				li.want(t, c.want...)
				if got, want := li.LastID(), "6"; got != want {
					t.Errorf("id to resume from = %q, want %q", got, want)
				}
				li.cancel()
				if err := <-li.err; err != nil {
					t.Errorf("Serve = %v, want nil: the client went", err)
				}
			})
		})
	}
}

// A listener knows where it stands from its first moment, even if the line breaks before any event.
func TestServeTellsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := NewRing(10, 1<<20)
		ring.Append(numbered(1))
		li := listen(t, ring, Options{}, "")
		go li.Next()
		synctest.Wait()
		if got := li.LastID(); got != "1" {
			t.Fatalf("id at the start = %q, want 1", got)
		}
		li.cancel()
		<-li.err
		ring.Append(numbered(2)) // while nobody listens
		again := listen(t, ring, Options{}, li.LastID())
		again.want(t, numbered(2))
		again.cancel()
		<-again.err
	})
}

func TestServeHeartbeatAndRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := NewRing(10, 1<<20)
		li := listen(t, ring, Options{}, "")
		defer func() { li.cancel(); <-li.err }()
		began := time.Now()
		lines := bufio.NewScanner(li.conn)
		var at []time.Duration
		lines.Scan()
		if retry, ok := strings.CutPrefix(lines.Text(), "retry: "); !ok || len(retry) != 4 {
			t.Errorf("first line = %q, want a retry of 1500 to 4499 ms", lines.Text())
		}
		go func() {
			time.Sleep(40 * time.Second)
			ring.Append(numbered(1)) // puts the heartbeat off
		}()
		for len(at) < 3 && lines.Scan() {
			if strings.HasPrefix(lines.Text(), ":") {
				at = append(at, time.Since(began))
			}
		}
		if got, want := fmt.Sprint(at), "[15s 30s 55s]"; got != want {
			t.Errorf("heartbeats at %s, want %s", got, want)
		}
	})
}

// A listener that reads nothing is dropped after WriteTimeout, and one that merely hears
// nothing is not.
func TestServeDropsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := NewRing(10, 1<<20)
		quiet := listen(t, ring, Options{Heartbeat: time.Hour}, "")
		slow := listen(t, ring, Options{}, "")
		go quiet.Next()
		if _, err := slow.conn.Read(make([]byte, 64)); err != nil { // the retry hint
			t.Fatal(err)
		}
		began := time.Now()
		ring.Append(numbered(1))
		if err := <-slow.err; !errors.Is(err, ErrSlow) {
			t.Errorf("Serve = %v, want ErrSlow", err)
		}
		if got := time.Since(began); got != DefaultWriteTimeout {
			t.Errorf("dropped after %v, want %v", got, DefaultWriteTimeout)
		}
		time.Sleep(time.Minute)
		select {
		case err := <-quiet.err:
			t.Errorf("the quiet listener was dropped: %v", err)
		default:
		}
		quiet.cancel()
		<-quiet.err
	})
}

// A listener that lags behind the log is told, gets the rest, and costs one batch of memory.
func TestServeLagged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := NewRing(5, 1<<20)
		li := listen(t, ring, Options{WriteTimeout: time.Hour}, "")
		defer func() { li.cancel(); <-li.err }()
		go li.Next() // takes the first event and then nothing
		synctest.Wait()
		ring.Append(numbered(1))
		synctest.Wait()
		ring.Append(numbered(2)) // Serve waits in Write with this one
		synctest.Wait()
		for i := 3; i <= 100; i++ {
			ring.Append(numbered(i))
		}
		lagged := Event{ID: "2", Name: "reset", Data: []byte(`{"reason":"lagged"}`)}
		li.want(t, numbered(2), lagged)
		for i := 96; i <= 100; i++ {
			li.want(t, numbered(i))
		}
	})
}

func TestServeDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring, done := NewRing(5, 1<<20), make(chan struct{})
		li := listen(t, ring, Options{Done: done}, "")
		go func() {
			synctest.Wait()
			ring.Append(numbered(1))
			synctest.Wait()
			close(done)
		}()
		li.want(t, numbered(1))
		if _, err := li.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("after Done: %v, want EOF", err)
		}
		if err := <-li.err; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
}

func TestServeMethodAndLimit(t *testing.T) {
	ring, limit := NewRing(5, 1<<20), NewLimiter(1)
	serve := func(method string, o Options) (*http.Response, error) {
		w := httptest.NewRecorder()
		err := Serve(w, httptest.NewRequestWithContext(t.Context(), method, "/", nil), ring, o)
		return w.Result(), err
	}
	if res, err := serve("POST", Options{}); res.StatusCode != 405 || res.Header.Get("Allow") == "" || err != nil {
		t.Errorf("POST: %d %v, %v, want 405 with Allow", res.StatusCode, res.Header, err)
	}
	if res, err := serve("HEAD", Options{}); res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" || err != nil {
		t.Errorf("HEAD: %d %v, %v", res.StatusCode, res.Header, err)
	}
	if !limit.acquire() {
		t.Fatal("the first listener was refused")
	}
	res, err := serve("GET", Options{Limiter: limit})
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != 503 || res.Header.Get("Retry-After") != "3" || !errors.Is(err, ErrTooMany) ||
		string(body) != `{"error":503,"message":"too many event listeners"}`+"\n" {
		t.Errorf("second listener: %d %v %s, %v", res.StatusCode, res.Header, body, err)
	}
	if limit.Listeners() != 1 || limit.Refused() != 1 {
		t.Errorf("listeners %d, refused %d, want 1, 1", limit.Listeners(), limit.Refused())
	}
	limit.release()
	done := make(chan struct{})
	close(done)
	if res, err := serve("GET", Options{Limiter: limit, Done: done}); res.StatusCode != 200 || err != nil || limit.Listeners() != 0 {
		t.Errorf("after release: %d, %v, %d listeners left, want 200 and 0", res.StatusCode, err, limit.Listeners())
	}
}

// The whole way through net/http: a client that is cut off again and again, over HTTP/1.1 and
// HTTP/2, and still sees each event once and in order.
func TestServeOverHTTP(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			const events = 600
			ring, done := NewRing(events, 1<<20), make(chan struct{})
			ring.Append(numbered(0))
			ended := make(chan error, 100)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ended <- Serve(w, r, ring, Options{Done: done})
			}))
			srv.EnableHTTP2 = proto == "HTTP/2.0"
			srv.Config.ReadTimeout = 5 * time.Second // must not end a stream, nor must this one:
			srv.Config.WriteTimeout = 5 * time.Second
			srv.StartTLS()
			defer srv.Close()

			connect := func(ctx context.Context, lastID string, query bool) (*http.Response, *Reader) {
				u := srv.URL
				if query {
					u += "?lastEventId=" + lastID
				}
				req, err := http.NewRequestWithContext(ctx, "GET", u, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !query {
					req.Header.Set("Last-Event-ID", lastID)
				}
				res, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				if res.Proto != proto || res.Header.Get("Content-Type") != "text/event-stream" ||
					res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("X-Accel-Buffering") != "no" {
					t.Fatalf("%s %v", res.Proto, res.Header)
				}
				return res, NewReader(res.Body)
			}
			go func() {
				for i := 1; i <= events-1; i++ {
					ring.Append(numbered(i))
				}
			}()
			next, lastID := 1, "0"
			for cut := 0; next < events; cut++ {
				ctx, cancel := context.WithCancel(t.Context())
				res, r := connect(ctx, lastID, cut%2 == 1)
				for range 97 {
					if next == events {
						break
					}
					e, err := r.Next()
					if err != nil || e.ID != fmt.Sprint(next) {
						t.Fatalf("event %q, %v, want %d", e.ID, err, next)
					}
					next++
				}
				lastID = r.LastID()
				cancel()
				res.Body.Close()
				if err := <-ended; err != nil {
					t.Errorf("Serve = %v, want nil when the client goes", err)
				}
			}
			res, r := connect(t.Context(), lastID, false)
			defer res.Body.Close()
			close(done)
			if _, err := r.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after Done: %v, want a clean end", err)
			}
		})
	}
}

// A client that stops reading is dropped whatever the protocol, once the kernel's buffers and
// the window of HTTP/2 are full.
func TestServeDropsSlowOverHTTP(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			ring, ended := NewRing(1<<10, 64<<20), make(chan error, 1)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ended <- Serve(w, r, ring, Options{WriteTimeout: 200 * time.Millisecond})
			}))
			srv.EnableHTTP2 = proto == "HTTP/2.0"
			srv.StartTLS()
			defer srv.Close()
			res, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			for i := range 1 << 10 { // 32 MiB, and nobody reads
				ring.Append(Event{ID: fmt.Sprint(i), Data: make([]byte, 32<<10)})
			}
			if err := <-ended; !errors.Is(err, ErrSlow) {
				t.Errorf("Serve = %v, want ErrSlow", err)
			}
		})
	}
}

// Silence longer than any deadline of the server or of a write does not end a stream.
func TestServeSilence(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			const deadline = 50 * time.Millisecond
			ring := NewRing(10, 1<<20)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = Serve(w, r, ring, Options{WriteTimeout: deadline})
			}))
			srv.EnableHTTP2 = proto == "HTTP/2.0"
			srv.Config.ReadTimeout, srv.Config.WriteTimeout = 4*deadline, 4*deadline
			srv.StartTLS()
			defer srv.Close()
			res, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.ProtoMajor == 1 && !res.Close {
				t.Error("the connection is to be used again, with the deadline of this stream")
			}
			r := NewReader(res.Body)
			for i := range 2 {
				time.Sleep(8 * deadline)
				ring.Append(numbered(i))
				if e, err := r.Next(); err != nil || e.ID != fmt.Sprint(i) {
					t.Fatalf("event %d = %q, %v", i, e.ID, err)
				}
			}
		})
	}
}
