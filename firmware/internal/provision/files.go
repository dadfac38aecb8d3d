package provision

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// Files in the state directory.
const (
	CertFile      = "factory-cert.pem" // the device's certificate chain, leaf first
	AuthorityFile = "factory-ca.pem"   // the factory's authorities
	MarkFile      = "factory.json"     // how far provisioning came
	LabelFile     = "label.json"       // what the device's label says that cannot be computed
)

// mark is the content of MarkFile.
type mark struct {
	Batch   string `json:"batch,omitempty"`
	Station string `json:"station,omitempty"`
	Done    bool   `json:"done"` // the station has the device's confirmation
}

func (m mark) write(dir string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return statefile.Write(filepath.Join(dir, MarkFile), append(b, '\n'))
}

// readMark returns the zero mark when there is none, or one that cannot be read: then the
// station is asked once more, which does no harm.
func readMark(dir string) (m mark, err error) {
	b, err := statefile.Read(filepath.Join(dir, MarkFile))
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, nil
	}
	if err != nil {
		return mark{}, fmt.Errorf("read %s: %w", MarkFile, err)
	}
	if json.Unmarshal(b, &m) != nil {
		m = mark{}
	}
	return m, nil
}

// store writes what was granted. The certificate comes last: with it the rest is there.
func store(dir string, chain [][]byte, authority []byte, m mark) error {
	if err := m.write(dir); err != nil {
		return err
	}
	if err := statefile.Write(filepath.Join(dir, AuthorityFile), authority); err != nil {
		return err
	}
	return statefile.Write(filepath.Join(dir, CertFile), devcert.AppendPEM(nil, chain))
}

// Load reads what the factory has given: the chain (DER, leaf first) and the authorities
// that a new one must come from. A device that was not provisioned gives fs.ErrNotExist.
// The chain is read, not judged: Open does that.
func Load(dir string) (chain [][]byte, roots *x509.CertPool, err error) {
	content, err := statefile.Read(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read the factory certificate: %w", err)
	}
	if chain, err = devcert.ParsePEM(content); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", CertFile, err)
	}
	if content, err = statefile.Read(filepath.Join(dir, AuthorityFile)); err != nil {
		return nil, nil, fmt.Errorf("read the factory's authorities: %w", err)
	}
	if roots, err = devcert.ParseRoots(content); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", AuthorityFile, err)
	}
	return chain, roots, nil
}

// errForeign means that a certificate is good, but another device's.
var errForeign = errors.New("the certificate is for another device or another key")

// checkChain verifies chain for this device. A clock that is behind the certificate's
// begin counts as that: boards start in 1970.
func checkChain(chain [][]byte, roots *x509.CertPool, id tether.DeviceID, key crypto.PublicKey, earliest time.Time) (*x509.Certificate, error) {
	leaf, named, err := devcert.Parse(chain)
	if err != nil {
		return nil, err
	}
	if named != id || !devcert.SameKey(leaf.PublicKey, key) {
		return nil, errForeign
	}
	leaf, _, err = devcert.Verify(chain, roots, clock(earliest, leaf.NotBefore))
	return leaf, err
}

// clock is the present time, but not before either of the two.
func clock(a, b time.Time) time.Time {
	now := time.Now()
	for _, t := range []time.Time{a, b} {
		if now.Before(t) {
			now = t
		}
	}
	return now
}

// label is the content of LabelFile.
type label struct {
	Secret string `json:"secret"`
}

// Label returns the one-time secret on the device's label; "" when the device has none.
func Label(dir string) (secret string, err error) {
	b, err := statefile.Read(filepath.Join(dir, LabelFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the label: %w", err)
	}
	var l label
	if json.Unmarshal(b, &l) != nil || !provisioning.ValidSecret(l.Secret) {
		return "", fmt.Errorf("%s is damaged: remove it, then the device's label no longer pairs", LabelFile)
	}
	return l.Secret, nil
}

// MakeLabel is Label, and makes a secret when there is none.
func MakeLabel(dir string) (secret string, err error) {
	if secret, err = Label(dir); secret != "" || err != nil {
		return secret, err
	}
	secret = newSecret()
	b, err := json.Marshal(label{secret})
	if err != nil {
		return "", err
	}
	if err := statefile.Write(filepath.Join(dir, LabelFile), append(b, '\n')); err != nil {
		return "", fmt.Errorf("keep the label: %w", err)
	}
	return secret, nil
}

func readRandom(b []byte) { rand.Read(b) } // never fails (Go 1.24)
