package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

const patience = 30 * time.Second // until a test gives up waiting

// running is a relay on loopback.
type running struct {
	*Relay
	t     *testing.T
	dir   string
	base  string // http://127.0.0.1:port
	token string
	log   *syncBuffer
	via   http.RoundTripper // of do; nil: the default one
	stop  func()            // drains and waits
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a relay, without TLS unless edit says otherwise.
func start(t *testing.T, edit func(*Config)) *running {
	t.Helper()
	log := &syncBuffer{}
	cfg := Config{Listen: "127.0.0.1:0", TLSOff: true, Domains: []string{"127.0.0.1", "relay.example"}, StateDir: t.TempDir(),
		Metrics: "127.0.0.1:0", GoAway: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil))}
	if edit != nil {
		edit(&cfg)
	}
	token, err := NewToken(cfg.StateDir, "")
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	select {
	case <-r.Ready():
	case err := <-done:
		t.Fatalf("Run: %v", err)
	}
	scheme := "https://"
	if cfg.TLSOff {
		scheme = "http://"
	}
	run := &running{Relay: r, t: t, dir: cfg.StateDir, base: scheme + r.Addrs().Listen.String(), token: token, log: log}
	run.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * patience):
			t.Error("Run did not end")
		}
		if t.Failed() {
			t.Logf("the relay's log:\n%s", log)
		}
	})
	t.Cleanup(run.stop)
	return run
}

// do sends a request with the token.
func (r *running) do(method, path, body string, edit func(*http.Request)) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.base+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	if edit != nil {
		edit(req)
	}
	if r.via != nil {
		return r.via.RoundTrip(req)
	}
	return http.DefaultTransport.RoundTrip(req)
}

// get is do with the whole answer.
func (r *running) get(path string) (status int, body string) {
	r.t.Helper()
	resp, err := r.do("GET", path, "", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// until waits for something to become true.
func (r *running) until(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

// thing is a device.
type thing struct {
	session.Device
	away chan frame.GoAway
	acks chan tether.EventID
}

func newThing(t *testing.T, name string, h http.HandlerFunc) *thing {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := &thing{away: make(chan frame.GoAway, 10), acks: make(chan tether.EventID, 1000)}
	d.Device = session.Device{
		ID: tether.NewDeviceID([]byte(name)), Key: key, Handler: h, Epoch: 7,
		Info:     func() []byte { return fmt.Appendf(nil, `{"name":%q}`, name) },
		OnGoAway: func(g frame.GoAway) { d.away <- g },
		OnAck:    func(id tether.EventID) { d.acks <- id },
	}
	return d
}

// dial makes one attempt.
func (d *thing) dial(r *running) (*mux.Session, frame.Accept, error) {
	u, err := url.Parse(strings.Replace(r.base, "http", "ws", 1))
	if err != nil {
		return nil, frame.Accept{}, err
	}
	return d.Connect(r.t.Context(), u, "")
}

// connect opens a tether; the relay knows of it when connect returns.
func (d *thing) connect(r *running) *mux.Session {
	r.t.Helper()
	before := r.node.Stats().Opened
	s, _, err := d.dial(r)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close(1000, "test over"); <-s.Done() })
	r.until("the tether is open", func() bool { return r.node.Stats().Opened > before })
	return s
}

func (d *thing) path(p string) string { return "/d/" + string(d.ID) + p }

func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Header().Set("Seen-Client", r.RemoteAddr)
	w.Header().Set("Seen-Id", r.Header.Get(tether.HeaderID))
	w.Header().Set("Seen-Token", r.Header.Get("Authorization")+r.Header.Get("X-Cloudrest-Token"))
	fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.RequestURI, b)
}

