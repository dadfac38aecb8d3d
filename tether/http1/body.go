package http1

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	maxChunkLine = 512      // bytes of a chunk's size line with its extensions (RFC 9112 §7.1.1)
	maxTrailers  = 16 << 10 // bytes of trailer fields
)

// ErrBodyClosed is what a handler gets that reads a request's body after it has
// returned, or after it closed the body.
var ErrBodyClosed = errors.New("http1: read of a request body after it was closed")

// body is a request's body. One goroutine may read it while another writes the answer,
// so whatever the answer's side asks is atomic: a read may be blocked for long.
type body struct {
	c *conn
	x *exchange

	reading sync.Mutex // held during a whole Read; guards err, begun
	err     error
	begun   bool // a chunk was begun: its CR LF comes before the next size
	chunked bool // set before the handler runs

	left   atomic.Int64 // bytes of the body, or of the current chunk; only the reader changes it
	ended  atomic.Bool  // everything was read
	closed atomic.Bool
	failed atomic.Bool // err is set
	expect atomic.Bool // the client waits for 100 Continue
}

func (b *body) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	switch {
	case b.closed.Load():
		return 0, ErrBodyClosed
	case b.err != nil:
		return 0, b.err
	case b.ended.Load():
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	if b.expect.Swap(false) {
		if err := b.x.w.interim(http.StatusContinue, nil); err != nil {
			return 0, b.fail(err)
		}
	}
	b.c.reading.Store(b.c.srv.ticks.Load()<<8 | uint64(phaseRead))
	n, err := b.read(p)
	b.c.reading.Store(0)
	if err != nil {
		return n, b.fail(err)
	}
	if b.ended.Load() && n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// fail remembers the first error; a body cut short is never a clean end.
func (b *body) fail(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	b.err = err
	b.failed.Store(true)
	b.x.w.mustClose()
	return err
}

func (b *body) read(p []byte) (int, error) {
	if b.chunked && b.left.Load() == 0 {
		if err := b.nextChunk(); err != nil || b.ended.Load() {
			return 0, err
		}
	}
	n, err := b.c.read(p[:min(int64(len(p)), b.left.Load())])
	if b.left.Add(-int64(n)) == 0 && !b.chunked {
		b.ended.Store(true)
	}
	if n > 0 {
		err = nil // it comes again
	}
	return n, err
}

// nextChunk reads a size line, and the trailers after the last chunk (RFC 9112 §7.1).
func (b *body) nextChunk() error {
	if b.begun {
		if line, err := b.line(0); err != nil || line != "" {
			return or2(err, badRequest("a chunk does not end where its size says"))
		}
	}
	b.begun = true
	line, err := b.line(maxChunkLine)
	if err != nil {
		return err
	}
	size, extension, _ := strings.Cut(line, ";")
	size = strings.TrimRight(size, " \t")
	if !isValue(extension) || size == "" || len(size) > 15 {
		return badRequest("malformed chunk size")
	}
	n := int64(0)
	for i := range len(size) {
		d := hexValue[size[i]]
		if d == 0xff {
			return badRequest("malformed chunk size")
		}
		n = n<<4 | int64(d)
	}
	if b.left.Store(n); n > 0 {
		return nil
	}
	return b.trailers()
}

func (b *body) trailers() error {
	var text strings.Builder
	for {
		line, err := b.line(maxTrailers - text.Len())
		if err != nil {
			return err
		}
		text.WriteString(line)
		text.WriteString("\r\n")
		if line == "" {
			break
		}
	}
	fields, err := parseFields(text.String(), nil)
	if err != nil {
		return err
	}
	for name := range fields {
		if forbiddenTrailer[name] {
			delete(fields, name)
		}
	}
	if announced := b.x.req.Trailer; announced == nil {
		if len(fields) > 0 {
			b.x.req.Trailer = fields
		}
	} else { // the same map, as with net/http: a copy of the request may have it
		clear(announced)
		maps.Copy(announced, fields)
	}
	b.ended.Store(true)
	return nil
}

// line reads up to CR LF, at most max bytes without them.
func (b *body) line(max int) (string, error) {
	c := b.c
	for scanned := 0; ; {
		pending := c.buf[c.r:c.w]
		for ; scanned < len(pending); scanned++ {
			if pending[scanned] != '\n' {
				continue
			}
			if scanned == 0 || pending[scanned-1] != '\r' {
				return "", badRequest("a line in the chunked body does not end with CR LF")
			}
			line := string(pending[:scanned-1])
			c.r += scanned + 1
			return line, nil
		}
		if len(pending) > max+2 {
			return "", badRequest("a line in the chunked body is too long")
		}
		if err := c.fill(); err != nil {
			return "", err
		}
	}
}

// trailerNames announces the trailers that the Trailer field promises (RFC 9110 §6.6.2).
func trailerNames(r *http.Request) {
	for _, v := range r.Header["Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			name = http.CanonicalHeaderKey(strings.Trim(name, " \t"))
			if !isToken(name) || forbiddenTrailer[name] {
				continue
			}
			if r.Trailer == nil {
				r.Trailer = http.Header{}
			}
			r.Trailer[name] = nil
		}
	}
	delete(r.Header, "Trailer")
}

// forbiddenTrailer are fields that must not come after the body (RFC 9110 §6.5.1).
var forbiddenTrailer = map[string]bool{"Transfer-Encoding": true, "Content-Length": true, "Host": true, "Trailer": true, "Authorization": true,
	"Cookie": true, "Set-Cookie": true, "Content-Encoding": true, "Content-Type": true, "Content-Range": true, "Connection": true, "Te": true, "Expect": true}

// Close makes later reads fail; what the client still sends is the server's concern.
func (b *body) Close() error {
	b.closed.Store(true)
	return nil
}

// unread reports whether so much of the body is left that the connection should rather
// be closed than read on.
func (b *body) unread() bool {
	return !b.ended.Load() && (b.failed.Load() || b.expect.Load() || b.left.Load() > maxDrain)
}

// drain reads what the handler left over, and reports whether the connection is still
// good. It is not when somebody is still reading: the next request's bytes are not his.
func (b *body) drain() bool {
	if !b.reading.TryLock() {
		return false
	}
	defer b.reading.Unlock()
	b.closed.Store(true)
	if b.ended.Load() && b.err == nil {
		return true
	}
	if b.err != nil || b.expect.Load() {
		return false
	}
	b.c.enter(phaseRead)
	buf := make([]byte, firstBuffer)
	for n := 0; !b.ended.Load(); {
		m, err := b.read(buf)
		if n += m; err != nil || n > maxDrain {
			return false
		}
	}
	return true
}

func or2(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

var hexValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		t[c] = byte(i)
	}
	for i, c := range "ABCDEF" {
		t[c] = byte(10 + i)
	}
	return t
}()
