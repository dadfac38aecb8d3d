package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Do sends q and returns the head of the final answer. The caller must call Close on
// the answer. ctx holds until then: when it ends, the connection is closed at once.
//
// A request is sent a second time only if it went to a connection that had been idle
// and that died before one byte of an answer, and the method is idempotent (RFC 9110
// §9.2.2), or not one byte of it was written. A streaming body always goes to a new
// connection, so that there is nothing to repeat.
//
// Errors wrap ErrUnreachable, ErrTimeout, ErrBadAnswer, ErrBadRequest, ErrRequestBody,
// ErrClosed, the cause of ctx, or what Inform returned.
func (c *Client) Do(ctx context.Context, q *Request) (*Response, error) {
	if q.Body != nil && q.Length == 0 && !q.chunked() {
		plain := *q
		plain.Body = nil
		q = &plain
	}
	safe := idempotent(q.Method) && q.Upgrade == ""
	if q.Body == nil {
		quiet := c.conf.IdleTimeout
		if !safe {
			quiet = min(quiet, quietBeforeUnsafe)
		}
		if cn := c.take(quiet); cn != nil {
			r, err := c.exchange(ctx, cn, q)
			dead, ok := err.(*deadError)
			if !ok || !safe && dead.written {
				return r, err
			}
		}
	}
	cn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	return c.exchange(ctx, cn, q)
}

// deadError: the connection ended before one byte of an answer.
type deadError struct {
	written bool // at least one byte of the request may have arrived
	err     error
}

func (e *deadError) Error() string   { return ErrUnreachable.Error() + ": " + e.err.Error() }
func (e *deadError) Unwrap() []error { return []error{ErrUnreachable, e.err} }

// exchange does one request on cn, which it owns from here on.
func (c *Client) exchange(ctx context.Context, cn *conn, q *Request) (*Response, error) {
	var err error
	if cn.out, err = q.appendHead(cn.out[:0], c.authority); err != nil {
		c.put(cn) // untouched
		return nil, err
	}
	r := &Response{client: c, cn: cn, ctx: ctx, abort: cn.abort, timeout: c.conf.BodyTimeout, Length: -1}
	r.unwatch = onEnd(ctx, cn.abort)
	cn.in.any = false
	cn.within(c.conf.HeadTimeout)
	if len(q.Payload) <= cap(cn.out)-len(cn.out) {
		cn.out = append(cn.out, q.Payload...)
		n, err := cn.Write(cn.out)
		if n == 0 && err != nil {
			return nil, r.fail(&deadError{written: false, err: err})
		}
	} else {
		n, err := cn.Write(cn.out)
		if n == 0 && err != nil {
			return nil, r.fail(&deadError{written: false, err: err})
		}
		if err == nil {
			// An error shows again when the answer is read, unless the origin has
			// answered before it stopped reading.
			_, _ = cn.Write(q.Payload)
		}
	}
	if q.Body != nil {
		cn.readOnly = true
		_ = cn.SetWriteDeadline(time.Time{})
		r.sender = &sender{cn: cn, q: q, quit: make(chan struct{}), done: make(chan struct{})}
		r.sender.progress.Store(int64(clock()))
		if q.Expect {
			r.goAhead = make(chan struct{})
			r.sender.goAhead = r.goAhead
		}
		go r.sender.run()
	}
	if err := r.readHeads(q); err != nil {
		return nil, r.fail(err)
	}
	return r, nil
}

