package devcert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// PEM block types (RFC 7468).
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"    // PKCS #8
	pemECKey       = "EC PRIVATE KEY" // RFC 5915, as openssl ecparam writes it
)

// maxPEM bounds the certificates of one file.
const maxPEM = 16

// Authority issues device certificates. It is safe for concurrent use once made.
type Authority struct {
	Chain []*x509.Certificate // the issuing certificate first; a root at the end may be left out
	Key   crypto.Signer       // of Chain[0]
}

// NewAuthority makes a self-signed authority with an ECDSA P-256 key. It signs leaves only.
func NewAuthority(name string, from, to time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: from.UTC().Truncate(time.Second), NotAfter: to.UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	return &Authority{Chain: []*x509.Certificate{c}, Key: key}, nil
}

// LoadAuthority reads an authority from PEM files: certificates, the issuing one first, and
// its private key. Both may be one file.
func LoadAuthority(certFile, keyFile string) (*Authority, error) {
	certs, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read the authority's key: %w", err)
	}
	a, err := ParseAuthority(certs, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", certFile, keyFile, err)
	}
	return a, nil
}

// ParseAuthority is LoadAuthority for contents. Its errors never hold the key.
func ParseAuthority(certs, key []byte) (*Authority, error) {
	chain, err := ParsePEM(certs)
	if err != nil {
		return nil, err
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	a := &Authority{Key: signer}
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read the authority's certificate: %w", err)
		}
		a.Chain = append(a.Chain, c)
	}
	switch first := a.Chain[0]; {
	case !first.IsCA || first.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, fmt.Errorf("the first certificate (%q) is not that of an authority that may sign", first.Subject.CommonName)
	case !SameKey(first.PublicKey, signer.Public()):
		return nil, errors.New("the key does not belong to the authority's first certificate")
	}
	return a, nil
}

func parseKey(content []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case pemKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case pemECKey:
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, errors.New("the authority's key cannot be read")
		}
		return signer, nil
	}
	return nil, errors.New("there is no private key in PEM")
}

// PEM returns the authority as the two contents that ParseAuthority reads.
func (a *Authority) PEM() (certs, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("write the authority's key: %w", err)
	}
	var chain [][]byte
	for _, c := range a.Chain {
		chain = append(chain, c.Raw)
	}
	return AppendPEM(nil, chain), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// Issue signs a certificate for the key of a device and returns it with what a verifier
// needs besides the root (DER, leaf first). Its life is cut to that of the authority, which
// must not be over.
func (a *Authority) Issue(id tether.DeviceID, pub crypto.PublicKey, from, to time.Time) (chain [][]byte, err error) {
	ca := a.Chain[0]
	if from.Before(ca.NotBefore) {
		from = ca.NotBefore
	}
	if to.After(ca.NotAfter) {
		to = ca.NotAfter
	}
	if !from.Before(to) {
		return nil, fmt.Errorf("issue a device certificate: the authority is valid from %s to %s only", stamp(ca.NotBefore), stamp(ca.NotAfter))
	}
	leaf, err := issue(ca, a.Key, id, pub, from, to)
	if err != nil {
		return nil, fmt.Errorf("issue a device certificate: %w", err)
	}
	chain = [][]byte{leaf}
	for _, c := range a.Chain {
		if !bytes.Equal(c.RawSubject, c.RawIssuer) { // a root is no use to who does not have it
			chain = append(chain, c.Raw)
		}
	}
	if _, _, err := Parse(chain); err != nil {
		return nil, fmt.Errorf("issue a device certificate: %w", err)
	}
	return chain, nil
}

// Roots is a pool with the last certificate of the authority's chain.
func (a *Authority) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Chain[len(a.Chain)-1])
	return pool
}

// AppendPEM appends the certificates as PEM.
func AppendPEM(b []byte, chain [][]byte) []byte {
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})...)
	}
	return b
}

// ParsePEM returns the certificates of a PEM file in DER, in their order, unparsed. Other
// blocks and text between blocks are passed over. Errors wrap ErrChain.
func ParsePEM(content []byte) (chain [][]byte, err error) {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != pemCertificate {
			continue
		}
		if chain = append(chain, block.Bytes); len(chain) > maxPEM {
			return nil, fmt.Errorf("%w: over %d certificates", ErrChain, maxPEM)
		}
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: there is no certificate in PEM", ErrChain)
	}
	return chain, nil
}

// ParseRoots returns the certificates of a PEM file as the authorities to trust.
func ParseRoots(content []byte) (*x509.CertPool, error) {
	chain, err := ParsePEM(content)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %v", ErrChain, i, err)
		}
		pool.AddCert(c)
	}
	return pool, nil
}
