package mux

import "time"

// The network between device and relay may hold seconds of bytes in a router's queue. What
// lies there cannot be overtaken, so a session lets long streams have only so many bytes on
// their way that the queue stays short: an in-band PING after every so many bytes tells by
// its PONG, which the peer's reader sends at once, when they arrived and how long they
// took. This is delay-based congestion control (RFC 6817 is the best known) on top of TCP.
const (
	targetDelay = 30 * time.Millisecond // queueing that we allow ourselves to cause
	baseSpan    = 30 * time.Second      // the shortest round trip of this span, twice, is the path's own
	cleanEvery  = 10 * time.Second      // after so long without a pause we make one, to see the path without our own queue
	cleanFirst  = time.Second           // and the first times sooner
	startFlight = 64 << 10              // bytes
	minFlight   = 8 << 10
	minChunk    = 2 << 10
	maxFlight   = 16 << 20
	pingEvery   = 32 << 10 // bytes at least between two pings
	stepFlight  = 16 << 10 // growth for each round trip
)

// mark is one in-band PING.
type mark struct {
	token uint32
	sent  int64 // bytes sent before it
	at    time.Time
}

// flight follows the bytes of long streams on one connection.
type flight struct {
	limit     int64 // bytes that may be on their way
	sentBytes int64
	acked     int64
	pinged    int64 // sentBytes at the last mark
	marks     []mark
	starting  bool          // double each round trip until the delay shows
	base      time.Duration // shortest round trip of this span
	baseOld   time.Duration // and of the one before
	baseFrom  time.Time
	clean     bool             // a PING without bytes before it is due
	cleaned   time.Time        // the last one; zero: the first mark drains, since short answers went before it
	every     time.Duration    // until the next
	draining  bool             // no more bytes until all have arrived, then clean
	shrunk    int64            // sentBytes when limit was last cut: once each round trip
	recent    [2]time.Duration // delays; the least counts, so that one slow answer of a busy device does not
	samples   int
}

// open reports whether a long stream may send.
func (f *flight) open() bool {
	return f == nil || !f.draining && f.sentBytes-f.acked < f.limit
}

// chunk is how many bytes of a long stream go into one frame: less on a slow link, where a
// full frame takes a tenth of a second that nothing can overtake.
func (f *flight) chunk() int64 {
	if f == nil {
		return chunkSize
	}
	return min(chunkSize, max(minChunk, f.limit/4))
}

// sent counts n bytes, and says whether a PING is due behind them. s.mu is held.
func (f *flight) sent(n int, s *Session) (token uint32, ping bool) {
	f.sentBytes += int64(n)
	// The bytes that reach the limit are always marked, so that their PONG opens it again.
	if f.sentBytes-f.pinged < max(min(pingEvery, f.limit/4), f.limit/8) && f.open() {
		return 0, false
	}
	now := time.Now()
	f.draining = now.Sub(f.cleaned) > f.every
	return f.mark(s, now), true
}

// alone says whether a PING is due with nothing of ours in the queue before it: only that
// one sees how short the path's round trip is. s.mu is held.
func (f *flight) alone(s *Session) (token uint32, ping bool) {
	if !f.clean {
		return 0, false
	}
	f.clean, f.cleaned = false, time.Now()
	// At the start short answers of other streams may lie before it: look again soon.
	f.every = min(max(2*f.every, cleanFirst), cleanEvery)
	return f.mark(s, f.cleaned), true
}

func (f *flight) mark(s *Session, now time.Time) uint32 {
	f.pinged = f.sentBytes
	s.token++
	s.earned += floodEarn // for its PONG
	f.marks = append(f.marks, mark{s.token, f.sentBytes, now})
	return s.token
}

// pong takes the answer to a mark; it reports whether the token was one.
func (f *flight) pong(token uint32, now time.Time) bool {
	if f == nil {
		return false
	}
	for i, m := range f.marks {
		if m.token != token {
			continue
		}
		got := m.sent - f.acked
		f.acked = m.sent
		if f.draining && f.acked == f.sentBytes {
			f.draining, f.clean = false, true
		}
		f.marks = append(f.marks[:0], f.marks[i+1:]...)
		f.follow(now.Sub(m.at), got, m.sent, now)
		return true
	}
	return false
}

// follow adjusts the limit to one measured round trip, in which got bytes arrived.
func (f *flight) follow(rtt time.Duration, got, upTo int64, now time.Time) {
	if f.baseFrom.IsZero() || now.Sub(f.baseFrom) > baseSpan {
		f.baseOld, f.base, f.baseFrom = f.base, rtt, now
	}
	f.base = min(f.base, rtt)
	if got == 0 {
		return
	}
	base := f.base
	if f.baseOld > 0 {
		base = min(base, f.baseOld)
	}
	f.recent[f.samples%len(f.recent)] = rtt - base
	f.samples++
	delay := f.recent[0]
	for _, d := range f.recent[:min(f.samples, len(f.recent))] {
		delay = min(delay, d)
	}
	full := 2*(f.sentBytes-f.acked+got) >= f.limit // else the sender, not the limit, was slow
	switch {
	case delay > targetDelay:
		f.starting = false
		if upTo > f.shrunk { // what was sent before the last cut tells nothing of it
			f.shrunk = f.sentBytes
			fit := float64(base+targetDelay) / float64(base+delay)
			f.limit = max(minFlight, int64(float64(f.limit)*max(0.5, fit)))
		}
	case f.starting && full:
		f.limit += got
	case full:
		f.limit += max(1, got*min(f.limit/2, max(stepFlight, f.limit/16))/f.limit)
	}
	f.limit = min(f.limit, maxFlight)
}
