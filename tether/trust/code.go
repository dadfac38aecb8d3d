package trust

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// NonceSize is the size of the nonces of the pairing exchange, in bytes.
	NonceSize = 32
	// CodeDigits is how many digits people compare.
	CodeDigits = 6
	// ExporterLabel and ExporterSize name the TLS exporter of the exchange (RFC 5705,
	// RFC 8446 §7.5). Its context has zero length: []byte{}, not nil, which TLS 1.2 tells apart.
	ExporterLabel = "EXPORTER-CloudREST-pair"
	ExporterSize  = 32

	commitLabel = "cloudrest-pair-commit-1"
	codeLabel   = "cloudrest-pair-code-1"
	codeModulus = 1_000_000 // 10^CodeDigits
)

// ErrExporter means that a connection has no TLS exporter to bind a code to.
var ErrExporter = errors.New("the connection has no TLS exporter: want TLS 1.3, or 1.2 with the extended master secret (RFC 7627)")

// Commit is a client's commitment to its nonce, sent before it has seen the device's
// (SPEC.md §11.3).
func Commit(nonce []byte) []byte {
	h := sha256.New()
	h.Write([]byte(commitLabel + "\x00"))
	h.Write(nonce)
	return h.Sum(nil)
}

// Committed reports whether nonce has the right size and is the one that was committed to.
func Committed(commitment, nonce []byte) bool {
	return len(nonce) == NonceSize && hmac.Equal(commitment, Commit(nonce))
}

// Exporter returns what both ends of one TLS connection know and nobody else: a man in the
// middle has two connections with two exporters. The error is ErrExporter.
func Exporter(cs *tls.ConnectionState) ([]byte, error) {
	if cs == nil || !cs.HandshakeComplete || cs.Version < tls.VersionTLS12 {
		return nil, ErrExporter
	}
	b, err := cs.ExportKeyingMaterial(ExporterLabel, []byte{}, ExporterSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrExporter, err)
	}
	return b, nil
}

// Code is the comparison code that people see at both ends: CodeDigits decimal digits. pin
// is the device's, as the client saw it in this connection and as the device knows it;
// exporter is that of the connection on which the exchange began: a device refuses the
// client's nonce on another one, because who may choose among connections chooses the code.
// clientNonce is nil in the one-step exchange, which does not protect against a man in the
// middle (SPEC.md §11.3).
func Code(pin string, exporter, clientNonce, deviceNonce []byte) string {
	h := hmac.New(sha256.New, []byte(codeLabel))
	for _, part := range [...][]byte{[]byte(pin), exporter, clientNonce, deviceNonce} {
		var n [4]byte // every part carries its length: no two inputs give the same bytes
		binary.BigEndian.PutUint32(n[:], uint32(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	// 2^64 is so much more than 10^6 that no code is likelier than another by more than 2^-44.
	return fmt.Sprintf("%0*d", CodeDigits, binary.BigEndian.Uint64(h.Sum(nil))%codeModulus)
}
