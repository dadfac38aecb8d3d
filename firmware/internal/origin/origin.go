// Package origin talks HTTP/1.1 to the maker's REST service over TCP, a UNIX socket or
// memory (RFC 9112). It is a client for one server and for one caller, package proxy,
// and made for low cost: the goroutine that asks also writes the request and reads the
// answer, on a pooled connection with buffers of its own. http.Transport's two
// goroutines per connection are most of what a plain reverse proxy costs.
//
// It leaves to others: which fields may pass (proxy), how many requests may be here at
// once (admit). It owns framing in both directions: fields about framing never pass
// through, they are read, judged strictly and written anew.
package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Defaults and limits of Config.
const (
	DefaultConnectTimeout = 2 * time.Second
	DefaultHeadTimeout    = 30 * time.Second
	DefaultBodyTimeout    = 60 * time.Second
	// DefaultIdleTimeout is shorter than what typical services allow (Node.js: 5 s and
	// some), so that it is us who close.
	DefaultIdleTimeout = 5 * time.Second
	DefaultMaxIdle     = 8
	DefaultMaxHead     = 64 << 10 // bytes

	// continueWait is how long a body is held back for 100 Continue (RFC 9110 §10.1.1
	// asks the client not to wait for ever; many small servers never send it).
	continueWait = time.Second
	// maxInformational bounds the 1xx answers before one final answer.
	maxInformational = 32
)

// Errors of Do and of reading an answer. The text behind them is for the log, not for
// clients.
var (
	// ErrUnreachable: no connection, or it broke before an answer came: answer 502.
	ErrUnreachable = errors.New("origin unreachable")
	// ErrTimeout: the origin did not answer in time: answer 504.
	ErrTimeout = errors.New("origin too slow")
	// ErrBadAnswer: what the origin sent is not an answer we may pass on: answer 502.
	ErrBadAnswer = errors.New("bad answer from the origin")
	// ErrBadRequest: the request cannot be written without ambiguity: answer 400.
	ErrBadRequest = errors.New("request cannot be forwarded")
	// ErrRequestBody: reading the client's body failed; it wraps the reader's error.
	ErrRequestBody = errors.New("read the request body")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("origin client closed")
)

// Config describes one origin. Zero values mean the defaults above.
type Config struct {
	// URL is http://host:port or unix:///path/of/socket.
	URL *url.URL

	ConnectTimeout time.Duration // for a new connection
	HeadTimeout    time.Duration // from the request's last byte to the end of the answer's head
	BodyTimeout    time.Duration // longest silence inside an answer's body; not for streams, negative: off
	IdleTimeout    time.Duration // idle connections are closed after it
	MaxIdle        int           // idle connections kept; negative: none
	MaxHead        int           // bytes of an answer's head, and of trailers

	// Handler is an origin in this process (D15): requests reach it through memory, with
	// all that net/http's server can do (hijacking, 1xx, trailers, panics caught). Its
	// Request.RemoteAddr is the client of the X-Forwarded-For field, without a port.
	// Replaces URL.
	Handler http.Handler
	// Dial replaces the connection to URL, for tests.
	Dial func(ctx context.Context) (net.Conn, error)

	Logger *slog.Logger // for panics of Handler; nil: none
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	switch {
	case c.Handler != nil && !hasLocal:
		errs = append(errs, errors.New("origin: a handler in this process, which this program is built without (no_handler)"))
	case c.Dial != nil || c.Handler != nil:
	case c.URL == nil:
		errs = append(errs, errors.New("origin: missing, want http://host:port or unix:///path"))
	case c.URL.Scheme == "unix":
		if c.URL.Path == "" || c.URL.Host != "" {
			errs = append(errs, fmt.Errorf("origin: %q, want unix:///path with three slashes", c.URL))
		}
	case c.URL.Scheme != "http":
		errs = append(errs, fmt.Errorf("origin: scheme %q, want http or unix", c.URL.Scheme))
	case c.URL.Hostname() == "":
		errs = append(errs, fmt.Errorf("origin: %q names no host", c.URL))
	case strings.Trim(c.URL.Path, "/") != "" || c.URL.RawQuery != "" || c.URL.User != nil:
		errs = append(errs, fmt.Errorf("origin: %q, want no path, query or user: paths are passed on unchanged", c.URL.Redacted()))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"connect timeout", c.ConnectTimeout}, {"head timeout", c.HeadTimeout}, {"idle timeout", c.IdleTimeout}} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("origin: %s is %v, want more than 0", d.name, d.value))
		}
	}
	if c.MaxHead < 0 {
		errs = append(errs, fmt.Errorf("origin: head limit is %d, want more than 0", c.MaxHead))
	}
	return errors.Join(errs...)
}

