package uplink

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// leaseWait is for how long after a PONG a relay may give out what it stored before
// (SPEC.md §4.12), with a margin for clocks that run at different speeds.
const leaseWait = 4 * time.Second

// ledger counts the writes and knows which relays may not have heard of them.
type ledger struct {
	epoch uint64
	alone bool // there is only one relay that could know of an earlier daemon

	mu      sync.Mutex // guards the fields below, and the done of every link
	seq     uint64
	links   []*link       // where the count was told, oldest first: open, or ended while a lease may be out
	changed chan struct{} // closed at the next INVALIDATED; nil: nobody waits
	unknown time.Time     // until when a relay may have a lease from an earlier daemon
}

// claim is a relay's possible lease.
type claim struct {
	link  *link // nil: of an earlier daemon
	until time.Time
}

// via marks the context of a request that came over a link.
type via struct{}

// Through is what a request's handler is to be wrapped in when the requests come over the
// session that these hooks are for: the answer to a write follows its INVALIDATE then, and
// need not wait for the relay (SPEC.md §4.12).
func (h Hooks) Through(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			r = r.WithContext(context.WithValue(r.Context(), via{}, h.link))
		}
		next.ServeHTTP(w, r)
	})
}

// Invalidate tells the relays of a write, before its answer is released: what it made stale,
// paths with or without queries, or everything if uris is empty. It returns when no relay will
// answer a request that begins later with what it stored before the write: at once, unless
// one was allowed to without asking in the last 4 s; when that one has confirmed; 4 s later at
// most. ctx may end the wait: only then there is an error, and what was promised does not hold.
func (u *Uplink) Invalidate(ctx context.Context, uris []string) error {
	through, _ := ctx.Value(via{}).(*link)
	g := &u.ledger
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seq++
	seq := g.seq
	f := frame.Invalidate{Epoch: g.epoch, Seq: seq, URIs: uris}
	if len(uris) == 0 {
		f.Flags = frame.FlagAll
	}
	claims := g.announce(f)
	if g.unknown.After(time.Now()) {
		claims = append(claims, claim{nil, g.unknown})
	}
	claims = slices.DeleteFunc(claims, func(c claim) bool { return c.link != nil && c.link == through })
	for {
		left := g.left(claims, seq)
		if left <= 0 {
			return nil
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		err := wait(ctx, changed, left)
		g.mu.Lock()
		if err != nil {
			return fmt.Errorf("wait for INVALIDATED: %w", err)
		}
	}
}

func wait(ctx context.Context, changed <-chan struct{}, left time.Duration) error {
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// left is how long the last of the leases may last. g.mu is held.
func (g *ledger) left(claims []claim, seq uint64) (left time.Duration) {
	now := time.Now()
	for _, c := range claims {
		done := g.unknown.IsZero()
		if c.link != nil {
			done = c.link.done >= seq
		}
		if !done {
			left = max(left, c.until.Sub(now))
		}
	}
	return left
}

// announce sends f on every link, forgets those that do not matter any more, and returns the
// leases that may be out. g.mu is held.
func (g *ledger) announce(f frame.Invalidate) (claims []claim) {
	now := time.Now()
	g.links = slices.DeleteFunc(g.links, func(l *link) bool {
		ponged, err := l.session.Invalidate(f)
		until := ponged.Add(leaseWait)
		if until.After(now) && !l.toldAway() {
			claims = append(claims, claim{l, until})
			return false
		}
		return err != nil
	})
	return claims
}

// tell is the first on a session: from then on it hears of every write.
func (g *ledger) tell(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.links = append(g.links, l)
	g.announce(frame.Invalidate{Epoch: g.epoch, Seq: g.seq})
}

// onInvalidated is called by the session's reader.
func (l *link) onInvalidated(v frame.Invalidated) {
	g := &l.up.ledger
	g.mu.Lock()
	defer g.mu.Unlock()
	at := slices.Index(g.links, l)
	if at < 0 || v.Epoch != g.epoch {
		return
	}
	// Earlier sessions with the same relay are over for it: it looks only at the newest.
	older := slices.DeleteFunc(g.links[:at:at], func(k *link) bool {
		if k.url.Host != l.url.Host {
			return false
		}
		k.done = max(k.done, v.Seq)
		return true
	})
	g.links = append(older, g.links[at:]...)
	l.done = max(l.done, v.Seq)
	if g.alone {
		g.unknown = time.Time{}
	}
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// toldAway reports whether the relay has said GOAWAY: it gives out nothing without asking then.
func (l *link) toldAway() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.goAway != nil
}
