// Package identity keeps who the device is: the hardware UID that its ID is derived from,
// and the private key that proves it to relays. Both are made at first start and kept for
// life in one small file beside the store, never in it, because the store may be lost
// (PLATFORM: bbolt on tmpfs) and an identity must not.
//
// Enrolment trusts the key the relay saw first. A damaged file is therefore an error for
// a person to look at: a silently remade identity would be a stranger to every relay and
// every paired phone.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
)

// File is the name of the identity file in the state directory.
const File = "identity.json"

const (
	formatVersion = 1
	randomUID     = 16 // bytes of a UID that no hardware gave: 128 bits
	minUID        = 8  // bytes: a flash unique ID has 64 bits
	maxUID        = 64
)

// ErrDamaged means that the identity file exists but is not a whole identity. Restore it
// from a backup; only if there is none, remove it, and the device becomes a new one.
var ErrDamaged = errors.New("identity is damaged")

// Source reads the UID of the hardware. It is asked once, at first start; afterwards the
// identity file counts, so that a board repair or a kernel update does not rename the device.
type Source interface {
	Name() string // such as "random", "spi-flash"; it is shown in the status
	// UID returns 8 to 64 bytes that no other device has.
	UID() ([]byte, error)
}

// Random is the source for boards without an ID of their own: 128 random bits.
type Random struct{}

// Name is "random".
func (Random) Name() string { return "random" }

// UID returns 16 random bytes.
func (Random) UID() ([]byte, error) {
	uid := make([]byte, randomUID)
	_, err := rand.Read(uid)
	return uid, err
}

// Identity is who the device is. It does not change while the daemon runs.
type Identity struct {
	ID     tether.DeviceID
	Source string // name of the Source that gave the UID

	uid []byte
	key *ecdsa.PrivateKey
}

// UID is the hardware UID that ID is derived from, for the factory. It is not to be
// changed, and not to be logged.
func (i *Identity) UID() []byte { return i.uid }

// Key signs for the device: ECDSA on P-256. It never leaves the device.
func (i *Identity) Key() crypto.Signer { return i.key }

// file is the content of identity.json.
type file struct {
	Version   int    `json:"version"`
	ID        string `json:"id"` // derived from UID; stands here for people and as a check
	UID       string `json:"uid"`
	UIDSource string `json:"uid_source"`
	Key       string `json:"key"` // PEM, PKCS #8
}

// Open reads the identity from the state directory, which must exist. If there is none, it
// asks source for the UID, makes a key and writes the file; made is true then. Errors are
// ErrDamaged, statefile.ErrPermissions, or those of the source and the file system.
func Open(dir string, source Source) (id *Identity, made bool, err error) {
	name := filepath.Join(dir, File)
	content, err := statefile.Read(name)
	switch {
	case err == nil:
		if id, err = parse(content); err != nil {
			return nil, false, fmt.Errorf("%s: %w: restore it from a backup; without one, remove it and the device gets a new identity", name, err)
		}
		return id, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, fmt.Errorf("read the identity: %w", err)
	}
	id, content, err = create(source)
	if err != nil {
		return nil, false, err
	}
	if err := statefile.Write(name, content); err != nil {
		return nil, false, fmt.Errorf("keep the identity: %w", err)
	}
	return id, true, nil
}

func create(source Source) (*Identity, []byte, error) {
	uid, err := source.UID()
	if err != nil {
		return nil, nil, fmt.Errorf("read the UID from %s: %w", source.Name(), err)
	}
	if len(uid) < minUID || len(uid) > maxUID {
		return nil, nil, fmt.Errorf("read the UID from %s: %d bytes, want %d to %d", source.Name(), len(uid), minUID, maxUID)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the device key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("write the device key: %w", err)
	}
	id := tether.NewDeviceID(uid)
	content, err := json.MarshalIndent(file{
		Version: formatVersion, ID: string(id), UID: hex.EncodeToString(uid), UIDSource: source.Name(),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}, "", "  ")
	if err != nil {
		return nil, nil, fmt.Errorf("write the identity: %w", err)
	}
	return &Identity{ID: id, Source: source.Name(), uid: uid, key: key}, append(content, '\n'), nil
}

// parse reads the file. Its errors never contain the UID or the key.
func parse(content []byte) (*Identity, error) {
	dec := json.NewDecoder(strings.NewReader(string(content)))
	dec.DisallowUnknownFields()
	var f file
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("%w: not the JSON of an identity", ErrDamaged)
	}
	if dec.More() {
		return nil, fmt.Errorf("%w: text after the JSON", ErrDamaged)
	}
	if f.Version != formatVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows %d", ErrDamaged, f.Version, formatVersion)
	}
	uid, err := hex.DecodeString(f.UID)
	if err != nil || len(uid) < minUID || len(uid) > maxUID {
		return nil, fmt.Errorf("%w: the UID is not %d to %d bytes in hex", ErrDamaged, minUID, maxUID)
	}
	id := tether.NewDeviceID(uid)
	if string(id) != f.ID {
		return nil, fmt.Errorf("%w: the ID does not follow from the UID", ErrDamaged)
	}
	block, rest := pem.Decode([]byte(f.Key))
	if block == nil || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("%w: the key is not PEM", ErrDamaged)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: the key is not PKCS #8", ErrDamaged)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: the key is not ECDSA on P-256", ErrDamaged)
	}
	return &Identity{ID: id, Source: f.UIDSource, uid: uid, key: key}, nil
}
