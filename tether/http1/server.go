// Package http1 is the HTTP server of gateway and relay: HTTP/1.1 by RFC 9112 and, over
// TLS, HTTP/2 by RFC 9113, strict and lean. Handlers are ordinary http.Handlers.
//
// It exists for two reasons. A gateway must refuse a request that two parsers could read
// differently (RFC 9112 §11.2), where net/http repairs some of them before a handler can
// see it. And on a 400 MHz router the server is most of the gateway's work: here an
// answer of a few kilobytes is one read, one write, no timer, no second goroutine.
//
// Limits are kept by one sweep over all connections twice a second, so that no request
// pays for setting deadlines. The sweep also notices clients that went away.
package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Defaults of Server.
const (
	DefaultMaxHead     = 32 << 10
	DefaultHeadTimeout = 10 * time.Second
	DefaultIdleTimeout = 75 * time.Second
	DefaultIOTimeout   = 30 * time.Second

	maxTarget = 16 << 10 // bytes of a request target; longer: 414
	maxFields = 100      // header fields of a request; more: 431

	tick = 500 * time.Millisecond // between two sweeps
)

// Server serves connections. Set the fields before Serve; the zero value of each means
// its default. All methods are safe for concurrent use.
type Server struct {
	Handler http.Handler
	// TLS makes the listener speak TLS, and HTTP/2 where "h2" is in NextProtos, which it
	// must not be unless HasHTTP2. nil: plain HTTP/1.1.
	TLS *tls.Config
	// HTTP2 bounds HTTP/2 connections: MaxConcurrentStreams (default 100),
	// MaxReceiveBufferPerStream (default 64 KiB), MaxReceiveBufferPerConnection (default: of
	// all streams; never less than 64 KiB), SendPingTimeout (while requests run; default:
	// never), PingTimeout (default 15 s). The limits in time below hold for HTTP/2 too.
	HTTP2 http.HTTP2Config

	MaxHead     int           // bytes of a request's head; default 32 KiB; more: 431
	HeadTimeout time.Duration // TLS handshake; first byte of a head to its end (slow loris); default 10 s
	IdleTimeout time.Duration // between requests; default 75 s
	IOTimeout   time.Duration // one blocked read of a body, one blocked write of an answer; default 30 s
	Logger      *slog.Logger
	// TLSFailed, if set, is told of each TLS handshake that failed. The state has what the
	// client has shown until then; none of it is proved.
	TLSFailed func(remoteAddr string, state tls.ConnectionState, err error)

	ticks   atomic.Uint64 // sweeps so far: the clock of all limits
	closing atomic.Bool   // no more requests

	mu        sync.Mutex
	conns     map[*conn]struct{} // guarded by mu
	listeners map[net.Listener]struct{}
	running   sync.WaitGroup // connections and sweepers
}

// Serve accepts connections until l fails or the server is closed; then it returns
// http.ErrServerClosed or l's error. It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.begin(l); err != nil {
		l.Close()
		return err
	}
	done := make(chan struct{})
	defer func() {
		close(done)
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	s.running.Go(func() { s.sweep(done) })
	var pause time.Duration
	for {
		c, err := l.Accept()
		if s.closing.Load() {
			if err == nil {
				c.Close()
			}
			return http.ErrServerClosed
		}
		if err != nil {
			// Most likely out of file descriptors: others will close, wait instead of spinning.
			if isTransient(err) {
				pause = min(max(2*pause, 5*time.Millisecond), time.Second)
				s.log().Warn("accept", "err", err, "retry_in", pause)
				time.Sleep(pause)
				continue
			}
			return err
		}
		pause = 0
		cn := &conn{srv: s, raw: c, rwc: c, remote: c.RemoteAddr().String()}
		if !s.track(cn) {
			c.Close()
			return http.ErrServerClosed
		}
		go func() {
			defer s.running.Done()
			cn.serve()
		}()
	}
}

// isTransient reports whether accept(2) may work again later: the connection broke before
// it was accepted, or the system is short of something.
func isTransient(err error) bool {
	for _, e := range []syscall.Errno{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPROTO, syscall.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) begin(l net.Listener) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return http.ErrServerClosed
	}
	if s.conns == nil {
		s.conns, s.listeners = map[*conn]struct{}{}, map[net.Listener]struct{}{}
	}
	s.listeners[l] = struct{}{}
	return nil
}

func (s *Server) track(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.conns[c] = struct{}{}
	s.running.Add(1)
	c.enter(phaseHandshake)
	return true
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// sweep keeps every limit in time, until done is closed and no connection is left.
func (s *Server) sweep(done <-chan struct{}) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-done:
			if !s.closing.Load() {
				return // another listener's sweep goes on, or none is needed
			}
			s.mu.Lock()
			left := len(s.conns)
			s.mu.Unlock()
			if left == 0 {
				return
			}
			<-t.C
		}
		now := s.ticks.Add(1)
		s.mu.Lock()
		for c := range s.conns {
			c.check(now)
		}
		s.mu.Unlock()
	}
}

// Shutdown stops accepting, lets running requests finish and closes idle connections.
// When ctx ends first, what still runs is cut off and ctx's cause is returned. Hijacked
// connections are closed while their handlers run, and are their owners' afterwards.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Store(true)
	s.mu.Lock()
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		switch p, _ := c.phase(); p {
		case phaseIdle, phaseHijacked:
			c.raw.Close()
		case phaseHTTP2:
			s.running.Go(func() { c.h2.goAway(false) })
		}
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { // ends as soon as the connections do, which Close sees to
		s.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		s.Close()
		<-ended
		return context.Cause(ctx)
	}
}

// Close cuts every connection off. Handlers see their context end.
func (s *Server) Close() error {
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.raw.Close()
		c.gone(errServerClosed)
	}
	return nil
}

var errServerClosed = errors.New("the server is closing")

func (s *Server) log() *slog.Logger {
	if s.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Logger
}

func (s *Server) maxHead() int {
	if s.MaxHead <= 0 {
		return DefaultMaxHead
	}
	return s.MaxHead
}

func (s *Server) headTimeout() time.Duration { return or(s.HeadTimeout, DefaultHeadTimeout) }
func (s *Server) idleTimeout() time.Duration { return or(s.IdleTimeout, DefaultIdleTimeout) }
func (s *Server) ioTimeout() time.Duration   { return or(s.IOTimeout, DefaultIOTimeout) }

func or(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}
