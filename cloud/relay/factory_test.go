package relay

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/proof"
	"github.com/cloudrest/cloudrest/tether/session"
)

const day = 24 * time.Hour

// maker is a factory with its authority in a file.
type maker struct {
	*devcert.Authority
	file string
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	ca, err := devcert.NewAuthority("Factory", time.Now().Add(-365*day), time.Now().Add(365*day))
	if err != nil {
		t.Fatal(err)
	}
	m := &maker{ca, filepath.Join(t.TempDir(), "factory.pem")}
	certs, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.file, certs, 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *maker) issue(t *testing.T, id tether.DeviceID, key crypto.PublicKey, from, to time.Time) [][]byte {
	t.Helper()
	chain, err := m.Issue(id, key, from, to)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// carry gives a device a chain.
func (d *thing) carry(chain [][]byte) *thing {
	d.Certificate = func() [][]byte { return chain }
	return d
}

// certify gives it a good one.
func (m *maker) certify(t *testing.T, d *thing) *thing {
	t.Helper()
	return d.carry(m.issue(t, d.ID, d.Key.Public(), time.Now().Add(-day), time.Now().Add(90*day)))
}

// edge is a relay in factory mode, with TLS at the relay or before it.
type edge struct {
	*running
	maker *maker
	roots *x509.CertPool // of the relay's own certificate; nil: plain
}

func factoryRelay(t *testing.T, m *maker, secure bool, edit func(*Config)) *edge {
	t.Helper()
	e := &edge{maker: m}
	dir := t.TempDir()
	e.running = start(t, func(c *Config) {
		c.Enroll, c.FactoryCA = EnrollFactory, []string{m.file}
		if secure {
			c.TLSOff, c.TLSCert, c.TLSKey = false, filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
			e.roots = x509.NewCertPool()
			e.roots.AddCert(issue(t, c.TLSCert, c.TLSKey, 1))
		}
		if edit != nil {
			edit(c)
		}
	})
	if secure {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.roots}}
		t.Cleanup(tr.CloseIdleConnections)
		e.via = tr
	}
	return e
}

// device is one that trusts the relay.
func (e *edge) device(name string) *thing {
	d := newThing(e.t, name, echo)
	if e.roots != nil {
		d.TLS = &tls.Config{RootCAs: e.roots}
	}
	return d
}

// both runs a test with TLS at the relay and with TLS before it.
func both(t *testing.T, f func(t *testing.T, e *edge)) {
	for name, secure := range map[string]bool{"TLS at the relay": true, "TLS before the relay": false} {
		t.Run(name, func(t *testing.T) { f(t, factoryRelay(t, newMaker(t), secure, nil)) })
	}
}

// refused dials and wants GOAWAY code with a text that begins so, and the event in the log.
func (e *edge) refused(what string, d *thing, code frame.GoAwayCode, text, event string) {
	e.t.Helper()
	before := strings.Count(e.log.String(), "security="+event+" ")
	s, _, err := d.dial(e.running)
	if err == nil {
		s.Close(1000, "")
		e.t.Errorf("%s: the device is in, want GOAWAY %d", what, code)
		return
	}
	r, ok := errors.AsType[*session.Refused](err)
	if !ok || r.Code != code || !strings.HasPrefix(r.Text, text) || r.RetryAfter < 60_000 {
		e.t.Errorf("%s: %v, want GOAWAY %d, %q, and no hurry", what, err, code, text)
	}
	e.until(what+": the event "+event, func() bool { return strings.Count(e.log.String(), "security="+event+" ") == before+1 })
}

// forged says that it has one key and signs with another.
type forged struct {
	crypto.Signer // signs
	public        crypto.PublicKey
}

func (f forged) Public() crypto.PublicKey { return f.public }

