package mux

import (
	"errors"
	"fmt"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// message takes one carrier message: whole frames in order.
func (s *Session) message(msg []byte) error {
	now := time.Now()
	s.lastSeen.Store(now.UnixNano())
	for len(msg) > 0 {
		f, rest, err := frame.Next(msg)
		if err != nil {
			return err
		}
		if err := s.frame(f, now); err != nil {
			return err
		}
		msg = rest
	}
	s.mu.Lock()
	if s.err != nil || s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.flush(false, nil) // a reader of the carrier never writes: two of them could wait for each other
	return nil
}

func protocolError(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, a...)...)
}

// flood counts a control frame. s.mu is held.
func (s *Session) flood(now time.Time) error {
	if s.controls++; s.controls <= floodLimit {
		if s.controls == 1 {
			s.flooded = now
		}
		return nil
	}
	if now.Sub(s.flooded) >= floodSpan {
		s.controls, s.earned, s.flooded = 1, 0, now
		return nil
	}
	if int64(s.controls) > s.earnedControl() {
		return errFlood
	}
	return nil
}

// frame takes one frame.
func (s *Session) frame(f frame.Frame, now time.Time) error {
	if isControl(f.Type, len(f.Body)) {
		s.mu.Lock()
		err := s.flood(now)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	switch f.Type {
	case frame.TypePing, frame.TypePong, frame.TypeNotify, frame.TypeNotifyAck, frame.TypeGoAway, frame.TypeDescribe, frame.TypeLocate,
		frame.TypeInvalidate, frame.TypeInvalidated, frame.TypeHello, frame.TypeAccept, frame.TypeChallenge:
		if f.Stream != 0 {
			return protocolError("%v on stream %d", f.Type, f.Stream)
		}
		return s.connectionFrame(f, now)
	case frame.TypeRequest:
		return s.request(f)
	case frame.TypeResponse:
		if !s.relay {
			return protocolError("RESPONSE from the relay")
		}
		return s.response(f)
	case frame.TypeData, frame.TypeDataEnd, frame.TypeTrailers, frame.TypeReset, frame.TypeWindow:
		return s.streamFrame(f)
	}
	if f.Type >= frame.Critical {
		return protocolError("unknown critical %v", f.Type)
	}
	return nil // an extension that we do not know
}

func (s *Session) connectionFrame(f frame.Frame, now time.Time) error {
	switch f.Type {
	case frame.TypePing:
		v, err := frame.ParseUint32(f.Body)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.relay {
			s.leases().ponged = now
		}
		if !s.controlFrame(frame.TypePong, 0, v) {
			return errQueue
		}
	case frame.TypePong:
		v, err := frame.ParseUint32(f.Body)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.out.flight.pong(v, now) && !s.lease.pong(v) {
			if back := s.dropPing(v); back != nil {
				close(back)
			}
		}
	case frame.TypeNotify:
		n, err := frame.ParseNotify(f.Body)
		switch {
		case err != nil:
			return err
		case !s.relay:
			return protocolError("NOTIFY from the relay")
		}
		s.handler.Notify(n)
	case frame.TypeNotifyAck:
		a, err := frame.ParseNotifyAck(f.Body)
		switch {
		case err != nil:
			return err
		case s.relay:
			return protocolError("NOTIFY_ACK from the device")
		}
		s.handler.Acked(tether.EventID{Epoch: a.Epoch, Seq: a.Seq})
	case frame.TypeDescribe:
		if !s.relay {
			return protocolError("DESCRIBE from the relay")
		}
		s.handler.Describe(f.Body)
	case frame.TypeLocate:
		lan, err := frame.ParseLocate(f.Body)
		switch {
		case err != nil:
			return err
		case !s.relay:
			return protocolError("LOCATE from the relay")
		}
		s.handler.Locate(lan)
	case frame.TypeInvalidate:
		v, err := frame.ParseInvalidate(f.Body)
		switch {
		case err != nil:
			return err
		case !s.relay:
			return protocolError("INVALIDATE from the relay")
		}
		s.handler.Invalidate(v)
		s.mu.Lock()
		defer s.mu.Unlock()
		done := frame.Invalidated{Epoch: v.Epoch, Seq: v.Seq}
		if !s.control(func(dst []byte) []byte { return frame.AppendInvalidated(dst, done) }) {
			return errQueue
		}
	case frame.TypeInvalidated:
		v, err := frame.ParseInvalidated(f.Body)
		switch {
		case err != nil:
			return err
		case s.relay:
			return protocolError("INVALIDATED from the device")
		}
		s.handler.Invalidated(v)
	case frame.TypeGoAway:
		g, err := frame.ParseGoAway(f.Body)
		if err != nil {
			return err
		}
		s.goneAway(g)
	default:
		return protocolError("%v on an open connection", f.Type)
	}
	return nil
}

// goneAway takes the peer's GOAWAY: no new streams, and those that it will not process are
// refused, which makes them safe to send again elsewhere.
func (s *Session) goneAway(g frame.GoAway) {
	s.mu.Lock()
	s.away = &g
	for _, w := range s.slots {
		close(w)
	}
	s.slots = nil
	if s.relay {
		for id, st := range s.streams {
			if id > g.LastStream {
				st.err = frame.ResetRefused
				st.drop()
				s.forget(st)
			}
		}
	}
	s.mu.Unlock()
	s.handler.GoAway(g)
}

// request takes a REQUEST (device).
func (s *Session) request(f frame.Frame) error {
	if s.relay {
		return protocolError("REQUEST from the device")
	}
	r, err := frame.ParseRequest(f.Body)
	if err != nil && !errors.Is(err, frame.ErrHead) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Stream <= s.lastID {
		return protocolError("REQUEST on stream %d after stream %d", f.Stream, s.lastID)
	}
	s.lastID = f.Stream
	s.earned += floodEarn
	refuse := func(code frame.ResetCode) error {
		if !s.controlFrame(frame.TypeReset, f.Stream, uint32(code)) {
			return errQueue
		}
		return nil
	}
	switch {
	case err != nil:
		return refuse(frame.ResetBadHead)
	case s.sentAway || len(s.streams) >= s.streamMax || s.running >= 2*s.streamMax+maxIdle || s.accept == nil:
		// Running counts handlers that outlive their stream, so that opening and
		// resetting quickly cannot pile them up.
		return refuse(frame.ResetRefused)
	}
	st := &Stream{
		s: s, id: f.Stream, sendCredit: s.sendWin, recvCredit: s.recvWin, window: s.recvWin,
		remoteEnd: r.Flags&frame.FlagEnd != 0, upgrade: r.Flags&frame.FlagUpgrade != 0,
	}
	if s.streams == nil {
		s.streams = make(map[uint32]*Stream)
	}
	s.streams[st.id] = st
	s.running++
	s.start(job{st, &r})
	return nil
}

// job is a request for the acceptor.
type job struct {
	st *Stream
	r  *frame.Request
}

// start gives j to a worker that waits, or to a new one: a worker's stack has grown to what
// a handler with TLS below it needs, and growing it anew for each request costs more than a
// tenth of the whole. s.mu is held.
func (s *Session) start(j job) {
	if s.idle > 0 {
		select {
		case s.work <- j:
			s.idle--
			return
		default:
		}
	}
	if s.work == nil {
		s.work = make(chan job, maxIdle)
	}
	go s.worker(j)
}

// worker runs the acceptor for one stream after another, and ends after a while without.
func (s *Session) worker(j job) {
	t := time.NewTimer(idleWorker)
	defer t.Stop()
	for {
		s.serve(j)
		s.mu.Lock()
		s.running--
		if s.idle == maxIdle || s.err != nil {
			s.mu.Unlock()
			return
		}
		s.idle++
		s.mu.Unlock()
		t.Reset(idleWorker)
		select {
		case j = <-s.work:
			continue
		case <-s.done:
			return
		case <-t.C:
		}
		s.mu.Lock()
		if s.idle > 0 {
			s.idle--
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		// As many jobs were given out as workers were idle: one of them is for this one.
		select {
		case j = <-s.work:
		case <-s.done:
			return
		}
	}
}

// serve runs the acceptor for one stream.
func (s *Session) serve(j job) {
	defer j.st.Reset(frame.ResetInternal) // a no-op after a clean end
	s.accept(j.st, j.r)
}

// response takes a RESPONSE (relay).
func (s *Session) response(f frame.Frame) error {
	s.mu.Lock()
	st, err := s.lookup(f)
	s.mu.Unlock()
	if st == nil {
		return err
	}
	h, err := frame.ParseResponse(f.Body)
	if err != nil && !errors.Is(err, frame.ErrHead) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	interim := h.Status < 200 && h.Status != 101
	switch {
	case st.err != nil:
		return nil
	case st.final:
		return protocolError("second RESPONSE on stream %d", f.Stream)
	case err != nil || len(st.heads) >= maxHeads || h.Status == 101 && !st.upgrade:
		return s.breakStream(st, frame.ResetBadHead)
	}
	st.heads = append(st.heads, h)
	s.earned += floodEarn
	if !interim {
		st.final = true
		if h.Flags&frame.FlagEnd != 0 {
			st.endRemote()
		}
	}
	wake(st.rsig)
	return nil
}

// lookup finds a frame's stream; nil without an error if the stream is over. s.mu is held.
func (s *Session) lookup(f frame.Frame) (*Stream, error) {
	if st := s.streams[f.Stream]; st != nil {
		return st, nil
	}
	if f.Stream == 0 || f.Stream > s.lastID {
		return nil, protocolError("%v on stream %d, the last one is %d", f.Type, f.Stream, s.lastID)
	}
	return nil, nil
}

// streamFrame takes what both sides send on a stream.
func (s *Session) streamFrame(f frame.Frame) error {
	var code uint32
	var trailers map[string][]string
	var err error
	switch f.Type {
	case frame.TypeReset, frame.TypeWindow:
		if code, err = frame.ParseUint32(f.Body); err != nil {
			return err
		}
	case frame.TypeTrailers:
		if trailers, err = frame.ParseTrailers(f.Body); err != nil && !errors.Is(err, frame.ErrHead) {
			return err
		}
	}
	s.mu.Lock()
	st, lookErr := s.lookup(f)
	if st == nil || st.err != nil {
		s.mu.Unlock()
		return lookErr
	}
	switch f.Type {
	case frame.TypeReset:
		stop := st.resetByPeer(frame.ResetCode(code))
		s.mu.Unlock()
		if stop != nil {
			stop()
		}
		return nil
	case frame.TypeWindow:
		defer s.mu.Unlock()
		if st.sendCredit += int64(code); st.sendCredit > maxCredit {
			return s.breakStream(st, frame.ResetFlow)
		}
		if st.writing && st.sendCredit > 0 {
			s.line(st)
		}
		return nil
	}
	defer s.mu.Unlock()
	switch {
	case st.remoteEnd:
		return protocolError("%v on stream %d after its end", f.Type, st.id)
	case s.relay && !st.final:
		return protocolError("%v on stream %d before its RESPONSE", f.Type, st.id)
	case err != nil: // trailers that may not become an HTTP message
		return s.breakStream(st, frame.ResetBadHead)
	}
	if f.Type != frame.TypeTrailers {
		if int64(len(f.Body)) > st.recvCredit {
			return s.breakStream(st, frame.ResetFlow)
		}
		st.recvCredit -= int64(len(f.Body))
		s.earned += int64(len(f.Body))
		st.recv.push(f.Body, s.budget)
	}
	if f.Type != frame.TypeData {
		st.trailers = trailers
		st.endRemote()
	}
	wake(st.rsig)
	return nil
}

// endRemote notes that the peer's direction is over. s.mu is held.
func (st *Stream) endRemote() {
	st.remoteEnd = true
	if st.localEnd {
		st.s.forget(st)
	}
}

// resetByPeer takes a RESET; what it returns is to be called without the lock. After the
// peer's own END it only stops what we send. s.mu is held.
func (st *Stream) resetByPeer(code frame.ResetCode) (stop func()) {
	if st.remoteEnd {
		st.sendErr = code
		if code == frame.ResetNone {
			st.sendErr = ErrStopped
		}
		st.localEnd = true
		st.s.unline(st)
		wake(st.wsig)
	} else {
		st.err = code
		st.drop()
	}
	st.s.forget(st)
	stop, st.onStop = st.onStop, nil
	return stop
}

// breakStream ends a stream that the peer misused, and tells it. s.mu is held.
func (s *Session) breakStream(st *Stream, code frame.ResetCode) error {
	st.err = code
	st.drop()
	s.forget(st)
	if st.onStop != nil {
		stop := st.onStop
		st.onStop = nil
		go stop()
	}
	if !s.controlFrame(frame.TypeReset, st.id, uint32(code)) {
		return errQueue
	}
	return nil
}
