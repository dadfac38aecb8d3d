package exchange_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

// world is client, relay and device in one process: the client speaks HTTP on loopback,
// the tether runs in memory.
type world struct {
	*httptest.Server
	relay, device *mux.Session
	a, b          *tethertest.Pipe
	errs          chan *exchange.Error
	options       exchange.Options
}

func newWorld(t testing.TB, h http.HandlerFunc, relay, device mux.Config) *world {
	t.Helper()
	w := &world{errs: make(chan *exchange.Error, 1000)}
	w.a, w.b = tethertest.NewPipe(0)
	device.Accept = (&exchange.Server{Handler: h}).Serve
	w.relay, w.device = tethertest.PairOn(w.a, w.b, relay, device)
	w.options.ID = "the-id"
	w.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if err := exchange.Forward(rw, r, w.relay, w.options); err != nil {
			e := err.(*exchange.Error)
			w.errs <- e
			http.Error(rw, e.Error(), e.Status)
		}
	}))
	w.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.Start()
	t.Cleanup(func() {
		w.Close()
		w.relay.Close(1000, "")
		<-w.relay.Done()
		<-w.device.Done()
	})
	return w
}

func get(t testing.TB, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// raw sends text and gives the connection.
func raw(t *testing.T, w *world, text string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", w.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, text)
	return c, bufio.NewReader(c)
}

// idle waits until no stream is left on either side.
func (w *world) idle(t *testing.T) {
	t.Helper()
	for range 500 {
		if w.relay.Streams()+w.device.Streams() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("streams left: relay %d, device %d", w.relay.Streams(), w.device.Streams())
}

// Prototype bug 1: ids must reach the wire in rising order, or the device refuses them.
func TestIDsRiseOnTheWire(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, r.URL.Path) }, mux.Config{Streams: 64}, mux.Config{})
	var wg sync.WaitGroup
	for c := range 16 {
		wg.Go(func() {
			for i := range 50 {
				path := fmt.Sprintf("/%d/%d", c, i)
				resp, err := http.Get(w.URL + path)
				if err != nil {
					t.Error(err)
					return
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if string(b) != path {
					t.Errorf("GET %s = %d %q", path, resp.StatusCode, b)
				}
			}
		})
	}
	wg.Wait()
	w.idle(t)
}

// Prototype bug 2: whoever still reads the body of an early-answered request gets an
// error, never bytes of a later request.
func TestStaleBodyReadsNothing(t *testing.T) {
	stale := make(chan io.Reader, 1)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			stale <- r.Body
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		io.Copy(rw, r.Body)
	}, mux.Config{}, mux.Config{})
	pr, pw := io.Pipe()
	go func() {
		for {
			if _, err := pw.Write([]byte("first request")); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	req, _ := http.NewRequest("POST", w.URL+"/early", pr)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	pr.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("early answer = %d, want 403", resp.StatusCode)
	}
	body := <-stale
	seen := make(chan string, 1)
	go func() {
		var all []byte
		b := make([]byte, 64)
		for {
			n, err := body.Read(b)
			all = append(all, b[:n]...)
			if err != nil {
				seen <- string(all)
				return
			}
		}
	}()
	for range 20 {
		resp, err := http.Post(w.URL+"/echo", "text/plain", strings.NewReader("second request"))
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "second request" {
			t.Errorf("echo = %q", b)
		}
		resp.Body.Close()
	}
	if got := <-seen; strings.Contains(got, "second") {
		t.Errorf("the stale body read %q", got)
	}
	w.idle(t)
}