func TestFactoryMode(t *testing.T) {
	both(t, func(t *testing.T, e *edge) {
		m, foreign := e.maker, newMaker(t)
		now := time.Now()
		from, to := now.Add(-day), now.Add(day)

		d := m.certify(t, e.device("good"))
		d.connect(e.running)
		if status, _ := e.get(d.path("/")); status != 200 {
			t.Errorf("a certified device: %d, want 200", status)
		}
		x := func() *thing { return e.device("x") }
		e.refused("no certificate", x(), frame.GoAwayUnknown, "certificate missing", "device_certificate_missing")
		bad := x()
		bad.carry(m.issue(t, bad.ID, bad.Key.Public(), now.Add(-3*day), now.Add(-2*day)))
		e.refused("expired", bad, frame.GoAwayAuth, "certificate expired "+now.Add(-2*day).UTC().Format("2006-01-02"), "device_certificate_expired")
		e.refused("another factory", foreign.certify(t, x()), frame.GoAwayUnknown, "certificate foreign", "device_certificate_foreign")
		bad = x()
		e.refused("the certificate of another device", bad.carry(m.issue(t, d.ID, bad.Key.Public(), from, to)), frame.GoAwayAuth, "certificate mismatch", "device_certificate_mismatch")
		// The thief has everything of d but its key.
		thief := e.device("good")
		thief.carry(d.Certificate())
		if e.roots != nil { // TLS notices first that the certificate's key is not there
			if _, _, err := thief.dial(e.running); err == nil {
				t.Error("a stolen certificate with another key is in")
			}
			thief.Certificate = nil
			e.refused("a right ID, another key, no certificate", thief, frame.GoAwayUnknown, "certificate missing", "device_certificate_missing")
		} else {
			e.refused("a stolen certificate with another key", thief, frame.GoAwayAuth, "certificate mismatch", "device_certificate_mismatch")
			thief.Key = forged{thief.Key, d.Key.Public()}
			e.refused("a stolen certificate, its key, another's signature", thief, frame.GoAwayAuth, "the signature does not match", "device_proof_invalid")
		}
		if _, online := e.node.Seen(d.ID); !online {
			t.Error("the true device was thrown out")
		}
		for reason, n := range map[string]int{"certificate_missing": 1, "certificate_expired": 1, "certificate_foreign": 1} {
			if e.roots != nil && reason == "certificate_missing" {
				n = 2
			}
			if want := fmt.Sprintf("cloudrelay_sessions_refused_total{reason=%q} %d\n", reason, n); !strings.Contains(e.metrics(), want) {
				t.Errorf("the metrics lack %q", want)
			}
		}
	})
}

func (e *edge) metrics() string {
	e.t.Helper()
	resp, err := http.Get("http://" + e.Addrs().Metrics.String() + "/metrics")
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return string(text)
}

// raw opens the WebSocket of a relay, with client certificates or without, and gives its
// first message.
func raw(t *testing.T, base string, shown ...tls.Certificate) (*websocket.Conn, frame.Challenge, []byte) {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true}
	if len(shown) > 0 {
		cfg.Certificates, cfg.NextProtos = shown, []string{tether.ALPN, "http/1.1"}
	}
	d := websocket.Dialer{TLSClientConfig: cfg, Subprotocols: []string{tether.Subprotocol}, HandshakeTimeout: patience}
	c, _, err := d.Dial(strings.Replace(base, "http", "ws", 1)+tether.TetherPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	_, msg, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := frame.Next(msg)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := frame.ParseChallenge(f.Body)
	if err != nil {
		t.Fatal(err)
	}
	return c, ch, msg
}

