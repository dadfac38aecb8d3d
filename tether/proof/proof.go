// Package proof makes and checks a device's answer to the relay's challenge: a
// signature with the key that was made on the device (SPEC.md §4.4). It decides nothing
// about enrolment; a good proof only shows that the peer holds the key.
package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/cloudrest/cloudrest/tether/frame"
)

const (
	// label separates these signatures from any other use of the device's key.
	label = "cloudrest-auth-1"
	// ExporterLabel and ExporterSize name the TLS exporter of BindExporter (RFC 9266 §2).
	// Its context has zero length: []byte{}, not nil, which TLS 1.2 tells apart (RFC 5705 §4).
	ExporterLabel = "EXPORTER-Channel-Binding"
	ExporterSize  = 32
	keyIDSize     = 16 // bytes of the key's hash in a key id
)

// Errors of this package.
var (
	// ErrKey means that a key is of no supported kind: Ed25519, or ECDSA on P-256.
	ErrKey = errors.New("unsupported device key: want Ed25519 or ECDSA P-256")
	// ErrSignature means that the proof does not hold.
	ErrSignature = errors.New("the signature does not match the key and the challenge")
)

// message is what gets signed. Every part has a fixed size or carries its length, so no
// two different inputs give the same bytes. exporter is empty for BindNone.
func message(c *frame.Challenge, device string, exporter []byte) []byte {
	b := append([]byte(label), 0)
	b = append(b, c.Nonce[:]...)
	b = append(append(b, byte(len(c.Relay))), c.Relay...)
	b = append(append(b, byte(len(device))), device...)
	b = binary.BigEndian.AppendUint64(b, c.Time)
	b = append(b, c.Binding)
	return append(append(b, byte(len(exporter))), exporter...)
}

// Sign fills in the proof of h: Auth, KeyID, PublicKey and Signature. h.Device must be
// set; exporter is the TLS exporter that c.Binding asks for, or nil. It fails with
// ErrKey, or with what the signer (which may be a secure element) says.
func Sign(h *frame.Hello, key crypto.Signer, c *frame.Challenge, exporter []byte) error {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("%w: %v", ErrKey, err)
	}
	msg := message(c, h.Device, exporter)
	switch pub := key.Public().(type) {
	case ed25519.PublicKey:
		h.Auth = frame.AuthEd25519
		h.Signature, err = key.Sign(rand.Reader, msg, crypto.Hash(0))
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return ErrKey
		}
		h.Auth = frame.AuthECDSA
		sum := sha256.Sum256(msg)
		h.Signature, err = key.Sign(rand.Reader, sum[:], crypto.SHA256)
	default:
		return ErrKey
	}
	if err != nil {
		return fmt.Errorf("sign the challenge: %w", err)
	}
	h.KeyID, h.PublicKey = KeyID(spki), spki
	return nil
}

// Verify checks the proof of h against the challenge that this relay sent and the key
// in h itself, and returns that key. The caller then decides whether the key is the one
// enrolled for h.Device. It fails with ErrKey or ErrSignature.
func Verify(h *frame.Hello, c *frame.Challenge, exporter []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(h.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	// One key has one encoding, so that comparing bytes compares keys.
	if again, err := x509.MarshalPKIXPublicKey(pub); err != nil || !bytes.Equal(again, h.PublicKey) || KeyID(h.PublicKey) != h.KeyID {
		return nil, ErrKey
	}
	msg := message(c, h.Device, exporter)
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		if h.Auth == frame.AuthEd25519 && ed25519.Verify(pub, msg, h.Signature) {
			return pub, nil
		}
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, ErrKey
		}
		sum := sha256.Sum256(msg)
		if h.Auth == frame.AuthECDSA && ecdsa.VerifyASN1(pub, sum[:], h.Signature) {
			return pub, nil
		}
	default:
		return nil, ErrKey
	}
	return nil, ErrSignature
}

// KeyID names a key by its SubjectPublicKeyInfo: the first 16 bytes of its SHA-256, in
// lower-case hex.
func KeyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:keyIDSize])
}
