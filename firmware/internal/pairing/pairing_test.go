package pairing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// memory is a Bucket that can fail.
type memory struct {
	mu      sync.Mutex
	values  map[string][]byte
	err     error // of Change
	syncErr error
	changes int
}

var errFull = errors.New("no space left on device")

func (m *memory) Change(c map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.changes++
	if m.values == nil {
		m.values = map[string][]byte{}
	}
	for k, v := range c {
		if v == nil {
			delete(m.values, k)
		} else {
			m.values[k] = bytes.Clone(v)
		}
	}
	return nil
}

func (m *memory) All() (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.values), nil
}

func (m *memory) sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.syncErr
}

func (m *memory) fail(change, sync error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err, m.syncErr = change, sync
}

func (m *memory) count(prefix string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.values {
		if strings.HasPrefix(k, prefix) {
			n++
		}
	}
	return n
}

const testLabel = "LABEL-SECRET-0123456789"

// device is a Pairing with what it told.
type device struct {
	*Pairing
	store  *memory
	mu     sync.Mutex
	events []SecurityEvent
	led    []string
}

func open(t testing.TB, store *memory, change func(*Config)) *device {
	t.Helper()
	d := &device{store: store}
	c := Config{
		Store: store, Sync: store.sync, Generation: 1,
		ID:    func() tether.DeviceID { return tether.NewDeviceID([]byte("test")) },
		Pin:   func() string { return testPin },
		URL:   func() string { return "https://irrigation.local" },
		Label: testLabel,
		OnEvent: func(e SecurityEvent) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e)
		},
		OnWindow: func(open bool, code string) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.led = append(d.led, strings.TrimSpace(fmt.Sprint(open, " ", code)))
		},
		QR: func(text string) []byte { return []byte("<svg>" + text + "</svg>") },
	}
	if change != nil {
		change(&c)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	d.Pairing = p
	return d
}

// told returns the kinds of the events so far.
func (d *device) told() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s []string
	for _, e := range d.events {
		s = append(s, e.Event)
	}
	return strings.Join(s, " ")
}

var testPin = strings.Repeat("ab", sha256.Size)

// connection is the state of a TLS connection, one for each call.
func connection(t testing.TB) *tls.ConnectionState {
	t.Helper()
	cert, _ := authority(t)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
	if err := errors.Join(server.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	cs := server.ConnectionState()
	return &cs
}

// authority makes a device CA with a leaf, as a device serves them.
func authority(t testing.TB) (tls.Certificate, string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leafDER, caDER}, PrivateKey: key}, trust.Pin(parsed)
}

// call is one request and its answer.
type call struct {
	token, cookie string
	from          string
	tls           *tls.ConnectionState
	local, remote bool
	header        http.Header
}

type reply struct {
	status int
	header http.Header
	text   string
	body   struct {
		State, Request, Token, Code, Nonce, Pin, Message, URL, SVG, Expires string
		Open, Confirm, Paired, Fresh                                        bool
		Client                                                              *clientView
		Clients                                                             []clientView
	}
}

func (d *device) do(method, path, body string, c call) reply {
	r := httptest.NewRequest(method, "https://irrigation.local/.cloudrest/v1/"+path, strings.NewReader(body))
	r.TLS = c.tls
	if c.from == "" {
		c.from = "192.0.2.1:4000"
	}
	r.RemoteAddr = c.from
	maps.Copy(r.Header, c.header)
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.cookie != "" {
		r.Header.Set("Cookie", CookieName+"="+c.cookie)
	}
	if c.local {
		r = Local(r)
	}
	if c.remote {
		r = Remote(r)
	}
	w := httptest.NewRecorder()
	d.Handler().ServeHTTP(w, r)
	got := reply{status: w.Code, header: w.Header(), text: w.Body.String()}
	_ = json.Unmarshal(w.Body.Bytes(), &got.body)
	return got
}

func (g reply) String() string { return fmt.Sprint(g.status, " ", strings.TrimSpace(g.text)) }

func want(t testing.TB, what string, got reply, status int) reply {
	t.Helper()
	if got.status != status {
		t.Fatalf("%s: %v, want %d", what, got, status)
	}
	return got
}

