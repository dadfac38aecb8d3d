package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/discovery/beacon"
	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/cache"
	"github.com/cloudrest/cloudrest/firmware/internal/describe"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/identity"
	"github.com/cloudrest/cloudrest/firmware/internal/lancert"
	"github.com/cloudrest/cloudrest/firmware/internal/notify"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/page"
	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/firmware/internal/provision"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy/edge"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/firmware/internal/store"
	"github.com/cloudrest/cloudrest/firmware/internal/uplink"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// maxListeners is how many programs may read the events at once; each holds only a cursor.
const maxListeners = 64

// ErrRan means that Run was called a second time, or after Close.
var ErrRan = errors.New("gateway: it ran already")

// Gateway is made by New. Its methods are safe for concurrent use.
type Gateway struct {
	cfg     Config
	log     *slog.Logger
	started time.Time

	id      *identity.Identity
	cert    *lancert.Authority
	store   *store.Store
	notes   *notify.Notifier
	client  *origin.Client
	gate    *admit.Gate
	proxy   *proxy.Proxy
	cache   *cache.Cache
	watcher *describe.Watcher
	uplink  *uplink.Uplink // nil: no relay is configured
	relay   invalidator    // nil: likewise
	pairing *pairing.Pairing
	guarded guarded
	page    http.Handler
	certs   *provision.Certificates // from the factory; may hold none
	label   string                  // secret on the device's label; "" none

	generation uint32             // of the owner
	reset      chan struct{}      // closed when a factory reset is decided
	led        chan board.Pattern // what the LED is to show next; the latest counts

	beacon atomic.Pointer[beacon.Server] // nil: off or not started
	mdns   mdns

	listeners *sse.Limiter
	parts     states
	location  location
	ready     chan struct{} // closed once the listeners are bound
	stopping  chan struct{} // closed when Run is told to stop: streams end

	ran   atomic.Bool
	close func() error

	mu   sync.Mutex
	addr Addresses    // guarded by mu
	lan  *edge.Server // guarded by mu; nil before Run
	// resetting means that reset is closed; guarded by mu.
	resetting bool
}

// Addresses are where the gateway listens.
type Addresses struct {
	HTTPS netip.AddrPort
	HTTP  netip.AddrPort // not valid: no redirect, none was asked for or its port is taken
}

// New checks cfg, takes the state directory for this process and opens what is in it: the
// identity and certificate (made at first start) and the journal of notifications. Nothing
// listens and nothing runs before Run; a gateway that is not run must be closed. The error
// joins every *ConfigError, or says what is wrong with the state.
func New(cfg Config) (g *Gateway, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.fill()
	g = &Gateway{
		cfg: cfg, log: cfg.Logger, started: time.Now(),
		listeners: sse.NewLimiter(maxListeners),
		ready:     make(chan struct{}), stopping: make(chan struct{}),
		reset: make(chan struct{}), led: make(chan board.Pattern, 1),
	}
	if features.Page {
		g.page = page.Handler()
	}
	var undo []func() error
	g.close = sync.OnceValue(func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
			g = nil
		}
	}()

	if err := statefile.Prepare(cfg.StateDir); err != nil {
		return g, err
	}
	unlock, err := statefile.Lock(cfg.StateDir)
	if err != nil {
		return g, err
	}
	undo = append(undo, func() error { unlock(); return nil })
	made := false
	if g.id, made, err = identity.Open(context.Background(), cfg.StateDir, cfg.Hardware); err != nil {
		return g, err
	}
	if made {
		g.log.Info("this device has a new identity", "device", g.id.ID, "source", g.id.Source)
	} else if !g.id.Verified && g.id.Source != board.Random {
		g.log.Warn("the identity could not be compared with the hardware", "source", g.id.Source, "reason", g.id.Reason)
	}
	if err := g.openCertificate(); err != nil {
		return g, err
	}
	if features.Provision {
		g.openFactory()
	}
	storeConfig := store.Config{Dir: cfg.StateDir, Logger: g.log}
	gen, fresh, err := beginGeneration(storeConfig)
	if err != nil {
		return g, err
	}
	g.generation = gen.Number
	if g.store, err = store.Open(storeConfig); err != nil {
		return g, err
	}
	undo = append(undo, g.store.Close)
	if err := g.openNotifier(); err != nil {
		return g, err
	}
	if err := g.openPairing(fresh); err != nil {
		return g, err
	}
	if fresh && g.generation > 0 {
		g.pairing.Record(pairing.SecurityEvent{Event: eventReset, Detail: fmt.Sprintf("generation %d begins", g.generation)})
	}
	if err := g.openOrigin(); err != nil {
		return g, err
	}
	undo = append(undo, g.client.Close)
	if err := g.openCache(); err != nil {
		return g, err
	}
	undo = append(undo, g.cache.Close)
	return g, g.openUplink()
}

// Close gives back what New opened, for a gateway that is not run. After Run it does nothing.
func (g *Gateway) Close() error {
	g.ran.Store(true)
	return g.close()
}

// ID is the device's.
func (g *Gateway) ID() tether.DeviceID { return g.id.ID }

// Ready is closed once the gateway listens; Addresses and URL are known from then on.
func (g *Gateway) Ready() <-chan struct{} { return g.ready }

// Addresses tells where the gateway listens; the zero value before Ready.
func (g *Gateway) Addresses() Addresses {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.addr
}