// Field is one header field. Names of an answer are in canonical form ("Content-Type").
type Field struct{ Name, Value string }

// Request is what to ask. Do does not change it.
type Request struct {
	Method string // an upper-case token
	Target string // origin-form (RFC 9112 §3.2.1), written byte for byte
	Host   string // the authority; "" means the origin's own

	// Fields are the end-to-end fields. Fields about framing and the connection are
	// refused here, see the other members.
	Fields []Field

	// Payload is a body that is in memory. It goes out in one write with the head and
	// can be sent again on another connection.
	Payload []byte

	// Body is a body that streams, nil for none. Length is its length, -1 unknown. A
	// goroutine reads it; when Do returned an error, or the answer's Close returned,
	// nobody reads it any more.
	Body   io.Reader
	Length int64
	// Interrupt makes a blocked Body.Read return soon; called when the exchange ends
	// before the body did. Nil when Body never blocks for long.
	Interrupt func()
	// Trailer returns the trailer fields of a streaming body: asked before the head goes
	// out for the names to announce, and again once Body returned io.EOF for all names
	// and values, announced or not (as http.Request.Trailer has them). Nil: none.
	Trailer func() map[string][]string

	Expect     bool   // hold the body back for 100 Continue (RFC 9110 §10.1.1)
	TETrailers bool   // say TE: trailers
	Upgrade    string // ask for this protocol (RFC 9110 §7.8)

	// Inform is called for every 1xx answer but 101, before Do returns. fields are
	// valid during the call only. An error ends the exchange.
	Inform func(status int, fields []Field) error
}

// Client asks one origin. It is safe for concurrent use.
type Client struct {
	conf      Config
	authority string
	dial      func(ctx context.Context) (net.Conn, error)
	local     *local // with Config.Handler

	mu     sync.Mutex // guards the fields below
	idle   []*conn    // oldest first
	sweep  *time.Timer
	closed bool
}

// New makes a client. Nothing is dialled before the first request.
func New(c Config) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.ConnectTimeout, DefaultConnectTimeout)
	def(&c.HeadTimeout, DefaultHeadTimeout)
	def(&c.BodyTimeout, DefaultBodyTimeout)
	def(&c.IdleTimeout, DefaultIdleTimeout)
	if c.MaxIdle == 0 {
		c.MaxIdle = DefaultMaxIdle
	}
	if c.MaxHead == 0 {
		c.MaxHead = DefaultMaxHead
	}
	cl := &Client{conf: c, authority: "localhost", dial: c.Dial}
	if c.Handler != nil {
		cl.local = newLocal(c.Handler, c.Logger)
		cl.dial = cl.local.dial
	}
	if cl.dial == nil {
		network, addr := "tcp", c.URL.Host
		if c.URL.Scheme == "unix" {
			network, addr = "unix", c.URL.Path
		} else {
			cl.authority = c.URL.Host
			if c.URL.Port() == "" {
				addr = net.JoinHostPort(c.URL.Hostname(), "80")
			}
		}
		d := &net.Dialer{}
		cl.dial = func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, addr) }
	}
	return cl, nil
}

// Close ends idle connections and refuses further requests. Exchanges under way go on,
// end those by their contexts; those of an in-process origin are cut off.
func (c *Client) Close() error {
	c.mu.Lock()
	idle := c.idle
	c.idle, c.closed = nil, true
	if c.sweep != nil {
		c.sweep.Stop()
	}
	c.mu.Unlock()
	for _, cn := range idle {
		cn.close()
	}
	if c.local != nil {
		c.local.close()
	}
	return nil
}

// idempotent reports whether a request may be sent twice (RFC 9110 §9.2.2).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}
