// Package throttle counts what an address did wrong and says when it has been enough.
// It remembers a bounded number of addresses: a flood from many of them makes it
// forget some, never grow.
package throttle

import (
	"net/netip"
	"sync"
	"time"
)

// maxAddresses is how many addresses one Table remembers, about 64 bytes each.
const maxAddresses = 8192

// Table is a leaky bucket for each address. It is safe for concurrent use.
type Table struct {
	burst int
	each  time.Duration

	mu   sync.Mutex
	seen map[netip.Prefix]time.Time // when the bucket will be empty again; guarded by mu
}

// New returns a Table that allows burst failures at once and one more each interval.
func New(burst int, each time.Duration) *Table {
	return &Table{burst: burst, each: each, seen: map[netip.Prefix]time.Time{}}
}

// Key is what counts as one address: an IPv4 address, or the /64 of an IPv6 address,
// which one customer has for himself. A text that is no address is its own kind.
func Key(addr string) netip.Prefix {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		addr = ap.Addr().String()
	}
	ip, err := netip.ParseAddr(addr)
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

// Fail counts one failure of the address (Key is applied) and returns how long it is to
// wait before the next one is heard; 0 while it is within its allowance.
func (t *Table) Fail(addr string, now time.Time) time.Duration {
	k := Key(addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	empty, known := t.seen[k]
	if empty.Before(now) {
		empty = now
	}
	full := now.Add(time.Duration(t.burst) * t.each)
	if wait := empty.Add(t.each).Sub(full); wait > 0 {
		return wait // told so, without pushing the end further out
	}
	if !known {
		t.room(now)
	}
	t.seen[k] = empty.Add(t.each)
	return 0
}

// Wait returns how long the address has to wait because of earlier failures; 0: not at all.
func (t *Table) Wait(addr string, now time.Time) time.Duration {
	k := Key(addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	full := now.Add(time.Duration(t.burst) * t.each)
	if empty, ok := t.seen[k]; ok {
		return max(0, empty.Add(t.each).Sub(full))
	}
	return 0
}

// room forgets addresses that did nothing for long, or when that is not enough, some
// others, which the order of a map chooses. mu is held.
func (t *Table) room(now time.Time) {
	if len(t.seen) < maxAddresses {
		return
	}
	for k, empty := range t.seen {
		if empty.Before(now) {
			delete(t.seen, k)
		}
	}
	for k := range t.seen {
		if len(t.seen) < maxAddresses*7/8 {
			return
		}
		delete(t.seen, k)
	}
}
