// Package proxy is the HTTP side of the gateway toward its clients (D2): it takes a
// request from the LAN or from the tether, waits for a place in the origin (admit),
// passes the request on (origin) and streams the answer back. It is a gateway in the
// sense of RFC 9110 §3.7: it forwards what a client and the origin say to each other
// unchanged, except for fields that concern one hop only (§7.6.1), fields that say who
// asks (RFC 7239), and Via (§7.6.3).
//
// It leaves to others: TLS, listening and their limits (package edge), access
// control, caching, and the gateway's own resources under /.cloudrest/.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
)

// Defaults of Config.
const (
	DefaultPseudonym     = "cloudrest"
	DefaultClientTimeout = 30 * time.Second
	DefaultMinBodyRate   = 240 // bytes a second
	DefaultStreamAfter   = 10 * time.Second
	DefaultRetryAfter    = time.Second

	// rateGrace is how long a request body may take before its rate is judged.
	rateGrace = 10 * time.Second
	// smallBody is up to where a request body is read before the request waits for its
	// place: a slow phone then occupies no place. In bytes.
	smallBody = 4 << 10
	// copyBuffer is for long answers, in bytes: two TLS records.
	copyBuffer = 32 << 10
	// longAnswer is from where on an answer goes through a copyBuffer, and a client
	// that does not read is noticed. In bytes.
	longAnswer = 64 << 10
	// drainTime is how long a connection is read on after an early answer, so that the
	// client gets to see it (RFC 9112 §9.6).
	drainTime = time.Second
)

// Origin is what the proxy needs of the origin's client.
type Origin interface {
	Do(ctx context.Context, q *origin.Request) (*origin.Response, error)
}

// Config describes a Proxy. Zero values mean the defaults above.
type Config struct {
	Origin Origin      // required
	Gate   *admit.Gate // nil: everything is admitted
	Logger *slog.Logger

	Pseudonym string // names the gateway in Via: a token

	MaxBody       int64         // bytes of a request body, 0: no limit
	MinBodyRate   int           // bytes a second of a request body after 10 s; negative: any
	ClientTimeout time.Duration // longest silence of a client that sends or should read; negative: any
	StreamAfter   time.Duration // an exchange that lasts longer counts as a stream
	RetryAfter    time.Duration // told to clients when the origin is busy; whole seconds
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	if c.Origin == nil {
		errs = append(errs, errors.New("proxy: no origin"))
	}
	for i := range len(c.Pseudonym) {
		if b := c.Pseudonym[i]; !isTokenByte(b) {
			errs = append(errs, fmt.Errorf("proxy: pseudonym %q, want a token (RFC 9110 §5.6.2)", c.Pseudonym))
			break
		}
	}
	if c.MaxBody < 0 {
		errs = append(errs, fmt.Errorf("proxy: body limit is %d, want 0 or more", c.MaxBody))
	}
	if c.StreamAfter < 0 || c.RetryAfter < 0 {
		errs = append(errs, errors.New("proxy: negative time"))
	}
	return errors.Join(errs...)
}

// Proxy forwards requests to one origin. It is safe for concurrent use.
type Proxy struct {
	conf Config
	ids  ids
	via  [4]string // by protocol of the message received: 1.0, 1.1, 2, 3
	log  *slog.Logger

	trouble atomic.Pointer[string] // what is wrong with the origin, nil: nothing

	mu      sync.Mutex // guards the fields below
	streams map[*exchange]func()
	closed  bool
}

// New makes a proxy. It starts nothing.
func New(c Config) (*Proxy, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Pseudonym == "" {
		c.Pseudonym = DefaultPseudonym
	}
	if c.ClientTimeout == 0 {
		c.ClientTimeout = DefaultClientTimeout
	}
	if c.MinBodyRate == 0 {
		c.MinBodyRate = DefaultMinBodyRate
	}
	if c.StreamAfter == 0 {
		c.StreamAfter = DefaultStreamAfter
	}
	if c.RetryAfter == 0 {
		c.RetryAfter = DefaultRetryAfter
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{conf: c, log: c.Logger, streams: make(map[*exchange]func())}
	for i, v := range []string{"1.0", "1.1", "2", "3"} {
		p.via[i] = v + " " + c.Pseudonym
	}
	return p, nil
}

// Close ends the exchanges that would last for ever, event streams and upgraded
// connections, and admits no new ones. Other requests go on. Call it before
// http.Server.Shutdown, which waits for them all.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	ends := make([]func(), 0, len(p.streams))
	for _, end := range p.streams {
		ends = append(ends, end)
	}
	p.mu.Unlock()
	for _, end := range ends {
		end()
	}
	return nil
}

