package exchange

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// hold is how many bytes of an answer are held back in the hope that it ends soon: head,
// body and END then travel in one message. Flush sends at once.
const hold = 16<<10 - 512

var holds = sync.Pool{New: func() any { b := make([]byte, 0, hold); return &b }}

// responseWriter is a handler's view of the stream. The mutex only keeps a handler's
// forgotten goroutine from touching what has been given back.
type responseWriter struct {
	st      *mux.Stream
	req     *http.Request
	head    bool // HEAD: no body travels
	upgrade bool
	header  http.Header

	mu       sync.Mutex
	status   int         // of the final head; 0: not written
	fixed    mux.Head    // encoded, not sent
	late     http.Header // copy of the header to encode at the first byte, because its type must be guessed
	sent     bool
	length   int64 // Content-Length; -1: none
	written  int64
	buf      *[]byte
	ended    bool
	trailers []string // announced
	tunnel   *tunnel
	over     bool // the handler has returned
}

var (
	errOver     = errors.New("write after the handler returned")
	errHijacked = http.ErrHijacked
)

// Header is as http.ResponseWriter says.
func (w *responseWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header, 8)
	}
	return w.header
}

// WriteHeader sends an interim head at once; a final one is fixed and sent with the body.
func (w *responseWriter) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *responseWriter) writeHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("exchange: invalid status %d", status))
	}
	if w.over || w.tunnel != nil || w.status != 0 {
		return
	}
	if status < 200 && status != http.StatusSwitchingProtocols {
		if h, err := w.st.Encode(&frame.Response{Status: uint16(status), Header: w.header}); err == nil {
			_ = w.st.Respond(h, nil, false)
		}
		return
	}
	w.status = status
	for _, v := range w.header["Trailer"] {
		for name := range fieldNames(v) {
			w.trailers = append(w.trailers, name)
		}
	}
	if v := w.header["Content-Length"]; len(v) > 0 {
		n, err := contentLength(v)
		if err != nil {
			delete(w.header, "Content-Length")
		} else if w.length = n; len(v) > 1 {
			w.header["Content-Length"] = v[:1]
		}
	}
	if _, typed := w.header["Content-Type"]; !typed && bodyAllowed(status) && !w.head && w.length != 0 {
		w.late = maps.Clone(w.Header())
		return
	}
	w.fix(w.header)
}

// fix encodes the final head; one that may not travel ends the stream.
func (w *responseWriter) fix(header http.Header) {
	if isEvents(header) {
		w.st.Endless()
	}
	for name := range header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			header = maps.Clone(header)
			maps.DeleteFunc(header, func(name string, _ []string) bool { return strings.HasPrefix(name, http.TrailerPrefix) })
			break
		}
	}
	var err error
	if w.fixed, err = w.st.Encode(&frame.Response{Status: uint16(w.status), Header: header}); err != nil {
		panic(frame.ResetBadHead)
	}
}

// fixLate guesses the type of the first bytes, as net/http does.
func (w *responseWriter) fixLate(p []byte) {
	if w.late == nil {
		return
	}
	if len(p) > 0 && len(w.late["Content-Encoding"]) == 0 {
		w.late["Content-Type"] = []string{http.DetectContentType(p)}
	}
	w.fix(w.late)
	w.late = nil
}

// sendContinue answers Expect: 100-continue when the body is first asked for.
func (w *responseWriter) sendContinue() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.status != 0 || w.tunnel != nil {
		return
	}
	if h, err := w.st.Encode(&frame.Response{Status: http.StatusContinue}); err == nil {
		_ = w.st.Respond(h, nil, false)
	}
}

// Write sends p, or holds it back while the answer is short.
func (w *responseWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.tunnel != nil:
		return 0, errHijacked
	case w.over:
		return 0, errOver
	case w.status == 0:
		w.writeHeader(http.StatusOK)
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if len(p) == 0 {
		return 0, nil
	}
	w.written += int64(len(p))
	if w.length >= 0 && w.written > w.length {
		w.written -= int64(len(p))
		return 0, http.ErrContentLength
	}
	if w.head {
		return len(p), nil
	}
	w.fixLate(p)
	// The last byte that was announced ends the answer; no need to wait for the handler.
	end := w.written == w.length && len(w.trailers) == 0
	held := 0
	if w.buf != nil {
		held = len(*w.buf)
	}
	switch {
	case held == 0 && (end || len(p) >= hold):
		return len(p), w.send(p, end)
	case held+len(p) > hold:
		if err := w.sendHeld(false); err != nil {
			return 0, err
		}
		if end || len(p) >= hold {
			return len(p), w.send(p, end)
		}
	}
	if w.buf == nil {
		w.buf = holds.Get().(*[]byte)
	}
	*w.buf = append(*w.buf, p...)
	if end {
		return len(p), w.sendHeld(true)
	}
	return len(p), nil
}

