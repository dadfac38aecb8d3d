package exchange

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// upload sends the request's body from a goroutine of its own, since answers may come
// early.
type upload struct {
	w      http.ResponseWriter
	r      *http.Request
	st     *mux.Stream
	last   atomic.Int64  // Unix nanoseconds of the last progress
	start  chan struct{} // closed when the body may be read; nil: at once
	once   sync.Once
	linger atomic.Bool   // the answer is complete: read the rest away
	over   chan struct{} // closed by stop
	done   chan struct{}
}

func startUpload(w http.ResponseWriter, r *http.Request, st *mux.Stream) *upload {
	u := &upload{w: w, r: r, st: st, over: make(chan struct{}), done: make(chan struct{})}
	if r.ProtoMajor == 1 {
		_ = http.NewResponseController(w).EnableFullDuplex() // or net/http reads the body away before an early answer
	}
	if hasToken(r.Header["Expect"], "100-continue") {
		u.start = make(chan struct{})
	}
	u.last.Store(time.Now().UnixNano())
	go u.run()
	return u
}

// proceed lets the body go after the device's 100 or final head.
func (u *upload) proceed() {
	if u.start != nil {
		u.once.Do(func() { close(u.start) })
	}
}

func (u *upload) progress() time.Time { return time.Unix(0, u.last.Load()) }

// pending reports whether the body is still being read.
func (u *upload) pending() bool {
	select {
	case <-u.done:
		return false
	default:
		return true
	}
}

// stop returns when nobody reads the body any more. After a complete answer the client
// has a moment to read it before its connection closes, during which what it still sends
// is read away: closing at once would destroy the answer on its way (RFC 9112 §9.6).
func (u *upload) stop(answered bool) {
	u.proceed()
	if !u.pending() {
		return
	}
	until := time.Unix(1, 0) // a Read of a slow client's body would wait on
	rc := http.NewResponseController(u.w)
	if answered && rc.Flush() == nil {
		u.linger.Store(true)
		until = time.Now().Add(lingerTime)
	}
	_ = rc.SetReadDeadline(until)
	close(u.over)
	<-u.done
}

// away reads what the client still sends, within the deadline that stop sets.
func (u *upload) away(buf []byte) {
	for n := 0; u.linger.Load() && n < lingerBytes; {
		m, err := u.r.Body.Read(buf)
		if err != nil {
			return
		}
		n += m
	}
}

var uploads = sync.Pool{New: func() any { b := make([]byte, hold); return &b }}

func (u *upload) run() {
	defer close(u.done)
	if u.start != nil {
		t := time.NewTimer(continueWait)
		select {
		case <-u.start:
		case <-t.C:
		}
		t.Stop()
	}
	buf := uploads.Get().(*[]byte)
	defer uploads.Put(buf)
	total := int64(0)
	for {
		n, err := u.r.Body.Read(*buf)
		total += int64(n)
		u.last.Store(time.Now().UnixNano())
		end := err == io.EOF || err == nil && total == u.r.ContentLength
		switch {
		case end && len(u.r.Trailer) > 0:
			if n > 0 {
				if _, err := u.st.Write((*buf)[:n]); err != nil {
					return
				}
			}
			_ = u.st.Trailers(u.r.Trailer)
			return
		case end:
			_ = u.st.End((*buf)[:n])
			return
		}
		if n > 0 {
			if _, werr := u.st.Write((*buf)[:n]); werr != nil {
				// The answer, or its failure, is the other goroutine's.
				<-u.over
				u.away(*buf)
				return
			}
			u.last.Store(time.Now().UnixNano())
		}
		if err != nil {
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				u.st.Fail(frame.ResetTooLarge, err)
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				u.st.Fail(frame.ResetClientBody, err)
			}
			return
		}
	}
}
