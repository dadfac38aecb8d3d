package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	outBuffer = 16 << 10 // head and body wait here; also the size of a TLS record
	pendMax   = 8 << 10  // bytes of a body of unknown length that wait for its end
)

var outPool = sync.Pool{New: func() any { b := make([]byte, 0, outBuffer); return &b }}

// response is the http.ResponseWriter of one exchange. It also implements http.Flusher,
// http.Hijacker, io.StringWriter and what http.ResponseController asks for.
type response struct {
	x      *exchange
	header http.Header
	mu     sync.Mutex // guards out between the handler and an interim answer of the body's reader

	http10    bool
	head      bool // of a HEAD request
	close     bool // the connection ends with this answer
	keepAlive bool // HTTP/1.0 asked for it

	status   int // 0: no final head yet
	framed   bool
	chunked  bool
	noBody   bool
	declared int64 // Content-Length of the handler, -1 unknown
	written  int64
	trailers []string // names announced in Trailer
	hijacked bool

	out  *[]byte // what goes out with the next write
	pend []byte  // body bytes before the framing is decided
	err  error
}

func (w *response) init(x *exchange, r *http.Request, h http.Header) {
	w.x, w.declared = x, -1
	w.http10, w.head = r.ProtoMinor == 0, r.Method == http.MethodHead
	if connection, ok := h["Connection"]; ok {
		w.close = hasToken(connection, "close")
		w.keepAlive = w.http10 && hasToken(connection, "keep-alive")
	}
	if w.http10 && !w.keepAlive {
		w.close = true
	}
	r.Close = w.close
}

func (w *response) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header, 8)
	}
	return w.header
}

func (w *response) mustClose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.close = true
}

// WriteHeader sends 1xx at once; any other status is the final head, which leaves with
// the first bytes of the body.
func (w *response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("http1: status %d is not of three digits", status))
	}
	if w.hijacked || w.status != 0 {
		return
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.interim(status, w.header)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = status
	w.noBody = status == http.StatusNoContent || status == http.StatusNotModified || status < 200
	h := w.Header()
	if v, ok := h["Content-Length"]; ok {
		n, good := int64(0), len(v) == 1
		if good {
			n, good = parseLength(v[0])
		}
		if good && status != http.StatusNoContent && status >= 200 {
			w.declared = n
		} else {
			delete(h, "Content-Length")
		}
	}
	if w.x.c.srv.closing.Load() || w.x.body.unread() || hasToken(h["Connection"], "close") {
		w.close = true
	}
	b := w.appendFields(appendStatus(w.buffer(), status), h)
	if _, ok := h["Date"]; !ok && status >= 200 {
		b = append(append(append(b, "Date: "...), date()...), "\r\n"...)
	}
	*w.out = b
	if w.declared >= 0 || w.noBody {
		w.frame(false)
	}
}

