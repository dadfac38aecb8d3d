package origin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// peer is the origin's end of a scripted connection.
type peer struct {
	net.Conn
	r *bufio.Reader
}

// head reads a request head and returns its lines, or nil at the end.
func (p *peer) head() []string {
	var lines []string
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return nil
		}
		if line = strings.TrimSuffix(line, "\r\n"); line == "" {
			return lines
		}
		lines = append(lines, line)
	}
}

func (p *peer) send(s string) { _, _ = io.WriteString(p, s) }

func (p *peer) take(n int) string {
	b := make([]byte, n)
	n, _ = io.ReadFull(p.r, b)
	return string(b[:n])
}

// scripted is a client whose connections are answered by serve, the n-th from 0, in
// memory. wait returns when all of them have ended.
func scripted(conf Config, serve func(n int, p *peer)) (c *Client, wait func()) {
	var wg sync.WaitGroup
	var n atomic.Int32
	conf.Dial = func(context.Context) (net.Conn, error) {
		a, b := pipe()
		wg.Go(func() {
			defer b.Close()
			serve(int(n.Add(1))-1, &peer{b, bufio.NewReader(b)})
		})
		return a, nil
	}
	c, err := New(conf)
	if err != nil {
		panic(err)
	}
	return c, wg.Wait
}

func readAll(r *Response) (string, error) {
	var all []byte
	for {
		b, err := r.Next()
		all = append(all, b...)
		if err == io.EOF {
			return string(all), nil
		}
		if err != nil {
			return string(all), err
		}
	}
}

func get(target string) *Request { return &Request{Method: "GET", Target: target} }

