package mux

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Open sends a REQUEST on a new stream (relay). When all streams of the device are taken
// it waits for one, a few seconds at most and with few others (ErrBusy). Without
// frame.FlagEnd the body is to be written then. The caller calls Reset in the end.
func (s *Session) Open(ctx context.Context, r *frame.Request) (*Stream, error) {
	m := newMessage()
	var err error
	if m.b, err = frame.AppendRequest(m.b, 0, r); err != nil {
		m.free()
		return nil, err
	}
	s.mu.Lock()
	if err := s.waitSlot(ctx); err != nil {
		s.mu.Unlock()
		m.free()
		return nil, err
	}
	// From here to the queue the lock is held: ids reach the wire in rising order.
	s.lastID++
	if s.lastID == frame.MaxStream {
		s.sentAway, s.lastOK = true, s.lastID
		go s.GoAway(frame.GoAway{Code: frame.GoAwayDrain, Text: "stream ids are used up"})
	}
	st := &Stream{
		s: s, id: s.lastID, slot: true, opened: time.Now(), rsig: make(chan struct{}, 1),
		sendCredit: s.sendWin, recvCredit: s.recvWin, window: s.recvWin,
		localEnd: r.Flags&frame.FlagEnd != 0, upgrade: r.Flags&frame.FlagUpgrade != 0,
	}
	st.returned = st.opened
	binary.BigEndian.PutUint32(m.b[streamAt:], st.id)
	if s.startWin > s.recvWin && !s.budget.tight() {
		m.b = frame.AppendWindow(m.b, st.id, uint32(s.startWin-s.recvWin))
		st.recvCredit, st.window = s.startWin, s.startWin
	}
	if s.streams == nil {
		s.streams = make(map[uint32]*Stream)
	}
	s.streams[st.id] = st
	s.earned += floodEarn
	s.queue(m)
	st.lastFirst = s.out.queued
	s.flush(true, nil)
	return st, nil
}

// openable is why no stream can be opened now. s.mu is held.
func (s *Session) openable() error {
	if err := s.usable(); err != nil {
		return err
	}
	if s.sentAway || s.away != nil || !s.relay {
		return ErrDraining
	}
	return nil
}

// waitSlot takes one of the device's streams and waits for room in the output queue. s.mu
// is held, before and after.
func (s *Session) waitSlot(ctx context.Context) error {
	if err := s.openable(); err != nil {
		return err
	}
	until := time.Time{}
	if s.used < s.streamMax && len(s.slots) == 0 {
		s.used++
	} else {
		if len(s.slots) >= slotQueue {
			return ErrBusy
		}
		got := make(chan struct{})
		s.slots = append(s.slots, got)
		until = time.Now().Add(slotWait)
		s.mu.Unlock()
		waitUntil(got, ctx, until)
		s.mu.Lock()
		for i, w := range s.slots {
			if w == got { // nobody gave it to us
				s.slots = append(s.slots[:i], s.slots[i+1:]...)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return ErrBusy
			}
		}
	}
	for {
		err := s.openable()
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil && !until.IsZero() && expired(until) && s.out.bytes >= outLimit {
			err = ErrBusy
		}
		if err != nil {
			s.freeSlot()
			return err
		}
		if s.out.bytes < outLimit {
			return nil
		}
		if until.IsZero() {
			until = time.Now().Add(slotWait)
		}
		room := s.waitRoomChan()
		s.mu.Unlock()
		waitUntil(room, ctx, until)
		s.mu.Lock()
	}
}

// freeSlot gives a stream's place to the next waiter. s.mu is held.
func (s *Session) freeSlot() {
	if len(s.slots) > 0 {
		close(s.slots[0]) // used stays: the place changes hands
		s.slots = s.slots[1:]
		if len(s.slots) == 0 {
			s.slots = nil
		}
		return
	}
	s.used--
}

// forget takes a stream that is over in both directions off the connection; what it has
// received may still be read. s.mu is held.
func (s *Session) forget(st *Stream) {
	if _, ok := s.streams[st.id]; !ok {
		return
	}
	delete(s.streams, st.id)
	if len(s.streams) == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
	if st.slot {
		st.slot = false
		s.freeSlot()
	}
}

// earnedControl is how many control frames are allowed in this span.
func (s *Session) earnedControl() int64 { return floodLimit + s.earned/floodEarn }
