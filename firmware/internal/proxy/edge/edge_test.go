package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/http1"
)

// run serves h until the test ends.
func run(t *testing.T, h http.HandlerFunc, change func(*Config)) (addr string, s *Server, served <-chan error) {
	t.Helper()
	ts := httptest.NewTLSServer(nil) // for its certificate
	ts.Close()
	c := Config{Handler: h, TLS: &tls.Config{Certificates: ts.TLS.Certificates}}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l); close(done) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), s, done
}

func client(t *testing.T, h2 bool) *http.Client {
	protos := []string{"http/1.1"}
	if h2 && http1.HasHTTP2 {
		protos = []string{"h2"}
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: protos}, ForceAttemptHTTP2: h2}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

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

func hello(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto, " ", r.TLS != nil) }

func TestVersions(t *testing.T) {
	addr, _, _ := run(t, hello, nil)
	for h2, want := range map[bool]string{false: "HTTP/1.1 true", true: "HTTP/2.0 true"} {
		if !http1.HasHTTP2 {
			want = "HTTP/1.1 true"
		}
		resp, err := client(t, h2).Get("https://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != want {
			t.Errorf("h2 %v: %q, want %q", h2, b, want)
		}
	}
	plain, _, _ := run(t, hello, func(c *Config) { c.TLS = nil })
	resp, err := http.Get("http://" + plain)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "HTTP/1.1 false" {
		t.Errorf("plain: %q", b)
	}
}

// TestTLS: RFC 9325 §3.1.1 and §4.2.
func TestTLS(t *testing.T) {
	addr, _, _ := run(t, hello, nil)
	for name, c := range map[string]struct {
		conf *tls.Config
		ok   bool
	}{
		"1.3":                   {&tls.Config{MinVersion: tls.VersionTLS13}, true},
		"1.2 GCM":               {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}, true},
		"1.2 ChaCha20":          {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}}, true},
		"1.2 CBC":               {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, false},
		"1.2 without ephemeral": {&tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}}, false},
		"1.1":                   {&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		"1.0":                   {&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, false},
	} {
		c.conf.InsecureSkipVerify = true
		conn, err := tls.Dial("tcp", addr, c.conf)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v, want accepted %v", name, err, c.ok)
		}
		if conn != nil {
			conn.Close()
		}
	}
	base := &tls.Config{}
	if TLSConfig(base); base.MinVersion != 0 {
		t.Error("the caller's configuration was changed")
	}
}

// from is a listener whose clients seem to come from addresses of our choice.
type from struct {
	net.Listener
	addrs []string
	n     int
}

type fromConn struct {
	net.Conn
	addr net.Addr
}

func (c fromConn) RemoteAddr() net.Addr { return c.addr }

func (l *from) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	a := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(l.addrs[l.n]))
	l.n++
	return fromConn{c, a}, nil
}

func TestConnectionBounds(t *testing.T) {
	s, err := New(Config{Handler: http.HandlerFunc(hello), MaxConns: 6, MaxPerAddress: 2})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	steps := []struct {
		addr string
		ok   bool
	}{
		{"192.0.2.1:1", true}, {"192.0.2.1:2", true}, {"192.0.2.1:3", false}, // one address
		{"[2001:db8::1]:1", true}, {"[2001:db8::2]:1", true}, {"[2001:db8::3]:1", false}, // one /64
		{"[2001:db8:0:1::1]:1", true}, {"127.0.0.1:1", true}, // others
		{"192.0.2.9:1", false}, // all
	}
	f := &from{Listener: l}
	for _, c := range steps {
		f.addrs = append(f.addrs, c.addr)
	}
	f.addrs = append(f.addrs, "192.0.2.1:9")
	go func() { served <- s.Serve(f) }()
	var open []net.Conn
	dial := func(addr string, ok bool) {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		if got := line == "HTTP/1.1 200 OK\r\n"; got != ok {
			t.Errorf("connection of %s: %q, %v, want accepted %v", addr, line, err, ok)
		}
		if ok {
			open = append(open, c)
		}
	}
	for _, c := range steps {
		dial(c.addr, c.ok)
	}
	st := s.Stats()
	if want := (Stats{Open: 6, Accepted: 6, RefusedAll: 1, RefusedAddress: 2}); st != want {
		t.Errorf("stats = %+v, want %+v", st, want)
	}
	open[0].Close()
	until(t, "the place is given back", func() bool { return s.Stats().Open == 5 })
	dial("192.0.2.1:9", true)
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	until(t, "all places are given back", func() bool { return s.Stats().Open == 0 })
	if len(s.limits.by) != 0 {
		t.Errorf("addresses are kept for ever: %v", s.limits.by)
	}
}