func ask(t *testing.T, c *Client, q *Request) (int, string) {
	t.Helper()
	r, err := c.Do(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := readAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return r.Status, s
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestBodies(t *testing.T) {
	long := strings.Repeat("x", 3*bufferSize)
	for name, c := range map[string]struct {
		method, answer, body string
		status               int
		length               int64
		trailer              []Field
		again                bool // the connection may be used again
	}{
		"§6.2 length":             {answer: ok, body: "ok", status: 200, length: 2, again: true},
		"§6.2 long":               {answer: fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), body: long, status: 200, length: int64(len(long)), again: true},
		"§6.2 zero":               {answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, again: true},
		"§7.1 chunked":            {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0A;x=\"y\"\r\n0123456789\r\n0\r\n\r\n", body: "ab0123456789", status: 200, length: -1, again: true},
		"§7.1 chunked, long":      {answer: fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long), body: long, status: 200, length: -1, again: true},
		"§7.1.2 trailers":         {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n0\r\nx-t: 1\r\nContent-Length: 9\r\nX-U: 2\r\n\r\n", status: 200, length: -1, trailer: []Field{{"X-T", "1"}, {"X-U", "2"}}, again: true},
		"§6.3 until close":        {answer: "HTTP/1.1 200 OK\r\n\r\nall of it", body: "all of it", status: 200, length: -1},
		"§9.3 HTTP/1.0":           {answer: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", body: "ok", status: 200, length: 2},
		"§9.3 HTTP/1.0 kept":      {answer: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", body: "ok", status: 200, length: 2, again: true},
		"§9.6 close":              {answer: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", body: "ok", status: 200, length: 2},
		"§6.3 HEAD":               {method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", status: 200, length: 7, again: true},
		"§6.3 HEAD chunked":       {method: "HEAD", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", status: 200, length: -1, again: true},
		"§6.3 304":                {answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", status: 304, length: 7, again: true},
		"§6.3 204":                {answer: "HTTP/1.1 204 No Content\r\n\r\n", status: 204, length: -1, again: true},
		"RFC 9110 §8.6 204":       {answer: "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc", status: 204, length: -1},
		"bytes behind the answer": {answer: ok + "HTTP/1.1 200 OK\r\n\r\n", body: "ok", status: 200, length: 2},
	} {
		for _, step := range []int{1 << 20, 1, 7} { // bytes a write: the answer arrives in pieces
			if step == 1 && len(c.answer) > bufferSize {
				continue
			}
			t.Run(fmt.Sprintf("%s by %d", name, step), func(t *testing.T) {
				cl, wait := scripted(Config{}, func(_ int, p *peer) {
					if p.head() == nil {
						return
					}
					for b := c.answer; b != ""; {
						n := min(step, len(b))
						p.send(b[:n])
						b = b[n:]
					}
					if !c.again {
						return
					}
					p.head()
				})
				q := get("/")
				if c.method != "" {
					q.Method = c.method
				}
				r, err := cl.Do(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				body, err := readAll(r)
				if err != nil || body != c.body || r.Status != c.status || r.Length != c.length || !slices.Equal(r.Trailer(), c.trailer) {
					t.Errorf("got %d %q, length %d, trailer %v, %v", r.Status, body, r.Length, r.Trailer(), err)
				}
				r.Close()
				r.Close()
				if got := len(cl.idle) == 1; got != c.again && step != 1 && step != 7 {
					t.Errorf("connection kept = %v, want %v", got, c.again)
				}
				cl.Close()
				wait()
			})
		}
	}
}

func TestBrokenBodies(t *testing.T) {
	for name, answer := range map[string]string{
		"§8 cut short":                   "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",
		"§8 cut short in a chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab",
		"§8 no last chunk":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
		"§7.1 chunk longer than said":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
		"§7.1 no size":                   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nab\r\n",
		"§7.1 bad size":                  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
		"§7.1 signed size":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n\r\n",
		"§7.1 huge size":                 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
		"§7.1.1 long extension":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + strings.Repeat("x", 2*maxChunkLine) + "\r\nab\r\n0\r\n\r\n",
		"§7.1.1 extension without ;":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 x\r\nab\r\n0\r\n\r\n",
		"§7.1 bare LF behind the size":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
		"§7.1 bare LF behind the data":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\n0\r\n\r\n",
		"§7.1.2 folded trailer":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n 2\r\n\r\n",
		"§7.1.2 endless trailer section": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X-Long-Trailer: 0123456789\r\n", 9000) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			cl, wait := scripted(Config{}, func(_ int, p *peer) {
				p.head()
				p.send(answer)
			})
			defer wait()
			defer cl.Close()
			r, err := cl.Do(t.Context(), get("/"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readAll(r); !errors.Is(err, ErrBadAnswer) {
				t.Errorf("body = %v, want ErrBadAnswer", err)
			}
			if _, again := r.Next(); again == nil || again == io.EOF {
				t.Errorf("the error does not stay: %v", again)
			}
			r.Close()
			if len(cl.idle) != 0 {
				t.Error("the connection was kept")
			}
		})
	}
}

func TestBrokenHeads(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   error
	}{
		"garbage":                 {"SSH-2.0-dropbear\r\n", ErrBadAnswer},
		"garbage without end":     {"\x00\x01\x02", ErrBadAnswer},
		"closed at once":          {"", ErrUnreachable},
		"cut short":               {"HTTP/1.1 200 OK\r\nX: ", ErrBadAnswer},
		"too long":                {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", DefaultMaxHead) + "\r\n\r\n", ErrBadAnswer},
		"many fields":             {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: x\r\n", DefaultMaxHead) + "\r\n", ErrBadAnswer},
		"RFC 9110 §7.8 unasked":   {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", ErrBadAnswer},
		"§15.2 endless 1xx":       {strings.Repeat("HTTP/1.1 103 x\r\n\r\n", maxInformational+1) + ok, ErrBadAnswer},
		"§6.3 both framings":      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ErrBadAnswer},
		"informational, then end": {"HTTP/1.1 103 x\r\n\r\n", ErrBadAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			cl, wait := scripted(Config{}, func(_ int, p *peer) {
				p.head()
				p.send(c.answer)
			})
			defer wait()
			defer cl.Close()
			if r, err := cl.Do(t.Context(), get("/")); !errors.Is(err, c.want) {
				t.Errorf("Do = %v, %v, want %v", r, err, c.want)
			}
			if len(cl.idle) != 0 {
				t.Error("the connection was kept")
			}
		})
	}
}

func TestLargestHead(t *testing.T) {
	value := strings.Repeat("x", DefaultMaxHead-200)
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		for p.head() != nil {
			p.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: " + value + "\r\n\r\nok")
		}
	})
	defer wait()
	defer cl.Close()
	for range 2 {
		r, err := cl.Do(t.Context(), get("/"))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Fields[1].Value; got != value {
			t.Errorf("%d bytes, want %d", len(got), len(value))
		}
		if b, err := readAll(r); b != "ok" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		r.Close()
	}
}

func TestRequestHead(t *testing.T) {
	for name, c := range map[string]struct {
		q    Request
		want string
	}{
		"plain": {Request{Method: "GET", Target: "/a%2F//b?c=%20", Host: "h:1", Fields: []Field{{"X-A", "1"}}},
			"GET /a%2F//b?c=%20 HTTP/1.1\r\nHost: h:1\r\nX-A: 1\r\n\r\n"},
		"own authority":             {Request{Method: "GET", Target: "/"}, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"},
		"RFC 9110 §8.6 empty body":  {Request{Method: "POST", Target: "/"}, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"},
		"RFC 9110 §10.1.4 trailers": {Request{Method: "GET", Target: "/", TETrailers: true}, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: TE\r\nTE: trailers\r\n\r\n"},
		"RFC 9110 §7.8":             {Request{Method: "GET", Target: "/", Upgrade: "websocket"}, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},
		"payload":                   {Request{Method: "PUT", Target: "/", Payload: []byte("ab")}, "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab"},
	} {
		got := make(chan string, 1)
		cl, wait := scripted(Config{}, func(_ int, p *peer) {
			got <- p.take(len(c.want))
			p.send(ok)
		})
		ask(t, cl, &c.q)
		if g := <-got; g != c.want {
			t.Errorf("%s:\n got %q\nwant %q", name, g, c.want)
		}
		cl.Close()
		wait()
	}
}

func TestRequestRefused(t *testing.T) {
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		if h := p.head(); h != nil {
			t.Errorf("the origin got %q", h)
		}
	})
	for name, q := range map[string]*Request{
		"§3 method":                  {Method: "GET /", Target: "/"},
		"§3 no method":               {Target: "/"},
		"§3.2 space":                 {Method: "GET", Target: "/a b"},
		"§3.2 CR LF":                 {Method: "GET", Target: "/\r\nX: 1"},
		"§3.2 NUL":                   {Method: "GET", Target: "/\x00"},
		"§3.2 empty":                 {Method: "GET"},
		"§3.2.4 asterisk":            {Method: "OPTIONS", Target: "*"},
		"§3.2.2 absolute":            {Method: "GET", Target: "http://a/"},
		"§3.2 host":                  {Method: "GET", Target: "/", Host: "a\r\nX: 1"},
		"§5 name":                    {Method: "GET", Target: "/", Fields: []Field{{"X: Y", "1"}}},
		"§5 value":                   {Method: "GET", Target: "/", Fields: []Field{{"X", "1\r\nY: 2"}}},
		"§6 framing":                 {Method: "GET", Target: "/", Fields: []Field{{"content-length", "3"}}},
		"§6 framing, coding":         {Method: "GET", Target: "/", Fields: []Field{{"Transfer-Encoding", "chunked"}}},
		"§3.2 second host":           {Method: "GET", Target: "/", Fields: []Field{{"Host", "b"}}},
		"§7.1.2 trailer about frame": {Method: "PUT", Target: "/", Body: strings.NewReader("x"), Length: -1, Trailer: func() map[string][]string { return map[string][]string{"Content-Length": nil} }},
	} {
		if _, err := cl.Do(t.Context(), q); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %v, want ErrBadRequest", name, err)
		}
	}
	cl.Close()
	wait()
}

// TestReuse: a kept connection that the origin has closed is noticed or survived; what
// must not be sent twice is not (RFC 9110 §9.2.2).
func TestReuse(t *testing.T) {
	t.Run("closed while idle", func(t *testing.T) {
		for _, method := range []string{"GET", "PUT", "POST"} { // a write into a closed connection: nothing arrived
			var heads atomic.Int32
			cl, wait := scripted(Config{}, func(_ int, p *peer) {
				if p.head() != nil {
					heads.Add(1)
					p.take(1)
					p.send(ok)
				}
			})
			for range 5 {
				for method == "POST" && len(cl.idle) > 0 && cl.idle[0].quiet() {
					time.Sleep(time.Millisecond) // until the close is here
				}
				if s, b := ask(t, cl, &Request{Method: method, Target: "/", Payload: []byte("x")}); s != 200 || b != "ok" {
					t.Errorf("%s: %d %q", method, s, b)
				}
			}
			cl.Close()
			wait()
			if n := heads.Load(); n != 5 {
				t.Errorf("%s: the origin got %d requests, want 5", method, n)
			}
		}
	})
	t.Run("dies with the request", func(t *testing.T) {
		for method, want := range map[string]int{"GET": 3, "HEAD": 3, "PUT": 3, "DELETE": 3, "POST": 2, "PATCH": 2} {
			var heads atomic.Int32
			cl, wait := scripted(Config{}, func(n int, p *peer) {
				for i := 0; p.head() != nil; i++ {
					heads.Add(1)
					p.take(1)
					if n == 0 && i == 1 {
						return // took the request, gives no answer
					}
					p.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			ask(t, cl, &Request{Method: method, Target: "/", Payload: []byte("x")})
			r, err := cl.Do(t.Context(), &Request{Method: method, Target: "/", Payload: []byte("x")})
			switch {
			case want == 3 && err != nil:
				t.Errorf("%s: %v, want it repeated", method, err)
			case want == 2 && !errors.Is(err, ErrUnreachable):
				t.Errorf("%s: %v, want ErrUnreachable", method, err)
			}
			if r != nil {
				r.Close()
			}
			cl.Close()
			wait()
			if n := heads.Load(); int(n) != want {
				t.Errorf("%s: the origin got %d requests, want %d", method, n, want)
			}
		}
	})
	t.Run("dies inside its answer", func(t *testing.T) {
		var heads atomic.Int32
		cl, wait := scripted(Config{}, func(n int, p *peer) {
			for i := 0; p.head() != nil; i++ {
				heads.Add(1)
				if i == 1 {
					p.send("H")
					return
				}
				p.send(ok)
			}
		})
		ask(t, cl, get("/"))
		if _, err := cl.Do(t.Context(), get("/")); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%v, want ErrBadAnswer", err)
		}
		cl.Close()
		wait()
		if n := heads.Load(); n != 2 {
			t.Errorf("the origin got %d requests, want 2: an answer had begun", n)
		}
	})
	t.Run("dies once more", func(t *testing.T) {
		var heads atomic.Int32
		cl, wait := scripted(Config{}, func(n int, p *peer) {
			if p.head() != nil {
				heads.Add(1)
			}
			if n == 0 {
				p.send(ok)
				if p.head() != nil {
					heads.Add(1)
				}
			}
		})
		ask(t, cl, get("/"))
		if _, err := cl.Do(t.Context(), get("/")); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%v, want ErrUnreachable", err)
		}
		cl.Close()
		wait()
		if n := heads.Load(); n != 3 {
			t.Errorf("the origin got %d requests, want 3: one repetition", n)
		}
	})
	t.Run("a streaming body gets a new connection", func(t *testing.T) {
		var conns atomic.Int32
		cl, wait := scripted(Config{}, func(_ int, p *peer) {
			conns.Add(1)
			for {
				h := p.head()
				if h == nil {
					return
				}
				if slices.Contains(h, "Content-Length: 3") {
					p.take(3)
				}
				p.send(ok)
			}
		})
		ask(t, cl, get("/"))
		ask(t, cl, &Request{Method: "PUT", Target: "/", Body: strings.NewReader("abc"), Length: 3})
		ask(t, cl, get("/"))
		if n := conns.Load(); n != 2 || len(cl.idle) != 2 {
			t.Errorf("%d connections, %d idle, want 2, 2", n, len(cl.idle))
		}
		cl.Close()
		wait()
	})
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var conns atomic.Int32
		hint := ""
		cl, wait := scripted(Config{MaxIdle: 2}, func(_ int, p *peer) {
			conns.Add(1)
			for p.head() != nil {
				p.send("HTTP/1.1 200 OK\r\n" + hint + "Content-Length: 2\r\n\r\nok")
			}
			conns.Add(-1)
		})
		var open []*Response
		for range 4 {
			r, err := cl.Do(t.Context(), get("/"))
			if err != nil {
				t.Fatal(err)
			}
			readAll(r)
			open = append(open, r)
		}
		for _, r := range open {
			r.Close()
		}
		synctest.Wait()
		if n := conns.Load(); n != 2 {
			t.Errorf("%d connections are kept, want 2", n)
		}
		time.Sleep(DefaultIdleTimeout / 2)
		ask(t, cl, get("/")) // keeps one of them young
		time.Sleep(DefaultIdleTimeout/2 + time.Second)
		synctest.Wait()
		if n := conns.Load(); n != 1 {
			t.Errorf("%d connections after one expired, want 1", n)
		}
		time.Sleep(DefaultIdleTimeout)
		synctest.Wait()
		if n := conns.Load(); n != 0 {
			t.Errorf("%d connections after all expired, want none", n)
		}
		// What the origin says of itself counts: it closes after 2 s, so we do after 1 s.
		hint = "Keep-Alive: timeout=2\r\n"
		ask(t, cl, get("/"))
		time.Sleep(1100 * time.Millisecond)
		if cn := cl.take(time.Minute); cn != nil {
			t.Error("a connection is used that the origin is about to close")
		}
		// A request that must not be sent twice takes only what was busy just now.
		hint = ""
		ask(t, cl, get("/"))
		before := len(cl.idle)
		time.Sleep(quietBeforeUnsafe + time.Millisecond)
		ask(t, cl, &Request{Method: "POST", Target: "/"})
		if len(cl.idle) <= before-1 {
			t.Errorf("%d idle, want a new connection for POST", len(cl.idle))
		}
		cl.Close()
		wait()
	})
}

func TestTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		cl, wait := scripted(Config{HeadTimeout: 30 * time.Second, BodyTimeout: 20 * time.Second}, func(_ int, p *peer) {
			h := p.head()
			if h == nil {
				return
			}
			if strings.HasPrefix(h[0], "GET /body") {
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
			}
			if strings.HasPrefix(h[0], "GET /trickle") {
				for i := range 9 {
					time.Sleep(15 * time.Second)
					if i == 0 {
						p.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
						continue
					}
					p.send("x")
				}
			}
			<-release
		})
		start := time.Now()
		_, err := cl.Do(t.Context(), get("/silent"))
		if d := time.Since(start); !errors.Is(err, ErrTimeout) || d < 30*time.Second || d > 31*time.Second {
			t.Errorf("silent: %v after %v, want ErrTimeout after 30 to 31 s", err, d)
		}
		r, err := cl.Do(t.Context(), get("/body"))
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		b, err := readAll(r)
		if d := time.Since(start); !errors.Is(err, ErrTimeout) || b != "ab" || d < 20*time.Second || d > 22*time.Second {
			t.Errorf("silent body: %q %v after %v, want ErrTimeout after 20 to 22 s", b, err, d)
		}
		r.Close()
		r, err = cl.Do(t.Context(), get("/body"))
		if err != nil {
			t.Fatal(err)
		}
		r.SetTimeout(0)
		go func() {
			time.Sleep(time.Hour)
			r.Abort()
		}()
		start = time.Now()
		if _, err := readAll(r); !errors.Is(err, ErrBadAnswer) || time.Since(start) != time.Hour {
			t.Errorf("a stream: %v after %v, want the hour", err, time.Since(start))
		}
		r.Close()
		if s, b := ask(t, cl, get("/trickle")); s != 200 || b != "xxxxxxxx" {
			t.Errorf("slow but alive: %d %q", s, b)
		}
		close(release)
		cl.Close()
		wait()
	})
}