// pairAs makes a client with a role by invitation.
func (d *device) pairAs(t testing.TB, role Role, cs *tls.ConnectionState) (token, id string) {
	t.Helper()
	i := want(t, "invite", d.do("POST", "invitations", fmt.Sprintf(`{"role":%q}`, role), call{local: true}), 200)
	inv, err := trust.ParseInvitation(i.body.URL)
	if err != nil {
		t.Fatal(err)
	}
	g := want(t, "pair", d.do("POST", "pair", fmt.Sprintf(`{"name":"a %s","secret":%q}`, role, inv.Secret), call{tls: cs}), 200)
	if g.body.Client.Role != role || g.body.Client.Way != WayInvitation {
		t.Fatalf("paired as %+v, want role %s by invitation", g.body.Client, role)
	}
	return g.body.Token, g.body.Client.ID
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// commitment returns the body of a first step, and of the second.
func commitment(name string) (first, second string, nonce []byte) {
	nonce = randomBytes(trust.NonceSize)
	return fmt.Sprintf(`{"name":%q,"commitment":%q}`, name, b64(trust.Commit(nonce))), fmt.Sprintf(`{"nonce":%q}`, b64(nonce)), nonce
}

func TestButton(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	g := want(t, "closed", d.do("POST", "pair", `{"name":"early"}`, call{tls: cs}), 403)
	if !strings.Contains(g.body.Message, "button") {
		t.Errorf("the refusal does not say how to open: %v", g)
	}
	if _, err := d.Open(WayButton, OpenOptions{}); err != nil {
		t.Fatal(err)
	}
	g = want(t, "state", d.do("GET", "pair", "", call{}), 200)
	if !g.body.Open || g.body.Confirm || g.body.Paired || g.body.Fresh {
		t.Errorf("state = %v, want open without confirmation, nobody paired", g)
	}
	// Somebody asking for less on the first pairing becomes owner all the same.
	g = want(t, "pair", d.do("POST", "pair", `{"name":"Pixel 8\u0000\u202e","role":"guest"}`, call{tls: cs}), 200)
	c := g.body.Client
	if g.body.State != "paired" || len(g.body.Token) != tokenLength || c.Role != Owner || c.Name != "Pixel 8" || c.Way != WayButton || c.Code != g.body.Code || !c.You {
		t.Errorf("paired = %v, want an owner by button", g)
	}
	nonce, err := base64.RawURLEncoding.DecodeString(g.body.Nonce)
	exporter, err2 := trust.Exporter(cs)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if code := trust.Code(testPin, exporter, nil, nonce); code != g.body.Code || g.body.Pin != testPin {
		t.Errorf("code = %s with pin %s, want %s", g.body.Code, g.body.Pin, code)
	}
	// One success closes the window; the loser is told who won.
	l := want(t, "loser", d.do("POST", "pair", `{"name":"late"}`, call{tls: cs, from: "192.0.2.2:1"}), 409)
	if !strings.Contains(l.body.Message, "Pixel 8") || !strings.Contains(l.body.Message, c.ID) {
		t.Errorf("the loser is not told who won and how to undo it: %v", l)
	}
	want(t, "token", d.do("GET", "session", "", call{token: g.body.Token}), 200)
	if got, want := d.told(), "window_opened client_paired"; got != want {
		t.Errorf("events = %s, want %s", got, want)
	}
	if got, want := strings.Join(d.led, ","), "true,false "+g.body.Code; got != want {
		t.Errorf("LED = %s, want %s", got, want)
	}
	// The second by button may ask for less.
	d.Open(WayButton, OpenOptions{})
	g = want(t, "second", d.do("POST", "pair", `{"role":"guest"}`, call{tls: cs}), 200)
	if g.body.Client.Role != Guest || g.body.Client.Name != noName {
		t.Errorf("second = %+v, want an unnamed guest", g.body.Client)
	}
	d.Open(WayButton, OpenOptions{Role: Member})
	g = want(t, "third", d.do("POST", "pair", `{"role":"owner"}`, call{tls: cs}), 200)
	if g.body.Client.Role != Member {
		t.Errorf("third = %+v, want a member: more was not offered", g.body.Client)
	}
	if got := d.store.count(clientKey); got != 3 {
		t.Errorf("%d clients are stored, want 3", got)
	}
	for k, v := range d.store.values {
		if strings.Contains(string(v), tokenPrefix) {
			t.Errorf("a token is stored in %s", k)
		}
	}
}

func TestWindowTime(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		go d.Run(t.Context())
		until, err := d.Open(WayButton, OpenOptions{})
		if err != nil || time.Until(until) != WindowTime {
			t.Fatalf("open until %v, %v, want %v", time.Until(until), err, WindowTime)
		}
		time.Sleep(WindowTime - time.Second)
		if _, err := d.Open(WayButton, OpenOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(WindowTime - time.Millisecond)
		if !d.Window().Open {
			t.Error("pressing again does not make it last longer")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got, want := d.told(), "window_opened window_closed"; got != want {
			t.Errorf("events = %s, want %s (Run closes it in time)", got, want)
		}
		want(t, "over", d.do("POST", "pair", `{}`, call{tls: cs}), 403)
	})
}

// Nothing is open for longer because Run does not run.
func TestWindowTimeWithoutRun(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		d.Open(WayButton, OpenOptions{})
		time.Sleep(WindowTime)
		want(t, "over", d.do("POST", "pair", `{}`, call{tls: cs}), 403)
	})
}

func TestTwoSteps(t *testing.T) {
	cs, other := connection(t), connection(t)
	d := open(t, &memory{}, nil)
	d.Open(WayButton, OpenOptions{})
	first, second, nonce := commitment("app")
	g := want(t, "first", d.do("POST", "pair", first, call{tls: cs}), 202)
	if g.body.State != "nonce" || g.body.Token != "" || g.body.Code != "" {
		t.Fatalf("first step: %v, want the device's nonce only", g)
	}
	again := want(t, "first again", d.do("POST", "pair", first, call{tls: cs}), 202)
	if again.body.Request != g.body.Request || again.body.Nonce != g.body.Nonce {
		t.Errorf("the same commitment is another request: %v, want %v", again, g)
	}
	g2 := want(t, "second", d.do("POST", "pair/"+g.body.Request, second, call{tls: cs}), 200)
	exporter, _ := trust.Exporter(cs)
	deviceNonce, _ := base64.RawURLEncoding.DecodeString(g.body.Nonce)
	if code := trust.Code(testPin, exporter, nonce, deviceNonce); g2.body.Code != code {
		t.Errorf("code = %s, want %s", g2.body.Code, code)
	}
	want(t, "token", d.do("GET", "session", "", call{token: g2.body.Token}), 200)
	want(t, "twice", d.do("POST", "pair/"+g.body.Request, second, call{tls: cs}), 410)
	want(t, "once", d.do("GET", "pair/"+g.body.Request, "", call{tls: cs}), 410)

	// Nobody may choose among connections (SPEC.md §11.3).
	d.Open(WayButton, OpenOptions{})
	first, second, _ = commitment("app")
	g = want(t, "first", d.do("POST", "pair", first, call{tls: cs}), 202)
	want(t, "second step elsewhere", d.do("POST", "pair/"+g.body.Request, second, call{tls: other}), 409)
	want(t, "and back", d.do("POST", "pair/"+g.body.Request, second, call{tls: cs}), 409)
	g = want(t, "anew", d.do("POST", "pair", first, call{tls: cs}), 202)
	want(t, "the same first step elsewhere is another asker", d.do("POST", "pair", first, call{tls: other}), 409)
	if n := len(d.Clients()); n != 1 {
		t.Errorf("%d clients, want 1", n)
	}
}

