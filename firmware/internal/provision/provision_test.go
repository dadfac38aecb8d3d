package provision

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

var token = provisioning.TokenPrefix + strings.Repeat("t", 43)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newAuthority(t testing.TB) *devcert.Authority {
	t.Helper()
	a, err := devcert.NewAuthority("Test", time.Now().AddDate(0, 0, -2), time.Now().AddDate(20, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// station is a small one that remembers what it was asked. Each of its functions may be replaced.
type testStation struct {
	a      *devcert.Authority
	server *httptest.Server

	mu        sync.Mutex
	asked     []string // method and path
	granted   map[tether.DeviceID][][]byte
	confirmed map[tether.DeviceID]bool
	failures  []provisioning.Failure
	instead   func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newTestStation(t testing.TB, a *devcert.Authority, serverFrom *devcert.Authority) *testStation {
	t.Helper()
	s := &testStation{a: a, granted: map[tether.DeviceID][][]byte{}, confirmed: map[tether.DeviceID]bool{}}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(5), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, serverFrom.Chain[0], key.Public(), serverFrom.Key)
	if err != nil {
		t.Fatal(err)
	}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

func (s *testStation) url() *url.URL {
	u, _ := url.Parse(s.server.URL)
	return u
}

func (s *testStation) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
	if s.instead != nil && s.instead(w, r) {
		return
	}
	signed := r.URL.Path == provisioning.InfoPath || r.URL.Path == provisioning.ConfirmPath
	if got := r.Header.Get("Authorization"); signed != (got == "") || !signed && got != "Bearer "+token {
		http.Error(w, "wrong use of the token", 500)
		return
	}
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case provisioning.InfoPath:
		io.WriteString(w, `{"station":"test","version":1}`)
	case provisioning.NetworkPath:
		io.WriteString(w, `{"ssid":"from the station"}`)
	case provisioning.ClaimPath:
		_, id, pub, err := provisioning.ParseClaim(body)
		if err != nil {
			refusal(w, 400, provisioning.ReasonMalformed, err.Error())
			return
		}
		if s.granted[id] == nil {
			if s.granted[id], err = s.a.Issue(id, pub, time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0)); err != nil {
				panic(err)
			}
		}
		json.NewEncoder(w).Encode(provisioning.Grant{ID: id, Chain: s.granted[id], Batch: "b1"})
	case provisioning.ConfirmPath:
		c, err := provisioning.ParseConfirmation(body)
		if err != nil || s.granted[c.ID] == nil || !c.Verify(s.granted[c.ID][0]) {
			refusal(w, 404, provisioning.ReasonUnknown, "never heard")
			return
		}
		s.confirmed[c.ID] = true
		w.WriteHeader(204)
	case provisioning.FailurePath:
		f, _, err := provisioning.ParseFailure(body)
		if err == nil {
			s.failures = append(s.failures, f)
		}
		w.WriteHeader(204)
	}
}

func refusal(w http.ResponseWriter, status int, reason provisioning.Reason, message string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(provisioning.Error{Status: status, Reason: reason, Message: message})
}

// device is a unit with its service.
type device struct {
	Config
	service *http.ServeMux
	joins   []provisioning.Join
	join    func(w http.ResponseWriter) // answer of apiFactoryConnect, 204 without it
}

func newDevice(t testing.TB, s *testStation, descriptor string) *device {
	t.Helper()
	uid := make([]byte, 16)
	rand.Read(uid)
	dir := filepath.Join(t.TempDir(), "state")
	if err := statefile.Prepare(dir); err != nil {
		t.Fatal(err)
	}
	root, _, err := s.a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	d := &device{service: http.NewServeMux()}
	d.Config = Config{
		Dir: dir, ID: tether.NewDeviceID(uid), UID: uid, UIDSource: "test", Key: newKey(t), Station: s.url(), Authority: root,
		TokenFile: filepath.Join(t.TempDir(), "token"), LANPin: strings.Repeat("a0", 32), Version: "v1", Wait: 20 * time.Second,
	}
	if d.LabelSecret, err = MakeLabel(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.TokenFile, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.service.HandleFunc("GET /device", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, descriptor) })
	d.service.HandleFunc("POST /wifi/factory", func(w http.ResponseWriter, r *http.Request) {
		var j provisioning.Join
		json.NewDecoder(r.Body).Decode(&j)
		d.joins = append(d.joins, j)
		if d.join != nil {
			d.join(w)
			return
		}
		w.WriteHeader(204)
	})
	client, err := origin.New(origin.Config{Handler: d.service})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	d.Origin = client
	return d
}

