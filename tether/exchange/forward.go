package exchange

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// Options of one Forward.
type Options struct {
	Path   string // path and query as the device shall see them; "": r's own
	Client string // the client's address as the device shall see it; "": r.RemoteAddr
	ID     string // X-Cloudrest-Id; "": the request's own, if any
	// HeadTimeout bounds the wait for the response head, counted from the last byte of
	// the request's body that went out; default 30 s.
	HeadTimeout time.Duration
	// StallTimeout ends an answer whose client takes nothing for so long; default 5 min,
	// negative: none.
	StallTimeout time.Duration
}

// Defaults and waits of Forward.
const (
	DefaultHeadTimeout  = 30 * time.Second
	DefaultStallTimeout = 5 * time.Minute

	continueWait = time.Second            // for the device's 100, before the body is sent anyway (RFC 9110 §10.1.1)
	halfOpen     = 30 * time.Second       // a tunnel whose one direction ended
	busyRetry    = time.Second            // Retry-After of 503
	lingerTime   = 500 * time.Millisecond // for a client to read an early answer
	lingerBytes  = 4 << 20                // most that is read away meanwhile
)

// StatusClientClosed is the Status of an Error when the client went away: nobody is left
// to be answered, it is for logs.
const StatusClientClosed = 499

// Error says why nothing was written to the client, and what to answer.
type Error struct {
	Status     int             // 400, 413, 502, 503, 504 or StatusClientClosed
	Code       frame.ResetCode // when the device reset the stream, else frame.ResetNone
	Safe       bool            // the device has not seen the request, or refused it unprocessed
	RetryAfter time.Duration   // with 503
	Err        error
}

