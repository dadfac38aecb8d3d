package operator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cloudrest/cloudrest/tether"
)

// DevicesFile is the name of the list of devices in the state directory: a line for
// each with its ID and its public key (base64 of the SubjectPublicKeyInfo, DER).
// Empty lines and lines that begin with # are skipped.
const DevicesFile = "devices"

// ErrKey means that a text is not a public key a device can have.
var ErrKey = errors.New("not a device key: want an Ed25519 or ECDSA P-256 public key, as base64 of its DER form or as PEM")

// Listed is one line of the list.
type Listed struct {
	ID  tether.DeviceID
	Key []byte // SubjectPublicKeyInfo, DER
}

// ParseKey reads a public key from base64 or PEM and returns its DER form.
func ParseKey(text []byte) ([]byte, error) {
	text = bytes.TrimSpace(text)
	var der []byte
	if block, _ := pem.Decode(text); block != nil && block.Type == "PUBLIC KEY" {
		der = block.Bytes
	} else if raw, err := base64.StdEncoding.DecodeString(string(text)); err == nil {
		der = raw
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, ErrKey
	}
	switch pub := pub.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, ErrKey
		}
	default:
		return nil, ErrKey
	}
	// One key, one text: what devices send is compared byte for byte.
	return x509.MarshalPKIXPublicKey(pub)
}

// AddDevice puts a device on the list in dir; a key that it had there is replaced.
func AddDevice(dir string, id tether.DeviceID, der []byte) error {
	return edit(dir, DevicesFile, func(text []byte) ([]byte, error) {
		if _, err := parseDevices(text); err != nil {
			return nil, err
		}
		out, _ := dropLines(text, ofDevice(id))
		return fmt.Appendf(endLine(out), "%s %s\n", id, base64.StdEncoding.EncodeToString(der)), nil
	})
}

// RemoveDevice takes a device off the list in dir.
func RemoveDevice(dir string, id tether.DeviceID) error {
	return edit(dir, DevicesFile, func(text []byte) ([]byte, error) {
		out, n := dropLines(text, ofDevice(id))
		if n == 0 {
			return nil, fmt.Errorf("device %s is not on the list", id)
		}
		return out, nil
	})
}

// ListDevices returns the list in dir in the order of the IDs.
func ListDevices(dir string) ([]Listed, error) {
	text, err := os.ReadFile(filepath.Join(dir, DevicesFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseDevices(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", DevicesFile, err)
	}
	var list []Listed
	for _, id := range slices.Sorted(maps.Keys(m)) {
		list = append(list, Listed{id, m[id]})
	}
	return list, nil
}

func ofDevice(id tether.DeviceID) func(fields []string) bool {
	return func(f []string) bool {
		if len(f) < 1 {
			return false
		}
		have, err := tether.ParseDeviceID(f[0])
		return err == nil && have == id
	}
}

func parseDevices(text []byte) (map[tether.DeviceID][]byte, error) {
	m := map[tether.DeviceID][]byte{}
	err := eachDevice(text, func(k id32, der []byte) { m[tether.DeviceID(hex.EncodeToString(k[:]))] = der },
		func(k id32) bool { return m[tether.DeviceID(hex.EncodeToString(k[:]))] != nil })
	return m, err
}

// eachDevice reads the lines of a list; the key is in its one DER form.
func eachDevice(text []byte, f func(k id32, der []byte), twice func(id32) bool) error {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		fields := bytes.Fields(line)
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("line %d: want a device ID and a public key", n)
		}
		id, err := tether.ParseDeviceID(string(fields[0]))
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		der, err := ParseKey(fields[1])
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		k, err := idOf(id)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if twice(k) {
			return fmt.Errorf("line %d: device %s is listed twice", n, id)
		}
		f(k, der)
	}
	return nil
}

// id32 is a device ID in half the bytes of its text: the lists of a large maker stay in
// memory as long as the relay runs.
type id32 [sha256.Size]byte

func idOf(id tether.DeviceID) (k id32, err error) {
	if n, err := hex.Decode(k[:], []byte(id)); err != nil || n != len(k) {
		return k, tether.ErrDeviceID
	}
	return k, nil
}

// Devices is what is in force of the list and of the revocations while a relay runs. It
// may be used by many goroutines.
type Devices struct {
	list    watched[map[id32][sha256.Size]byte] // the SHA-256 of each key
	revoked watched[marks]
}

// OpenDevices reads the files in dir; there need not be any yet.
func OpenDevices(dir string, log *slog.Logger) (*Devices, error) {
	d := &Devices{}
	d.list.path, d.list.parse, d.list.log = filepath.Join(dir, DevicesFile), hashDevices, log
	d.revoked.path, d.revoked.parse, d.revoked.log = filepath.Join(dir, RevokedFile), parseMarks, log
	return d, errors.Join(d.list.open(), d.revoked.open())
}

// hashDevices is parseDevices for those who only compare keys. What it returns keeps
// nothing of the text.
func hashDevices(text []byte) (*map[id32][sha256.Size]byte, error) {
	m := map[id32][sha256.Size]byte{}
	err := eachDevice(text, func(k id32, der []byte) { m[k] = sha256.Sum256(der) }, func(k id32) bool { _, ok := m[k]; return ok })
	return &m, err
}

// Key returns the SHA-256 of the key (DER) that the list has for a device. A device that
// was just added is found at once, one that was removed is gone within a second.
func (d *Devices) Key(id tether.DeviceID) (sum [sha256.Size]byte, ok bool) {
	k, err := idOf(id)
	if err != nil {
		return sum, false
	}
	if sum, ok = (*d.list.get(false))[k]; !ok {
		sum, ok = (*d.list.get(true))[k]
	}
	return sum, ok
}

// Revoked reports whether the operator revoked the device, at once after that; one that
// is let in again is within a second.
func (d *Devices) Revoked(id tether.DeviceID) bool {
	k, err := idOf(id)
	if err != nil {
		return false
	}
	_, ok := (*d.revoked.get(true))[k]
	return ok
}

// Version is another number after each change of the list or the revocations. It looks at
// the files when the last look is a second ago.
func (d *Devices) Version() uint64 {
	d.list.get(false)
	d.revoked.get(false)
	return d.list.count.Load() + d.revoked.count.Load()
}
