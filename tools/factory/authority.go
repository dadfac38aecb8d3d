package factory

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/devcert"
)

// Files in the state directory.
const (
	// AuthorityFile is what devices (--factory-ca) and relays need: public.
	AuthorityFile = "factory-ca.pem"
	keyFile       = "factory-ca-key.pem" // the station's own authority, with its key
)

const (
	authorityYears = 30
	serverDays     = 365 // life of the station's own TLS certificate
	maxNames       = 64  // in it
)

// prepareDir makes the state directory, and refuses one in which others may write.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create the state directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at the state directory: %w", err)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write in the state directory %s: type chmod 700 %s", dir, dir)
	}
	return nil
}

// writeFile replaces a file so that a power cut leaves the old content or the new.
func writeFile(name string, mode fs.FileMode, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	d.Sync() // some file systems cannot; their renames are ordered anyway
	return nil
}

// openAuthority loads the authority from certFile and keyFile, or the station's own from
// dir, which is made at first start. What devices must know is written to AuthorityFile.
func openAuthority(dir, name, certFile, keyFileName string) (a *devcert.Authority, made bool, err error) {
	public, private := filepath.Join(dir, AuthorityFile), filepath.Join(dir, keyFile)
	switch _, missing := os.Stat(private); {
	case certFile != "":
		a, err = devcert.LoadAuthority(certFile, keyFileName)
	case errors.Is(missing, fs.ErrNotExist):
		made = true
		now := time.Now()
		if a, err = devcert.NewAuthority(name+" device authority", now.Add(-backdate), now.AddDate(authorityYears, 0, 0)); err != nil {
			return nil, false, err
		}
		var cert, key []byte
		if cert, key, err = a.PEM(); err != nil {
			return nil, false, err
		}
		// Both in one file: neither is of use without the other.
		if err = writeFile(private, 0o600, append(cert, key...)); err != nil {
			err = fmt.Errorf("write %s: %w", private, err)
		}
	default:
		a, err = devcert.LoadAuthority(private, private)
	}
	if err != nil {
		return nil, false, fmt.Errorf("the station's authority: %w", err)
	}
	root := a.Chain[len(a.Chain)-1]
	if err := writeFile(public, 0o644, devcert.AppendPEM(nil, [][]byte{root.Raw})); err != nil {
		return nil, false, fmt.Errorf("write %s: %w", public, err)
	}
	return a, made, nil
}

// serverCert is the station's TLS certificate: given by files, or issued by the authority
// for the names given and the addresses of this machine, and anew when they change.
type serverCert struct {
	issuer *devcert.Authority
	hosts  []string

	mu    sync.Mutex // guards the fields below
	cert  *tls.Certificate
	addrs []netip.Addr
}

func newServerCert(issuer *devcert.Authority, hosts []string, certFile, keyFile string) (*serverCert, error) {
	c := &serverCert{issuer: issuer, hosts: hosts}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("read the station's TLS certificate: %w", err)
		}
		c.issuer, c.cert = nil, &pair
		return c, nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && len(c.addrs) < maxNames {
				c.addrs = append(c.addrs, addr.Unmap())
			}
		}
	}
	return c, c.renew()
}

// GetCertificate fits tls.Config.
func (c *serverCert) GetCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.issuer == nil {
		return c.cert, nil
	}
	late := time.Now().After(c.cert.Leaf.NotAfter.AddDate(0, 0, -serverDays/3))
	if a, ok := h.Conn.LocalAddr().(*net.TCPAddr); ok { // the machine got another address meanwhile
		if addr := a.AddrPort().Addr().Unmap().WithZone(""); !slices.Contains(c.addrs, addr) {
			if len(c.addrs) == maxNames {
				c.addrs = c.addrs[1:]
			}
			c.addrs, late = append(c.addrs, addr), true
		}
	}
	if late {
		if err := c.renew(); err != nil {
			return nil, err
		}
	}
	return c.cert, nil
}

// renew issues the certificate. c.mu is held, or nobody knows c yet.
func (c *serverCert) renew() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the station's TLS key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	now := time.Now()
	ca := c.issuer.Chain[0]
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: "CloudREST factory station"},
		NotBefore: latest(now.Add(-backdate), ca.NotBefore), NotAfter: now.AddDate(0, 0, serverDays),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
	}
	if t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		t.DNSNames = append(t.DNSNames, strings.ToLower(h), strings.ToLower(h)+".local")
	}
	for _, h := range c.hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	for _, a := range c.addrs {
		t.IPAddresses = append(t.IPAddresses, a.WithZone("").AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, key.Public(), c.issuer.Key)
	if err != nil {
		return fmt.Errorf("issue the station's TLS certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("issue the station's TLS certificate: %w", err)
	}
	c.cert = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: crypto.PrivateKey(key), Leaf: leaf}
	for _, i := range c.issuer.Chain {
		c.cert.Certificate = append(c.cert.Certificate, i.Raw)
	}
	return nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