// hello is the HELLO of d for the challenge that came on c.
func hello(t *testing.T, c *websocket.Conn, ch frame.Challenge, d *thing) []byte {
	t.Helper()
	h := frame.Hello{Version: 1, Device: string(d.ID), Window: 32 << 10, Streams: 1, Epoch: 1, Chain: d.Certificate()}
	var exporter []byte
	if ch.Binding == frame.BindExporter {
		state := c.NetConn().(*tls.Conn).ConnectionState()
		var err error
		if exporter, err = state.ExportKeyingMaterial(proof.ExporterLabel, []byte{}, proof.ExporterSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := proof.Sign(&h, d.Key, &ch, exporter); err != nil {
		t.Fatal(err)
	}
	b, err := frame.AppendHello(nil, &h)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answer sends a message on c and gives the first frame that comes back.
func answer(t *testing.T, c *websocket.Conn, msg []byte) frame.Frame {
	t.Helper()
	if err := c.WriteMessage(websocket.BinaryMessage, msg); err != nil {
		t.Fatal(err)
	}
	_, got, err := c.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := frame.Next(got)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What proved a device once proves nothing a second time.
func TestReplay(t *testing.T) {
	both(t, func(t *testing.T, e *edge) {
		d := e.maker.certify(t, e.device("d"))
		first, ch, _ := raw(t, e.base)
		record := hello(t, first, ch, d)
		if f := answer(t, first, record); f.Type != frame.TypeAccept {
			t.Fatalf("the first time: %v, want ACCEPT", f.Type)
		}
		second, _, _ := raw(t, e.base)
		f := answer(t, second, record)
		if g, err := frame.ParseGoAway(f.Body); f.Type != frame.TypeGoAway || err != nil || g.Code != frame.GoAwayAuth || !strings.HasPrefix(g.Text, "the signature does not match") {
			t.Errorf("the second time: %v %+v, want GOAWAY 2 with the reason", f.Type, g)
		}
		e.until("the event of the replay", func() bool {
			return strings.Contains(e.log.String(), "security=device_proof_invalid device="+string(d.ID))
		})
	})
}

// rogue passes everything between a device and the true relay, and may rename the relay in
// the challenge.
func rogue(t *testing.T, base string, secure *tls.Config, rename string) (addr string) {
	t.Helper()
	up := websocket.Upgrader{Subprotocols: []string{tether.Subprotocol}}
	var wg sync.WaitGroup
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		device, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		wg.Add(1)
		defer wg.Done()
		defer device.Close()
		relay, _, challenge := raw(t, base)
		if rename != "" {
			f, _, _ := frame.Next(challenge)
			ch, _ := frame.ParseChallenge(f.Body)
			ch.Relay = rename
			challenge = frame.AppendChallenge(nil, &ch)
		}
		device.WriteMessage(websocket.BinaryMessage, challenge)
		_, hello, err := device.ReadMessage()
		if err != nil {
			return
		}
		relay.WriteMessage(websocket.BinaryMessage, hello)
		_, back, err := relay.ReadMessage()
		if err != nil {
			return
		}
		device.WriteMessage(websocket.BinaryMessage, back)
		device.ReadMessage()
	}))
	if secure != nil {
		srv.TLS = secure
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return srv.Listener.Addr().String()
}

func TestRelayedChallenge(t *testing.T) {
	dialAt := func(t *testing.T, d *thing, link, addr string) error {
		u, err := url.Parse(link)
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := d.Connect(t.Context(), u, addr)
		if err == nil {
			s.Close(1000, "")
		}
		return err
	}
	t.Run("TLS before the relay", func(t *testing.T) {
		e := factoryRelay(t, newMaker(t), false, nil)
		d := e.maker.certify(t, e.device("d"))
		err := dialAt(t, d, "ws://rogue.example/", rogue(t, e.base, nil, ""))
		if !errors.Is(err, session.ErrRelayName) {
			t.Errorf("the challenge of another relay: %v, want ErrRelayName and no signature", err)
		}
		err = dialAt(t, d, "ws://rogue.example/", rogue(t, e.base, nil, "rogue.example"))
		if r, ok := errors.AsType[*session.Refused](err); !ok || r.Code != frame.GoAwayAuth {
			t.Errorf("renamed: %v, want GOAWAY 2: the name is signed", err)
		}
		// A balancer with a name of its own is a mistake of the operator's, told at once.
		err = dialAt(t, d, "ws://balancer.example/", e.Addrs().Listen.String())
		if h, ok := errors.AsType[*session.HTTPError](err); !ok || h.Status != http.StatusMisdirectedRequest {
			t.Errorf("a name that is not the relay's: %v, want 421", err)
		}
	})
	t.Run("TLS at the relay, and a certificate for its name that is not its own", func(t *testing.T) {
		e := factoryRelay(t, newMaker(t), true, nil)
		dir := t.TempDir()
		certFile, keyFile := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
		e.roots.AddCert(issue(t, certFile, keyFile, 2))
		tricked, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		d := e.maker.certify(t, e.device("d"))
		addr := rogue(t, e.base, &tls.Config{Certificates: []tls.Certificate{tricked}}, "")
		err = dialAt(t, d, "wss://"+addr+"/", "")
		if r, ok := errors.AsType[*session.Refused](err); !ok || r.Code != frame.GoAwayAuth {
			t.Errorf("over another TLS connection: %v, want GOAWAY 2: the exporter is signed", err)
		}
	})
}

// Only devices that offer it are asked for a client certificate.
func TestClientCertificateAtTheRelay(t *testing.T) {
	e := factoryRelay(t, newMaker(t), true, nil)
	addr := e.Addrs().Listen.String()
	d := e.maker.certify(t, e.device("d"))
	d.connect(e.running)

	asked := func(protos []string, most uint16) (bool, tls.ConnectionState, error) {
		was := false
		c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: e.roots, NextProtos: protos, MaxVersion: most,
			GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				was = true
				if len(r.AcceptableCAs) != 1 || !bytes.Equal(r.AcceptableCAs[0], e.maker.Chain[0].RawSubject) {
					t.Errorf("acceptable authorities %x, want the factory's", r.AcceptableCAs)
				}
				return &tls.Certificate{Certificate: d.Certificate(), PrivateKey: d.Key}, nil
			}})
		if err != nil {
			return was, tls.ConnectionState{}, err
		}
		defer c.Close()
		return was, c.ConnectionState(), nil
	}
	for _, c := range []struct {
		name   string
		protos []string
		most   uint16
		want   bool
		chosen string
	}{
		{"a browser", []string{"h2", "http/1.1"}, 0, false, "h2"},
		{"a simple client", nil, 0, false, ""},
		{"a device", []string{tether.ALPN, "http/1.1"}, 0, true, "http/1.1"},
		{"a device with TLS 1.2", []string{tether.ALPN, "http/1.1"}, tls.VersionTLS12, false, "http/1.1"},
	} {
		got, state, err := asked(c.protos, c.most)
		if err != nil || got != c.want || state.NegotiatedProtocol != c.chosen {
			t.Errorf("%s: asked %v, protocol %q, %v, want %v, %q", c.name, got, state.NegotiatedProtocol, err, c.want, c.chosen)
		}
	}
	// Who offers it and shows none does not get far; the error says what is missing.
	c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: e.roots, NextProtos: []string{tether.ALPN, "http/1.1"}})
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a device that shows none: %v, want a TLS error about the certificate", err)
	}
	// A stolen certificate without its key: TLS ends it, and the operator hears of it.
	_, foreign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: e.roots, NextProtos: []string{tether.ALPN, "http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: d.Certificate(), PrivateKey: forged{foreign, d.Key.Public()}}, nil
		}})
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil {
		t.Error("a stolen certificate without its key was let in")
	}
	e.until("a security event about the stolen certificate", func() bool {
		for line := range strings.Lines(e.log.String()) {
			if strings.Contains(line, "security=device_proof_invalid device="+string(d.ID)) && strings.Contains(line, "invalid signature by the client certificate") {
				return true
			}
		}
		return false
	})
	// A certificate with another key than the HELLO's, both good.
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	shown := tls.Certificate{Certificate: e.maker.issue(t, d.ID, other.Public(), time.Now().Add(-day), time.Now().Add(day)), PrivateKey: other}
	conn, ch, _ := raw(t, e.base, shown)
	f := answer(t, conn, hello(t, conn, ch, d))
	if g, err := frame.ParseGoAway(f.Body); f.Type != frame.TypeGoAway || err != nil || g.Code != frame.GoAwayAuth || !strings.HasPrefix(g.Text, "certificate mismatch: TLS") {
		t.Errorf("another key in TLS than in HELLO: %v %+v, want GOAWAY 2 certificate mismatch", f.Type, g)
	}
	// A client's request on a connection that showed a certificate is a client's request.
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.roots, NextProtos: []string{tether.ALPN, "http/1.1"}, Certificates: []tls.Certificate{{Certificate: d.Certificate(), PrivateKey: d.Key}}}}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequest("GET", e.base+"/v1/devices/list", nil)
	resp, err := tr.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a certificate in place of a token: %v, %v, want 401", resp, err)
	}
}

