package front

import (
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/throttle"
)

// Bounds of the listener, where GateConfig leaves a field zero.
const (
	DefaultMaxYoung      = 512
	DefaultMaxConns      = 20000
	DefaultMaxPerAddress = 1024
	youngWait            = 250 * time.Millisecond
)

// GateConfig bounds the connections of a listener. A connection that became a tether or a
// tunnel is no longer counted here: those have bounds of their own.
type GateConfig struct {
	MaxYoung      int // connections that have not sent a request yet, TLS handshakes included: each may hold 40 KB; default 512
	MaxConns      int // connections at once; default 20000
	MaxPerAddress int // of one address (a /64 with IPv6); default 1024
	// Exempt are peers to whom MaxPerAddress does not apply: balancers speak for many.
	Exempt []netip.Prefix
}

// Gate is the accept gate. When too many connections are young, the next one waits in
// the kernel's queue for a moment, and then the oldest young one has to go: a burst of
// devices is taken in at the speed of the machine, and idle connections of a flood
// cannot hold the door.
type Gate struct {
	cfg     GateConfig
	refused atomic.Uint64

	mu    sync.Mutex
	conns map[net.Conn]*guest  // guarded by mu
	young list.List            // of net.Conn, oldest first; guarded by mu
	per   map[netip.Prefix]int // guarded by mu
	freed chan struct{}        // capacity 1: a young connection grew up or went
}

// guest is one connection at the gate.
type guest struct {
	key   netip.Prefix
	young *list.Element // nil once it has sent a request
}

// NewGate returns a Gate. Put ConnState into the http.Server that serves Listener.
func NewGate(cfg GateConfig) *Gate {
	if cfg.MaxYoung <= 0 {
		cfg.MaxYoung = DefaultMaxYoung
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.MaxPerAddress <= 0 {
		cfg.MaxPerAddress = DefaultMaxPerAddress
	}
	return &Gate{cfg: cfg, conns: map[net.Conn]*guest{}, per: map[netip.Prefix]int{}, freed: make(chan struct{}, 1)}
}

// Conns is how many connections are counted now; Refused how many were closed so far.
func (g *Gate) Conns() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

// Refused counts connections that were closed because of a bound.
func (g *Gate) Refused() uint64 { return g.refused.Load() }

// Listener returns l behind the gate.
func (g *Gate) Listener(l net.Listener) net.Listener { return &gated{l, g} }

type gated struct {
	net.Listener
	gate *Gate
}

// Accept returns the next connection that may come in. It waits without holding what
// was accepted: the http.Server counts it by ConnState before it asks for the next.
func (l *gated) Accept() (net.Conn, error) {
	for {
		l.gate.room()
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.gate.welcome(c) {
			return c, nil
		}
		l.gate.refused.Add(1)
		_ = c.Close()
	}
}

// welcome reports whether c is within the bounds.
func (g *Gate) welcome(c net.Conn) bool {
	k := throttle.Key(c.RemoteAddr().String())
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= g.cfg.MaxConns {
		return false
	}
	if g.per[k] < g.cfg.MaxPerAddress {
		return true
	}
	for _, p := range g.cfg.Exempt {
		if p.Contains(k.Addr()) {
			return true
		}
	}
	return false
}

// room waits until a young connection more may come, at most youngWait, then sends the
// oldest away.
func (g *Gate) room() {
	var limit <-chan time.Time
	for {
		g.mu.Lock()
		full := g.young.Len() >= g.cfg.MaxYoung
		g.mu.Unlock()
		if !full {
			return
		}
		if limit == nil {
			t := time.NewTimer(youngWait)
			defer t.Stop()
			limit = t.C
		}
		select {
		case <-g.freed:
		case <-limit:
			g.mu.Lock()
			var oldest net.Conn
			if e := g.young.Front(); e != nil {
				oldest = e.Value.(net.Conn)
				g.forget(oldest)
			}
			g.mu.Unlock()
			if oldest != nil {
				g.refused.Add(1)
				_ = oldest.Close()
			}
			return
		}
	}
}

// ConnState is for http.Server.ConnState.
func (g *Gate) ConnState(c net.Conn, s http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch s {
	case http.StateNew:
		k := throttle.Key(c.RemoteAddr().String())
		g.conns[c] = &guest{key: k, young: g.young.PushBack(c)}
		g.per[k]++
	case http.StateActive:
		if v := g.conns[c]; v != nil && v.young != nil {
			g.young.Remove(v.young)
			v.young = nil
			g.signal()
		}
	case http.StateClosed, http.StateHijacked:
		g.forget(c)
	}
}

// forget ends the counting of c. mu is held.
func (g *Gate) forget(c net.Conn) {
	v := g.conns[c]
	if v == nil {
		return
	}
	delete(g.conns, c)
	if g.per[v.key]--; g.per[v.key] <= 0 {
		delete(g.per, v.key)
	}
	if v.young != nil {
		g.young.Remove(v.young)
		g.signal()
	}
}

func (g *Gate) signal() {
	select {
	case g.freed <- struct{}{}:
	default:
	}
}
