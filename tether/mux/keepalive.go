package mux

import (
	"math/rand/v2"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// startKeepalive arms the device's own keepalive (SPEC.md, keepalive).
func (s *Session) startKeepalive() {
	s.lastSent.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	state := &keeper{s: s}
	s.timer = time.AfterFunc(jitter(s.keepalive), state.tick)
}

// jitter is d less up to a tenth, so that a fleet does not ping in step.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// keeper is the state between two ticks.
type keeper struct {
	s     *Session
	pings int // unanswered
	asked time.Time
}

// tick sends a PING when the connection has been quiet, and ends it when two were not
// answered by a single byte.
func (k *keeper) tick() {
	s, now := k.s, time.Now()
	wait := pongWait
	switch seen := s.LastSeen(); {
	case k.pings > 0 && !seen.Before(k.asked):
		k.pings = 0
		fallthrough
	case k.pings == 0:
		wait = jitter(s.keepalive) - now.Sub(time.Unix(0, s.lastSent.Load()))
		if wait > 0 {
			break
		}
		fallthrough
	case k.pings < 2:
		k.pings++
		if k.pings == 1 {
			k.asked = now
		}
		wait = pongWait
		s.mu.Lock()
		s.token++
		if s.err == nil && !s.controlFrame(frame.TypePing, 0, s.token) {
			s.mu.Unlock()
			s.fail(errQueue)
			return
		}
		s.flush(false, nil)
	default:
		s.fail(ErrSilent)
		return
	}
	s.mu.Lock()
	if s.err == nil {
		s.timer.Reset(wait)
	}
	s.mu.Unlock()
}

// probe looks after a device that owes an answer on st and says when to look again: after
// some silence it gets one PING, and without any byte after that the session is to fail.
// s.mu is held.
func (s *Session) probe(st *Stream, now time.Time) (time.Time, error) {
	since := s.LastSeen()
	if since.Before(st.opened) {
		since = st.opened
	}
	if due := since.Add(silence); now.Before(due) {
		return due, nil
	}
	if !since.Before(s.probed) {
		s.probed = now
		s.token++
		s.earned += floodEarn
		if !s.controlFrame(frame.TypePing, 0, s.token) {
			return now, errQueue
		}
		s.flush(false, nil)
		s.mu.Lock()
		return now.Add(probeWait), nil
	}
	if due := s.probed.Add(probeWait); now.Before(due) {
		return due, nil
	}
	return now, ErrSilent
}

// watchFor has the waiters of all streams looked after at t, too: one timer serves them
// all, and as most requests wait for the same few seconds it is hardly ever moved. s.mu is
// held.
func (s *Session) watchFor(t time.Time) {
	if t.IsZero() || s.err != nil || !s.watchAt.IsZero() && !t.Before(s.watchAt) {
		return
	}
	s.watchAt = t
	if d := time.Until(t); s.watch == nil {
		s.watch = time.AfterFunc(d, s.wakeDue)
	} else {
		s.watch.Reset(d)
	}
}

// wakeDue wakes the waiters whose time has come.
func (s *Session) wakeDue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.watchAt = time.Time{}
	if len(s.streams) == 0 {
		s.streams = nil // an idle session keeps no map; every Head has set the watch
	}
	var next time.Time
	look := func(due *time.Time, sig chan struct{}) {
		switch {
		case due.IsZero():
		case !now.Before(*due):
			*due = time.Time{}
			wake(sig)
		case next.IsZero() || due.Before(next):
			next = *due
		}
	}
	for _, st := range s.streams {
		look(&st.rdue, st.rsig)
		look(&st.wdue, st.wsig)
	}
	s.watchFor(next)
}
