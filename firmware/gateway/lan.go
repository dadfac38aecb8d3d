package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Limits of the LAN listeners. A board with 64 MB has room for about this.
const (
	maxConnections       = 512 // open at once on one listener
	maxConnectionsClient = 64  // of one client address; browsers open 6 per host
	maxHeaderBytes       = 64 << 10
	headerTimeout        = 10 * time.Second  // to read a request's head: against slow loris
	idleTimeout          = 120 * time.Second // of a connection between requests
	maxH2Streams         = 64                // of one connection
)

// suites are the TLS 1.2 suites with forward secrecy and without CBC that fit an ECDSA
// certificate; TLS 1.3 chooses its own.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}

// listen binds addr. Its error says what to do about the usual causes.
func listen(ctx context.Context, key, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("listen on %s: the port is in use: stop the program that has it (ss -ltnp 'sport = :%s' names it; on OpenWrt that is often uhttpd) or choose another with --%s: %w", addr, port, key, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: not permitted: ports below 1024 need root or the capability net_bind_service; or choose another with --%s: %w", addr, key, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: no interface has this address: give one that the machine has, or :port for all, with --%s: %w", addr, key, err)
	}
	return nil, fmt.Errorf("listen on %s (--%s): %w", addr, key, err)
}

// newServer is an http.Server with the limits above. base ends the requests that are still
// running when the grace at the end is over.
func newServer(base context.Context, h http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxH2Streams},
		// Failed handshakes of phones that do not know the certificate yet, port scans: only
		// for those who look for them.
		ErrorLog: log.New(debugWriter{logger}, "", 0),
	}
}

// debugWriter takes the lines of an http.Server's own log.
type debugWriter struct{ logger *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.logger.Debug("http server", "err", strings.TrimSpace(string(p)))
	return len(p), nil
}

func serverTLS(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   suites,
		GetCertificate: get,
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// redirect sends a client from HTTP to HTTPS with 308, which keeps method and body
// (RFC 9110 §15.4.9). port is that of the HTTPS listener.
func redirect(port func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		if host == "" || strings.ContainsAny(host, "/\\@?# ") {
			writeError(w, http.StatusBadRequest, "the Host field is missing or not a host")
			return
		}
		target := host
		if p := port(); p != "443" {
			target = net.JoinHostPort(host, p)
		} else if strings.Contains(host, ":") {
			target = "[" + host + "]"
		}
		path := r.URL.EscapedPath()
		if !strings.HasPrefix(path, "/") {
			path = "/" // CONNECT and "*" have none
		}
		if r.URL.RawQuery != "" {
			path += "?" + r.URL.RawQuery
		}
		w.Header().Set("Connection", "close") // the next request comes by HTTPS
		w.Header().Set("Location", "https://"+target+path)
		w.WriteHeader(http.StatusPermanentRedirect)
	})
}

// limitListener refuses connections over a bound, in all and by client: what is over is
// closed at once, so that one client cannot keep the others out.
type limitListener struct {
	net.Listener
	total, each int

	mu      sync.Mutex
	open    int                // guarded by mu
	clients map[netip.Addr]int // guarded by mu
	refused int64              // guarded by mu
}

func limit(l net.Listener, total, each int) *limitListener {
	return &limitListener{Listener: l, total: total, each: each, clients: map[netip.Addr]int{}}
}

// stats returns how many connections are open and how many were refused.
func (l *limitListener) stats() (open int, refused int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open, l.refused
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := clientOf(c.RemoteAddr())
		if l.take(who) {
			return &limitConn{Conn: c, release: sync.OnceFunc(func() { l.release(who) })}, nil
		}
		c.Close()
	}
}

func (l *limitListener) take(who netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// On loopback all programs of the device share one address.
	if l.open >= l.total || l.clients[who] >= l.each && !who.IsLoopback() {
		l.refused++
		return false
	}
	l.open++
	l.clients[who]++
	return true
}

func (l *limitListener) release(who netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.clients[who]--; l.clients[who] == 0 {
		delete(l.clients, who)
	}
}

// clientOf is whom a connection is counted for: an IPv6 client has a whole /64.
func clientOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

type limitConn struct {
	net.Conn
	release func()
}

func (c *limitConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// NetConn lets the layers above set socket options on the connection inside.
func (c *limitConn) NetConn() net.Conn { return c.Conn }

// baseURL is the https URL of the gateway at addr; the port is left out if it is 443.
func baseURL(addr netip.Addr, port uint16) string {
	addr = addr.Unmap().WithZone("") // a zone means something on this machine only
	host := addr.String()
	if addr.Is6() {
		host = "[" + host + "]"
	}
	if port != 443 {
		host += ":" + strconv.Itoa(int(port))
	}
	return "https://" + host + "/"
}
