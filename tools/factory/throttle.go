package factory

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// maxAddresses bounds how many addresses a throttle remembers; when it is full, those that
// have all their credit are forgotten, and if none has, strangers wait.
const maxAddresses = 4096

// throttle gives every address some credit that grows again with time (a token bucket).
type throttle struct {
	rate  float64 // per second
	burst float64

	mu     sync.Mutex // guards the fields below
	credit map[netip.Addr]credit
	swept  time.Time // when those with all their credit were looked for last
}

type credit struct {
	left float64
	at   time.Time
}

func newThrottle(rate, burst float64) *throttle {
	return &throttle{rate: rate, burst: burst, credit: map[netip.Addr]credit{}}
}

// allow takes one credit of addr, if cost is 1, or asks whether there is one, if it is 0.
func (t *throttle) allow(addr netip.Addr, cost float64) bool {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.credit[addr]
	if !ok {
		c = credit{t.burst, now}
	}
	c.left = min(t.burst, c.left+t.rate*now.Sub(c.at).Seconds())
	c.at = now
	allowed := c.left >= 1
	if allowed {
		c.left -= cost
	}
	if !ok && cost == 0 {
		return allowed
	}
	if !ok && len(t.credit) >= maxAddresses {
		if now.Sub(t.swept) < time.Second {
			return false
		}
		t.swept = now
		for a, old := range t.credit {
			if old.left+t.rate*now.Sub(old.at).Seconds() >= t.burst {
				delete(t.credit, a)
			}
		}
		if len(t.credit) >= maxAddresses {
			return false
		}
	}
	t.credit[addr] = c
	return allowed
}

// address is who asks, for throttles and for people. An IPv6 host has its whole /64.
func address(remote string) netip.Addr {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}
