package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

// smallRelay is the least that a relay is: it takes one device and forwards to it.
type smallRelay struct {
	*httptest.Server
	ca string // its certificate, a PEM file

	mu     sync.Mutex
	peer   session.Peer
	last   *mux.Session
	opened int
	infos  []string
	lan    string
	events []frame.Notify
	stale  []string               // what INVALIDATE named; "*" is everything
	hold   func(frame.Invalidate) // called before INVALIDATED; may be nil
}

func newSmallRelay(t *testing.T) *smallRelay {
	t.Helper()
	r := &smallRelay{}
	accept := &session.Relay{Names: []string{"*"}, TLSEnds: true, Verify: func(context.Context, *session.Peer) error { return nil }}
	m := http.NewServeMux()
	m.HandleFunc(tether.TetherPath, func(w http.ResponseWriter, q *http.Request) { accept.Accept(w, q, r.open) })
	m.HandleFunc("/d/", func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		s := r.last
		r.mu.Unlock()
		if s == nil {
			http.Error(w, "offline", http.StatusServiceUnavailable)
			return
		}
		path := strings.TrimPrefix(q.URL.RequestURI(), "/d")
		if err := exchange.Forward(w, q, s, exchange.Options{Path: path, Client: "192.0.2.33", ID: q.Header.Get(tether.HeaderID)}); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	})
	r.Server = httptest.NewTLSServer(m)
	t.Cleanup(func() {
		r.drop()
		r.Close()
	})
	r.ca = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	if err := os.WriteFile(r.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *smallRelay) open(s *mux.Session, p *session.Peer) mux.Handlers {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.peer = s, *p
	r.opened++
	r.infos = append(r.infos, string(p.Info))
	return mux.Handlers{
		OnNotify: func(n frame.Notify) {
			n.Payload = bytes.Clone(n.Payload)
			r.mu.Lock()
			r.events = append(r.events, n)
			r.mu.Unlock()
			go s.Ack(tether.EventID{Epoch: n.Epoch, Seq: n.Seq})
		},
		OnInvalidate: func(v frame.Invalidate) {
			r.mu.Lock()
			hold := r.hold
			r.stale = append(r.stale, v.URIs...)
			if v.Flags&frame.FlagAll != 0 {
				r.stale = append(r.stale, "*")
			}
			r.mu.Unlock()
			if hold != nil {
				hold(v)
			}
		},
		OnDescribe: func(b []byte) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.infos = append(r.infos, string(b))
		},
		OnLocate: func(lan string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.lan = lan
		},
	}
}

func (r *smallRelay) drop() {
	r.mu.Lock()
	s := r.last
	r.mu.Unlock()
	if s != nil {
		s.Close(0, "dropped")
	}
}

func (r *smallRelay) url(t *testing.T) []*url.URL {
	t.Helper()
	u, err := url.Parse("wss" + strings.TrimPrefix(r.URL, "https"))
	if err != nil {
		t.Fatal(err)
	}
	return []*url.URL{u}
}

