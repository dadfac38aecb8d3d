// Package devcert is the X.509 profile of device certificates: what the device asks the
// factory for, what the factory issues, and what relay and device accept. It is the same
// code on all three sides. It does no network I/O and keeps nothing.
//
// A device certificate (RFC 5280) has
//
//	subject        serialNumber (2.5.4.5) = device ID, 64 hex digits; CN = "CloudREST device <first 8>"
//	SAN            one URI, urn:cloudrest:device:<device ID>
//	key            ECDSA on P-256, or Ed25519; made on the device, never leaves it
//	usage          digitalSignature; clientAuth and nothing else, so that no device can pose as a server
//	serial number  127 random bits
//
// The certificate proves that the factory knew this key to belong to this device. Whether
// the peer has the key is proved by TLS, or by the signature of SPEC.md §4.
package devcert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// Limits on what is read from a peer.
const (
	MaxRequest = 2 << 10 // bytes of one PKCS #10 request; ours have about 400
	MaxChain   = 4 << 10 // bytes of a chain, each certificate with a two-byte length (SPEC.md §4)
	MaxDepth   = 4       // certificates in a chain, the leaf included
)

const (
	urn        = "cloudrest:device:" // what follows "urn:"
	serialBits = 127
	lengthSize = 2 // bytes before each certificate where chains travel
)

// Errors of this package. What a caller gets wraps one of them.
var (
	ErrRequest = errors.New("certificate request is not one of a CloudREST device")
	ErrChain   = errors.New("certificate chain is malformed")
	ErrProfile = errors.New("certificate is not one of a CloudREST device")
	ErrIssuer  = errors.New("certificate is from another authority")
	ErrExpired = errors.New("certificate is not valid at this time")
	ErrKey     = errors.New("unsupported key: want Ed25519 or ECDSA P-256")
)

// Request makes the PKCS #10 request (RFC 2986, DER) of a device, signed with its key.
func Request(id tether.DeviceID, key crypto.Signer) (csr []byte, err error) {
	if err := supported(key.Public()); err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject(id), URIs: names(id)}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, nil
}

// ParseRequest reads what Request made, from anyone. It checks the form and that the sender
// has the key; whether the key belongs to the device is for the caller. Errors wrap
// ErrRequest.
func ParseRequest(csr []byte) (id tether.DeviceID, pub crypto.PublicKey, err error) {
	if len(csr) > MaxRequest {
		return "", nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrRequest, len(csr), MaxRequest)
	}
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %v", ErrRequest, err)
	}
	// The kind of key first: signatures of other kinds can be costly to check.
	if err := supported(r.PublicKey); err != nil {
		return "", nil, fmt.Errorf("%w: %v", ErrRequest, err)
	}
	if err := r.CheckSignature(); err != nil {
		return "", nil, fmt.Errorf("%w: %v", ErrRequest, err)
	}
	if id, err = identify(r.Subject, r.URIs); err != nil {
		return "", nil, fmt.Errorf("%w: %v", ErrRequest, err)
	}
	return id, r.PublicKey, nil
}

// Verify checks the chain (DER, leaf first; a root at its end may be left out) against
// roots at the time now, and returns the leaf and the device it names. The caller compares
// the ID and the key with what the peer proved. Errors wrap ErrChain, ErrProfile, ErrIssuer
// or ErrExpired.
func Verify(chain [][]byte, roots *x509.CertPool, now time.Time) (leaf *x509.Certificate, id tether.DeviceID, err error) {
	leaf, id, rest, err := parse(chain)
	if err != nil {
		return nil, "", err
	}
	intermediates := x509.NewCertPool()
	for _, c := range rest {
		intermediates.AddCert(c)
	}
	if roots == nil {
		roots = x509.NewCertPool() // nil would be the system's
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err == nil {
		return leaf, id, nil
	}
	if e := (x509.CertificateInvalidError{}); errors.As(err, &e) && e.Reason == x509.Expired {
		return nil, "", fmt.Errorf("%w: valid from %s to %s, now is %s", ErrExpired, stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now))
	}
	return nil, "", fmt.Errorf("%w: %v", ErrIssuer, err)
}

// Parse reads a chain without asking who signed it: for what a program wrote itself.
// Errors wrap ErrChain or ErrProfile.
func Parse(chain [][]byte) (leaf *x509.Certificate, id tether.DeviceID, err error) {
	leaf, id, _, err = parse(chain)
	return leaf, id, err
}

func parse(chain [][]byte) (leaf *x509.Certificate, id tether.DeviceID, rest []*x509.Certificate, err error) {
	if len(chain) == 0 || len(chain) > MaxDepth {
		return nil, "", nil, fmt.Errorf("%w: %d certificates, want 1 to %d", ErrChain, len(chain), MaxDepth)
	}
	if n := Size(chain); n > MaxChain {
		return nil, "", nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrChain, n, MaxChain)
	}
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, "", nil, fmt.Errorf("%w: certificate %d: %v", ErrChain, i, err)
		}
		rest = append(rest, c)
	}
	leaf, rest = rest[0], rest[1:]
	switch {
	case leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		err = errors.New("its use is not that of a device")
	case len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(leaf.UnknownExtKeyUsage) > 0:
		err = errors.New("its extended use is not client authentication alone")
	case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		err = errors.New("it has other names than the device's")
	default:
		if err = supported(leaf.PublicKey); err == nil {
			id, err = identify(leaf.Subject, leaf.URIs)
		}
	}
	if err != nil {
		return nil, "", nil, fmt.Errorf("%w: %v", ErrProfile, err)
	}
	return leaf, id, rest, nil
}

// Size is how many bytes the chain takes where it travels: each certificate with its length.
func Size(chain [][]byte) (n int) {
	for _, der := range chain {
		n += lengthSize + len(der)
	}
	return n
}

// SameKey tells whether two public keys are one.
func SameKey(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// issue signs a device certificate.
func issue(ca *x509.Certificate, caKey crypto.Signer, id tether.DeviceID, pub crypto.PublicKey, from, to time.Time) ([]byte, error) {
	if err := supported(pub); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: subject(id), URIs: names(id),
		NotBefore: from.UTC().Truncate(time.Second), NotAfter: to.UTC().Truncate(time.Second),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, ca, pub, caKey)
}

// newSerial is 127 random bits: unguessable, unique, positive (RFC 5280 §4.1.2.2).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

func subject(id tether.DeviceID) pkix.Name {
	return pkix.Name{SerialNumber: string(id), CommonName: "CloudREST device " + id.Short()}
}

func names(id tether.DeviceID) []*url.URL {
	return []*url.URL{{Scheme: "urn", Opaque: urn + string(id)}}
}

// identify reads the device ID, which stands in two places that must agree.
func identify(s pkix.Name, uris []*url.URL) (tether.DeviceID, error) {
	id, err := tether.ParseDeviceID(s.SerialNumber)
	if err != nil || string(id) != s.SerialNumber { // the label form has no place here
		return "", errors.New("the subject's serial number is not a device ID of 64 lower-case hex digits")
	}
	if len(uris) != 1 || uris[0].String() != "urn:"+urn+string(id) {
		return "", errors.New("the alternative name is not urn:" + urn + "<the subject's device ID>")
	}
	return id, nil
}

func supported(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	}
	return ErrKey
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
