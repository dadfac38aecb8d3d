package http1

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// phase is what a connection waits for; the sweep knows how long each may last.
type phase uint8

const (
	phaseHandshake phase = iota
	phaseIdle            // between requests
	phaseHead            // a head has begun
	phaseHandler         // the handler works, and neither reads nor writes
	phaseRead            // inside a read of the request's body
	phaseWrite           // inside a write of the answer
	phaseLinger          // the answer is out, what the client still sends is thrown away
	phaseHijacked        // the handler owns the connection, and still runs
	phaseHTTP2           // h2conn keeps its own clocks
)

const (
	firstBuffer  = 4 << 10
	maxDrain     = 64 << 10 // bytes of an unread body that are read to keep the connection
	lingerBytes  = 1 << 20
	lingerPeriod = 2 * time.Second
	lingerPause  = 20 * time.Millisecond
)

type conn struct {
	srv    *Server
	raw    net.Conn // from the listener
	rwc    net.Conn // raw, or TLS over it
	tls    *tls.ConnectionState
	remote string

	state   atomic.Uint64 // phase in the low byte, sweep number at its begin above
	reading atomic.Uint64 // likewise for a read beside a write (full duplex); 0: none
	ctx     atomic.Pointer[reqCtx]
	h2      *h2conn // set before phaseHTTP2 is entered

	buf  []byte // bytes read and not yet used are buf[r:w]
	r, w int

	hijacked bool
}

func (c *conn) enter(p phase) { c.state.Store(c.srv.ticks.Load()<<8 | uint64(p)) }

func (c *conn) phase() (phase, uint64) {
	v := c.state.Load()
	return phase(v), v >> 8
}

// check is the sweep's look at one connection.
func (c *conn) check(now uint64) {
	p, since := c.phase()
	age := time.Duration(now-min(now, since)) * tick
	limit := c.srv.ioTimeout()
	switch p {
	case phaseHandshake, phaseHead:
		limit = c.srv.headTimeout()
	case phaseIdle:
		limit = c.srv.idleTimeout()
		if c.srv.closing.Load() {
			limit = 0
		}
	case phaseLinger:
		limit = lingerPeriod
	case phaseHijacked:
		return
	case phaseHTTP2:
		c.h2.check()
		return
	case phaseHandler:
		if x := c.ctx.Load(); x != nil && age > 0 && peerClosed(c.raw) {
			x.cancel(errClientGone)
		}
		limit = 0
		if v := c.reading.Load(); v != 0 { // a copy goroutine reads the body
			age, limit = time.Duration(now-min(now, v>>8))*tick, c.srv.ioTimeout()
		}
		if limit == 0 {
			return
		}
	}
	if age > limit {
		c.raw.Close()
		c.gone(errTooSlow)
	}
}

// gone ends the context of the request that runs, if any.
func (c *conn) gone(cause error) {
	if x := c.ctx.Load(); x != nil {
		x.cancel(cause)
	}
}

var (
	errClientGone = errors.New("the client went away")
	errTooSlow    = errors.New("the client is too slow")
)

func (c *conn) serve() {
	defer c.srv.forget(c)
	if c.srv.TLS != nil {
		t := tls.Server(c.raw, c.srv.TLS)
		if err := t.HandshakeContext(context.Background()); err != nil { // the sweep bounds it
			c.srv.log().Debug("tls handshake", "peer", c.remote, "err", err)
			if c.srv.TLSFailed != nil {
				c.srv.TLSFailed(c.remote, t.ConnectionState(), err)
			}
			c.raw.Close()
			return
		}
		state := t.ConnectionState()
		c.rwc, c.tls = t, &state
		if state.NegotiatedProtocol == "h2" {
			c.serveHTTP2()
			return
		}
	}
	keep := true
	for keep && !c.srv.closing.Load() {
		c.enter(phaseIdle)
		keep = c.one()
		if c.hijacked {
			return
		}
	}
	c.rwc.Close()
}

// one reads a request, has it answered, and reports whether another may follow.
func (c *conn) one() (keep bool) {
	head, err := c.readHead()
	if err != nil {
		c.refuse(err)
		return false
	}
	x := &exchange{c: c}
	err = c.parse(head, x)
	c.r += len(head)
	if err != nil {
		c.refuse(err)
		return false
	}
	return x.run()
}

