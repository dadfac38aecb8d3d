package sse

import (
	"errors"
	"sync/atomic"
)

// ErrTooMany means that the Limiter was full: the request was answered 503 with Retry-After.
var ErrTooMany = errors.New("too many event listeners")

// Limiter bounds how many listeners there are at once. It is safe for concurrent use and
// usually shared by all Serve calls of one kind.
type Limiter struct {
	max     int64
	n       atomic.Int64
	refused atomic.Int64
}

// NewLimiter returns a Limiter for at most max listeners.
func NewLimiter(max int) *Limiter { return &Limiter{max: int64(max)} }

// Listeners is how many there are now.
func (l *Limiter) Listeners() int { return int(l.n.Load()) }

// Refused counts those that were turned away so far.
func (l *Limiter) Refused() int64 { return l.refused.Load() }

func (l *Limiter) acquire() bool {
	if l.n.Add(1) > l.max {
		l.n.Add(-1)
		l.refused.Add(1)
		return false
	}
	return true
}

func (l *Limiter) release() { l.n.Add(-1) }
