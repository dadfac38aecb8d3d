package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

func TestAnswerForms(t *testing.T) {
	long := strings.Repeat("0123456789", 20_000)
	answers := map[string]string{
		"/none":    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"/204":     "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
		"/304":     "HTTP/1.1 304 Not Modified\r\nEtag: \"1\"\r\n\r\n",
		"/length":  fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long),
		"/chunked": fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long),
		"/close":   "HTTP/1.1 200 OK\r\n\r\n" + long,
		"/1.0":     "HTTP/1.0 200 OK\r\nServer: tiny\r\n\r\n" + long,
		"/404":     "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nContent-Type: text/x\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n\r\nnone",
		"/head":    "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
		"/html":    "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
	}
	o := script(t, func(c net.Conn, r *bufio.Reader) {
		for {
			h := readHead(r)
			if h == "" {
				return
			}
			path := strings.Fields(h)[1]
			io.WriteString(c, answers[path])
			if path == "/close" || path == "/1.0" {
				return
			}
		}
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		for _, c := range []struct {
			method, path string
			status       int
			length       int64
			body         string
		}{
			{"GET", "/none", 200, 0, ""}, {"GET", "/204", 204, 0, ""}, {"GET", "/304", 304, 0, ""},
			{"GET", "/length", 200, int64(len(long)), long}, {"GET", "/chunked", 200, -1, long},
			{"GET", "/close", 200, -1, long}, {"GET", "/1.0", 200, -1, long}, {"GET", "/404", 404, 4, "none"},
			{"HEAD", "/head", 200, 7, ""}, {"GET", "/html", 200, 6, "<html>"},
		} {
			resp, body := do(t, f.c, c.method, f.URL+c.path, nil)
			if length := resp.ContentLength; resp.StatusCode != c.status || body != c.body || length != c.length && c.status == 200 {
				t.Errorf("%s: %d, length %d, %d bytes, want %d, %d, %d bytes", c.path, resp.StatusCode, length, len(body), c.status, c.length, len(c.body))
			}
			want := ""
			if c.path == "/404" {
				want = "text/x"
				if d := resp.Header.Get("Date"); d != "Sun, 22 Nov 2026 10:00:00 GMT" {
					t.Errorf("Date = %q, want the origin's", d)
				}
			}
			if got := resp.Header.Get("Content-Type"); got != want {
				t.Errorf("%s: Content-Type = %q, want %q: the type is the origin's to tell", c.path, got, want)
			}
		}
	})
}

// TestCutShort: half an answer never looks like a whole one (RFC 9112 §8).
func TestCutShort(t *testing.T) {
	o := script(t, func(c net.Conn, r *bufio.Reader) {
		h := readHead(r)
		switch {
		case strings.HasPrefix(h, "GET /length"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		case strings.HasPrefix(h, "GET /chunked"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		case strings.HasPrefix(h, "GET /syntax"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n")
		case strings.HasPrefix(h, "GET /long"):
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"+strings.Repeat("x", 200_000))
		}
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		for _, path := range []string{"/length", "/chunked", "/syntax", "/long"} {
			resp, err := f.c.Get(f.URL + path)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if err == nil {
				t.Errorf("%s: a clean end", path)
			}
		}
	})
}

// TestEvents: each event arrives while the next one has not been sent, the slot is free
// for others, and streams have their own bound.
func TestEvents(t *testing.T) {
	next := make(chan string)
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/events" {
			io.WriteString(w, "ok")
			return
		}
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.(http.Flusher).Flush()
		for {
			select {
			case s := <-next:
				io.WriteString(w, s)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	opts := []option{func(_ *Config, c *origin.Config, a *admit.Config) {
		a.Concurrency, a.Streams = 1, 1
		c.BodyTimeout = 30 * time.Millisecond // not for events
	}}
	each(t, o, opts, func(t *testing.T, f *front) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", f.URL+"/events", nil)
		resp, err := f.c.Do(req) // returns although there is no event yet
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 3 {
			want := fmt.Sprintf("data: %d\n\n", i)
			next <- want
			b := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != want {
				t.Fatalf("event %d: %q, %v", i, b, err)
			}
			time.Sleep(40 * time.Millisecond)
		}
		if _, body := get(t, f, "/other"); body != "ok" {
			t.Errorf("beside the stream: %q", body)
		}
		if s := f.gate.Stats(); s.Streams != 1 || s.InOrigin != 0 {
			t.Errorf("places: %+v, want one stream", s)
		}
		if resp, _ := get(t, f, "/events"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("second stream: %d, want 503 with Retry-After", resp.StatusCode)
		}
		cancel()
		until(t, "the stream's place is given back", func() bool { return f.gate.Stats().Streams == 0 })
		resp, err = f.c.Get(f.URL + "/events")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("stream after the first has ended: %v, %v", resp, err)
		}
		f.proxy.Close()
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("Close: the stream ends as if complete")
		}
		resp.Body.Close()
		if _, body := get(t, f, "/other"); body != "ok" {
			t.Errorf("after Close ordinary requests go on, got %q", body)
		}
	})
}

// TestPrompt: bodies of unknown length are not held back.
func TestPrompt(t *testing.T) {
	next := make(chan struct{})
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprint(w, strings.Repeat("x", i))
			w.(http.Flusher).Flush()
			<-next
		}
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		resp, err := f.c.Get(f.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 3 {
			if _, err := io.ReadFull(resp.Body, make([]byte, i)); err != nil {
				t.Fatal(err)
			}
			next <- struct{}{}
		}
	})
}

