package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/session"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// line is a factory: a root that devices and relays know, an authority below it with
// which the station issues, and another one with which a relay may renew.
type line struct {
	t   *testing.T
	dir string

	root, issuing, renewing signer // PEM files

	state   string
	port    int
	station *process
}

// signer is an authority in PEM files.
type signer struct {
	cert         *x509.Certificate
	key          *ecdsa.PrivateKey
	file, secret string
}

// newLine starts a station.
func newLine(t *testing.T) *line {
	t.Helper()
	l := &line{t: t, dir: t.TempDir(), port: freePort(t)}
	l.state = filepath.Join(l.dir, "station")
	l.root = l.authority("root", nil)
	l.issuing, l.renewing = l.authority("issuing", &l.root), l.authority("renewing", &l.root)
	phrase := filepath.Join(l.dir, "wifi")
	if err := os.WriteFile(phrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.station = start(t, "factory", filepath.Join(bin, "factory"), "serve", "--state-dir", l.state, "--listen", fmt.Sprintf("127.0.0.1:%d", l.port),
		"--ca-cert", l.issuing.file, "--ca-key", l.issuing.secret, "--wifi-ssid", "Line 2", "--wifi-passphrase-file", phrase)
	l.station.says(`page: https://`)
	return l
}

// authority makes an authority below another one, or a root.
func (l *line) authority(name string, above *signer) signer {
	l.t.Helper()
	return l.issue(name, above, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: above != nil, KeyUsage: x509.KeyUsageCertSign})
}