// Prototype bug 3: trailers must arrive although nobody flushed.
func TestTrailers(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		rw.Header().Set("Trailer", "X-Sum, X-Missing")
		rw.WriteHeader(200)
		rw.Write(b)
		rw.Header().Set("X-Sum", "17")
		rw.Header().Set("X-Late", "not a trailer: the head was written before")
		rw.Header().Set(http.TrailerPrefix+"X-Unannounced", "yes")
		rw.Header().Set("X-Request", r.Trailer.Get("X-Req"))
		rw.Header().Set(http.TrailerPrefix+"X-Request", r.Trailer.Get("X-Req"))
	}, mux.Config{}, mux.Config{})
	for _, size := range []int{0, 2, 100_000} {
		body := strings.Repeat("b", size)
		req, _ := http.NewRequest("POST", w.URL, io.MultiReader(strings.NewReader(body)))
		req.Trailer = http.Header{"X-Req": {"from the client"}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(b) != size {
			t.Errorf("body = %d bytes, %v, want %d", len(b), err, size)
		}
		want := http.Header{"X-Sum": {"17"}, "X-Missing": nil, "X-Unannounced": {"yes"}, "X-Request": {"from the client"}}
		if !reflect.DeepEqual(resp.Trailer, want) {
			t.Errorf("size %d: trailers = %v, want %v", size, resp.Trailer, want)
		}
		if resp.Header.Get("X-Late") != "" {
			t.Error("a field set after WriteHeader travelled in the head")
		}
	}
	// Unannounced trailers alone behind a short body: HTTP/1.1 needs a flush for them.
	w2 := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "short")
		rw.Header().Set(http.TrailerPrefix+"X-T", "1")
	}, mux.Config{}, mux.Config{})
	resp, _ := get(t, w2.URL)
	if resp.Trailer.Get("X-T") != "1" {
		t.Errorf("trailers behind a short body = %v", resp.Trailer)
	}
}

// Prototype bug 4: interim heads come all, in order, and do not leak into the final one.
func TestInterimHeads(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Link", "</a.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Set("Link", "</b.css>; rel=preload")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.WriteHeader(http.StatusProcessing)
		rw.Header().Del("Link")
		rw.WriteHeader(http.StatusTeapot)
		io.WriteString(rw, "tea")
	}, mux.Config{}, mux.Config{})
	var got []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		got = append(got, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "GET", w.URL, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	want := []string{"103</a.css>; rel=preload", "103</b.css>; rel=preload", "102</b.css>; rel=preload"}
	if !reflect.DeepEqual(got, want) || resp.StatusCode != 418 || string(b) != "tea" || resp.Header.Get("Link") != "" {
		t.Errorf("got %q, then %d %q %q", got, resp.StatusCode, b, resp.Header.Get("Link"))
	}
}

// Prototype bug 5: a panic ends its own stream and nothing else, and never looks complete.
func TestPanics(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/before":
			panic(http.ErrAbortHandler)
		case "/code":
			panic(frame.ResetUnreachable)
		case "/after":
			io.WriteString(rw, strings.Repeat("x", 50_000))
			rw.(http.Flusher).Flush()
			panic("bug")
		}
		io.WriteString(rw, "fine")
	}, mux.Config{}, mux.Config{})
	for path, code := range map[string]frame.ResetCode{"/before": frame.ResetInternal, "/code": frame.ResetUnreachable} {
		resp, _ := get(t, w.URL+path)
		if e := <-w.errs; resp.StatusCode != 502 || e.Code != code {
			t.Errorf("%s = %d, %v, want 502 with %v", path, resp.StatusCode, e.Code, code)
		}
	}
	resp, err := http.Get(w.URL + "/after")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke off looked complete")
	}
	if _, b := get(t, w.URL+"/ok"); b != "fine" {
		t.Errorf("after the panics: %q", b)
	}
	w.idle(t)
}