// Revoking works on a relay that runs, at once, and survives its restart.
func TestRevokedAtTheRelay(t *testing.T) {
	m := newMaker(t)
	e := factoryRelay(t, m, false, nil)
	d := m.certify(t, e.device("d"))
	s := d.connect(e.running)
	if added, err := RevokeDevice(e.dir, d.ID); !added || err != nil {
		t.Fatal(added, err)
	}
	select {
	case <-s.Done():
	case <-time.After(patience):
		t.Fatal("a revoked device stays connected")
	}
	if g := <-d.away; g.Code != frame.GoAwayUnknown || !strings.HasPrefix(g.Text, "device revoked") {
		t.Errorf("told %+v, want code 3 and the reason", g)
	}
	e.refused("revoked", d, frame.GoAwayUnknown, "device revoked", "device_certificate_revoked")
	e.stop()
	again := factoryRelay(t, m, false, func(c *Config) { c.StateDir = e.dir })
	again.refused("revoked, after a restart", d, frame.GoAwayUnknown, "device revoked", "device_certificate_revoked")
	if err := UnrevokeDevice(e.dir, d.ID); err != nil {
		t.Fatal(err)
	}
	d.connect(again.running)
}

// A new key needs the operator, with a running relay or before one starts.
func TestRekey(t *testing.T) {
	m := newMaker(t)
	e := factoryRelay(t, m, false, nil)
	first := m.certify(t, e.device("d"))
	s := first.connect(e.running)
	s.Close(1000, "broken")
	<-s.Done()
	second := m.certify(t, e.device("d")) // the factory certified the repaired one
	e.refused("a new key with a new certificate", second, frame.GoAwayAuth, "key changed", "device_key_mismatch")
	if err := RekeyDevice(e.dir, second.ID); err != nil {
		t.Fatal(err)
	}
	e.until("the key is forgotten", func() bool {
		list, err := os.ReadFile(filepath.Join(e.dir, "rekey"))
		return err == nil && len(list) == 0
	})
	if !strings.Contains(e.log.String(), "security=device_rekeyed device="+string(second.ID)) {
		t.Errorf("no event:\n%s", e.log)
	}
	second.connect(e.running)
	e.refused("the old key", first, frame.GoAwayAuth, "key changed", "device_key_mismatch")
	e.stop()
	if err := RekeyDevice(e.dir, first.ID); err != nil {
		t.Fatal(err)
	}
	again := factoryRelay(t, m, false, func(c *Config) { c.StateDir = e.dir })
	again.until("the key is forgotten", func() bool { return strings.Contains(again.log.String(), "security=device_rekeyed") })
	first.connect(again.running)
}

