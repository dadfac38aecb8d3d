//go:build !no_http2

package http1

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// h2stream is one request over HTTP/2 and its answer. One is allocated for each request
// and never used again, so a handler may keep what it got.
type h2stream struct {
	h   *h2conn
	id  uint32
	req http.Request
	url url.URL
	ctx reqCtx
	w   h2response

	expect atomic.Bool // the client waits for 100 Continue

	// All that follows is guarded by h.mu.
	cond          sync.Cond // whatever a handler waits for has changed
	err           error     // the stream is closed
	recv          []byte    // of the body, read[off:] is not yet read
	off           int
	recvWindow    int   // what the client may still send
	credit        int   // of what was read, not yet given back
	declared      int64 // Content-Length of the request, -1 unknown
	got           int64 // bytes of the body
	recvEnd       bool  // the client has sent all
	bodyClosed    bool
	trailer       http.Header
	sendWindow    int64
	sentEnd       bool
	readDeadline  time.Time
	writeDeadline time.Time
	reading       uint32 // tick at which a read began to wait, 0: none does
	blocked       uint32 // likewise of a write
}

// run has the request answered.
func (st *h2stream) run(handler http.Handler) {
	defer st.h.returned(st)
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			st.h.c.srv.log().Error("handler panic", "peer", st.h.c.remote, "err", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
		st.w.release()
	}()
	handler.ServeHTTP(&st.w, &st.req)
	st.w.finish() // its error is the stream's
}

// closed reports whether nothing more comes or goes (RFC 9113 §5.1). h.mu is held.
func (st *h2stream) closed() bool { return st.err != nil || st.recvEnd && st.sentEnd }

// close ends reading and writing. h.mu is held.
func (st *h2stream) close(err error) {
	if st.err == nil {
		st.err = err
	}
	unread := len(st.recv) - st.off
	st.recv, st.off = nil, 0
	st.h.giveBack(nil, unread)
	st.cond.Broadcast()
	st.ctx.cancel(err)
}

// reset closes the stream and tells the client. h.mu is held, and kick must follow.
func (st *h2stream) reset(code uint32, err error) {
	if st.err != nil {
		return
	}
	st.h.resets = true
	st.h.appendReset(st.id, code)
	st.close(err)
}

// wait lets go of h.mu until something has changed, or the deadline has passed.
func (st *h2stream) wait(deadline time.Time) {
	if !deadline.IsZero() {
		t := time.AfterFunc(time.Until(deadline), st.wake)
		defer t.Stop()
	}
	st.cond.Wait()
}

func (st *h2stream) wake() {
	st.h.mu.Lock()
	st.cond.Broadcast()
	st.h.mu.Unlock()
}

// receive takes a piece of the body. h.mu is held.
func (st *h2stream) receive(b []byte) {
	if st.off > 0 && len(st.recv)+len(b) > cap(st.recv) {
		st.recv = st.recv[:copy(st.recv, st.recv[st.off:])]
		st.off = 0
	}
	st.recv = append(st.recv, b...)
	st.cond.Broadcast()
}

// h2body is a request's body. Another goroutine may write the answer meanwhile.
type h2body h2stream

func (b *h2body) Read(p []byte) (n int, err error) {
	st, h := (*h2stream)(b), b.h
	if st.expect.Swap(false) {
		st.w.interim(http.StatusContinue, nil)
	}
	h.mu.Lock()
	for {
		if err = st.readable(); err != nil || len(p) == 0 {
			break
		}
		if n = copy(p, st.recv[st.off:]); n > 0 {
			if st.off += n; st.off == len(st.recv) {
				if st.recv, st.off = st.recv[:0], 0; st.recvEnd {
					st.recv = nil
				}
			}
			h.giveBack(st, n)
			break
		}
		if st.recvEnd {
			err = io.EOF
			if announced := st.req.Trailer; announced != nil { // the same map, as with net/http: a copy of the request may have it
				clear(announced)
				maps.Copy(announced, st.trailer)
			} else if len(st.trailer) > 0 {
				st.req.Trailer = st.trailer
			}
			break
		}
		st.reading = h.now()
		st.wait(st.readDeadline)
		st.reading = 0
	}
	h.mu.Unlock()
	h.kick()
	return n, err
}

