// Package lan knows the machine's network interfaces as discovery needs them: which of
// them are the local network, which addresses they have, which peers are local, and
// when any of that changes. What is then said on them is for packages beacon and dnssd.
package lan

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Interface is one network interface at the moment it was read.
type Interface struct {
	Index    int
	Name     string
	MAC      net.HardwareAddr // empty for loopback and tunnels
	Flags    net.Flags
	Prefixes []netip.Prefix // its own addresses, each with the length of its subnet; never a zone
}

// All returns every interface that is up. An interface that vanishes meanwhile is left out.
func All() ([]Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var up []Interface
	for _, ifi := range list {
		if ifi.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			continue
		}
		in := Interface{Index: ifi.Index, Name: ifi.Name, MAC: ifi.HardwareAddr, Flags: ifi.Flags}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if p, ok := prefix(n); ok {
					in.Prefixes = append(in.Prefixes, p)
				}
			}
		}
		up = append(up, in)
	}
	return up, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); bits == 128 && a.Is4() {
		ones -= 96
	}
	p := netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}

// Interfaces returns the interfaces to discover on, those that are up and have an
// address. Named ones are taken as they are, loopback and tunnels too; a name that is
// absent now may appear later. Without names, the local networks are chosen: broadcast
// and multicast, neither loopback nor point-to-point, and not an uplink, which is told by
// IPv4 addresses of which none is private (RFC 1918) or link-local (RFC 3927). A router
// whose uplink has a private address must name its interfaces.
func Interfaces(names []string) ([]Interface, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(in Interface) bool { return !in.chosen(names) }), nil
}

func (in Interface) chosen(names []string) bool {
	switch {
	case len(in.Prefixes) == 0:
		return false
	case len(names) > 0:
		return slices.Contains(names, in.Name)
	case in.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || in.Flags&net.FlagMulticast == 0:
		return false
	}
	v4, private := false, false
	for _, p := range in.Prefixes {
		if p.Addr().Is4() {
			v4, private = true, private || Local(p.Addr())
		}
	}
	return !v4 || private
}

// Local reports whether a peer of this address can be on a local network: private (RFC
// 1918, RFC 4193), link-local or loopback. Shared address space (RFC 6598) is an
// operator's network, not a home's, and does not count.
func Local(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback()
}

// Has reports whether a, with or without a zone, is one of the interface's own addresses.
func (in Interface) Has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(in.Prefixes, func(p netip.Prefix) bool { return p.Addr() == a })
}

// Facing returns the interface's own address in the subnet of peer.
func (in Interface) Facing(peer netip.Addr) (own netip.Addr, ok bool) {
	peer = peer.Unmap().WithZone("")
	for _, p := range in.Prefixes {
		if p.Contains(peer) {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// Equal reports whether two readings of the machine's interfaces are the same, link
// state (net.FlagRunning) and all.
func Equal(a, b []Interface) bool {
	return slices.EqualFunc(a, b, func(a, b Interface) bool {
		return a.Index == b.Index && a.Name == b.Name && a.Flags == b.Flags && slices.Equal(a.MAC, b.MAC) && slices.Equal(a.Prefixes, b.Prefixes)
	})
}
