package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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

// ---- sending

// sendable is the error that a Write has now. s.mu is held.
func (st *Stream) sendable() error {
	switch {
	case st.err != nil:
		return st.err
	case st.sendErr != nil:
		return st.sendErr
	case st.localEnd:
		return ErrEnded
	}
	return nil
}

// leak lets old bytes fade out of burst, for the time since the last Write ended: a stream
// that always has more to send is a long one, however slow the link. s.mu is held.
func (st *Stream) leak() {
	if st.burst == 0 {
		return
	}
	now := time.Now()
	if !st.burstAt.IsZero() {
		st.burst = max(0, min(st.burst, 4*shortBurst)-int(now.Sub(st.burstAt).Milliseconds())*shortLeak)
	}
	st.burstAt = now
}

// Write sends p, waiting for credit and for the stream's turn; p is not kept. It fails with
// os.ErrDeadlineExceeded after the write deadline, with ErrStopped when the peer wants no
// more, with a frame.ResetCode, or with the session's error.
func (st *Stream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return st.write(nil, p, false)
}

// End sends p and ends our direction.
func (st *Stream) End(p []byte) error {
	_, err := st.write(nil, p, true)
	return err
}

// Head is an encoded response head that has not been sent yet.
type Head struct{ m *message }

// Encode fixes a response head as it is now, for Respond or Drop. It fails with
// frame.ErrHead when the head may not travel.
func (st *Stream) Encode(head *frame.Response) (Head, error) {
	m := newMessage()
	var err error
	if m.b, err = frame.AppendResponse(m.b, st.id, head); err != nil {
		m.free()
		return Head{}, err
	}
	return Head{m}, nil
}

// Drop frees a head that will not be sent.
func (h Head) Drop() {
	if h.m != nil {
		h.m.free()
	}
}

// Respond sends a head, which is used up, and the bytes p behind it, in one message when
// they are few; end ends our direction. Errors as Write.
func (st *Stream) Respond(h Head, p []byte, end bool) error {
	if end && len(p) == 0 {
		h.m.b[frame.HeaderSize] |= frame.FlagEnd // flags are a head's first byte
	}
	_, err := st.write(h.m, p, end)
	return err
}

// Trailers ends our direction with trailer fields.
func (st *Stream) Trailers(h map[string][]string) error {
	m := newMessage()
	var err error
	if m.b, err = frame.AppendTrailers(m.b, st.id, h); err != nil {
		m.free()
		return err
	}
	_, err = st.write(m, nil, true)
	return err
}

// write sends what m holds already, then p. m may be nil; it belongs to write. With m and
// an end but no p, m says itself that it is the end.
func (st *Stream) write(m *message, p []byte, end bool) (int, error) {
	s := st.s
	s.mu.Lock()
	if st.writing {
		s.mu.Unlock()
		panic("mux: concurrent Write on a stream")
	}
	if err := st.sendable(); err != nil {
		s.mu.Unlock()
		if m != nil {
			m.free()
		}
		return 0, err
	}
	size := 0
	if m != nil {
		size = len(m.b)
		if err := st.waitRoom(); err != nil {
			s.mu.Unlock()
			m.free()
			return 0, err
		}
	}
	st.leak()
	data := len(p) > 0 || end && m == nil
	quick := len(p) <= chunkSize && int64(len(p)) <= st.sendCredit && st.burst+len(p) <= shortBurst &&
		s.out.bytes+size+len(p) <= outLimit+controlLimit/2
	if data && (quick || len(p) == 0) {
		if m == nil {
			m = newMessage()
		}
		m.b = frame.AppendData(m.b, st.id, p, end)
		st.sendCredit -= int64(len(p))
		st.burst += len(p)
		s.earned += int64(max(len(p), floodEarn))
		data = false
	}
	if m != nil {
		s.queue(m)
		st.lastFirst = s.out.queued
	}
	if !data {
		if end {
			st.endLocal()
		}
		s.flush(true, nil)
		return len(p), nil
	}
	st.wbuf, st.wend, st.writing = p, end, true
	if st.wsig == nil {
		st.wsig = make(chan struct{}, 1)
	}
	if st.sendCredit > 0 {
		s.line(st)
	}
	s.flush(true, st)
	for {
		s.mu.Lock()
		err := error(nil)
		if st.writing {
			if err = st.sendable(); err == nil && expired(st.wdl) {
				err = os.ErrDeadlineExceeded
			}
		}
		if err != nil || !st.writing {
			n := len(p) - len(st.wbuf)
			s.unline(st)
			st.wbuf, st.writing = nil, false
			st.burstAt = time.Now()
			s.mu.Unlock()
			return n, err
		}
		st.wdue = st.wdl
		s.watchFor(st.wdue)
		s.mu.Unlock()
		<-st.wsig
	}
}

