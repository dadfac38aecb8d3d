package ws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether"
)

// DialConfig says how to reach a relay.
type DialConfig struct {
	URL    *url.URL // ws or wss; the path is used as given, "" means tether.TetherPath
	Addr   string   // ip:port to connect to; "" resolves the URL's host
	TLS    *tls.Config
	Proxy  func(*http.Request) (*url.URL, error) // HTTP proxy as in http.Transport; nil: none
	Header http.Header                           // sent with the upgrade
	// Certificate is shown to a relay that asks for one, in TLS 1.3 only, where the path
	// cannot read it; nil: there is none (SPEC.md §4.11).
	Certificate *tls.Certificate
}

// errProtocol is what a relay that upgrades to nothing we speak deserves.
var errProtocol = errors.New("the relay chose no subprotocol that we speak")

// Dial connects and upgrades. ctx bounds the whole of it, not what follows. It fails with
// *HTTPError when the relay answered something else than 101.
func Dial(ctx context.Context, cfg DialConfig) (*Conn, error) {
	u := *cfg.URL
	if u.Path == "" || u.Path == "/" {
		u.Path = tether.TetherPath
	}
	d := websocket.Dialer{
		TLSClientConfig: clientTLS(cfg.TLS, cfg.Certificate),
		ReadBufferSize:  readBuffer, WriteBufferSize: writeBuffer, WriteBufferPool: &writeBuffers,
		Subprotocols: []string{tether.Subprotocol},
	}
	var proxy *url.URL
	if cfg.Proxy != nil {
		// The proxy is chosen for the URL in its HTTP form, as http.Transport would.
		asked := u
		asked.Scheme = strings.Replace(u.Scheme, "ws", "http", 1)
		var err error
		if proxy, err = cfg.Proxy(&http.Request{Method: http.MethodGet, URL: &asked, Header: http.Header{}}); err != nil {
			return nil, fmt.Errorf("choose a proxy for %s: %w", u.Host, err)
		}
	}
	d.NetDialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if proxy == nil && cfg.Addr != "" {
			addr = cfg.Addr
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	if proxy != nil {
		d.Proxy = http.ProxyURL(proxy)
	}
	c, resp, err := d.DialContext(ctx, u.String(), cfg.Header)
	switch {
	case err != nil && resp != nil:
		return nil, httpError(resp)
	case err != nil:
		return nil, fmt.Errorf("dial %s: %w", u.Host, err)
	case c.Subprotocol() != tether.Subprotocol:
		c.Close()
		return nil, errProtocol
	}
	return newConn(c), nil
}

// clientTLS is cfg with what a long-lived connection of 16 KB messages wants.
func clientTLS(cfg *tls.Config, cert *tls.Certificate) *tls.Config {
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"}  // an HTTP/2 answer cannot be upgraded
	cfg.DynamicRecordSizingDisabled = true // small records double the cost of a message
	if cert != nil {
		cfg.NextProtos = []string{tether.ALPN, "http/1.1"}
		cfg.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if r.Version < tls.VersionTLS13 {
				return &tls.Certificate{}, nil
			}
			return cert, nil // whoever asks for other authorities is to say what it misses
		}
	}
	return cfg
}

func httpError(resp *http.Response) *HTTPError {
	const most = 200
	text, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	e := &HTTPError{Status: resp.StatusCode, Text: strings.TrimSpace(string(text))}
	after := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseUint(after, 10, 31); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	} else if t, err := http.ParseTime(after); err == nil {
		e.RetryAfter = max(0, time.Until(t))
	}
	return e
}