func TestWebSocket(t *testing.T) {
	up := websocket.Upgrader{Subprotocols: []string{"chat"}}
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if r.URL.Path != "/ws" {
			return
		}
		c, err := up.Upgrade(w, r, http.Header{"X-Origin": {"1"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for {
			k, b, err := c.ReadMessage()
			if err != nil {
				return
			}
			if err := c.WriteMessage(k, b); err != nil {
				return
			}
		}
	})
	for _, kind := range []string{"http1", "nethttp"} {
		t.Run(kind, func(t *testing.T) {
			f := newFront(t, kind, o, func(_ *Config, _ *origin.Config, a *admit.Config) { a.Concurrency, a.Streams = 1, 2 })
			d := websocket.Dialer{TLSClientConfig: f.tls(), Subprotocols: []string{"chat"}}
			url := "wss" + strings.TrimPrefix(f.URL, "https")
			c, resp, err := d.Dial(url+"/ws", nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Header.Get("X-Origin") != "1" || c.Subprotocol() != "chat" || !isUUID(resp.Header.Get(tether.HeaderID)) {
				t.Errorf("head = %v", resp.Header)
			}
			for _, n := range []int{0, 1, 125, 126, 70_000, 1 << 20} {
				msg := strings.Repeat("x", n)
				sent := make(chan error)
				go func() { sent <- c.WriteMessage(websocket.BinaryMessage, []byte(msg)) }()
				if _, b, err := c.ReadMessage(); err != nil || string(b) != msg {
					t.Fatalf("%d bytes: %d back, %v", n, len(b), err)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
			if resp, _ := get(t, f, "/other"); resp.StatusCode != 200 {
				t.Errorf("beside the WebSocket: %d", resp.StatusCode)
			}
			if _, resp, err := d.Dial(url+"/no", nil); err == nil || resp.StatusCode != 403 {
				t.Errorf("refused by the origin: %v, %v", resp, err)
			}
			second, _, err := d.Dial(url+"/ws", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, resp, err := d.Dial(url+"/ws", nil); err == nil || resp.StatusCode != 503 {
				t.Errorf("third: %v, %v, want 503", resp, err)
			}
			_ = second.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
			if _, _, err := second.ReadMessage(); !websocket.IsCloseError(err, 1000) {
				t.Errorf("close handshake: %v", err)
			}
			second.Close()
			until(t, "the place is given back", func() bool { return f.gate.Stats().Streams == 1 })
			f.proxy.Close()
			if _, _, err := c.ReadMessage(); err == nil {
				t.Error("Close left the WebSocket open")
			}
			c.Close()
		})
	}
}

func TestInformational(t *testing.T) {
	o := script(t, func(c net.Conn, r *bufio.Reader) {
		for readHead(r) != "" {
			io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		var mu sync.Mutex
		var got []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprint(code, h["Link"], h["X"]))
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, "GET", f.URL, nil)
		resp, err := f.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"102 [] []", "103 [</a>] []"}; !slices.Equal(got, want) || string(b) != "ok" || resp.Header.Get("Link") != "" {
			t.Errorf("informed of %q, want %q; then %v %q", got, want, resp.Header, b)
		}
	})
}

func TestTrailers(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Announced")
		fmt.Fprintf(w, "%v", r.Trailer)
		w.(http.Flusher).Flush()
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Other", "2")
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		body, feed := io.Pipe()
		req, _ := http.NewRequest("POST", f.URL, body)
		req.Trailer = http.Header{"X-Sum": nil}
		go func() {
			io.WriteString(feed, "hello")
			req.Trailer.Set("X-Sum", "42")
			feed.Close()
		}()
		resp, err := f.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "map[X-Sum:[42]]" {
			t.Errorf("inbound: %q, %v", b, err)
		}
		if resp.Trailer.Get("X-Announced") != "1" || resp.Trailer.Get("X-Other") != "2" || len(resp.Trailer) != 2 {
			t.Errorf("outbound: %v", resp.Trailer)
		}
	})
}

func TestExpectContinue(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		for path, want := range map[string]int{"/yes": 200, "/no": 417} {
			var read atomic.Bool
			body := io.MultiReader(readFunc(func() { read.Store(true) }), strings.NewReader("hello"))
			req, _ := http.NewRequest("PUT", f.URL+path, body)
			req.ContentLength = 5
			req.Header.Set("Expect", "100-continue")
			resp, err := f.c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want || want == 200 && string(b) != "hello" {
				t.Errorf("%s: %d %q", path, resp.StatusCode, b)
			}
			// Go's HTTP/2 client sends on at its timeout whatever the answer was.
			if !f.h2 && read.Load() != (want == 200) {
				t.Errorf("%s: body was asked for: %v", path, read.Load())
			}
		}
	})
}

