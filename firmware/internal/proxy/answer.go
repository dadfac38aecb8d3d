package proxy

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// inform passes an informational answer on (RFC 9110 §15.2). HTTP/1.0 has none.
func (x *exchange) inform(status int, fields []origin.Field) error {
	if !x.r.ProtoAtLeast(1, 1) {
		return nil
	}
	h := x.w.Header()
	for _, f := range fields {
		h[f.Name] = append(h[f.Name], f.Value)
	}
	x.w.WriteHeader(status)
	for _, f := range fields {
		delete(h, f.Name) // they were for this head only
	}
	h[tether.HeaderID] = []string{x.id}
	return nil
}

// answer passes the final answer on.
func (x *exchange) answer() {
	resp := x.resp
	if resp.Status == http.StatusSwitchingProtocols {
		x.upgraded()
		return
	}
	events := false
	for i := range resp.Fields {
		if f := &resp.Fields[i]; f.Name == "Content-Type" {
			events = strings.HasPrefix(strings.ToLower(f.Value), "text/event-stream")
		}
	}
	if events && x.r.Method != http.MethodHead {
		if err := x.stream(resp.Abort); err != nil {
			x.refuseFor(err)
			return
		}
		defer x.unstream()
		resp.SetTimeout(0) // events may be rare
	}
	x.responseFields(resp.Fields)
	h := x.w.Header()
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // the server in front is not to guess (RFC 9110 §8.3)
	}
	if v := x.r.Header[tether.HeaderSequenceID]; len(v) > 0 && h[tether.HeaderSequenceID] == nil {
		h[tether.HeaderSequenceID] = v
	}
	if resp.Sending() && x.r.ProtoMajor == 1 {
		// The rest of the request's body may never be read: what follows on this
		// connection would not be a request.
		h["Connection"] = []string{"close"}
	}
	x.w.WriteHeader(resp.Status)
	if err := x.copyBody(); err != nil {
		// Never a clean end for half an answer (RFC 9112 §8).
		panic(http.ErrAbortHandler)
	}
	x.trailers()
}

// copyBody streams the body. Bodies of unknown length are flushed whenever the origin
// has nothing more at hand; those of known length leave when the server's buffer is
// full, or at the end.
func (x *exchange) copyBody() error {
	resp := x.resp
	unflushed := true // the head, to begin with
	total := int64(0)
	for !resp.Done() {
		if !resp.Ready() {
			if resp.Length < 0 && unflushed {
				x.flush()
				unflushed = false
			}
			if x.timer == nil {
				x.lasting()
			}
		}
		if total > longAnswer {
			return x.copyLong()
		}
		b, err := resp.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			x.log(err)
			return err
		}
		if _, err := x.w.Write(b); err != nil {
			return err
		}
		total += int64(len(b))
		unflushed = true
	}
	return nil
}

// copyLong is copyBody for the rest of a long body: larger steps, and a client that
// reads nothing for too long is given up.
func (x *exchange) copyLong() error {
	resp := x.resp
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	patience := x.p.conf.ClientTimeout
	var stalled atomic.Bool
	var timer *time.Timer
	if patience > 0 {
		w := x.w
		timer = time.AfterFunc(patience, func() {
			stalled.Store(true)
			_ = http.NewResponseController(w).SetWriteDeadline(past)
		})
		defer timer.Stop()
	}
	unflushed := true
	for {
		if resp.Length < 0 && unflushed && !resp.Ready() {
			if timer != nil {
				timer.Reset(patience)
			}
			x.flush()
			unflushed = false
		}
		if timer != nil {
			timer.Stop()
		}
		n, err := resp.Read(buf[:])
		if n > 0 {
			if timer != nil {
				timer.Reset(patience)
			}
			if _, werr := x.w.Write(buf[:n]); werr != nil {
				return werr
			}
			unflushed = true
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			x.log(err)
			return err
		}
		if stalled.Load() {
			return errTooSlow
		}
	}
}

func (x *exchange) flush() {
	if f, ok := x.w.(http.Flusher); ok {
		f.Flush()
		return
	}
	_ = http.NewResponseController(x.w).Flush()
}

// trailers passes trailer fields on (RFC 9110 §6.5). Those that the origin announced in
// Trailer are known to the server; others need the server's prefix, and a flush so that
// it does not settle for a Content-Length.
func (x *exchange) trailers() {
	fields := x.resp.Trailer()
	if len(fields) == 0 {
		return
	}
	h := x.w.Header()
	announced := strings.Join(h["Trailer"], ",")
	flushed := false
	for _, f := range fields {
		name := f.Name
		if !hasToken(announced, name) {
			name = http.TrailerPrefix + name
			if !flushed {
				x.flush()
				flushed = true
			}
		} else if !flushed {
			// Announced names may also be ordinary fields of the head; those are gone now.
			delete(h, name)
		}
		h[name] = append(h[name], f.Value)
	}
}

// stream moves the exchange out of its slot because it will last. end is called when
// the proxy closes.
func (x *exchange) stream(end func()) error {
	if x.ticket != nil {
		if err := x.ticket.Stream(); err != nil {
			return err
		}
	}
	p := x.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return origin.ErrClosed
	}
	p.streams[x] = end
	return nil
}

func (x *exchange) unstream() {
	x.p.mu.Lock()
	delete(x.p.streams, x)
	x.p.mu.Unlock()
}

// lasting lets the exchange count as a stream once it has lasted for long and it is not
// the origin's thinking that it waits for.
func (x *exchange) lasting() {
	if x.ticket == nil {
		return
	}
	t, after := x.ticket, x.p.conf.StreamAfter
	var timer *time.Timer
	ready := make(chan struct{})
	timer = time.AfterFunc(after, func() {
		<-ready
		if !x.answered.Load() && (x.body == nil || x.body.whole.Load()) {
			timer.Reset(after)
			return
		}
		if t.Stream() != nil {
			timer.Reset(after) // perhaps a place comes free
		}
	})
	x.timer = timer
	close(ready)
}