// For returns the handler for one way in.
//
// LAN: the client is r.RemoteAddr, and X-Cloudrest-Id is always made new. Tether: the
// relay speaks, so r.RemoteAddr is the client as the relay saw it, with or without a
// port, and a valid X-Cloudrest-Id is kept. The target that is forwarded is
// r.RequestURI byte for byte when it is in origin-form, else it is built from r.URL;
// whoever rewrites r.URL must clear r.RequestURI.
//
// When the exchange ends before the request's body was read, the body's reader is
// woken up through http.ResponseController.SetReadDeadline, else through Body.Close:
// one of them must make a blocked Read return.
func (p *Proxy) For(c admit.Class) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(c, w, r) })
}

// exchange is one request on its way. It is reused when nothing can reach it any more.
type exchange struct {
	p     *Proxy
	class admit.Class
	w     http.ResponseWriter
	r     *http.Request

	id     string
	client string // address without port
	req    origin.Request
	ticket *admit.Ticket
	resp   *origin.Response
	body   *clientBody // a request body that streams
	timer  *time.Timer // makes a lasting exchange a stream
	small  []byte      // a request body that was read ahead

	answered atomic.Bool // the head of the answer is here
}

var exchanges = sync.Pool{New: func() any {
	x := new(exchange)
	x.req.Inform = x.inform
	return x
}}

func (p *Proxy) serve(class admit.Class, w http.ResponseWriter, r *http.Request) {
	x := exchanges.Get().(*exchange)
	x.p, x.class, x.w, x.r = p, class, w, r
	defer x.end()
	x.run()
}

// end gives everything back, also on the way of a panic.
func (x *exchange) end() {
	if x.timer != nil {
		x.timer.Stop()
	}
	if x.resp != nil {
		_ = x.resp.Close()
	}
	if x.ticket != nil {
		x.ticket.Release()
	}
	if x.body != nil && x.body.over.Load() && x.r.ProtoMajor == 1 {
		// The server closes this connection, and reads on a little before it does, lest
		// the client's kernel drop the answer for the reset that follows (RFC 9112 §9.6).
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(drainTime))
	}
	if x.timer != nil || x.body != nil {
		return // a timer's function may still look at x
	}
	clear(x.req.Fields)
	*x = exchange{req: origin.Request{Fields: x.req.Fields[:0], Inform: x.req.Inform}, small: x.small}
	exchanges.Put(x)
}

func (x *exchange) run() {
	p, r := x.p, x.r
	x.identify()
	if !allowed(r.Method) {
		x.w.Header().Set("Allow", allowedMethods)
		x.refuse(http.StatusMethodNotAllowed, "method not allowed")
		return
	}
	target, ok := requestTarget(r)
	if !ok {
		x.refuse(http.StatusBadRequest, "bad request target")
		return
	}
	x.req.Method, x.req.Target, x.req.Host = r.Method, target, r.Host
	x.requestFields()
	if !x.requestBody() {
		return
	}
	if p.conf.Gate != nil {
		t, err := p.conf.Gate.Acquire(r.Context(), x.class, x.client)
		if err != nil {
			x.refuseFor(err)
			return
		}
		x.ticket = t
	}
	if x.body != nil {
		x.lasting()
	}
	resp, err := p.conf.Origin.Do(r.Context(), &x.req)
	if err != nil {
		x.refuseFor(err)
		return
	}
	x.resp = resp
	x.answered.Store(true)
	if p.trouble.Load() != nil {
		p.recovered()
	}
	x.answer()
}

// requestTarget returns the target in origin-form as the client wrote it.
func requestTarget(r *http.Request) (string, bool) {
	t := r.RequestURI
	if t == "" || t[0] != '/' {
		if r.URL == nil || t == "*" || r.URL.Opaque != "" {
			return "", false
		}
		if _, after, ok := strings.Cut(t, "://"); ok { // absolute-form, RFC 9112 §3.2.2
			if i := strings.IndexAny(after, "/?"); i < 0 {
				t = "/"
			} else if t = after[i:]; t[0] == '?' {
				t = "/" + t
			}
		} else {
			t = r.URL.EscapedPath()
			if r.URL.RawQuery != "" || r.URL.ForceQuery {
				t += "?" + r.URL.RawQuery
			}
			if t == "" || t[0] != '/' {
				t = "/" + t
			}
		}
	}
	return t, origin.ValidTarget(t)
}
