package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/frame"
)

var update = flag.Bool("update", false, "write ../testdata anew")

// vector is one entry of testdata/proof.json (SPEC.md §10).
type vector struct {
	Name      string `json:"name"`
	Auth      uint8  `json:"auth"`
	Seed      string `json:"seed,omitempty"` // Ed25519 only
	PublicKey string `json:"public_key"`
	KeyID     string `json:"key_id"`
	Nonce     string `json:"nonce"`
	Time      string `json:"time"`
	Relay     string `json:"relay"`
	Binding   uint8  `json:"binding"`
	Device    string `json:"device"`
	Exporter  string `json:"exporter"`
	Message   string `json:"message"`
	Signature string `json:"signature"`
	Valid     bool   `json:"valid"`
}

// noRandom makes ECDSA signatures the same each time (RFC 6979), as crypto/ecdsa
// promises for a nil source of randomness.
type noRandom struct{ *ecdsa.PrivateKey }

func (k noRandom) sign(msg []byte) ([]byte, error) {
	sum := sha256.Sum256(msg)
	return k.Sign(nil, sum[:], crypto.SHA256)
}

func fixedKeys(t testing.TB) (ed25519.PrivateKey, noRandom) {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = byte(i + 1)
	}
	ec, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed)
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed), noRandom{ec}
}

func vectors(t testing.TB) []vector {
	t.Helper()
	ed, ec := fixedKeys(t)
	challenge := frame.Challenge{Time: 1767225600000, Relay: "relay.example", Binding: frame.BindExporter}
	exporter := make([]byte, ExporterSize)
	for i := range frame.NonceSize {
		challenge.Nonce[i], exporter[i] = byte(0x40+i), byte(0xa0+i)
	}
	open := challenge
	open.Binding, open.Relay = frame.BindNone, "2001:db8::1"
	device := strings.Repeat("0123456789abcdef", 4)

	var list []vector
	add := func(name string, h frame.Hello, c frame.Challenge, exporter []byte, valid bool) {
		v := vector{Name: name, Auth: h.Auth, PublicKey: hex.EncodeToString(h.PublicKey), KeyID: h.KeyID, Nonce: hex.EncodeToString(c.Nonce[:]),
			Time: fmt.Sprintf("%016x", c.Time), Relay: c.Relay, Binding: c.Binding, Device: h.Device, Exporter: hex.EncodeToString(exporter),
			Message: hex.EncodeToString(message(&c, h.Device, exporter)), Signature: hex.EncodeToString(h.Signature), Valid: valid}
		if h.Auth == frame.AuthEd25519 {
			v.Seed = hex.EncodeToString(ed.Seed())
		}
		list = append(list, v)
	}
	sign := func(key crypto.Signer, c frame.Challenge, exporter []byte) frame.Hello {
		h := frame.Hello{Device: device}
		if err := Sign(&h, key, &c, exporter); err != nil {
			t.Fatal(err)
		}
		if key == crypto.Signer(ec.PrivateKey) {
			sig, err := ec.sign(message(&c, device, exporter))
			if err != nil {
				t.Fatal(err)
			}
			h.Signature = sig
		}
		return h
	}
	for _, k := range []struct {
		name string
		key  crypto.Signer
	}{{"Ed25519", ed}, {"ECDSA P-256", ec.PrivateKey}} {
		bound := sign(k.key, challenge, exporter)
		add(k.name+", TLS exporter", bound, challenge, exporter, true)
		add(k.name+", no binding", sign(k.key, open, nil), open, nil, true)
		other := challenge
		other.Relay = "evil.example"
		add(k.name+", challenge of another relay", bound, other, exporter, false)
		otherTLS := append([]byte(nil), exporter...)
		otherTLS[0] ^= 1
		add(k.name+", another TLS connection", bound, challenge, otherTLS, false)
		stripped := challenge
		stripped.Binding = frame.BindNone
		add(k.name+", binding taken away", bound, stripped, nil, false)
		flipped := bound
		flipped.Signature = append([]byte(nil), bound.Signature...)
		flipped.Signature[len(flipped.Signature)-1] ^= 1
		add(k.name+", a flipped bit", flipped, challenge, exporter, false)
		renamed := bound
		renamed.KeyID = strings.Repeat("0", len(bound.KeyID))
		add(k.name+", another key id", renamed, challenge, exporter, false)
	}
	return list
}

func TestVectorFile(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("{\n  \"protocol\": \"cloudrest.1\",\n  \"vectors\": [\n")
	list := vectors(t)
	for i, v := range list {
		js, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		comma := ","
		if i == len(list)-1 {
			comma = ""
		}
		fmt.Fprintf(&b, "    %s%s\n", js, comma)
	}
	b.WriteString("  ]\n}\n")
	file := filepath.Join("..", "testdata", "proof.json")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("%s differs from what the code gives; if the change is meant, run with -update and change SPEC.md §4.4", file)
	}
}

