package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// Server answers a device's streams with a handler.
type Server struct {
	// Handler gets ordinary requests: RemoteAddr is the client as the relay says, Host
	// the authority. Its ResponseWriter is also http.Flusher, http.Hijacker for requests
	// that ask for an upgrade, and has what http.ResponseController looks for. A panic
	// ends only its own stream: with the frame.ResetCode it panics with, else with
	// frame.ResetInternal.
	Handler http.Handler
	Logger  *slog.Logger // nil: none
}

// Serve answers one stream; it is a mux.Config.Accept.
func (sv *Server) Serve(st *mux.Stream, r *frame.Request) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	st.OnStop(func() { cancel(errPeerStopped) })
	w := &responseWriter{st: st, length: -1, head: r.Method == http.MethodHead, upgrade: r.Flags&frame.FlagUpgrade != 0}
	req, err := w.request(ctx, r)
	if err != nil {
		st.Reset(frame.ResetBadHead)
		return
	}
	w.req = req
	defer func() {
		if v := recover(); v != nil {
			code := frame.ResetInternal
			if c, ok := v.(frame.ResetCode); ok {
				code = c
			} else if v != http.ErrAbortHandler && sv.Logger != nil {
				sv.Logger.Error("handler panicked", "stream", st.ID(), "err", fmt.Sprint(v), "stack", string(debug.Stack()))
			}
			w.abort(code)
		}
	}()
	sv.Handler.ServeHTTP(w, req)
	w.finish()
}

// blank is copied for each request: a context can only be set on a copy.
var blank = &http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody}

var errPeerStopped = errors.New("the client went away")

// request makes the handler's view of the head.
func (w *responseWriter) request(ctx context.Context, r *frame.Request) (*http.Request, error) {
	u, err := url.ParseRequestURI(r.Path)
	if err != nil {
		return nil, err
	}
	req := blank.WithContext(ctx)
	req.Method, req.URL, req.RequestURI = r.Method, u, r.Path
	req.Header, req.Host, req.RemoteAddr = r.Header, r.Authority, r.Client
	if w.upgrade {
		// The name itself never travels (RFC 9110 §7.6.1); the handler wants the usual pair.
		req.Header["Connection"] = []string{"Upgrade"}
	}
	if r.Flags&frame.FlagEnd != 0 || w.upgrade {
		return req, nil // a request for an upgrade has no body (SPEC.md §5.8): DATA is the tunnel's
	}
	b := &body{w: w, left: -1}
	req.ContentLength = -1
	if v := r.Header["Content-Length"]; len(v) > 0 {
		n, err := contentLength(v)
		if err != nil {
			return nil, err
		}
		req.ContentLength, b.left = n, n
	}
	for _, names := range r.Header["Trailer"] {
		if req.Trailer == nil {
			req.Trailer = http.Header{}
		}
		for name := range fieldNames(names) {
			req.Trailer[name] = nil
		}
	}
	b.expect = hasToken(r.Header["Expect"], "100-continue")
	req.Body = b
	return req, nil
}

var errContentLength = errors.New("bad Content-Length")

// contentLength follows RFC 9110 §8.6: equal repeated values are one.
func contentLength(v []string) (int64, error) {
	n, err := strconv.ParseUint(v[0], 10, 63)
	if err != nil {
		return 0, errContentLength
	}
	for _, other := range v[1:] {
		if other != v[0] {
			return 0, errContentLength
		}
	}
	return int64(n), nil
}

// body is a request's body. Each Body has its own stream for ever, so that a client
// library which reads on after an early answer gets an error and never another's bytes.
type body struct {
	w      *responseWriter
	left   int64 // by Content-Length; -1: not known
	expect bool  // the client waits for 100 (RFC 9110 §10.1.1)
	closed bool
	end    error
}

func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.closed:
		return 0, http.ErrBodyReadAfterClose
	case b.end != nil:
		return 0, b.end
	case b.expect:
		b.expect = false
		b.w.sendContinue()
	}
	n, err := b.w.st.Read(p)
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			n, err = n+int(b.left), fmt.Errorf("request body longer than its Content-Length")
			b.left = 0
		} else if err == io.EOF && b.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == io.EOF {
		if t, ok := b.w.st.Received(); ok && len(t) > 0 {
			if b.w.req.Trailer == nil {
				b.w.req.Trailer = http.Header{}
			}
			for k, v := range t {
				b.w.req.Trailer[k] = v
			}
		}
	}
	if _, reset := errors.AsType[frame.ResetCode](err); reset {
		err = fmt.Errorf("read request body: %w: %w", io.ErrUnexpectedEOF, err)
	}
	if err != nil && !isTimeout(err) {
		b.end = err
	}
	return n, err
}

// Close makes later reads fail. What the client still sends stays where it is: credit is
// only returned for what was read.
func (b *body) Close() error {
	b.closed = true
	return nil
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}
