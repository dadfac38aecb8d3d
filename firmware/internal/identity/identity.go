// Package identity keeps who the device is: the hardware UID that its ID is derived from,
// and the private key that proves it to relays. Both are made at first start and kept for
// life in one small file beside the store, never in it, because the store may be lost
// (PLATFORM: bbolt on tmpfs) and an identity must not.
//
// Enrolment trusts the key the relay saw first. A damaged file is therefore an error for
// a person to look at: a silently remade identity would be a stranger to every relay and
// every paired phone.
//
// The UID is no secret and proves nothing, but it ties the file to its board: at every start
// it is read again from the source that gave it. Another UID means that the content of the
// flash was copied to another board, and is refused. A source that cannot be read at the
// moment (a driver is missing after an update) is no reason to strand the device: it goes on
// and says that it is unverified. A random UID is never more than that.
//
// # File
//
// identity.json is a JSON object, mode 0600, written once: "version" 1, "id" (the device ID,
// for people and as a check), "uid" (hex), "uid_source", "uid_strength" ("software", "board",
// "hardware"; missing in files of the first program versions, then unknown), "key" (PEM,
// PKCS #8, ECDSA P-256). Unknown members are refused.
package identity

import (
	"bytes"
	"context"
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

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/proof"
)

// File is the name of the identity file in the state directory.
const File = "identity.json"

const (
	formatVersion = 1
	randomUID     = 16 // bytes: 128 bits

	unverifiable = "a random UID has no place on the board to read it again"
)

var (
	// ErrDamaged means that the identity file exists but is not a whole identity. Restore
	// it from a backup; only if there is none, remove it, and the device becomes a new one.
	ErrDamaged = errors.New("identity is damaged")

	// ErrClone means that the identity belongs to another board: the source that gave its
	// UID gives another one here.
	ErrClone = errors.New("identity belongs to another board")
)

// Hardware reads the UID of the board; *uid.Reader is one.
type Hardware interface {
	// First finds the UID of a board that has no identity yet.
	First(ctx context.Context) (board.UID, error)
	// Again reads the UID from the source that First named.
	Again(ctx context.Context, source string) (board.UID, error)
}

// random is the Hardware of a program that has none.
type random struct{}

func (random) First(context.Context) (board.UID, error) {
	b := make([]byte, randomUID)
	_, err := rand.Read(b)
	return board.UID{Bytes: b, Source: board.Random, Strength: board.Software}, err
}

func (random) Again(_ context.Context, source string) (board.UID, error) {
	if source == board.Random {
		return board.UID{}, errors.New(unverifiable)
	}
	return board.UID{}, fmt.Errorf("source %s: %w", source, board.ErrAbsent)
}

// Identity is who the device is. It does not change while the daemon runs.
type Identity struct {
	ID       tether.DeviceID
	Source   string         // word of the source that gave the UID, such as "spi=0.0"
	Strength board.Strength // of that source; zero in files of the first program versions
	Verified bool           // the source gave the same UID at this start; Strength says what that is worth
	Reason   string         // why it is not Verified

	uid []byte
	key *ecdsa.PrivateKey
}

// Key signs for the device: ECDSA on P-256. It never leaves the device. Nothing asks for
// more than a crypto.Signer, so that a secure element can stand here.
func (i *Identity) Key() crypto.Signer { return i.key }

// UID is the hardware UID that ID is derived from, for the factory and for a person at the
// device who asks for it. It is not to be changed, and not to be logged.
func (i *Identity) UID() []byte { return i.uid }

// Info is what may be told about an identity.
type Info struct {
	Device   tether.DeviceID `json:"device"`
	Source   string          `json:"uid_source"`
	Strength string          `json:"uid_strength"` // "software", "board", "hardware", "unknown"
	Verified bool            `json:"verified"`
	Reason   string          `json:"reason,omitempty"` // why not verified
	Key      string          `json:"key"`              // kind, such as "ECDSA P-256"
	KeyID    string          `json:"key_id"`           // proof.KeyID; the relay shows the same
}

