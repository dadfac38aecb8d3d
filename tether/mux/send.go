package mux

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

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
		waitUntil(room, context.Background(), dl)
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
