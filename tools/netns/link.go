//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Port is one end of a link: an interface in a namespace.
type Port struct {
	Space *Space
	Dev   string   // interface name, at most 15 bytes
	Addrs []string // CIDR form, IPv4 or IPv6
	MAC   string   // "" lets the kernel choose
}

// Join links two namespaces with a veth pair, gives the ends their addresses and sets
// both up. IPv6 addresses are usable at once: duplicate address detection is off.
func (l *Lab) Join(a, b Port) error {
	// Run from inside a: nothing appears in the machine's own namespace, not even for a moment.
	args := []string{"link", "add", "name", a.Dev}
	if a.MAC != "" {
		args = append(args, "address", a.MAC)
	}
	args = append(args, "type", "veth", "peer", "name", b.Dev)
	if b.MAC != "" {
		args = append(args, "address", b.MAC)
	}
	args = append(args, "netns", strconv.Itoa(b.Space.PID()))
	if _, err := a.Space.Run("ip", args...); err != nil {
		return err
	}
	for _, p := range []Port{a, b} {
		// A kernel without IPv6 has no such file, and then nothing to switch off.
		p.Space.Run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/"+p.Dev+"/accept_dad")
		for _, addr := range p.Addrs {
			if err := p.Space.AddAddr(p.Dev, addr); err != nil {
				return err
			}
		}
		if err := p.Space.Up(p.Dev); err != nil {
			return err
		}
	}
	return nil
}

// AddAddr gives an interface one more address, in CIDR form.
func (s *Space) AddAddr(dev, cidr string) error {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return fmt.Errorf("%s: add address: %w", s.Name, err)
	}
	args := []string{"addr", "add", cidr, "dev", dev}
	if p.Addr().Is4() && p.Bits() <= 30 {
		args = append(args, "broadcast", "+")
	}
	if p.Addr().Is6() {
		args = append(args, "nodad")
	}
	_, err = s.Run("ip", args...)
	return err
}

// DelAddr takes an address away.
func (s *Space) DelAddr(dev, cidr string) error {
	_, err := s.Run("ip", "addr", "del", cidr, "dev", dev)
	return err
}

// Up sets a link up, Down sets it down: the other end sees its carrier go.
func (s *Space) Up(dev string) error {
	_, err := s.Run("ip", "link", "set", dev, "up")
	return err
}

// Down sets a link down.
func (s *Space) Down(dev string) error {
	_, err := s.Run("ip", "link", "set", dev, "down")
	return err
}

// Route adds a route to a prefix ("default" too) through a gateway.
func (s *Space) Route(prefix, via string) error {
	_, err := s.Run("ip", "route", "add", prefix, "via", via)
	return err
}

// Forward makes the namespace a router for IPv4.
func (s *Space) Forward() error {
	_, err := s.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	return err
}
