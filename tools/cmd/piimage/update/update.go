// Package update checks and carries software updates of devices that run an image. What a
// device is to install is a bundle: a manifest in JSON, the Ed25519 signature (RFC 8032)
// over its bytes, and the parts that the manifest names with size and SHA-256, as one tar.
// It is the scheme of a release's manifest.json, which tools/pack writes, with the board.
//
// The device looks at the signature first, and at nothing else before. It writes the parts
// where nothing runs from, and starts them only after all digests were right.
package update

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// The names in a bundle.
const (
	ManifestFile  = "manifest.json"
	SignatureFile = ManifestFile + ".sig" // 64 bytes over manifest.json
)

// Name and Format tell this kind of manifest from others that the same key may sign.
const (
	Name   = "cloudrest-image"
	Format = 1
)

const (
	maxManifest = 64 << 10 // bytes, read before the signature is checked
	maxParts    = 8
)

// Manifest says what an update is.
type Manifest struct {
	Format  int    `json:"format"`
	Name    string `json:"name"`
	Board   string `json:"board"` // as in piimage build --board
	Version string `json:"version"`
	// Sequence grows with every version: the time of its commit in seconds. A device takes
	// none that is smaller than that of the newest version it has had.
	Sequence int64 `json:"sequence"`
	// DowngradeFrom is a decision of who signs: devices whose newest version was at most this
	// one take the update although it is older. A device that was updated since does not, so
	// nobody else can use the decision again later.
	DowngradeFrom int64  `json:"downgrade_from,omitempty"`
	Files         []Part `json:"files"`
}

// Part is one thing to write.
type Part struct {
	Name   string `json:"name"` // such as "root" or "kernel"; which there are is the board's matter
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// The reasons for which a device refuses.
var (
	ErrSignature = errors.New("the signature of the update is wrong")
	ErrOther     = errors.New("the update is for something else")
	ErrOlder     = errors.New("the update is older than what the device has had")
	ErrDigest    = errors.New("the update is damaged")
)

// Device is what the update must fit.
type Device struct {
	Key      ed25519.PublicKey
	Board    string
	Sequence int64 // of the newest version that was accepted
	Newer    bool  // refuse the same sequence too: whoever asks proved nothing about themselves
}

// Open checks the signature and whether the update is for this device, and returns what
// the manifest says: ErrSignature, ErrOther or ErrOlder, wrapped.
func Open(text, signature []byte, d Device) (*Manifest, error) {
	if len(d.Key) != ed25519.PublicKeySize || len(text) > maxManifest || !ed25519.Verify(d.Key, text, signature) {
		return nil, ErrSignature
	}
	m := new(Manifest)
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOther, err)
	}
	if m.Name != Name || m.Format != Format {
		return nil, fmt.Errorf("%w: a manifest of %q, format %d; want %q, %d", ErrOther, m.Name, m.Format, Name, Format)
	}
	if m.Board != d.Board {
		return nil, fmt.Errorf("%w: the board %q, this is %q", ErrOther, m.Board, d.Board)
	}
	if len(m.Files) == 0 || len(m.Files) > maxParts {
		return nil, fmt.Errorf("%w: %d parts, want 1 to %d", ErrOther, len(m.Files), maxParts)
	}
	older := m.Sequence < d.Sequence && d.Sequence > m.DowngradeFrom
	if older || d.Newer && m.Sequence == d.Sequence {
		return nil, fmt.Errorf("%w: sequence %d, the device has had %d", ErrOlder, m.Sequence, d.Sequence)
	}
	return m, nil
}

// Store takes the parts.
type Store interface {
	// Room tells how many bytes the part may have; 0 if there is no such part.
	Room(part string) int64
	// Put writes a part where nothing runs from.
	Put(part string, size int64, r io.Reader) error
	// Verify reads back what was written and tells whether it has this SHA-256.
	Verify(part string, size int64, sum [sha256.Size]byte) error
	// Complete reports whether these parts are all that a version needs.
	Complete(parts []string) bool
}

