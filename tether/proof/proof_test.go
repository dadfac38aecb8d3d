package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/cloudrest/cloudrest/tether/frame"
)

func keys(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"Ed25519": ed, "ECDSA P-256": ec}
}

func TestSignVerify(t *testing.T) {
	challenge := frame.Challenge{Time: 1234, Relay: "relay.example", Binding: frame.BindExporter}
	rand.Read(challenge.Nonce[:])
	exporter := make([]byte, ExporterSize)
	for name, key := range keys(t) {
		sign := func() (frame.Hello, frame.Challenge, []byte) {
			h := frame.Hello{Device: "device-1"}
			if err := Sign(&h, key, &challenge, exporter); err != nil {
				t.Fatal(err)
			}
			return h, challenge, append([]byte(nil), exporter...)
		}
		h, c, e := sign()
		if pub, err := Verify(&h, &c, e); err != nil || !pub.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Fatalf("%s: Verify = %v, %v", name, pub, err)
		}
		other := keys(t)[name]
		for what, forge := range map[string]func(h *frame.Hello, c *frame.Challenge, e []byte){
			"another nonce":  func(h *frame.Hello, c *frame.Challenge, e []byte) { c.Nonce[31] ^= 1 },
			"another relay":  func(h *frame.Hello, c *frame.Challenge, e []byte) { c.Relay = "evil.example" },
			"another time":   func(h *frame.Hello, c *frame.Challenge, e []byte) { c.Time++ },
			"another device": func(h *frame.Hello, c *frame.Challenge, e []byte) { h.Device = "device-2" },
			"another TLS":    func(h *frame.Hello, c *frame.Challenge, e []byte) { e[0] ^= 1 },
			"no binding":     func(h *frame.Hello, c *frame.Challenge, e []byte) { c.Binding = frame.BindNone },
			"a flipped bit":  func(h *frame.Hello, c *frame.Challenge, e []byte) { h.Signature[len(h.Signature)-1] ^= 1 },
			"no signature":   func(h *frame.Hello, c *frame.Challenge, e []byte) { h.Signature = nil },
			"another kind":   func(h *frame.Hello, c *frame.Challenge, e []byte) { h.Auth ^= 3 },
			"another key id": func(h *frame.Hello, c *frame.Challenge, e []byte) { h.KeyID = KeyID([]byte("x")) },
			"bytes after a key": func(h *frame.Hello, c *frame.Challenge, e []byte) {
				h.PublicKey = append(h.PublicKey, 0)
				h.KeyID = KeyID(h.PublicKey)
			},
			"another key": func(h *frame.Hello, c *frame.Challenge, e []byte) {
				x := frame.Hello{Device: "x"}
				if err := Sign(&x, other, c, e); err != nil {
					t.Fatal(err)
				}
				h.PublicKey, h.KeyID = x.PublicKey, x.KeyID
			},
		} {
			h, c, e := sign()
			forge(&h, &c, e)
			if _, err := Verify(&h, &c, e); !errors.Is(err, ErrSignature) && !errors.Is(err, ErrKey) {
				t.Errorf("%s, %s: Verify = %v, want a refusal", name, what, err)
			}
		}
	}
}

func TestUnsupportedKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := Sign(&frame.Hello{}, key, &frame.Challenge{}, nil); !errors.Is(err, ErrKey) {
		t.Errorf("Sign with P-384 = %v, want ErrKey", err)
	}
}
