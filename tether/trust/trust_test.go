package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// issuer is a device's authority, or an attacker's.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func makeCert(t testing.TB, template, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
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

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device authority"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0), // dates do not count
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

func newIssuer(t testing.TB) issuer {
	key := newKey(t)
	return issuer{makeCert(t, caTemplate(), caTemplate(), key.Public(), key), key}
}

func leafTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
}

// leaf is a chain of this issuer, its template changed by change.
func (i issuer) leaf(t testing.TB, change func(*x509.Certificate)) tls.Certificate {
	key, template := newKey(t), leafTemplate()
	if change != nil {
		change(template)
	}
	c := makeCert(t, template, i.cert, key.Public(), i.key)
	return tls.Certificate{Certificate: [][]byte{c.Raw, i.cert.Raw}, PrivateKey: key, Leaf: c}
}

// handshake connects a client to a server, lets the server send a byte (with which TLS 1.3
// brings the session ticket), and returns what each end knows of the connection.
func handshake(t testing.TB, client, server *tls.Config) (c, s tls.ConnectionState, err error) {
	t.Helper()
	// Not net.Pipe: without a buffer a client's alert waits for a server that still writes.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	far := tls.Server(b, server)
	ended := make(chan error, 1)
	go func() {
		err := far.Handshake()
		if err == nil {
			_, err = far.Write([]byte{1})
		}
		ended <- err
	}()
	near := tls.Client(a, client)
	if err = near.Handshake(); err == nil {
		_, err = near.Read(make([]byte, 1))
	}
	a.Close()
	<-ended
	return near.ConnectionState(), far.ConnectionState(), err
}

func TestClientTrustsOneDevice(t *testing.T) {
	device, other := newIssuer(t), newIssuer(t)
	pin := Pin(device.cert)
	if sum := sha256.Sum256(device.cert.RawSubjectPublicKeyInfo); pin != hex.EncodeToString(sum[:]) || !ValidPin(pin) {
		t.Fatalf("Pin = %q, want %x", pin, sum)
	}
	good := device.leaf(t, nil)
	foreign := other.leaf(t, nil)
	own, ownKey := caTemplate(), newKey(t)
	selfSigned := makeCert(t, own, own, ownKey.Public(), ownKey)
	// The true key in a certificate that the attacker wrote and signed.
	forgedCA := makeCert(t, caTemplate(), other.cert, device.key.Public(), other.key)
	noCA := caTemplate()
	noCA.IsCA = false
	noCA.KeyUsage = x509.KeyUsageDigitalSignature
	notCA := makeCert(t, noCA, noCA, device.key.Public(), device.key)
	notSigner := caTemplate()
	notSigner.KeyUsage = x509.KeyUsageDigitalSignature
	noSigner := makeCert(t, notSigner, notSigner, device.key.Public(), device.key)
	noUsage := caTemplate()
	noUsage.KeyUsage = 0
	anyUse := makeCert(t, noUsage, noUsage, device.key.Public(), device.key)
	renamed := caTemplate()
	renamed.Subject.CommonName = "another name"
	otherName := makeCert(t, renamed, renamed, device.key.Public(), device.key)
	sub := device.leaf(t, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	})
	below := issuer{sub.Leaf, sub.PrivateKey.(*ecdsa.PrivateKey)}.leaf(t, nil)

	with := func(key any, chain ...[]byte) tls.Certificate {
		return tls.Certificate{Certificate: chain, PrivateKey: key}
	}
	tests := map[string]struct {
		chain tls.Certificate
		got   string // pin in the error; empty: ErrChain
		ok    bool
	}{
		"the device":                                {chain: good, ok: true},
		"another device":                            {chain: foreign, got: Pin(other.cert)},
		"the true authority over a foreign leaf":    {chain: with(foreign.PrivateKey, foreign.Certificate[0], device.cert.Raw)},
		"a self-signed leaf and the true authority": {chain: with(ownKey, selfSigned.Raw, device.cert.Raw)},
		"the leaf alone":                            {chain: with(good.PrivateKey, good.Certificate[0])},
		"the authority as its own leaf":             {chain: with(device.key, device.cert.Raw, device.cert.Raw)},
		"the authority alone":                       {chain: with(device.key, device.cert.Raw)},
		"swapped":                                   {chain: with(device.key, device.cert.Raw, good.Certificate[0])},
		"a third certificate":                       {chain: with(good.PrivateKey, good.Certificate[0], device.cert.Raw, device.cert.Raw)},
		"the authority behind a foreign chain":      {chain: with(foreign.PrivateKey, foreign.Certificate[0], other.cert.Raw, device.cert.Raw)},
		"the true key in a forged authority":        {chain: with(good.PrivateKey, good.Certificate[0], forgedCA.Raw)},
		"the true key without CA":                   {chain: with(good.PrivateKey, good.Certificate[0], notCA.Raw)},
		"the true key that may not sign":            {chain: with(good.PrivateKey, good.Certificate[0], noSigner.Raw)},
		"the true key for anything":                 {chain: with(good.PrivateKey, good.Certificate[0], anyUse.Raw)},
		"the true key by another name":              {chain: with(good.PrivateKey, good.Certificate[0], otherName.Raw)},
		"an authority below the device's":           {chain: with(below.PrivateKey, below.Certificate[0], sub.Leaf.Raw)},
		"a leaf that is an authority":               {chain: sub},
		"a leaf for clients": {chain: device.leaf(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})},
		"a leaf for anything": {chain: device.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil })},
		"an unknown critical extension": {chain: device.leaf(t, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}}
		})},
	}
	for name, tt := range tests {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			cs, _, err := handshake(t, Client(pin), &tls.Config{Certificates: []tls.Certificate{tt.chain}, MaxVersion: version})
			if tt.ok {
				if err != nil {
					t.Errorf("%s: %v", name, err)
				} else if got, err := PinOf(&cs); got != pin || err != nil {
					t.Errorf("%s: PinOf = %q, %v, want %q", name, got, err, pin)
				}
				continue
			}
			pe, is := errors.AsType[*PinError](err)
			if !is || pe.Want != pin || pe.Got != tt.got || errors.Is(err, ErrChain) != (tt.got == "") {
				t.Errorf("%s: handshake = %v, want a PinError with %q", name, err, tt.got)
			}
		}
	}
	for _, cs := range []*tls.ConnectionState{nil, {}} {
		if got, err := PinOf(cs); got != "" || !errors.Is(err, ErrChain) {
			t.Errorf("PinOf(%v) = %q, %v, want ErrChain", cs, got, err)
		}
	}
}

