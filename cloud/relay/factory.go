package relay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
	"github.com/cloudrest/cloudrest/tether/devcert"
)

// authorities are the factories' whose devices may come, read again when their files
// change. Devices that are connected stay.
type authorities struct {
	files []string
	log   *slog.Logger
	now   atomic.Pointer[x509.CertPool]
	mu    sync.Mutex // one look at a time
	stamp string     // of the version tried last; guarded by mu
}

func newAuthorities(files []string, log *slog.Logger) (*authorities, error) {
	a := &authorities{files: files, log: log, stamp: stampOf(files)}
	pool, err := loadRoots(files)
	if err != nil {
		return nil, err
	}
	a.now.Store(pool)
	return a, nil
}

// loadRoots reads the certificates of all files.
func loadRoots(files []string) (*x509.CertPool, error) {
	var all []byte
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err == nil {
			_, err = devcert.ParseRoots(text)
		}
		if err != nil {
			return nil, fmt.Errorf("read factory authority %s: %w", name, err)
		}
		all = append(append(all, text...), '\n')
	}
	return devcert.ParseRoots(all)
}

// look takes a new version over; one that does not hold is tried again when something
// changes.
func (a *authorities) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	stamp := stampOf(a.files)
	if stamp == a.stamp {
		return
	}
	a.stamp = stamp
	pool, err := loadRoots(a.files)
	if err != nil {
		a.log.Error("new factory authorities not taken over, the ones before stay", "err", err)
		return
	}
	a.now.Store(pool)
	a.log.Info("factory authorities taken over")
}

// loadIssuer reads the authority that renews certificates. It must lead to one of the
// factory's, or no device would take what it issues.
func loadIssuer(certFile, keyFile string, roots *x509.CertPool) (*devcert.Authority, error) {
	a, err := devcert.LoadAuthority(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	between := x509.NewCertPool()
	for _, c := range a.Chain[1:] {
		between.AddCert(c)
	}
	_, err = a.Chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("%s does not lead to a factory authority: %w", certFile, err)
	}
	return a, nil
}

// now is this host's clock, but never before the build: a host that starts with its clock
// in 1970 must not call every certificate one of the future.
func now() time.Time {
	t := time.Now()
	if built := buildinfo.Get().Time; t.Before(built) {
		return built
	}
	return t
}

// askDevices makes cfg ask devices that can show one for a client certificate, and nobody
// else (SPEC.md §4.11). Which one it is, is looked at with the HELLO, where a refusal can
// be put into words; TLS only sees to it that the peer has the key.
func (a *authorities) askDevices(cfg *tls.Config) {
	type version struct {
		roots *x509.CertPool
		cfg   *tls.Config
	}
	base := cfg.Clone()
	var last atomic.Pointer[version]
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// Before TLS 1.3 the certificate would cross the path in the clear.
		if !slices.Contains(hello.SupportedProtos, tether.ALPN) || !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return nil, nil
		}
		roots := a.now.Load()
		v := last.Load()
		if v == nil || v.roots != roots {
			c := base.Clone()
			c.MinVersion = tls.VersionTLS13
			c.NextProtos = []string{"http/1.1"}
			c.ClientAuth, c.ClientCAs = tls.RequireAnyClientCert, roots
			c.SessionTicketsDisabled = true // each tether shows its certificate; nobody would come back with a ticket
			v = &version{roots, c}
			last.Store(v)
		}
		return v.cfg, nil
	}
}

// errFactory is a mistake in the fields of Config about the factory.
var errFactory = errors.New("only with enroll " + EnrollFactory)