func (e *Error) Error() string { return fmt.Sprintf("forward to device: %v", e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Forward sends r to the device and its answer to w. It fails with *Error when nothing has
// been written to w, whose header then is as it was. Once the response head has begun a
// failure panics with http.ErrAbortHandler, so that the client never takes a part for the
// whole. Forward owns r's header: hop-by-hop fields are deleted, the id is set.
func Forward(w http.ResponseWriter, r *http.Request, s *mux.Session, o Options) error {
	f := forward{w: w, r: r}
	if o.HeadTimeout <= 0 {
		o.HeadTimeout = DefaultHeadTimeout
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	f.o = o
	if o.ID != "" {
		f.id = []string{o.ID}
	}
	req := f.request()
	st, err := s.Open(r.Context(), &req)
	if err != nil {
		return f.openError(err)
	}
	f.st = st
	// Whatever happens, the stream ends here and its memory is given back; after a
	// complete exchange this Reset sends nothing.
	end := frame.ResetCancel
	var up *upload
	defer func() {
		st.Reset(end)
		if up != nil {
			up.stop(end == frame.ResetNone)
		}
	}()
	if req.Flags&frame.FlagEnd == 0 && req.Flags&frame.FlagUpgrade == 0 {
		up = startUpload(w, r, st)
	}
	head, err := f.waitHead(up)
	if err != nil {
		e := f.headError(err)
		if up != nil && up.pending() && r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close")
		}
		if e.Status == http.StatusGatewayTimeout {
			end = frame.ResetTimeout
		}
		return e
	}
	if head.Status == http.StatusSwitchingProtocols {
		return f.tunnel(head)
	}
	if err := f.prepare(&head); err != nil {
		return &Error{Status: http.StatusBadGateway, Code: frame.ResetBadHead, Err: err}
	}
	if req.Flags&frame.FlagUpgrade != 0 {
		_ = st.End(nil) // no tunnel: nothing more goes to the device (SPEC.md §5.8)
	}
	if up != nil && up.pending() && r.ProtoMajor == 1 {
		// What is left of the body must never be taken for the next request.
		w.Header().Set("Connection", "close")
	}
	f.answer(&head, up)
	end = frame.ResetNone
	return nil
}

type forward struct {
	w      http.ResponseWriter
	r      *http.Request
	o      Options
	id     []string // o.ID as a field
	st     *mux.Stream
	length int64 // Content-Length of the answer; -1: none
}

// request makes the frame from the client's request.
func (f *forward) request() frame.Request {
	r, o := f.r, &f.o
	h := r.Header
	req := frame.Request{Method: r.Method, Path: o.Path, Authority: r.Host, Client: o.Client, Timeout: uint32(min(o.HeadTimeout.Milliseconds(), 1<<32-1)), Header: h}
	if req.Path == "" {
		if req.Path = r.URL.RequestURI(); r.Method == http.MethodOptions && r.RequestURI == "*" {
			req.Path = "*"
		}
	}
	if req.Client == "" {
		req.Client = r.RemoteAddr
	}
	// Only HTTP/1.1 asks for an upgrade this way (RFC 9113 §8.6), and with a body it would
	// not be clear where the tunnel begins (SPEC.md §5.8).
	upgrade := r.ProtoMajor == 1 && r.ContentLength == 0 && len(h["Upgrade"]) > 0 && hasToken(h["Connection"], "upgrade")
	// Hop-by-hop fields that have names of their own are left out by package frame.
	for _, v := range h["Connection"] {
		if v == "keep-alive" || v == "close" {
			continue
		}
		for name := range fieldNames(v) {
			if name != "Upgrade" || !upgrade {
				delete(h, name)
			}
		}
	}
	if !upgrade {
		delete(h, "Upgrade")
	}
	if te, ok := h["Te"]; ok && !(len(te) == 1 && te[0] == "trailers") {
		if hasToken(te, "trailers") {
			h["Te"] = []string{"trailers"}
		} else {
			delete(h, "Te")
		}
	}
	if f.id != nil {
		h[tether.HeaderID] = f.id
	}
	switch {
	case upgrade:
		req.Flags = frame.FlagUpgrade
	case r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0:
		req.Flags = frame.FlagEnd
	case r.ContentLength > 0:
		h["Content-Length"] = []string{strconv.FormatInt(r.ContentLength, 10)}
	}
	if len(r.Trailer) > 0 {
		names := make([]string, 0, len(r.Trailer))
		for name := range r.Trailer {
			names = append(names, name)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
	}
	return req
}

func (f *forward) openError(err error) *Error {
	e := &Error{Status: http.StatusServiceUnavailable, Safe: true, RetryAfter: busyRetry, Err: err}
	switch {
	case f.r.Context().Err() != nil:
		e.Status, e.RetryAfter = StatusClientClosed, 0
	case errors.Is(err, frame.ErrHead):
		e.Status, e.RetryAfter = http.StatusBadRequest, 0
		e.Code = frame.ResetBadHead
	}
	return e
}

// waitHead waits for the final head and passes interim ones on.
func (f *forward) waitHead(up *upload) (frame.Response, error) {
	until := time.Now().Add(f.o.HeadTimeout)
	for {
		h, err := f.st.Head(f.r.Context(), until)
		if errors.Is(err, mux.ErrHeadTimeout) && up != nil {
			// The time counts from the last progress of the body.
			if later := up.progress().Add(f.o.HeadTimeout); later.After(until) {
				until = later
				continue
			}
		}
		if err != nil || h.Status >= 200 || h.Status == http.StatusSwitchingProtocols {
			return h, err
		}
		if up != nil {
			up.proceed()
		}
		if h.Status == http.StatusContinue {
			continue // net/http sends its own when the body is read
		}
		mine := maps.Clone(f.w.Header())
		maps.Copy(f.w.Header(), h.Header)
		f.w.WriteHeader(int(h.Status))
		clear(f.w.Header())
		maps.Copy(f.w.Header(), mine)
	}
}

// headError says what to answer when no head came.
func (f *forward) headError(err error) *Error {
	e := &Error{Status: http.StatusBadGateway, Err: err}
	code, reset := errors.AsType[frame.ResetCode](err)
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case f.r.Context().Err() != nil:
		e.Status = StatusClientClosed
	case errors.Is(err, mux.ErrHeadTimeout), errors.Is(err, mux.ErrSilent):
		e.Status = http.StatusGatewayTimeout
	case tooLarge:
		e.Status = http.StatusRequestEntityTooLarge
	case reset:
		e.Code = code
		switch code {
		case frame.ResetClientBody:
			e.Status = http.StatusBadRequest
		case frame.ResetRefused:
			e.Status, e.Safe, e.RetryAfter = http.StatusServiceUnavailable, true, busyRetry
		case frame.ResetTimeout:
			e.Status = http.StatusGatewayTimeout
		case frame.ResetTooLarge:
			e.Status = http.StatusRequestEntityTooLarge
		}
	}
	return e
}

// prepare fills in w's header.
func (f *forward) prepare(h *frame.Response) error {
	f.length = -1
	if v := h.Header["Content-Length"]; len(v) > 0 {
		n, err := contentLength(v)
		if err != nil {
			return err
		}
		f.length = n
	}
	dst := f.w.Header()
	maps.Copy(dst, h.Header)
	f.mark(dst)
	if _, ok := h.Header["Content-Type"]; !ok {
		dst["Content-Type"] = nil // the device has guessed if it wanted to; net/http shall not
	}
	if _, ok := h.Header["Trailer"]; ok && f.r.ProtoMajor == 1 {
		delete(dst, "Content-Length") // HTTP/1.1 carries trailers only with chunks (RFC 9112 §7.1.2)
	}
	if f.length < 0 && h.Flags&frame.FlagEnd == 0 && bodyAllowed(int(h.Status)) && f.r.Method != http.MethodHead {
		if n, whole := f.st.Buffered(); whole && len(h.Header["Trailer"]) == 0 {
			if t, _ := f.st.PeekTrailers(); len(t) == 0 {
				// All of it is here: say how long it is instead of chunking.
				f.length = int64(n)
				dst["Content-Length"] = []string{strconv.Itoa(n)}
			}
		}
	}
	return nil
}

// mark sets the fields that name the exchange, whatever the device said.
func (f *forward) mark(dst http.Header) {
	if f.id != nil {
		dst[tether.HeaderID] = f.id
	}
	if v, ok := f.r.Header[tether.HeaderSequenceID]; ok {
		dst[tether.HeaderSequenceID] = v
	}
}

// abort ends the client's connection in the middle of the answer.
func abort() { panic(http.ErrAbortHandler) }

// answer writes the head and streams the body.
func (f *forward) answer(h *frame.Response, up *upload) {
	status := int(h.Status)
	if isEvents(h.Header) {
		f.st.Endless()
	}
	f.w.WriteHeader(status)
	if up != nil {
		up.proceed()
	}
	ctx, got := f.r.Context(), int64(0)
	noBody := f.r.Method == http.MethodHead || !bodyAllowed(status)
	deadlines, flushed := false, false
	ready := f.st.Ready()
	for h.Flags&frame.FlagEnd == 0 {
		if !ready {
			if http.NewResponseController(f.w).Flush() != nil {
				abort()
			}
			flushed = true
		}
		n, more, err := f.st.WriteChunk(ctx, f.w)
		if err == io.EOF {
			break
		}
		if err != nil || noBody {
			abort()
		}
		got += int64(n)
		ready = more
		if f.o.StallTimeout > 0 && got >= stallAfter {
			deadlines = true
			_ = http.NewResponseController(f.w).SetWriteDeadline(time.Now().Add(f.o.StallTimeout))
		}
	}
	if deadlines {
		_ = http.NewResponseController(f.w).SetWriteDeadline(time.Time{})
	}
	if f.length >= 0 && got != f.length && !noBody {
		abort() // short: the client must see that something is missing
	}
	trailers, _ := f.st.Received()
	if len(trailers) == 0 {
		return
	}
	if !flushed {
		// Without a flush net/http counts the bytes instead of chunking, and trailers vanish.
		if http.NewResponseController(f.w).Flush() != nil {
			abort()
		}
	}
	dst := f.w.Header()
	announced := h.Header["Trailer"]
	for name, v := range trailers {
		if !hasToken(announced, name) {
			name = http.TrailerPrefix + name
		}
		dst[name] = v
	}
}

// stallAfter is how many bytes an answer has before its writes get a deadline; shorter
// ones end in the server's buffers.
const stallAfter = 16 << 10