func TestWrongNonce(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	d.Open(WayButton, OpenOptions{})
	first, second, _ := commitment("app")
	g := want(t, "first", d.do("POST", "pair", first, call{tls: cs}), 202)
	_, wrong, _ := commitment("app")
	want(t, "wrong nonce", d.do("POST", "pair/"+g.body.Request, wrong, call{tls: cs}), 403)
	want(t, "right nonce, too late", d.do("POST", "pair/"+g.body.Request, second, call{tls: cs}), 403)
	if len(d.Clients()) != 0 {
		t.Errorf("clients = %v, want none", d.Clients())
	}
}

func TestContention(t *testing.T) {
	cs := connection(t)
	for _, second := range []string{`{"name":"other"}`, func() string { f, _, _ := commitment("other"); return f }()} {
		d := open(t, &memory{}, nil)
		d.Open(WayButton, OpenOptions{})
		first, reveal, _ := commitment("app")
		g := want(t, "first", d.do("POST", "pair", first, call{tls: cs}), 202)
		want(t, "other", d.do("POST", "pair", second, call{tls: cs, from: "192.0.2.9:1"}), 409)
		want(t, "first goes on", d.do("POST", "pair/"+g.body.Request, reveal, call{tls: cs}), 409)
		want(t, "closed", d.do("POST", "pair", `{}`, call{tls: cs}), 403)
		if got, want := d.told(), "window_opened pair_refused pair_refused window_closed"; got != want {
			t.Errorf("events = %s, want %s", got, want)
		}
		if len(d.Clients()) != 0 {
			t.Errorf("clients = %v, want none", d.Clients())
		}
	}
}

func TestConfirmation(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		g := want(t, "open", d.do("POST", "pair/window", "", call{local: true}), 200)
		if !g.body.Open || !g.body.Confirm {
			t.Fatalf("opened on the device: %v, want with confirmation", g)
		}
		a := want(t, "one step", d.do("POST", "pair", `{"name":"a"}`, call{tls: cs, from: "192.0.2.7:1"}), 202)
		first, reveal, _ := commitment("b")
		b := want(t, "two steps", d.do("POST", "pair", first, call{tls: cs}), 202)
		b2 := want(t, "two steps", d.do("POST", "pair/"+b.body.Request, reveal, call{tls: cs}), 202)
		if a.body.State != "waiting" || a.body.Code == "" || b2.body.State != "waiting" || b2.body.Code == "" {
			t.Fatalf("askers: %v and %v, want both waiting with codes", a, b2)
		}
		var list []requestView
		g = want(t, "list", d.do("GET", "pair/requests", "", call{local: true}), 200)
		if err := json.Unmarshal([]byte(g.text), &list); err != nil || len(list) != 2 {
			t.Fatalf("list = %v, want two", g)
		}
		if list[0].Name != "a" || list[0].Code != a.body.Code || list[0].From != "192.0.2.7" || list[0].Role != Owner {
			t.Errorf("first in the list = %+v", list[0])
		}
		for _, r := range list {
			if strings.Contains(g.text, a.body.Request) || strings.Contains(g.text, b.body.Request) {
				t.Errorf("the list has the askers' keys, with which a reader could fetch their tokens")
			}
			want(t, "fetch with the id of the list", d.do("GET", "pair/"+r.Request, "", call{tls: cs}), 410)
		}
		done := make(chan reply)
		go func() { done <- d.do("GET", "pair/"+b.body.Request, "", call{tls: cs}) }()
		time.Sleep(10 * time.Second)
		want(t, "refuse", d.do("POST", "pair/"+list[0].Request+"/refuse", "", call{local: true}), 204)
		want(t, "refused", d.do("GET", "pair/"+a.body.Request, "", call{tls: cs}), 403)
		g = want(t, "approve", d.do("POST", "pair/"+list[1].Request+"/approve", `{"role":"member"}`, call{local: true}), 200)
		if g.body.Client.Role != Member || g.body.Client.Way != WayCLI || g.body.Token != "" {
			t.Errorf("approved = %v, want a member, and no token for the approver", g)
		}
		got := want(t, "long poll", <-done, 200)
		want(t, "token", d.do("GET", "session", "", call{token: got.body.Token}), 200)
		want(t, "only once", d.do("GET", "pair/"+b.body.Request, "", call{tls: cs}), 410)
		if d.Window().Open {
			t.Error("the window is still open after a success")
		}
		want(t, "twice", d.do("POST", "pair/"+list[1].Request+"/approve", "", call{local: true}), 409)
		want(t, "nobody", d.do("POST", "pair/xxx/approve", "", call{local: true}), 404)
	})
}

func TestLongPoll(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		d.Open(WayCLI, OpenOptions{})
		a := want(t, "ask", d.do("POST", "pair", `{"name":"a"}`, call{tls: cs}), 202)
		begin := time.Now()
		g := want(t, "poll", d.do("GET", "pair/"+a.body.Request, "", call{tls: cs}), 202)
		if got := time.Since(begin); got != longPoll || g.body.State != "waiting" {
			t.Errorf("poll: %v after %v, want waiting after %v", g, got, longPoll)
		}
		d.do("GET", "pair/"+a.body.Request, "", call{tls: cs})
		want(t, "over", d.do("GET", "pair/"+a.body.Request, "", call{tls: cs}), 410)
		if got := time.Since(begin); got != askTime {
			t.Errorf("the request was over after %v, want %v", got, askTime)
		}
	})
}

