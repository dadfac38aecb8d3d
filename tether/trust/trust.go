// Package trust is what a client needs to trust a device on the LAN: the pin of the
// device's certificate authority, the TLS configuration that accepts exactly that device,
// the comparison code of the pairing exchange, and the invitation that a QR code or a
// label carries (SPEC.md §11). It does no I/O and keeps nothing: pins are remembered by the
// client, pairing is decided by the device.
package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// chainLength is how many certificates a device shows: its leaf and its authority.
const chainLength = 2

// ErrChain means that what a server showed is not the chain of a CloudREST device: a leaf
// and the authority that signed it (SPEC.md §11.1).
var ErrChain = errors.New("not the certificate chain of a CloudREST device")

// PinError means that a server is not the device that was expected. It is what a
// handshake with Client fails with.
type PinError struct {
	Want string // the pin that was expected
	Got  string // the pin of the server; empty when it showed no chain of a device
	Err  error  // why there is none (ErrChain); nil otherwise
}

func (e *PinError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("expected the device with pin %s: %v", e.Want, e.Err)
	}
	return fmt.Sprintf("expected the device with pin %s, this one has %s", e.Want, e.Got)
}

func (e *PinError) Unwrap() error { return e.Err }

// Pin names a device's authority: the SHA-256 of its SubjectPublicKeyInfo (RFC 5280 §4.1,
// the way of RFC 7469 §2.4) as 64 lower-case hex digits. The certificate around the key may
// be made anew without a change of the pin.
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// ValidPin reports whether s has the form of a pin.
func ValidPin(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// PinOf returns the pin of the chain that a server showed in a handshake, after it has
// checked that the chain is one: exactly [leaf, authority], the leaf for TLS servers, not
// an authority itself, and signed by the authority's key. That the server holds the leaf's
// key is shown by the handshake. Names and dates do not count: a device's address changes,
// and its clock may be wrong. The error is ErrChain.
func PinOf(cs *tls.ConnectionState) (string, error) {
	if cs == nil || len(cs.PeerCertificates) != chainLength {
		n := 0
		if cs != nil {
			n = len(cs.PeerCertificates)
		}
		return "", fmt.Errorf("%w: %d certificates, want %d: leaf and device authority", ErrChain, n, chainLength)
	}
	leaf, ca := cs.PeerCertificates[0], cs.PeerCertificates[1]
	if why := flaw(leaf, ca); why != "" {
		return "", fmt.Errorf("%w: %s", ErrChain, why)
	}
	return Pin(ca), nil
}

// flaw says what is wrong with the chain; empty: nothing.
func flaw(leaf, ca *x509.Certificate) string {
	switch {
	case !ca.BasicConstraintsValid || !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return "the second certificate is no authority"
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 || bytes.Equal(leaf.RawSubjectPublicKeyInfo, ca.RawSubjectPublicKeyInfo):
		return "the first certificate is an authority"
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "the first certificate is not for a TLS server"
	case len(leaf.UnhandledCriticalExtensions) > 0 || len(ca.UnhandledCriticalExtensions) > 0:
		return "a critical extension is unknown"
	case !bytes.Equal(leaf.RawIssuer, ca.RawSubject):
		return "the leaf names another issuer"
	// The pinned key must have signed the leaf, and also the authority's certificate:
	// otherwise its content would be anybody's.
	case leaf.CheckSignatureFrom(ca) != nil:
		return "the leaf is not signed by the authority"
	case ca.CheckSignatureFrom(ca) != nil:
		return "the authority is not signed by itself"
	}
	return ""
}

// Client returns a TLS configuration (1.2 and later) that trusts exactly the device with
// that pin, also when a session is resumed; a handshake with any other server fails with a
// *PinError. The caller may add to it, but not take VerifyConnection away.
func Client(pin string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // names and dates do not count; VerifyConnection, which resumption does not skip, checks the chain
		VerifyConnection: func(cs tls.ConnectionState) error {
			got, err := PinOf(&cs)
			if err != nil || got != pin {
				return &PinError{Want: pin, Got: got, Err: err}
			}
			return nil
		},
	}
}