// An import lists devices for a relay that runs.
func TestImportedDevice(t *testing.T) {
	r := start(t, func(c *Config) { c.Enroll = EnrollList })
	d := newThing(t, "d", echo)
	der, err := x509.MarshalPKIXPublicKey(d.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf(`{"id":%q,"key":%q}`, d.ID, base64.StdEncoding.EncodeToString(der))
	if done, err := ImportDevices(r.dir, strings.NewReader(line), false, nil); err != nil || done.Added != 1 {
		t.Fatal(done, err)
	}
	d.connect(r)
}

// Authorities are read again when their file changes; who is connected stays.
func TestFactoryAuthorityChanges(t *testing.T) {
	m, next := newMaker(t), newMaker(t)
	e := factoryRelay(t, m, true, nil)
	old := m.certify(t, e.device("old"))
	s := old.connect(e.running)
	d := next.certify(t, e.device("new"))
	e.refused("before", d, frame.GoAwayUnknown, "certificate foreign", "device_certificate_foreign")
	if err := os.WriteFile(m.file, []byte("half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.Relay.roots.look()
	m.certify(t, e.device("third")).connect(e.running)
	text, err := os.ReadFile(next.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	e.Relay.roots.look()
	d.connect(e.running)
	e.refused("after", m.certify(t, e.device("fourth")), frame.GoAwayUnknown, "certificate foreign", "device_certificate_foreign")
	select {
	case <-s.Done():
		t.Error("the change ended a tether")
	default:
	}
}

// A device is itself at any relay: nothing of it is bound to the first.
func TestAnotherRelay(t *testing.T) {
	both(t, func(t *testing.T, e *edge) {
		second := factoryRelay(t, e.maker, e.roots != nil, nil)
		d := e.maker.certify(t, e.device("d"))
		d.Generation = func() uint32 { return 4 }
		for _, at := range []*edge{e, second, e, second} {
			if at.roots != nil {
				d.TLS = &tls.Config{RootCAs: at.roots}
			}
			s := d.connect(at.running)
			if status, body := at.get(d.path("/x")); status != 200 || !strings.Contains(body, "/x") {
				t.Errorf("through this relay: %d %q", status, body)
			}
			s.Close(1000, "moves")
			<-s.Done()
		}
		for _, at := range []*edge{e, second} {
			if log := at.log.String(); strings.Count(log, "security=device_enrolled") != 1 || strings.Contains(log, "level=WARN") {
				t.Errorf("want one enrolment and no warning:\n%s", log)
			}
		}
	})
}

func TestGenerationInTheList(t *testing.T) {
	e := factoryRelay(t, newMaker(t), false, nil)
	d := e.maker.certify(t, e.device("d"))
	generation := uint32(2)
	d.Generation = func() uint32 { return generation }
	shown := func() float64 {
		_, body := e.get("/v1/devices/list")
		var list struct{ Devices []map[string]any }
		if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Devices) != 1 {
			t.Fatalf("list = %q, %v", body, err)
		}
		n, _ := list.Devices[0]["generation"].(float64)
		return n
	}
	for _, c := range []struct {
		tells uint32
		shows float64
		event string
	}{{2, 2, ""}, {3, 3, "security=device_factory_reset"}, {1, 3, "security=device_generation_lower"}} {
		generation = c.tells
		s := d.connect(e.running)
		if got := shown(); got != c.shows || !strings.Contains(e.log.String(), c.event) {
			t.Errorf("generation %d: the list shows %v, want %v and %q in the log", c.tells, got, c.shows, c.event)
		}
		s.Close(1000, "")
		<-s.Done()
	}
}

func TestFactoryConfig(t *testing.T) {
	m, foreign := newMaker(t), newMaker(t)
	dir := t.TempDir()
	write := func(a *maker) (cert, key string) {
		certs, secret, err := a.PEM()
		if err != nil {
			t.Fatal(err)
		}
		cert, key = filepath.Join(dir, rand.Text()), filepath.Join(dir, rand.Text())
		os.WriteFile(cert, certs, 0o600)
		os.WriteFile(key, secret, 0o600)
		return cert, key
	}
	goodCert, goodKey := write(m)
	badCert, badKey := write(foreign)
	for _, c := range []struct {
		name  string
		edit  func(*Config)
		field string // of the mistake; empty: none
	}{
		{"factory", func(c *Config) {}, ""},
		{"two authorities", func(c *Config) { c.FactoryCA = append(c.FactoryCA, foreign.file) }, ""},
		{"and renewal", func(c *Config) { c.RenewCA, c.RenewKey = goodCert, goodKey }, ""},
		{"no authority", func(c *Config) { c.FactoryCA = nil }, "factory-ca"},
		{"a missing file", func(c *Config) { c.FactoryCA = []string{"/nowhere"} }, "factory-ca"},
		{"a key in its place", func(c *Config) { c.FactoryCA = []string{goodKey} }, "factory-ca"},
		{"renewal without its key", func(c *Config) { c.RenewCA = goodCert }, "renew-ca"},
		{"renewal with another key", func(c *Config) { c.RenewCA, c.RenewKey = goodCert, badKey }, "renew-ca"},
		{"renewal by another factory", func(c *Config) { c.RenewCA, c.RenewKey = badCert, badKey }, "renew-ca"},
		{"an authority without the mode", func(c *Config) { c.Enroll = EnrollList }, "factory-ca"},
	} {
		cfg := Config{TLSOff: true, Domains: []string{"relay.example"}, Enroll: EnrollFactory, FactoryCA: []string{m.file}}
		c.edit(&cfg)
		err := cfg.Validate()
		f, ok := errors.AsType[*FieldError](err)
		if c.field == "" && err != nil || c.field != "" && (!ok || f.Field != c.field) {
			t.Errorf("%s: %v, want a mistake in %q", c.name, err, c.field)
		}
	}
}
