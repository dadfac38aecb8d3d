package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/proof"
	"github.com/cloudrest/cloudrest/tether/session"
)

// relay takes tethers and forwards /d/<id>/<path>.
type relay struct {
	mu       sync.Mutex // guards sessions
	sessions map[tether.DeviceID]*mux.Session
	refuse   error
}

func (rl *relay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == tether.TetherPath {
		s := session.Relay{Names: []string{"*"}, TLSEnds: true, Verify: func(context.Context, *session.Peer) error { return rl.refuse }, Spread: func() time.Duration { return time.Second }}
		s.Accept(w, r, func(s *mux.Session, p *session.Peer) mux.Handlers {
			rl.mu.Lock()
			defer rl.mu.Unlock()
			rl.sessions[p.ID] = s
			return mux.Handlers{}
		})
		return
	}
	id, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/d/"), "/")
	rl.mu.Lock()
	s := rl.sessions[tether.DeviceID(id)]
	rl.mu.Unlock()
	if s == nil {
		http.Error(w, "offline", http.StatusServiceUnavailable)
		return
	}
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	if err := exchange.Forward(w, r, s, exchange.Options{Path: "/" + path, Client: r.RemoteAddr}); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
}

func start(t *testing.T, n int, refuse error) (*relay, *httptest.Server, *Fleet) {
	t.Helper()
	rl := &relay{sessions: map[tether.DeviceID]*mux.Session{}, refuse: refuse}
	srv := httptest.NewTLSServer(rl)
	t.Cleanup(srv.Close)
	u, _ := url.Parse("wss" + strings.TrimPrefix(srv.URL, "https"))
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	f, err := New(Config{Devices: n, Relay: u, TLS: &tls.Config{RootCAs: roots}, Seed: "test", Rate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if got := f.Stats().Connected; got != 0 {
			t.Errorf("%d connected after Run, want none", got)
		}
	})
	return rl, srv, f
}

func eventually(t *testing.T, f *Fleet, what string, ok func(Stats) bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(f.Stats()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never %s: %+v", what, f.Stats())
		}
	}
}

func TestFleet(t *testing.T) {
	const n = 20
	rl, srv, f := start(t, n, nil)
	eventually(t, f, "all connected", func(s Stats) bool { return s.Connected == n })

	get := func(i int, path string) string {
		t.Helper()
		res, err := srv.Client().Get(srv.URL + "/d/" + string(ID("test", i)) + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(res.Body); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %s, %v", path, res.Status, err)
		}
		return b.String()
	}
	if got := get(7, "/device"); !strings.Contains(got, `"name":"Simulated 7"`) {
		t.Errorf("/device = %s", got)
	}
	for path, want := range map[string]int{"/x": defaultAnswer, "/x?size=0": 0, "/x?size=10": 10, "/x?size=100000": 100_000} {
		if got := len(get(0, path)); got != want {
			t.Errorf("GET %s: %d bytes, want %d", path, got, want)
		}
	}
	if got := f.Stats().Requests; got != 5 {
		t.Errorf("%d requests counted, want 5", got)
	}

	// A tether that breaks is made again; one that is told to move is replaced first.
	rl.mu.Lock()
	rl.sessions[ID("test", 0)].Carrier().Close(0, "")
	moving := rl.sessions[ID("test", 1)]
	moving.GoAway(frame.GoAway{Code: frame.GoAwayDrain})
	rl.mu.Unlock()
	eventually(t, f, "two more tethers", func(s Stats) bool { return s.Reconnects == 2 })
	if s := f.Stats(); s.Lost != 1 || s.Connected != n+1 {
		t.Errorf("lost %d, connected %d, want 1, and %d with the old tether", s.Lost, s.Connected, n+1)
	}
	moving.Close(1001, "drained")
	eventually(t, f, "the old tether gone", func(s Stats) bool { return s.Connected == n })
	get(1, "/device")
}

func TestRefused(t *testing.T) {
	_, _, f := start(t, 3, session.ErrUnknown)
	eventually(t, f, "all refused", func(s Stats) bool { return s.Failures == 3 })
	if s := f.Stats(); s.Connects != 0 {
		t.Errorf("%d connects, want none", s.Connects)
	}
}

func TestSeedDecides(t *testing.T) {
	// Fixed for ever: enrolled fleets are found again by it.
	if got, want := ID("demo", 0), tether.DeviceID("94205625dde0a64bec9bb8d9a9b1b7eb3afa0865ddd402e494cc423a77030ef4"); got != want {
		t.Errorf("ID = %s, want %s", got, want)
	}
	if got, want := proof.KeyID(spki(t, "demo", 0)), "d85a73796d32b58b5522ec47015fb76a"; got != want {
		t.Errorf("key = %s, want %s", got, want)
	}
	if ID("a", 1) == ID("b", 1) || ID("a", 1) == ID("a", 2) || Key("a", 1).Equal(Key("a", 2)) || Key("a", 1).Equal(Key("b", 1)) {
		t.Error("two devices share an ID or a key")
	}
}

func spki(t *testing.T, seed string, i int) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(Key(seed, i).Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestConfig(t *testing.T) {
	u, _ := url.Parse("https://relay.example")
	for _, cfg := range []Config{{Devices: 1}, {Devices: 1, Relay: u}, {Devices: 0, Relay: &url.URL{Scheme: "wss"}}, {Devices: MaxDevices + 1, Relay: &url.URL{Scheme: "wss"}}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v): no error", cfg)
		}
	}
}
