// Package devnode holds the devices' ends of the relay: it takes their tethers, decides
// who may come, knows which connection of a device is the newest, hands requests to it,
// and calls a device online only while its end answers.
//
// An idle device costs one conn and two map entries here, and no goroutine or timer: one
// sweep each five seconds looks at all of them.
package devnode

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/directory"
	"github.com/cloudrest/cloudrest/cloud/internal/throttle"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// ErrOffline means that no tether of the device is open.
var ErrOffline = errors.New("device offline")

// Defaults of Config.
const (
	DefaultKeepalive  = 25 * time.Second // SPEC.md §4.3
	DefaultMaxDevices = 20000
	DefaultHandshakes = 256
)

const (
	sweepEvery = 5 * time.Second
	lookEvery  = time.Second      // for changes of the operator's
	pongWait   = 10 * time.Second // for any byte after the sweep's PING

	minSpread       = 10 * time.Second
	handshakeCost   = 2400 * time.Microsecond // of a core for each device that comes back, at half load (SPEC.md §4.8)
	refusedRetry    = 300 * time.Second       // after a failed proof (SPEC.md §4.4)
	overloadRetry   = 30 * time.Second
	gateRetry       = 2 * time.Second  // when the accept gate is full; devices add random(0, spread)
	flapWindow      = 60 * time.Second // a connection replaced sooner than this counts as a flap
	flapLimit       = 3                // after so many in a row the loser is told to wait
	flapRetry       = 30 * time.Second
	replacedDrain   = 30 * time.Second // for the running streams of a replaced connection (SPEC.md §4.9)
	maxUnstored     = 64               // events of one device that wait for the store; SPEC.md §6.1 allows 32
	maxRequestTries = 3                // when the connection goes away before the request went out
)

// Store is what the node keeps of devices.
type Store interface {
	// Enrol keeps the first key of an ID and returns the one that counts; the generation is
	// kept with a device that is new.
	Enrol(ctx context.Context, id tether.DeviceID, public []byte, generation uint32) (kept []byte, created bool, err error)
	// Key is the one that counts; nil: none.
	Key(id tether.DeviceID) (public []byte, err error)
	// SetKey replaces it: the operator's list says so.
	SetKey(ctx context.Context, id tether.DeviceID, public []byte, generation uint32) error
	// SetGeneration keeps the highest owner generation and returns the one before.
	SetGeneration(ctx context.Context, id tether.DeviceID, generation uint32) (before uint32, err error)
	Describe(id tether.DeviceID, name string, raw []byte) error
	Online(id tether.DeviceID, at time.Time)
	Offline(id tether.DeviceID, at time.Time)
	// LastEvent is the newest event that is on disk.
	LastEvent(id tether.DeviceID) (tether.EventID, error)
	// Append stores an event and tells the conn later; an error means it was not taken.
	Append(id tether.DeviceID, n frame.Notify, c Acker) error
}

// Acker is told of the events that are on disk, once for each transaction.
type Acker interface {
	Stored(last tether.EventID, n int)
}

// List is what the operator wrote of devices.
type List interface {
	// Key is the SHA-256 of the key (DER) that a listed device must have.
	Key(id tether.DeviceID) (sum [sha256.Size]byte, ok bool)
	// Revoked devices are never let in.
	Revoked(id tether.DeviceID) bool
	// Version is another number after each change.
	Version() uint64
}

// Config of a Node. Store, Directory, List and Names are required.
type Config struct {
	Name       string   // of this node in the directory
	Names      []string // host names that devices dial (SPEC.md §4.1)
	TLS        bool     // TLS ends in this process: proofs are bound to it
	Store      Store
	Directory  directory.Directory
	List       List
	FirstUse   bool          // a device that is not on the list enrols by the first key it proves
	Factory    *Factory      // whose certificates devices need; nil: they need none
	Keepalive  time.Duration // default 25 s
	MaxDevices int           // connected at once; default 20000
	Handshakes int           // at once; default 256
	Cache      Cache         // of answers, which devices invalidate; nil: there is none
	Budget     *mux.Budget   // for bytes that wait for slow readers; nil: no bound
	Logger     *slog.Logger
}

// Node is made by New. Run sweeps until its context ends.
type Node struct {
	cfg      Config
	log      *slog.Logger
	gate     gate
	failures *throttle.Table
	accept   func(w http.ResponseWriter, r *http.Request)

	mu    sync.RWMutex
	conns map[tether.DeviceID]*conn // the newest of each device; guarded by mu
	marks map[tether.DeviceID]mark  // of devices without a tether; guarded by mu

	draining atomic.Bool
	shaking  atomic.Int32  // handshakes under way
	listed   atomic.Uint64 // version that the connections were checked against
	asking   atomic.Bool   // a round of PINGs is under way
	count    counters
}

type counters struct {
	opened, replaced, lost, silent                        atomic.Uint64
	refusedGate, refusedAuth, refusedUnknown, refusedFull atomic.Uint64
	refusedThrottled, refusedProtocol                     atomic.Uint64
	refusedRevoked                                        atomic.Uint64
	certExpired, certForeign, certMissing, certMismatch   atomic.Uint64
	renewed, renewFailed                                  atomic.Uint64
	notified, overloaded                                  atomic.Uint64
}

