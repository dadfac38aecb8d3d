// Package uplink keeps one tether to one of the device's relays, for ever: it chooses the
// relay and the address, waits between attempts so that a fleet never comes back as a herd
// (SPEC.md, "Reconnect"), moves to another session when the relay drains, and hands
// notifications, descriptor changes and the LAN address to the session. It never ends by itself and nothing
// on the LAN waits for it, but for a moment the answers to writes that a relay is to hear of first. The session itself is package tether/session's; dial.go joins
// the two.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// The numbers of SPEC.md, "Reconnect".
const (
	backoffBase   = time.Second
	backoffMax    = 120 * time.Second
	openEnough    = 60 * time.Second  // a session that lasted this long clears the count of failures
	refusedWait   = 300 * time.Second // after "not you": a person has to act
	refusedSpread = 60 * time.Second
	defaultSpread = 10 * time.Second // after losing a session, if ACCEPT named none

	// maxServerWait bounds what a relay may ask for, so that a broken one cannot send a
	// device away for a year.
	maxServerWait = time.Hour

	attemptTimeout = 45 * time.Second // one dial: TCP, TLS on a slow board, upgrade, handshake
	resolveTimeout = 10 * time.Second
	maxAddresses   = 32               // addresses used of one name
	drainTimeout   = 60 * time.Second // an old session that its relay does not end, we end
	closeGoing     = 1001             // WebSocket close code "going away" (RFC 6455 §7.4.1)
)

// Session is one open tether, as *mux.Session gives it.
type Session interface {
	Done() <-chan struct{}
	Err() error
	Notify(n frame.Notify) error
	Describe(json []byte) error
	Locate(lan string) error
	// Invalidate sends v without waiting; ponged is when the last PING came whose PONG went
	// before it, also of a session that is over. SPEC.md §4.12.
	Invalidate(v frame.Invalidate) (ponged time.Time, err error)
	// Drain sends g, waits until no request is being answered or ctx is done, and closes.
	Drain(ctx context.Context, g frame.GoAway)
	// Close ends the session at once with a WebSocket close code; Done tells when it has.
	Close(code int, reason string)
}

// Hooks are called by the session's reader; they do not block.
type Hooks struct {
	OnAck         func(tether.EventID)
	OnGoAway      func(frame.GoAway)
	OnInvalidated func(frame.Invalidated)
	First         tether.EventID // oldest notification that no relay has acknowledged; zero: none
	Info          []byte         // descriptor JSON; empty: not known yet
	link          *link
}

// DialFunc opens a session with the relay at u. addr is the address to dial; empty means
// that u's host is to be resolved by whoever dials (an HTTP proxy does that itself).
// Errors that wrap *RefusedError or *BusyError direct the wait that follows.
type DialFunc func(ctx context.Context, u *url.URL, addr string, h Hooks) (Session, frame.Accept, error)

// RefusedError is a GOAWAY instead of ACCEPT.
type RefusedError struct{ GoAway frame.GoAway }

func (e *RefusedError) Error() string {
	text := "relay refused: " + e.GoAway.Code.String()
	if e.GoAway.Text != "" {
		text += ": " + e.GoAway.Text
	}
	return text
}

// BusyError is an HTTP answer instead of the upgrade.
type BusyError struct {
	Status     int
	RetryAfter time.Duration // zero: not said
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("relay answered %d %s", e.Status, http.StatusText(e.Status))
}

// Event is one notification on its way to the relay.
type Event struct {
	ID    tether.EventID
	Time  time.Time
	Topic string
	Data  []byte
}

// Journal keeps notifications until a relay has acknowledged them.
type Journal interface {
	// Pending appends at most max unacknowledged events that follow after (zero: from the first).
	Pending(dst []Event, after tether.EventID, max int) ([]Event, error)
	// Ack forgets the event and all before it.
	Ack(id tether.EventID) error
	// Changed is closed at the next new event after the call.
	Changed() <-chan struct{}
}