// Prototype bug 6: RESET 0 after END stops the upload, the answer arrives whole.
func TestEarlyAnswerStopsUpload(t *testing.T) {
	answer := strings.Repeat("a", 300_000)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(rw, answer)
	}, mux.Config{}, mux.Config{})
	sent := atomic.Int64{}
	body := readerFunc(func(p []byte) (int, error) {
		sent.Add(int64(len(p)))
		return len(p), nil
	})
	c, br := raw(t, w, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
	go io.Copy(c, body)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != answer || resp.StatusCode != 413 {
		t.Errorf("early answer = %d, %d bytes, %v", resp.StatusCode, len(b), err)
	}
	w.idle(t)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestTruthfulLength(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "100")
		switch r.URL.Path {
		case "/short":
			io.WriteString(rw, "not so many")
		case "/long":
			if _, err := io.WriteString(rw, strings.Repeat("x", 101)); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("a write over Content-Length = %v", err)
			}
			io.WriteString(rw, strings.Repeat("y", 100))
		case "/empty":
			rw.WriteHeader(http.StatusNotModified)
		}
	}, mux.Config{}, mux.Config{})
	// Nothing had been flushed: the relay may still say that the device failed.
	if resp, _ := get(t, w.URL+"/short"); resp.StatusCode != 502 {
		t.Errorf("a short answer = %d, want 502", resp.StatusCode)
	}
	if resp, b := get(t, w.URL+"/long"); b != strings.Repeat("y", 100) {
		t.Errorf("long = %d %q", resp.StatusCode, b)
	}
	if resp, _ := get(t, w.URL+"/empty"); resp.StatusCode != 304 { // net/http leaves out its Content-Length
		t.Errorf("304 = %d, %v", resp.StatusCode, resp.Header)
	}
	resp, err := http.Head(w.URL + "/short")
	if err != nil || resp.ContentLength != 100 {
		t.Errorf("HEAD = %v, %v", resp, err)
	}
	w.idle(t)
}

func TestHeadersAndHops(t *testing.T) {
	var got *http.Request
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		got = r
		rw.Header().Set("Connection", "X-Hop")
		rw.Header()["X-Many"] = []string{"1", "2", ""}
		rw.Header().Set("X-Cloudrest-Id", "forged")
	}, mux.Config{}, mux.Config{})
	_, br := raw(t, w, "GET /p%2Fq?x=%20y HTTP/1.1\r\nHost: a.example:8443\r\nConnection: keep-alive, X-Secret\r\nX-Secret: s\r\n"+
		"Te: trailers, deflate\r\nUpgrade: h2c\r\nProxy-Authorization: p\r\nX-Cloudrest-Id: mine\r\nX-Cloudrest-Sequence-Id: 42\r\nX-Keep: 1\r\n\r\n")
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := http.Header{"Te": {"trailers"}, "X-Cloudrest-Id": {"the-id"}, "X-Cloudrest-Sequence-Id": {"42"}, "X-Keep": {"1"}}
	if !reflect.DeepEqual(got.Header, want) {
		t.Errorf("the device saw %v, want %v", got.Header, want)
	}
	if got.RequestURI != "/p%2Fq?x=%20y" || got.Host != "a.example:8443" || !strings.HasPrefix(got.RemoteAddr, "127.0.0.1:") || got.ContentLength != 0 {
		t.Errorf("the device saw %q, host %q, from %q, length %d", got.RequestURI, got.Host, got.RemoteAddr, got.ContentLength)
	}
	if h := resp.Header; h.Get("X-Cloudrest-Id") != "the-id" || h.Get("X-Cloudrest-Sequence-Id") != "42" || len(h["X-Many"]) != 3 || h.Get("Content-Type") != "" {
		t.Errorf("the client saw %v", h)
	}
}

func TestExpectContinue(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		io.Copy(rw, r.Body)
	}, mux.Config{}, mux.Config{})
	c, br := raw(t, w, "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if line, err := br.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("interim line = %q, %v", line, err)
	}
	br.ReadString('\n')
	io.WriteString(c, "hello")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("after 100: %v, %v", resp, err)
	}
	_, br = raw(t, w, "PUT /no HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 403 {
		t.Errorf("refused without the body: %v, %v", resp, err)
	}
	w.idle(t)
}

