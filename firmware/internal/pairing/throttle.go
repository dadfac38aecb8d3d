package pairing

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Limits of guessing tokens and secrets from one address.
const (
	badAllowed   = 10 // in badPeriod
	badPeriod    = time.Minute
	blockFirst   = 30 * time.Second // doubled by every further block in a row
	blockLongest = 5 * time.Minute
	maxAddresses = 256 // remembered at once, about 100 bytes each
)

// ThrottledError means that an address gave too many wrong tokens or secrets. A right token is still taken.
type ThrottledError struct{ RetryAfter time.Duration }

func (e *ThrottledError) Error() string {
	return fmt.Sprintf("too many wrong tokens from this address: wait %v", e.RetryAfter.Round(time.Second))
}

// throttle counts failures by source address. It is safe for concurrent use. The relay has a leaky bucket
// (cloud/internal/throttle); here a wait that grows is wanted, and a hundredth of the memory.
type throttle struct {
	mu   sync.Mutex
	seen map[netip.Prefix]*offender
}

type offender struct {
	since   time.Time // begin of the period that is counted
	count   int
	blocked time.Time // until
	blocks  int       // in a row
	last    time.Time
}

// source is what counts as one address: an IPv4 address, or the /64 of an IPv6 address, which one client has for
// itself. A text that is no address is its own kind.
func source(addr string) netip.Prefix {
	ip, err := netip.ParseAddr(hostOf(addr))
	if err != nil {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}

// hostOf takes the port off, if there is one.
func hostOf(addr string) string {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return ap.Addr().Unmap().String()
	}
	return addr
}

// wait returns how long the address is still blocked.
func (t *throttle) wait(addr string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := t.seen[source(addr)]; o != nil {
		return max(0, o.blocked.Sub(now))
	}
	return 0
}

// fail counts a failure and returns how long the address is to wait, 0 if it may go on. news is true for the first
// failure of a period and for the beginning of a block: what is worth an event.
func (t *throttle) fail(addr string, now time.Time) (wait time.Duration, news bool) {
	k := source(addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.seen[k]
	if o == nil {
		t.room(now)
		o = &offender{since: now}
		t.seen[k] = o
	}
	if w := o.blocked.Sub(now); w > 0 {
		o.last = now
		return w, false
	}
	if now.Sub(o.last) > blockLongest {
		o.blocks = 0 // it has been quiet
	}
	o.last = now
	if now.Sub(o.since) >= badPeriod {
		o.since, o.count = now, 0
	}
	o.count++
	if o.count <= badAllowed {
		return 0, o.count == 1
	}
	w := min(blockFirst<<min(o.blocks, 8), blockLongest)
	o.blocks++
	o.blocked, o.since, o.count = now.Add(w), now.Add(w), 0
	return w, true
}

// room makes place for one address: those that have been quiet go first, then any one. A flood from many
// addresses makes it forget some, never grow.
func (t *throttle) room(now time.Time) {
	if t.seen == nil {
		t.seen = make(map[netip.Prefix]*offender)
	}
	if len(t.seen) < maxAddresses {
		return
	}
	for k, o := range t.seen {
		if now.Sub(o.last) > blockLongest {
			delete(t.seen, k)
		}
	}
	for k := range t.seen {
		if len(t.seen) < maxAddresses {
			return
		}
		delete(t.seen, k)
	}
}