// issue signs a certificate that is filled in as far as its use goes.
func (l *line) issue(name string, above *signer, c *x509.Certificate) signer {
	l.t.Helper()
	must := func(err error) {
		l.t.Helper()
		if err != nil {
			l.t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	c.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(err)
	c.Subject = pkix.Name{CommonName: "e2e " + name}
	c.NotBefore, c.NotAfter = time.Now().Add(-24*time.Hour), time.Now().AddDate(20, 0, 0)
	s := signer{c, key, filepath.Join(l.dir, name+".pem"), filepath.Join(l.dir, name+".key")}
	parent, by := c, key
	if above != nil {
		parent, by = above.cert, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	must(err)
	chain := [][]byte{der}
	if above != nil {
		chain = append(chain, above.cert.Raw)
	}
	s.cert, err = x509.ParseCertificate(der)
	must(err)
	must(os.WriteFile(s.file, devcert.AppendPEM(nil, chain), 0o600))
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	must(os.WriteFile(s.secret, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return s
}

// factory runs the station's commands.
func (l *line) factory(args ...string) string {
	l.t.Helper()
	return mustRun(l.t, "factory", append(args, "--state-dir", l.state)...)
}

// token makes the file with a batch token that goes on a device.
func (l *line) token(u *unit) string {
	l.t.Helper()
	file := filepath.Join(u.dir, "batch-token")
	l.factory("token", "new", "--count", "3", "--out", file)
	return file
}

// provisionArgs is what a device needs at a station.
func (l *line) provisionArgs(u *unit, token string, port int) []string {
	return []string{"--factory", fmt.Sprintf("https://127.0.0.1:%d", port), "--factory-ca", l.root.file, "--batch-token-file", token,
		"--origin", u.origin, "--uid-source", "file=" + u.uid, "--wait", "30s"}
}

// provision runs a device through the line and returns its exit code and its line of JSON.
func (l *line) provision(u *unit, token string) (code int, result provisioned) {
	l.t.Helper()
	code, said := u.command("provision", append(l.provisionArgs(u, token, l.port), "--json", "--log-level", "error")...)
	text := said[strings.Index(said, "{"):]
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&result); err != nil {
		l.t.Fatalf("provision: exit %d, %v in %q", code, err, said)
	}
	return code, result
}

type provisioned struct {
	OK, Already           bool
	Device, Batch, Reason string
	Serial, Error         string
}

// made is a device that left the factory.
func (l *line) made(name, origin string) (*unit, provisioned) {
	l.t.Helper()
	u := newUnit(l.t, name, origin)
	code, r := l.provision(u, l.token(u))
	if code != 0 || !r.OK || r.Already || len(r.Device) != 64 {
		l.t.Fatalf("provision %s: exit %d, %+v", name, code, r)
	}
	return u, r
}

// newRelay starts a relay with a state of its own.
func newRelay(t *testing.T, more ...string) *stack {
	t.Helper()
	s := &stack{t: t, dir: t.TempDir(), relayPort: freePort(t)}
	s.caFile, s.certFile, s.keyFile = authority(t, s.dir, []string{"localhost"}, net.IPv4(127, 0, 0, 1))
	s.token = s.newToken()
	s.client = newClient(t, s.caFile)
	s.startRelay(more...)
	eventually(t, "the relay", func() error { return s.alive(s.relayURL("/v1/devices/list"), s.relay) })
	return s
}

// flags are what a gateway needs to come to the relay.
func (s *stack) flags() []string {
	return []string{"--relay", fmt.Sprintf("wss://localhost:%d", s.relayPort), "--relay-ca", s.caFile}
}

// refused waits until a unit has been refused by its relay with a reason that begins so,
// and the relay has recorded it.
func (s *stack) refused(u *unit, reason, event string) {
	s.t.Helper()
	st := u.eventually("is refused", func(st unitStatus) error {
		if st.Tether.Error == "" {
			return errNotYet
		}
		return nil
	})
	if st.Tether.State == "up" || !strings.Contains(st.Tether.Error, `("`+reason) {
		s.t.Errorf("%s: the tether is %+v, want it refused with %q", u.name, st.Tether, reason)
	}
	s.relay.says(`security=` + event + ` device=` + st.ID)
}

// Two units go through the line to the relay; nobody else comes in under their names.
func TestFactory(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	origin := sampleOrigin(t)
	one, r1 := l.made("one", origin)
	two, r2 := l.made("two", origin)
	if r1.Device == r2.Device || r1.Serial == r2.Serial {
		t.Errorf("two units are %+v and %+v", r1, r2)
	}
	var joined struct{ SSID string }
	if resp, err := http.Get(origin + "/factory/connect"); err != nil {
		t.Error(err)
	} else if err := json.NewDecoder(resp.Body).Decode(&joined); err != nil || joined.SSID != "Line 2" {
		t.Errorf("the service joined %+v, %v; want the factory's Wi-Fi", joined, err)
	}
	if _, err := os.Stat(filepath.Join(one.dir, "batch-token")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the right to claim is still on the device: %v", err)
	}
	if code, again := l.provision(one, filepath.Join(one.dir, "batch-token")); code != 0 || !again.OK || !again.Already || again.Serial != r1.Serial {
		t.Errorf("provision again: exit %d, %+v; want 0 and nothing done", code, again)
	}

	units := filepath.Join(l.dir, "units.jsonl")
	l.factory("export", "--out", units)
	s := newRelay(t, "--enroll", "factory", "--factory-ca", l.root.file)
	if said := mustRun(t, "cloudrelay", "devices", "import", units, "--state-dir", s.relayState()); !strings.Contains(said, "added 2,") {
		t.Errorf("devices import: %s", said)
	}
	one.start(s.flags()...)
	two.start(s.flags()...)
	up := one.online()
	two.online()
	if up.ID != r1.Device || up.Identity.Factory == "" {
		t.Errorf("the gateway is %+v, the factory made %s", up, r1.Device)
	}
	for _, r := range []provisioned{r1, r2} {
		eventually(t, "the remote path", func() error { return s.alive(s.relayURL("/d/"+r.Device+"/device"), s.relay) })
		s.relay.says(`msg="device came" device=` + r.Device + ` .*client_certificate=true`) // TLS was shown it too
	}

	t.Run("label", func(t *testing.T) {
		var unit struct {
			Label string `json:"label_url"`
		}
		for line := range strings.Lines(l.factory("export", "--labels", "--device-port", fmt.Sprint(one.port))) {
			if strings.Contains(line, r1.Device) {
				if err := json.Unmarshal([]byte(line), &unit); err != nil {
					t.Fatal(err)
				}
			}
		}
		label, err := trust.ParseInvitation(unit.Label)
		if err != nil || string(label.ID) != r1.Device || label.Pin != up.Pin {
			t.Fatalf("label %q: %+v, %v; want device %s with pin %s", unit.Label, label, err, r1.Device, up.Pin)
		}
		one.control("DELETE", "pair/window")
		owner := newPerson(t, one.base(), trust.Client(label.Pin), "")
		owner.want(403, "POST", pairPath, `{"name":"without"}`)
		body := fmt.Sprintf(`{"name":"with the label","secret":%q}`, label.Secret)
		var a pairAnswer
		if err := owner.do("POST", pairPath, body).into(200, &a); err != nil || a.Client.Role != "owner" || a.Client.Way != "label" {
			t.Fatalf("the label's secret: %v, %+v; want an owner", err, a)
		}
		owner.token = a.Token
		owner.want(200, "GET", "/zones", "")
		owner.want(403, "POST", pairPath, body)
	})

	t.Run("impostors", func(t *testing.T) {
		uid, err := os.ReadFile(one.uid)
		if err != nil {
			t.Fatal(err)
		}
		twin := func(name string) *unit {
			u := newUnit(t, name, origin)
			u.board(strings.TrimSpace(string(uid)))
			return u
		}
		bare := twin("without a certificate")
		bare.start(s.flags()...)
		s.refused(bare, "certificate missing", "device_certificate_missing")

		other := newLine(t)
		foreign := twin("of another factory")
		if code, r := other.provision(foreign, other.token(foreign)); code != 0 || r.Device != r1.Device {
			t.Fatalf("the other factory: exit %d, %+v; want the same device", code, r)
		}
		foreign.start(s.flags()...)
		s.refused(foreign, "certificate foreign", "device_certificate_foreign")

		// A thief's gateway does not even use the certificate that it has no key for.
		thief := twin("with the stolen certificate")
		copyState(t, thief.state, one.state, "factory-cert.pem", "factory-ca.pem", "factory.json")
		thief.start(s.flags()...)
		thief.run.says(`factory certificate is of no use`)
		s.refused(thief, "certificate missing", "device_certificate_missing")

		// So he writes his own. Where TLS asks for the key he fails there, else at the proof.
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		ca, err := os.ReadFile(s.caFile)
		if err != nil || !pool.AppendCertsFromPEM(ca) {
			t.Fatal(err)
		}
		stolen := certificates(t, filepath.Join(one.state, "factory-cert.pem"))
		attack := func(version uint16) error {
			d := session.Device{ID: tether.DeviceID(r1.Device), Key: key, Epoch: 1, TLS: &tls.Config{RootCAs: pool, MaxVersion: version},
				Certificate: func() [][]byte { return stolen }, Handler: http.NotFoundHandler()}
			m, _, err := d.Connect(t.Context(), mustURL(t, fmt.Sprintf("wss://localhost:%d", s.relayPort)), "")
			if err == nil {
				m.Close(0, "")
			}
			return err
		}
		if _, refused := errors.AsType[*session.Refused](attack(tls.VersionTLS13)); refused {
			t.Error("TLS 1.3 with the stolen certificate came as far as the proof, want it to end in TLS")
		}
		s.relay.says(`msg="tls handshake" .*invalid signature by the client certificate`)
		err = attack(tls.VersionTLS12)
		if e, ok := errors.AsType[*session.Refused](err); !ok || !strings.HasPrefix(e.Text, "certificate mismatch") {
			t.Errorf("the stolen certificate with another key: %v, want it refused as a mismatch", err)
		}
		s.relay.says(`security=device_certificate_mismatch device=` + r1.Device)
		if now := one.online(); now.Tether.Session != up.Tether.Session {
			t.Errorf("the true device lost its session %s, it has %s now", up.Tether.Session, now.Tether.Session)
		}
	})

	t.Run("second claim", func(t *testing.T) {
		uid, err := os.ReadFile(two.uid)
		if err != nil {
			t.Fatal(err)
		}
		u := newUnit(t, "claimed twice", origin)
		u.board(strings.TrimSpace(string(uid)))
		const exitConflict = 5
		if code, r := l.provision(u, l.token(u)); code != exitConflict || r.OK || r.Reason != "conflict" || !strings.Contains(r.Error, "(409)") {
			t.Errorf("a second claim of a UID: exit %d, %+v; want %d, conflict, 409", code, r, exitConflict)
		}
		if said := l.factory("conflicts"); !strings.Contains(said, r2.Device) {
			t.Errorf("factory conflicts:\n%s\nwant %s", said, r2.Device)
		}
		var page struct{ Conflicts []struct{ ID string } }
		if err := json.Unmarshal([]byte(l.factory("status", "--json")), &page); err != nil || len(page.Conflicts) != 1 {
			t.Errorf("the page shows %+v, %v; want the conflict", page, err)
		}
		if now := two.online(); now.ID != r2.Device {
			t.Errorf("the true device is %s", now.ID)
		}
	})

	t.Run("revoke", func(t *testing.T) {
		mustRun(t, "cloudrelay", "devices", "revoke", r2.Device, "--state-dir", s.relayState())
		st := two.eventually("is sent away", func(st unitStatus) error {
			if st.Tether.State == "up" || st.Tether.Error == "" {
				return fmt.Errorf("the tether is %+v", st.Tether)
			}
			return nil
		})
		if !strings.Contains(st.Tether.Error, "device revoked") {
			t.Errorf("the tether is %+v, want the reason: device revoked", st.Tether)
		}
		s.relay.says(`security=device_certificate_revoked device=` + r2.Device)
		if resp, _, err := s.get(s.relayURL("/d/" + r2.Device + "/device")); err != nil || resp.StatusCode == 200 {
			t.Errorf("a revoked device answers: %v, %v", resp, err)
		}
		stranger(t, two).want(200, "GET", "/device", "") // the LAN is none of the relay's business
		if now := one.online(); now.Tether.Session != up.Tether.Session {
			t.Errorf("the other device lost its session %s, it has %s now", up.Tether.Session, now.Tether.Session)
		}
	})
}

// copyState copies files of a state directory, all if none is named.
func copyState(t *testing.T, to, from string, names ...string) {
	t.Helper()
	if len(names) == 0 {
		list, err := os.ReadDir(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Type().IsRegular() {
				names = append(names, e.Name())
			}
		}
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// slowStation stands before a station. It passes on what it is asked, and holds what the
// test wants to cut.
type slowStation struct {
	port int
	held chan string // gets the word of each hold that was reached
	hold chan string // the next word: "claim answered", "confirm asked", "confirm answered"
}

func newSlowStation(l *line) *slowStation {
	l.t.Helper()
	cert := l.issue("slow station", &l.root, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	pair, err := tls.LoadX509KeyPair(cert.file, cert.secret)
	if err != nil {
		l.t.Fatal(err)
	}
	li, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		l.t.Fatal(err)
	}
	s := &slowStation{port: li.Addr().(*net.TCPAddr).Port, held: make(chan string, 1), hold: make(chan string, 1)}
	rp := httputil.NewSingleHostReverseProxy(mustURL(l.t, fmt.Sprintf("https://127.0.0.1:%d", l.port)))
	out := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	rp.Transport, rp.ErrorLog = out, log.New(io.Discard, "", 0)
	stop := func(r *http.Request, word string) bool {
		select {
		case next := <-s.hold:
			if next != word {
				s.hold <- next
				return false
			}
			s.held <- word
			<-r.Context().Done() // the device is killed
			return true
		default:
			return false
		}
	}
	h := &http.Server{ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Base(r.URL.Path)
		body, _ := io.ReadAll(r.Body) // all of it, or the server does not see the device go
		r.Body = io.NopCloser(bytes.NewReader(body))
		if !stop(r, name+" asked") {
			rp.ServeHTTP(&slowWriter{w, func() { stop(r, name+" answered") }}, r)
		}
	})}
	go h.Serve(li)
	l.t.Cleanup(func() { h.Close(); out.CloseIdleConnections() })
	return s
}

// slowWriter does something before the head of an answer goes out.
type slowWriter struct {
	http.ResponseWriter
	before func()
}

func (w *slowWriter) WriteHeader(status int) { w.before(); w.ResponseWriter.WriteHeader(status) }

// Killed anywhere, provisioning goes on where it was: one identity, counted once.
func TestFactoryKilled(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	slow := newSlowStation(l)
	u := newUnit(t, "killed", sampleOrigin(t))
	token := l.token(u)
	args := append([]string{filepath.Join(bin, "cloudrestd"), "provision", "--state-dir", u.state, "--json"}, l.provisionArgs(u, token, slow.port)...)
	cert := filepath.Join(u.state, "factory-cert.pem")
	var first []byte
	for _, word := range []string{"claim answered", "confirm asked", "confirm answered"} {
		slow.hold <- word
		p := start(t, "cloudrestd provision", args...)
		select {
		case <-slow.held:
		case <-p.done:
			t.Fatalf("provision ended before %q:\n%s", word, p.output())
		case <-time.After(patience):
			t.Fatalf("provision does not come to %q:\n%s", word, p.output())
		}
		p.stop(syscall.SIGKILL)
		b, err := os.ReadFile(cert)
		switch {
		case word == "claim answered" && !errors.Is(err, os.ErrNotExist):
			t.Errorf("killed at %q: certificate %v, want none yet", word, err)
		case word == "confirm asked":
			if first = b; err != nil {
				t.Errorf("killed at %q: %v, want the certificate stored", word, err)
			}
		}
		if _, err := os.Stat(token); err != nil {
			t.Errorf("killed at %q: the right to claim is gone: %v", word, err)
		}
	}
	if code, r := l.provision(u, token); code != 0 || !r.OK || r.Already {
		t.Fatalf("provision after three kills: exit %d, %+v", code, r)
	}
	if b, err := os.ReadFile(cert); err != nil || !bytes.Equal(b, first) {
		t.Errorf("the certificate changed after it was stored: %v", err)
	}
	if _, err := os.Stat(token); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the right to claim is still there: %v", err)
	}
	if said := l.factory("token", "list"); !regexp.MustCompile(` 3 +1 +1 `).MatchString(said) {
		t.Errorf("token list:\n%s\nwant 3 units, 1 claimed, 1 confirmed", said)
	}
}

// The storage of one device on the board of another.
func TestClone(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "original", sampleOrigin(t))
	u.start()
	original := u.eventually("is there", func(unitStatus) error { return nil })
	if !original.Identity.Verified {
		t.Errorf("identity %+v, want it compared with the board", original.Identity)
	}
	u.run.stop(syscall.SIGTERM)

	clone := newUnit(t, "clone", u.origin)
	copyState(t, clone.state, u.state)
	uid, err := os.ReadFile(u.uid)
	if err != nil {
		t.Fatal(err)
	}
	clone.uid = u.uid // both boards have their UID in the same place
	clone.board("00112233445566ff")
	clone.launch()
	if code := clone.run.ended(); code == 0 {
		t.Error("a clone ends with 0, want an error")
	}
	for _, want := range []string{"belongs to another board", "remove the file"} {
		if !strings.Contains(clone.run.output(), want) {
			t.Errorf("the clone says nothing of %q:\n%s", want, clone.run.output())
		}
	}
	if code, said := clone.command("identity", "--uid-source", "file="+u.uid); code == 0 || strings.Contains(said, original.ID) {
		t.Errorf("identity on the clone: exit %d: %s", code, said)
	}

	u.board(strings.TrimSpace(string(uid)))
	u.start()
	if again := u.eventually("is back", func(unitStatus) error { return nil }); again.ID != original.ID || !again.Identity.Verified {
		t.Errorf("on its own board again: %+v, want device %s", again, original.ID)
	}
}

// A device that is pointed to another relay stays who it is, and so do its people.
func TestMoveToAnotherRelay(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "moved", sampleOrigin(t))
	here, there := newRelay(t), newRelay(t)
	type who struct {
		Device, Pin string
		Key         string `json:"key_id"`
	}
	identity := func() (v who) {
		t.Helper()
		code, said := u.command("identity", "--json", "--uid-source", "file="+u.uid)
		if err := json.Unmarshal([]byte(said), &v); code != 0 || err != nil {
			t.Fatalf("identity: exit %d, %v in %s", code, err, said)
		}
		return v
	}
	u.start(here.flags()...)
	anna := u.pairOwner("Anna's phone")
	before := u.online()
	eventually(t, "the remote path", func() error { return here.alive(here.relayURL("/d/"+before.ID+"/zones"), here.relay) })
	me := identity()
	uid, err := os.ReadFile(u.uid)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"--show-uid"}} { // the UID only when asked for
		_, said := u.command("identity", append(args, "--uid-source", "file="+u.uid)...)
		if got := strings.Contains(said, strings.TrimSpace(string(uid))); got != (args != nil) || !strings.Contains(said, before.ID) {
			t.Errorf("identity %q:\n%s\nthe UID is in it: %v", args, said, got)
		}
	}

	// Nobody pairs from afar, and the operator of a relay is not the device's owner.
	away := newPerson(t, here.relayURL("/d/"+before.ID), &tls.Config{InsecureSkipVerify: true}, "")
	away.token = here.token
	away.want(403, "POST", pairPath, `{"name":"far away"}`)
	away.want(401, "GET", "/.cloudrest/v1/clients", "")

	u.run.stop(syscall.SIGTERM)
	u.start(there.flags()...)
	after := u.online()
	if now := identity(); after.ID != before.ID || after.Pin != before.Pin || now != me || len(me.Key) < 16 {
		t.Errorf("at another relay: %+v with %+v, before %+v with %+v; want the same", after, now, before, me)
	}
	anna.want(200, "GET", "/zones", "")
	eventually(t, "the remote path at the other relay", func() error { return there.alive(there.relayURL("/d/"+before.ID+"/zones"), there.relay) })
	if resp, _, err := here.get(here.relayURL("/d/" + before.ID + "/zones")); err != nil || resp.StatusCode != 503 {
		t.Errorf("at the relay it left: %v, %v; want 503", resp, err)
	}
}

