package beacon

import (
	"net"
	"net/netip"
	"slices"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// arrival is how a question came in.
type arrival struct {
	src   netip.AddrPort // with zone where the address needs one
	dst   netip.Addr     // ours, a broadcast or a multicast address; invalid where the system does not tell
	index int            // of the interface; 0 where the system does not tell
}

// choose finds the interface that a question came in on and the address of it that the
// asker should use: the one it asked, else the one in its subnet, else the first of its
// family that has the same reach.
func choose(all []lan.Interface, q arrival) (lan.Interface, netip.Addr, bool) {
	src, dst := q.src.Addr().Unmap().WithZone(""), q.dst.Unmap().WithZone("")
	i := slices.IndexFunc(all, func(in lan.Interface) bool { return in.Index == q.index })
	if own := i >= 0 && all[i].Flags&net.FlagLoopback != 0 && !src.IsLoopback(); own || i < 0 && q.index == 0 {
		// A question of this very machine to one of its LAN addresses comes in on loopback,
		// which says nothing; so does a system that cannot tell. The address does.
		i = slices.IndexFunc(all, func(in lan.Interface) bool { return in.Has(dst) })
		if i < 0 {
			i = slices.IndexFunc(all, func(in lan.Interface) bool { _, ok := in.Facing(src); return ok })
		}
	}
	if i < 0 {
		return lan.Interface{}, netip.Addr{}, false
	}
	in := all[i]
	facing, ok := in.Facing(src)
	switch {
	case in.Has(dst) && (!ok || !dst.IsLinkLocalUnicast() || src.IsLinkLocalUnicast()):
		return in, dst, true
	case ok:
		return in, facing, true
	}
	var first netip.Addr
	for _, p := range in.Prefixes {
		a := p.Addr()
		if a.Is4() != src.Is4() {
			continue
		}
		if !first.IsValid() || first.IsLinkLocalUnicast() && !src.IsLinkLocalUnicast() {
			first = a
		}
	}
	return in, first, first.IsValid()
}
