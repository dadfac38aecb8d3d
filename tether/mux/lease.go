package mux

import (
	"context"
	"fmt"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Invalidate tells the relay of a write, or where the count is (device). It does not wait:
// whatever this side sends from now on follows it (SPEC.md §4.12). ponged is when the last
// PING came whose PONG does not follow it; zero: there was none. What is too large for a
// frame is sent as frame.FlagAll. A session that takes no more ends.
func (s *Session) Invalidate(v frame.Invalidate) (ponged time.Time, err error) {
	m := newMessage()
	if m.b, err = frame.AppendInvalidate(m.b, &v); err != nil {
		v.Flags, v.URIs = frame.FlagAll, nil
		m.b, _ = frame.AppendInvalidate(m.b, &v) // nothing is left that can be wrong
	}
	s.mu.Lock()
	if s.lease != nil {
		ponged = s.lease.ponged
	}
	err = s.usable()
	full := s.out.bytes > outLimit+controlLimit
	if err != nil || full {
		s.mu.Unlock()
		m.free()
		if err == nil {
			err = errQueue
			s.fail(err)
		}
		return ponged, err
	}
	s.queue(m)
	s.earned += floodEarn // for the INVALIDATED
	s.flush(false, nil)   // the caller is not to wait for the network
	return ponged, nil
}

// lease is what a relay knows of the PINGs of Ask, and a device of those it answered.
type lease struct {
	ponged time.Time // device: when the last one came

	token  uint32        // of the one under way
	sent   time.Time     // when it went out
	back   chan struct{} // closed with its PONG; nil: none is under way
	proven time.Time     // when the last one that was answered had gone out
}

// leases makes the lease if there is none. s.mu is held.
func (s *Session) leases() *lease {
	if s.lease == nil {
		s.lease = &lease{}
	}
	return s.lease
}

// Proven is when the last PING of Ask that was answered had gone out (relay): all that the
// device had said before is done. Zero: there was none.
func (s *Session) Proven() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil {
		return time.Time{}
	}
	return s.lease.proven
}

// Ask waits for the PONG to a PING, one for all that wait at the same time, and returns when
// that went out (relay). It fails with the session's error, or with ctx's.
func (s *Session) Ask(ctx context.Context) (sent time.Time, err error) {
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		return time.Time{}, err
	}
	a := s.leases()
	if a.back != nil {
		sent, back := a.sent, a.back
		s.mu.Unlock()
		return sent, s.answered(ctx, back)
	}
	s.token++
	s.earned += floodEarn
	a.token, a.sent, a.back = s.token, time.Now(), make(chan struct{})
	sent, back := a.sent, a.back
	if !s.controlFrame(frame.TypePing, 0, a.token) {
		s.mu.Unlock()
		s.fail(errQueue)
		return time.Time{}, errQueue
	}
	s.flush(false, nil) // ctx bounds the wait, not the network
	return sent, s.answered(ctx, back)
}

func (s *Session) answered(ctx context.Context, back chan struct{}) error {
	select {
	case <-back:
		return nil
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait for PONG: %w", context.Cause(ctx))
	}
}

// pong takes a PONG; it reports whether that was the one. s.mu is held.
func (a *lease) pong(token uint32) bool {
	if a == nil || a.back == nil || a.token != token {
		return false
	}
	a.proven = a.sent
	close(a.back)
	a.back = nil
	return true
}