// readable says why the body cannot be read. h.mu is held.
func (st *h2stream) readable() error {
	switch {
	case st.bodyClosed:
		return ErrBodyClosed
	case st.err != nil:
		return st.err
	case !st.readDeadline.IsZero() && !time.Now().Before(st.readDeadline):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Close makes reads fail; the client is told when the handler has returned.
func (b *h2body) Close() error {
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	b.bodyClosed = true
	b.cond.Broadcast()
	return nil
}

// send writes a header block, body bytes, and the end of the answer, as far as each is
// there. What fits leaves in one write.
func (st *h2stream) send(block, data []byte, end bool) error {
	h := st.h
	moved := 0 // bytes since the write began to wait
	for {
		h.mu.Lock()
		for st.err == nil && block == nil && len(data) > 0 && st.room() <= 0 {
			if err := st.late(); err != nil {
				break
			}
			if st.blocked == 0 {
				st.blocked, moved = h.now(), 0
			}
			st.wait(st.writeDeadline)
		}
		h.mu.Unlock()

		h.wmu.Lock()
		h.mu.Lock()
		err := st.late()
		if err == nil {
			err = st.err
		}
		if err != nil {
			st.blocked = 0
			h.mu.Unlock()
			h.wmu.Unlock()
			h.kick()
			return err
		}
		buf := outPool.Get().(*[]byte)
		out := append(*buf, h.control...)
		if h.control = h.control[:0]; cap(h.control) > 64 {
			h.control = nil
		}
		h.pending.Store(false)
		n := min(len(data), max(0, int(min(st.room(), maxFrame))))
		last := n == len(data)
		if block != nil {
			out = h.appendBlock(out, st.id, block, end && len(data) == 0)
		}
		if room := max(outBuffer-len(out)-frameHead, 1<<10); n > room { // one TLS record
			n, last = room, false
		}
		if n > 0 || end && last && block == nil {
			flags := byte(0)
			if end && last {
				flags = flagEnd
			}
			out = append(h.appendFrame(out, frameData, flags, st.id, n), data[:n]...)
		}
		st.sendWindow -= int64(n)
		h.sendWindow -= int64(n)
		h.sent += int64(n)
		if end && last {
			st.sentEnd = true
		}
		if moved += n; last || moved >= outBuffer {
			st.blocked = 0
		}
		h.mu.Unlock()
		err = h.write(st, out)
		if cap(out) <= 4*outBuffer {
			*buf = out[:0]
			outPool.Put(buf)
		}
		h.wmu.Unlock()
		h.kick()
		if err != nil || last {
			return err
		}
		block, data = nil, data[n:]
	}
}

// room is how many bytes the client lets us send. h.mu is held.
func (st *h2stream) room() int64 { return min(st.sendWindow, st.h.sendWindow) }

// late resets a stream whose answer has missed its deadline. h.mu is held.
func (st *h2stream) late() error {
	if st.writeDeadline.IsZero() || st.sentEnd || time.Now().Before(st.writeDeadline) {
		return nil
	}
	st.reset(codeCancel, errSlowAnswer)
	return st.err
}

// appendBlock puts a header block into frames. wmu is held.
func (h *h2conn) appendBlock(b []byte, id uint32, block []byte, end bool) []byte {
	kind, flags, more := byte(frameHeaders), byte(0), 0
	if end {
		flags = flagEnd
	}
	if !h.noTable {
		h.noTable, more = true, 1
	}
	for {
		n := min(len(block), maxFrame-more)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		b = h.appendFrame(b, kind, flags, id, n+more)
		if more > 0 {
			b = append(b, hpackNoTable)
		}
		b = append(b, block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		kind, flags, more = frameContinuation, 0, 0
	}
}

// h2response is the http.ResponseWriter of one request over HTTP/2. It also implements
// http.Flusher, io.StringWriter and what http.ResponseController asks for, but hijacking.
type h2response struct {
	st     *h2stream
	header http.Header
	mu     sync.Mutex // guards what follows between the handler and an interim answer of the body's reader

	head     bool // of a HEAD request
	status   int  // 0: no final head yet
	noBody   bool
	declared int64 // Content-Length of the handler, -1 unknown
	written  int64
	trailers []string // names announced in Trailer
	sentHead bool
	ended    bool

	out   *[]byte // the head until it is sent, then body bytes
	block int     // bytes of the head in out
	err   error
}

func (w *h2response) init(st *h2stream, head bool) { w.st, w.head, w.declared = st, head, -1 }

func (w *h2response) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header, 8)
	}
	return w.header
}

// WriteHeader sends 1xx at once, without 101, which HTTP/2 does not have (RFC 9113 §8.6);
// any other status is the final head, which leaves with the first bytes of the body.
func (w *h2response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("http1: status %d is not of three digits", status))
	}
	if w.status != 0 || status == http.StatusSwitchingProtocols {
		return
	}
	if status < 200 {
		w.interim(status, w.header)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = status
	w.st.expect.Store(false)
	w.noBody = status == http.StatusNoContent || status == http.StatusNotModified
	h := w.Header()
	if v, ok := h["Content-Length"]; ok {
		n, good := int64(0), len(v) == 1
		if good {
			n, good = parseLength(v[0])
		}
		if good && status != http.StatusNoContent {
			w.declared = n
		} else {
			delete(h, "Content-Length")
		}
	}
	if hasToken(h["Connection"], "close") {
		w.st.h.c.srv.running.Go(func() { w.st.h.goAway(false) })
	}
	if w.out == nil {
		w.out = outPool.Get().(*[]byte)
	}
	b := appendHPACKStatus(*w.out, status)
	for name, values := range h {
		switch name {
		case "Connection", "Proxy-Connection", "Transfer-Encoding", "Keep-Alive", "Upgrade": // RFC 9113 §8.2.2
			continue
		case "Trailer":
			for _, v := range values {
				for n := range strings.SplitSeq(v, ",") {
					w.trailers = append(w.trailers, http.CanonicalHeaderKey(strings.Trim(n, " \t")))
				}
			}
		}
		if !strings.HasPrefix(name, http.TrailerPrefix) {
			for _, v := range values {
				b = appendHPACK(b, name, v)
			}
		}
	}
	if _, ok := h["Date"]; !ok {
		b = appendHPACK(b, "Date", date())
	}
	*w.out, w.block = b, len(b)
}

