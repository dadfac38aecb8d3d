// Package edge is the gateway's HTTP server toward the LAN with the limits that a device
// on an open network needs: old TLS, floods of connections, slow loris, readers that do
// not read. HTTP/1.1 is served by tether/http1, which refuses what two parsers could read
// differently, and HTTP/2 likewise, unless the build tag no_http2 leaves that out. It knows
// nothing of what the handler does.
package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/cloudrest/cloudrest/tether/http1"
)

// Defaults of Config.
const (
	DefaultMaxHeader     = 32 << 10 // bytes
	DefaultHeadTimeout   = 10 * time.Second
	DefaultIdleTimeout   = 2 * time.Minute
	DefaultStall         = 30 * time.Second
	DefaultMaxConns      = 256
	DefaultMaxPerAddress = 48
	DefaultMaxStreams    = 32

	// HTTP/2 flow control in bytes (RFC 9113 §5.2). A connection's window has room for
	// the windows of all its streams: uploads that wait for a place in the origin would
	// otherwise use it up, and those that have a place could not go on to give it back.
	h2StreamWindow = 64 << 10
	h2MaxWindow    = 4<<20 - 64<<10
	h2PingAfter    = 30 * time.Second
	h2PingTimeout  = 15 * time.Second
)

// Config describes a Server. Zero values mean the defaults above.
type Config struct {
	Handler http.Handler // required

	// TLS gives the certificate; versions, suites and protocols are TLSConfig's. Nil
	// serves plain HTTP/1.1, for the redirect on port 80.
	TLS *tls.Config

	MaxHeader     int           // bytes of a request's head
	HeadTimeout   time.Duration // for a request's head, and for the TLS handshake
	IdleTimeout   time.Duration // between two requests
	Stall         time.Duration // longest time a client may neither send its body nor read its answer
	MaxConns      int           // connections at once
	MaxPerAddress int           // connections at once of one address, or IPv6 /64; loopback: any
	MaxStreams    int           // requests at once on one HTTP/2 connection

	Logger *slog.Logger
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	if c.Handler == nil {
		errs = append(errs, errors.New("edge: no handler"))
	}
	if t := c.TLS; t != nil && len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		errs = append(errs, errors.New("edge: TLS without a certificate"))
	}
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"header bytes", int64(c.MaxHeader)}, {"head timeout", int64(c.HeadTimeout)}, {"idle timeout", int64(c.IdleTimeout)},
		{"stall", int64(c.Stall)}, {"connections", int64(c.MaxConns)}, {"connections of one address", int64(c.MaxPerAddress)},
		{"HTTP/2 streams", int64(c.MaxStreams)},
	} {
		if v.value < 0 {
			errs = append(errs, fmt.Errorf("edge: %s: %d, want more than 0", v.name, v.value))
		}
	}
	return errors.Join(errs...)
}

// Stats counts connections.
type Stats struct {
	Open           int
	Accepted       uint64
	RefusedAll     uint64 // MaxConns was reached
	RefusedAddress uint64 // MaxPerAddress was reached
}

// Server serves HTTP/1.1 and, over TLS, HTTP/2 if http1.HasHTTP2. It is safe for concurrent use.
type Server struct {
	http   http1.Server
	limits limiter
}

// TLSConfig is what the gateway speaks: TLS 1.2 and 1.3 (RFC 9325 §3.1.1), ephemeral
// keys and AEAD ciphers only (§4.2). base gives the certificate and whatever is not said
// here; it is not changed.
func TLSConfig(base *tls.Config) *tls.Config {
	t := base.Clone()
	t.MinVersion, t.MaxVersion = tls.VersionTLS12, tls.VersionTLS13
	t.CipherSuites = []uint16{ // of TLS 1.2; those of 1.3 are all fine
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	t.NextProtos = []string{"h2", "http/1.1"}
	if !http1.HasHTTP2 {
		t.NextProtos = t.NextProtos[1:]
	}
	// Small records first speed up a page's first bytes over the internet; in the LAN
	// they only cost system calls.
	t.DynamicRecordSizingDisabled = true
	return t
}

// New makes a server. It starts nothing.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	number := func(v *int, def int) int {
		if *v == 0 {
			*v = def
		}
		return *v
	}
	duration := func(v *time.Duration, def time.Duration) time.Duration {
		if *v == 0 {
			*v = def
		}
		return *v
	}
	s := &Server{}
	s.limits.all = number(&c.MaxConns, DefaultMaxConns)
	s.limits.each = number(&c.MaxPerAddress, DefaultMaxPerAddress)
	s.http.Handler = c.Handler
	s.http.MaxHead = number(&c.MaxHeader, DefaultMaxHeader)
	s.http.HeadTimeout = duration(&c.HeadTimeout, DefaultHeadTimeout)
	s.http.IdleTimeout = duration(&c.IdleTimeout, DefaultIdleTimeout)
	s.http.IOTimeout = duration(&c.Stall, DefaultStall)
	s.http.Logger = c.Logger
	streams := number(&c.MaxStreams, DefaultMaxStreams)
	window := min(streams*h2StreamWindow, h2MaxWindow)
	s.http.HTTP2 = http.HTTP2Config{
		MaxConcurrentStreams:          streams,
		MaxReceiveBufferPerConnection: window,
		MaxReceiveBufferPerStream:     max(window/streams, 1),
		SendPingTimeout:               h2PingAfter,
		PingTimeout:                   h2PingTimeout,
	}
	if c.TLS != nil {
		s.http.TLS = TLSConfig(c.TLS)
	}
	return s, nil
}

// Serve accepts connections of l until Shutdown or Close, then returns nil. It closes
// l. It may be called for several listeners.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(&limitListener{Listener: l, limits: &s.limits})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the LAN: %w", err)
}

// Shutdown stops accepting, lets requests under way finish and returns when they have.
// When ctx ends first it cuts off the rest and returns the cause.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return fmt.Errorf("drain the LAN server: %w", err)
	}
	return nil
}

// Close cuts everything off.
func (s *Server) Close() error { return s.http.Close() }

// Stats returns the state of this moment.
func (s *Server) Stats() Stats {
	s.limits.mu.Lock()
	defer s.limits.mu.Unlock()
	st := s.limits.stats
	st.Open = s.limits.open
	return st
}