func TestDeviceIsReached(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "Garden", echo)
	d.connect(r)
	host := strings.TrimPrefix(r.base, "http://")
	for _, c := range []struct {
		name, path, host, want string
	}{
		{"path", d.path("/a%2Fb//c?x=%20&y"), "", "PUT " + host + " /a%2Fb//c?x=%20&y body"},
		{"host", "/zones?x", d.ID.Label() + ".relay.example", "PUT " + d.ID.Label() + ".relay.example /zones?x body"},
	} {
		resp, err := r.do("PUT", c.path, "body", func(req *http.Request) {
			req.URL.Opaque, req.URL.RawQuery = c.path, "" // as it stands, without the client's own cleaning
			if c.host != "" {
				req.Host = c.host
			}
			req.Header.Set(tether.HeaderID, "forged")
			req.Header.Set("X-Cloudrest-Token", r.token)
		})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(b) != c.want {
			t.Errorf("%s: %d %q, want 200 %q", c.name, resp.StatusCode, b, c.want)
		}
		id := resp.Header.Get(tether.HeaderID)
		if len(id) != 36 || resp.Header.Get("Seen-Id") != id || len(resp.Header.Values(tether.HeaderID)) != 1 {
			t.Errorf("%s: id %q, the device saw %q, want one new UUID", c.name, resp.Header.Values(tether.HeaderID), resp.Header.Get("Seen-Id"))
		}
		if got := resp.Header.Get("Seen-Token"); got != "" {
			t.Errorf("%s: the device saw the token %q", c.name, got)
		}
		if ap, err := netip.ParseAddrPort(resp.Header.Get("Seen-Client")); err != nil || !ap.Addr().IsLoopback() || ap.Port() == 0 {
			t.Errorf("%s: the device saw the client as %q", c.name, resp.Header.Get("Seen-Client"))
		}
	}

	var list struct{ Devices []map[string]any }
	_, body := r.get("/v1/devices/list")
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Devices) != 1 {
		t.Fatalf("list = %q, %v", body, err)
	}
	r.until("the name is known", func() bool { _, b := r.get("/v1/devices/list"); return strings.Contains(b, `"name":"Garden"`) })
	if e := list.Devices[0]; e["online"] != true || e["id"] != string(d.ID) || e["url"] != r.base+d.path("/") {
		t.Errorf("entry = %v", e)
	}
	status, body := r.get("/v1/devices/" + string(d.ID) + "/probe")
	if status != 200 || !strings.Contains(body, `"origin":{"state":"ok","status":200`) {
		t.Errorf("probe: %d %s", status, body)
	}
}

func TestTokenGuard(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "d", echo)
	d.connect(r)
	with := func(token string) int {
		resp, err := r.do("GET", d.path("/"), "", func(req *http.Request) {
			req.Header.Del("Authorization")
			if token != "" {
				req.Header.Set("X-CloudREST-Token", token)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == 401 && resp.Header.Get("Www-Authenticate") == "" {
			t.Error("401 without WWW-Authenticate")
		}
		return resp.StatusCode
	}
	if got := with(""); got != 401 {
		t.Errorf("without a token: %d, want 401", got)
	}
	if got := with("crt_" + strings.Repeat("A", 43)); got != 401 {
		t.Errorf("with a wrong token: %d, want 401", got)
	}
	second, err := NewToken(r.dir, "second")
	if err != nil {
		t.Fatal(err)
	}
	if got := with(second); got != 200 {
		t.Errorf("with a token made a moment ago: %d, want 200", got)
	}
	if err := RevokeToken(r.dir, "second"); err != nil {
		t.Fatal(err)
	}
	r.until("the revoked token is refused", func() bool { return with(second) == 401 })
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get(r.base + path)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("%s without a token: %v, %v", path, resp, err)
		}
		resp.Body.Close()
	}
}

func TestForeignKeyIsRefused(t *testing.T) {
	r := start(t, nil)
	first, thief := newThing(t, "d", echo), newThing(t, "d", echo)
	first.connect(r)
	for range 3 {
		_, _, err := thief.dial(r)
		if refused, ok := errors.AsType[*session.Refused](err); !ok || refused.Code != frame.GoAwayAuth || refused.RetryAfter != 300000 {
			t.Fatalf("a foreign key: %v, want refused with code 2 and 300 s", err)
		}
	}
	if status, body := r.get(first.path("/still")); status != 200 || !strings.Contains(body, "/still") {
		t.Errorf("the true device: %d %q", status, body)
	}
	if !strings.Contains(r.log.String(), "security=device_key_mismatch") || r.node.Stats().RefusedAuth != 3 {
		t.Errorf("no security event, or not counted: %+v", r.node.Stats())
	}
	r.stop() // and after a restart
	again := start(t, func(c *Config) { c.StateDir = r.dir })
	if _, _, err := thief.dial(again); err == nil {
		t.Error("after a restart the foreign key was taken")
	}
	first.connect(again)
}

