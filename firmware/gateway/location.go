package gateway

import (
	"context"
	"net/netip"
	"sync"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// location is where the device is on its LAN, for the relays' lists of devices.
type location struct {
	mu      sync.Mutex
	url     string        // empty: no address on a LAN; guarded by mu
	changed chan struct{} // closed at the next change; nil: nobody waits; guarded by mu
}

// URL is the present one.
func (l *location) URL() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.url
}

// Changed is closed at the next change after the call.
func (l *location) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

func (l *location) set(url string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.url == url {
		return
	}
	l.url = url
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// locate keeps g.location true until ctx is done. It looks at the interfaces that
// discovery uses, also where discovery itself is off.
func (g *Gateway) locate(ctx context.Context) {
	read := func() ([]lan.Interface, error) { return lan.Interfaces(g.cfg.Interfaces) }
	lan.Watch(ctx, read, func(all []lan.Interface) { g.location.set(g.lanURL(all)) })
}

// lanURL is the URL under which others on the LAN reach the gateway, empty if there is
// none. A listener bound to one address is only there, be it loopback.
func (g *Gateway) lanURL(all []lan.Interface) string {
	bound := g.Addresses().HTTPS.Addr().Unmap()
	addr := bound
	if bound.IsUnspecified() {
		addr = lanAddr(all, bound.Is4())
	}
	if !addr.IsValid() || addr.Is6() && addr.IsLinkLocalUnicast() {
		return "" // a zone means something on one machine only, and a URL without it nothing
	}
	return g.urlAt(addr)
}

// lanAddr chooses one address of the LAN for clients of which nothing is known: private
// before public, which a firewall may guard, and IPv4 before IPv6; an IPv4 link-local one
// (RFC 3927) only where there is no other. The zero value: none.
func lanAddr(all []lan.Interface, only4 bool) (best netip.Addr) {
	rank := func(a netip.Addr) int {
		switch {
		case a.IsLoopback() || a.Is6() && (only4 || a.IsLinkLocalUnicast()):
			return 0
		case a.IsLinkLocalUnicast():
			return 1
		case a.IsPrivate() && a.Is4():
			return 5
		case a.IsPrivate():
			return 3
		case a.Is4():
			return 4
		}
		return 2
	}
	top := 0
	for _, in := range all {
		for _, p := range in.Prefixes {
			if r := rank(p.Addr()); r > top {
				best, top = p.Addr(), r
			}
		}
	}
	return best
}