// readHead returns the next head, from its first byte to its empty line, inside buf.
// Every line must end with CR LF (RFC 9112 §2.2 lets us refuse a bare LF).
func (c *conn) readHead() ([]byte, error) {
	lineStart, scanned := 0, 0 // from c.r
	begun := false
	for {
		pending := c.buf[c.r:c.w]
		if len(pending) > 0 && !begun {
			begun = true
			c.enter(phaseHead)
		}
		for {
			i := bytes.IndexByte(pending[scanned:], '\n')
			if i < 0 {
				scanned = len(pending)
				break
			}
			end := scanned + i
			if end == 0 || pending[end-1] != '\r' {
				return nil, badRequest("a line does not end with CR LF")
			}
			scanned = end + 1
			if end-1 == lineStart { // an empty line
				if lineStart == 0 { // one before the request line is let pass (RFC 9112 §2.2)
					c.r += scanned
					pending, scanned = c.buf[c.r:c.w], 0
					if len(pending) >= 2 && pending[0] == '\r' {
						return nil, badRequest("empty lines before the request line")
					}
					continue
				}
				return pending[:scanned], nil
			}
			lineStart = scanned
		}
		if len(pending) >= c.srv.maxHead() {
			if lineStart == 0 {
				return nil, &statusError{http.StatusRequestURITooLong, "the request line is too long"}
			}
			return nil, &statusError{http.StatusRequestHeaderFieldsTooLarge, "the header is too large"}
		}
		if err := c.fill(); err != nil {
			if begun && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// fill reads more bytes behind those that are pending.
func (c *conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(c.buf) {
		switch {
		case c.r > 0:
			c.w = copy(c.buf, c.buf[c.r:c.w])
			c.r = 0
		default:
			grown := make([]byte, max(firstBuffer, 2*len(c.buf)))
			copy(grown, c.buf)
			c.buf = grown
		}
	}
	n, err := c.rwc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// read gives pending bytes first, then reads from the connection.
func (c *conn) read(p []byte) (int, error) {
	if c.r < c.w {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	if len(p) < firstBuffer/2 {
		if err := c.fill(); err != nil {
			return 0, err
		}
		return c.read(p)
	}
	return c.rwc.Read(p)
}

// write sends b whole.
func (c *conn) write(b []byte) error {
	c.enter(phaseWrite)
	_, err := c.rwc.Write(b)
	c.enter(phaseHandler)
	if err != nil {
		c.gone(errClientGone)
	}
	return err
}

// statusError is a refusal that the client is told.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.status, e.text) }

// body is the JSON of every refusal.
func (e *statusError) body() string {
	return fmt.Sprintf("{\"error\":%d,\"message\":%q}\n", e.status, e.text)
}

// ServeHTTP answers with it, over HTTP/2.
func (e *statusError) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	io.WriteString(w, e.body())
}

func badRequest(text string) error { return &statusError{http.StatusBadRequest, text} }

// refuse answers a head that cannot be served, and gives the client the time to read it.
func (c *conn) refuse(err error) {
	e, ok := errors.AsType[*statusError](err)
	if !ok {
		return // the connection ended, or broke
	}
	c.srv.log().Debug("request refused", "peer", c.remote, "err", err)
	body := e.body()
	c.write(fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		e.status, http.StatusText(e.status), date(), len(body), body))
	c.linger()
}

// linger closes the sending half and reads on for a moment: a close with unread bytes
// would reset the connection and take the answer with it (RFC 9112 §9.6).
func (c *conn) linger() {
	c.enter(phaseLinger)
	if !c.closeWrite() {
		return
	}
	buf := make([]byte, firstBuffer)
	for n := 0; n < lingerBytes; {
		m, err := c.raw.Read(buf)
		if n += m; err != nil {
			return
		}
	}
	// A fast sender must not be reset either before it has read the answer. From here on
	// its own full buffers make it wait; the sweep ends this.
	for {
		time.Sleep(lingerPause)
		if _, err := c.raw.Read(buf); err != nil {
			return
		}
	}
}

// closeWrite ends what the client reads.
func (c *conn) closeWrite() bool {
	cw, ok := c.rwc.(interface{ CloseWrite() error })
	if !ok || cw.CloseWrite() != nil {
		return false
	}
	if _, ok := c.rwc.(*tls.Conn); ok { // its CloseWrite sends the alert, not the FIN
		if tcp, ok := c.raw.(interface{ CloseWrite() error }); ok {
			tcp.CloseWrite()
		}
	}
	return true
}

// run has the request answered.
func (x *exchange) run() (keep bool) {
	c := x.c
	c.ctx.Store(&x.ctx)
	c.enter(phaseHandler)
	completed := x.handle()
	if c.hijacked {
		return false
	}
	defer func() {
		c.ctx.Store(nil)
		x.ctx.cancel(context.Canceled)
		x.w.release()
		if x.readDeadline {
			c.rwc.SetReadDeadline(time.Time{})
		}
		if x.writeDeadline {
			c.rwc.SetWriteDeadline(time.Time{})
		}
	}()
	if !completed || x.w.finish() != nil {
		c.raw.Close() // never a clean end: the client must see that something is missing
		return false
	}
	if x.w.close {
		c.linger()
		return false
	}
	return x.body.drain()
}

// handle calls the handler; false means that it aborted, or panicked.
func (x *exchange) handle() (completed bool) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				x.c.srv.log().Error("handler panic", "peer", x.c.remote, "err", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
			if x.w.hijacked {
				x.c.raw.Close()
			}
			completed = false
		}
	}()
	x.c.srv.Handler.ServeHTTP(&x.w, &x.req)
	return true
}
