package tethertest

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BadPath is a bad network between devices and a relay: it delays what it carries, and on
// demand stalls, loses one end without the other noticing, or breaks. It is safe for
// concurrent use.
type BadPath struct {
	ln net.Listener

	mu     sync.Mutex // guards the fields below
	to     string
	pairs  map[*pair]struct{}
	closed bool // nobody gets through
	wg     sync.WaitGroup
}

type pair struct {
	device, relay net.Conn
	swallow       atomic.Bool // what comes is lost, the ends do not notice
	hold          atomic.Bool // what the device says does not move
}

// NewBadPath listens on loopback and carries to the relay at host:port, until the test ends.
func NewBadPath(t testing.TB, to string) *BadPath {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &BadPath{ln: ln, to: to, pairs: map[*pair]struct{}{}}
	done := make(chan struct{})
	go func() { defer close(done); p.accept() }()
	t.Cleanup(func() { ln.Close(); <-done; p.Cut(); p.wg.Wait() })
	return p
}

func (p *BadPath) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		shut, to := p.closed, p.to
		p.mu.Unlock()
		var up net.Conn
		if !shut {
			up, err = net.Dial("tcp", to)
		}
		if err != nil || shut {
			c.Close()
			continue
		}
		x := &pair{device: c, relay: up}
		p.mu.Lock()
		p.pairs[x] = struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() { x.carry(x.relay, x.device, true) })
		p.wg.Go(func() { x.carry(x.device, x.relay, false) })
	}
}

func (x *pair) carry(dst, src net.Conn, up bool) {
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		if n > 0 && !x.swallow.Load() {
			if rand.IntN(4) == 0 {
				time.Sleep(rand.N(3 * time.Millisecond))
			}
			for up && x.hold.Load() && !x.swallow.Load() {
				time.Sleep(time.Millisecond)
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
		}
		if err != nil {
			if !x.swallow.Load() {
				dst.Close()
			}
			return
		}
	}
}

// Addr is the host:port that devices dial.
func (p *BadPath) Addr() string { return p.ln.Addr().String() }

// To leads new connections to the relay at host:port.
func (p *BadPath) To(addr string) { p.mu.Lock(); p.to = addr; p.mu.Unlock() }

// Shut lets no new connection through, or does again.
func (p *BadPath) Shut(closed bool) { p.mu.Lock(); p.closed = closed; p.mu.Unlock() }

func (p *BadPath) each(f func(*pair)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for x := range p.pairs {
		f(x)
	}
}

// Cut ends every connection for both ends.
func (p *BadPath) Cut() {
	p.each(func(x *pair) {
		x.hold.Store(false)
		x.device.Close()
		x.relay.Close()
		delete(p.pairs, x)
	})
}

// Half has devices lose their connections, and the relay notice nothing.
func (p *BadPath) Half() {
	p.each(func(x *pair) { x.swallow.Store(true); x.device.Close() })
}

// Hold stops what devices say on the connections that there are, or lets it go on.
func (p *BadPath) Hold(on bool) { p.each(func(x *pair) { x.hold.Store(on) }) }
