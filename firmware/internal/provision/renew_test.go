package provision

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/devcert"
)

func TestRenewal(t *testing.T) {
	s, d := line(t)
	if _, err := Open(d.Dir, d.ID, d.Key, time.Time{}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the factory: %v, want not exist", err)
	}
	if _, err := Run(t.Context(), d.Config); err != nil {
		t.Fatal(err)
	}
	changes := 0
	c, err := Open(d.Dir, d.ID, d.Key, time.Time{}, func() { changes++ })
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	w := ask("GET", RequestPath, "")
	id, pub, err := devcert.ParseRequest(w.Body.Bytes())
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/pkcs10" || err != nil || id != d.ID {
		t.Fatalf("request: %d %s, %v", w.Code, id, err)
	}
	pem := func(a *devcert.Authority, to time.Time) string {
		chain, err := a.Issue(id, pub, time.Now().Add(-time.Hour), to)
		if err != nil {
			t.Fatal(err)
		}
		return string(devcert.AppendPEM(nil, chain))
	}
	later := pem(s.a, time.Now().AddDate(2, 0, 0))
	otherKey, _ := s.a.Issue(id, newKey(t).Public(), time.Now(), time.Now().AddDate(3, 0, 0))
	otherID, _ := s.a.Issue("0000000000000000000000000000000000000000000000000000000000000000", pub, time.Now(), time.Now().AddDate(3, 0, 0))
	for _, x := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"ends earlier", "PUT", CertificatePath, pem(s.a, time.Now().AddDate(0, 6, 0)), 403},
		{"later", "PUT", CertificatePath, later, 204},
		{"the same again", "PUT", CertificatePath, later, 204},
		{"another authority", "PUT", CertificatePath, pem(newAuthority(t), time.Now().AddDate(3, 0, 0)), 403},
		{"another key", "PUT", CertificatePath, string(devcert.AppendPEM(nil, otherKey)), 403},
		{"another device", "PUT", CertificatePath, string(devcert.AppendPEM(nil, otherID)), 403},
		{"no PEM", "PUT", CertificatePath, "x", 403},
		{"too large", "PUT", CertificatePath, strings.Repeat("x", maxRenewal+1), 413},
		{"wrong method", "POST", CertificatePath, later, 405},
		{"wrong method", "PUT", RequestPath, later, 405},
	} {
		if w := ask(x.method, x.path, x.body); w.Code != x.want {
			t.Errorf("%s: %d %s, want %d", x.name, w.Code, w.Body, x.want)
		}
	}
	if changes != 1 {
		t.Errorf("told of %d changes, want 1", changes)
	}
	again, err := Open(d.Dir, d.ID, d.Key, time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(devcert.AppendPEM(nil, again.Chain())); got != later {
		t.Error("the new certificate is not what the next start finds")
	}
	if tc, err := c.GetClientCertificate(nil); err != nil || len(tc.Certificate) != 1 || !tc.Leaf.Equal(again.Leaf()) {
		t.Errorf("for TLS: %v", err)
	}
	if _, err := Open(d.Dir, d.ID, newKey(t), time.Time{}, nil); !errors.Is(err, errForeign) {
		t.Errorf("with another key: %v", err)
	}
}

// A device that was switched off for long starts with what it has: the relay renews it.
func TestOpenExpired(t *testing.T) {
	s, d := line(t)
	chain, err := s.a.Issue(d.ID, d.Key.Public(), time.Now().AddDate(0, 0, -2), time.Now().AddDate(0, 0, -1))
	if err != nil {
		t.Fatal(err)
	}
	if err := store(d.Dir, chain, d.Authority, mark{Done: true}); err != nil {
		t.Fatal(err)
	}
	c, err := Open(d.Dir, d.ID, d.Key, time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	fresh, _ := s.a.Issue(d.ID, d.Key.Public(), time.Now(), time.Now().AddDate(1, 0, 0))
	if err := c.Renew(devcert.AppendPEM(nil, fresh)); err != nil {
		t.Errorf("renew: %v", err)
	}
}

func FuzzRenew(f *testing.F) {
	a := newAuthority(f)
	key := newKey(f)
	root, _, _ := a.PEM()
	dir := f.TempDir()
	id := newDevice(f, newTestStation(f, a, a), descriptor).ID
	chain, err := a.Issue(id, key.Public(), time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	if err != nil {
		f.Fatal(err)
	}
	if err := store(dir, chain, root, mark{}); err != nil {
		f.Fatal(err)
	}
	c, err := Open(dir, id, key, time.Time{}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(devcert.AppendPEM(nil, chain))
	f.Add(root)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := c.Renew(b); err == nil && string(c.Leaf().Raw) != string(chain[0]) {
			t.Error("a certificate nobody issued was taken")
		}
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequest(http.MethodPut, CertificatePath, strings.NewReader(string(b))))
	})
}
