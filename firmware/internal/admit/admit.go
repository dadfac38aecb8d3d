// Package admit decides which requests may be in the origin at one moment (D3). A
// maker's service is often a single thread on a slow board: a few requests at once are
// served, some more wait in a bounded and fair queue, the rest hear at once that the
// device is busy. Exchanges that stay open (SSE, WebSocket, long downloads) are moved
// to a bound of their own, so that four event listeners do not lock everybody out.
//
// The package starts no goroutine and knows nothing of HTTP; package proxy turns its
// errors into 503 (RFC 9110 §15.6.4).
package admit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Class is the way a request came in. Classes take turns, so that a busy relay cannot
// starve the phone in the same room, nor the other way round.
type Class uint8

// The classes, in the order of their turns.
const (
	LAN Class = iota
	Tether
	classes
)

// String is the class in logs.
func (c Class) String() string {
	switch c {
	case LAN:
		return "lan"
	case Tether:
		return "tether"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Defaults of Config.
const (
	DefaultConcurrency = 4
	DefaultQueue       = 64
	DefaultStreams     = 32
	DefaultMaxWait     = 10 * time.Second
)

// Config bounds a Gate. Zero values mean the defaults above.
type Config struct {
	Concurrency int           // requests in the origin at once
	Queue       int           // requests waiting for it, all classes together; negative: none may wait
	Streams     int           // long-lived exchanges at once; negative: none
	MaxWait     time.Duration // longest wait in the queue
}

// Validate reports every value that cannot work.
func (c Config) Validate() error {
	var errs []error
	if c.Concurrency < 0 {
		errs = append(errs, fmt.Errorf("concurrency is %d, want at least 1", c.Concurrency))
	}
	if c.MaxWait < 0 {
		errs = append(errs, fmt.Errorf("longest wait is %v, want more than 0", c.MaxWait))
	}
	return errors.Join(errs...)
}

// Refusals. With each of them the request has not reached the origin (or, for
// ErrTooManyStreams, may not stay there for long): answer 503 with Retry-After.
var (
	ErrQueueFull      = errors.New("origin queue full")
	ErrWait           = errors.New("waited too long for the origin")
	ErrTooManyStreams = errors.New("too many long-lived exchanges")
)

// Gate admits requests to one origin. It is safe for concurrent use.
type Gate struct {
	concurrency, queue, maxStreams int
	maxWait                        time.Duration

	mu    sync.Mutex // guards all below, and every Ticket
	stats Stats
	turn  Class // whose waiter goes first
	lines [classes]line
}

// Stats is a snapshot: three gauges and counters since the start.
type Stats struct {
	InOrigin int // slots in use now
	Queued   int // waiting now
	Streams  int // long-lived exchanges now

	Admitted       uint64 // got a slot
	RefusedFull    uint64 // ErrQueueFull
	RefusedWait    uint64 // ErrWait
	RefusedStreams uint64 // ErrTooManyStreams
	Cancelled      uint64 // the context ended first
}

// New makes a gate. Values below their least sensible one are raised to it; Validate
// tells beforehand.
func New(c Config) *Gate {
	or := func(v, def int) int {
		if v == 0 {
			return def
		}
		return max(v, 0)
	}
	g := &Gate{
		concurrency: max(or(c.Concurrency, DefaultConcurrency), 1),
		queue:       or(c.Queue, DefaultQueue),
		maxStreams:  or(c.Streams, DefaultStreams),
		maxWait:     c.MaxWait,
	}
	if g.maxWait <= 0 {
		g.maxWait = DefaultMaxWait
	}
	return g
}

// Acquire waits for a slot. client names who asks inside its class, usually the
// address without port; clients of a class take turns. The error is ErrQueueFull,
// ErrWait, or wraps the cause of ctx. The caller must call Release on the ticket.
//
// A full queue does not simply refuse the newcomer: when another class or client
// holds clearly more of the queue, the newest waiter of that one is refused instead,
// so that one flooding client cannot fill the queue against all others.
func (g *Gate) Acquire(ctx context.Context, c Class, client string) (*Ticket, error) {
	c = min(c, classes-1)
	t := &Ticket{gate: g}
	g.mu.Lock()
	if g.stats.InOrigin < g.concurrency && g.stats.Queued == 0 {
		t.state = inSlot
		g.stats.InOrigin++
		g.stats.Admitted++
		g.mu.Unlock()
		return t, nil
	}
	if ctx.Err() != nil {
		g.stats.Cancelled++
		g.mu.Unlock()
		return nil, fmt.Errorf("wait for the origin: %w", context.Cause(ctx))
	}
	if g.stats.Queued >= g.queue && !g.displace(c, client) {
		g.stats.RefusedFull++
		g.mu.Unlock()
		return nil, ErrQueueFull
	}
	t.wake = make(chan error, 1)
	t.state = waiting
	g.lines[c].push(t, client)
	t.class = c
	g.stats.Queued++
	g.mu.Unlock()

	timer := time.NewTimer(g.maxWait)
	defer timer.Stop()
	select {
	case err := <-t.wake:
		if err != nil {
			return nil, err
		}
		return t, nil
	case <-ctx.Done():
		return nil, g.leave(t, &g.stats.Cancelled, fmt.Errorf("wait for the origin: %w", context.Cause(ctx)))
	case <-timer.C:
		return nil, g.leave(t, &g.stats.RefusedWait, ErrWait)
	}
}

// leave takes a waiter out of its line. When the slot came at the same moment, it goes
// on to the next waiter.
func (g *Gate) leave(t *Ticket, counter *uint64, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch t.state {
	case waiting:
		g.lines[t.class].remove(t)
		g.stats.Queued--
		*counter++
		t.state = released
	case inSlot:
		*counter++
		g.release(t)
	}
	return err
}

// displace makes room for a newcomer of class c in a full queue, and reports whether
// it did. g.mu is held.
func (g *Gate) displace(c Class, name string) bool {
	from := c
	for o := range g.lines {
		if g.lines[o].queued > g.lines[from].queued+1 {
			from = Class(o)
		}
	}
	var longest *client
	for _, cl := range g.lines[from].clients {
		if longest == nil || cl.queued > longest.queued {
			longest = cl
		}
	}
	if longest == nil {
		return false
	}
	if from == c {
		own := 0
		if cl := g.lines[c].clients[name]; cl != nil {
			own = cl.queued
		}
		if longest.queued <= own+1 {
			return false
		}
	}
	t := longest.newest
	g.lines[from].remove(t)
	g.stats.Queued--
	g.stats.RefusedFull++
	t.state = released
	t.wake <- ErrQueueFull
	return true
}

// release gives back what t holds and admits who is next. g.mu is held.
func (g *Gate) release(t *Ticket) {
	switch t.state {
	case inStream:
		g.stats.Streams--
	case inSlot:
		g.stats.InOrigin--
		g.admit()
	}
	t.state = released
}

// admit fills the free slots from the queue. g.mu is held.
func (g *Gate) admit() {
	for g.stats.InOrigin < g.concurrency && g.stats.Queued > 0 {
		for g.lines[g.turn].queued == 0 {
			g.turn = (g.turn + 1) % classes
		}
		t := g.lines[g.turn].next.oldest
		g.lines[g.turn].advance()
		g.lines[g.turn].remove(t)
		g.turn = (g.turn + 1) % classes
		g.stats.Queued--
		g.stats.InOrigin++
		g.stats.Admitted++
		t.state = inSlot
		t.wake <- nil
	}
}

// Stats returns the state of this moment.
func (g *Gate) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stats
}

type state uint8

const (
	released state = iota
	waiting
	inSlot
	inStream
)

// Ticket is one admitted exchange. Its methods may be called from any goroutine.
type Ticket struct {
	gate *Gate

	// Guarded by gate.mu.
	state  state
	class  Class
	client *client
	older  *Ticket // neighbours in the client's line while waiting
	newer  *Ticket
	wake   chan error // one buffered word: nil admitted, else refused
}

// Stream says that the exchange became long-lived: its slot is free for others from
// now on and it counts as a stream instead. ErrTooManyStreams leaves everything as it
// was, the slot is still held. Calling it again changes nothing.
func (t *Ticket) Stream() error {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.state != inSlot {
		return nil
	}
	if g.stats.Streams >= g.maxStreams {
		g.stats.RefusedStreams++
		return ErrTooManyStreams
	}
	g.stats.Streams++
	t.state = inStream
	g.stats.InOrigin--
	g.admit()
	return nil
}

// Release ends the exchange. It may be called more than once.
func (t *Ticket) Release() {
	t.gate.mu.Lock()
	t.gate.release(t)
	t.gate.mu.Unlock()
}