// Info returns what may be told about the identity.
func (i *Identity) Info() (Info, error) {
	spki, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		return Info{}, fmt.Errorf("write the public key: %w", err)
	}
	return Info{i.ID, i.Source, i.Strength.String(), i.Verified, i.Reason, "ECDSA P-256", proof.KeyID(spki)}, nil
}

// file is the content of identity.json.
type file struct {
	Version   int    `json:"version"`
	ID        string `json:"id"` // derived from UID; stands here for people and as a check
	UID       string `json:"uid"`
	UIDSource string `json:"uid_source"`
	Strength  string `json:"uid_strength,omitempty"`
	Key       string `json:"key"` // PEM, PKCS #8
}

// Open reads the identity from the state directory, which must exist, and compares its UID
// with the hardware. If there is none, it takes the UID of the hardware, makes a key and
// writes the file; made is true then. Without hardware (nil) the UID is random. Errors are
// ErrDamaged, ErrClone, statefile.ErrPermissions, or those of the hardware and the file
// system.
func Open(ctx context.Context, dir string, hw Hardware) (id *Identity, made bool, err error) {
	return open(ctx, dir, hw, statefile.Write)
}

// Load is Open for looking on: if there is no identity it returns fs.ErrNotExist.
func Load(ctx context.Context, dir string, hw Hardware) (*Identity, error) {
	name := filepath.Join(dir, File)
	content, err := statefile.Read(name)
	if err != nil {
		return nil, fmt.Errorf("read the identity: %w", err)
	}
	id, err := parse(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: restore it from a backup; without one, remove it and the device gets a new identity", name, err)
	}
	if hw == nil {
		hw = random{}
	}
	switch u, err := hw.Again(ctx, id.Source); {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("read the UID: %w", context.Cause(ctx))
	case err != nil:
		id.Reason = err.Error()
	case !bytes.Equal(u.Bytes, id.uid):
		return nil, fmt.Errorf("%s: %w: %s gives another UID here. If this storage was copied or moved from another device, remove the file, and this board gets an identity of its own; if the part was exchanged in a repair, take %s out of the UID sources, and the device keeps its identity",
			name, ErrClone, id.Source, id.Source)
	default:
		id.Verified = true
	}
	return id, nil
}

func open(ctx context.Context, dir string, hw Hardware, write func(name string, content []byte) error) (id *Identity, made bool, err error) {
	id, err = Load(ctx, dir, hw)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, false, err
	}
	id, content, err := create(ctx, hw)
	if err != nil {
		return nil, false, err
	}
	// Nobody has seen this identity yet. If the power goes before write returns, the next
	// start finds all of it or nothing.
	if err := write(filepath.Join(dir, File), content); err != nil {
		return nil, false, fmt.Errorf("keep the identity: %w", err)
	}
	return id, true, nil
}

func create(ctx context.Context, hw Hardware) (*Identity, []byte, error) {
	if hw == nil {
		hw = random{}
	}
	u, err := hw.First(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the UID: %w", err)
	}
	if err := u.Check(); err != nil {
		return nil, nil, fmt.Errorf("read the UID from %s: %w", u.Source, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the device key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("write the device key: %w", err)
	}
	id := tether.NewDeviceID(u.Bytes)
	content, err := json.MarshalIndent(file{
		Version: formatVersion, ID: string(id), UID: hex.EncodeToString(u.Bytes), UIDSource: u.Source, Strength: u.Strength.String(),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}, "", "  ")
	if err != nil {
		return nil, nil, fmt.Errorf("write the identity: %w", err)
	}
	made := &Identity{ID: id, Source: u.Source, Strength: u.Strength, Verified: u.Source != board.Random, uid: u.Bytes, key: key}
	if !made.Verified {
		made.Reason = unverifiable
	}
	return made, append(content, '\n'), nil
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
	if err != nil || len(uid) < board.MinUID || len(uid) > board.MaxUID {
		return nil, fmt.Errorf("%w: the UID is not %d to %d bytes in hex", ErrDamaged, board.MinUID, board.MaxUID)
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
	return &Identity{ID: id, Source: f.UIDSource, Strength: board.ParseStrength(f.Strength), uid: uid, key: key}, nil
}
