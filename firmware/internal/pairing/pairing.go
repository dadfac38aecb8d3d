package pairing

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// How often the store is written without a change that somebody waits for: flash wears out.
const (
	flushLast  = 15 * time.Minute // last uses, and events that strangers cause
	flushEvent = time.Minute      // other events
)

// minLabel is the shortest label secret, in characters: 80 bits of base32.
const minLabel = 16

// ErrStore means that the store refused a change, most likely because the disk is full. Nothing has changed.
var ErrStore = errors.New("cannot be stored")

// Bucket is where pairings are kept; *store.Bucket fits. Change is one transaction, nil deletes.
type Bucket interface {
	Change(map[string][]byte) error
	All() (map[string][]byte, error)
}

// Config describes a Pairing. Store, ID, Pin and URL are required.
type Config struct {
	Store Bucket       // of its own
	Sync  func() error // puts on flash what Store took; nil: each Change does

	// Generation counts the owners that the device has had; a factory reset raises it. What was stored under
	// another one is ignored and removed.
	Generation uint32
	// Fresh means that the device was just made or reset. It opens the first-start window, once: its minutes are
	// counted in the store, so that neither a restart nor a wrong clock gives it more of them.
	Fresh bool

	ID    func() tether.DeviceID
	Pin   func() string // of the device's authority (trust.Pin)
	URL   func() string // https://host[:port] that a client in the LAN can use
	Label string        // secret printed on the device's label, 16 to 128 characters of base64url, good for one pairing; "" none

	OnEvent func(SecurityEvent) // each event once, in no lock; must not block for long
	// OnWindow is told when a window opens (true, ""), a code is to be compared (true, code) and it closes (false,
	// the code of the client that paired, or ""). For LED and log; as OnEvent.
	OnWindow func(open bool, code string)
	QR       func(text string) []byte // SVG of an invitation; nil: none

	Logger *slog.Logger     // nil: silence
	Now    func() time.Time // nil: time.Now
}

// Validate reports every mistake at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Store == nil {
		errs = append(errs, errors.New("pairing: no store"))
	}
	if c.ID == nil || c.Pin == nil || c.URL == nil {
		errs = append(errs, errors.New("pairing: device ID, pin and URL are needed"))
	}
	if c.Label != "" && (len(c.Label) < minLabel || len(c.Label) > trust.MaxSecret || strings.IndexFunc(c.Label, notSecret) >= 0) {
		errs = append(errs, fmt.Errorf("pairing: label secret of %d characters, want %d to %d of A-Z a-z 0-9 - _", len(c.Label), minLabel, trust.MaxSecret))
	}
	return errors.Join(errs...)
}

func notSecret(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// Pairing is safe for concurrent use.
type Pairing struct {
	cfg Config
	log *slog.Logger
	bad throttle

	clients atomic.Pointer[table] // replaced under mu, read without
	label   [sha256.Size]byte     // hash of Config.Label

	badTokens, throttled, refused atomic.Uint64

	wake chan struct{} // Run looks at its times again

	mu        sync.Mutex // guards what follows, and is held while the store writes
	win       *window
	asks      []*ask
	invites   []*invitation
	winner    winner
	labelUsed bool
	first     firstStart
	events    ring
	deletes   map[string]bool // clients that are revoked and still in the store
	flushed   time.Time
	failing   bool // the store refused the last change
	later     []func()
}

// New reads the pairings. It starts nothing: Run does what must happen in time, though nothing is valid longer than it
// should be when Run does not. Errors are Validate's and the store's.
func New(c Config) (*Pairing, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	values, err := c.Store.All()
	if err != nil {
		return nil, fmt.Errorf("read the pairings: %w", err)
	}
	p := &Pairing{cfg: c, log: c.Logger, wake: make(chan struct{}, 1), deletes: map[string]bool{}, flushed: c.Now()}
	p.label = sha256.Sum256([]byte(c.Label))
	events, stale := loadEvents(values, c.Generation)
	p.events = events
	clients := table{}
	for k, v := range values {
		if id, ok := strings.CutPrefix(k, clientKey); ok {
			r, err := decodeClient(id, v, c.Generation)
			if err != nil || len(clients) >= MaxClients {
				stale = append(stale, k)
				continue
			}
			clients[r.hash] = r
		}
	}
	p.clients.Store(&clients)
	p.labelUsed = c.Label == "" || ofGeneration(values[labelKey], c.Generation)
	if len(stale) > 0 {
		p.log.Info("pairings of an earlier owner, or damaged, are removed", "records", len(stale))
		gone := map[string][]byte{}
		for _, k := range stale {
			gone[k] = nil
		}
		if err := c.Store.Change(gone); err != nil {
			p.log.Warn("remove old pairings", "err", err) // they are ignored all the same
		}
	}
	p.begin()
	p.startFirst(values[firstKey])
	p.end()
	return p, nil
}

// mark is what is stored about the label and the first start, as JSON.
type mark struct {
	Generation uint32 `json:"gen"`
	Minutes    int    `json:"minutes,omitempty"` // left for the first-start window
}

func ofGeneration(value []byte, generation uint32) bool {
	var m mark
	return value != nil && json.Unmarshal(value, &m) == nil && m.Generation == generation
}

// begin takes the lock and lets go of what is over; end gives the lock back and makes the calls that must not be made
// inside.
func (p *Pairing) begin() time.Time {
	p.mu.Lock()
	now := p.cfg.Now()
	p.sweep(now)
	return now
}

func (p *Pairing) end() {
	p.leave()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// leave is end without a word to Run.
func (p *Pairing) leave() {
	calls := p.later
	p.later = nil
	p.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// Run closes windows in time and writes last uses and events to the store: at most once in 15 minutes (events of the device's people: in a minute) and at the end. It returns nil when
// ctx is done.
func (p *Pairing) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			p.begin()
			p.flush()
			p.end()
			return nil
		case <-timer.C:
		case <-p.wake:
		}
		now := p.begin()
		if due := p.flushAt(); !due.IsZero() && !now.Before(due) {
			p.flush()
		}
		next := p.next(now)
		p.leave()
		timer.Reset(max(next.Sub(now), 0))
	}
}

