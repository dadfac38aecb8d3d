package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Response is the final answer to one request. One goroutine uses it; Close ends it.
type Response struct {
	Status int
	// Fields are the end-to-end fields, in the order of the origin: Content-Length and
	// Trailer are among them, what Connection named is not. The slice is valid until
	// Close, the strings for ever.
	Fields []Field
	// Length of the body in bytes, -1 unknown. For HEAD and 304 the length that the
	// origin stated, without a body.
	Length int64
	// Upgrade is the protocol of a 101 answer, see Conn.
	Upgrade string

	client  *Client
	cn      *conn
	ctx     context.Context // of Do: the exchange is its caller's
	unwatch func() bool
	abort   func()
	sender  *sender
	goAhead chan struct{} // closed by 100 Continue
	timeout time.Duration

	mode    bodyMode
	left    int64 // of the body, or of the chunk
	inChunk bool  // data of a chunk was begun: its end mark is due
	last    bool  // the connection cannot be used again
	err     error // sticky; io.EOF after the whole body
	trailer []Field
}

type bodyMode uint8

const (
	bodyNone bodyMode = iota
	bodyFixed
	bodyChunked
	bodyUntilClose
)

// maxChunkLine bounds the size line of a chunk with its extensions, in bytes.
const maxChunkLine = 512

// SetTimeout changes the longest silence allowed inside the body; 0 means any.
func (r *Response) SetTimeout(d time.Duration) { r.timeout = d }

// Ready reports whether Next will return without waiting for the origin.
func (r *Response) Ready() bool {
	in := &r.cn.in
	if r.err == nil && r.mode == bodyChunked && r.left == 0 {
		// The end of the last chunk alone is no data: a size line and what follows it
		// must be here, or a caller would wait in Next with bytes it has not flushed.
		b := in.buf[in.r:in.w]
		if r.inChunk {
			_, b, _ = bytes.Cut(b, lineFeed)
		}
		_, b, _ = bytes.Cut(b, lineFeed)
		return len(b) > 0
	}
	return r.err != nil || in.buffered() > 0 || r.mode == bodyFixed && r.left == 0
}

var lineFeed = []byte{'\n'}

// Done reports whether the body was read to its end.
func (r *Response) Done() bool {
	return r.err == io.EOF || r.err == nil && r.mode == bodyFixed && r.left == 0
}

// Sending reports whether the request's body was not yet read to its end: the origin
// answered early.
func (r *Response) Sending() bool { return r.sender != nil && !r.sender.consumed.Load() }

// Next returns the next bytes of the body, a view that is valid until the next call;
// it waits only if none are at hand. At the end it returns io.EOF; any other error is
// one of those of Do.
func (r *Response) Next() ([]byte, error) {
	if err := r.advance(); err != nil {
		return nil, err
	}
	in := &r.cn.in
	for in.buffered() == 0 {
		if err := r.fill(); err != nil {
			return nil, r.broken(err)
		}
	}
	b := in.buf[in.r:in.w]
	if r.mode != bodyUntilClose {
		b = b[:min(int64(len(b)), r.left)]
		r.left -= int64(len(b))
	}
	in.r += len(b)
	return b, nil
}

// Read fills p, for bodies too long to go through the small buffer of Next. Both may
// be mixed.
func (r *Response) Read(p []byte) (int, error) {
	if err := r.advance(); err != nil {
		return 0, err
	}
	if r.mode != bodyUntilClose {
		p = p[:min(int64(len(p)), r.left)]
	}
	if r.cn.in.buffered() == 0 {
		r.cn.within(r.timeout)
	}
	n, err := r.cn.in.read(p)
	if r.mode != bodyUntilClose {
		r.left -= int64(n)
	}
	if n > 0 {
		return n, nil // an error comes again
	}
	if err == nil {
		return 0, nil
	}
	return 0, r.broken(err)
}

// advance makes sure that body bytes come next, or returns the end.
func (r *Response) advance() error {
	if r.err != nil {
		return r.err
	}
	switch r.mode {
	case bodyFixed:
		if r.left == 0 {
			r.err = io.EOF
		}
	case bodyChunked:
		if r.left == 0 {
			if err := r.nextChunk(); err != nil {
				return r.broken(err)
			}
		}
	}
	return r.err
}

func (r *Response) fill() error {
	r.cn.within(r.timeout)
	return r.cn.in.fill()
}

// broken keeps and explains an error inside the body. Only bodies without a framing
// of their own may end with the connection.
func (r *Response) broken(err error) error {
	r.last = true
	switch {
	case err == io.EOF && r.mode == bodyUntilClose:
		r.err = io.EOF
	case r.ctx.Err() != nil:
		r.err = fmt.Errorf("read the answer: %w", context.Cause(r.ctx))
	case r.sender != nil && r.requestBodyError() != nil:
		r.err = r.requestBodyError()
	case errors.Is(err, ErrBadAnswer):
		r.err = err
	case err == io.EOF:
		r.err = fmt.Errorf("%w: cut short in its body", ErrBadAnswer)
	case isTimeout(err):
		r.err = fmt.Errorf("%w: silent for %v inside its answer", ErrTimeout, r.timeout)
	default:
		r.err = fmt.Errorf("%w: cut short in its body: %w", ErrBadAnswer, err)
	}
	return r.err
}