func TestEnrolmentByList(t *testing.T) {
	r := start(t, func(c *Config) { c.Enroll = EnrollList })
	d := newThing(t, "d", echo)
	_, _, err := d.dial(r)
	if refused, ok := errors.AsType[*session.Refused](err); !ok || refused.Code != frame.GoAwayUnknown {
		t.Fatalf("a device that is not listed: %v, want refused with code 3", err)
	}
	der, err := x509.MarshalPKIXPublicKey(d.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := AddDevice(r.dir, d.ID, []byte(base64.StdEncoding.EncodeToString(der))); err != nil {
		t.Fatal(err)
	}
	s := d.connect(r)
	if status, _ := r.get(d.path("/")); status != 200 {
		t.Errorf("a listed device: %d, want 200", status)
	}
	if err := RemoveDevice(r.dir, d.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(patience):
		t.Fatal("a device that was taken off the list stays connected")
	}
	if g := <-d.away; g.Code != frame.GoAwayUnknown {
		t.Errorf("told %+v, want code 3", g)
	}
}

func TestNewerConnectionTakesOver(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "d", nil)
	answer := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
	}
	d.Handler = answer("0")
	old := d.connect(r)
	// Requests go on all the time; none fails while the connection changes hands.
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if status, body := r.get(d.path("/")); status != 200 {
				t.Errorf("during the change: %d %q", status, body)
				return
			}
		}
	}()
	d.Handler = answer("1")
	d.connect(r)
	if g := <-d.away; g.Code != frame.GoAwayReplaced {
		t.Errorf("the older connection is told %+v, want code 1", g)
	}
	<-old.Done()
	if _, body := r.get(d.path("/")); body != "1" {
		t.Errorf("answer %q, want that of the newer connection", body)
	}
	close(stop)
	<-done
	if n := r.node.Stats(); n.Online != 1 || n.Replaced != 1 {
		t.Errorf("stats = %+v, want one online, one replaced", n)
	}
}