// onEnd is context.AfterFunc. A context that can do that itself is asked directly, which
// saves making its Done channel for nearly every request (tether/http1's is such a one).
func onEnd(ctx context.Context, f func()) (stop func() bool) {
	if a, ok := ctx.(interface {
		AfterFunc(func()) func() bool
	}); ok {
		return a.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

// fail ends an exchange that gave no answer and says why, the root cause first.
func (r *Response) fail(err error) error {
	body := false
	if s := r.sender; s != nil && !s.stop() && errors.Is(s.err, ErrRequestBody) {
		err, body = s.err, true
	}
	r.unwatch()
	r.cn.close()
	r.cn = nil
	if r.ctx.Err() != nil && !body {
		return fmt.Errorf("ask the origin: %w", context.Cause(r.ctx))
	}
	return err
}

// readHeads reads informational answers and the head of the final one.
func (r *Response) readHeads(q *Request) error {
	var h head
	for range maxInformational {
		b, err := r.waitHead()
		if err != nil {
			return err
		}
		h = head{fields: r.cn.fields[:0]}
		err = h.parseHead(b)
		r.cn.fields = h.fields
		if err != nil {
			return err
		}
		r.cn.in.r += len(b)
		if h.status >= 200 || h.status == 101 {
			return r.begin(q, &h)
		}
		if h.status == 100 {
			if r.goAhead != nil {
				close(r.goAhead)
				r.goAhead = nil
			}
			continue // the server in front says 100 itself, when its body is read
		}
		if q.Inform != nil {
			if err := q.Inform(h.status, h.fields); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w: more than %d informational answers", ErrBadAnswer, maxInformational)
}

// waitHead returns a view of the next head, its empty line included.
func (r *Response) waitHead() ([]byte, error) {
	const start = "HTTP/1."
	in := &r.cn.in
	searched := 0
	for {
		b := in.buf[in.r:in.w]
		if n := min(len(b), len(start)); string(b[:n]) != start[:n] {
			return nil, fmt.Errorf("%w: it begins with %.20q", ErrBadAnswer, b)
		}
		if n := endOfHead(b, searched); n > 0 {
			if n > r.client.conf.MaxHead {
				return nil, fmt.Errorf("%w: head over %d bytes", ErrBadAnswer, r.client.conf.MaxHead)
			}
			return b[:n], nil
		}
		searched = len(b)
		err := in.fill()
		switch {
		case err == nil:
		case err == errBufferFull:
			if !in.grow(r.client.conf.MaxHead) {
				return nil, fmt.Errorf("%w: head over %d bytes", ErrBadAnswer, r.client.conf.MaxHead)
			}
		case isTimeout(err):
			if r.extend() {
				continue
			}
			return nil, fmt.Errorf("%w: no answer within %v", ErrTimeout, r.client.conf.HeadTimeout)
		case !in.any:
			return nil, &deadError{written: true, err: err}
		default:
			return nil, fmt.Errorf("%w: cut short in its head: %w", ErrBadAnswer, err)
		}
	}
}

// extend moves the deadline for the head when the origin has not had the whole request
// for long enough yet.
func (r *Response) extend() bool {
	if r.sender == nil {
		return false
	}
	at := r.sender.waitingSince() + r.client.conf.HeadTimeout
	if at <= clock() {
		return false
	}
	r.cn.setDeadline(at)
	return true
}

// begin prepares reading the body of a final answer (RFC 9112 §6.3).
func (r *Response) begin(q *Request, h *head) error {
	cn := r.cn
	r.Status, r.Fields = h.status, h.fields
	r.last = h.close
	if h.idleSecs >= 0 {
		// Half of what the origin promises: its clock started before ours.
		cn.idleLimit = min(r.client.conf.IdleTimeout, time.Duration(h.idleSecs)*time.Second/2)
	}
	switch {
	case h.status == 101:
		if q.Upgrade == "" {
			return fmt.Errorf("%w: 101 to a request without Upgrade", ErrBadAnswer)
		}
		if !offered(q.Upgrade, h.upgrade) {
			return fmt.Errorf("%w: upgrade to %.40q, asked was %.40q", ErrBadAnswer, h.upgrade, q.Upgrade)
		}
		r.Upgrade, r.last = h.upgrade, true
		r.mode = bodyNone
	case q.Method == "HEAD" || h.status == 304:
		r.mode, r.Length = bodyNone, h.length
	case h.status == 204:
		r.mode, r.Length = bodyNone, -1
		if h.length >= 0 {
			r.Fields = remove(r.Fields, "Content-Length") // RFC 9110 §8.6
		}
		if h.length > 0 || h.chunked {
			r.last = true // whatever follows is not an answer
		}
	case h.chunked:
		r.mode = bodyChunked
	case h.length >= 0:
		r.mode, r.left, r.Length = bodyFixed, h.length, h.length
	default:
		r.mode, r.last = bodyUntilClose, true
	}
	if r.mode == bodyNone {
		r.err = io.EOF
	}
	return nil
}

// offered reports whether every protocol of answer is among those asked for.
func offered(asked, answer string) bool {
	if answer == "" {
		return false
	}
	for a := range strings.SplitSeq(answer, ",") {
		found := false
		for o := range strings.SplitSeq(asked, ",") {
			found = found || strings.EqualFold(trim(a), trim(o))
		}
		if !found {
			return false
		}
	}
	return true
}