// Config of an uplink.
type Config struct {
	Relays []*url.URL // wss:// or, for tests, ws://; at least one
	Dial   DialFunc

	Journal     Journal                // nil: no notifications
	Info        func() []byte          // descriptor JSON, nil result: not known yet; nil: none
	InfoChanged func() <-chan struct{} // closed at the next change after the call
	LAN         func() string          // the device's URL on its LAN, empty: no address there now; nil: never told
	LANChanged  func() <-chan struct{} // closed at the next change after the call; nil: LAN never changes

	// StopWait is how long requests in flight may go on when Run is told to stop. Default 10 s.
	StopWait time.Duration

	// Resolve looks up the addresses of a relay. Default: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Proxy names the HTTP proxy for a URL, nil for none. Default: HTTPS_PROXY, HTTP_PROXY
	// and NO_PROXY of the environment.
	Proxy func(u *url.URL) (*url.URL, error)
	// Random returns a time in [0, max). Default: math/rand/v2.
	Random func(max time.Duration) time.Duration

	Logger *slog.Logger
}

// State is what the status page shows.
type State struct {
	Connected bool
	Relay     string    // host of the relay that is connected or was tried last
	Session   string    // its number, for logs on both sides
	Since     time.Time // of the present state
	Attempts  int       // failed ones since the last connection
	LastError string    // of the last failed attempt or lost session; empty after none
	RetryAt   time.Time // of the next attempt; zero while connected or dialling
	InFlight  int       // notifications sent and not acknowledged
}

// Uplink is made by New. Its methods are safe for concurrent use; Run is called once.
type Uplink struct {
	cfg Config
	log *slog.Logger

	mu    sync.Mutex
	state State // guarded by mu

	ledger ledger

	// Only Run's goroutine touches these.
	failures int      // in a row; the exponent of the backoff
	told     string   // kind of failure that was logged last; empty: none since the last success
	round    []*relay // what is left to try before shuffling again
}

// relay is one relay in a round of attempts.
type relay struct {
	url       *url.URL
	resolved  bool
	addresses []string // left to try
}