type readFunc func()

func (f readFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

// TestEarlyAnswer: an origin that answers 413 without reading a long upload.
func TestEarlyAnswer(t *testing.T) {
	o := script(t, func(c net.Conn, r *bufio.Reader) {
		if readHead(r) == "" {
			return
		}
		io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
		io.CopyN(io.Discard, r, 1<<20)
	})
	early := func(t *testing.T, f *front) {
		for _, length := range []int64{-1, 64 << 20} {
			body := &counted{left: 64 << 20}
			req, _ := http.NewRequest("PUT", f.URL, body)
			req.ContentLength = length
			resp, err := f.c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 413 || string(b) != "big" {
				t.Errorf("%d %q", resp.StatusCode, b)
			}
			if n := body.n.Load(); n > 48<<20 {
				t.Errorf("%d bytes were sent for nothing", n)
			}
		}
		if resp, _ := do(t, f.c, "PUT", f.URL, strings.NewReader("x")); resp.StatusCode != 413 {
			t.Errorf("next request: %d", resp.StatusCode)
		}
	}
	// Not behind net/http's HTTP/1: it closes while the client still sends, whose answer may
	// then be lost to a reset. It is not what the gateway runs.
	for _, kind := range []string{"http1", "h2"} {
		t.Run(kind, func(t *testing.T) { early(t, newFront(t, kind, o)) })
	}
}

// counted is a body of left bytes that counts what is taken.
type counted struct {
	left int64
	n    atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	left := c.left - c.n.Load()
	if left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), left)
	c.n.Add(n)
	return int(n), nil
}

func TestFullDuplex(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		b := make([]byte, 100)
		for {
			n, err := r.Body.Read(b)
			w.Write(b[:n])
			rc.Flush()
			if err != nil {
				return
			}
		}
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		body, feed := io.Pipe()
		req, _ := http.NewRequest("POST", f.URL, body)
		resp, err := f.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 10 {
			want := fmt.Sprint("ping ", i)
			io.WriteString(feed, want)
			b := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != want {
				t.Fatalf("round %d: %q, %v", i, b, err)
			}
		}
		feed.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 0 {
			t.Errorf("end: %q, %v", b, err)
		}
	})
}