// TestSlowUpload: the answer's time counts from the end of the request.
func TestSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl, wait := scripted(Config{}, func(_ int, p *peer) {
			h := p.head()
			if h == nil {
				return
			}
			if strings.HasPrefix(h[0], "PUT /stuck") {
				time.Sleep(time.Hour)
				return
			}
			p.take(10)
			if strings.HasPrefix(h[0], "PUT /slow") {
				time.Sleep(25 * time.Second)
				p.send(ok)
			}
			time.Sleep(time.Hour)
		})
		slow := func() io.Reader {
			r, w := io.Pipe()
			go func() {
				for range 10 {
					time.Sleep(10 * time.Second)
					if _, err := w.Write([]byte("x")); err != nil {
						return
					}
				}
				w.Close()
			}()
			return r
		}
		if s, b := ask(t, cl, &Request{Method: "PUT", Target: "/slow", Body: slow(), Length: 10}); s != 200 || b != "ok" {
			t.Errorf("%d %q", s, b)
		}
		start := time.Now()
		_, err := cl.Do(t.Context(), &Request{Method: "PUT", Target: "/silent", Body: slow(), Length: 10})
		if d := time.Since(start); !errors.Is(err, ErrTimeout) || d < 130*time.Second || d > 132*time.Second {
			t.Errorf("silent after the upload: %v after %v, want ErrTimeout 30 s after its end", err, d)
		}
		start = time.Now()
		_, err = cl.Do(t.Context(), &Request{Method: "PUT", Target: "/stuck", Body: bytes.NewReader(make([]byte, 1<<20)), Length: 1 << 20})
		if d := time.Since(start); !errors.Is(err, ErrTimeout) || d > 40*time.Second {
			t.Errorf("an origin that does not read: %v after %v, want ErrTimeout", err, d)
		}
		cl.Close()
		wait()
	})
}

