// Package lancert keeps the certificate that the gateway shows on the LAN: self-signed,
// ECDSA on P-256, made at first start and then kept, so that a phone which has pinned its
// fingerprint knows the device again. It does not follow address changes, for the same
// reason.
package lancert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
)

// File is the name of the file with certificate and key in the state directory.
const File = "lan-cert.pem"

const (
	validYears = 10
	renewDays  = 30 // before the end, at a start, a new certificate is made
	maxAddrs   = 32 // addresses in the certificate
	serialBits = 127
)

// floor is the earliest time that can be true, for builds that do not know theirs. Boards
// without a clock start in 1970; a certificate valid from then on would be refused by some
// clients and one made "in 1970 for ten years" by all.
var floor = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// Config says whom the certificate names.
type Config struct {
	Dir      string          // state directory, must exist
	ID       tether.DeviceID // for the name cloudrest-<first 8 digits>.local
	HostName string          // of the machine; may be empty
	Addrs    []netip.Addr    // present addresses; at most 32 are used
	Floor    time.Time       // build time; zero: a constant
	Now      time.Time       // zero: time.Now()
}

// Certificate is a certificate with its key. It is safe for concurrent use.
type Certificate struct {
	pair        *tls.Certificate
	fingerprint string
}

// Open reads the certificate from the state directory, or makes one if there is none or it
// has ended. made is why a new one was made, in words for the log; empty if it was not.
// A damaged file is kept aside as <File>.damaged: the LAN must stay reachable, and phones
// that had pinned the old one will ask their owner.
func Open(cfg Config) (c *Certificate, made string, err error) {
	if cfg.Now.IsZero() {
		cfg.Now = time.Now()
	}
	if cfg.Floor.Before(floor) {
		cfg.Floor = floor
	}
	name := filepath.Join(cfg.Dir, File)
	content, err := statefile.Read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made = "first start"
	case err != nil:
		return nil, "", fmt.Errorf("read the LAN certificate: %w", err)
	default:
		c, err = parse(content)
		if err == nil && cfg.Now.Before(c.pair.Leaf.NotAfter.AddDate(0, 0, -renewDays)) {
			return c, "", nil
		}
		made = "the old one ends soon"
		if err != nil {
			made = "the old one is damaged: " + err.Error()
			if err := statefile.Write(name+".damaged", content); err != nil {
				return nil, "", fmt.Errorf("set the damaged LAN certificate aside: %w", err)
			}
		}
	}
	content, err = create(cfg)
	if err != nil {
		return nil, "", err
	}
	if err := statefile.Write(name, content); err != nil {
		return nil, "", fmt.Errorf("keep the LAN certificate: %w", err)
	}
	c, err = parse(content)
	return c, made, err
}

// Fingerprint is the SHA-256 of the certificate's DER form, in lower-case hex.
func (c *Certificate) Fingerprint() string { return c.fingerprint }

// Leaf is the certificate itself; it is not to be changed.
func (c *Certificate) Leaf() *x509.Certificate { return c.pair.Leaf }

// GetCertificate fits tls.Config.
func (c *Certificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.pair, nil
}

// LocalName is the mDNS host name that the certificate of a device holds.
func LocalName(id tether.DeviceID) string { return "cloudrest-" + id.Short() + ".local" }

func create(cfg Config) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the LAN key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("make the LAN certificate: %w", err)
	}
	from := cfg.Floor.UTC().Truncate(time.Second)
	to := from
	if cfg.Now.After(to) {
		to = cfg.Now.UTC().Truncate(time.Second)
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // RFC 5280 §4.1.2.2: positive
		Subject:      pkix.Name{CommonName: LocalName(cfg.ID), Organization: []string{"CloudREST device"}},
		NotBefore:    from, NotAfter: to.AddDate(validYears, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              names(cfg),
		IPAddresses:           addresses(cfg.Addrs),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the LAN certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write the LAN key: %w", err)
	}
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return b.Bytes(), nil
}

func names(cfg Config) []string {
	list := []string{LocalName(cfg.ID), "localhost"}
	if h := strings.TrimSuffix(strings.ToLower(cfg.HostName), "."); h != "" && h != "localhost" && validHost(h) {
		list = append(list, h)
		if !strings.Contains(h, ".") {
			list = append(list, h+".local")
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// validHost reports whether h can stand in a certificate; machines have odd host names.
func validHost(h string) bool {
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return len(h) <= 253
}

func addresses(addrs []netip.Addr) (list []net.IP) {
	all := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		if a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !slices.Contains(all, a) && len(all) < maxAddrs {
			all = append(all, a)
		}
	}
	for _, a := range all {
		list = append(list, a.AsSlice())
	}
	return list
}

func parse(content []byte) (*Certificate, error) {
	pair, err := tls.X509KeyPair(content, content)
	if err != nil {
		return nil, err
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(pair.Certificate[0])
	return &Certificate{pair: &pair, fingerprint: hex.EncodeToString(sum[:])}, nil
}