// New returns a Node.
func New(cfg Config) *Node {
	if cfg.Keepalive <= 0 {
		cfg.Keepalive = DefaultKeepalive
	}
	if cfg.MaxDevices <= 0 {
		cfg.MaxDevices = DefaultMaxDevices
	}
	if cfg.Handshakes <= 0 {
		cfg.Handshakes = DefaultHandshakes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger, conns: map[tether.DeviceID]*conn{}, marks: map[tether.DeviceID]mark{},
		failures: throttle.New(badProofs, badProofsEach),
	}
	n.gate.limit = cfg.Handshakes
	n.listed.Store(cfg.List.Version())
	n.accept = n.acceptor()
	return n
}

// Stats is for metrics.
type Stats struct {
	Online     int   // tethers open
	Handshakes int   // under way
	Queued     int64 // bytes that wait for slow readers

	Opened, Replaced, Lost, Silent uint64
	// Refused counts by reason.
	RefusedGate, RefusedAuth, RefusedUnknown, RefusedFull, RefusedThrottled, RefusedProtocol uint64
	RefusedRevoked                                                                           uint64
	CertExpired, CertForeign, CertMissing, CertMismatch                                      uint64
	Renewed, RenewFailed                                                                     uint64 // certificates
	Notified, Overloaded                                                                     uint64
}

// Stats returns the present numbers.
func (n *Node) Stats() Stats {
	c := &n.count
	return Stats{
		Online: n.online(), Handshakes: n.gate.busy(), Queued: n.cfg.Budget.Used(),
		Opened: c.opened.Load(), Replaced: c.replaced.Load(), Lost: c.lost.Load(), Silent: c.silent.Load(),
		RefusedGate: c.refusedGate.Load(), RefusedAuth: c.refusedAuth.Load(), RefusedUnknown: c.refusedUnknown.Load(),
		RefusedFull: c.refusedFull.Load(), RefusedThrottled: c.refusedThrottled.Load(), RefusedProtocol: c.refusedProtocol.Load(),
		RefusedRevoked: c.refusedRevoked.Load(), CertExpired: c.certExpired.Load(), CertForeign: c.certForeign.Load(),
		CertMissing: c.certMissing.Load(), CertMismatch: c.certMismatch.Load(), Renewed: c.renewed.Load(), RenewFailed: c.renewFailed.Load(),
		Notified: c.notified.Load(), Overloaded: c.overloaded.Load(),
	}
}

func (n *Node) online() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.conns)
}

// spread is how long the reconnects of all devices shall take: as long as their
// handshakes keep this machine half busy, at least ten seconds (SPEC.md §4.8).
func spread(devices, cores int) time.Duration {
	return min(max(handshakes(devices, cores), minSpread), math.MaxUint16*time.Second).Round(time.Second)
}

// handshakes is how long so many of them take at half of this machine.
func handshakes(devices, cores int) time.Duration {
	return time.Duration(devices) * handshakeCost / time.Duration(cores)
}

func (n *Node) spread() time.Duration { return spread(n.online(), runtime.GOMAXPROCS(0)) }

func (n *Node) lookup(id tether.DeviceID) *conn {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.conns[id]
}

// Seen is when the device's end was last heard of, and whether it is online: its tether is
// open and did not leave a PING of the sweep unanswered.
func (n *Node) Seen(id tether.DeviceID) (last time.Time, online bool) {
	c := n.lookup(id)
	if c == nil {
		return time.Time{}, false
	}
	return c.session.LastSeen(), !c.leaving.Load()
}

// LAN is the device's URL on its own network as it says itself (SPEC.md §4.10); empty while
// it is offline, or if it told none. Nobody here connects to it.
func (n *Node) LAN(id tether.DeviceID) string {
	c := n.lookup(id)
	if c == nil || c.leaving.Load() {
		return ""
	}
	if lan := c.lan.Load(); lan != nil {
		return *lan
	}
	return ""
}

// Forward answers r through the newest tether of the device. ErrOffline, or an
// *exchange.Error: nothing was written to w. A request whose tether ended before it went
// out is tried on the one that took over.
func (n *Node) Forward(w http.ResponseWriter, r *http.Request, id tether.DeviceID, o exchange.Options) error {
	var err error
	var last *conn
	for range maxRequestTries {
		c := n.lookup(id)
		if c == nil || c.leaving.Load() || c == last {
			break
		}
		last = c
		if err = exchange.Forward(w, r, c.session, o); err == nil || !gone(err) {
			return err
		}
	}
	if err == nil || gone(err) && !n.draining.Load() {
		return ErrOffline
	}
	return err
}

// gone reports whether the tether ended before any part of the request went out.
func gone(err error) bool {
	e, ok := errors.AsType[*exchange.Error](err)
	return ok && e.Safe && (errors.Is(err, mux.ErrDraining) || errors.Is(err, mux.ErrClosed) || isLost(err))
}

func isLost(err error) bool {
	if _, ok := errors.AsType[*mux.LostError](err); ok {
		return true
	}
	_, ok := errors.AsType[*mux.GoAwayError](err)
	return ok
}

// gate bounds the handshakes under way, and the share of one address in them, so that
// somebody who opens connections and says nothing shuts out only himself.
type gate struct {
	limit int

	mu  sync.Mutex
	n   int         // guarded by mu
	per map[any]int // by address; guarded by mu
}

func (g *gate) enter(addr string) bool {
	k := throttle.Key(addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n >= g.limit || g.per[k] >= max(1, g.limit*3/4) {
		return false
	}
	if g.per == nil {
		g.per = map[any]int{}
	}
	g.n++
	g.per[k]++
	return true
}

func (g *gate) leave(addr string) {
	k := throttle.Key(addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	if g.per[k]--; g.per[k] <= 0 {
		delete(g.per, k)
	}
}

func (g *gate) busy() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}