func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl, err := New(Config{Dial: func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = cl.Do(t.Context(), get("/"))
		if !errors.Is(err, ErrUnreachable) || time.Since(start) != DefaultConnectTimeout {
			t.Errorf("%v after %v, want ErrUnreachable after %v", err, time.Since(start), DefaultConnectTimeout)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{}, 8)
		cl, wait := scripted(Config{}, func(_ int, p *peer) {
			h := p.head()
			if h == nil {
				return
			}
			if strings.HasPrefix(h[0], "GET /body") {
				p.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
			}
			_, _ = io.Copy(io.Discard, p.r) // until the end
			ended <- struct{}{}
		})
		gone := errors.New("client gone")
		for _, q := range []*Request{get("/head"), get("/body"),
			{Method: "PUT", Target: "/upload", Length: -1, Body: endless{}, Interrupt: func() {}}} {
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				time.Sleep(time.Second)
				cancel(gone)
			}()
			start := time.Now()
			r, err := cl.Do(ctx, q)
			if r != nil {
				_, err = readAll(r)
				r.Close()
			}
			if d := time.Since(start); !errors.Is(err, gone) || d < time.Second || d > time.Second+10*time.Millisecond {
				t.Errorf("%s: %v after %v, want the cause at once", q.Target, err, time.Since(start))
			}
			<-ended // the origin sees the end too
			if len(cl.idle) != 0 {
				t.Errorf("%s: the connection was kept", q.Target)
			}
		}
		cl.Close()
		wait()
	})
}

