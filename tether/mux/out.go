package mux

import (
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Output has two ways. Frames that pass first (heads, short answers, control) are encoded
// by their makers and queued; what long streams send stays in their Write's own slice
// until it is that stream's turn, so no queue of it exists that could grow.

// message is one carrier message in the making: whole frames.
type message struct {
	b    []byte
	next *message
}

var messagePool = sync.Pool{New: func() any { return &message{b: make([]byte, 0, messageCap)} }}

// messageCap holds one full DATA frame and a PING; heads may need more.
const messageCap = 16 << 10

func newMessage() *message { return messagePool.Get().(*message) }

func (m *message) free() {
	if cap(m.b) <= 2*messageCap {
		m.b = m.b[:0]
		messagePool.Put(m)
	}
}

// output is a session's output, guarded by its mutex.
type output struct {
	first   *message // passes first; FIFO
	last    *message
	bytes   int           // in first
	queued  uint64        // messages ever put in first
	popped  uint64        // and taken out
	short   ring          // streams whose Write waits and that sent little lately
	long    ring          // the others
	turn    bool          // the last message came from first or short: a long stream may send now
	writing bool          // somebody runs write
	room    chan struct{} // closed when bytes falls under outLimit; nil: nobody waits
	idle    chan struct{} // closed when the writer ends; nil: nobody waits
	flight  *flight       // what of long streams is on its way; nil until one sent
}

// ring is a list of streams that take turns.
type ring struct{ head, tail *Stream }

func (r *ring) push(st *Stream) {
	st.nextOut = nil
	if r.tail == nil {
		r.head = st
	} else {
		r.tail.nextOut = st
	}
	r.tail = st
}

func (r *ring) pop() *Stream {
	st := r.head
	if st == nil {
		return nil
	}
	if r.head = st.nextOut; r.head == nil {
		r.tail = nil
	}
	st.nextOut = nil
	return st
}

func (r *ring) remove(st *Stream) {
	var before *Stream
	for s := r.head; s != nil; before, s = s, s.nextOut {
		if s != st {
			continue
		}
		if before == nil {
			r.head = s.nextOut
		} else {
			before.nextOut = s.nextOut
		}
		if r.tail == s {
			r.tail = before
		}
		s.nextOut = nil
		return
	}
}

// queue adds a message that passes first; it belongs to the queue now. s.mu is held.
func (s *Session) queue(m *message) {
	s.out.bytes += len(m.b)
	last := s.out.last
	switch {
	case last == nil:
		s.out.first = m
	case len(last.b)+len(m.b) <= min(cap(last.b), messageCap):
		// Frames that wait together travel together, as far as one message goes.
		last.b = append(last.b, m.b...)
		m.free()
		return
	default:
		last.next = m
	}
	s.out.last = m
	s.out.queued++
}

// control adds a small frame that may exceed the queue's bound. s.mu is held. It reports
// whether the queue could take it; else the session must end.
func (s *Session) control(add func(dst []byte) []byte) bool {
	if s.out.bytes > outLimit+controlLimit {
		return false
	}
	if last := s.out.last; last != nil && cap(last.b)-len(last.b) >= 64 {
		before := len(last.b)
		last.b = add(last.b)
		s.out.bytes += len(last.b) - before
		return true
	}
	m := newMessage()
	m.b = add(m.b)
	s.queue(m)
	return true
}

// controlFrame is control for the frames of one number.
func (s *Session) controlFrame(t frame.Type, stream, v uint32) bool {
	return s.control(func(dst []byte) []byte {
		switch t {
		case frame.TypeWindow:
			return frame.AppendWindow(dst, stream, v)
		case frame.TypeReset:
			return frame.AppendReset(dst, stream, frame.ResetCode(v))
		case frame.TypePing:
			return frame.AppendPing(dst, v)
		default:
			return frame.AppendPong(dst, v)
		}
	})
}

// ready reports whether a message could be sent now. s.mu is held.
func (s *Session) ready() bool {
	return s.out.first != nil || s.out.short.head != nil || s.out.long.head != nil && s.out.flight.open()
}

// next makes the next message; nil if there is none. s.mu is held. Messages that pass
// first and long ones take turns: a short answer waits for one DATA frame at most, and a
// flood of short ones leaves the long ones half. A stream's long bytes never pass what it
// queued before (lastFirst).
func (s *Session) next() *message {
	o := &s.out
	long := o.long.head != nil && o.flight.open() && o.long.head.lastFirst <= o.popped
	if long && o.turn || o.first == nil && o.short.head == nil {
		if !long {
			return nil
		}
		if o.flight == nil {
			o.flight = &flight{limit: startFlight, starting: true}
		}
		m := newMessage()
		if token, ok := o.flight.alone(s); ok {
			m.b = frame.AppendPing(m.b, token)
			return m
		}
		o.turn = false
		n := s.take(m, o.long.pop(), o.flight.chunk())
		if token, ok := o.flight.sent(n, s); ok {
			m.b = frame.AppendPing(m.b, token)
		}
		return m
	}
	o.turn = true
	if m := o.first; m != nil {
		if o.first = m.next; o.first == nil {
			o.last = nil
		}
		m.next = nil
		o.popped++
		o.bytes -= len(m.b)
		if o.room != nil && o.bytes < outLimit {
			close(o.room)
			o.room = nil
		}
		return m
	}
	m := newMessage()
	s.take(m, o.short.pop(), chunkSize)
	return m
}

// take encodes the next frame of a stream whose Write waits, and puts the stream back in
// line if it has more and credit for it.
func (s *Session) take(m *message, st *Stream, most int64) int {
	n := int(min(int64(len(st.wbuf)), most, st.sendCredit))
	end := st.wend && n == len(st.wbuf)
	m.b = frame.AppendData(m.b, st.id, st.wbuf[:n], end)
	st.wbuf = st.wbuf[n:]
	st.sendCredit -= int64(n)
	st.burst += n
	s.earned += int64(max(n, floodEarn))
	st.queuedOut = false
	switch {
	case len(st.wbuf) == 0:
		if end {
			st.endLocal()
		}
		st.writing = false
		wake(st.wsig)
	case st.sendCredit > 0:
		s.line(st)
	}
	return n
}

// line puts a stream with bytes and credit in line. s.mu is held.
func (s *Session) line(st *Stream) {
	if st.queuedOut {
		return
	}
	st.queuedOut = true
	if st.inShort = st.burst < shortBurst; st.inShort {
		s.out.short.push(st)
	} else {
		s.out.long.push(st)
	}
}

// unline takes a stream out of the line. s.mu is held.
func (s *Session) unline(st *Stream) {
	if !st.queuedOut {
		return
	}
	st.queuedOut = false
	if st.inShort {
		s.out.short.remove(st)
	} else {
		s.out.long.remove(st)
	}
}

// flush sends what there is, if nobody does yet; s.mu is held, and released. With help the
// caller's goroutine writes the first message itself, which saves a switch and is not for
// readers of the carrier; with a stream it goes on while that stream's Write waits for its turn.
func (s *Session) flush(help bool, st *Stream) {
	if s.out.writing || s.mute != nil || !s.ready() {
		s.mu.Unlock()
		return
	}
	s.out.writing = true
	if help {
		s.write(1, st)
		return
	}
	s.mu.Unlock()
	go func() {
		s.mu.Lock()
		s.write(0, nil)
	}()
}

// write sends message after message; s.mu is held, and released at the end. After most
// messages (0: no limit) another goroutine goes on.
func (s *Session) write(most int, st *Stream) {
	for n := 0; ; n++ {
		if s.err != nil || s.mute != nil {
			break
		}
		if most > 0 && n >= most && (st == nil || !st.queuedOut) && s.ready() {
			s.mu.Unlock()
			go func() {
				s.mu.Lock()
				s.write(0, nil)
			}()
			return
		}
		m := s.next()
		if m == nil {
			break
		}
		s.mu.Unlock()
		err := s.carrier.Write(m.b)
		m.free()
		if s.keepalive > 0 {
			s.lastSent.Store(time.Now().UnixNano())
		}
		if err != nil {
			s.broken(&LostError{Act: "write", Err: err})
		}
		s.mu.Lock()
	}
	s.out.writing = false
	if s.out.idle != nil {
		close(s.out.idle)
		s.out.idle = nil
	}
	s.mu.Unlock()
}
