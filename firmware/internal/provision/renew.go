package provision

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
)

// Paths of the renewal, which the relay begins, over the tether only.
const (
	RequestPath     = tether.OwnPrefix + "v1/certificate/request" // GET: a PKCS #10 request
	CertificatePath = tether.OwnPrefix + "v1/certificate"         // PUT: the new chain in PEM
)

const maxRenewal = 16 << 10 // bytes of PEM: a chain of devcert.MaxChain has under 6 KiB

// Certificates keeps the certificate of a provisioned device: for the proof of the tether,
// and for its renewal, which it serves. It is safe for concurrent use.
type Certificates struct {
	dir      string
	id       tether.DeviceID
	key      crypto.Signer
	roots    *x509.CertPool
	earliest time.Time
	changed  func()

	mu    sync.Mutex // guards the fields below
	chain [][]byte
	leaf  *x509.Certificate
}

// Open reads the certificate of the device id with its key from the state directory. A
// device that was not provisioned gives fs.ErrNotExist, which is no mistake: relays with
// trust on first use take it. A certificate that has ended is taken, since the relay may
// want to renew it. earliest is the build time; changed, if not nil, is called after
// each renewal.
func Open(dir string, id tether.DeviceID, key crypto.Signer, earliest time.Time, changed func()) (*Certificates, error) {
	chain, roots, err := Load(dir)
	if err != nil {
		return nil, err
	}
	leaf, err := checkChain(chain, roots, id, key.Public(), earliest)
	if errors.Is(err, devcert.ErrExpired) {
		leaf, _, err = devcert.Parse(chain)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", CertFile, err)
	}
	return &Certificates{dir: dir, id: id, key: key, roots: roots, earliest: earliest, changed: changed, chain: chain, leaf: leaf}, nil
}

// Chain is what HELLO carries (SPEC.md §4): DER, leaf first. It is not to be changed.
func (c *Certificates) Chain() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chain
}

// Leaf is the device's certificate; it is not to be changed.
func (c *Certificates) Leaf() *x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf
}

// GetClientCertificate fits tls.Config.
func (c *Certificates) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &tls.Certificate{Certificate: c.chain, PrivateKey: c.key, Leaf: c.leaf}, nil
}

// ServeHTTP serves RequestPath and CertificatePath. Who may ask is the caller's to decide:
// it is meant for the tether.
func (c *Certificates) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	switch {
	case r.URL.Path == RequestPath && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		csr, err := devcert.Request(c.id, c.key)
		if err != nil {
			refuse(w, http.StatusInternalServerError, err)
			return
		}
		h.Set("Content-Type", "application/pkcs10") // RFC 5967
		w.Write(csr)
	case r.URL.Path == CertificatePath && r.Method == http.MethodPut:
		body, err := io.ReadAll(io.LimitReader(r.Body, maxRenewal+1))
		if err != nil {
			return // nobody is there any more
		}
		if len(body) > maxRenewal {
			refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("at most %d bytes are taken", maxRenewal))
			return
		}
		switch err := c.Renew(body); {
		case errors.Is(err, errKeep):
			refuse(w, http.StatusInternalServerError, err)
		case err != nil:
			refuse(w, http.StatusForbidden, err)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	default:
		if h.Set("Allow", "PUT"); r.URL.Path == RequestPath {
			h.Set("Allow", "GET, HEAD")
		}
		refuse(w, http.StatusMethodNotAllowed, errors.New("the request is read with GET, the certificate written with PUT"))
	}
}

var (
	errKeep  = errors.New("keep the certificate")
	errSame  = errors.New("it does not end later than the one the device has")
	errNoPEM = errors.New("not a PEM chain")
)

// Renew takes a new chain in PEM if it is for this device and its key, comes from the
// factory's authority and ends later than the present one. Taking the present one again is
// no mistake: the relay may not have heard the answer.
func (c *Certificates) Renew(pem []byte) error {
	chain, err := devcert.ParsePEM(pem)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoPEM, err)
	}
	leaf, err := checkChain(chain, c.roots, c.id, c.key.Public(), c.earliest)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if !leaf.NotAfter.After(c.leaf.NotAfter) {
		same := leaf.Equal(c.leaf)
		c.mu.Unlock()
		if same {
			return nil
		}
		return errSame
	}
	if err = statefile.Write(filepath.Join(c.dir, CertFile), devcert.AppendPEM(nil, chain)); err == nil {
		c.chain, c.leaf = chain, leaf
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %w", errKeep, err)
	}
	if c.changed != nil {
		c.changed()
	}
	return nil
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(struct {
		Error   int    `json:"error"`
		Message string `json:"message"`
	}{status, err.Error()})
}