// A request that came in the last second of the window may still be decided.
func TestLateAsker(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		d.Open(WayCLI, OpenOptions{})
		time.Sleep(WindowTime - time.Second)
		a := want(t, "ask", d.do("POST", "pair", `{"name":"a"}`, call{tls: cs}), 202)
		time.Sleep(30 * time.Second)
		want(t, "window is over", d.do("POST", "pair", `{"name":"b"}`, call{tls: cs}), 403)
		list, _ := d.waiting(actor{local: true, role: Owner})
		if len(list) != 1 {
			t.Fatalf("waiting = %v, want one", list)
		}
		want(t, "approve", d.do("POST", "pair/"+list[0].id+"/approve", "", call{local: true}), 200)
		// Nobody fetches the token: the client is removed again.
		time.Sleep(askTime)
		want(t, "fetch", d.do("GET", "pair/"+a.body.Request, "", call{tls: cs}), 410)
		if got := d.Clients(); len(got) != 0 || d.store.count(clientKey) != 0 {
			t.Errorf("clients = %v, want none: the token was never fetched", got)
		}
	})
}

func TestAttempts(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	d.Open(WayCLI, OpenOptions{})
	for i := range maxWaiting {
		want(t, fmt.Sprint("asker ", i), d.do("POST", "pair", `{"name":"a"}`, call{tls: cs}), 202)
	}
	for range maxAttempts - maxWaiting {
		g := want(t, "one too many waits", d.do("POST", "pair", `{"name":"a"}`, call{tls: cs}), 429)
		if g.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	list, _ := d.waiting(actor{local: true, role: Owner})
	want(t, "refuse", d.do("POST", "pair/"+list[0].id+"/refuse", "", call{local: true}), 204)
	want(t, "attempts used up", d.do("POST", "pair", `{"name":"a"}`, call{tls: cs}), 429)
	if n := len(d.asks); n > maxAsks {
		t.Errorf("%d requests are kept, want at most %d", n, maxAsks)
	}
	// Refusals are recorded, and never push the rest out of the ring.
	for range 40 {
		d.Open(WayButton, OpenOptions{})
		first, _, _ := commitment("x")
		d.do("POST", "pair", first, call{tls: cs})
		d.do("POST", "pair", `{"name":"y"}`, call{tls: cs})
	}
	n := 0
	for _, e := range d.Events() {
		if strange(e.Event) {
			n++
		}
	}
	if n > maxStrange || len(d.Events()) > maxEvents {
		t.Errorf("%d of %d events are of strangers, want at most %d of %d", n, len(d.Events()), maxStrange, maxEvents)
	}
}

func TestFirstStart(t *testing.T) {
	cs := connection(t)
	fresh := func(c *Config) { c.Fresh = true }
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		d := open(t, store, fresh)
		g := want(t, "state", d.do("GET", "pair", "", call{}), 200)
		if !g.body.Open || !g.body.Fresh || g.body.Confirm {
			t.Fatalf("state = %v, want open, fresh", g)
		}
		time.Sleep(3*time.Minute + time.Second)
		d.Window()
		// A restart gives no more time: each minute that had begun is used up. The clock does not matter.
		for _, now := range []func() time.Time{time.Now, func() time.Time { return time.Unix(5, 0) }} {
			d = open(t, store, func(c *Config) { c.Now = now })
			if w := d.Window(); !w.Open || w.Until.Sub(now()) > 6*time.Minute {
				t.Fatalf("after a restart: %+v, want open for at most 6 min", w)
			}
		}
		for i := range 10 {
			d = open(t, store, fresh)
			if i >= 5 && d.Window().Open {
				t.Fatalf("still open after %d more restarts", i)
			}
		}
		if d.Window().Open {
			t.Error("restarts keep the first-start window open")
		}
		// A new owner's first start is another one.
		d = open(t, store, func(c *Config) { c.Fresh, c.Generation = true, 2 })
		if !d.Window().Open {
			t.Error("no first-start window after a factory reset")
		}
		want(t, "pair", d.do("POST", "pair", `{"name":"x"}`, call{tls: cs}), 200)
		if c := d.Clients(); len(c) != 1 || c[0].Role != Owner || c[0].Way != WayFirstStart {
			t.Errorf("clients = %+v, want one owner by first-start", c)
		}
		if err := d.Remove(d.Clients()[0].ID); err != nil {
			t.Fatal(err)
		}
		d = open(t, store, func(c *Config) { c.Fresh, c.Generation = true, 2 })
		if d.Window().Open {
			t.Error("a success did not close it for good")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		d := open(t, store, fresh)
		go d.Run(t.Context())
		time.Sleep(FirstStartTime - time.Second)
		until, err := d.Open(WayButton, OpenOptions{})
		if err != nil || time.Until(until) != WindowTime {
			t.Errorf("button near the end: %v, %v", time.Until(until), err)
		}
		time.Sleep(WindowTime)
		synctest.Wait()
		if d.Window().Open {
			t.Error("open for longer than 10 minutes")
		}
		if d = open(t, store, fresh); d.Window().Open {
			t.Error("it opened again after a restart")
		}
		if store.changes > 30 {
			t.Errorf("%d writes in ten minutes", store.changes)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{err: errFull}, fresh)
		if d.Window().Open {
			t.Error("opened though it could not be remembered: it would open again at each start")
		}
	})
	synctest.Test(t, func(t *testing.T) { // pressing the button during it does not shorten it
		d := open(t, &memory{}, fresh)
		until, err := d.Open(WayButton, OpenOptions{})
		if err != nil || time.Until(until) != FirstStartTime || d.Window().Way != WayFirstStart {
			t.Errorf("button: %v, %v", time.Until(until), err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the power went away between the pairing and the end of the window
		store := &memory{}
		d := open(t, store, nil)
		d.pairAs(t, Owner, cs)
		store.values[firstKey] = mustJSON(mark{1, 5})
		if d = open(t, store, fresh); d.Window().Open {
			t.Error("open though a client has paired")
		}
	})
	synctest.Test(t, func(t *testing.T) { // contention closes it for good
		store := &memory{}
		d := open(t, store, fresh)
		first, _, _ := commitment("a")
		d.do("POST", "pair", first, call{tls: cs})
		want(t, "second", d.do("POST", "pair", `{}`, call{tls: cs}), 409)
		if d = open(t, store, fresh); d.Window().Open {
			t.Error("it opened again after a restart")
		}
	})
}

func TestLabel(t *testing.T) {
	cs := connection(t)
	store := &memory{}
	d := open(t, store, nil)
	body := fmt.Sprintf(`{"name":"phone","secret":%q}`, testLabel)
	g := want(t, "label", d.do("POST", "pair", body, call{tls: cs}), 200)
	if g.body.Client.Role != Owner || g.body.Client.Way != WayLabel {
		t.Errorf("client = %+v, want an owner by label", g.body.Client)
	}
	if g := want(t, "label again", d.do("POST", "pair", body, call{tls: cs}), 403); g.body.Message != labelExhausted {
		t.Errorf("label again: %v, want it to say that it is used up", g)
	}
	d = open(t, store, nil)
	want(t, "label after a restart", d.do("POST", "pair", body, call{tls: cs}), 403)
	d = open(t, store, func(c *Config) { c.Generation++ })
	want(t, "label after a reset", d.do("POST", "pair", body, call{tls: cs}), 200)
	if err := (&Config{Label: "123456"}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("Validate = %v, want three mistakes", err)
	}
}

func TestInvitation(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		g := want(t, "invite", d.do("POST", "invitations", "", call{local: true}), 200)
		i, err := trust.ParseInvitation(g.body.URL)
		if err != nil || i.Pin != testPin || i.ID != tether.NewDeviceID([]byte("test")) || g.body.SVG != "<svg>"+g.body.URL+"</svg>" {
			t.Fatalf("invitation = %v, %v", g, err)
		}
		pair := fmt.Sprintf(`{"name":"x","secret":%q,"role":"owner"}`, i.Secret)
		g = want(t, "use", d.do("POST", "pair", pair, call{tls: cs}), 200)
		if g.body.Client.Role != Member {
			t.Errorf("role = %s, want member: no more was offered", g.body.Client.Role)
		}
		want(t, "use again", d.do("POST", "pair", pair, call{tls: cs}), 403)

		invite := func(body string) string {
			t.Helper()
			g := want(t, "invite", d.do("POST", "invitations", body, call{local: true}), 200)
			i, _ := trust.ParseInvitation(g.body.URL)
			return i.Secret
		}
		s := invite(`{"minutes":30}`)
		time.Sleep(30 * time.Minute)
		want(t, "too late", d.do("POST", "pair", fmt.Sprintf(`{"secret":%q}`, s), call{tls: cs}), 403)

		// One that is used or withdrawn between the two steps is worth nothing, and above all not what the label is.
		for _, spoil := range []func(s string){
			func(string) { want(t, "withdraw", d.do("DELETE", "invitations", "", call{local: true}), 204) },
			func(string) { time.Sleep(inviteTime); d.asks[0].until = time.Now().Add(time.Hour) },
		} {
			s = invite(`{"role":"guest"}`)
			nonce := randomBytes(trust.NonceSize)
			g = want(t, "first", d.do("POST", "pair", fmt.Sprintf(`{"secret":%q,"commitment":%q}`, s, b64(trust.Commit(nonce))), call{tls: cs}), 202)
			d.asks[0].until = d.asks[0].until.Add(time.Hour)
			spoil(s)
			want(t, "second", d.do("POST", "pair/"+g.body.Request, fmt.Sprintf(`{"nonce":%q}`, b64(nonce)), call{tls: cs}), 403)
			d.asks = nil
		}
		if d.labelUsed {
			t.Error("the label was used up by an invitation")
		}

		// Two with one secret: it has leaked.
		s = invite("")
		nonce := randomBytes(trust.NonceSize)
		two := fmt.Sprintf(`{"secret":%q,"commitment":%q}`, s, b64(trust.Commit(nonce)))
		g = want(t, "first", d.do("POST", "pair", two, call{tls: cs}), 202)
		want(t, "same", d.do("POST", "pair", two, call{tls: cs}), 202)
		want(t, "thief", d.do("POST", "pair", fmt.Sprintf(`{"secret":%q}`, s), call{tls: cs}), 409)
		want(t, "second", d.do("POST", "pair/"+g.body.Request, fmt.Sprintf(`{"nonce":%q}`, b64(nonce)), call{tls: cs}), 409)

		for range maxInvites {
			invite("")
		}
		want(t, "too many", d.do("POST", "invitations", "", call{local: true}), 409)
		want(t, "withdraw", d.do("DELETE", "invitations", "", call{local: true}), 204)
		for _, bad := range []string{`{"minutes":1441}`, `{"minutes":-1}`, `{"minutes":99999999999999}`, `{"role":"king"}`, `[]`} {
			want(t, bad, d.do("POST", "invitations", bad, call{local: true}), 400)
		}
	})
}