// A certificate that ends soon is renewed over the tether: the device has a new one, and
// nobody notices.
func TestFactoryRenewal(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	u, r := l.made("renewed", sampleOrigin(t))
	file := filepath.Join(u.state, "factory-cert.pem")

	// What the factory issued for two hours has a minute and a half left.
	issuing, err := devcert.LoadAuthority(l.issuing.file, l.issuing.secret)
	if err != nil {
		t.Fatal(err)
	}
	old, id, err := devcert.Parse(certificates(t, file))
	if err != nil || string(id) != r.Device {
		t.Fatalf("certificate of %s, %v", id, err)
	}
	now := time.Now()
	const left = 90 * time.Second
	chain, err := issuing.Issue(id, old.PublicKey, now.Add(left-2*time.Hour), now.Add(left))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, devcert.AppendPEM(nil, chain), 0o600); err != nil {
		t.Fatal(err)
	}

	s := newRelay(t, "--enroll", "factory", "--factory-ca", l.root.file, "--renew-ca", l.renewing.file, "--renew-key", l.renewing.secret)
	u.start(s.flags()...)
	before := u.online()
	remote := s.relayURL("/d/" + r.Device + "/device")
	eventually(t, "the remote path", func() error { return s.alive(remote, s.relay) })
	var leaf *x509.Certificate
	for deadline := time.Now().Add(left); ; time.Sleep(100 * time.Millisecond) {
		if err := s.alive(remote, s.relay, u.run); err != nil {
			t.Fatalf("during the renewal: %v", err)
		}
		if leaf, id, err = devcert.Parse(certificates(t, file)); err != nil || string(id) != r.Device {
			t.Fatalf("the certificate on the device: %s, %v", id, err)
		}
		if leaf.NotAfter.After(now.Add(left + time.Minute)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not renewed when it ends:\n%s", s.relay.output())
		}
	}
	if leaf.Issuer.CommonName != "e2e renewing" || !devcert.SameKey(leaf.PublicKey, old.PublicKey) {
		t.Errorf("the new certificate is by %q, want the renewing authority and the device's key", leaf.Issuer.CommonName)
	}
	s.relay.says(`security=device_certificate_renewed device=` + r.Device)
	after := u.online()
	if after.Tether.Session != before.Tether.Session || after.Identity.Factory == before.Identity.Factory {
		t.Errorf("after the renewal: session %s until %s, before: session %s until %s; want the same session and a later end",
			after.Tether.Session, after.Identity.Factory, before.Tether.Session, before.Identity.Factory)
	}
	// The next connection is made with it.
	u.run.stop(syscall.SIGTERM)
	u.start(s.flags()...)
	u.online()
	if got := strings.Count(s.relay.output(), `msg="device came" device=`+r.Device); got != 2 {
		t.Errorf("the device came %d times, want 2", got)
	}
}