// waitRoom waits until a head may be queued. s.mu is held, before and after.
func (st *Stream) waitRoom() error {
	s := st.s
	for s.out.bytes >= outLimit {
		room := s.waitRoomChan()
		dl := st.wdl
		s.mu.Unlock()
		waitUntil(room, nil, dl)
		s.mu.Lock()
		if err := st.sendable(); err != nil {
			return err
		}
		if expired(st.wdl) {
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

// endLocal notes that our direction is over. s.mu is held.
func (st *Stream) endLocal() {
	st.localEnd = true
	if st.remoteEnd {
		st.s.forget(st)
	}
}

// Reset ends the stream in both directions with code, tells the peer, and frees what was
// queued. It may be called at any time, also after the end, when it only frees: every
// owner calls it last. Code frame.ResetNone after our END says "stop sending".
func (st *Stream) Reset(code frame.ResetCode) {
	s := st.s
	s.mu.Lock()
	open := st.err == nil && !(st.localEnd && st.remoteEnd)
	if st.err == nil {
		st.err = code
	}
	st.reset(code, open)
}

// reset is the rest of Reset. s.mu is held, and released.
func (st *Stream) reset(code frame.ResetCode, open bool) {
	s := st.s
	st.onStop = nil
	st.drop()
	if open && s.err == nil {
		if !s.controlFrame(frame.TypeReset, st.id, uint32(code)) {
			s.mu.Unlock()
			s.fail(errQueue)
			return
		}
		st.lastFirst = s.out.queued
	}
	s.forget(st)
	s.flush(true, nil)
}

// Fail is Reset with code for an error of our own side, which waiters of this side then
// get instead of the code.
func (st *Stream) Fail(code frame.ResetCode, err error) {
	st.s.mu.Lock()
	open := st.err == nil && !(st.localEnd && st.remoteEnd)
	if open {
		st.err = fmt.Errorf("%w: %w", err, code)
	}
	st.reset(code, open)
}

// drop frees what nobody will read and wakes all waiters. s.mu is held.
func (st *Stream) drop() {
	st.recv.drop(st.s.budget)
	st.s.unline(st)
	wake(st.rsig)
	wake(st.wsig)
}

// ---- receiving

// Read takes bytes of the peer's direction; io.EOF after its end. It waits no longer than
// the read deadline (os.ErrDeadlineExceeded).
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s := st.s
	s.mu.Lock()
	if err := st.waitData(nil); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := 0
	for n < len(p) && st.recv.head != nil {
		c := st.recv.head
		m := copy(p[n:], c.buf[c.r:c.w])
		n += m
		c.r += m
		st.recv.bytes -= m
		if c.r == c.w {
			st.recv.pop()
			s.budget.add(-len(c.buf))
			c.free()
		}
	}
	st.consume(n)
	return n, nil
}

// WriteChunk waits for bytes, writes one run of them to w and only then counts them as
// consumed. more reports whether further bytes, or the end, are there already: without
// them it is time to flush. ctx ends the wait, not the write. After the end it gives io.EOF.
func (st *Stream) WriteChunk(ctx context.Context, w io.Writer) (n int, more bool, err error) {
	s := st.s
	s.mu.Lock()
	if err := st.waitData(ctx); err != nil {
		s.mu.Unlock()
		return 0, false, err
	}
	c := st.recv.pop()
	s.mu.Unlock()
	want := c.w - c.r
	n, err = w.Write(c.buf[c.r:c.w])
	if err == nil && n < want {
		err = io.ErrShortWrite
	}
	s.mu.Lock()
	s.budget.add(-len(c.buf))
	c.free()
	more = st.recv.head != nil || st.remoteEnd || st.err != nil
	st.consume(want)
	return n, more, err
}

// waitData waits until there are bytes. s.mu is held, before and after; ctx may be nil.
func (st *Stream) waitData(ctx context.Context) error {
	for {
		switch {
		case st.recv.head != nil:
			return nil
		case st.err != nil:
			return st.err
		case st.remoteEnd:
			return io.EOF
		case expired(st.rdl):
			return os.ErrDeadlineExceeded
		case ctx != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if st.rsig == nil {
			st.rsig = make(chan struct{}, 1)
		}
		st.rdue = st.rdl
		st.s.watchFor(st.rdue)
		st.s.mu.Unlock()
		waitSignal(st.rsig, ctx)
		st.s.mu.Lock()
		st.rdue = time.Time{}
	}
}

// consume counts n bytes as read and returns credit once half of the window is. s.mu is
// held, and released.
func (st *Stream) consume(n int) {
	s := st.s
	st.consumed += int64(n)
	if st.err != nil || st.remoteEnd || st.consumed < st.window/2 {
		s.mu.Unlock()
		return
	}
	grant := st.consumed
	now := time.Now()
	switch tight := s.budget.tight(); {
	case tight && st.window > MinWindow:
		// Withhold what is over the smallest window, so that it shrinks back.
		keep := min(grant, st.window-MinWindow)
		st.window -= keep
		grant -= keep
	case !tight && s.grow && int64(st.recv.bytes) < st.window/2 && st.window < MaxWindow && now.Sub(st.returned) < growTime:
		// The reader is faster than the window lets the peer be.
		larger := int64(GrownWindow)
		if st.window >= GrownWindow {
			larger = MaxWindow
		}
		grant += larger - st.window
		st.window = larger
	}
	st.returned = now
	st.consumed = 0
	if grant == 0 {
		s.mu.Unlock()
		return
	}
	st.recvCredit += grant
	if !s.controlFrame(frame.TypeWindow, st.id, uint32(grant)) {
		s.mu.Unlock()
		s.fail(errQueue)
		return
	}
	s.flush(true, nil)
}

// Ready reports whether WriteChunk would not wait.
func (st *Stream) Ready() bool {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.recv.head != nil || st.remoteEnd || st.err != nil
}

// Received says whether the peer's direction is over and all of it read, and gives its
// trailer fields, if any, which belong to the caller then.
func (st *Stream) Received() (trailers map[string][]string, end bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if !st.remoteEnd || st.recv.head != nil || st.err != nil {
		return nil, false
	}
	return st.trailers, true
}

// PeekTrailers gives the trailer fields that have come, before the body has been read.
func (st *Stream) PeekTrailers() (trailers map[string][]string, end bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.trailers, st.remoteEnd
}

// Buffered is how many bytes wait to be read, and whether nothing follows them.
func (st *Stream) Buffered() (n int, whole bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.recv.bytes, st.remoteEnd && st.err == nil
}

// Head takes the next response head, interim ones first. It waits until the time has come
// (ErrHeadTimeout) or ctx is done. While it waits and the device is silent for long, the
// device is asked; without an answer the session fails with ErrSilent.
func (st *Stream) Head(ctx context.Context, until time.Time) (frame.Response, error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case len(st.heads) > 0:
			h := st.heads[0]
			st.heads[0] = frame.Response{}
			st.heads = st.heads[1:]
			return h, nil
		case st.err != nil:
			return frame.Response{}, st.err
		case ctx.Err() != nil:
			return frame.Response{}, context.Cause(ctx)
		}
		now := time.Now()
		if !now.Before(until) {
			return frame.Response{}, ErrHeadTimeout
		}
		look, err := s.probe(st, now)
		if err != nil {
			s.mu.Unlock()
			s.fail(err)
			s.mu.Lock()
			continue
		}
		if look.After(until) {
			look = until
		}
		st.rdue = look
		s.watchFor(look)
		s.mu.Unlock()
		waitSignal(st.rsig, ctx)
		s.mu.Lock()
		st.rdue = time.Time{}
	}
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
	if ctx == nil {
		<-sig
		return
	}
	select {
	case <-sig:
	case <-ctx.Done():
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
	var done <-chan struct{}
	if ctx != nil {
		done = ctx.Done()
	}
	select {
	case <-sig:
	case <-done:
	case <-t.C:
	}
}