func TestSource(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:1": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1", "[2001:db8::1:2]:3": "2001:db8::",
		"[fe80::1%lo]:3": "fe80::1", "[::1]:1": "::1",
	} {
		if got := source(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got.String() != want {
			t.Errorf("source(%s) = %s, want %s", addr, got, want)
		}
	}
	if got := source(&net.UnixAddr{Name: "/x"}); got.IsValid() {
		t.Errorf("source of a UNIX socket = %v", got)
	}
}

// TestStrict: what two servers could read differently never reaches the handler
// (RFC 9112 §11.2). tether/http1 has the full table.
func TestStrict(t *testing.T) {
	var got atomic.Int32
	addr, _, _ := run(t, func(w http.ResponseWriter, r *http.Request) { got.Add(1) }, nil)
	for name, head := range map[string]string{
		"§6.3 both framings":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"§6.3 repeated length":        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		"§5.1 space before the colon": "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
		"§5.2 folding":                "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
		"§2.2 bare LF":                "GET / HTTP/1.1\nHost: a\n\n",
		"§3.2 two hosts":              "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"§3.2 no host":                "GET / HTTP/1.1\r\n\r\n",
		"§3.2.2 other host":           "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"RFC 9110 §5.5 NUL":           "GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
		"§3 header too large":         "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", DefaultMaxHeader) + "\r\n\r\n",
		"§3 target too long":          "GET /" + strings.Repeat("x", DefaultMaxHeader) + " HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, head)
		line, err := bufio.NewReader(c).ReadString('\n')
		if !strings.HasPrefix(line, "HTTP/1.1 4") {
			t.Errorf("%s: %q, %v, want 4xx", name, line, err)
		}
		c.Close()
	}
	if n := got.Load(); n != 0 {
		t.Errorf("%d requests reached the handler", n)
	}
}

// TestSlowLoris: clients that begin and never end are cut off.
func TestSlowLoris(t *testing.T) {
	addr, s, _ := run(t, hello, func(c *Config) {
		c.HeadTimeout, c.IdleTimeout = 600*time.Millisecond, 600*time.Millisecond
	})
	for name, begin := range map[string]func() net.Conn{
		"no handshake": func() net.Conn { c, _ := net.Dial("tcp", addr); return c },
		"half a head": func() net.Conn {
			c, _ := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
			io.WriteString(c, "GET / HTTP/1.1\r\nHo")
			return c
		},
		"idle": func() net.Conn {
			c, _ := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			return c
		},
	} {
		c := begin()
		until(t, name+": cut off", func() bool { return s.Stats().Open == 0 })
		c.Close()
	}
}

func TestShutdown(t *testing.T) {
	release := make(chan struct{})
	inside := make(chan struct{}, 2)
	addr, s, served := run(t, func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-release
		fmt.Fprint(w, "done")
	}, nil)
	var wg sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		c := client(t, h2)
		wg.Go(func() {
			resp, err := c.Get("https://" + addr)
			if err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) != "done" || err != nil {
				t.Errorf("h2 %v: %q, %v", h2, b, err)
			}
		})
	}
	<-inside
	<-inside
	done := make(chan error)
	go func() { done <- s.Shutdown(context.Background()) }()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("still listening")
	}
	close(release)
	wg.Wait()
	if err := <-done; err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestValidate(t *testing.T) {
	if err := (Config{TLS: &tls.Config{}, MaxConns: -1, Stall: -1}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("not every mistake is reported: %v", err)
	}
}