// send sends the head, if that is still to be sent, and p.
func (w *responseWriter) send(p []byte, end bool) error {
	if w.ended {
		return nil
	}
	w.ended = end
	if !w.sent {
		w.sent = true
		h := w.fixed
		w.fixed = mux.Head{}
		return w.st.Respond(h, p, end)
	}
	if end {
		return w.st.End(p)
	}
	_, err := w.st.Write(p)
	return err
}

// sendHeld is send for what was held back.
func (w *responseWriter) sendHeld(end bool) error {
	var p []byte
	if w.buf != nil {
		p = *w.buf
	}
	err := w.send(p, end)
	w.release()
	return err
}

func (w *responseWriter) release() {
	if w.buf != nil {
		*w.buf = (*w.buf)[:0]
		holds.Put(w.buf)
		w.buf = nil
	}
}

// ReadFrom keeps io.Copy from taking a buffer of its own.
func (w *responseWriter) ReadFrom(r io.Reader) (n int64, err error) {
	b := holds.Get().(*[]byte)
	defer holds.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, (*b)[:hold])
}

// Flush sends what was held back.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *responseWriter) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.tunnel != nil:
		return errHijacked
	case w.over:
		return errOver
	case w.status == 0:
		w.writeHeader(http.StatusOK)
	}
	if w.head || !bodyAllowed(w.status) {
		return nil // the head goes out with its END
	}
	w.fixLate(nil)
	if w.sent && w.buf == nil {
		return nil
	}
	return w.sendHeld(false)
}

// SetReadDeadline bounds reads of the request's body (http.ResponseController).
func (w *responseWriter) SetReadDeadline(t time.Time) error {
	w.st.SetReadDeadline(t)
	return nil
}

// SetWriteDeadline bounds writes of the answer (http.ResponseController).
func (w *responseWriter) SetWriteDeadline(t time.Time) error {
	w.st.SetWriteDeadline(t)
	return nil
}

// EnableFullDuplex is always on: a stream's directions are independent.
func (w *responseWriter) EnableFullDuplex() error { return nil }

// Hijack gives the handler the stream as a connection, when the client asked for an
// upgrade. As with net/http the handler writes the 101 head to it as HTTP/1.1 text; if it
// has called WriteHeader(101) before, the head goes out now and only bytes follow.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.tunnel != nil:
		return nil, nil, errHijacked
	case w.over:
		return nil, nil, errOver
	case !w.upgrade:
		return nil, nil, fmt.Errorf("the request asks for no upgrade: %w", http.ErrNotSupported)
	case w.status != 0 && w.status != http.StatusSwitchingProtocols || w.sent:
		return nil, nil, errors.New("hijack after the response head")
	}
	w.st.Endless()
	t := newTunnel(w.st, w.req)
	if w.status != 0 {
		if err := w.send(nil, false); err != nil {
			return nil, nil, err
		}
		t.headSent = true
	}
	w.tunnel = t
	return t, bufio.NewReadWriter(bufio.NewReader(t), bufio.NewWriter(t)), nil
}

// finish ends the answer after the handler has returned.
func (w *responseWriter) finish() {
	w.mu.Lock()
	if w.tunnel != nil {
		w.over = true
		w.mu.Unlock()
		w.tunnel.wait()
		return
	}
	defer w.mu.Unlock()
	if w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	w.over = true
	code := frame.ResetNone // after a complete answer the rest of the request is not needed
	trailers := w.takeTrailers()
	switch {
	case w.ended:
	case w.length >= 0 && w.written < w.length && !w.head && bodyAllowed(w.status):
		code = frame.ResetInternal // short of what its Content-Length says: no clean end
	case len(trailers) > 0:
		w.fixLate(nil)
		err := error(nil)
		if !w.sent || w.buf != nil {
			err = w.sendHeld(false)
		}
		if err == nil && w.st.Trailers(trailers) != nil {
			code = frame.ResetInternal
		}
	default:
		w.fixLate(nil)
		_ = w.sendHeld(true)
	}
	w.discard()
	w.st.Reset(code)
}

// takeTrailers collects the announced fields and those with http.TrailerPrefix.
func (w *responseWriter) takeTrailers() map[string][]string {
	var t map[string][]string
	add := func(name string, v []string) {
		if t == nil {
			t = map[string][]string{}
		}
		t[name] = v
	}
	for _, name := range w.trailers {
		if v, ok := w.header[name]; ok {
			add(name, v)
		}
	}
	for name, v := range w.header {
		if after, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			add(http.CanonicalHeaderKey(after), v)
		}
	}
	return t
}

// abort ends the stream after a panic.
func (w *responseWriter) abort(code frame.ResetCode) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.discard()
	w.st.Reset(code)
}

func (w *responseWriter) discard() {
	w.release()
	w.fixed.Drop()
	w.fixed = mux.Head{}
}
