package operator

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	for _, id := range slices.Sorted(maps.Keys(*m)) {
		list = append(list, Listed{id, (*m)[id]})
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

func parseDevices(text []byte) (*map[tether.DeviceID][]byte, error) {
	m := map[tether.DeviceID][]byte{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) != 2 {
			return nil, fmt.Errorf("line %d: want a device ID and a public key", n)
		}
		id, err := tether.ParseDeviceID(f[0])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		der, err := ParseKey([]byte(f[1]))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if m[id] != nil {
			return nil, fmt.Errorf("line %d: device %s is listed twice", n, id)
		}
		m[id] = der
	}
	return &m, nil
}

// Devices is the list in force while a relay runs. It may be used by many goroutines.
type Devices struct {
	file watched[map[tether.DeviceID][]byte]
}

// OpenDevices reads the list in dir; there need not be one yet.
func OpenDevices(dir string, log *slog.Logger) (*Devices, error) {
	d := &Devices{watched[map[tether.DeviceID][]byte]{path: filepath.Join(dir, DevicesFile), parse: parseDevices, log: log}}
	return d, d.file.open()
}

// Key returns the key the list has for a device. A device that was just added is
// found at once, one that was removed is gone within a second.
func (d *Devices) Key(id tether.DeviceID) (der []byte, ok bool) {
	if der, ok = (*d.file.get(false))[id]; !ok {
		der, ok = (*d.file.get(true))[id]
	}
	return der, ok
}

// All returns the list in force, not to be changed. A new version of the file is a new
// map, so that comparing the two pointers tells whether anything changed.
func (d *Devices) All() *map[tether.DeviceID][]byte { return d.file.get(false) }
