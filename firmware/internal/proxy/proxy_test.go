package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

// front is a proxy behind a real TLS server, in front of an origin.
type front struct {
	*httptest.Server
	proxy *Proxy
	gate  *admit.Gate
	log   *bytes.Buffer
}

type option func(*Config, *origin.Config, *admit.Config)

func newFront(t *testing.T, target string, opts ...option) *front {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	oc := origin.Config{URL: u}
	ac := admit.Config{Concurrency: 16}
	pc := Config{Logger: slog.New(slog.NewTextHandler(log, nil))}
	for _, o := range opts {
		o(&pc, &oc, &ac)
	}
	c, err := origin.New(oc)
	if err != nil {
		t.Fatal(err)
	}
	pc.Origin, pc.Gate = c, admit.New(ac)
	p, err := New(pc)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(p.For(admit.LAN))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	f := &front{Server: s, proxy: p, gate: pc.Gate}
	t.Cleanup(func() {
		p.Close()
		s.Close()
		c.Close()
		if st := pc.Gate.Stats(); st.InOrigin+st.Queued+st.Streams != 0 {
			t.Errorf("places leaked: %+v", st)
		}
	})
	return f
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

// h1 and h2 are clients of the two protocol versions.
func (f *front) h1() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
		DisableCompression: true,
	}}
}

func (f *front) h2() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
	}}
}

func (f *front) both(t *testing.T, test func(t *testing.T, c *http.Client)) {
	for name, c := range map[string]*http.Client{"h1": f.h1(), "h2": f.h2()} {
		t.Run(name, func(t *testing.T) {
			defer c.CloseIdleConnections()
			test(t, c)
		})
	}
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	t.Cleanup(s.Close)
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

// readHead consumes one request head.
func readHead(r *bufio.Reader) (head string, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return head, err
		}
		if line == "\r\n" {
			return head, nil
		}
		head += line
	}
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
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

func TestRoundTrip(t *testing.T) {
	var seen http.Header
	var target, host string
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen, target, host = r.Header.Clone(), r.RequestURI, r.Host
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Two", "a")
		w.Header().Add("X-Two", "b")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Via", "1.1 inner")
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "%s %s", r.Method, b)
	})
	f := newFront(t, o)
	f.both(t, func(t *testing.T, c *http.Client) {
		req, _ := http.NewRequest("PUT", f.URL+"/a%2Fb//c/../d?x=%20&y;z", strings.NewReader("hello"))
		for k, v := range map[string]string{
			"Forwarded": "for=6.6.6.6", "X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher", "X_Forwarded_For": "6.6.6.6",
			"X-Forwarded-Prefix": "/evil", "X-Real-Ip": "6.6.6.6", tether.HeaderID: "11111111-1111-4111-8111-111111111111",
			tether.HeaderSequenceID: "42", "Cookie": "a=b", "Authorization": "Bearer x", "Proxy-Authorization": "x", "Via": "1.0 phone",
		} {
			req.Header[k] = []string{v}
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 201 || string(b) != "PUT hello" {
			t.Errorf("answer = %d %q", resp.StatusCode, b)
		}
		if target != "/a%2Fb//c/../d?x=%20&y;z" || host != req.URL.Host {
			t.Errorf("target, host = %q, %q", target, host)
		}
		id := seen.Get(tether.HeaderID)
		if !isUUID(id) || id == "11111111-1111-4111-8111-111111111111" {
			t.Errorf("id = %q, want a new one (LAN)", id)
		}
		via := "1.1 cloudrest"
		if resp.ProtoMajor == 2 {
			via = "2 cloudrest"
		}
		want := http.Header{
			"Cookie": {"a=b"}, "Authorization": {"Bearer x"}, "User-Agent": {"Go-http-client/" + strings.TrimPrefix(resp.Proto, "HTTP/")},
			"Via": {"1.0 phone", via}, tether.HeaderID: {id}, tether.HeaderSequenceID: {"42"},
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {req.URL.Host},
			"Forwarded": {`for=127.0.0.1;host="` + req.URL.Host + `";proto=https`}, "Content-Length": {"5"},
		}
		if !reflect.DeepEqual(seen, want) {
			t.Errorf("the origin saw\n%v, want\n%v", seen, want)
		}
		if got := resp.Header["X-Two"]; !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("X-Two = %q", got)
		}
		for k, v := range map[string]string{"X-Hop": "", "Via": "1.1 inner, 1.1 cloudrest", tether.HeaderID: id, tether.HeaderSequenceID: "42", "Etag": `"1"`} {
			if got := resp.Header.Get(k); got != v {
				t.Errorf("%s = %q, want %q", k, got, v)
			}
		}
	})
}

var _ = errors.Is
var _ = context.Background
var _ = httptrace.WithClientTrace
var _ textproto.MIMEHeader
var _ = json.Marshal
var _ = time.Now
