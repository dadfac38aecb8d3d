package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/cloud/internal/boltdb"
	"github.com/cloudrest/cloudrest/cloud/internal/devnode"
	"github.com/cloudrest/cloudrest/cloud/internal/directory"
	"github.com/cloudrest/cloudrest/cloud/internal/front"
	"github.com/cloudrest/cloudrest/cloud/internal/metrics"
	"github.com/cloudrest/cloudrest/cloud/internal/operator"
	"github.com/cloudrest/cloudrest/cloud/internal/respcache"
	"github.com/cloudrest/cloudrest/tether/http1"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// Files in the state directory, besides those of package operator.
const storeFile = "relay.db" // mode 0600

// Limits of the HTTP edge (figures of the same size as those of the device's edge).
const (
	headerBytes   = 32 << 10
	headerTimeout = 10 * time.Second  // TLS handshake and head of a request
	idleTimeout   = 120 * time.Second // of a kept-alive connection
	ioTimeout     = 60 * time.Second  // one read or write of a body that does not move: the client is gone
	h2Streams     = 48                // requests at once on one HTTP/2 connection
	h2Window      = 64 << 10          // bytes of a request's body that may wait on each of them
)

const (
	settleEvery = 2 * time.Second
	burst       = 100             // tethers that came within one interval
	burstGC     = 25              // GOGC meanwhile: costs a tenth of a handshake more for each of them
	giveAfter   = 500             // tethers since memory was given back last
	giveQuiet   = 5               // intervals without a burst before it is given back: a storm has lulls
	giveEvery   = 2 * time.Minute // at most so often
)

// Relay is made by New and used once.
type Relay struct {
	cfg    Config
	log    *slog.Logger
	db     *boltdb.DB
	node   *devnode.Node
	front  *front.Front
	cache  *respcache.Cache // nil: nothing is stored
	gate   *front.Gate
	tokens *operator.Tokens
	cert   *certificate // nil: TLS off
	roots  *authorities // nil: devices need no certificate
	set    *metrics.Set
	budget *mux.Budget

	stopping atomic.Bool
	ready    chan struct{}
	addrs    Addrs
}

// Addrs are the addresses that a running relay listens on.
type Addrs struct {
	Listen  net.Addr
	Metrics net.Addr // nil: none
}

// New validates the configuration, opens the store and builds the parts. It listens on
// nothing yet. Run must follow, even with a context that has ended: it closes the store.
func New(cfg Config) (*Relay, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Relay{cfg: cfg, log: cfg.Logger, ready: make(chan struct{})}
	if err := r.build(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Relay) build() (err error) {
	cfg := &r.cfg
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if r.tokens, err = operator.OpenTokens(cfg.StateDir, r.log); err != nil {
		return fmt.Errorf("read operator tokens: %w", err)
	}
	list, err := operator.OpenDevices(cfg.StateDir, r.log)
	if err != nil {
		return fmt.Errorf("read the list of devices: %w", err)
	}
	if !cfg.TLSOff {
		if r.cert, err = newCertificate(cfg.TLSCert, cfg.TLSKey, r.log); err != nil {
			return err
		}
	}
	var factory *devnode.Factory
	if cfg.Enroll == EnrollFactory {
		if r.roots, err = newAuthorities(cfg.FactoryCA, r.log); err != nil {
			return err
		}
		factory = &devnode.Factory{Roots: r.roots.now.Load, Now: now}
		if cfg.RenewCA != "" {
			if factory.Issuer, err = loadIssuer(cfg.RenewCA, cfg.RenewKey, r.roots.now.Load()); err != nil {
				return err
			}
		}
	}
	r.db, err = boltdb.Open(boltdb.Config{Path: filepath.Join(cfg.StateDir, storeFile), Logger: r.log})
	if err != nil {
		return err
	}
	r.budget = &mux.Budget{Limit: memory() / 4}
	if err := r.openCache(); err != nil {
		return errors.Join(err, r.db.Close())
	}
	r.node = devnode.New(devnode.Config{
		Name: "all", Names: cfg.Domains, TLS: !cfg.TLSOff, Store: nodeStore{r.db}, Directory: directory.NewMemory(),
		List: list, FirstUse: cfg.Enroll != EnrollList, Factory: factory, Keepalive: cfg.Keepalive, MaxDevices: cfg.MaxDevices,
		Budget: r.budget, Cache: r.drops(), Logger: r.log,
	})
	r.set = metrics.New()
	r.front = front.New(front.Config{
		Nodes: nodes{r.node, r.cache}, Cache: r.stored(), Store: frontStore{r.db}, Guard: guard{r.tokens}, Tether: r.node, Domains: cfg.Domains,
		TLS: !cfg.TLSOff, Trusted: cfg.TrustedProxies, Ready: r.readiness, MaxInFlight: cfg.MaxInFlight,
		HeadTimeout: cfg.HeadTimeout, Observe: r.set.Observe, Logger: r.log,
	})
	r.gate = front.NewGate(front.GateConfig{Exempt: cfg.TrustedProxies})
	r.describe()
	return nil
}

// readiness is what /readyz asks: can a request be served now?
func (r *Relay) readiness() error {
	if r.stopping.Load() {
		return errors.New("the relay is draining")
	}
	if err := r.db.Writable(); err != nil {
		return fmt.Errorf("the store: %w", err)
	}
	return nil
}

// Ready is closed once the relay listens; Addrs is valid then.
func (r *Relay) Ready() <-chan struct{} { return r.ready }

// Addrs returns the bound addresses, after Ready.
func (r *Relay) Addrs() Addrs { return r.addrs }

// Run serves until ctx is done, then drains: /readyz says no, DrainDelay passes, devices
// are sent elsewhere, event streams and tunnels end, requests in flight get Grace to
// finish. It returns nil then, or the error that ended it.
func (r *Relay) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.db.Close()) }()
	if r.cache != nil {
		defer r.cache.Close()
	}
	ln, err := net.Listen("tcp", r.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for devices and clients: %w", err)
	}
	defer ln.Close()
	var mln net.Listener
	if r.cfg.Metrics != "" {
		if mln, err = net.Listen("tcp", r.cfg.Metrics); err != nil {
			return fmt.Errorf("listen for metrics: %w", err)
		}
		defer mln.Close()
		r.addrs.Metrics = mln.Addr()
	}
	r.addrs.Listen = ln.Addr()

	// The parts outlive ctx: what they do is needed until the drain is over.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(parts)
	store := make(chan struct{})
	g.Go(func() error { defer close(store); return r.db.Run(failed) })
	g.Go(func() error { return r.node.Run(failed) })
	g.Go(func() error { return r.settle(failed) })
	g.Go(func() error { return r.node.Renew(failed) })
	g.Go(func() error { return r.rekey(failed) })
	var looks []func()
	if r.cert != nil {
		looks = append(looks, r.cert.look)
	}
	if r.roots != nil {
		looks = append(looks, r.roots.look)
	}
	g.Go(func() error { return watchFiles(failed, looks...) })
	srv := r.server()
	g.Go(func() error { return closed(srv.Serve(r.gate.Listener(ln))) })
	if mln != nil {
		msrv := r.metricsServer()
		g.Go(func() error { return closed(msrv.Serve(mln)) })
		g.Go(func() error { <-failed.Done(); return msrv.Close() })
	}
	close(r.ready)
	r.log.Info("relay listens", "listen", fmt.Sprint(r.addrs.Listen), "domain", r.cfg.Domains[0], "tls", r.cert != nil, "metrics", fmt.Sprint(r.addrs.Metrics), "enroll", r.cfg.Enroll)
	if r.tokens.Len() == 0 {
		r.log.Warn("no operator token exists yet: clients cannot come in. Make one with: cloudrelay token")
	}
	select {
	case <-ctx.Done():
		r.log.Info("relay stops", "cause", context.Cause(ctx))
		r.drain(srv)
	case <-failed.Done():
		srv.Close()
		r.node.Close()
	}
	// The node has handed its last words to the store, which commits them before it ends.
	stop()
	err = g.Wait()
	r.log.Info("relay stopped")
	return err
}