// TestLargeBodies: memory does not grow with bodies.
func TestLargeBodies(t *testing.T) {
	const size = 96 << 20
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			io.Copy(w, &counted{left: size})
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		get(t, f, "/?warm") // connections, buffers
		var before, during runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		req, _ := http.NewRequest("PUT", f.URL, &counted{left: size})
		resp, err := f.c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprint(size, nil); string(b) != want {
			t.Errorf("upload: %q, want %q", b, want)
		}
		resp, err = f.c.Get(f.URL)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != size || err != nil {
			t.Errorf("download: %d bytes, %v", n, err)
		}
		runtime.ReadMemStats(&during)
		// Client, gateway and origin are all in this process; none of them keeps a body.
		if grown := int64(during.Sys) - int64(before.Sys); grown > 32<<20 {
			t.Errorf("memory grew by %d MB", grown>>20)
		}
	})
}

func TestMaxBody(t *testing.T) {
	var got atomic.Int64
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		got.Add(n)
		if err == nil {
			fmt.Fprint(w, n)
		}
	})
	opts := []option{func(c *Config, _ *origin.Config, _ *admit.Config) { c.MaxBody = 1 << 20 }}
	each(t, o, opts, func(t *testing.T, f *front) {
		got.Store(0)
		req := func(n int64, known bool) (int, string) {
			r, _ := http.NewRequest("PUT", f.URL, &counted{left: n})
			if known {
				r.ContentLength = n
			}
			resp, err := f.c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			return resp.StatusCode, string(b)
		}
		if s, b := req(1<<20, false); s != 200 || b != "1048576" {
			t.Errorf("at the limit: %d %q", s, b)
		}
		got.Store(0)
		if s, _ := req(1<<20+1, true); s != 413 || got.Load() != 0 {
			t.Errorf("over the limit: %d, %d bytes reached the origin, want 413 and none", s, got.Load())
		}
		if s, _ := req(1<<20+1, false); s != 413 {
			t.Errorf("over the limit, length unknown: %d, want 413", s)
		}
	})
}

// TestSlowClients: a client that neither sends nor reads is given up, and its place with it.
func TestSlowClients(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			io.Copy(w, &counted{left: 64 << 20})
			return
		}
		io.Copy(io.Discard, r.Body)
	})
	opts := []option{concurrency(1), func(c *Config, _ *origin.Config, _ *admit.Config) { c.ClientTimeout = 100 * time.Millisecond }}
	for _, kind := range []string{"http1", "nethttp"} {
		t.Run(kind, func(t *testing.T) {
			f := newFront(t, kind, o, opts...)
			for name, head := range map[string]string{
				"small body":   "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
				"long body":    "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc",
				"chunked body": "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
			} {
				c := f.raw(t)
				io.WriteString(c, head)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 408 || !resp.Close {
					t.Errorf("%s: %v, %v, want 408 and the connection's end", name, resp, err)
				}
			}
			c := f.raw(t)
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			until(t, "the answer has begun", func() bool { s := f.gate.Stats(); return s.InOrigin+s.Streams == 1 })
			until(t, "the reader that does not read is given up", func() bool { s := f.gate.Stats(); return s.InOrigin+s.Streams == 0 })
		})
	}
}

// TestBodyRate is about a client that sends just enough to look alive.
func TestBodyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config{Origin: &asked{}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			every time.Duration
			ok    bool
		}{{time.Second / 500, true}, {time.Second / 100, false}} {
			body, feed := io.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() {
				for range 60 * int(time.Second/c.every) {
					time.Sleep(c.every)
					if _, err := feed.Write([]byte("x")); err != nil {
						return
					}
				}
				feed.Close()
			})
			x := &exchange{p: p, w: httptest.NewRecorder(), r: httptest.NewRequest("PUT", "/", body)}
			x.body = &clientBody{x: x, start: now()}
			start := time.Now()
			_, err := io.Copy(io.Discard, x.body)
			body.Close()
			wg.Wait()
			if c.ok && err != nil || !c.ok && !errors.Is(err, errTooSlow) {
				t.Errorf("one byte every %v: %v", c.every, err)
			}
			if !c.ok && time.Since(start) > 2*rateGrace {
				t.Errorf("given up after %v only", time.Since(start))
			}
		}
	})
}