// OpenHead is WriteHeader for who has an answer's fields as they go over the wire: it returns the
// bytes that go out next, to which the caller appends whole field lines ("Name: value\r\n") and
// which it hands to CloseHead at once. The lines must be what Header takes, be neither Connection,
// Transfer-Encoding nor Trailer, and have Content-Length if length, that of the body in bytes, is
// not negative; Date is only added if dated is false. ok is false when there is a head already, or
// when Header has fields: then nothing was done, and WriteHeader is the way.
func (w *response) OpenHead(status int, length int64, dated bool) (b []byte, ok bool) {
	if w.hijacked || w.status != 0 || len(w.header) > 0 || status < 200 || status > 999 {
		return nil, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status, w.declared = status, length
	w.noBody = status == http.StatusNoContent || status == http.StatusNotModified
	if w.x.c.srv.closing.Load() || w.x.body.unread() {
		w.close = true
	}
	b = appendStatus(w.buffer(), status)
	if !dated {
		b = append(append(append(b, "Date: "...), date()...), "\r\n"...)
	}
	return b, true
}

// CloseHead takes the bytes back that OpenHead gave.
func (w *response) CloseHead(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*w.out = b
	if w.declared >= 0 || w.noBody {
		w.frame(false)
	}
}

// appendStatus writes a status line (RFC 9112 §4).
func appendStatus(b []byte, status int) []byte {
	if status == http.StatusOK {
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	return append(append(append(b, ' '), http.StatusText(status)...), "\r\n"...)
}

// appendFields writes header fields, without those that belong to the connection: they
// are this server's own. A field that could not be read back as it was set is left out.
func (w *response) appendFields(b []byte, h http.Header) []byte {
	for name, values := range h {
		switch name {
		case "Connection", "Transfer-Encoding", "Keep-Alive":
			continue
		case "Trailer":
			for _, v := range values {
				for n := range strings.SplitSeq(v, ",") {
					w.trailers = append(w.trailers, http.CanonicalHeaderKey(strings.Trim(n, " \t")))
				}
			}
			if w.http10 {
				continue
			}
		}
		if strings.HasPrefix(name, http.TrailerPrefix) || !isToken(name) {
			continue
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	return b
}

func appendField(b []byte, name, value string) []byte {
	if !isValue(value) {
		return b
	}
	b = append(append(b, name...), ": "...)
	return append(append(b, value...), "\r\n"...)
}

// frame ends the head. complete says that all of the body is pending. It needs mu.
func (w *response) frame(complete bool) {
	if w.framed {
		return
	}
	w.framed = true
	b := *w.out
	switch {
	case w.noBody || w.declared >= 0:
	case complete && !w.head && w.trailers == nil && !w.hasPrefixedTrailers():
		w.declared = int64(len(w.pend))
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, w.declared, 10), "\r\n"...)
	case complete && w.head: // what GET would say is not known
	case w.http10:
		w.close = true // the end of the connection is the end of the body
	default:
		w.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case w.status == http.StatusSwitchingProtocols:
		b = append(b, "Connection: Upgrade\r\n"...)
	case w.close:
		b = append(b, "Connection: close\r\n"...)
	case w.http10:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	*w.out = append(b, "\r\n"...)
	if pend := w.pend; len(pend) > 0 {
		w.pend = nil
		w.body(pend)
	}
}

func (w *response) hasPrefixedTrailers() bool {
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

func (w *response) Write(p []byte) (int, error) {
	if w.hijacked {
		return 0, http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(p) == 0 {
		return 0, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return 0, w.err
	case w.noBody:
		return 0, http.ErrBodyNotAllowed
	case w.declared >= 0 && w.written+int64(len(p)) > w.declared:
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if w.head {
		return len(p), nil
	}
	if !w.framed {
		if len(w.pend)+len(p) <= pendMax {
			w.pend = append(w.pend, p...)
			return len(p), nil
		}
		w.frame(false)
	}
	w.body(p)
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// WriteString is Write.
func (w *response) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// body adds framed body bytes to what goes out, and sends when that is full. It needs mu.
func (w *response) body(p []byte) {
	if w.chunked {
		b := strconv.AppendInt(w.buffer(), int64(len(p)), 16)
		*w.out = append(b, "\r\n"...)
	}
	for len(p) > 0 {
		b := w.buffer()
		if len(b) == 0 && len(p) >= outBuffer && w.err == nil {
			w.err = w.x.c.write(p)
			break
		}
		n := min(len(p), max(outBuffer-len(b), 0))
		*w.out = append(b, p[:n]...)
		if p = p[n:]; len(*w.out) >= outBuffer {
			w.send()
		}
	}
	if w.chunked {
		*w.out = append(w.buffer(), "\r\n"...)
	}
}

// buffer is the bytes that wait to go out. It needs mu.
func (w *response) buffer() []byte {
	if w.out == nil {
		w.out = outPool.Get().(*[]byte)
	}
	return *w.out
}

// send writes what waits. It needs mu.
func (w *response) send() {
	if w.out == nil || len(*w.out) == 0 {
		return
	}
	if w.err == nil {
		w.err = w.x.c.write(*w.out)
	}
	*w.out = (*w.out)[:0]
}

var errReturned = errors.New("http1: write after the handler returned")

// release gives the buffer back, once nobody can write any more.
func (w *response) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = errReturned
	}
	if w.out != nil && cap(*w.out) <= 4*outBuffer {
		*w.out = (*w.out)[:0]
		outPool.Put(w.out)
	}
	w.out = nil
}

// interim sends a 1xx head at once (RFC 9110 §15.2). HTTP/1.0 has none.
func (w *response) interim(status int, h http.Header) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status != 0 || w.http10 {
		return nil
	}
	if status == http.StatusContinue {
		w.x.body.expect.Store(false)
	}
	b := fmt.Appendf(w.buffer(), "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for name, values := range h {
		if !isToken(name) || name == "Content-Length" || name == "Transfer-Encoding" || name == "Connection" {
			continue
		}
		for _, v := range values {
			b = appendField(b, name, v)
		}
	}
	*w.out = append(b, "\r\n"...)
	w.send()
	return w.err
}

// Flush sends everything written so far.
func (w *response) Flush() { w.FlushError() }

// FlushError is Flush that tells what went wrong (http.ResponseController).
func (w *response) FlushError() error {
	if w.hijacked {
		return http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frame(false)
	w.send()
	return w.err
}

// finish ends the answer after the handler has returned.
func (w *response) finish() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	w.frame(true)
	switch {
	case w.chunked && !w.head:
		b := append(w.buffer(), "0\r\n"...)
		for _, name := range w.trailers {
			if forbiddenTrailer[name] {
				continue
			}
			for _, v := range w.header[name] {
				b = appendField(b, name, v)
			}
		}
		for name, values := range w.header {
			if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && isToken(name) && !forbiddenTrailer[http.CanonicalHeaderKey(name)] {
				for _, v := range values {
					b = appendField(b, http.CanonicalHeaderKey(name), v)
				}
			}
		}
		*w.out = append(b, "\r\n"...)
	case !w.head && !w.noBody && w.declared > w.written:
		return io.ErrUnexpectedEOF // the client must not take this for the whole answer
	}
	w.send()
	return w.err
}

// Hijack gives the connection to the caller (RFC 9110 §7.8). Bytes that the client has
// sent already are in the reader. Limits of this server no longer apply.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.x.c
	switch {
	case w.hijacked:
		return nil, nil, http.ErrHijacked
	case w.status != 0 && w.status != http.StatusSwitchingProtocols:
		return nil, nil, errors.New("http1: hijack after the answer has begun")
	}
	if w.send(); w.err != nil {
		return nil, nil, w.err
	}
	w.hijacked, c.hijacked = true, true
	c.enter(phaseHijacked)
	if w.out != nil {
		outPool.Put(w.out)
		w.out = nil
	}
	early := append([]byte(nil), c.buf[c.r:c.w]...)
	c.buf = nil
	var from io.Reader = c.rwc
	if len(early) > 0 {
		from = io.MultiReader(strings.NewReader(string(early)), c.rwc)
	}
	br := bufio.NewReaderSize(from, max(len(early), 16))
	if len(early) > 0 {
		br.Peek(len(early)) // Buffered() tells the caller what is there
	}
	return c.rwc, bufio.NewReadWriter(br, bufio.NewWriter(c.rwc)), nil
}

// SetReadDeadline bounds reads of the request's body, SetWriteDeadline writes of the
// answer; both end with the exchange.
func (w *response) SetReadDeadline(t time.Time) error  { return w.x.deadline(t, true) }
func (w *response) SetWriteDeadline(t time.Time) error { return w.x.deadline(t, false) }

// EnableFullDuplex is always so: the body may be read while the answer is written.
func (w *response) EnableFullDuplex() error { return nil }

func (x *exchange) deadline(t time.Time, read bool) error {
	if read {
		x.readDeadline = true
		return x.c.rwc.SetReadDeadline(t)
	}
	x.writeDeadline = true
	return x.c.rwc.SetWriteDeadline(t)
}

// date is the Date field's value (RFC 9110 §6.6.1), made once a second.
func date() string {
	now := time.Now()
	if d := dateNow.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &dated{now.Unix(), now.UTC().Format(http.TimeFormat)}
	dateNow.Store(d)
	return d.text
}

type dated struct {
	second int64
	text   string
}

var dateNow atomic.Pointer[dated]