// TestCancelAtTheEnd: a context that ends behind the whole answer is closing the
// connection at this moment, so nobody else may get it.
func TestCancelAtTheEnd(t *testing.T) {
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		for p.head() != nil {
			p.send(ok)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := cl.Do(ctx, get("/"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := readAll(r); b != "ok" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	cancel()
	r.Close()
	if len(cl.idle) != 0 {
		t.Error("the connection was kept")
	}
	cl.Close()
	wait()
}

// endless is a body that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return min(len(p), 10), nil
}

func TestEarlyAnswer(t *testing.T) {
	for _, length := range []int64{-1, 1 << 40} {
		cl, wait := scripted(Config{}, func(_ int, p *peer) {
			if p.head() != nil {
				p.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
			}
		})
		body, feed := io.Pipe()
		go func() {
			for {
				if _, err := feed.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		}()
		r, err := cl.Do(t.Context(), &Request{Method: "PUT", Target: "/", Length: length, Body: body, Interrupt: func() { body.Close() }})
		if err != nil {
			t.Fatal(err)
		}
		b, err := readAll(r)
		if r.Status != 413 || b != "big" || err != nil || !r.Sending() {
			t.Errorf("%d %q %v, sending %v", r.Status, b, err, r.Sending())
		}
		r.Close()
		if len(cl.idle) != 0 {
			t.Error("a connection with half a request on it was kept")
		}
		cl.Close()
		wait()
	}
}

func TestFullDuplex(t *testing.T) {
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		if p.head() == nil {
			return
		}
		p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			size, err := p.r.ReadString('\n')
			if err != nil {
				return
			}
			n := 0
			fmt.Sscanf(size, "%x", &n)
			data := p.take(n + 2)
			p.send(size + data)
			if n == 0 {
				return
			}
		}
	})
	body, feed := io.Pipe()
	r, err := cl.Do(t.Context(), &Request{Method: "POST", Target: "/", Length: -1, Body: body})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		want := strings.Repeat("x", i*100+1)
		io.WriteString(feed, want)
		got := ""
		for len(got) < len(want) {
			b, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			got += string(b)
		}
		if got != want {
			t.Fatalf("round %d: %d bytes, want %d", i, len(got), len(want))
		}
	}
	feed.Close()
	if b, err := readAll(r); b != "" || err != nil || r.Sending() {
		t.Errorf("end: %q, %v, sending %v", b, err, r.Sending())
	}
	r.Close()
	cl.Close()
	wait()
}