const descriptor = `{"name":"Garden","apiFactoryConnect":"wifi/factory"}`

func line(t testing.TB) (*testStation, *device) {
	t.Helper()
	a := newAuthority(t)
	s := newTestStation(t, a, a)
	return s, newDevice(t, s, descriptor)
}

func TestWhole(t *testing.T) {
	s, d := line(t)
	var steps []Step
	d.Progress = func(step Step) { steps = append(steps, step) }
	r, err := Run(t.Context(), d.Config)
	if err != nil {
		t.Fatal(err)
	}
	if r.Device != d.ID || r.Already || r.Batch != "b1" || r.Serial == "" || r.Expires.IsZero() || r.Station != d.Station.String() {
		t.Errorf("result %+v", r)
	}
	if want := []Step{StepService, StepNetwork, StepStation, StepClaim, StepStore, StepConfirm, StepDone}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}
	if want := []string{"GET /v1/network", "GET /v1/factory", "POST /v1/claim", "POST /v1/confirm"}; !slices.Equal(s.asked, want) {
		t.Errorf("the station was asked %q, want %q", s.asked, want)
	}
	if want := (provisioning.Join{Network: provisioning.Network{SSID: "from the station"}, Station: s.server.URL}); len(d.joins) != 1 || d.joins[0] != want {
		t.Errorf("apiFactoryConnect was told %+v, want %+v", d.joins, want)
	}
	if _, err := os.Stat(d.TokenFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the right to claim is still there: %v", err)
	}
	chain, roots, err := Load(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, id, err := devcert.Verify(chain, roots, time.Now()); err != nil || id != d.ID {
		t.Errorf("the stored certificate: %s, %v", id, err)
	}
	for _, name := range []string{CertFile, AuthorityFile, MarkFile, LabelFile} {
		if st, err := os.Stat(filepath.Join(d.Dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, want mode 0600", name, err)
		}
	}

	// Again, without a station and without a token: it is done.
	s.server.Close()
	steps, s.asked = nil, nil
	again, err := Run(t.Context(), d.Config)
	if r.Already = true; err != nil || again != r {
		t.Errorf("again: %+v, %v; want %+v", again, err, r)
	}
	if want := []Step{StepDone}; !slices.Equal(steps, want) {
		t.Errorf("steps again %q, want %q", steps, want)
	}
}

// A run that ends at any step is taken up by the next one, and the station grants once.
func TestInterrupted(t *testing.T) {
	for _, at := range []Step{StepService, StepNetwork, StepStation, StepClaim, StepStore, StepConfirm} {
		s, d := line(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		pulled := errors.New("plug pulled")
		d.Progress = func(step Step) {
			if step == at {
				cancel(pulled)
			}
			if step == StepFailed || step == StepDone {
				t.Errorf("%s: interrupted, and told %s", at, step)
			}
		}
		if _, err := Run(ctx, d.Config); !errors.Is(err, pulled) {
			t.Errorf("interrupted at %s: %v", at, err)
		}
		if _, err := os.Stat(d.TokenFile); err != nil {
			t.Errorf("interrupted at %s: the token is gone: %v", at, err)
		}
		d.Progress = nil
		s.mu.Lock()
		before := s.granted[d.ID]
		s.mu.Unlock()
		if _, err := Run(t.Context(), d.Config); err != nil {
			t.Errorf("after %s: %v", at, err)
		}
		chain, _, err := Load(d.Dir)
		if err != nil || !s.confirmed[d.ID] || before != nil && !bytes.Equal(chain[0], before[0]) {
			t.Errorf("after %s: %v, confirmed %v, same certificate %v", at, err, s.confirmed[d.ID], before != nil)
		}
	}
}

// Whatever of the files a power cut has left, in the order of their writing, the next run
// ends well: with the token if the certificate is missing, else without.
func TestPartOfTheFiles(t *testing.T) {
	for keep := range 3 {
		s, d := line(t)
		if _, err := Run(t.Context(), d.Config); err != nil {
			t.Fatal(err)
		}
		files := []string{MarkFile, AuthorityFile, CertFile}
		if err := (mark{Batch: "b1"}).write(d.Dir); err != nil {
			t.Fatal(err)
		}
		for _, name := range files[keep+1:] {
			os.Remove(filepath.Join(d.Dir, name))
		}
		if keep < 2 {
			if _, err := Run(t.Context(), d.Config); reason(err) != provisioning.ReasonToken {
				t.Errorf("%q left, no token: %v, want %s", files[:keep+1], err, provisioning.ReasonToken)
			}
			os.WriteFile(d.TokenFile, []byte(token), 0o600)
		}
		s.confirmed = map[tether.DeviceID]bool{}
		if r, err := Run(t.Context(), d.Config); err != nil || r.Already || !s.confirmed[d.ID] {
			t.Errorf("%q left: %+v, %v, confirmed %v", files[:keep+1], r, err, s.confirmed[d.ID])
		}
	}
}

func reason(err error) provisioning.Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

func TestReasons(t *testing.T) {
	refuseClaim := func(status int, reason provisioning.Reason) func(*testStation, *device) {
		return func(s *testStation, _ *device) {
			s.instead = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == provisioning.ClaimPath {
					refusal(w, status, reason, "because")
					return true
				}
				return false
			}
		}
	}
	// grant answers claims with what make makes.
	grant := func(change func(s *testStation, id tether.DeviceID, pub crypto.PublicKey) provisioning.Grant) func(*testStation, *device) {
		return func(s *testStation, _ *device) {
			s.instead = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != provisioning.ClaimPath {
					return false
				}
				body, _ := io.ReadAll(r.Body)
				_, id, pub, err := provisioning.ParseClaim(body)
				if err != nil {
					t.Error(err)
				}
				json.NewEncoder(w).Encode(change(s, id, pub))
				return true
			}
		}
	}
	issue := func(a *devcert.Authority, id tether.DeviceID, pub crypto.PublicKey, to time.Time) [][]byte {
		chain, err := a.Issue(id, pub, time.Now().Add(-2*time.Hour), to)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	year := time.Now().AddDate(1, 0, 0)
	other := tether.NewDeviceID([]byte("another"))
	short := func(d *device) { d.Wait = 300 * time.Millisecond }
	for name, c := range map[string]struct {
		prepare  func(*testStation, *device)
		want     provisioning.Reason
		reported bool
	}{
		"unknown token":  {refuseClaim(401, provisioning.ReasonToken), provisioning.ReasonToken, true},
		"used up":        {refuseClaim(403, provisioning.ReasonToken), provisioning.ReasonToken, true},
		"conflict":       {refuseClaim(409, provisioning.ReasonConflict), provisioning.ReasonConflict, true},
		"not a station":  {refuseClaim(404, ""), provisioning.ReasonStation, true},
		"busy for ever":  {func(s *testStation, d *device) { refuseClaim(503, provisioning.ReasonBusy)(s, d); short(d) }, provisioning.ReasonBusy, false},
		"no station":     {func(s *testStation, d *device) { s.server.Close(); short(d) }, provisioning.ReasonUnreachable, false},
		"no token":       {func(_ *testStation, d *device) { os.Remove(d.TokenFile) }, provisioning.ReasonToken, false},
		"damaged token":  {func(_ *testStation, d *device) { os.WriteFile(d.TokenFile, []byte("x"), 0o600) }, provisioning.ReasonToken, false},
		"no authority":   {func(_ *testStation, d *device) { d.Authority = []byte("x") }, provisioning.ReasonState, false},
		"stranger":       {func(_ *testStation, d *device) { d.Authority, _, _ = newAuthority(t).PEM() }, provisioning.ReasonStation, false},
		"another name":   {func(_ *testStation, d *device) { d.Station.Host = "localhost:" + d.Station.Port() }, provisioning.ReasonStation, false},
		"service absent": {func(_ *testStation, d *device) { d.Origin = absent{}; short(d) }, provisioning.ReasonService, true},
		"join refused": {func(_ *testStation, d *device) {
			d.join = func(w http.ResponseWriter) { http.Error(w, "wrong\npassphrase", http.StatusForbidden) }
		}, provisioning.ReasonNetwork, true},
		"join never works": {func(_ *testStation, d *device) { d.join = func(w http.ResponseWriter) { w.WriteHeader(503) }; short(d) }, provisioning.ReasonNetwork, true},
		"another device's certificate": {grant(func(s *testStation, id tether.DeviceID, pub crypto.PublicKey) provisioning.Grant {
			return provisioning.Grant{ID: id, Chain: issue(s.a, other, pub, year)}
		}), provisioning.ReasonStation, true},
		"another ID": {grant(func(s *testStation, _ tether.DeviceID, pub crypto.PublicKey) provisioning.Grant {
			return provisioning.Grant{ID: other, Chain: issue(s.a, other, pub, year)}
		}), provisioning.ReasonStation, true},
		"another key": {grant(func(s *testStation, id tether.DeviceID, _ crypto.PublicKey) provisioning.Grant {
			return provisioning.Grant{ID: id, Chain: issue(s.a, id, newKey(t).Public(), year)}
		}), provisioning.ReasonStation, true},
		"another authority": {grant(func(_ *testStation, id tether.DeviceID, pub crypto.PublicKey) provisioning.Grant {
			return provisioning.Grant{ID: id, Chain: issue(newAuthority(t), id, pub, year)}
		}), provisioning.ReasonStation, true},
		"over already": {grant(func(s *testStation, id tether.DeviceID, pub crypto.PublicKey) provisioning.Grant {
			return provisioning.Grant{ID: id, Chain: issue(s.a, id, pub, time.Now().Add(-time.Hour))}
		}), provisioning.ReasonStation, true},
		"not a chain": {grant(func(_ *testStation, id tether.DeviceID, _ crypto.PublicKey) provisioning.Grant {
			return provisioning.Grant{ID: id, Chain: [][]byte{[]byte("x")}}
		}), provisioning.ReasonStation, true},
	} {
		s, d := line(t)
		c.prepare(s, d)
		var last Step
		d.Progress = func(step Step) { last = step }
		r, err := Run(t.Context(), d.Config)
		if reason(err) != c.want || r != (Result{}) {
			t.Errorf("%s: %+v, %s (%v), want %s", name, r, reason(err), err, c.want)
			continue
		}
		if last != StepFailed || strings.ContainsAny(err.Error(), "\r\n") || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), d.LabelSecret) {
			t.Errorf("%s: last step %s, message %q", name, last, err)
		}
		if _, err := os.Stat(filepath.Join(d.Dir, CertFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a certificate was stored", name)
		}
		if got := len(s.failures) == 1 && s.failures[0].Reason == c.want; got != c.reported {
			t.Errorf("%s: reported %+v, want a report: %v", name, s.failures, c.reported)
		}
	}
}