func TestUpgrade(t *testing.T) {
	for name, hijack := range map[string]func(rw http.ResponseWriter) (net.Conn, io.Reader){
		"HTTP/1.1 text": func(rw http.ResponseWriter) (net.Conn, io.Reader) {
			c, brw, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return nil, nil
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n")
			io.WriteString(c, "Connection: Upgrade\r\n\r\nhi ")
			return c, brw
		},
		"WriteHeader": func(rw http.ResponseWriter) (net.Conn, io.Reader) {
			rw.Header().Set("Upgrade", "echo")
			rw.WriteHeader(http.StatusSwitchingProtocols)
			c, _, err := rw.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return nil, nil
			}
			io.WriteString(c, "hi ")
			return c, c
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/no" {
					http.Error(rw, "no", http.StatusBadRequest)
					return
				}
				if r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Upgrade") != "echo" || r.ContentLength != 0 || r.Body != http.NoBody {
					t.Errorf("the handler saw %v, a body of %d bytes", r.Header, r.ContentLength)
				}
				c, rd := hijack(rw)
				go func() { // the handler returns before the tunnel ends, as gorilla's users do
					io.Copy(c, rd)
					c.Close()
				}()
			}, mux.Config{}, mux.Config{})
			c, br := raw(t, w, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "echo" || resp.Header.Get("X-Cloudrest-Id") != "the-id" {
				t.Fatalf("upgrade = %v, %v", resp, err)
			}
			want := bytes.Repeat([]byte("0123456789"), 100_000)
			go func() {
				c.Write(want)
				c.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(br)
			if err != nil || string(got) != "hi early "+string(want) {
				t.Errorf("echo = %d bytes, %v", len(got), err)
			}
			_, br = raw(t, w, "GET /no HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 400 {
				t.Errorf("refused upgrade = %v, %v", resp, err)
			}
			w.idle(t)
		})
	}
}

func TestEventsComeAtOnceAndCancelReachesTheHandler(t *testing.T) {
	gone := make(chan error, 1)
	next := make(chan struct{})
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		rw.(http.Flusher).Flush()
		for i := range 3 {
			<-next
			fmt.Fprintf(rw, "data: %d\n\n", i)
			rw.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		gone <- context.Cause(r.Context())
	}, mux.Config{}, mux.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", w.URL, nil)
	resp, err := http.DefaultClient.Do(req) // the head comes before any event
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		next <- struct{}{}
		line, err := br.ReadString('\n')
		br.ReadString('\n')
		if want := fmt.Sprintf("data: %d\n", i); err != nil || line != want {
			t.Errorf("event = %q, %v, want %q", line, err, want)
		}
	}
	cancel()
	if err := <-gone; err == nil {
		t.Error("no cause")
	}
	w.idle(t)
}

func TestClientBodyBreaksOff(t *testing.T) {
	seen := make(chan error, 1)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		seen <- err
		panic(http.ErrAbortHandler)
	}, mux.Config{}, mux.Config{})
	c, _ := raw(t, w, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this")
	time.Sleep(20 * time.Millisecond)
	c.Close()
	if err := <-seen; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the handler's body ended with %v, want unexpected EOF", err)
	}
	w.idle(t)
}