// closed makes an ordinary end of a server nil.
func closed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// server is the one for devices and clients.
func (r *Relay) server() *http1.Server {
	srv := &http1.Server{
		Handler: r.gate.Handler(r.front), MaxHead: headerBytes, HeadTimeout: headerTimeout,
		IdleTimeout: idleTimeout, IOTimeout: ioTimeout, Logger: r.log,
		// The connection's window holds those of all its streams, or a few uploads that wait
		// for a slow device stop every other request of the connection.
		HTTP2: http.HTTP2Config{MaxConcurrentStreams: h2Streams, MaxReceiveBufferPerStream: h2Window, MaxReceiveBufferPerConnection: h2Streams * h2Window},
	}
	if r.cert != nil {
		srv.TLS = r.cert.config()
		if r.roots != nil {
			r.roots.askDevices(srv.TLS)
			srv.TLSFailed = func(addr string, state tls.ConnectionState, err error) {
				if len(state.PeerCertificates) > 0 {
					r.node.RefusedByTLS(addr, state.PeerCertificates, err)
				}
			}
		}
	}
	return srv
}

// drain is the gentle end.
func (r *Relay) drain(srv *http1.Server) {
	r.stopping.Store(true)
	time.Sleep(r.cfg.DrainDelay) // balancers notice /readyz meanwhile, and everything is served as before
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.GoAway+r.cfg.Grace)
	defer cancel()
	r.front.Drain()
	r.node.Settle(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { r.node.Drain(ctx, r.cfg.GoAway) })
	wg.Go(func() {
		if err := srv.Shutdown(ctx); err != nil {
			r.log.Warn("requests were cut off", "err", err)
			srv.Close()
		}
	})
	wg.Wait()
}

// settle keeps memory small when many devices come at once: their handshakes leave
// garbage between what idle tethers keep. While they come it is collected sooner, and
// afterwards the memory is given back to the system.
func (r *Relay) settle(ctx context.Context) error {
	t := time.NewTicker(settleEvery)
	defer t.Stop()
	var given, before uint64
	var last time.Time
	usual := 0 // of the collector while it runs sooner; 0: it does not
	quiet := 0 // intervals
	restore := func() {
		if usual != 0 {
			debug.SetGCPercent(usual)
			usual = 0
		}
	}
	defer restore()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		opened := r.node.Stats().Opened
		came := opened - before
		before = opened
		switch {
		case came >= burst && usual != 0:
			quiet = 0
		case came >= burst:
			quiet = 0
			if usual = debug.SetGCPercent(burstGC); usual < burstGC { // the operator wants it even smaller, or off
				restore()
			}
		case came < burst:
			restore()
			quiet++
			if quiet >= giveQuiet && opened-given >= giveAfter && time.Since(last) >= giveEvery {
				given, last = opened, time.Now()
				debug.FreeOSMemory()
				if err := r.db.Relax(); err != nil {
					r.log.Debug("give mapped pages back", "err", err)
				}
			}
		}
	}
}