// A resumed session shows no chain on the wire: the one of its first handshake counts, and
// is compared again.
func TestResumptionStillVerifies(t *testing.T) {
	device := newIssuer(t)
	pin := Pin(device.cert)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		// crypto/tls itself does not resume when the leaf has ended.
		lasting := device.leaf(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) })
		server := &tls.Config{Certificates: []tls.Certificate{lasting}, MaxVersion: version}
		cache := tls.NewLRUClientSessionCache(1)
		client := func(pin string) *tls.Config {
			c := Client(pin)
			c.ClientSessionCache, c.ServerName = cache, "device"
			return c
		}
		for _, resumed := range []bool{false, true} {
			cs, _, err := handshake(t, client(pin), server)
			if err != nil || cs.DidResume != resumed {
				t.Fatalf("TLS %x: resumed %v, %v, want %v", version, cs.DidResume, err, resumed)
			}
		}
		wrong := Pin(newIssuer(t).cert)
		cs, _, err := handshake(t, client(wrong), server)
		if pe, ok := errors.AsType[*PinError](err); !ok || pe.Got != pin || pe.Want != wrong {
			t.Errorf("TLS %x: resumed with another pin: %v (resumed %v), want a PinError", version, err, cs.DidResume)
		}
	}
}

func TestExporter(t *testing.T) {
	server := &tls.Config{Certificates: []tls.Certificate{newIssuer(t).leaf(t, nil)}}
	var before []byte
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server.MaxVersion = version
		c, s, err := handshake(t, &tls.Config{InsecureSkipVerify: true}, server)
		if err != nil {
			t.Fatal(err)
		}
		near, err1 := Exporter(&c)
		far, err2 := Exporter(&s)
		if err1 != nil || err2 != nil || string(near) != string(far) || len(near) != ExporterSize || string(near) == string(before) {
			t.Errorf("TLS %x: exporters %x, %v and %x, %v, want the same, and others than %x", version, near, err1, far, err2, before)
		}
		before = near
		old := c
		old.Version = tls.VersionTLS11
		if _, err := Exporter(&old); !errors.Is(err, ErrExporter) {
			t.Errorf("TLS 1.1: %v, want ErrExporter", err)
		}
	}
	for _, cs := range []*tls.ConnectionState{nil, {}, {Version: tls.VersionTLS13}} {
		if _, err := Exporter(cs); !errors.Is(err, ErrExporter) {
			t.Errorf("Exporter(%v) = %v, want ErrExporter", cs, err)
		}
	}
}

// RFC 7627 §5.4: without the extended master secret, two TLS 1.2 connections can share an
// exporter. crypto/tls always offers it, so OpenSSL plays the client that does not.
func TestNoExtendedMasterSecret(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("skipped: openssl is not installed")
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{newIssuer(t).leaf(t, nil)}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conf := filepath.Join(t.TempDir(), "openssl.cnf")
	text := "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nOptions = -ExtendedMasterSecret\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]error{"-tls1_2": ErrExporter, "-tls1_3": nil} {
		cmd := exec.CommandContext(t.Context(), tool, "s_client", version, "-connect", l.Addr().String())
		cmd.Env = append(os.Environ(), "OPENSSL_CONF="+conf)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if err := c.(*tls.Conn).Handshake(); err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		cs := c.(*tls.Conn).ConnectionState()
		if _, err := Exporter(&cs); !errors.Is(err, want) {
			t.Errorf("%s without the extended master secret: %v, want %v", version, err, want)
		}
		c.Close()
		cmd.Wait() // that it was closed is no success to it
	}
}

// Whatever certificates a server shows, PinOf answers without a panic, and with a pin only
// when the leaf is signed by the pinned key.
func FuzzPinOf(f *testing.F) {
	device := newIssuer(f)
	chain := device.leaf(f, nil).Certificate
	f.Add(chain[0], chain[1])
	f.Add(chain[1], chain[1])
	f.Add(chain[1], chain[0])
	f.Add(newIssuer(f).leaf(f, nil).Certificate[0], chain[1])
	f.Fuzz(func(t *testing.T, leaf, ca []byte) {
		l, err1 := x509.ParseCertificate(leaf)
		c, err2 := x509.ParseCertificate(ca)
		if err1 != nil || err2 != nil {
			return
		}
		pin, err := PinOf(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{l, c}})
		if (err == nil) != ValidPin(pin) {
			t.Fatalf("PinOf = %q, %v", pin, err)
		}
		if err == nil && c.CheckSignature(l.SignatureAlgorithm, l.RawTBSCertificate, l.Signature) != nil {
			t.Errorf("%s takes a leaf that its key did not sign", pin)
		}
	})
}