func TestOfflineAndSlow(t *testing.T) {
	r := start(t, func(c *Config) { c.HeadTimeout = 200 * time.Millisecond })
	d := newThing(t, "d", func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	s := d.connect(r)
	status, body := r.get(d.path("/"))
	if want := fmt.Sprintf(`{"device":"%s","error":504,"message":"the device did not answer in time"}`+"\n", d.ID); status != 504 || body != want {
		t.Errorf("a service that does not answer: %d %q, want 504 %q", status, body, want)
	}
	s.Close(1000, "bye")
	r.until("the device is offline", func() bool { status, _ := r.get(d.path("/")); return status == 503 })
	resp, err := r.do("GET", d.path("/"), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e struct {
		Error           int
		Message, Device string
		Since           time.Time
	}
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error != 503 || e.Message != "device offline" || e.Device != string(d.ID) || time.Since(e.Since) > time.Minute {
		t.Errorf("offline: %+v, %v", e, err)
	}
	if resp.Header.Get("Retry-After") == "" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("header = %v", resp.Header)
	}
	if status, body := r.get("/d/" + string(tether.NewDeviceID([]byte("nobody"))) + "/"); status != 404 {
		t.Errorf("a stranger: %d %q, want 404", status, body)
	}
}

// listen opens the event stream of a device.
func (r *running) listen(d *thing, lastID string) *bufio.Reader {
	r.t.Helper()
	resp, err := r.do("GET", "/v1/devices/"+string(d.ID)+"/events", "", func(req *http.Request) {
		if lastID != "" {
			req.Header.Set("Last-Event-ID", lastID)
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		r.t.Fatalf("events: %d %v", resp.StatusCode, resp.Header)
	}
	return bufio.NewReader(resp.Body)
}

// next returns id, name and data of the next event that has data.
func next(t *testing.T, b *bufio.Reader) (id, name, data string) {
	t.Helper()
	got := make(chan error, 1)
	go func() {
		for {
			line, err := b.ReadString('\n')
			if err != nil {
				got <- err
				return
			}
			line = strings.TrimSuffix(line, "\n")
			switch field, value, _ := strings.Cut(line, ": "); {
			case line == "" && data != "":
				got <- nil
				return
			case field == "id":
				id = value
			case field == "event":
				name = value
			case field == "data":
				data += value
			}
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("no event came")
	}
	return id, name, data
}

func TestEventsResumeAcrossRestart(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "d", echo)
	s := d.connect(r)
	live := r.listen(d, "")
	for seq := uint64(1); seq <= 4; seq++ {
		if err := s.Notify(frame.Notify{Epoch: 7, Seq: seq, Topic: "zone", Payload: fmt.Appendf(nil, "event %d", seq)}); err != nil {
			t.Fatal(err)
		}
	}
	for seq := 1; seq <= 4; seq++ {
		id, name, data := next(t, live)
		if id != fmt.Sprintf("0000000000000007-%d", seq) || name != "zone" || data != fmt.Sprintf("event %d", seq) {
			t.Errorf("event %d = %q %q %q", seq, id, name, data)
		}
	}
	for id := range d.acks {
		if id.Seq == 4 {
			break
		}
	}
	r.stop()
	if _, err := io.ReadAll(live); err != nil {
		t.Errorf("the listener's stream ended with %v, want a clean end", err)
	}

	again := start(t, func(c *Config) { c.StateDir = r.dir })
	resumed := again.listen(d, "0000000000000007-2")
	for _, want := range []string{"event 3", "event 4"} {
		if _, _, data := next(t, resumed); data != want {
			t.Errorf("after the restart: %q, want %q", data, want)
		}
	}
	// The device does not know what was acknowledged last, and sends 4 again with 5.
	s, accept, err := d.dial(again)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(1000, ""); <-s.Done() })
	if accept.AckEpoch != 7 || accept.AckSeq != 4 {
		t.Errorf("ACCEPT acknowledges %d-%d, want 7-4", accept.AckEpoch, accept.AckSeq)
	}
	for seq := uint64(4); seq <= 5; seq++ {
		s.Notify(frame.Notify{Epoch: 7, Seq: seq, Topic: "zone", Payload: fmt.Appendf(nil, "event %d", seq)})
	}
	if id, _, data := next(t, resumed); data != "event 5" {
		t.Errorf("then came %q %q, want event 5: event 4 must not come twice", id, data)
	}
}

func TestDrainFailsNoRequest(t *testing.T) {
	r := start(t, func(c *Config) { c.DrainDelay = 300 * time.Millisecond })
	entered, release := make(chan struct{}, 100), make(chan struct{})
	d := newThing(t, "d", func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-req.Context().Done()
			return
		}
		entered <- struct{}{}
		<-release
		io.WriteString(w, strings.Repeat("whole ", 50000))
	})
	d.connect(r)
	ours := r.listen(d, "")
	theirs, err := r.do("GET", d.path("/events"), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const requests = 10
	for range requests {
		wg.Go(func() {
			resp, err := r.do("GET", d.path("/slow"), "", nil)
			if err != nil {
				t.Errorf("a request in flight failed: %v", err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || len(b) != 300000 {
				t.Errorf("a request in flight: %d, %d bytes, %v", resp.StatusCode, len(b), err)
			}
		})
	}
	for range requests {
		<-entered
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	r.until("readyz says no", func() bool {
		resp, err := http.Get(r.base + "/readyz")
		if err != nil {
			return true // the listener is closed already
		}
		defer resp.Body.Close()
		return resp.StatusCode == 503
	})
	if g := <-d.away; g.Code != frame.GoAwayDrain || g.Spread != 0 {
		t.Errorf("the device is told %+v, want drain, and no wait for one device", g)
	}
	io.ReadAll(ours) // both end although requests still run
	io.ReadAll(theirs.Body)
	theirs.Body.Close()
	select {
	case <-stopped:
		t.Error("the relay ended before the requests in flight")
	default:
	}
	close(release)
	wg.Wait()
	<-stopped
}

func TestMetrics(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "d", echo)
	s := d.connect(r)
	r.get(d.path("/"))
	s.Notify(frame.Notify{Epoch: 7, Seq: 1, Payload: []byte("x")})
	<-d.acks
	resp, err := http.Get("http://" + r.Addrs().Metrics.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for _, want := range []string{
		"cloudrelay_devices_online 1", "cloudrelay_sessions_opened_total 1", "cloudrelay_sessions_replaced_total 0",
		`cloudrelay_sessions_refused_total{reason="auth"} 0`, `cloudrelay_requests_total{code="2xx"} 1`, "cloudrelay_requests_in_flight 0",
		"cloudrelay_request_head_seconds_bucket", "cloudrelay_queued_bytes 0", "cloudrelay_notifications_stored_total 1",
		"cloudrelay_handshakes 0", "cloudrelay_auth_failures_total 0",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the metrics lack %q", want)
		}
	}
	if resp, err := http.Get(r.base + "/metrics"); err != nil || resp.StatusCode != 401 {
		t.Errorf("metrics on the clients' listener: %v, %v, want nothing but 401", resp, err)
	}
}

// issue writes a self-signed certificate for 127.0.0.1 and returns it.
func issue(t *testing.T, certFile, keyFile string, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "relay"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, _ := x509.MarshalECPrivateKey(key)
	os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600)
	cert, _ := x509.ParseCertificate(der)
	return cert
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	roots := x509.NewCertPool()
	roots.AddCert(issue(t, certFile, keyFile, 1))
	r := start(t, func(c *Config) { c.TLSOff, c.TLSCert, c.TLSKey = false, certFile, keyFile })
	d := newThing(t, "d", echo)
	d.TLS = &tls.Config{RootCAs: roots}
	s := d.connect(r)

	serial := func() int64 {
		c, err := tls.Dial("tcp", r.Addrs().Listen.String(), &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Errorf("certificate %d, want 1", got)
	}
	os.WriteFile(certFile, []byte("half written"), 0o600)
	r.cert.look()
	if got := serial(); got != 1 {
		t.Errorf("while the files do not fit: certificate %d, want 1", got)
	}
	roots.AddCert(issue(t, certFile, keyFile, 2))
	r.cert.look()
	if got := serial(); got != 2 {
		t.Errorf("certificate %d, want the new one", got)
	}
	select {
	case <-s.Done():
		t.Error("the new certificate ended a tether")
	default:
	}
	// A client with HTTP/2.
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequest("POST", r.base+d.path("/x"), strings.NewReader("hello"))
	req.Header.Set("X-CloudREST-Token", r.token)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != 200 || !strings.HasSuffix(string(b), "/x hello") {
		t.Errorf("%s %d %q, want HTTP/2 200", resp.Proto, resp.StatusCode, b)
	}
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.1": {RootCAs: roots, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
		"CBC":     {RootCAs: roots, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"RSA":     {RootCAs: roots, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		if c, err := tls.Dial("tcp", r.Addrs().Listen.String(), cfg); err == nil {
			c.Close()
			t.Errorf("%s was taken", name)
		}
	}
}

func TestStrictEdge(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "d", func(http.ResponseWriter, *http.Request) { t.Error("a refused request reached the device") })
	d.connect(r)
	p := d.path("/")
	auth := "\r\nX-CloudREST-Token: " + r.token
	for name, raw := range map[string]string{
		"two lengths":          "POST " + p + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2" + auth + "\r\n\r\nab",
		"negative length":      "POST " + p + " HTTP/1.1\r\nHost: x\r\nContent-Length: -1" + auth + "\r\n\r\n",
		"unknown coding":       "POST " + p + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked" + auth + "\r\n\r\n",
		"space before colon":   "GET " + p + " HTTP/1.1\r\nHost: x\r\nX-A : b" + auth + "\r\n\r\n",
		"NUL in a field":       "GET " + p + " HTTP/1.1\r\nHost: x\r\nX-A: b\x00c" + auth + "\r\n\r\n",
		"length and chunks":    "POST " + p + " HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked" + auth + "\r\n\r\n0\r\n\r\n",
		"obs-fold":             "GET " + p + " HTTP/1.1\r\nHost: x" + auth + "\r\nX-A: b\r\n c\r\n\r\n",
		"bare LF":              "GET " + p + " HTTP/1.1\nHost: x" + strings.ReplaceAll(auth, "\r", "") + "\n\n",
		"two hosts":            "GET " + p + " HTTP/1.1\r\nHost: x\r\nHost: y" + auth + "\r\n\r\n",
		"no host":              "GET " + p + " HTTP/1.1" + auth + "\r\n\r\n",
		"absolute form":        "GET http://other" + p + " HTTP/1.1\r\nHost: x" + auth + "\r\n\r\n",
		"TRACE":                "TRACE " + p + " HTTP/1.1\r\nHost: x" + auth + "\r\n\r\n",
		"CONNECT":              "CONNECT x:1 HTTP/1.1\r\nHost: x" + auth + "\r\n\r\n",
		"header over the size": "GET " + p + " HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 2*headerBytes) + auth + "\r\n\r\n",
	} {
		c, err := net.Dial("tcp", r.Addrs().Listen.String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		go io.WriteString(c, raw)
		line, _ := bufio.NewReader(c).ReadString('\n')
		if !strings.Contains(line, " 4") && !strings.Contains(line, " 501") && line != "" {
			t.Errorf("%s: %q, want a refusal", name, line)
		}
		c.Close()
	}
}

func TestWebSocketThroughTheRelay(t *testing.T) {
	r := start(t, nil)
	d := newThing(t, "d", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Upgrade", "echo")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		line, _ := rw.ReadString('\n')
		io.WriteString(c, "echo "+line)
	})
	d.connect(r)
	c, err := net.Dial("tcp", r.Addrs().Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-CloudREST-Token: %s\r\n\r\n", d.path("/ws"), r.token)
	b := bufio.NewReader(c)
	resp, err := http.ReadResponse(b, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	io.WriteString(c, "hello\n")
	if line, err := b.ReadString('\n'); line != "echo hello\n" {
		t.Errorf("tunnel: %q, %v", line, err)
	}
}

func TestSecondRelayOnOneStore(t *testing.T) {
	r := start(t, nil)
	cfg := r.cfg
	cfg.Listen = "127.0.0.1:0"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second relay on the same state: %v, want that it is in use", err)
	}
}