// URL is the address of the device on this machine's network, or on loopback if there is
// no other; empty before Ready.
func (g *Gateway) URL() string {
	a := g.Addresses().HTTPS
	if !a.IsValid() {
		return ""
	}
	return g.urlAt(usualAddr())
}

// urlAt is the URL for a client that reaches this machine at addr. A listener bound to one
// address is only there.
func (g *Gateway) urlAt(addr netip.Addr) string {
	a := g.Addresses().HTTPS
	if !a.Addr().IsUnspecified() || !addr.IsValid() {
		addr = a.Addr()
	}
	return baseURL(addr, a.Port())
}

// usualAddr is the first address that others on the LAN can use, IPv4 before IPv6.
func usualAddr() netip.Addr {
	best := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, a := range localAddrs() {
		switch {
		case a.IsLoopback() || a.IsLinkLocalUnicast():
		case a.Is4():
			return a
		case best.IsLoopback():
			best = a
		}
	}
	return best
}

// Name is what people call the device: the one configured, or that of the service's
// descriptor, or one made of the ID.
func (g *Gateway) Name() string {
	if g.cfg.Name != "" {
		return g.cfg.Name
	}
	if d, ok := g.watcher.Current(); ok && d.Name != "" {
		return d.Name
	}
	return "CloudREST " + g.id.ID.Short()
}

// Run listens and works until ctx is done; then it ends event streams, lets requests in
// flight finish for StopWait, says goodbye on the network, keeps what must be kept and
// returns nil. It returns early only if the LAN cannot be served, or with ErrFactoryReset. What is optional (the
// redirect, discovery, tether) may fail and is tried again. Run is called once.
func (g *Gateway) Run(ctx context.Context) (err error) {
	if !g.ran.CompareAndSwap(false, true) {
		return ErrRan
	}
	defer func() { err = errors.Join(err, g.close()) }()
	https, err := listen(ctx, "https", g.cfg.HTTPS)
	if err != nil {
		return err
	}
	lan, err := edge.New(edge.Config{
		Handler: dispatch(http.HandlerFunc(g.own), g.service(admit.LAN)),
		TLS:     &tls.Config{GetCertificate: g.cert.GetCertificate}, Logger: g.log,
	})
	if err != nil {
		https.Close()
		return err
	}
	addr := Addresses{HTTPS: addrPort(https)}
	var plain net.Listener
	var plainErr error
	if g.cfg.HTTP != "" {
		if plain, plainErr = listen(ctx, "http", g.cfg.HTTP); plainErr == nil {
			addr.HTTP = addrPort(plain)
		}
	}
	g.mu.Lock()
	g.addr, g.lan = addr, lan
	g.mu.Unlock()

	// The journal outlives everything that may still write to it.
	inner, endInner := context.WithCancel(context.WithoutCancel(ctx))
	var keepers sync.WaitGroup
	g.keep(inner, &keepers)
	defer keepers.Wait()
	defer endInner()

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-g.reset:
			return ErrFactoryReset
		}
	})
	group.Go(func() error { // before the servers wait for their requests
		<-ctx.Done()
		close(g.stopping)
		return g.proxy.Close()
	})
	group.Go(func() error { return g.serve(ctx, lan, https) })
	group.Go(func() error { g.keepCertificate(ctx); return nil })
	if g.cfg.HTTP != "" {
		group.Go(func() error {
			optional(ctx, g.log, &g.parts, "http", func(ctx context.Context) error {
				l, err := plain, plainErr
				plain, plainErr = nil, nil // the next attempt binds anew
				if l == nil && err == nil {
					l, err = listen(ctx, "http", g.cfg.HTTP)
				}
				if err != nil {
					return err
				}
				return g.redirect(ctx, l)
			})
			return nil
		})
	}
	group.Go(func() error { return g.watcher.Run(ctx) })
	g.discover(ctx, group)
	g.controls(ctx, group)
	if features.Tether && g.uplink != nil {
		group.Go(func() error { g.locate(ctx); return nil })
		group.Go(func() error { return g.uplink.Run(ctx) })
	}
	close(g.ready)
	g.log.Info("the gateway is ready", "device", g.id.ID, "https", addr.HTTPS, "http", g.cfg.HTTP, "url", g.URL(),
		"relays", len(g.cfg.Relays), "access", g.cfg.Access, "version", buildinfo.Version())
	return group.Wait()
}

// redirect answers on l until ctx is done.
func (g *Gateway) redirect(ctx context.Context, l net.Listener) error {
	g.mu.Lock()
	g.addr.HTTP = addrPort(l)
	port := g.addr.HTTPS.Port()
	g.mu.Unlock()
	s, err := edge.New(edge.Config{Handler: redirect(strconv.Itoa(int(port))), Logger: g.log})
	if err != nil {
		l.Close()
		return err
	}
	return g.serve(ctx, s, l)
}

// serve answers requests on l until ctx is done, then lets those in flight finish; when
// the time for that is over, they are cut off.
func (g *Gateway) serve(ctx context.Context, s *edge.Server, l net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.StopWait)
	defer cancel()
	if err := s.Shutdown(grace); err != nil {
		g.log.Info("requests were cut off at the end", "after", g.cfg.StopWait)
		s.Close()
	}
	<-ended
	return nil
}

func addrPort(l net.Listener) netip.AddrPort {
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