// TestClientGone: the origin hears at once that nobody waits any more, and does not take
// half an upload for a whole one.
func TestClientGone(t *testing.T) {
	type end struct {
		path string
		body int64
		err  error
	}
	ends := make(chan end, 10)
	begun := make(chan struct{}, 10)
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		if r.Method == "PUT" {
			n, err := io.Copy(io.Discard, r.Body)
			ends <- end{r.URL.Path, n, err}
			return
		}
		if r.URL.Path == "/body" {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		ends <- end{r.URL.Path, 0, r.Context().Err()}
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		for _, c := range []struct{ method, path string }{{"GET", "/head"}, {"GET", "/body"}, {"PUT", "/upload"}} {
			ctx, cancel := context.WithCancel(t.Context())
			body, feed := io.Pipe()
			var in io.Reader
			if c.method == "PUT" {
				in = body
			}
			req, _ := http.NewRequestWithContext(ctx, c.method, f.URL+c.path, in)
			done := make(chan struct{})
			go func() {
				defer close(done)
				if resp, err := f.c.Do(req); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}()
			if c.method == "PUT" {
				io.WriteString(feed, "hello")
			}
			<-begun
			cancel()
			select {
			case e := <-ends:
				if e.path != c.path || e.err == nil {
					t.Errorf("%s: the origin saw %+v, want an error", c.path, e)
				}
			case <-time.After(10 * time.Second):
				t.Errorf("%s: the origin never hears of it", c.path)
			}
			feed.Close()
			<-done
		}
		until(t, "all places are free", func() bool { s := f.gate.Stats(); return s.InOrigin+s.Streams == 0 })
	})
}

// TestLasting: a long download or upload does not keep a slot; a long think does.
func TestLasting(t *testing.T) {
	release := make(chan struct{})
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/down":
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			<-release
		case "/up":
			io.Copy(io.Discard, r.Body)
		case "/think":
			<-release
		}
	})
	opts := []option{concurrency(1), func(c *Config, _ *origin.Config, _ *admit.Config) { c.StreamAfter = 20 * time.Millisecond }}
	f := newFront(t, "http1", o, opts...)
	var wg sync.WaitGroup
	start := func(method, path string, body io.Reader) {
		wg.Go(func() {
			req, _ := http.NewRequest(method, f.URL+path, body)
			resp, err := f.c.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		})
	}
	body, feed := io.Pipe()
	start("GET", "/down", nil)
	until(t, "the download counts as a stream", func() bool { s := f.gate.Stats(); return s.Streams == 1 && s.InOrigin == 0 })
	start("PUT", "/up", body)
	io.WriteString(feed, "x")
	until(t, "the upload counts as a stream", func() bool { s := f.gate.Stats(); return s.Streams == 2 && s.InOrigin == 0 })
	start("GET", "/think", nil)
	until(t, "the third is in the origin", func() bool { return f.gate.Stats().InOrigin == 1 })
	time.Sleep(100 * time.Millisecond)
	if s := f.gate.Stats(); s.InOrigin != 1 || s.Streams != 2 {
		t.Errorf("a thinking origin: %+v, want its slot held", s)
	}
	close(release)
	feed.Close()
	wg.Wait()
}

// TestUploadsInLine: uploads that wait for their place must not use up the flow control
// window that the one in the origin needs to go on (RFC 9113 §5.2).
func TestUploadsInLine(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	const size = 1 << 20
	each(t, o, []option{concurrency(1)}, func(t *testing.T, f *front) {
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				req, _ := http.NewRequest("PUT", f.URL, &counted{left: size})
				resp, err := f.c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if string(b) != fmt.Sprint(size) || err != nil {
					t.Errorf("%d %q, %v", resp.StatusCode, b, err)
				}
			})
		}
		wg.Wait()
	})
}