func TestWrongSecretsAreThrottled(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		wrong := `{"secret":"wrong"}`
		for range badAllowed {
			want(t, "wrong", d.do("POST", "pair", wrong, call{tls: cs}), 403)
		}
		g := want(t, "too many", d.do("POST", "pair", wrong, call{tls: cs}), 429)
		if got := g.header.Get("Retry-After"); got != "30" {
			t.Errorf("Retry-After = %q, want 30", got)
		}
		right := fmt.Sprintf(`{"secret":%q}`, testLabel)
		want(t, "right, but guesses are not heard now", d.do("POST", "pair", right, call{tls: cs}), 429)
		want(t, "right, elsewhere", d.do("POST", "pair", right, call{tls: cs, from: "192.0.2.2:1"}), 200)
		if got, want := d.told(), "bad_token bad_token client_paired"; got != want {
			t.Errorf("events = %s, want %s", got, want)
		}
	})
}

// Who may open windows, and for whom.
func TestClientWindow(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	owner, _ := d.pairAs(t, Owner, cs)
	member, memberID := d.pairAs(t, Member, cs)
	member2, _ := d.pairAs(t, Member, cs)
	guest, _ := d.pairAs(t, Guest, cs)
	want(t, "guest", d.do("POST", "pair/window", "", call{token: guest}), 403)
	want(t, "guest for a guest", d.do("POST", "pair/window", `{"role":"guest"}`, call{token: guest}), 403)
	want(t, "nobody", d.do("POST", "pair/window", "", call{}), 401)
	want(t, "member for an owner", d.do("POST", "pair/window", `{"role":"owner"}`, call{token: member}), 403)
	want(t, "nonsense", d.do("POST", "pair/window", `{"role":"king"}`, call{token: owner}), 400)
	g := want(t, "member", d.do("POST", "pair/window", "", call{token: member}), 200)
	if !g.body.Confirm {
		t.Error("a member's window has no confirmation")
	}
	want(t, "another member meanwhile", d.do("POST", "pair/window", "", call{token: member2}), 409)
	a := want(t, "ask", d.do("POST", "pair", `{"name":"a","role":"owner"}`, call{tls: cs}), 202)
	var list []requestView
	json.Unmarshal([]byte(want(t, "list", d.do("GET", "pair/requests", "", call{token: member}), 200).text), &list)
	if len(list) != 1 || list[0].Role != Member {
		t.Fatalf("list = %+v, want one, to become a member", list)
	}
	want(t, "other member lists", d.do("GET", "pair/requests", "", call{token: member2}), 403)
	want(t, "other member approves", d.do("POST", "pair/"+list[0].Request+"/approve", "", call{token: member2}), 403)
	want(t, "guest refuses", d.do("POST", "pair/"+list[0].Request+"/refuse", "", call{token: guest}), 403)
	want(t, "other member closes", d.do("DELETE", "pair/window", "", call{token: member2}), 403)
	want(t, "member makes an owner", d.do("POST", "pair/"+list[0].Request+"/approve", `{"role":"owner"}`, call{token: member}), 403)
	want(t, "owner makes an owner in a member's window", d.do("POST", "pair/"+list[0].Request+"/approve", `{"role":"owner"}`, call{token: owner}), 403)
	g = want(t, "member approves", d.do("POST", "pair/"+list[0].Request+"/approve", "", call{token: member}), 200)
	if g.body.Client.Role != Member || g.body.Client.Way != WayClient {
		t.Errorf("client = %+v, want a member by client", g.body.Client)
	}
	want(t, "fetch", d.do("GET", "pair/"+a.body.Request, "", call{tls: cs}), 200)

	// A member that is revoked takes its window with it.
	want(t, "member", d.do("POST", "pair/window", "", call{token: member}), 200)
	a = want(t, "ask", d.do("POST", "pair", `{"name":"b"}`, call{tls: cs}), 202)
	want(t, "demote", d.do("PATCH", "clients/"+memberID, `{"role":"guest"}`, call{token: owner}), 200)
	if d.Window().Open {
		t.Error("the window of a member that became a guest is still open")
	}
	want(t, "closed", d.do("GET", "pair/"+a.body.Request, "", call{tls: cs}), 410)

	g = want(t, "owner opens for an owner", d.do("POST", "pair/window", `{"role":"owner"}`, call{token: owner}), 200)
	if !g.body.Open {
		t.Error("not open")
	}
	want(t, "owner closes", d.do("DELETE", "pair/window", "", call{token: owner}), 204)
	if d.Window().Open {
		t.Error("still open")
	}
	for _, way := range []string{WayFirstStart, WayLabel, ""} {
		if _, err := d.Open(way, OpenOptions{}); !errors.Is(err, ErrWay) {
			t.Errorf("Open(%q) = %v, want ErrWay", way, err)
		}
	}
}

