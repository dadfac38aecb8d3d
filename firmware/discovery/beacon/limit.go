package beacon

import (
	"net/netip"
	"sync"
	"time"
)

// Bounds on answering. An answer is one datagram, or two when it goes to the question's
// source port as well: with 200 ms between answers, a source gets at most 10 datagrams a second.
const (
	DefaultInterval = 200 * time.Millisecond // between two answers to one source
	DefaultRate     = 50                     // answers a second to all sources, after a burst of as many
	maxSources      = 1024                   // sources remembered; a full table refuses new ones
)

// verdict is what the limiter says to a question.
type verdict uint8

const (
	answer   verdict = iota
	tooSoon          // the source had an answer within the interval
	overRate         // all sources together ask too much, or the table is full
)

// limiter decides which questions are answered. It is safe for concurrent use.
type limiter struct {
	interval time.Duration
	rate     float64 // answers a second, and the burst

	mu     sync.Mutex // guards what follows
	tokens float64
	filled time.Time                // when tokens was right
	last   map[netip.Addr]time.Time // answered sources, none older than interval once the table was swept
}

func newLimiter(interval time.Duration, rate int) *limiter {
	return &limiter{interval: interval, rate: float64(rate), tokens: float64(rate), last: map[netip.Addr]time.Time{}}
}

func (l *limiter) ask(src netip.Addr, now time.Time) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.last[src]; ok && now.Sub(t) < l.interval {
		return tooSoon
	}
	if !l.filled.IsZero() {
		l.tokens = min(l.rate, l.tokens+l.rate*now.Sub(l.filled).Seconds())
	}
	l.filled = now
	if l.tokens < 1 {
		return overRate
	}
	if len(l.last) >= maxSources {
		for a, t := range l.last {
			if now.Sub(t) >= l.interval {
				delete(l.last, a)
			}
		}
		if len(l.last) >= maxSources {
			return overRate
		}
	}
	l.tokens--
	l.last[src] = now
	return answer
}