func TestStalledReaderBesideGets(t *testing.T) {
	budget := &mux.Budget{Limit: 4 << 20}
	big := make([]byte, 64<<10)
	rand.Read(big)
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			for range 800 { // 50 MB
				if _, err := rw.Write(big); err != nil {
					return
				}
			}
			return
		}
		rw.Write(big[:4096])
	}, mux.Config{Streams: 256, Budget: budget}, mux.Config{})
	for range 20 {
		_, br := raw(t, w, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := br.ReadByte(); err != nil { // and never another
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			resp, err := http.Get(w.URL + "/small")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 4096 {
				t.Errorf("GET beside stalled readers = %d, %d bytes, %v", resp.StatusCode, len(b), err)
			}
		})
	}
	wg.Wait()
	http.DefaultClient.CloseIdleConnections()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := budget.Used(); used > 20*mux.MaxWindow/2 {
		t.Errorf("%d bytes queued for 20 stalled readers", used)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func TestErrorMapping(t *testing.T) {
	for _, c := range []struct {
		code   frame.ResetCode
		status int
		safe   bool
	}{
		{frame.ResetNone, 502, false}, {frame.ResetCancel, 502, false}, {frame.ResetBadHead, 502, false}, {frame.ResetUnreachable, 502, false},
		{frame.ResetRefused, 503, true}, {frame.ResetTimeout, 504, false}, {frame.ResetFlow, 502, false}, {frame.ResetInternal, 502, false},
		{frame.ResetTooLarge, 413, false}, {77, 502, false},
	} {
		w := newWorld(t, func(http.ResponseWriter, *http.Request) { panic(c.code) }, mux.Config{}, mux.Config{})
		resp, _ := get(t, w.URL)
		e := <-w.errs
		if resp.StatusCode != c.status || e.Code != c.code || e.Safe != c.safe || c.status == 503 != (e.RetryAfter > 0) {
			t.Errorf("RESET %d: status %d, %+v", c.code, resp.StatusCode, e)
		}
		w.idle(t)
	}
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, mux.Config{}, mux.Config{})
	w.options.HeadTimeout = 50 * time.Millisecond
	if resp, _ := get(t, w.URL); resp.StatusCode != 504 {
		t.Errorf("no head in time = %d, want 504", resp.StatusCode)
	}
	w.idle(t)
	go w.device.Close(1000, "")
	<-w.relay.Done()
	if resp, _ := get(t, w.URL); resp.StatusCode != 503 {
		t.Errorf("a closed session = %d, want 503", resp.StatusCode)
	}
}

// A session that breaks in the middle of an answer must not end it cleanly, chunked or not.
func TestLostInTheMiddle(t *testing.T) {
	for _, length := range []string{"", "1000000"} {
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if length != "" {
				rw.Header().Set("Content-Length", length)
			}
			rw.Write(make([]byte, 20_000))
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		}, mux.Config{}, mux.Config{})
		resp, err := http.Get(w.URL)
		if err != nil {
			t.Fatal(err)
		}
		go w.device.Close(1001, "")
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("half an answer looked complete")
		}
		resp.Body.Close()
	}
}

func TestHTTP2Client(t *testing.T) {
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Trailer", "X-T")
		io.Copy(rw, r.Body)
		rw.Header().Set("X-T", "end")
	}, mux.Config{}, mux.Config{})
	srv := httptest.NewUnstartedServer(w.Config.Handler)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	body := strings.Repeat("z", 200_000)
	resp, err := srv.Client().Post(srv.URL, "text/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != body || resp.ProtoMajor != 2 || resp.Trailer.Get("X-T") != "end" {
		t.Errorf("HTTP/%d: %d bytes, %v, trailers %v", resp.ProtoMajor, len(b), err, resp.Trailer)
	}
}

// A drain ends event streams at once, lets ordinary answers finish, and closes.
func TestDrainEndsEventStreamsFirst(t *testing.T) {
	for _, side := range []string{"relay", "device"} {
		release, started := make(chan struct{}), make(chan struct{})
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(started)
				<-release
				io.WriteString(rw, "finished")
				return
			}
			rw.Header().Set("Content-Type", "text/event-stream")
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		}, mux.Config{}, mux.Config{})
		resp, err := http.Get(w.URL + "/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		slow := make(chan string, 1)
		go func() {
			resp, err := http.Get(w.URL + "/slow")
			if err != nil {
				slow <- err.Error()
				return
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			slow <- fmt.Sprint(string(b), err)
		}()
		<-started
		s := map[string]*mux.Session{"relay": w.relay, "device": w.device}[side]
		drained := make(chan struct{})
		go func() { s.Drain(t.Context(), frame.GoAway{}); close(drained) }()
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: an event stream that was cut looked complete", side)
		}
		close(release)
		if got := <-slow; got != "finished<nil>" {
			t.Errorf("%s: the ordinary answer = %q", side, got)
		}
		<-drained
		<-w.relay.Done()
		<-w.device.Done()
	}
}
