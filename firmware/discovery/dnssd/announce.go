package dnssd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// Announcer announces a device on its local networks. Set the fields, then call Run once.
type Announcer struct {
	// Info tells what to announce; required. It is called at the start and whenever
	// something may have changed, from Run's goroutine, and must not block.
	Info func() Info
	// Changed, when set, returns a channel that is closed when Info has something new;
	// it is called anew after that.
	Changed func() <-chan struct{}
	// Interfaces are the ones to announce on; nil: the local networks (lan.Interfaces).
	Interfaces []string
	Logger     *slog.Logger // nil: none

	once sync.Once
	kick chan struct{} // something may have changed; full: it is known already

	mu    sync.Mutex // guards what follows
	state State
	ins   []lan.Interface
	read  bool // ins was read once
	lost  bool // somebody claims our name
}

// State is what an Announcer does at the moment.
type State struct {
	Announced  bool
	Host       string   // without the last dot: "cloudrest-1a2b3c4d.local"
	Instance   string   // "Garden 1a2b3c4d"
	Interfaces []string // their names
	Err        error    // why nothing is announced
}

// ErrNoInterface means that no interface with an address is there to announce on; the
// announcement begins when one comes.
var ErrNoInterface = errors.New("no network interface with an address to announce on")

// Times of Run.
const (
	retryFirst = time.Second // after a failure, doubled up to
	retryLast  = time.Minute
	// A lost name is probed again after a random part of this, so that of two devices that
	// see each other at once one is first and keeps it; and not again within the second.
	yieldTime  = 2 * time.Second
	yieldApart = 10 * time.Second
)

// Name of the part in logs.
const partName = "dnssd"

// State returns what is announced now.
func (a *Announcer) State() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state
	s.Interfaces = slices.Clone(s.Interfaces)
	return s
}

// Refresh makes Run call Info again: what changed is announced anew.
func (a *Announcer) Refresh() {
	a.init()
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (a *Announcer) init() { a.once.Do(func() { a.kick = make(chan struct{}, 1) }) }

// Run announces until ctx is done, then says goodbye and returns nil. It follows changes of
// interfaces, addresses and Info. What does not work is tried again for ever; the only
// other end is an Announcer that is not set up right.
func (a *Announcer) Run(ctx context.Context) error {
	if a.Info == nil {
		return errors.New(partName + ": Announcer.Info is required")
	}
	a.init()
	log := a.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		lan.Watch(ctx, func() ([]lan.Interface, error) { return lan.Interfaces(a.Interfaces) }, func(ins []lan.Interface) {
			a.mu.Lock()
			a.ins, a.read = ins, true
			a.mu.Unlock()
			a.Refresh()
		})
	})
	r := run{Announcer: a, log: log, wait: retryFirst}
	defer func() {
		if r.now != nil {
			r.now.end(true)
		}
		a.setState(State{})
	}()
	for ctx.Err() == nil {
		var changed <-chan struct{}
		if a.Changed != nil {
			changed = a.Changed() // before Info, so that nothing is missed between
		}
		retry := r.step(ctx)
		select {
		case <-ctx.Done():
		case <-a.kick:
		case <-changed:
		case <-retry:
		}
	}
	return nil
}

// run is the state of one Run.
type run struct {
	*Announcer
	log     *slog.Logger
	now     *session // nil: nothing is announced
	wait    time.Duration
	failed  string // what was logged last
	yielded time.Time
}

// step makes what is announced fit the present. It returns when to try again.
func (r *run) step(ctx context.Context) (retry <-chan time.Time) {
	r.mu.Lock()
	ins, read, lost := r.ins, r.read, r.lost
	r.mu.Unlock()
	if !read {
		return nil // the watcher tells at once
	}
	info := r.Info()
	force := false
	if lost && r.now != nil {
		if wait := yieldApart - time.Since(r.yielded); wait > 0 && !r.yielded.IsZero() {
			retry = time.After(wait)
		} else if force = sleep(ctx, rand.N(yieldTime)); force {
			r.yielded = time.Now()
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if r.now != nil && !force && r.now.info == info && alike(r.now.group.interfaces(), ins) {
		if !lan.Equal(r.now.group.interfaces(), ins) {
			r.now.readdress(ins)
			r.log.Info("addresses announced anew by mDNS", "interfaces", names(ins))
		}
		return retry
	}
	err := ErrNoInterface
	if len(ins) > 0 {
		err = r.replace(ctx, info, ins, force)
	} else if r.now != nil {
		r.now.end(true)
		r.now = nil
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		r.failed, r.wait = "", retryFirst
		o := r.now.own
		s := State{Announced: true, Host: strings.TrimSuffix(o.host, "."), Instance: o.instance, Interfaces: names(ins)}
		r.setState(s)
		r.log.Info("announced by mDNS", "instance", s.Instance, "host", s.Host, "interfaces", s.Interfaces)
		return retry
	}
	r.setState(State{Err: err})
	if errors.Is(err, ErrNoInterface) {
		r.fail(err, 0)
		return nil // the watcher tells
	}
	r.fail(err, r.wait)
	retry = time.After(r.wait)
	r.wait = min(2*r.wait, retryLast)
	return retry
}

func (r *run) fail(err error, wait time.Duration) {
	if err.Error() == r.failed {
		// Its start was logged, and its end will be.
		r.log.Debug("still nothing is announced by mDNS", "err", err, "retry_in", wait)
		return
	}
	r.failed = err.Error()
	r.log.Warn("nothing is announced by mDNS, trying on", "err", err, "retry_in", wait)
}

// replace makes a new session and ends the old one, which answers for our names until
// the new one has claimed them. On an error there is none.
func (r *run) replace(ctx context.Context, info Info, ins []lan.Interface, force bool) error {
	old := r.now
	nhost, ninst := 1, 1
	claimed := false
	if old != nil {
		nhost = old.nhost
		if old.info.ID != info.ID {
			nhost = 1
		}
		if old.info.ID == info.ID && old.info.Name == info.Name {
			ninst = old.ninst
			claimed = !force && alike(old.group.interfaces(), ins)
		}
	}
	next, err := open(info, ins, nhost, ninst, old, r.log, func() {
		r.mu.Lock()
		r.lost = true
		r.mu.Unlock()
		r.Refresh()
	})
	if err == nil && !claimed {
		next.claim(ctx)
	}
	r.mu.Lock()
	r.lost = false
	r.mu.Unlock()
	r.now = nil
	var before []lan.Interface
	if old != nil {
		keeps := err == nil && ctx.Err() == nil && old.own.host == next.own.host
		if keeps {
			before = old.group.interfaces()
		}
		old.end(!keeps)
	}
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		next.end(false)
		return context.Cause(ctx)
	}
	if err := next.announce(before); err != nil {
		next.end(true)
		return fmt.Errorf("announce: %w", err)
	}
	r.now = next
	return nil
}

func (a *Announcer) setState(s State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = s
}

func names(ins []lan.Interface) (list []string) {
	for _, in := range ins {
		list = append(list, in.Name)
	}
	return list
}

// alike reports whether two readings have the same interfaces with the same families, so
// that memberships hold and only addresses may differ.
func alike(a, b []lan.Interface) bool {
	return slices.EqualFunc(a, b, func(a, b lan.Interface) bool {
		a4, a6 := families(a)
		b4, b6 := families(b)
		return a.Index == b.Index && a.Name == b.Name && a.Flags == b.Flags && a4 == b4 && a6 == b6
	})
}

func families(in lan.Interface) (v4, v6 bool) {
	for _, p := range in.Prefixes {
		v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
	}
	return v4, v6
}