func (w *h2response) Write(p []byte) (int, error) {
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
	if end := w.written == w.declared && w.trailers == nil; !end {
		most := outBuffer
		if !w.sentHead {
			most = w.block + pendMax
		}
		if len(*w.out)+len(p) <= most {
			*w.out = append(*w.out, p...)
			return len(p), nil
		}
		if len(*w.out) > w.block {
			w.send(nil, false)
		}
		w.send(p, false)
	} else if len(*w.out) == w.block {
		w.send(p, true)
	} else {
		*w.out = append(*w.out, p...)
		w.send(nil, true)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// WriteString is Write.
func (w *h2response) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// send sends what waits and p, which must not both be there. mu is held.
func (w *h2response) send(p []byte, end bool) {
	if w.out == nil || w.err != nil {
		return
	}
	end = end || w.noBody || w.head
	block, data := (*w.out)[:w.block], (*w.out)[w.block:]
	if len(data) == 0 {
		data = p
	}
	if w.sentHead {
		block = nil
	}
	if block != nil || len(data) > 0 || end && !w.ended {
		w.err = w.st.send(block, data, end)
	}
	*w.out, w.block = (*w.out)[:0], 0
	w.sentHead, w.ended = true, w.ended || end
}

// interim sends a 1xx head at once (RFC 9110 §15.2).
func (w *h2response) interim(status int, h http.Header) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status != 0 || w.err != nil {
		return
	}
	if status == http.StatusContinue {
		w.st.expect.Store(false)
	}
	b := appendHPACKStatus(nil, status)
	for name, values := range h {
		switch name {
		case "Content-Length", "Connection", "Proxy-Connection", "Transfer-Encoding", "Keep-Alive", "Upgrade":
			continue
		}
		for _, v := range values {
			b = appendHPACK(b, name, v)
		}
	}
	w.err = w.st.send(b, nil, false)
}

// Flush sends everything written so far.
func (w *h2response) Flush() { w.FlushError() }

// FlushError is Flush that tells what went wrong (http.ResponseController).
func (w *h2response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.send(nil, false)
	return w.err
}

// finish ends the answer after the handler has returned.
func (w *h2response) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || w.ended {
		return
	}
	if !w.head && !w.noBody && w.declared > w.written {
		return // the client must not take this for the whole answer: the stream is reset
	}
	var trailers []byte
	if !w.noBody && !w.head {
		for _, name := range w.trailers {
			trailers = w.appendTrailer(trailers, name, w.header[name])
		}
		for name, values := range w.header {
			if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
				trailers = w.appendTrailer(trailers, http.CanonicalHeaderKey(name), values)
			}
		}
	}
	if !w.sentHead && w.declared < 0 && !w.noBody && !w.head {
		// The head is not sent: say how long the body is.
		body := len(*w.out) - w.block
		length := appendHPACK(nil, "Content-Length", strconv.Itoa(body))
		b := append(*w.out, length...)
		copy(b[w.block+len(length):], b[w.block:w.block+body])
		copy(b[w.block:], length)
		*w.out = b
		w.block += len(length)
	}
	if w.send(nil, trailers == nil); trailers != nil && w.err == nil {
		w.err = w.st.send(trailers, nil, true)
		w.ended = true
	}
}

func (w *h2response) appendTrailer(b []byte, name string, values []string) []byte {
	if !forbiddenTrailer[name] {
		for _, v := range values {
			b = appendHPACK(b, name, v)
		}
	}
	return b
}

// release gives the buffer back, once nobody can write any more.
func (w *h2response) release() {
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

// SetReadDeadline bounds reads of the request's body.
func (w *h2response) SetReadDeadline(t time.Time) error {
	h := w.st.h
	h.mu.Lock()
	defer h.mu.Unlock()
	w.st.readDeadline = t
	w.st.cond.Broadcast()
	return nil
}

// SetWriteDeadline bounds the writing of the answer. When it passes the stream is reset
// and the request's context ends, also while nothing is written; then the sweep notices.
func (w *h2response) SetWriteDeadline(t time.Time) error {
	st, h := w.st, w.st.h
	h.mu.Lock()
	st.writeDeadline = t
	if h.writer == st && !t.IsZero() {
		h.timed = true
		h.c.rwc.SetWriteDeadline(t)
	} else if h.writer != st {
		st.late()
	}
	st.cond.Broadcast()
	h.mu.Unlock()
	h.kick()
	return nil
}

// EnableFullDuplex is always so: the body may be read while the answer is written.
func (w *h2response) EnableFullDuplex() error { return nil }
