package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// certEvery is how often the certificate's files are looked at.
const certEvery = 5 * time.Second

// certificate is the relay's certificate, read again when its files change. Connections
// that exist keep theirs.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               atomic.Pointer[tls.Certificate]
	stamp             string // of the version tried last; only look uses it after newCertificate
}

func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.stamp = c.stat()
	cert, err := loadCertificate(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	c.now.Store(cert)
	return c, nil
}

func loadCertificate(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	return &cert, nil
}

// watchFiles calls each look now and again until ctx is done.
func watchFiles(ctx context.Context, looks ...func()) error {
	t := time.NewTicker(certEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			for _, look := range looks {
				look()
			}
		}
	}
}

// look takes a new version over. One that does not hold, perhaps because only one of the
// two files has been replaced yet, is tried again when something changes.
func (c *certificate) look() {
	stamp := c.stat()
	if stamp == c.stamp {
		return
	}
	c.stamp = stamp
	cert, err := loadCertificate(c.certFile, c.keyFile)
	if err != nil {
		c.log.Error("new certificate not taken over, the one before stays", "err", err)
		return
	}
	c.now.Store(cert)
	c.log.Info("certificate taken over", "not_after", cert.Leaf.NotAfter)
}

func (c *certificate) stat() string { return stampOf([]string{c.certFile, c.keyFile}) }

// stampOf tells versions of files apart.
func stampOf(files []string) string {
	text := ""
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			text += err.Error()
			continue
		}
		text += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), " ")
	}
	return text
}

// config takes TLS 1.2 and 1.3, with forward secrecy and without CBC.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are all good
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.now.Load(), nil
		},
	}
}
