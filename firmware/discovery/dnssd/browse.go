package dnssd

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// BrowseConfig says what to look for.
type BrowseConfig struct {
	Service    string       // default Service, "_cloudrest._tcp"
	Interfaces []string     // where to look; nil: the local networks (lan.Interfaces)
	Max        int          // instances at once, what comes on top is dropped; default 256
	Logger     *slog.Logger // nil: none
}

// Times of Browse.
const (
	tick       = 250 * time.Millisecond // records end and are asked for again this exactly
	firstEvery = time.Second            // between the first questions, doubled up to
	lastEvery  = time.Minute
	rejoin     = 5 * time.Second // between attempts to use interfaces that refused
)

// Browse looks for the instances of a service type until ctx is done, and sends each one
// when it is found with all its records, when any of them changes, and when it goes. The
// channel holds a few entries and then waits for the receiver, without losing the
// latest state of any; it is closed when ctx is done and all has ended. Interfaces may
// come and go. The error is ErrNoInterface or ErrNoMulticast at the start.
//
// zeroconf's own browser is not used: it reports neither changes nor goodbyes, stops
// asking when it has found one instance, and remembers names without a bound.
func Browse(ctx context.Context, cfg BrowseConfig) (<-chan Entry, error) {
	if cfg.Service == "" {
		cfg.Service = Service
	}
	if cfg.Max <= 0 {
		cfg.Max = defaultMax
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	read := func() ([]lan.Interface, error) { return lan.Interfaces(cfg.Interfaces) }
	ins, err := read()
	if err == nil && len(ins) == 0 {
		err = ErrNoInterface
	}
	if err != nil {
		return nil, fmt.Errorf("%s: browse: %w", partName, err)
	}
	b := &browser{cfg: cfg, cache: newCache(cfg.Service, cfg.Max), heard: make(chan heard, 32), out: make(chan Entry, 16)}
	if err := b.use(ins); err != nil {
		return nil, fmt.Errorf("%s: browse: %w", partName, err)
	}
	go b.run(ctx, read)
	return b.out, nil
}

type browser struct {
	cfg   BrowseConfig
	cache *cache
	heard chan heard // full: the reader waits, and the kernel drops
	out   chan Entry

	group *group // nil: the interfaces refused
	stop  chan struct{}
	wg    sync.WaitGroup // readers of group
	every time.Duration
	next  time.Time // of the general question
}

// heard is a message and the interface it came in on.
type heard struct {
	m    *dns.Msg
	zone string
}

// use joins the groups on other interfaces than before.
func (b *browser) use(ins []lan.Interface) error {
	b.leave()
	b.every, b.next = firstEvery, time.Now()
	if len(ins) == 0 {
		return nil
	}
	g, err := join(ins)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	b.group, b.stop = g, stop
	g.receive(&b.wg, func(p packet) {
		m := new(dns.Msg)
		// RFC 6762 §6: what comes from another port is no response.
		if p.from.Port() != port || m.Unpack(p.b) != nil || !m.Response {
			return
		}
		select {
		case b.heard <- heard{m, p.in.Name}:
		case <-stop:
		}
	})
	return nil
}

func (b *browser) leave() {
	if b.group != nil {
		close(b.stop)
		b.group.close()
		b.group = nil
	}
	b.wg.Wait()
}

func (b *browser) run(ctx context.Context, read func() ([]lan.Interface, error)) {
	defer close(b.out)
	defer b.leave()
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan []lan.Interface)
	watching.Go(func() {
		lan.Watch(ctx, read, func(ins []lan.Interface) {
			select {
			case changed <- ins:
			case <-ctx.Done():
			}
		})
	})
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var refused []lan.Interface
	var again time.Time
	use := func(ins []lan.Interface) {
		refused = nil
		if err := b.use(ins); err != nil {
			b.cfg.Logger.Info("cannot look for services", "err", err, "retry_in", rejoin)
			refused, again = ins, time.Now().Add(rejoin)
		}
	}
	for {
		b.ask(time.Now())
		for _, e := range b.cache.changes(time.Now()) {
			select {
			case b.out <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case ins := <-changed:
			switch {
			case b.group == nil || !alike(b.group.interfaces(), ins):
				use(ins)
			default:
				b.group.update(ins)
			}
		case h := <-b.heard:
			b.cache.add(h.m, h.zone, time.Now())
		case now := <-ticker.C:
			if refused != nil && now.After(again) {
				use(refused)
			}
		}
	}
}

// ask sends what is due.
func (b *browser) ask(now time.Time) {
	if b.group == nil {
		return
	}
	m := new(dns.Msg)
	m.Question = b.cache.questions(now)
	if !now.Before(b.next) {
		m.Question = append(m.Question, dns.Question{Name: b.cache.fullService(), Qtype: dns.TypePTR, Qclass: dns.ClassINET})
		m.Answer = b.cache.known(now)
		b.next = now.Add(b.every)
		b.every = min(2*b.every, lastEvery)
	}
	if len(m.Question) == 0 {
		return
	}
	m.Compress = true
	raw, err := m.Pack()
	if err != nil {
		b.cfg.Logger.Debug("question not written", "err", err)
		return
	}
	for _, in := range b.group.interfaces() {
		if err := b.group.multicast(raw, in); err != nil {
			b.cfg.Logger.Debug("question not sent", "interface", in.Name, "err", err)
		}
	}
}