// flush writes what the store lacks. p.mu is held.
func (p *Pairing) flush() {
	p.flushed = p.cfg.Now() // also if it fails: not again at once
	_ = p.commit(nil, false, nil)
}

// flushAt is when the store should next be written; zero: there is nothing to write. p.mu is held.
func (p *Pairing) flushAt() time.Time {
	dirty, soon := p.events.unsaved()
	for _, r := range *p.clients.Load() {
		dirty = dirty || r.last.Load() != r.savedLast
	}
	switch {
	case soon || len(p.deletes) > 0:
		return p.flushed.Add(flushEvent)
	case dirty:
		return p.flushed.Add(flushLast)
	}
	return time.Time{}
}

// next is when Run has to look again. p.mu is held.
func (p *Pairing) next(now time.Time) time.Time {
	next := now.Add(flushLast) // last uses come without a word
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	earlier(p.flushAt())
	if p.win != nil {
		earlier(p.win.until)
		if p.win.way == WayFirstStart {
			earlier(p.first.nextMinute(now))
		}
	}
	for _, a := range p.asks {
		earlier(a.until)
	}
	for _, i := range p.invites {
		earlier(i.until)
	}
	return next
}

// sweep ends what is over. p.mu is held.
func (p *Pairing) sweep(now time.Time) {
	if w := p.win; w != nil {
		if !now.Before(w.until) {
			p.closeWindow(EventWindowClosed, "its time is over", "")
		} else if w.way == WayFirstStart {
			p.countFirst(now)
		}
	}
	kept := p.asks[:0]
	for _, a := range p.asks {
		if now.Before(a.until) {
			kept = append(kept, a)
			continue
		}
		if a.token != "" { // paired, and nobody ever fetched the token
			if r := p.clients.Load().byID(a.client.ID); r != nil {
				_ = p.revoke(r, SecurityEvent{Event: EventRevoked, Client: r.ID, Detail: fmt.Sprintf("%q never fetched its token", r.Name)})
			}
		}
		a.finish(gone("the request is over: ask again"))
	}
	clear(p.asks[len(kept):])
	p.asks = kept
	for i := len(p.invites) - 1; i >= 0; i-- {
		if !now.Before(p.invites[i].until) {
			p.dropInvite(i)
		}
	}
}

// swap publishes a changed table. p.mu is held.
func (p *Pairing) swap(change func(t table)) {
	t := maps.Clone(*p.clients.Load())
	change(t)
	p.clients.Store(&t)
}

// revoke takes a client's rights away at once, also when the store cannot: then it is tried again, and the error is
// ErrStore. p.mu is held.
func (p *Pairing) revoke(r *record, e SecurityEvent) error {
	p.swap(func(t table) { delete(t, r.hash) })
	r.end()
	p.dropOf(r.ID)
	err := p.commit(map[string][]byte{clientKey + r.ID: nil}, true, nil, e)
	if err != nil {
		p.deletes[r.ID] = true
		p.record(e)
	}
	return err
}

// dropOf ends what a client has opened for others. p.mu is held.
func (p *Pairing) dropOf(id string) {
	if p.win != nil && p.win.by == id {
		p.closeWindow(EventWindowClosed, "who opened it lost the right", "")
	}
	for i := len(p.invites) - 1; i >= 0; i-- {
		if p.invites[i].by == id {
			p.dropInvite(i)
		}
	}
}

// Record adds an event of another part, such as "factory_reset", to the security events.
func (p *Pairing) Record(e SecurityEvent) {
	p.begin()
	p.record(e)
	p.end()
}

// Events returns the last 64 security events, oldest first.
func (p *Pairing) Events() []SecurityEvent {
	p.begin()
	defer p.end()
	list := make([]SecurityEvent, 0, len(p.events.entries))
	for _, e := range p.events.entries {
		list = append(list, e.SecurityEvent)
	}
	return list
}

// Clients returns who has paired, in that order.
func (p *Pairing) Clients() []Client {
	var list []Client
	for _, r := range p.clients.Load().list() {
		list = append(list, r.client())
	}
	return list
}

// Stats are for the status page and metrics.
type Stats struct {
	Clients   int    `json:"clients"`
	BadTokens uint64 `json:"bad_tokens"` // requests with a wrong token or secret
	Throttled uint64 `json:"throttled"`  // of those, the ones that came too fast
	Refused   uint64 `json:"refused"`    // askers that were refused
	Storing   bool   `json:"storing"`    // the last change could be stored
}

// Stats returns the state of this moment.
func (p *Pairing) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{
		Clients: len(*p.clients.Load()), BadTokens: p.badTokens.Load(), Throttled: p.throttled.Load(),
		Refused: p.refused.Load(), Storing: !p.failing,
	}
}