func TestWhereFrom(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	d.Open(WayButton, OpenOptions{})
	want(t, "over the tether", d.do("POST", "pair", `{}`, call{tls: cs, remote: true}), 403)
	want(t, "over the tether", d.do("POST", "pair/x", `{}`, call{remote: true}), 403)
	want(t, "over the tether", d.do("GET", "pair/x", ``, call{remote: true}), 403)
	want(t, "without TLS", d.do("POST", "pair", `{}`, call{}), 403)
	want(t, "control socket", d.do("POST", "pair", `{}`, call{local: true}), 403)
	want(t, "without a finished handshake", d.do("POST", "pair", `{}`, call{tls: &tls.ConnectionState{}}), 400)
	want(t, "a page elsewhere", d.do("POST", "pair", `{}`, call{tls: cs, header: http.Header{"Origin": {"https://evil.example"}}}), 403)
	want(t, "a page elsewhere", d.do("POST", "pair", `{}`, call{tls: cs, header: http.Header{"Sec-Fetch-Site": {"cross-site"}}}), 403)
	if len(d.Clients()) != 0 || !d.Window().Open {
		t.Errorf("clients = %v, want none, and the window still open", d.Clients())
	}
	want(t, "management over the tether", d.do("GET", "clients", "", call{remote: true}), 401)
	token, _ := d.pairAs(t, Owner, cs)
	want(t, "management over the tether", d.do("GET", "clients", "", call{remote: true, token: token}), 200)
}

