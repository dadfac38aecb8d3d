package session_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

// sink is the least that Forward needs.
type sink struct {
	header http.Header
	n      int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { s.n += len(p); return len(p), nil }
func (s *sink) Flush()                      {}

var answer = make([]byte, 4096)

func small(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Content-Type"] = []string{"application/octet-stream"}
	h["Content-Length"] = []string{"4096"}
	w.Write(answer)
}

func forwards(b *testing.B, s *mux.Session, parallel int) {
	b.ReportAllocs()
	var before, after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	b.ResetTimer()
	var wg sync.WaitGroup
	work := make(chan struct{}, 1024)
	for range parallel {
		wg.Go(func() {
			w := &sink{header: http.Header{}}
			r := httptest.NewRequestWithContext(b.Context(), "GET", "/v1/zones", nil)
			for range work {
				clear(w.header)
				clear(r.Header)
				r.Header["Accept"] = []string{"application/json"}
				r.Header["User-Agent"] = []string{"bench"}
				w.n = 0
				if err := exchange.Forward(w, r, s, exchange.Options{ID: "00000000-0000-0000-0000-000000000000"}); err != nil || w.n != len(answer) {
					b.Error(err, w.n)
				}
			}
		})
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
}

// BenchmarkMemory is relay and device together on a carrier in memory.
func BenchmarkMemory(b *testing.B) {
	relay, device := tethertest.Pair(mux.Config{Streams: 64}, mux.Config{Accept: (&exchange.Server{Handler: http.HandlerFunc(small)}).Serve})
	defer func() { relay.Close(1000, ""); <-relay.Done(); <-device.Done() }()
	forwards(b, relay, 1)
}

// BenchmarkTLS is relay and device together over a WebSocket on loopback with TLS.
func BenchmarkTLS(b *testing.B) {
	for name, n := range map[string]int{"c1": 1, "c16": 16} {
		b.Run(name, func(b *testing.B) {
			rs := newRelay(b)
			d := newDevice(b, rs, http.HandlerFunc(small))
			d.Streams = 64
			relay, _ := connect(b, rs, d)
			forwards(b, relay, n)
		})
	}
}

// BenchmarkIdle is the heap and stack of both ends of idle sessions; b.N is of no use here.
func BenchmarkIdle(b *testing.B) {
	for _, kind := range []string{"memory", "plain", "tls"} {
		b.Run(kind, func(b *testing.B) {
			const n = 1000
			measure := func() uint64 {
				time.Sleep(200 * time.Millisecond)
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapAlloc + m.StackInuse
			}
			rs := newRelay(b)
			if kind == "plain" {
				rs.Server.Close()
				rs.Server = httptest.NewServer(rs.Config.Handler)
				rs.relay.TLSEnds = false
			}
			var keep []*mux.Session
			before := measure()
			for range n {
				if kind == "memory" {
					r, d := tethertest.Pair(mux.Config{}, mux.Config{})
					keep = append(keep, r, d)
					continue
				}
				d := newDevice(b, &relayServer{Server: newCert(b)}, noHandler)
				u := rs.url()
				if kind == "plain" {
					u.Scheme = "ws"
					u.Host = strings.TrimPrefix(rs.URL, "http://")
				} else {
					d.TLS = rs.Client().Transport.(*http.Transport).TLSClientConfig
				}
				s, _, err := d.Connect(b.Context(), u, "")
				if err != nil {
					b.Fatal(err)
				}
				<-rs.peers
				keep = append(keep, s, <-rs.sessions)
			}
			b.ReportMetric(float64(measure()-before)/n/1024, "KB/pair")
			for _, s := range keep {
				s.Close(0, "")
			}
			for _, s := range keep {
				<-s.Done()
			}
		})
	}
}

var certServer = sync.OnceValue(func() *httptest.Server { return httptest.NewTLSServer(nil) })

func newCert(testing.TB) *httptest.Server { return certServer() }

// BenchmarkBulk moves 64 KB in each operation, one stream in each direction.
func BenchmarkBulk(b *testing.B) {
	const piece = 64 << 10
	junk := make([]byte, piece)
	rs := newRelay(b)
	d := newDevice(b, rs, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			io.Copy(io.Discard, r.Body)
			return
		}
		n, _ := strconv.Atoi(r.URL.RawQuery)
		for range n {
			w.Write(junk)
		}
	}))
	d.Window = mux.MaxWindow
	relay, _ := connect(b, rs, d)
	for _, method := range []string{http.MethodGet, http.MethodPut} {
		b.Run(method, func(b *testing.B) {
			b.SetBytes(piece)
			var body io.Reader
			if method == http.MethodPut {
				body = io.LimitReader(zeros{}, int64(b.N)*piece)
			}
			w := &sink{header: http.Header{}}
			r := httptest.NewRequestWithContext(b.Context(), method, "/bulk?"+strconv.Itoa(b.N), body)
			if err := exchange.Forward(w, r, relay, exchange.Options{}); err != nil {
				b.Fatal(err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