func (r *smallRelay) get(t *testing.T, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", r.URL+"/d"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(tether.HeaderID, "0190b36e-8a64-7d2f-9a67-1f6a5d3c2b10")
	resp, err := r.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestTether(t *testing.T) {
	relay := newSmallRelay(t)
	g := start(t, Config{OriginHandler: garden(), Relays: relay.url(t), RelayCA: relay.ca})
	up := func(sessions int) { // on both sides: the relay's is open a moment after ACCEPT
		g.until(t, "tether up", func(s Status) bool {
			relay.mu.Lock()
			defer relay.mu.Unlock()
			return s.Tether.State == "up" && relay.opened == sessions
		})
	}
	up(1)

	// Who speaks, and what of.
	relay.mu.Lock()
	peer := relay.peer
	relay.mu.Unlock()
	if peer.ID != g.ID() {
		t.Errorf("the relay knows %s, want %s", peer.ID, g.ID())
	}
	g.until(t, "relay has the descriptor", func(Status) bool {
		relay.mu.Lock()
		defer relay.mu.Unlock()
		return strings.Contains(relay.infos[len(relay.infos)-1], `"color":"green"`)
	})

	g.until(t, "relay has the LAN address", func(Status) bool {
		relay.mu.Lock()
		defer relay.mu.Unlock()
		return relay.lan == g.URL() // the test's gateway listens on loopback alone
	})

	// A request to the service, with the client's address as the relay says and its id.
	resp, body := relay.get(t, "/echo/x?y=1")
	if resp.StatusCode != 200 || body != "GET /echo/x?y=1 proto=https for=192.0.2.33 " {
		t.Errorf("through the relay: %d %q", resp.StatusCode, body)
	}
	if id := resp.Header.Get(tether.HeaderID); id != "0190b36e-8a64-7d2f-9a67-1f6a5d3c2b10" {
		t.Errorf("id = %q, want the relay's", id)
	}
	// The gateway's own page.
	resp, body = relay.get(t, StatusPath)
	var s Status
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.ID != g.ID() || s.Tether.State != "up" {
		t.Errorf("status through the relay: %d %s", resp.StatusCode, body)
	}

	// Notifications arrive once and are acknowledged.
	for _, text := range []string{"one", "two"} {
		if _, err := g.Notify(t.Context(), "t", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	g.until(t, "acknowledged", func(s Status) bool { return s.Notifications.Unacked == 0 && s.Notifications.Appended == 2 })

	// The relay goes; what happens meanwhile is kept; it comes back by itself.
	relay.drop()
	g.until(t, "tether down", func(s Status) bool { // or back already: the wait is random
		relay.mu.Lock()
		defer relay.mu.Unlock()
		return s.Tether.State == "down" || relay.opened == 2
	})
	if _, err := g.Notify(t.Context(), "t", []byte("three")); err != nil {
		t.Fatal(err)
	}
	if resp, _ := g.get(t, "/echo/"); resp.StatusCode != 200 {
		t.Errorf("the LAN without a tether: %d", resp.StatusCode)
	}
	up(2)
	g.until(t, "all is acknowledged", func(s Status) bool { return s.Notifications.Unacked == 0 })
	relay.mu.Lock()
	defer relay.mu.Unlock()
	var got []string
	for _, e := range relay.events {
		got = append(got, string(e.Payload))
	}
	if strings.Join(got, " ") != "one two three" || relay.opened != 2 {
		t.Errorf("notifications %q over %d sessions, want one two three over 2", got, relay.opened)
	}
}

func TestTetherRefusesAWrongAuthority(t *testing.T) {
	relay, other := newSmallRelay(t), newSmallRelay(t)
	// httptest servers share one certificate: another authority is made of the gateway's own.
	g := start(t, Config{OriginHandler: garden()})
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.cert.Leaf().Raw})
	if err := os.WriteFile(other.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{OriginHandler: garden(), Relays: relay.url(t), RelayCA: other.ca})
	r.until(t, "the dial fails", func(s Status) bool { return strings.Contains(s.Tether.Error, "certificate") })
	relay.mu.Lock()
	defer relay.mu.Unlock()
	if relay.opened != 0 {
		t.Error("the relay with a foreign certificate got a session")
	}
}

func TestRelayCAWithoutCertificates(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	cfg := Config{OriginHandler: garden(), StateDir: dir, Relays: []*url.URL{{Scheme: "wss", Host: "a.example"}}, RelayCA: file}
	if g, err := New(cfg); err == nil || !strings.Contains(err.Error(), "relay-ca") {
		t.Errorf("New = %v, %v, want an error about relay-ca", g, err)
	}
	cfg.RelayCA = ""
	g, err := New(cfg)
	if err != nil {
		t.Fatalf("the failed New kept the state directory: %v", err)
	}
	g.Close()
	if err := g.Run(t.Context()); err == nil {
		t.Error("Run after Close: no error")
	}
}