// Receive reads a bundle and puts its parts into s. When it returns nil, they may be
// started; with an error nothing may: what was written is incomplete or somebody else's.
// begin is called before the first byte is written.
func Receive(r io.Reader, d Device, s Store, begin func(*Manifest) error) (*Manifest, error) {
	in := tar.NewReader(r)
	m, err := receiveHead(in, d)
	if err != nil {
		return nil, err
	}
	var names []string
	sums := make([][sha256.Size]byte, len(m.Files))
	for i, p := range m.Files {
		if p.Size <= 0 || p.Size > s.Room(p.Name) {
			return nil, fmt.Errorf("%w: %s has %d bytes, there is room for %d", ErrOther, p.Name, p.Size, s.Room(p.Name))
		}
		if n, err := hex.Decode(sums[i][:], []byte(p.SHA256)); len(p.SHA256) != 2*sha256.Size || err != nil || n != sha256.Size {
			return nil, fmt.Errorf("%w: the digest of %s is %q", ErrOther, p.Name, p.SHA256)
		}
		if slices.Contains(names, p.Name) {
			return nil, fmt.Errorf("%w: %s twice", ErrOther, p.Name)
		}
		names = append(names, p.Name)
	}
	if !s.Complete(names) {
		return nil, fmt.Errorf("%w: the parts %q are not a whole version", ErrOther, names)
	}
	if err := begin(m); err != nil {
		return nil, err
	}
	for i, p := range m.Files {
		if n, err := next(in, p.Name, p.Size); err != nil {
			return nil, err
		} else if n != p.Size {
			return nil, fmt.Errorf("%w: %s has %d bytes, the manifest says %d", ErrDigest, p.Name, n, p.Size)
		}
		h := sha256.New()
		if err := s.Put(p.Name, p.Size, io.TeeReader(in, h)); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: %w", ErrDigest, err)
			}
			return nil, fmt.Errorf("write %s: %w", p.Name, err)
		}
		if !bytes.Equal(h.Sum(nil), sums[i][:]) {
			return nil, fmt.Errorf("%w: the digest of %s is not the one that was signed", ErrDigest, p.Name)
		}
		if err := s.Verify(p.Name, p.Size, sums[i]); err != nil {
			return nil, fmt.Errorf("read back %s: %w", p.Name, err)
		}
	}
	return m, nil
}

// Check reads the beginning of a bundle, as Head cuts it off, and says what Receive would.
func Check(r io.Reader, d Device) (*Manifest, error) { return receiveHead(tar.NewReader(r), d) }

func receiveHead(in *tar.Reader, d Device) (*Manifest, error) {
	small := func(name string) ([]byte, error) {
		if _, err := next(in, name, maxManifest); err != nil {
			return nil, err
		}
		text, err := io.ReadAll(in)
		if err != nil {
			err = fmt.Errorf("%w: read %s: %w", ErrDigest, name, err)
		}
		return text, err
	}
	text, err := small(ManifestFile)
	if err != nil {
		return nil, err
	}
	signature, err := small(SignatureFile)
	if err != nil {
		return nil, err
	}
	return Open(text, signature, d)
}

// next goes to the next entry of a bundle, which must be what is wanted.
func next(in *tar.Reader, want string, limit int64) (int64, error) {
	h, err := in.Next()
	if err != nil {
		return 0, fmt.Errorf("%w: look for %s: %w", ErrDigest, want, noEOF(err))
	}
	if h.Name != want || h.Typeflag != tar.TypeReg || h.Size > limit {
		return 0, fmt.Errorf("%w: %q with %d bytes in the place of %s", ErrDigest, h.Name, h.Size, want)
	}
	return h.Size, nil
}

// Head returns the beginning of a bundle, with manifest and signature: enough for Check.
func Head(r io.Reader) ([]byte, error) {
	in := tar.NewReader(r)
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, name := range []string{ManifestFile, SignatureFile} {
		size, err := next(in, name, maxManifest)
		if err != nil {
			return nil, err
		}
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := io.Copy(out, in); err != nil {
			return nil, noEOF(err)
		}
	}
	return b.Bytes(), out.Close()
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Sign returns the bytes of the manifest and the signature over them.
func Sign(m *Manifest, key ed25519.PrivateKey) (text, signature []byte, err error) {
	text, err = json.MarshalIndent(m, "", "\t")
	if err != nil {
		return nil, nil, err
	}
	text = append(text, '\n')
	return text, ed25519.Sign(key, text), nil
}

// Write writes a bundle; open returns the content of a part.
func Write(w io.Writer, m *Manifest, key ed25519.PrivateKey, open func(part string) io.Reader) error {
	text, signature, err := Sign(m, key)
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := io.CopyN(out, r, size)
		return err
	}
	if err := put(ManifestFile, int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	if err := put(SignatureFile, int64(len(signature)), bytes.NewReader(signature)); err != nil {
		return err
	}
	for _, p := range m.Files {
		if err := put(p.Name, p.Size, open(p.Name)); err != nil {
			return fmt.Errorf("write %s: %w", p.Name, err)
		}
	}
	return out.Close()
}
