package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/http1"
)

// rerun is a connection on which the same request comes again and again.
type rerun struct {
	net.Conn // of a pipe: addresses
	request  string
	left     int
	keep     bool
	out      []byte // the answers, if they are kept
	once     sync.Once
	done     chan struct{} // closed by Close
}

func (c *rerun) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	c.left--
	return copy(b, c.request), nil
}

func (c *rerun) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

func (c *rerun) Write(b []byte) (int, error) {
	if c.keep {
		c.out = append(c.out, b...)
	}
	return len(b), nil
}

// once is a listener with one connection.
type once struct {
	net.Listener
	c     *rerun
	given bool
}

func (l *once) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.c, nil
	}
	<-l.c.done
	return nil, net.ErrClosed
}

func (l *once) Close() error { return nil }

// askAgain has the LAN's server, without TLS, answer a request n times on one connection.
func askAgain(tb testing.TB, h http.Handler, request string, n int, keep bool) []byte {
	one, two := net.Pipe()
	defer two.Close()
	c := &rerun{Conn: one, request: request, left: n, keep: keep, done: make(chan struct{})}
	s := &http1.Server{Handler: h}
	_ = s.Serve(&once{c: c}) // net.ErrClosed
	if err := s.Shutdown(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return c.out
}

// hitHandler is what the LAN's server calls, of a gateway that keeps every answer of service.
func hitHandler(tb testing.TB, service http.Handler) http.Handler {
	return lanHandler(tb, Config{CacheRules: []string{"/* ttl=1h public"}, OriginHandler: service})
}

// lanHandler is what the LAN's server calls.
func lanHandler(tb testing.TB, c Config) http.Handler {
	c.StateDir, c.HTTPS, c.Access = tb.TempDir(), "127.0.0.1:0", AccessOrigin
	g, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = g.close() })
	return dispatch(http.HandlerFunc(g.own), g.service(admit.LAN))
}

// zones is a service with one answer of 4 KB.
func zones() http.Handler {
	body := strings.Repeat("x", 4096)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Header().Set("Etag", `"0123456789"`)
		_, _ = io.WriteString(w, body)
	})
}

const hitRequest = "GET /api/v1/zones?since=17 HTTP/1.1\r\nHost: garden.local\r\nUser-Agent: app/1\r\nAccept: application/json\r\n" +
	"Accept-Language: en\r\nAuthorization: Bearer 0123456789abcdef0123456789abcdef\r\n\r\n"

// hitAllocs are those of one request that is answered from the store: the request with all
// that the server keeps for it, its head, its fields (2), the client's identity, the exchange's ID.
const hitAllocs = 6

func TestHitAllocations(t *testing.T) {
	h := hitHandler(t, zones())
	const n = 500
	all := testing.AllocsPerRun(1, func() { askAgain(t, h, hitRequest, n, false) })
	if got := int(all) / n; got > hitAllocs { // the connection's own are lost in the division
		t.Errorf("a hit takes %d allocations, want at most %d", got, hitAllocs)
	}
}

// plainWriter hides what the server's ResponseWriter can do besides.
type plainWriter struct{ http.ResponseWriter }

