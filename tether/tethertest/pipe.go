// Package tethertest has what tests of the tether need: carriers in memory, a bad network on
// loopback, and a checker of what clients saw. Only tests import it.
package tethertest

import (
	"io"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/mux"
)

// Pipe is one end of a carrier in memory. What one end writes the other reads, whole
// message by whole message, in order. It is safe in a synctest bubble.
type Pipe struct {
	in, out *line
	// Latency delays each message on its way; set before use.
	Latency time.Duration
	// Rate makes a bottleneck with an endless queue of what this end writes, in bytes a
	// second; 0: none. Set before use.
	Rate int
	// Wrote, if set, sees each message before it goes; set before use.
	Wrote func(msg []byte)
}

// line is one direction.
type line struct {
	mu     sync.Mutex
	queue  [][]byte
	due    []time.Time
	change chan struct{} // closed at each change
	closed bool
	code   int
	limit  int
	stall  bool
	free   time.Time // when the bottleneck has sent everything
}

// NewPipe makes both ends. At most limit messages (0: 64) wait in each direction; then
// Write waits.
func NewPipe(limit int) (a, b *Pipe) {
	if limit <= 0 {
		limit = 64
	}
	x, y := &line{change: make(chan struct{}), limit: limit}, &line{change: make(chan struct{}), limit: limit}
	return &Pipe{in: x, out: y}, &Pipe{in: y, out: x}
}

func (l *line) changed() {
	close(l.change)
	l.change = make(chan struct{})
}

// Read implements mux.Carrier.
func (p *Pipe) Read(f func([]byte) error) error {
	l := p.in
	for {
		l.mu.Lock()
		if len(l.queue) > 0 {
			if wait := time.Until(l.due[0]); wait > 0 {
				l.mu.Unlock()
				time.Sleep(wait)
				continue
			}
			msg := l.queue[0]
			l.queue, l.due = l.queue[1:], l.due[1:]
			l.changed()
			l.mu.Unlock()
			return f(msg)
		}
		if l.closed {
			l.mu.Unlock()
			return io.EOF
		}
		c := l.change
		l.mu.Unlock()
		<-c
	}
}

// Write implements mux.Carrier. While stalled it takes messages until the limit.
func (p *Pipe) Write(msg []byte) error {
	if p.Wrote != nil {
		p.Wrote(msg)
	}
	l := p.out
	for {
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return io.ErrClosedPipe
		}
		if len(l.queue) < l.limit {
			if l.stall {
				// Lost on a dead line, but not known to be.
				l.mu.Unlock()
				return nil
			}
			l.queue = append(l.queue, append([]byte(nil), msg...))
			due := time.Now()
			if p.Rate > 0 {
				if due.Before(l.free) {
					due = l.free
				}
				due = due.Add(time.Duration(len(msg)) * time.Second / time.Duration(p.Rate))
				l.free = due
			}
			l.due = append(l.due, due.Add(p.Latency))
			l.changed()
			l.mu.Unlock()
			return nil
		}
		c := l.change
		l.mu.Unlock()
		<-c
	}
}

// Cut makes the line half open: what this end writes from now on vanishes.
func (p *Pipe) Cut() {
	p.out.mu.Lock()
	p.out.stall = true
	p.out.mu.Unlock()
}

// Close implements mux.Carrier: both ends see the end, behind what was written before.
func (p *Pipe) Close(code int, _ string) error {
	for _, l := range []*line{p.in, p.out} {
		l.mu.Lock()
		if !l.closed {
			l.closed, l.code = true, code
			l.changed()
		}
		l.mu.Unlock()
	}
	return nil
}

// CloseCode is the code of the first Close, of either end.
func (p *Pipe) CloseCode() int {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	return p.in.code
}

// Pair runs a relay's and a device's session on a pipe. Zero fields of the configurations
// get the usual values.
func Pair(relay, device mux.Config) (r, d *mux.Session) {
	a, b := NewPipe(0)
	return PairOn(a, b, relay, device)
}

// PairOn is Pair on carriers that the caller has made.
func PairOn(a, b mux.Carrier, relay, device mux.Config) (r, d *mux.Session) {
	relay.Relay, relay.Grow = true, true
	if relay.RecvWindow == 0 {
		relay.RecvWindow, relay.StartWindow = mux.MinWindow, mux.StartWindow
	}
	if device.RecvWindow == 0 {
		device.RecvWindow = mux.DeviceWindow
	}
	relay.SendWindow, device.SendWindow = device.RecvWindow, relay.RecvWindow
	if relay.Streams == 0 {
		relay.Streams = mux.DefaultStreams
	}
	if device.Streams == 0 {
		device.Streams = relay.Streams
	}
	r, d = mux.New(a, relay), mux.New(b, device)
	go r.Run()
	go d.Run()
	return r, d
}