// requestBodyError is the failure of the client's body, if that is what ended it all.
func (r *Response) requestBodyError() error {
	select {
	case <-r.sender.done:
		if errors.Is(r.sender.err, ErrRequestBody) {
			return r.sender.err
		}
	default:
	}
	return nil
}

// nextChunk reads up to the data of the next chunk, or the trailer section behind the
// last one (RFC 9112 §7.1). It sets r.err at the end of the body.
func (r *Response) nextChunk() error {
	if r.inChunk {
		b, err := r.line(0)
		if err != nil {
			return err
		}
		if len(b) != 0 {
			return fmt.Errorf("%w: chunk longer than its size", ErrBadAnswer)
		}
		r.inChunk = false
	}
	b, err := r.line(maxChunkLine)
	if err != nil {
		return err
	}
	size, err := parseChunkSize(b)
	if err != nil {
		return err
	}
	if size > 0 {
		r.left, r.inChunk = size, true
		return nil
	}
	total := 0
	for {
		b, err := r.line(r.client.conf.MaxHead - total)
		if err != nil {
			return err
		}
		if len(b) == 0 {
			r.err = io.EOF
			return nil
		}
		total += len(b) + 2
		f, err := parseField(string(b))
		if err != nil {
			return err
		}
		if !ownField(f.Name) {
			r.trailer = append(r.trailer, f)
		}
	}
}

// parseChunkSize reads "1a;name=value" (RFC 9112 §7.1, §7.1.1).
func parseChunkSize(b []byte) (int64, error) {
	const maxDigits = 15 // fits an int64
	n, i := int64(0), 0
	for ; i < len(b) && b[i] != ';' && b[i] != ' ' && b[i] != '\t'; i++ {
		c := b[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, fmt.Errorf("%w: chunk size %.40q", ErrBadAnswer, b)
		}
		n = n<<4 | int64(c)
	}
	ext := trim(string(b[i:]))
	if i == 0 || i > maxDigits || ext != "" && ext[0] != ';' || !allOf(ext, isValue) {
		return 0, fmt.Errorf("%w: chunk size %.40q", ErrBadAnswer, b)
	}
	return n, nil
}

// line returns the next line without its CRLF, a view until the next read. limit is
// the most bytes it may have.
func (r *Response) line(limit int) ([]byte, error) {
	in := &r.cn.in
	searched := 0
	for {
		b := in.buf[in.r:in.w]
		if i := bytes.IndexByte(b[searched:], '\n'); i >= 0 {
			i += searched
			if i == 0 || b[i-1] != '\r' {
				return nil, fmt.Errorf("%w: bare LF in chunked coding", ErrBadAnswer)
			}
			if i-1 > limit {
				return nil, fmt.Errorf("%w: line over %d bytes in chunked coding", ErrBadAnswer, limit)
			}
			in.r += i + 1
			return b[:i-1], nil
		}
		searched = len(b)
		if searched > limit+1 {
			return nil, fmt.Errorf("%w: line over %d bytes in chunked coding", ErrBadAnswer, limit)
		}
		err := r.fill()
		if err == errBufferFull {
			if !in.grow(r.client.conf.MaxHead + bufferSize) {
				return nil, fmt.Errorf("%w: trailer section too long", ErrBadAnswer)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
	}
}

// Trailer returns the trailer fields, once Next or Read has returned io.EOF.
func (r *Response) Trailer() []Field { return r.trailer }

// Conn is the connection behind a 101 answer: its reads begin with the bytes right
// behind the head, and it has no deadline. It lives until Close.
func (r *Response) Conn() net.Conn {
	r.cn.readOnly = false
	r.cn.deadline = -1 // unknown, so that clearing is not skipped
	r.cn.setDeadline(0)
	return &upgraded{r.cn.Conn, &r.cn.in}
}

type upgraded struct {
	net.Conn
	in *reader
}

func (u *upgraded) Read(p []byte) (int, error) { return u.in.read(p) }

// CloseWrite ends our direction only, where the connection can do that.
func (u *upgraded) CloseWrite() error {
	if h, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return u.Conn.Close()
}

// Abort closes the connection under the exchange, from any goroutine: reads fail soon.
// The user of the answer must still call Close.
func (r *Response) Abort() { r.abort() }

// Close ends the exchange. The connection is kept for the next one if the body was read
// to its end. It may be called more than once.
func (r *Response) Close() error {
	cn := r.cn
	if cn == nil {
		return nil
	}
	whole := r.Done() && !r.last
	if r.sender != nil && !r.sender.stop() {
		whole = false
	}
	if !r.unwatch() {
		whole = false // ctx ended: the connection is being closed
	}
	r.cn = nil
	if r.err == nil {
		r.err = ErrClosed
	}
	if whole {
		r.client.put(cn)
	} else {
		cn.close()
	}
	return nil
}