// The file alone, read back, gives the verdicts that it states.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "proof.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			c := frame.Challenge{Relay: v.Relay, Binding: v.Binding}
			copy(c.Nonce[:], unhex(v.Nonce))
			for _, b := range unhex(v.Time) {
				c.Time = c.Time<<8 | uint64(b)
			}
			h := frame.Hello{Device: v.Device, Auth: v.Auth, KeyID: v.KeyID, PublicKey: unhex(v.PublicKey), Signature: unhex(v.Signature)}
			exporter := unhex(v.Exporter)
			if got := message(&c, h.Device, exporter); !bytes.Equal(got, unhex(v.Message)) {
				t.Errorf("message = %x, want %s", got, v.Message)
			}
			if _, err := Verify(&h, &c, exporter); (err == nil) != v.Valid {
				t.Errorf("Verify = %v, want valid = %v", err, v.Valid)
			}
			if v.Seed != "" && v.Valid {
				again := frame.Hello{Device: v.Device}
				if err := Sign(&again, ed25519.NewKeyFromSeed(unhex(v.Seed)), &c, exporter); err != nil || !bytes.Equal(again.Signature, h.Signature) ||
					again.KeyID != v.KeyID || !bytes.Equal(again.PublicKey, h.PublicKey) {
					t.Errorf("Sign = %+v, %v, want the vector", again, err)
				}
			}
		})
	}
}

// specMessage follows the table of SPEC.md §4.4 line by line, apart from the code.
func specMessage(c *frame.Challenge, device string, exporter []byte) []byte {
	var b bytes.Buffer
	b.WriteString("cloudrest-auth-1")
	b.WriteByte(0)
	b.Write(c.Nonce[:])
	b.WriteByte(byte(len(c.Relay)))
	b.WriteString(c.Relay)
	b.WriteByte(byte(len(device)))
	b.WriteString(device)
	for shift := 56; shift >= 0; shift -= 8 {
		b.WriteByte(byte(c.Time >> shift))
	}
	b.WriteByte(c.Binding)
	b.WriteByte(byte(len(exporter)))
	b.Write(exporter)
	return b.Bytes()
}

// FuzzVerify: whatever HELLO a stranger sends, Verify neither panics nor says yes unless
// the standard library agrees on the bytes of SPEC.md; and a yes for one challenge is a no
// for another.
func FuzzVerify(f *testing.F) {
	ed, ec := fixedKeys(f)
	challenge := frame.Challenge{Time: 1, Relay: "relay.example", Binding: frame.BindExporter}
	exporter := make([]byte, ExporterSize)
	for _, key := range []crypto.Signer{ed, ec.PrivateKey} {
		h := frame.Hello{Version: 1, Device: "device"}
		if err := Sign(&h, key, &challenge, exporter); err != nil {
			f.Fatal(err)
		}
		if key == crypto.Signer(ec.PrivateKey) {
			sig, err := ec.sign(message(&challenge, h.Device, exporter))
			if err != nil {
				f.Fatal(err)
			}
			h.Signature = sig
		}
		msg, err := frame.AppendHello(nil, &h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg[frame.HeaderSize:])
		h.PublicKey = h.PublicKey[:len(h.PublicKey)-1]
		if msg, err = frame.AppendHello(nil, &h); err != nil {
			f.Fatal(err)
		}
		f.Add(msg[frame.HeaderSize:])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := frame.ParseHello(body)
		if err != nil {
			return
		}
		pub, err := Verify(&h, &challenge, exporter)
		if err != nil {
			if pub != nil {
				t.Fatalf("a key beside the error %v", err)
			}
			return
		}
		msg := specMessage(&challenge, h.Device, exporter)
		sum := sha256.Sum256(msg)
		switch pub := pub.(type) {
		case ed25519.PublicKey:
			if h.Auth != frame.AuthEd25519 || !ed25519.Verify(pub, msg, h.Signature) {
				t.Fatal("an Ed25519 proof that does not hold was accepted")
			}
		case *ecdsa.PublicKey:
			if h.Auth != frame.AuthECDSA || pub.Curve != elliptic.P256() || !ecdsa.VerifyASN1(pub, sum[:], h.Signature) {
				t.Fatal("an ECDSA proof that does not hold was accepted")
			}
		default:
			t.Fatalf("a key of type %T was accepted", pub)
		}
		next := challenge
		next.Nonce[0]++
		if _, err := Verify(&h, &next, exporter); err == nil {
			t.Fatal("the proof holds for another challenge too")
		}
	})
}

// FuzzMessage: the signed bytes say every input, so that no proof can stand for another
// relay, device or connection.
func FuzzMessage(f *testing.F) {
	f.Add([]byte("nonce"), uint64(1), "relay.example", "device", uint8(1), []byte("exporter"))
	f.Add([]byte{}, uint64(0), "", "", uint8(0), []byte{})
	f.Fuzz(func(t *testing.T, nonce []byte, ms uint64, relay, device string, binding uint8, exporter []byte) {
		if len(relay) > 255 || len(device) > 255 || len(exporter) > 255 {
			return // CHALLENGE and HELLO cannot carry them
		}
		c := frame.Challenge{Time: ms, Relay: relay, Binding: binding}
		copy(c.Nonce[:], nonce)
		if got, want := message(&c, device, exporter), specMessage(&c, device, exporter); !bytes.Equal(got, want) {
			t.Fatalf("message = %x, SPEC.md §4.4 says %x", got, want)
		}
	})
}