func TestClients(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	owner, ownerID := d.pairAs(t, Owner, cs)
	member, memberID := d.pairAs(t, Member, cs)
	guest, guestID := d.pairAs(t, Guest, cs)
	for name, c := range map[string]struct {
		as   call
		want int
	}{"owner": {call{token: owner}, 3}, "local": {call{local: true}, 3}, "member": {call{token: member}, 1}, "guest": {call{token: guest}, 1}} {
		g := want(t, name, d.do("GET", "clients", "", c.as), 200)
		you := 0
		for _, v := range g.body.Clients {
			if v.You {
				you++
			}
		}
		if len(g.body.Clients) != c.want || you != 1 && name != "local" || you != 0 && name == "local" {
			t.Errorf("%s sees %v, want %d clients and itself marked", name, g, c.want)
		}
	}
	want(t, "member removes a guest", d.do("DELETE", "clients/"+guestID, "", call{token: member}), 403)
	want(t, "member renames itself", d.do("PATCH", "clients/"+memberID, `{"name":"x"}`, call{token: member}), 403)
	want(t, "guest changes its role", d.do("PATCH", "clients/"+guestID, `{"role":"owner"}`, call{token: guest}), 403)
	want(t, "unknown", d.do("DELETE", "clients/nobody", "", call{token: owner}), 404)
	for _, bad := range []string{`{"role":"king"}`, `{"role":""}`, `{"expires":"tomorrow"}`, `{"expires":5}`, `{"expires":"1960-01-01T00:00:00Z"}`, `{"name":5}`, `nonsense`} {
		want(t, bad, d.do("PATCH", "clients/"+guestID, bad, call{token: owner}), 400)
	}
	g := want(t, "rename", d.do("PATCH", "clients/"+guestID, `{"name":" garden\u0007  tablet "}`, call{token: owner}), 200)
	if got, want := g.body.Client.Name, "garden tablet"; got != want {
		t.Errorf("name = %q, want %q", got, want)
	}
	// The last owner stays, unless the device itself says otherwise.
	for _, body := range []string{`{"role":"member"}`, `{"expires":"2100-01-01T00:00:00Z"}`} {
		want(t, "last owner "+body, d.do("PATCH", "clients/"+ownerID, body, call{token: owner}), 409)
	}
	want(t, "last owner leaves", d.do("DELETE", "clients/"+ownerID, "", call{token: owner}), 409)
	want(t, "second owner", d.do("PATCH", "clients/"+memberID, `{"role":"owner"}`, call{token: owner}), 200)
	want(t, "one of two leaves", d.do("DELETE", "clients/"+ownerID, "", call{token: owner}), 204)
	want(t, "revoked", d.do("GET", "session", "", call{token: owner}), 401)
	want(t, "guest leaves", d.do("DELETE", "clients/"+guestID, "", call{token: guest}), 204)
	want(t, "local removes the last owner", d.do("DELETE", "clients/"+memberID, "", call{local: true}), 204)
	if n := d.store.count(clientKey); n != 0 {
		t.Errorf("%d clients are still stored", n)
	}
	want(t, "security for others", d.do("GET", "security", "", call{token: member}), 401)
	var events []SecurityEvent
	if err := json.Unmarshal([]byte(want(t, "security", d.do("GET", "security", "", call{local: true}), 200).text), &events); err != nil || len(events) == 0 {
		t.Errorf("security events = %v, %v", events, err)
	}
	d.mu.Lock()
	if len(events) != len(d.events) {
		t.Errorf("%d events are kept and %d were told, want each once", len(events), len(d.events))
	}
	d.mu.Unlock()
}

func TestExpiry(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		d := open(t, store, nil)
		guest, id := d.pairAs(t, Guest, cs)
		owner, _ := d.pairAs(t, Owner, cs)
		end := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
		g := want(t, "set", d.do("PATCH", "clients/"+id, `{"expires":"`+end.Format(time.RFC3339)+`"}`, call{token: owner}), 200)
		if g.body.Client.Expires != end.Format(time.RFC3339) {
			t.Errorf("expires = %s, want %s", g.body.Client.Expires, end)
		}
		time.Sleep(time.Hour - time.Second)
		want(t, "before", d.do("GET", "session", "", call{token: guest}), 200)
		// A clock that was never set lets nobody in whose time may be over.
		past := open(t, store, func(c *Config) { c.Now = func() time.Time { return time.Unix(100, 0) } })
		want(t, "1970", past.do("GET", "session", "", call{token: guest}), 401)
		want(t, "1970, without an end", past.do("GET", "session", "", call{token: owner}), 200)
		time.Sleep(time.Second)
		g = want(t, "after", d.do("GET", "session", "", call{token: guest}), 401)
		if !strings.Contains(g.body.Message, "time of this token is over") {
			t.Errorf("message = %q", g.body.Message)
		}
		want(t, "prolong", d.do("PATCH", "clients/"+id, `{"expires":null}`, call{token: owner}), 200)
		want(t, "again", d.do("GET", "session", "", call{token: guest}), 200)
	})
}

