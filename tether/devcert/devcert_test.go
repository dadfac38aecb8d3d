package devcert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

var (
	id      = tether.NewDeviceID([]byte("0123456789abcdef"))
	other   = tether.NewDeviceID([]byte("another uid"))
	begin   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	end     = begin.AddDate(20, 0, 0)
	between = begin.AddDate(1, 0, 0)
)

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func authority(t testing.TB) *Authority {
	t.Helper()
	a, err := NewAuthority("Test factory", begin, end)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestIssue(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := authority(t)
	for name, key := range map[string]crypto.Signer{"Ed25519": ed, "ECDSA P-256": ecKey(t)} {
		csr, err := Request(id, key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, pub, err := ParseRequest(csr)
		if err != nil || got != id || !SameKey(pub, key.Public()) {
			t.Fatalf("%s: ParseRequest = %s, %v; want %s and the same key", name, got, err, id)
		}
		chain, err := a.Issue(got, pub, begin.AddDate(-1, 0, 0), between)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(chain) != 1 {
			t.Errorf("%s: %d certificates, want the leaf alone: a root is not sent", name, len(chain))
		}
		leaf, got, err := Verify(chain, a.Roots(), between.Add(-time.Second))
		if err != nil || got != id || !SameKey(leaf.PublicKey, key.Public()) {
			t.Fatalf("%s: Verify = %s, %v; want %s and the same key", name, got, err, id)
		}
		if !leaf.NotBefore.Equal(begin) || !leaf.NotAfter.Equal(between) {
			t.Errorf("%s: valid %s to %s, want %s (the authority's begin) to %s", name, leaf.NotBefore, leaf.NotAfter, begin, between)
		}
		if n := leaf.SerialNumber.BitLen(); n > serialBits+1 || n < serialBits-40 {
			t.Errorf("%s: serial number of %d bits, want about %d random ones", name, n, serialBits)
		}
	}
}

func TestIntermediate(t *testing.T) {
	root := authority(t)
	// NewAuthority's may not sign authorities, so the root is remade without that limit.
	template := *root.Chain[0]
	template.MaxPathLenZero, template.MaxPathLen = false, 1
	root.Chain[0] = sign(t, &template, &template, root.Key.Public(), root.Key)
	key := ecKey(t)
	line := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Line 2"}, NotBefore: begin, NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}, root.Chain[0], key.Public(), root.Key)

	issuer := &Authority{Chain: []*x509.Certificate{line, root.Chain[0]}, Key: key}
	certs, keyPEM, err := issuer.PEM()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	os.WriteFile(certFile, certs, 0o600)
	os.WriteFile(keyFile, keyPEM, 0o600)
	if issuer, err = LoadAuthority(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	device := ecKey(t)
	chain, err := issuer.Issue(id, device.Public(), begin, end)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 {
		t.Fatalf("%d certificates, want leaf and intermediate", len(chain))
	}
	if n := Size(chain); n > MaxChain {
		t.Errorf("the chain has %d bytes, want at most %d", n, MaxChain)
	}
	if _, got, err := Verify(chain, issuer.Roots(), between); err != nil || got != id {
		t.Errorf("Verify = %s, %v; want %s", got, err, id)
	}
	if _, _, err := Verify(chain[:1], issuer.Roots(), between); !errors.Is(err, ErrIssuer) {
		t.Errorf("without the intermediate: %v, want ErrIssuer", err)
	}
	back, err := ParsePEM(AppendPEM([]byte("# two\n"), chain))
	if err != nil || len(back) != 2 || string(back[0]) != string(chain[0]) || string(back[1]) != string(chain[1]) {
		t.Errorf("the chain does not survive PEM: %v", err)
	}
	roots, err := ParseRoots(certs)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Verify(chain[:1], roots, between); err != nil {
		t.Errorf("with both authorities as roots: %v", err)
	}
}

func sign(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerifyRefuses(t *testing.T) {
	a, stranger := authority(t), authority(t)
	key := ecKey(t)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	// with makes a certificate of the profile except for what change does.
	with := func(change func(*x509.Certificate)) [][]byte {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(9), Subject: subject(id), URIs: names(id), NotBefore: begin, NotAfter: end,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		}
		change(c)
		var pub crypto.PublicKey = key.Public()
		if c.PublicKey != nil {
			pub = c.PublicKey
		}
		return [][]byte{sign(t, c, a.Chain[0], pub, a.Key).Raw}
	}
	good := with(func(*x509.Certificate) {})
	if _, got, err := Verify(good, a.Roots(), between); err != nil || got != id {
		t.Fatalf("the good one: %s, %v", got, err)
	}
	big := with(func(c *x509.Certificate) { c.CRLDistributionPoints = []string{string(make([]byte, MaxChain))} })
	for name, c := range map[string]struct {
		chain [][]byte
		roots *x509.CertPool
		now   time.Time
		want  error
	}{
		"another authority":     {good, stranger.Roots(), between, ErrIssuer},
		"no authorities":        {good, nil, between, ErrIssuer},
		"over":                  {good, a.Roots(), end.Add(time.Second), ErrExpired},
		"not begun":             {good, a.Roots(), begin.Add(-time.Second), ErrExpired},
		"nothing":               {nil, a.Roots(), between, ErrChain},
		"not DER":               {[][]byte{[]byte("x")}, a.Roots(), between, ErrChain},
		"junk behind":           {[][]byte{append(good[0][:len(good[0]):len(good[0])], 0)}, a.Roots(), between, ErrChain},
		"too many":              {[][]byte{good[0], good[0], good[0], good[0], good[0]}, a.Roots(), between, ErrChain},
		"too large":             {big, a.Roots(), between, ErrChain},
		"an authority":          {[][]byte{a.Chain[0].Raw}, a.Roots(), between, ErrProfile},
		"a server":              {with(func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }), a.Roots(), between, ErrProfile},
		"no extended use":       {with(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), a.Roots(), between, ErrProfile},
		"may sign certificates": {with(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), a.Roots(), between, ErrProfile},
		"a DNS name":            {with(func(c *x509.Certificate) { c.DNSNames = []string{"relay.example"} }), a.Roots(), between, ErrProfile},
		"two IDs":               {with(func(c *x509.Certificate) { c.URIs = names(other) }), a.Roots(), between, ErrProfile},
		"no URI":                {with(func(c *x509.Certificate) { c.URIs = nil }), a.Roots(), between, ErrProfile},
		"another URI":           {with(func(c *x509.Certificate) { c.URIs = uri("https://device/" + string(id)) }), a.Roots(), between, ErrProfile},
		"the label as ID":       {with(func(c *x509.Certificate) { c.Subject.SerialNumber = id.Label() }), a.Roots(), between, ErrProfile},
		"no ID":                 {with(func(c *x509.Certificate) { c.Subject.SerialNumber = "" }), a.Roots(), between, ErrProfile},
		"P-384":                 {with(func(c *x509.Certificate) { c.PublicKey = p384.Public() }), a.Roots(), between, ErrProfile},
	} {
		if _, _, err := Verify(c.chain, c.roots, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestRequestRefused(t *testing.T) {
	key := ecKey(t)
	csr, err := Request(id, key)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Request(id, rsaKey); !errors.Is(err, ErrKey) {
		t.Errorf("Request with RSA: %v, want ErrKey", err)
	}
	request := func(template x509.CertificateRequest, key crypto.Signer) []byte {
		b, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	forged := append([]byte(nil), csr...)
	forged[len(forged)-5] ^= 1
	for name, b := range map[string][]byte{
		"nothing":   nil,
		"too large": make([]byte, MaxRequest+1),
		"forged":    forged,
		"RSA":       request(x509.CertificateRequest{Subject: subject(id), URIs: names(id)}, rsaKey),
		"two IDs":   request(x509.CertificateRequest{Subject: subject(id), URIs: names(other)}, key),
		"no ID":     request(x509.CertificateRequest{URIs: names(id)}, key),
	} {
		if _, _, err := ParseRequest(b); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v, want ErrRequest", name, err)
		}
	}
}

func TestAuthorityRefused(t *testing.T) {
	a, b := authority(t), authority(t)
	certs, key, err := a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, _ := b.PEM()
	leaf, err := a.Issue(id, a.Key.Public(), begin, end)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2][]byte{
		"no certificate": {key, key},
		"no key":         {certs, certs},
		"another key":    {certs, otherKey},
		"a leaf":         {AppendPEM(nil, leaf), key},
	} {
		if _, err := ParseAuthority(c[0], c[1]); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := ParseAuthority(certs, append(certs, key...)); err != nil {
		t.Errorf("certificate and key in one file: %v", err)
	}
	if _, err := a.Issue(id, a.Key.Public(), end, end.AddDate(1, 0, 0)); err == nil {
		t.Error("an authority whose time is over has issued")
	}
}

func FuzzParseRequest(f *testing.F) {
	csr, err := Request(id, ecKey(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, pub, err := ParseRequest(b)
		if err != nil {
			return
		}
		if again, err := tether.ParseDeviceID(string(id)); err != nil || again != id || supported(pub) != nil {
			t.Errorf("taken with ID %q and key %T", id, pub)
		}
	})
}

func FuzzVerify(f *testing.F) {
	a := authority(f)
	chain, err := a.Issue(id, ecKey(f).Public(), begin, end)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(AppendPEM(nil, chain))
	f.Add(AppendPEM(nil, [][]byte{chain[0], a.Chain[0].Raw}))
	roots := a.Roots()
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, err := ParsePEM(b)
		if err != nil {
			return
		}
		if _, got, err := Verify(chain, roots, between); err == nil && got != id {
			t.Errorf("a certificate nobody issued was taken, for %s", got)
		}
		Parse(chain)
	})
}
