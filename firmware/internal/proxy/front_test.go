package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy/edge"
)

// front is a proxy behind a real TLS server, in front of an origin.
type front struct {
	URL   string
	addr  string
	proxy *Proxy
	gate  *admit.Gate
	log   *lockedBuffer
	c     *http.Client // of the protocol and server under test
	h2    bool
}

type option func(*Config, *origin.Config, *admit.Config)

func concurrency(n int) option {
	return func(_ *Config, _ *origin.Config, a *admit.Config) { a.Concurrency = n }
}

// each runs a test with every server and protocol version in front: package edge with
// HTTP/1.1 and HTTP/2, and net/http's own server.
func each(t *testing.T, target string, opts []option, test func(t *testing.T, f *front)) {
	t.Helper()
	for _, kind := range []string{"http1", "nethttp", "h2"} {
		t.Run(kind, func(t *testing.T) { test(t, newFront(t, kind, target, opts...)) })
	}
}

func newFront(t *testing.T, kind, target string, opts ...option) *front {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{log: &lockedBuffer{}, h2: kind == "h2"}
	oc := origin.Config{URL: u}
	ac := admit.Config{Concurrency: 16}
	pc := Config{Logger: slog.New(slog.NewTextHandler(f.log, nil))}
	for _, o := range opts {
		o(&pc, &oc, &ac)
	}
	client, err := origin.New(oc)
	if err != nil {
		t.Fatal(err)
	}
	pc.Origin, pc.Gate = client, admit.New(ac)
	if f.proxy, err = New(pc); err != nil {
		t.Fatal(err)
	}
	f.gate = pc.Gate
	h := f.proxy.For(admit.LAN)
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	f.URL = s.URL
	stop := s.Close
	if kind != "nethttp" {
		e, err := edge.New(edge.Config{Handler: h, TLS: &tls.Config{Certificates: s.TLS.Certificates}})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- e.Serve(l) }()
		f.URL = "https://" + l.Addr().String()
		stop = func() {
			e.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
			s.Close()
		}
	}
	f.addr = strings.TrimPrefix(f.URL, "https://")
	tr := &http.Transport{TLSClientConfig: f.tls(), ForceAttemptHTTP2: f.h2, DisableCompression: true, ExpectContinueTimeout: 3 * time.Second}
	f.c = &http.Client{Transport: tr}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		f.proxy.Close()
		stop()
		client.Close()
		deadline := time.Now().Add(5 * time.Second)
		for st := f.gate.Stats(); st.InOrigin+st.Queued+st.Streams != 0; st = f.gate.Stats() {
			if time.Now().After(deadline) {
				t.Errorf("places leaked: %+v", st)
				break
			}
			time.Sleep(time.Millisecond)
		}
	})
	return f
}

func (f *front) tls() *tls.Config {
	protos := []string{"http/1.1"}
	if f.h2 {
		protos = []string{"h2"}
	}
	return &tls.Config{InsecureSkipVerify: true, NextProtos: protos}
}

// raw is a TLS connection for requests that no client library would send.
func (f *front) raw(t *testing.T) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", f.addr, f.tls())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
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

// serve is an origin made with net/http.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// script is an origin that answers each connection by hand.
func script(t *testing.T, conn func(c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				conn(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}

// readHead consumes one request head; "" at the end.
func readHead(r *bufio.Reader) string {
	head := ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return ""
		}
		if line == "\r\n" {
			return head
		}
		head += line
	}
}

func do(t *testing.T, c *http.Client, method, url string, body io.Reader, fields ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		req.Header[fields[i]] = append(req.Header[fields[i]], fields[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("body after %q: %v", b, err)
	}
	return resp, string(b)
}

func get(t *testing.T, f *front, path string, fields ...string) (*http.Response, string) {
	t.Helper()
	return do(t, f.c, "GET", f.URL+path, nil, fields...)
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
