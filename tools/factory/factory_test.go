package factory

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tether/trust"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// stateDir is short: the path of a UNIX socket has about 100 bytes.
func stateDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "st")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// unit is a device of a test.
type unit struct {
	uid []byte
	id  tether.DeviceID
	key crypto.Signer
}

func newUnit(t testing.TB) unit {
	uid := make([]byte, 12)
	rand.Read(uid)
	return unit{uid, tether.NewDeviceID(uid), newKey(t)}
}

func (u unit) claim(t testing.TB) provisioning.Claim {
	t.Helper()
	csr, err := devcert.Request(u.id, u.key)
	if err != nil {
		t.Fatal(err)
	}
	return provisioning.Claim{UID: hex.EncodeToString(u.uid), CSR: csr, Descriptor: json.RawMessage(`{"name":"=1+1","version":"2","mine":true}`),
		LANPin: strings.Repeat("ab", 32), LabelSecret: "secret-of-" + u.id.Short()}
}

// bench is a store with its authority and a batch.
type bench struct {
	*Store
	a     *devcert.Authority
	token string
}

func newBench(t *testing.T, count int) *bench {
	t.Helper()
	s, err := OpenStore(t.TempDir(), time.Hour*24*365)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	b := &bench{Store: s}
	if b.a, err = devcert.NewAuthority("Test", time.Now().AddDate(0, 0, -2), time.Now().AddDate(20, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if _, b.token, err = s.NewBatch("batch 7", count, time.Hour); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) claim(t *testing.T, u unit) (provisioning.Grant, error) {
	t.Helper()
	return b.Claim(b.a, b.token, u.claim(t), u.id, u.key.Public(), "192.0.2.1")
}

func (b *bench) confirm(t *testing.T, u unit, g provisioning.Grant) error {
	t.Helper()
	c, err := provisioning.Sign(u.id, g.Chain[0], u.key)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = b.Confirm(c)
	return err
}

func (b *bench) batch(t *testing.T) Batch {
	t.Helper()
	list, err := b.Batches()
	if err != nil || len(list) != 1 {
		t.Fatalf("%d batches, %v", len(list), err)
	}
	return list[0]
}

func refused(err error) (int, provisioning.Reason) {
	if e, ok := errors.AsType[*Refusal](err); ok {
		return e.Status, e.Reason
	}
	return 0, ""
}

func TestClaimCountsOnce(t *testing.T) {
	b := newBench(t, 2)
	one, two, three := newUnit(t), newUnit(t), newUnit(t)
	g, err := b.claim(t, one)
	if err != nil || g.ID != one.id || g.Batch != "batch 7" || g.Confirmed {
		t.Fatalf("claim: %+v, %v", g, err)
	}
	if _, id, err := devcert.Verify(g.Chain, b.a.Roots(), time.Now()); err != nil || id != one.id {
		t.Errorf("the certificate is for %s, %v", id, err)
	}
	again, err := b.claim(t, one)
	if err != nil || !bytes.Equal(again.Chain[0], g.Chain[0]) {
		t.Errorf("claimed again: %v, same certificate %v", err, bytes.Equal(again.Chain[0], g.Chain[0]))
	}
	if _, err := b.claim(t, two); err != nil {
		t.Error(err)
	}
	if status, reason := refused(second(b.claim(t, three))); status != 403 || reason != provisioning.ReasonToken {
		t.Errorf("a third unit of two: %d %s, want 403 %s", status, reason, provisioning.ReasonToken)
	}
	if _, err := b.claim(t, one); err != nil { // its answer was lost, and the batch is used up
		t.Errorf("claimed again, batch used up: %v", err)
	}
	for range 2 {
		if err := b.confirm(t, one, g); err != nil {
			t.Error(err)
		}
	}
	if got := b.batch(t); got.Claimed != 2 || got.Confirmed != 1 {
		t.Errorf("%d claimed, %d confirmed, want 2 and 1", got.Claimed, got.Confirmed)
	}
	if err := b.confirm(t, two, g); err == nil {
		t.Error("confirmed with another unit's certificate")
	}
	if err := b.confirm(t, three, g); err == nil {
		t.Error("confirmed a unit that was not claimed")
	}
}

func second[T any](_ T, err error) error { return err }

func TestTokens(t *testing.T) {
	b := newBench(t, 5)
	u := newUnit(t)
	now := time.Now()
	b.Store.now = func() time.Time { return now }
	check := func(what, token string, want int) {
		t.Helper()
		_, err := b.CheckToken(token)
		_, claim := b.Claim(b.a, token, u.claim(t), u.id, u.key.Public(), "")
		if got, _ := refused(err); got != want {
			t.Errorf("%s: checked %d (%v), want %d", what, got, err, want)
		}
		if got, _ := refused(claim); got != want {
			t.Errorf("%s: claim %d (%v), want %d", what, got, claim, want)
		}
	}
	check("unknown", provisioning.TokenPrefix+strings.Repeat("x", 43), 401)
	check("none", "", 401)
	check("good", b.token, 0)
	now = now.Add(time.Hour)
	check("run out", b.token, 403)
	now = now.Add(-time.Minute)
	if err := b.RevokeBatch("batch 7"); err != nil {
		t.Fatal(err)
	}
	check("revoked", b.token, 403)
	if err := b.RevokeBatch("batch 8"); !errors.Is(err, ErrUnknown) {
		t.Errorf("revoke an unknown one: %v", err)
	}
	if !provisioning.ValidToken(b.token) {
		t.Errorf("the token has a form that devices refuse: %d bytes", len(b.token))
	}
	content, err := os.ReadFile(b.db.Path())
	if err != nil || bytes.Contains(content, []byte(b.token)) || bytes.Contains(content, []byte(b.token[8:])) {
		t.Errorf("the token stands in the store: %v", err)
	}
	for name, f := range map[string]func() error{
		"name taken": func() error { _, _, err := b.NewBatch("batch 7", 1, time.Hour); return err },
		"no units":   func() error { _, _, err := b.NewBatch("x", 0, time.Hour); return err },
		"no time":    func() error { _, _, err := b.NewBatch("x", 1, 0); return err },
		"long name":  func() error { _, _, err := b.NewBatch(strings.Repeat("x", MaxBatchName+1), 1, time.Hour); return err },
		"two lines":  func() error { _, _, err := b.NewBatch("x\ny", 1, time.Hour); return err },
	} {
		if f() == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if n, _, err := b.NewBatch("", 1, time.Hour); err != nil || n.Name != "batch 2" {
		t.Errorf("a batch without a name is %q, %v", n.Name, err)
	}
}

func TestConflict(t *testing.T) {
	b := newBench(t, 3)
	u := newUnit(t)
	g, err := b.claim(t, u)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.confirm(t, u, g); err != nil {
		t.Fatal(err)
	}
	erased := u
	erased.key = newKey(t)
	for range 2 {
		if status, reason := refused(second(b.claim(t, erased))); status != 409 || reason != provisioning.ReasonConflict {
			t.Errorf("another key: %d %s, want 409", status, reason)
		}
	}
	list, err := b.Conflicts()
	if err != nil || len(list) != 1 || list[0].ID != u.id || list[0].Count != 2 || list[0].From != "192.0.2.1" {
		t.Errorf("conflicts %+v, %v", list, err)
	}
	if again, err := b.claim(t, u); err != nil || !again.Confirmed {
		t.Errorf("the first one meanwhile: %+v, %v", again.Confirmed, err)
	}
	if _, err := b.Release(u.id, "repair"); err != nil {
		t.Fatal(err)
	}
	if list, _ := b.Conflicts(); len(list) != 0 {
		t.Errorf("conflicts after the release: %+v", list)
	}
	if err := b.confirm(t, u, g); err == nil {
		t.Error("a released certificate is confirmed")
	}
	g2, err := b.claim(t, erased)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.confirm(t, erased, g2); err != nil {
		t.Error(err)
	}
	if got := b.batch(t); got.Claimed != 1 || got.Confirmed != 1 {
		t.Errorf("%d claimed, %d confirmed, want 1 and 1", got.Claimed, got.Confirmed)
	}
	revoked, err := b.Revocations()
	old, _, _ := devcert.Parse(g.Chain)
	if err != nil || len(revoked) != 1 || revoked[0].Serial != hex.EncodeToString(old.SerialNumber.Bytes()) || revoked[0].Reason != "repair" {
		t.Errorf("revoked %+v, %v", revoked, err)
	}
	if status, _ := refused(second(b.claim(t, u))); status != 409 {
		t.Errorf("the old key after the release: %d, want 409", status)
	}
	if _, err := b.Release(newUnit(t).id, ""); !errors.Is(err, ErrUnknown) {
		t.Errorf("release of a stranger: %v", err)
	}

	// A flash that was copied with its key to a board with another UID.
	clone := newUnit(t)
	clone.key = erased.key
	if status, _ := refused(second(b.claim(t, clone))); status != 409 {
		t.Errorf("a key of another unit: %d, want 409", status)
	}
}

// The authority was changed: units get a certificate of the new one.
func TestNewAuthority(t *testing.T) {
	b := newBench(t, 3)
	u := newUnit(t)
	g, err := b.claim(t, u)
	if err != nil {
		t.Fatal(err)
	}
	if b.a, err = devcert.NewAuthority("Next", time.Now().AddDate(0, 0, -2), time.Now().AddDate(20, 0, 0)); err != nil {
		t.Fatal(err)
	}
	g2, err := b.claim(t, u)
	if err != nil || bytes.Equal(g.Chain[0], g2.Chain[0]) {
		t.Fatalf("%v, the same certificate: %v", err, bytes.Equal(g.Chain[0], g2.Chain[0]))
	}
	if _, _, err := devcert.Verify(g2.Chain, b.a.Roots(), time.Now()); err != nil {
		t.Error(err)
	}
	if err := b.confirm(t, u, g); err == nil {
		t.Error("the old certificate is confirmed")
	}
}

func TestTroublesAreBounded(t *testing.T) {
	b := newBench(t, 3)
	b.db.NoSync = true
	for i := range maxTroubles + 5 {
		if err := b.Fail(Trouble{ID: tether.NewDeviceID([]byte{byte(i), byte(i >> 8)}), Reason: provisioning.ReasonService}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := b.Troubles()
	if err != nil || len(list) != maxTroubles {
		t.Errorf("%d failures are kept, %v; want %d", len(list), err, maxTroubles)
	}
	last := tether.NewDeviceID([]byte{byte((maxTroubles + 4) & 255), byte((maxTroubles + 4) >> 8)})
	if list[0].ID != last {
		t.Errorf("the latest is %s, want %s", list[0].ID.Short(), last.Short())
	}
}

func TestExport(t *testing.T) {
	b := newBench(t, 3)
	u, open := newUnit(t), newUnit(t)
	g, err := b.claim(t, u)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.confirm(t, u, g); err != nil {
		t.Fatal(err)
	}
	if _, err := b.claim(t, open); err != nil {
		t.Fatal(err)
	}
	export := func(o ExportOptions) string {
		t.Helper()
		var out bytes.Buffer
		x, err := NewExporter(&out, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Each(x.Write); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Close(); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	plain := export(ExportOptions{Format: FormatJSONL})
	var line struct {
		ID         tether.DeviceID
		Key        []byte
		Serial     string
		Descriptor json.RawMessage
	}
	if err := json.Unmarshal([]byte(plain), &line); err != nil { // one line: the unconfirmed unit is left out
		t.Fatalf("%v in %s", err, plain)
	}
	leaf, _, _ := devcert.Parse(g.Chain)
	if line.ID != u.id || !bytes.Equal(line.Key, leaf.RawSubjectPublicKeyInfo) || line.Serial != hex.EncodeToString(leaf.SerialNumber.Bytes()) || string(line.Descriptor) != `{"name":"=1+1","version":"2","mine":true}` {
		t.Errorf("exported %s", plain)
	}
	uid := hex.EncodeToString(u.uid)
	if strings.Contains(plain, "secret-of") || strings.Contains(plain, uid) {
		t.Errorf("secrets or the UID in %s", plain)
	}
	if got := strings.Count(export(ExportOptions{Format: FormatJSONL, All: true}), "\n"); got != 2 {
		t.Errorf("--all: %d lines, want 2", got)
	}
	if got := export(ExportOptions{Format: FormatJSONL, Batch: "another"}); got != "" {
		t.Errorf("another batch: %s", got)
	}
	rows, err := csv.NewReader(strings.NewReader(export(ExportOptions{Format: FormatCSV, Labels: true, UID: true, Port: 8443}))).ReadAll()
	if err != nil || len(rows) != 2 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	cells := map[string]string{}
	for i, name := range rows[0] {
		cells[name] = rows[1][i]
	}
	want := trust.Invitation{URL: "https://cloudrest-" + u.id.Short() + ".local:8443", ID: u.id, Pin: strings.Repeat("ab", 32), Secret: "secret-of-" + u.id.Short()}
	if got, err := trust.ParseInvitation(cells["label_url"]); err != nil || got != want {
		t.Errorf("label %+v, %v; want %+v", got, err, want)
	}
	if cells["name"] != "'=1+1" || cells["uid"] != uid || cells["key"] != base64.StdEncoding.EncodeToString(leaf.RawSubjectPublicKeyInfo) {
		t.Errorf("row %q", cells)
	}
	if _, err := NewExporter(io.Discard, ExportOptions{Format: "xml"}); err == nil {
		t.Error("format xml is taken")
	}
}

// running is a station with a client of its authority.
type running struct {
	*Station
	url  string
	http *http.Client
	stop func()
}

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = stateDir(t)
	}
	cfg.Listen = "127.0.0.1:0"
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file, _ := s.Authority()
	pem, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := devcert.ParseRoots(pem)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r := &running{Station: s, url: "https://" + s.Addr().String(), http: &http.Client{
		Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}
	r.stop = func() {
		r.http.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the station ended with %v", err)
		}
		ended <- nil
	}
	t.Cleanup(r.stop)
	return r
}

func (r *running) ask(t *testing.T, method, path, token string, body any) (int, string, http.Header) {
	t.Helper()
	b, ok := body.([]byte)
	if !ok && body != nil {
		b, _ = json.Marshal(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func TestStation(t *testing.T) {
	r := start(t, Config{Name: "Line 2", Network: provisioning.Network{SSID: "Line 2", Passphrase: "12345678"}})
	ctx := t.Context()
	c, err := Connect(ctx, r.cfg.Dir)
	if err != nil || !c.Running() {
		t.Fatalf("orders: %v", err)
	}
	_, token, err := c.NewBatch(ctx, "batch 7", 2, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	u := newUnit(t)
	for _, x := range []struct {
		name, method, path, token string
		body                      any
		want                      int
		holds                     string
	}{
		{"a station is here", "GET", provisioning.InfoPath, "", nil, 200, `"station":"Line 2"`},
		{"Wi-Fi, stranger", "GET", provisioning.NetworkPath, "", nil, 401, `"reason":"token"`},
		{"Wi-Fi", "GET", provisioning.NetworkPath, token, nil, 200, `"passphrase":"12345678"`},
		{"claim, no token", "POST", provisioning.ClaimPath, "", u.claim(t), 401, `"reason":"token"`},
		{"claim, wrong token", "POST", provisioning.ClaimPath, token + "x", u.claim(t), 401, `"reason":"token"`},
		{"claim, nonsense", "POST", provisioning.ClaimPath, token, []byte("{}"), 400, `"reason":"malformed"`},
		{"claim, too large", "POST", provisioning.ClaimPath, token, make([]byte, provisioning.MaxBody+1), 413, `"reason":"malformed"`},
		{"claim with GET", "GET", provisioning.ClaimPath, token, nil, 404, ""},
		{"confirm a stranger", "POST", provisioning.ConfirmPath, "", provisioning.Confirmation{ID: u.id}, 404, `"reason":"unknown"`},
		{"confirm nonsense", "POST", provisioning.ConfirmPath, "", []byte("x"), 400, `"reason":"malformed"`},
		{"failure, stranger", "POST", provisioning.FailurePath, "", provisioning.Failure{UID: "0011223344556677", Reason: "service"}, 401, ""},
		{"failure", "POST", provisioning.FailurePath, token, provisioning.Failure{UID: "0011223344556677", Reason: "service", Message: "down"}, 204, ""},
		{"claim", "POST", provisioning.ClaimPath, token, u.claim(t), 200, string(u.id)},
		{"no such page", "GET", "/nowhere", "", nil, 404, ""},
		{"no orders here", "GET", "/units", "", nil, 404, ""},
		{"no orders here", "POST", "/batches", "", newBatch{"x", 1, 1}, 405, ""},
	} {
		status, body, h := r.ask(t, x.method, x.path, x.token, x.body)
		if status != x.want || !strings.Contains(body, x.holds) {
			t.Errorf("%s: %d %s, want %d with %s", x.name, status, body, x.want, x.holds)
		}
		if strings.Contains(body, u.claim(t).LabelSecret) || h.Get("X-Content-Type-Options") != "nosniff" || status < 400 && h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: a secret in the answer, or not guarded: %v", x.name, h)
		}
	}
	st, err := c.State(ctx)
	if err != nil || st.Waiting != 1 || st.Failing != 1 || st.Troubles[0].Message != "down" || len(st.Strangers) == 0 || st.Today != 0 {
		t.Errorf("state %+v, %v", st, err)
	}
	grant, err := r.store.Claim(r.authority, token, u.claim(t), u.id, u.key.Public(), "")
	if err != nil {
		t.Fatal(err)
	}
	confirmation, _ := provisioning.Sign(u.id, grant.Chain[0], u.key)
	if status, body, _ := r.ask(t, "POST", provisioning.ConfirmPath, "", confirmation); status != 204 {
		t.Errorf("confirm: %d %s", status, body)
	}
	if st, err = c.State(ctx); err != nil || st.Waiting != 0 || st.Today != 1 || st.Last == nil || !st.Last.OK || st.Batches[0].Confirmed != 1 {
		t.Errorf("state %+v, %v", st, err)
	}
	if err := c.Release(ctx, newUnit(t).id, ""); !errors.Is(err, ErrUnknown) {
		t.Errorf("release of a stranger: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	// A second station in one directory is refused, and does not take the first one's socket.
	if _, err := Open(Config{Dir: r.cfg.Dir, Listen: "127.0.0.1:0"}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second station: %v, want ErrInUse", err)
	}
	if c, err = Connect(ctx, r.cfg.Dir); err != nil || !c.Running() {
		t.Fatalf("orders after that: %v", err)
	}
	c.Close()

	// Without a station the orders go to the store.
	r.stop()
	if c, err = Connect(ctx, r.cfg.Dir); err != nil || c.Running() {
		t.Fatalf("orders without a station: %v", err)
	}
	n := 0
	if err := c.Units(ctx, func(Unit) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d units, %v; want 1", n, err)
	}
	if _, err := c.State(ctx); err == nil {
		t.Error("a line without a station has a state")
	}
	if err := c.RevokeBatch(ctx, "batch 7"); err != nil {
		t.Error(err)
	}
	c.Close()

	// The next one knows what the first did, and is of the same authority.
	again := start(t, Config{Dir: r.cfg.Dir})
	if _, made := again.Authority(); made {
		t.Error("the authority was made anew")
	}
	if c, err = Connect(ctx, r.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if st, err = c.State(ctx); err != nil || st.Today != 1 || st.Last == nil || st.Failing != 1 {
		t.Errorf("state after a restart %+v, %v", st, err)
	}
	if status, _, _ := again.ask(t, "GET", provisioning.NetworkPath, token, nil); status != 403 {
		t.Errorf("revoked while no station ran: %d, want 403", status)
	}
}

func TestThrottles(t *testing.T) {
	r := start(t, Config{Rate: 10})
	refusals := 0
	for range badTokenBurst + 5 {
		status, _, h := r.ask(t, "GET", provisioning.NetworkPath, provisioning.TokenPrefix+"wrong", nil)
		if status == http.StatusTooManyRequests {
			refusals++
			if h.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
		}
	}
	if refusals == 0 {
		t.Errorf("%d wrong tokens in a row, none was held back", badTokenBurst+5)
	}
	refusals = 0
	for range 60 {
		if status, _, _ := r.ask(t, "GET", provisioning.InfoPath, "", nil); status == http.StatusTooManyRequests {
			refusals++
		}
	}
	if refusals == 0 {
		t.Error("60 requests at once at 10 a second, none was held back")
	}
}

func TestThrottleIsBounded(t *testing.T) {
	th := newThrottle(1, 2)
	for i := range 3 * maxAddresses {
		th.allow(address(fmt.Sprintf("[2001:db8:%x:%x::1]:1", i>>8, i&255)), 1)
	}
	if n := len(th.credit); n > maxAddresses {
		t.Errorf("%d addresses are remembered, want at most %d", n, maxAddresses)
	}
	if address("[2001:db8::1]:1") != address("[2001:db8::ffff]:2") || address("192.0.2.1:1") == address("192.0.2.2:1") {
		t.Error("hosts are not told apart as they should be")
	}
}

func TestPage(t *testing.T) {
	r := start(t, Config{PagePassword: "correct horse"})
	get := func(path, password string) (int, string, http.Header) {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", r.url+path, nil)
		if password != "" {
			req.SetBasicAuth("line", password)
		}
		resp, err := r.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), resp.Header
	}
	for _, path := range []string{"/", "/state", "/events", "/page.js"} {
		for _, password := range []string{"", "wrong"} {
			if status, body, h := get(path, password); status != 401 || h.Get("WWW-Authenticate") == "" || len(body) > 100 {
				t.Errorf("%s with %q: %d %s, want 401", path, password, status, body)
			}
		}
	}
	for path, kind := range map[string]string{"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css", "/icon.svg": "image/svg+xml", "/state": "application/json"} {
		status, body, h := get(path, "correct horse")
		if status != 200 || !strings.HasPrefix(h.Get("Content-Type"), kind) || body == "" {
			t.Errorf("%s: %d %s", path, status, h.Get("Content-Type"))
		}
		if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if strings.Contains(body, "<script>") || strings.Contains(body, " style=") || strings.Contains(body, "innerHTML") {
			t.Errorf("%s: something the policy forbids", path)
		}
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no directory":  {},
		"half a CA":     {Dir: "x", CACert: "y"},
		"half a cert":   {Dir: "x", TLSKey: "y"},
		"long SSID":     {Dir: "x", Network: provisioning.Network{SSID: strings.Repeat("x", 33)}},
		"negative life": {Dir: "x", Life: -1},
	} {
		if s, err := Open(c); err == nil {
			s.Close()
			t.Errorf("%s: taken", name)
		}
	}
	dir := stateDir(t)
	os.Chmod(dir, 0o777)
	if s, err := Open(Config{Dir: dir, Listen: "127.0.0.1:0"}); err == nil {
		s.Close()
		t.Error("a directory in which all may write is taken")
	}
	if _, err := Connect(t.Context(), stateDir(t)); err == nil {
		t.Error("orders in an empty directory")
	}
}

// An authority given by files, with an intermediate; what devices get is the root.
func TestExternalAuthority(t *testing.T) {
	dir := t.TempDir()
	a, err := devcert.NewAuthority("Maker", time.Now().AddDate(0, 0, -2), time.Now().AddDate(20, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	os.WriteFile(certFile, cert, 0o600)
	os.WriteFile(keyFile, key, 0o600)
	r := start(t, Config{CACert: certFile, CAKey: keyFile})
	file, made := r.Authority()
	if got, err := os.ReadFile(file); made || err != nil || !bytes.Equal(got, cert) {
		t.Errorf("made %v, %v, the same certificate %v", made, err, bytes.Equal(got, cert))
	}
	if _, err := os.Stat(filepath.Join(r.cfg.Dir, "factory-ca-key.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the station has an authority of its own too: %v", err)
	}
	if status, _, _ := r.ask(t, "GET", provisioning.InfoPath, "", nil); status != 200 {
		t.Errorf("TLS from that authority: %d", status)
	}
}