func TestFull(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	var last string
	for range MaxClients {
		_, last = d.pairAs(t, Member, cs)
	}
	d.Open(WayButton, OpenOptions{})
	g := want(t, "full", d.do("POST", "pair", `{"name":"x"}`, call{tls: cs}), 507)
	if !strings.Contains(g.body.Message, "64") || d.store.count(clientKey) != MaxClients {
		t.Errorf("full: %v, %d stored", g, d.store.count(clientKey))
	}
	// One whose time is over makes room.
	end := time.Now().Add(-time.Hour)
	if _, err := d.change(actor{local: true, role: Owner}, last, nil, nil, &end); err != nil {
		t.Fatal(err)
	}
	want(t, "room", d.do("POST", "pair", `{"name":"x"}`, call{tls: cs}), 200)
	if n := d.store.count(clientKey); n != MaxClients {
		t.Errorf("%d clients are stored, want %d", n, MaxClients)
	}
}

func TestPaths(t *testing.T) {
	d := open(t, &memory{}, nil)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"PUT", "pair", 405}, {"GET", "pair/window", 405}, {"POST", "clients", 405}, {"GET", "clients/x", 405}, {"POST", "security", 405},
		{"GET", "invitations", 405}, {"PATCH", "session", 405}, {"GET", "pair/x/approve", 405}, {"GET", "pair/x/y", 404}, {"GET", "clients/", 404},
		{"GET", "nothing", 404}, {"HEAD", "pair", 200},
	} {
		g := want(t, c.method+" "+c.path, d.do(c.method, c.path, "", call{local: true}), c.status)
		if c.status == 405 && g.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
		if g.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s may be stored", c.method, c.path)
		}
	}
	for path, want := range map[string]bool{
		"/.cloudrest/v1/pair": true, "/.cloudrest/v1/pair/x/approve": true, "/.cloudrest/v1/session": true, "/.cloudrest/v1/status": false, "/.cloudrest/": false, "/pair": false,
	} {
		if got := Serves(path); got != want {
			t.Errorf("Serves(%s) = %v, want %v", path, got, want)
		}
	}
	want(t, "long body", d.do("POST", "pair", strings.Repeat(" ", maxBody+1), call{tls: connection(t)}), 413)
}

// What was fetched stays: only tokens that nobody came for are taken back.
func TestFetchedStays(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		d.Open(WayButton, OpenOptions{})
		first, second, _ := commitment("app")
		g := want(t, "first", d.do("POST", "pair", first, call{tls: cs}), 202)
		g = want(t, "second", d.do("POST", "pair/"+g.body.Request, second, call{tls: cs}), 200)
		time.Sleep(2 * askTime)
		d.Window() // lets go of what is over
		want(t, "later", d.do("GET", "session", "", call{token: g.body.Token}), 200)
	})
}

// Who lost the right in this very moment has lost it.
func TestLostRights(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	_, keeperID := d.pairAs(t, Owner, cs)
	owner, id := d.pairAs(t, Owner, cs)
	who, err := d.who(&http.Request{Header: bearerOf(owner)})
	if err != nil {
		t.Fatal(err)
	}
	g := want(t, "invite", d.do("POST", "invitations", `{"role":"owner"}`, call{token: owner}), 200)
	invitation, _ := trust.ParseInvitation(g.body.URL)
	want(t, "open", d.do("POST", "pair/window", `{"role":"owner"}`, call{token: owner}), 200)
	want(t, "ask", d.do("POST", "pair", `{"name":"friend"}`, call{tls: cs}), 202)
	if err := d.Remove(id); err != nil {
		t.Fatal(err)
	}
	if d.Window().Open {
		t.Error("the window of a revoked client is still open")
	}
	want(t, "invitation of a revoked client", d.do("POST", "pair", fmt.Sprintf(`{"secret":%q}`, invitation.Secret), call{tls: cs}), 403)
	d.Open(WayCLI, OpenOptions{})
	want(t, "ask", d.do("POST", "pair", `{"name":"friend"}`, call{tls: cs}), 202)
	asker := d.asks[len(d.asks)-1].id
	if _, err := d.decide(who, asker, true, ""); err != errOwner {
		t.Errorf("decide = %v, want %v", err, errOwner)
	}
	if _, _, err := d.invite(who, Owner, 0); err != errOwner {
		t.Errorf("invite = %v, want %v", err, errOwner)
	}
	if err := d.withdraw(who); err != errOwner {
		t.Errorf("withdraw = %v, want %v", err, errOwner)
	}
	if err := d.remove(who, keeperID); err != errOwner {
		t.Errorf("remove = %v, want %v", err, errOwner)
	}
	if _, err := d.Open(WayClient, OpenOptions{By: who.rec.Client}); !errors.Is(err, ErrRole) {
		t.Errorf("Open = %v, want ErrRole", err)
	}
	member, _ := d.pairAs(t, Member, cs)
	want(t, "member withdraws", d.do("DELETE", "invitations", "", call{token: member}), 403)
	want(t, "member invites", d.do("POST", "invitations", "", call{token: member}), 403)
	want(t, "member reads the events", d.do("GET", "security", "", call{token: member}), 403)
}

func TestHeadTakesNoToken(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	d.Open(WayCLI, OpenOptions{})
	g := want(t, "ask", d.do("POST", "pair", `{"name":"a"}`, call{tls: cs}), 202)
	if _, err := d.decide(actor{local: true, role: Owner}, d.asks[0].id, true, ""); err != nil {
		t.Fatal(err)
	}
	want(t, "HEAD", d.do("HEAD", "pair/"+g.body.Request, "", call{tls: cs}), 204)
	if got := want(t, "GET", d.do("GET", "pair/"+g.body.Request, "", call{tls: cs}), 200); got.body.Token == "" {
		t.Errorf("GET after HEAD: %v, want the token", got)
	}
}