func TestBodyErrors(t *testing.T) {
	var got atomic.Value
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		if p.head() == nil {
			return
		}
		b, err := io.ReadAll(p.r)
		got.Store(string(b) + fmt.Sprint(err))
	})
	broken := errors.New("client broke off")
	for _, q := range []*Request{
		{Method: "PUT", Target: "/", Length: -1, Body: io.MultiReader(strings.NewReader("abc"), errReader{broken})},
		{Method: "PUT", Target: "/", Length: 10, Body: io.MultiReader(strings.NewReader("abc"), errReader{broken})},
	} {
		if _, err := cl.Do(t.Context(), q); !errors.Is(err, ErrRequestBody) || !errors.Is(err, broken) {
			t.Errorf("%v, want ErrRequestBody with its cause", err)
		}
	}
	_, err := cl.Do(t.Context(), &Request{Method: "PUT", Target: "/", Length: 10, Body: strings.NewReader("abc")})
	if !errors.Is(err, ErrRequestBody) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short body: %v", err)
	}
	cl.Close()
	wait()
	if s, _ := got.Load().(string); strings.Contains(s, "0\r\n\r\n") {
		t.Errorf("half a body was ended like a whole one: %q", s)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// TestRequestTrailers also looks at how a chunked body is written.
func TestRequestTrailers(t *testing.T) {
	got := make(chan string, 1)
	want := "PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		got <- p.take(len(want))
		p.send(ok)
		p.head()
	})
	trailer := map[string][]string{"X-Sum": nil}
	body := io.MultiReader(strings.NewReader("hello"), eofFunc(func() { trailer["X-Sum"] = []string{"42"} }))
	ask(t, cl, &Request{Method: "PUT", Target: "/", Length: 5, Body: body, Trailer: func() map[string][]string { return trailer }})
	if g := <-got; g != want {
		t.Errorf("\n got %q\nwant %q", g, want)
	}
	if len(cl.idle) != 1 {
		t.Error("the connection was not kept")
	}
	cl.Close()
	wait()
}

type eofFunc func()

func (f eofFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

func TestExpectContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl, wait := scripted(Config{}, func(_ int, p *peer) {
			h := p.head()
			if h == nil {
				return
			}
			if !slices.Contains(h, "Expect: 100-continue") {
				t.Errorf("head = %q", h)
			}
			switch {
			case strings.HasPrefix(h[0], "PUT /yes"):
				time.Sleep(500 * time.Millisecond)
				p.send("HTTP/1.1 100 Continue\r\n\r\n")
				if got := p.take(5); got != "hello" {
					t.Errorf("body = %q", got)
				}
				p.send(ok)
			case strings.HasPrefix(h[0], "PUT /no"):
				p.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
			case strings.HasPrefix(h[0], "PUT /mute"):
				if got := p.take(5); got != "hello" {
					t.Errorf("body = %q", got)
				}
				p.send(ok)
			}
		})
		var read atomic.Bool
		q := func(target string) *Request {
			read.Store(false)
			return &Request{Method: "PUT", Target: target, Length: 5, Expect: true,
				Body: io.MultiReader(eofFunc(func() { read.Store(true) }), strings.NewReader("hello"))}
		}
		start := time.Now()
		if s, _ := ask(t, cl, q("/yes")); s != 200 || time.Since(start) != 500*time.Millisecond {
			t.Errorf("with 100: %d after %v", s, time.Since(start))
		}
		if s, _ := ask(t, cl, q("/no")); s != 417 || read.Load() {
			t.Errorf("refused: %d, body read: %v", s, read.Load())
		}
		start = time.Now()
		if s, _ := ask(t, cl, q("/mute")); s != 200 || time.Since(start) != continueWait {
			t.Errorf("without 100: %d after %v, want %v", s, time.Since(start), continueWait)
		}
		cl.Close()
		wait()
	})
}