// New checks cfg and fills in the defaults. It starts nothing.
func New(cfg Config) (*Uplink, error) {
	if len(cfg.Relays) == 0 {
		return nil, errors.New("uplink: no relay")
	}
	if cfg.Dial == nil {
		return nil, errors.New("uplink: nothing to dial with")
	}
	if cfg.StopWait <= 0 {
		cfg.StopWait = 10 * time.Second
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if cfg.Proxy == nil {
		cfg.Proxy = EnvironmentProxy
	}
	if cfg.Random == nil {
		cfg.Random = func(max time.Duration) time.Duration {
			if max <= 0 {
				return 0
			}
			return rand.N(max)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	now := time.Now()
	u := &Uplink{cfg: cfg, log: cfg.Logger, state: State{Since: now}}
	u.ledger = ledger{epoch: rand.Uint64() | 1, alone: len(cfg.Relays) == 1, unknown: now.Add(leaseWait)}
	return u, nil
}

// EnvironmentProxy is http.ProxyFromEnvironment for the URL of a relay.
func EnvironmentProxy(u *url.URL) (*url.URL, error) {
	as := *u
	switch u.Scheme {
	case "wss":
		as.Scheme = "https"
	case "ws":
		as.Scheme = "http"
	}
	return http.ProxyFromEnvironment(&http.Request{URL: &as})
}

// Name of the part in logs.
func (u *Uplink) Name() string { return "uplink" }

// State returns the present state.
func (u *Uplink) State() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

func (u *Uplink) update(f func(*State)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(&u.state)
}

// Run keeps the tether until ctx is done, then lets requests in flight finish for
// StopWait and returns nil.
func (u *Uplink) Run(ctx context.Context) error {
	var old sync.WaitGroup // draining sessions
	defer old.Wait()
	var wait time.Duration
	var alternate *url.URL
	for {
		l, err := u.connect(ctx, wait, alternate)
		if err != nil {
			return nil // only ctx ends it
		}
		opened := time.Now()
		g, moved := l.serve(ctx)
		if ctx.Err() != nil {
			l.stop(u.cfg.StopWait)
			return nil
		}
		if moved && g.Code != frame.GoAwayDrain && g.Code != frame.GoAwayOverload {
			// The relay ends it for a reason of ours: nothing to drain.
			l.session.Close(closeGoing, "told to go away")
		}
		if moved {
			old.Go(func() { l.drain(ctx) })
		} else {
			l.end()
		}
		wait, alternate = u.afterSession(l, g, moved, time.Since(opened))
	}
}

// afterSession decides how long to wait after a session that was open for the given time
// ended (moved false) or was told to go away (moved true).
func (u *Uplink) afterSession(l *link, g frame.GoAway, moved bool, open time.Duration) (wait time.Duration, alternate *url.URL) {
	kind, text := "lost", "session lost"
	if err := l.session.Err(); err != nil && !moved {
		text = "session lost: " + err.Error()
	}
	if !moved {
		wait = u.cfg.Random(l.spread)
	}
	if open >= openEnough {
		u.failures = 0
	} else {
		// A relay that takes us and drops us at once is as good as one that is down.
		wait = max(wait, u.backoff())
	}
	if moved {
		kind, text = "goaway", g.Code.String()
		if g.Text != "" {
			text += ": " + g.Text
		}
		asked := u.directed(milliseconds(g.RetryAfter), milliseconds(g.Spread))
		switch g.Code {
		case frame.GoAwayProtocol, frame.GoAwayOverload:
			wait = max(wait, u.backoff())
		case frame.GoAwayAuth, frame.GoAwayUnknown, frame.GoAwayVersion, frame.GoAwayReplaced:
			// Replaced is another one with our identity: two that each come back at once
			// would throw each other out for ever.
			wait = max(wait, u.directed(refusedWait, refusedSpread))
		}
		wait = max(wait, asked)
		alternate = alternateURL(l.url, g.Alternate)
	}
	u.failed(kind, l.url, errors.New(text), wait)
	return wait, alternate
}

// connect waits, then dials until a session is open; it fails only when ctx is done.
func (u *Uplink) connect(ctx context.Context, wait time.Duration, alternate *url.URL) (*link, error) {
	for {
		if err := u.sleep(ctx, wait); err != nil {
			return nil, err
		}
		target, addr, err := u.next(ctx, alternate)
		alternate = nil // it is tried once
		if err == nil {
			var l *link
			if l, err = u.dial(ctx, target, addr); err == nil {
				u.connected(l)
				return l, nil
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		kind := "unreachable"
		wait, kind = u.afterFailure(err, kind)
		u.failed(kind, target, err, wait)
	}
}

// afterFailure decides how long to wait after a failed attempt.
func (u *Uplink) afterFailure(err error, kind string) (time.Duration, string) {
	if r, ok := errors.AsType[*RefusedError](err); ok {
		wait := u.directed(milliseconds(r.GoAway.RetryAfter), milliseconds(r.GoAway.Spread))
		switch r.GoAway.Code {
		case frame.GoAwayAuth, frame.GoAwayUnknown, frame.GoAwayVersion:
			return max(wait, u.directed(refusedWait, refusedSpread)), "refused"
		}
		return max(wait, u.backoff()), "refused"
	}
	if b, ok := errors.AsType[*BusyError](err); ok {
		return max(u.directed(b.RetryAfter, defaultSpread), u.backoff()), "busy"
	}
	return u.backoff(), kind
}

// backoff is random(0, min(120 s, 1 s * 2^n)); every call counts as one more failure.
func (u *Uplink) backoff() time.Duration {
	limit := backoffMax
	if u.failures < 16 { // 2^16 s is over the limit by far; a larger shift would overflow
		limit = min(backoffMax, backoffBase<<u.failures)
	}
	u.failures++
	return u.cfg.Random(limit)
}

// directed is a wait that the relay asked for, with the random part that spreads a fleet.
func (u *Uplink) directed(after, spread time.Duration) time.Duration {
	return min(after, maxServerWait) + u.cfg.Random(min(spread, maxServerWait))
}

// next chooses what to dial: relays in random order, of each its addresses in random order,
// all of them once before the order is drawn again.
func (u *Uplink) next(ctx context.Context, alternate *url.URL) (*url.URL, string, error) {
	if alternate != nil {
		return u.addressOf(ctx, &relay{url: alternate})
	}
	if len(u.round) == 0 {
		for _, r := range u.cfg.Relays {
			u.round = append(u.round, &relay{url: r})
		}
		shuffle(u.round, u.cfg.Random)
	}
	r := u.round[0]
	target, addr, err := u.addressOf(ctx, r)
	if err != nil || len(r.addresses) == 0 {
		u.round = u.round[1:]
	}
	return target, addr, err
}

// addressOf takes the next address of a relay, resolving its name at first.
func (u *Uplink) addressOf(ctx context.Context, r *relay) (*url.URL, string, error) {
	if !r.resolved {
		r.resolved = true
		addrs, err := u.resolve(ctx, r.url)
		if err != nil {
			return r.url, "", err
		}
		r.addresses = addrs
	}
	addr := r.addresses[0]
	r.addresses = r.addresses[1:]
	return r.url, addr, nil
}

// resolve returns at least one address; the one "" leaves the name to the HTTP proxy.
func (u *Uplink) resolve(ctx context.Context, target *url.URL) ([]string, error) {
	proxy, err := u.cfg.Proxy(target)
	if err != nil {
		return nil, fmt.Errorf("choose the proxy for %s: %w", target.Host, err)
	}
	if proxy != nil {
		return []string{""}, nil
	}
	port := target.Port()
	if port == "" {
		port = map[string]string{"ws": "80"}[target.Scheme]
	}
	if port == "" {
		port = "443"
	}
	host := target.Hostname()
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{net.JoinHostPort(host, port)}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := u.cfg.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	var addrs []string
	for _, a := range found {
		if s := net.JoinHostPort(a.Unmap().String(), port); !slices.Contains(addrs, s) {
			addrs = append(addrs, s)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: no addresses", host)
	}
	shuffle(addrs, u.cfg.Random)
	return addrs[:min(len(addrs), maxAddresses)], nil
}

// shuffle is Fisher-Yates with the uplink's random source.
func shuffle[T any](list []T, random func(time.Duration) time.Duration) {
	for i := len(list) - 1; i > 0; i-- {
		j := int(random(time.Duration(i + 1)))
		list[i], list[j] = list[j], list[i]
	}
}

// alternateURL is the relay that a GOAWAY named, nil if none or not a host. The scheme and
// with it TLS stay: the name in the certificate is then that of the alternate.
func alternateURL(u *url.URL, host string) *url.URL {
	if host == "" {
		return nil
	}
	alt := &url.URL{Scheme: u.Scheme, Host: host, Path: u.Path}
	if p, err := url.Parse(alt.String()); err != nil || p.Host != host || p.Hostname() == "" || p.User != nil {
		return nil
	}
	return alt
}

func (u *Uplink) dial(ctx context.Context, target *url.URL, addr string) (*link, error) {
	l := newLink(u, target)
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	s, accept, err := u.cfg.Dial(ctx, target, addr, l.hooks())
	if err != nil {
		return nil, err
	}
	l.open(s, accept)
	return l, nil
}

// sleep waits, and shows until when.
func (u *Uplink) sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	u.update(func(s *State) { s.RetryAt = time.Now().Add(d) })
	defer u.update(func(s *State) { s.RetryAt = time.Time{} })
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failed notes a failed attempt or a lost session. Only the first of a kind is logged:
// a relay that is down for a week must not fill the flash.
func (u *Uplink) failed(kind string, target *url.URL, err error, wait time.Duration) {
	now := time.Now()
	u.update(func(s *State) {
		if s.Connected {
			s.Connected, s.Since, s.Session, s.InFlight = false, now, "", 0
		} else {
			s.Attempts++
		}
		s.Relay, s.LastError = target.Host, err.Error()
	})
	if u.told == kind {
		return
	}
	u.told = kind
	level := slog.LevelWarn
	if kind == "goaway" {
		level = slog.LevelInfo // the relay moves its devices
	}
	u.log.Log(context.Background(), level, "tether is down", "relay", target.Host, "reason", kind, "err", err, "retry_in", wait.Round(time.Millisecond))
}

func (u *Uplink) connected(l *link) {
	u.told = ""
	now := time.Now()
	var attempts int
	var down time.Duration
	u.update(func(s *State) {
		attempts, down = s.Attempts, now.Sub(s.Since)
		*s = State{Connected: true, Relay: l.url.Host, Session: l.id, Since: now}
	})
	u.log.Info("tether is up", "relay", l.url.Host, "session", l.id, "attempts", attempts+1, "after", down.Round(time.Millisecond))
}

func milliseconds(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }
