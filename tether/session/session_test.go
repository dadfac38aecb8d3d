package session_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

// relayServer is a relay on loopback with TLS that ends there.
type relayServer struct {
	*httptest.Server
	relay    *session.Relay
	sessions chan *mux.Session
	peers    chan *session.Peer
	handlers mux.Handlers
}

func newRelay(t testing.TB) *relayServer {
	t.Helper()
	rs := &relayServer{sessions: make(chan *mux.Session, 16), peers: make(chan *session.Peer, 16)}
	rs.relay = &session.Relay{
		Names: []string{"127.0.0.1", "example.com"}, TLSEnds: true,
		Verify: func(context.Context, *session.Peer) error { return nil },
	}
	rs.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rs.relay.Accept(w, r, func(s *mux.Session, p *session.Peer) mux.Handlers {
			rs.sessions <- s
			rs.peers <- p
			return rs.handlers
		})
	}))
	t.Cleanup(rs.Close)
	return rs
}

func newDevice(t testing.TB, rs *relayServer, h http.Handler) *session.Device {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(rs.Certificate())
	return &session.Device{
		ID: tether.NewDeviceID([]byte(t.Name())), Key: key, TLS: &tls.Config{RootCAs: roots}, Handler: h,
		Info: func() []byte { return []byte(`{"name":"x"}`) }, Epoch: 7,
	}
}

func (rs *relayServer) url() *url.URL {
	u, _ := url.Parse(strings.Replace(rs.URL, "https", "wss", 1))
	return u
}

// connect gives both ends of an open tether.
func connect(t testing.TB, rs *relayServer, d *session.Device) (relay, device *mux.Session) {
	t.Helper()
	device, _, err := d.Connect(t.Context(), rs.url(), "")
	if err != nil {
		t.Fatal(err)
	}
	relay = <-rs.sessions
	t.Cleanup(func() {
		device.Close(1000, "test over")
		<-device.Done()
		<-relay.Done()
	})
	return relay, device
}

// front serves clients through the session.
func front(t testing.TB, s *mux.Session) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := exchange.Forward(w, r, s, exchange.Options{ID: "id-1"}); err != nil {
			e := err.(*exchange.Error)
			http.Error(w, e.Error(), e.Status)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestEndToEnd(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "text/x")
		w.Header().Set("X-Cloudrest-Id", "forged")
		fmt.Fprintf(w, "%s %s %s %d %s", r.Method, r.URL, r.Header.Get("X-Cloudrest-Id"), r.ContentLength, b)
	}))
	relay, _ := connect(t, rs, d)
	srv := front(t, relay)
	for _, body := range []string{"", "hello", strings.Repeat("0123456789", 20000)} {
		resp, err := http.Post(srv.URL+"/a?b=c", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		want := fmt.Sprintf("POST /a?b=c id-1 %d %s", len(body), body)
		if err != nil || string(got) != want || resp.Header.Get("X-Cloudrest-Id") != "id-1" || resp.Header.Get("Content-Type") != "text/x" {
			t.Errorf("got %d bytes, %v, %v, want %d", len(got), err, resp.Header, len(want))
		}
		resp.Body.Close()
	}
	if p := <-rs.peers; p.ID != d.ID || string(p.Info) != `{"name":"x"}` || p.Epoch != 7 || p.Streams != mux.DefaultStreams {
		t.Errorf("peer = %+v", p)
	}
	if n := relay.Streams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

func TestLargeBothWays(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	relay, _ := connect(t, rs, d)
	srv := front(t, relay)
	want := make([]byte, 8<<20)
	rand.Read(want)
	resp, err := http.Post(srv.URL, "application/octet-stream", io.MultiReader(bytes.NewReader(want)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("echo of %d bytes = %d bytes, %v", len(want), len(got), err)
	}
}