func TestInformational(t *testing.T) {
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		if p.head() != nil {
			p.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n" + ok)
		}
	})
	var seen []string
	q := get("/")
	q.Inform = func(status int, fields []Field) error {
		seen = append(seen, fmt.Sprint(status, fields))
		return nil
	}
	if s, b := ask(t, cl, q); s != 200 || b != "ok" {
		t.Errorf("%d %q", s, b)
	}
	if want := []string{"102 []", "103 [{Link </a>} {Link </b>}]"}; !slices.Equal(seen, want) {
		t.Errorf("informed of %q, want %q", seen, want)
	}
	stop := errors.New("stop")
	q.Inform = func(int, []Field) error { return stop }
	if _, err := cl.Do(t.Context(), q); !errors.Is(err, stop) {
		t.Errorf("%v, want what Inform returned", err)
	}
	cl.Close()
	wait()
}

func TestUpgrade(t *testing.T) {
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		h := p.head()
		if h == nil {
			return
		}
		kind := "chat/2"
		if strings.HasPrefix(h[0], "GET /other") {
			kind = "h2c"
		}
		p.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + kind + "\r\n\r\nearly bytes")
		line, _ := p.r.ReadString('\n')
		p.send("echo " + line)
	})
	q := get("/")
	q.Upgrade = "chat/3, CHAT/2"
	r, err := cl.Do(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != 101 || r.Upgrade != "chat/2" {
		t.Errorf("%d %q", r.Status, r.Upgrade)
	}
	c := r.Conn()
	io.WriteString(c, "hello\n")
	b := make([]byte, len("early bytesecho hello\n"))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "early bytesecho hello\n" {
		t.Errorf("%q, %v", b, err)
	}
	r.Close()
	if len(cl.idle) != 0 {
		t.Error("an upgraded connection was kept")
	}
	q.Target = "/other"
	if _, err := cl.Do(t.Context(), q); !errors.Is(err, ErrBadAnswer) {
		t.Errorf("another protocol than asked: %v, want ErrBadAnswer", err)
	}
	cl.Close()
	wait()
}

func TestClosed(t *testing.T) {
	cl, wait := scripted(Config{}, func(_ int, p *peer) {
		for p.head() != nil {
			p.send(ok)
		}
	})
	r, err := cl.Do(t.Context(), get("/"))
	if err != nil {
		t.Fatal(err)
	}
	cl.Close()
	if b, err := readAll(r); b != "ok" || err != nil {
		t.Errorf("under way: %q, %v", b, err)
	}
	r.Close()
	if _, err := cl.Do(t.Context(), get("/")); !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	wait()
}

func TestValidate(t *testing.T) {
	for _, s := range []string{"http://127.0.0.1:8080", "http://localhost", "unix:///run/a.sock", "http://[::1]:80/"} {
		u, _ := url.Parse(s)
		if err := (Config{URL: u}).Validate(); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"https://a", "unix://run/a.sock", "http:///", "http://a/path", "http://u:p@a", "/a", "http://a/?x"} {
		u, _ := url.Parse(s)
		if err := (Config{URL: u}).Validate(); err == nil {
			t.Errorf("%s: no error", s)
		}
	}
	if err := (Config{HeadTimeout: -1, MaxHead: -1}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not every mistake is reported: %v", err)
	}
}

// TestSockets uses the kernel's connections, where dead ones are seen before reuse.
func TestSockets(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr, base := "127.0.0.1:0", "http://"
			if network == "unix" {
				addr, base = filepath.Join(t.TempDir(), "o.sock"), "unix://"
			}
			l, err := net.Listen(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			var heads, conns atomic.Int32
			var wg sync.WaitGroup
			unasked := make(chan string, 1)
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					conns.Add(1)
					wg.Go(func() { // closes after each answer, without saying so
						defer c.Close()
						p := &peer{c, bufio.NewReader(c)}
						if p.head() == nil {
							return
						}
						heads.Add(1)
						select {
						case s := <-unasked:
							p.send(ok)
							time.Sleep(20 * time.Millisecond)
							p.send(s)
							p.head()
						default:
							p.send(ok)
						}
					})
				}
			})
			u, _ := url.Parse(base + l.Addr().String())
			cl, err := New(Config{URL: u})
			if err != nil {
				t.Fatal(err)
			}
			for range 30 {
				ask(t, cl, get("/"))
			}
			// POST: the close arrives before the next request; give it the time to.
			for range 10 {
				for len(cl.idle) > 0 && cl.idle[0].quiet() {
					time.Sleep(time.Millisecond)
				}
				ask(t, cl, &Request{Method: "POST", Target: "/"})
			}
			if n := heads.Load(); n != 40 {
				t.Errorf("the origin got %d requests, want 40", n)
			}
			// An answer that nobody asked for is not taken for the next one's.
			unasked <- "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
			ask(t, cl, get("/"))
			for len(cl.idle) > 0 && cl.idle[0].quiet() {
				time.Sleep(time.Millisecond)
			}
			if s, _ := ask(t, cl, get("/")); s != 200 {
				t.Errorf("status %d: that was the answer to nothing", s)
			}
			cl.Close()
			l.Close()
			wg.Wait()
			if _, err := cl.Do(t.Context(), get("/")); !errors.Is(err, ErrClosed) {
				t.Errorf("%v", err)
			}
			cl, _ = New(Config{URL: u})
			if _, err := cl.Do(t.Context(), get("/")); !errors.Is(err, ErrUnreachable) {
				t.Errorf("nobody listens: %v, want ErrUnreachable", err)
			}
		})
	}
}

