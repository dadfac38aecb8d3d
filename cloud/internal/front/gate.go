package front

import (
	"bufio"
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
	DefaultMaxPerAddress = 4096
	youngWait            = 250 * time.Millisecond
)

// GateConfig bounds the connections of a listener. A connection that became a tether or a
// tunnel is no longer counted here: those have bounds of their own.
type GateConfig struct {
	MaxYoung      int // connections that have not sent a request yet, TLS handshakes included: each may hold 40 KB; default 512
	MaxConns      int // connections at once; default 20000
	MaxPerAddress int // of one address (a /64 with IPv6); default 4096, since many may stand behind one router
	// Exempt are peers to whom MaxPerAddress does not apply: balancers speak for many.
	Exempt []netip.Prefix
}

// Gate is the accept gate. When too many connections are young, the next one waits in
// the kernel's queue for a moment, and then the oldest young one has to go: a burst of
// devices is taken in at the speed of the machine, and idle connections of a flood
// cannot hold the door. It works with any server that tells handlers the local address
// of a connection as http.LocalAddrContextKey.
type Gate struct {
	cfg     GateConfig
	refused atomic.Uint64
	freed   chan struct{} // capacity 1: a young connection grew up or went

	mu    sync.Mutex
	n     int                  // guarded by mu
	young list.List            // of *guest, oldest first; guarded by mu
	per   map[netip.Prefix]int // guarded by mu
}

// guest is one counted connection. Handlers see it as the connection's local address.
type guest struct {
	net.Addr
	gate  *Gate
	conn  *gatedConn
	key   netip.Prefix
	grown atomic.Bool   // it has sent a request
	young *list.Element // guarded by the gate's mu
}

// gatedConn stays for as long as the connection does, also under a tether: keep it small.
type gatedConn struct {
	*net.TCPConn                       // and so everything the kernel offers
	guest        atomic.Pointer[guest] // nil: not counted (any more)
}

func (c *gatedConn) Close() error {
	c.release()
	return c.TCPConn.Close()
}

// release ends the counting.
func (c *gatedConn) release() {
	if v := c.guest.Swap(nil); v != nil {
		v.gate.leave(v)
	}
}

// LocalAddr leads handlers to the guest.
func (c *gatedConn) LocalAddr() net.Addr {
	if v := c.guest.Load(); v != nil {
		return v
	}
	return c.TCPConn.LocalAddr()
}

// guestOf is the counted connection that a request came on, if any.
func guestOf(r *http.Request) *guest {
	v, _ := r.Context().Value(http.LocalAddrContextKey).(*guest)
	return v
}

// NewGate returns a Gate. Serve Listener with Handler.
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
	return &Gate{cfg: cfg, per: map[netip.Prefix]int{}, freed: make(chan struct{}, 1)}
}

// Conns is how many connections are counted now.
func (g *Gate) Conns() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// Refused counts connections that were closed because of a bound.
func (g *Gate) Refused() uint64 { return g.refused.Load() }

// Handler lets h serve what Listener accepted: a connection is grown up with its first
// request, and not counted any more once h has taken it over.
func (g *Gate) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := guestOf(r); v != nil {
			if !v.grown.Load() {
				g.grow(v)
			}
			if r.ProtoMajor == 1 && len(r.Header["Upgrade"]) > 0 {
				w = &releasing{w, v}
			}
		}
		h.ServeHTTP(w, r)
	})
}

// releasing is the ResponseWriter of a request that may take its connection over.
type releasing struct {
	http.ResponseWriter
	guest *guest
}

func (w *releasing) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *releasing) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *releasing) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.guest.conn.release()
	}
	return c, rw, err
}

// Listener returns l behind the gate. Connections that are not TCP pass uncounted.
func (g *Gate) Listener(l net.Listener) net.Listener { return &gated{l, g} }

type gated struct {
	net.Listener
	gate *Gate
}

// Accept returns the next connection that may come in.
func (l *gated) Accept() (net.Conn, error) {
	for {
		l.gate.room()
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return c, nil
		}
		if gc := l.gate.enter(tcp); gc != nil {
			return gc, nil
		}
		l.gate.refused.Add(1)
		_ = c.Close()
	}
}

// enter counts c; nil: it is beyond a bound.
func (g *Gate) enter(c *net.TCPConn) *gatedConn {
	v := &guest{Addr: c.LocalAddr(), gate: g, key: throttle.Key(c.RemoteAddr().String())}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n >= g.cfg.MaxConns || g.per[v.key] >= g.cfg.MaxPerAddress && !g.exempt(v.key) {
		return nil
	}
	g.n++
	g.per[v.key]++
	v.young = g.young.PushBack(v)
	v.conn = &gatedConn{TCPConn: c}
	v.conn.guest.Store(v)
	return v.conn
}

func (g *Gate) exempt(k netip.Prefix) bool {
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
			var oldest *guest
			if e := g.young.Front(); e != nil {
				oldest = e.Value.(*guest)
			}
			g.mu.Unlock()
			if oldest != nil {
				g.refused.Add(1)
				_ = oldest.conn.Close()
			}
			return
		}
	}
}

// grow takes v off the young ones.
func (g *Gate) grow(v *guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v.grown.Store(true)
	g.unyoung(v)
}

// leave ends the counting of v.
func (g *Gate) leave(v *guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	if g.per[v.key]--; g.per[v.key] <= 0 {
		delete(g.per, v.key)
	}
	g.unyoung(v)
}

// unyoung is called with mu held.
func (g *Gate) unyoung(v *guest) {
	if v.young == nil {
		return
	}
	g.young.Remove(v.young)
	v.young = nil
	select {
	case g.freed <- struct{}{}:
	default:
	}
}