type absent struct{}

func (absent) Do(context.Context, *origin.Request) (*origin.Response, error) {
	return nil, fmt.Errorf("%w: connection refused", origin.ErrUnreachable)
}

// Everything that goes wrong for a while only.
func TestPatience(t *testing.T) {
	s, d := line(t)
	tries := map[string]int{}
	s.instead = func(w http.ResponseWriter, r *http.Request) bool {
		tries[r.URL.Path]++
		switch n := tries[r.URL.Path]; {
		case n == 1:
			panic(http.ErrAbortHandler) // the connection breaks
		case n == 2:
			refusal(w, 503, provisioning.ReasonBusy, "later")
			return true
		}
		return false
	}
	joins := 0
	d.join = func(w http.ResponseWriter) {
		if joins++; joins < 3 {
			w.WriteHeader(503)
			return
		}
		w.WriteHeader(202)
	}
	if _, err := Run(t.Context(), d.Config); err != nil || !s.confirmed[d.ID] || joins != 3 {
		t.Errorf("%v, confirmed %v, %d joins", err, s.confirmed[d.ID], joins)
	}
}

// Another station has granted; this one is asked to confirm, and grants anew, once.
func TestAnotherStation(t *testing.T) {
	a := newAuthority(t)
	first, second := newTestStation(t, a, a), newTestStation(t, a, a)
	d := newDevice(t, first, descriptor)
	first.instead = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == provisioning.ConfirmPath {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	d.Wait = time.Second
	if _, err := Run(t.Context(), d.Config); reason(err) != provisioning.ReasonUnreachable {
		t.Fatal(err)
	}
	d.Wait, d.Station = 20*time.Second, second.url()
	if _, err := Run(t.Context(), d.Config); err != nil || !second.confirmed[d.ID] || first.confirmed[d.ID] {
		t.Errorf("%v, confirmed at the first %v, at the second %v", err, first.confirmed[d.ID], second.confirmed[d.ID])
	}
	// Without the right to claim, a foreign grant is not replaced.
	third := newTestStation(t, a, a)
	if err := (mark{}).write(d.Dir); err != nil {
		t.Fatal(err)
	}
	d.Station = third.url()
	if _, err := Run(t.Context(), d.Config); reason(err) != provisioning.ReasonUnknown {
		t.Errorf("without a token: %v, want %s", err, provisioning.ReasonUnknown)
	}
}

// A service without a descriptor, or without apiFactoryConnect, is provisioned as it is;
// a path that leads elsewhere is not followed.
func TestServices(t *testing.T) {
	a := newAuthority(t)
	s := newTestStation(t, a, a)
	for text, want := range map[string]provisioning.Reason{
		`{"name":"x"}`: "", `{"apiFactoryConnect":"/wifi/factory?x=1"}`: "",
		`{"apiFactoryConnect":"http://evil.example/"}`: provisioning.ReasonNetwork, `{"apiFactoryConnect":"//evil.example/x"}`: provisioning.ReasonNetwork,
		`{"apiFactoryConnect":"/nowhere"}`: provisioning.ReasonNetwork,
	} {
		if _, err := Run(t.Context(), newDevice(t, s, text).Config); reason(err) != want || (err != nil) != (want != "") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	d := newDevice(t, s, "")
	mux := http.NewServeMux()
	client, err := origin.New(origin.Config{Handler: mux})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d.Origin = client
	if _, err := Run(t.Context(), d.Config); err != nil {
		t.Errorf("no GET /device: %v", err)
	}
}

func TestJoinTarget(t *testing.T) {
	for in, want := range map[string]string{
		"/a": "/a", "a/b": "/a/b", "a?x=1": "/a?x=1", "": "/", "/a%2Fb": "/a%2Fb",
		"http://h/a": "", "//h/a": "", "a#b": "", "%zz": "", "mailto:x": "", "? ": "",
	} {
		if got, err := joinTarget(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzJoinTarget(f *testing.F) {
	for _, s := range []string{"/a", "a?x", "//h", "\r\nX: y", "/\x00", "http:a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := joinTarget(s); err == nil && (!strings.HasPrefix(got, "/") || strings.ContainsAny(got, " \r\n\x00")) {
			t.Errorf("%q became %q", s, got)
		}
	})
}
