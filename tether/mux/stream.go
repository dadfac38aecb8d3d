package mux

import (
	"context"
	"errors"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Stream is one exchange. One goroutine may read while another writes; Reset and the
// deadlines are for anyone. Streams are never reused: a Body or a hijacked connection may
// keep one for ever.
type Stream struct {
	s  *Session
	id uint32

	// All guarded by s.mu.

	err       error // the whole stream is over
	sendErr   error // the peer wants no more of what we send
	localEnd  bool  // our END is queued or sent
	remoteEnd bool  // the peer's END has come
	endless   bool  // a drain need not wait for it
	slot      bool  // counts against the stream limit
	onStop    func()

	sendCredit int64
	wbuf       []byte // what Write waits to have taken
	wend       bool
	writing    bool // a Write waits
	queuedOut  bool // in a ring
	inShort    bool // which one
	nextOut    *Stream
	lastFirst  uint64    // number of the last passing message with a frame of this stream
	burst      int       // bytes sent lately
	burstAt    time.Time // end of the last Write
	wsig       chan struct{}
	wdl        time.Time
	wdue       time.Time // when the watch wakes the waiting Write; zero: not at all

	recv       queue
	recvCredit int64 // what the peer may still send
	window     int64 // recvCredit when everything is consumed and returned
	consumed   int64 // not yet returned
	returned   time.Time
	heads      []frame.Response // relay: FIFO, or an interim head would be overwritten by the final one
	final      bool             // the final head has come
	upgrade    bool             // REQUEST asked for a tunnel
	trailers   map[string][]string
	rsig       chan struct{}
	rdl        time.Time
	rdue       time.Time // as wdue, for Read and Head
	opened     time.Time
}

// Errors of streams. A stream that the peer reset fails with its frame.ResetCode.
var (
	ErrEnded       = errors.New("write after the end of the stream")
	ErrHeadTimeout = errors.New("no response head in time")
	// ErrStopped means that the peer needs no more of what we send; its answer is complete.
	ErrStopped = errors.New("the peer needs no more")
)

// wake signals a waiter that looks at the state again.
func wake(c chan struct{}) {
	if c != nil {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// ID is the stream's number on its connection.
func (st *Stream) ID() uint32 { return st.id }

// Session is the connection that the stream runs on.
func (st *Stream) Session() *Session { return st.s }

// OnStop has f called, once and from any goroutine, when the peer resets the stream or the
// session ends; at once if that has happened. It is to be set before others use the stream.
func (st *Stream) OnStop(f func()) {
	st.s.mu.Lock()
	if st.err == nil && st.sendErr == nil {
		st.onStop = f
		f = nil
	}
	st.s.mu.Unlock()
	if f != nil {
		f()
	}
}

// Endless says that the stream ends by somebody going away and not by itself, as event
// streams and tunnels do: Session.Drain does not wait for it.
func (st *Stream) Endless() {
	st.s.mu.Lock()
	st.endless = true
	st.s.mu.Unlock()
}

// SetReadDeadline bounds Read; the zero time lifts the bound.
func (st *Stream) SetReadDeadline(t time.Time) {
	st.s.mu.Lock()
	st.rdl = t
	wake(st.rsig)
	st.s.mu.Unlock()
}

// SetWriteDeadline bounds Write; the zero time lifts the bound.
func (st *Stream) SetWriteDeadline(t time.Time) {
	st.s.mu.Lock()
	st.wdl = t
	wake(st.wsig)
	st.s.mu.Unlock()
}

func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// waitSignal waits for a signal or ctx, which may be nil. Deadlines are the watch's.
func waitSignal(sig <-chan struct{}, ctx context.Context) {
	done := ctx.Done()
	if done == nil { // it cannot end: no need to select
		<-sig
		return
	}
	select {
	case <-sig:
	case <-done:
	}
}

// waitUntil is waitSignal for the rare waits that have a deadline of their own; the zero
// time means none.
func waitUntil(sig <-chan struct{}, ctx context.Context, deadline time.Time) {
	if deadline.IsZero() {
		waitSignal(sig, ctx)
		return
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-sig:
	case <-ctx.Done():
	case <-t.C:
	}
}