func TestHandler(t *testing.T) {
	needLocal(t)
	var log lockedBuffer
	cl, err := New(Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			w.Header().Set("Trailer", "X-T")
			n, _ := io.Copy(w, r.Body)
			w.Header().Set("X-T", fmt.Sprint(n))
		case "/who":
			fmt.Fprint(w, r.RemoteAddr)
		case "/panic":
			panic("of the handler")
		case "/late":
			fmt.Fprint(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/upgrade":
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(rw, "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			rw.Flush()
			io.Copy(c, rw)
		}
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	body := strings.Repeat("0123456789", 50_000)
	r, err := cl.Do(t.Context(), &Request{Method: "PUT", Target: "/echo", Body: strings.NewReader(body), Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(r); got != body || err != nil || !slices.Equal(r.Trailer(), []Field{{"X-T", "500000"}}) {
		t.Errorf("echo: %d bytes, %v, %v", len(got), r.Trailer(), err)
	}
	r.Close()
	q := get("/who")
	q.Fields = []Field{{"X-Forwarded-For", "2001:db8::1"}}
	if _, b := ask(t, cl, q); b != "[2001:db8::1]:0" {
		t.Errorf("RemoteAddr = %q", b)
	}
	if _, err := cl.Do(t.Context(), get("/panic")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("panic: %v, want ErrUnreachable", err)
	}
	if !strings.Contains(log.String(), "of the handler") {
		t.Errorf("the panic is not in the log: %q", log.String())
	}
	r, err = cl.Do(t.Context(), get("/late"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := readAll(r); b != "half" || !errors.Is(err, ErrBadAnswer) {
		t.Errorf("late panic: %q, %v", b, err)
	}
	r.Close()
	q = get("/upgrade")
	q.Upgrade = "x"
	if r, err = cl.Do(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	c := r.Conn()
	io.WriteString(c, "ping")
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Errorf("upgraded: %q, %v", b, err)
	}
	r.Close()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestConcurrent: many at once, against net/http, each getting its own answer.
func TestConcurrent(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.RequestURI, b)
	}))
	defer s.Close()
	u, _ := url.Parse(s.URL)
	cl, err := New(Config{URL: u})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 50 {
				target := fmt.Sprintf("/%d/%d", w, i)
				q := &Request{Method: "PUT", Target: target, Payload: []byte(target)}
				if i%3 == 0 {
					q.Payload, q.Body, q.Length = nil, strings.NewReader(target), -1
				}
				r, err := cl.Do(context.Background(), q)
				if err != nil {
					t.Error(err)
					return
				}
				if b, err := readAll(r); b != target+" "+target || err != nil {
					t.Errorf("%s: %q, %v", target, b, err)
				}
				r.Close()
			}
		})
	}
	wg.Wait()
	if len(cl.idle) > DefaultMaxIdle {
		t.Errorf("%d idle", len(cl.idle))
	}
}

func BenchmarkDo(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 1000)) }))
	defer s.Close()
	u, _ := url.Parse(s.URL)
	c, _ := New(Config{URL: u})
	defer c.Close()
	q := &Request{Method: "GET", Target: "/", Fields: []Field{{"Accept", "*/*"}, {"User-Agent", "x"}}}
	b.ReportAllocs()
	for b.Loop() {
		r, err := c.Do(b.Context(), q)
		if err != nil {
			b.Fatal(err)
		}
		for !r.Done() {
			r.Next()
		}
		r.Close()
	}
}

func needLocal(t *testing.T) {
	if !hasLocal {
		t.Skip("built with no_handler")
	}
}

// TestNoHandler: built without, a handler is a mistake in the configuration.
func TestNoHandler(t *testing.T) {
	err := Config{Handler: http.NotFoundHandler()}.Validate()
	if got, want := err == nil, hasLocal; got != want {
		t.Errorf("a handler is taken: %v, want %v: %v", got, want, err)
	}
}
