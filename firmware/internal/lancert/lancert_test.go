package lancert

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
)

var id = tether.NewDeviceID([]byte("lancert"))

func TestOpenKeepsOneCertificate(t *testing.T) {
	dir := t.TempDir()
	build := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	cfg := Config{Dir: dir, ID: id, HostName: "Garden", Floor: build, Now: time.Unix(1000, 0), // no clock yet
		Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("127.0.0.1")}}
	first, made, err := Open(cfg)
	if err != nil || made != "first start" {
		t.Fatalf("Open: %q, %v", made, err)
	}
	leaf := first.Leaf()
	if !leaf.NotBefore.Equal(build) || !leaf.NotAfter.Equal(build.AddDate(10, 0, 0)) {
		t.Errorf("valid %v to %v, want ten years from %v", leaf.NotBefore, leaf.NotAfter, build)
	}
	for _, name := range []string{LocalName(id), "localhost", "garden", "garden.local", "192.0.2.7", "fe80::1", "127.0.0.1", "::1"} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if sum := sha256.Sum256(leaf.Raw); first.Fingerprint() != hex.EncodeToString(sum[:]) {
		t.Errorf("fingerprint = %s", first.Fingerprint())
	}
	if st, err := os.Stat(filepath.Join(dir, File)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file = %v, %v, want 0600", st, err)
	}
	cfg.Addrs, cfg.Now = nil, build.AddDate(9, 0, 0)
	second, made, err := Open(cfg)
	if err != nil || made != "" || second.Fingerprint() != first.Fingerprint() {
		t.Errorf("second Open: %q, %v: the certificate changed", made, err)
	}
	cfg.Now = build.AddDate(10, 0, -renewDays+1)
	third, made, err := Open(cfg)
	if err != nil || made == "" || third.Fingerprint() == first.Fingerprint() || !third.Leaf().NotAfter.After(cfg.Now.AddDate(9, 0, 0)) {
		t.Errorf("at the end: %q, %v, ends %v", made, err, third.Leaf().NotAfter)
	}
}

func TestOpenDamaged(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, File), []byte("-----BEGIN"), 0o600)
	_, made, err := Open(Config{Dir: dir, ID: id})
	if err != nil || !strings.Contains(made, "damaged") {
		t.Errorf("Open: %q, %v", made, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, File+".damaged")); err != nil || string(b) != "-----BEGIN" {
		t.Errorf("set aside: %q, %v", b, err)
	}
	os.Chmod(filepath.Join(dir, File), 0o644)
	if _, _, err := Open(Config{Dir: dir, ID: id}); !errors.Is(err, statefile.ErrPermissions) {
		t.Errorf("readable key: %v, want ErrPermissions", err)
	}
}

func TestOddHostNames(t *testing.T) {
	for _, h := range []string{"", "localhost", "a_b", "-a", "a..b", "ä", strings.Repeat("x", 64), "a b"} {
		if got := names(Config{ID: id, HostName: h}); len(got) != 2 {
			t.Errorf("names with host %q = %v, want two", h, got)
		}
	}
	if got := names(Config{ID: id, HostName: "Box.example.org."}); strings.Join(got, " ") != LocalName(id)+" localhost box.example.org" && len(got) != 3 {
		t.Errorf("names = %v", got)
	}
}

// A client that trusts the certificate reaches the device under each of its names.
func TestHandshake(t *testing.T) {
	c, _, err := Open(Config{Dir: t.TempDir(), ID: id})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.Leaf())
	a, b := net.Pipe()
	defer a.Close()
	go tls.Server(b, &tls.Config{GetCertificate: c.GetCertificate}).HandshakeContext(t.Context())
	client := tls.Client(a, &tls.Config{RootCAs: roots, ServerName: LocalName(id)})
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
}