// Most hits are written without a map of their fields: what the client gets must be the same
// as with one.
func TestHitLooksTheSameBothWays(t *testing.T) {
	h := hitHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := w.Header()
		f.Set("Content-Type", "text/plain")
		switch r.URL.Path {
		case "/none":
			delete(f, "Content-Type")
			f.Set("Cache-Control", "max-age=60") // a rule's time is for 200 alone
			w.WriteHeader(http.StatusNoContent)
			return
		case "/gone":
			f.Set("Cache-Control", "max-age=60")
			w.WriteHeader(http.StatusGone)
		case "/lines":
			f["X-Many"] = []string{"1", "", "2, 3"}
			f.Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		case "/evil":
			f["X-Evil"] = []string{"a\r\nX-More: b"}
			f["X Evil"] = []string{"a"}
		}
		_, _ = io.WriteString(w, "0123456789")
	}))
	mapped := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(plainWriter{w}, r) })
	const host = " HTTP/1.1\r\nHost: h\r\n"
	for _, request := range []string{
		"GET /a" + host, "HEAD /a" + host, "GET /a HTTP/1.0\r\nHost: h\r\n", "GET /a HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n", "GET /a" + host + "Connection: close\r\n",
		"GET /none" + host, "GET /gone" + host, "GET /lines" + host, "GET /evil" + host,
		"GET /lines" + host + "If-Modified-Since: Tue, 03 Jan 2006 15:04:05 GMT\r\n", "GET /a" + host + "Range: bytes=2-4\r\n", "GET /a" + host + "Range: bytes=70-\r\n",
		"HEAD /a" + host + "Range: bytes=2-4\r\n", "GET /a" + host + tether.HeaderSequenceID + ": 5\r\n", "GET /a" + host + "Cookie: a=b\r\n",
	} {
		request += "\r\n"
		method, _, _ := strings.Cut(request, " ")
		path := strings.Fields(request)[1]
		askAgain(t, h, "GET "+path+host+"\r\n", 1, false) // so that it is stored
		read := func(h http.Handler) (*http.Response, string) {
			raw := askAgain(t, h, request, 1, true)
			in := bufio.NewReader(strings.NewReader(string(raw)))
			resp, err := http.ReadResponse(in, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("%q: %q: %v", request, raw, err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatalf("%q: %q: %v", request, raw, err)
			}
			if n := in.Buffered(); n > 0 {
				t.Errorf("%q: %d bytes behind the answer", request, n)
			}
			if len(resp.Header[tether.HeaderID]) != 1 || !strings.Contains(resp.Header.Get("Cache-Status"), "; hit") {
				t.Errorf("%q: %v, want an ID and a hit", request, resp.Header)
			}
			delete(resp.Header, tether.HeaderID)
			for _, name := range []string{"Age", "Cache-Status"} { // they tell of seconds
				if len(resp.Header[name]) != 1 {
					t.Errorf("%q: %s %q, want one", request, name, resp.Header[name])
				}
				delete(resp.Header, name)
			}
			resp.Body, resp.Request = nil, nil
			return resp, string(body)
		}
		got, gotBody := read(h)
		want, wantBody := read(mapped)
		if !reflect.DeepEqual(got, want) || gotBody != wantBody {
			t.Errorf("%q\n got %+v %q\nwant %+v %q", request, got, gotBody, want, wantBody)
		}
		if got.Header.Get("X-More") != "" {
			t.Errorf("%q: a value became a field: %v", request, got.Header)
		}
	}
}

func BenchmarkHit(b *testing.B) {
	h := hitHandler(b, zones())
	askAgain(b, h, hitRequest, 1, false)
	b.ReportAllocs()
	b.ResetTimer()
	askAgain(b, h, hitRequest, b.N, false)
}

// Services that say nothing of caches are the usual ones: what is the same each time must cost
// little more than without a cache.
func TestAskedEachTimeAllocations(t *testing.T) {
	for _, c := range []struct {
		name   string
		most   int // more than without a cache
		fields []string
	}{
		{"ETag", moreAllocs, []string{"Etag", `"0123456789"`}},
		{"no validator", moreTagged, nil},
	} {
		service := sameZones(c.fields...)
		allocs := func(cache int64) int {
			const n = 1000
			h := lanHandler(t, Config{Cache: cache, OriginHandler: service})
			return int(testing.AllocsPerRun(1, func() { askAgain(t, h, hitRequest, n, false) })) / n
		}
		if got, without := allocs(1<<20), allocs(-1); got > without+c.most {
			t.Errorf("%s: %d allocations, want at most %d more than the %d without a cache", c.name, got, c.most, without)
		}
	}
}

// moreAllocs are those of a request that the service answers as before: the client's identity,
// what others may wait for, the entry; moreTagged those of an answer that gets an ETag. There are 2
// and 8; the race detector has sync.Pool lose some of what it is given.
const (
	moreAllocs = 5
	moreTagged = 12
)

// sameZones is zones with other fields.
func sameZones(fields ...string) http.Handler {
	body := []byte(strings.Repeat("x", 4096))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Content-Length", strconv.Itoa(len(body)))
		for i := 0; i+1 < len(fields); i += 2 {
			h.Set(fields[i], fields[i+1])
		}
		_, _ = w.Write(body)
	})
}

func BenchmarkAskedEachTime(b *testing.B) {
	for _, c := range []struct {
		name   string
		cache  int64
		fields []string
	}{
		{"off", -1, []string{"Etag", `"0123456789"`}},
		{"etag", 1 << 20, []string{"Etag", `"0123456789"`}},
		{"none-off", -1, nil},
		{"none", 1 << 20, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := lanHandler(b, Config{Cache: c.cache, OriginHandler: sameZones(c.fields...)})
			askAgain(b, h, hitRequest, 1, false)
			b.ReportAllocs()
			b.ResetTimer()
			askAgain(b, h, hitRequest, b.N, false)
		})
	}
}
