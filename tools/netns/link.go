//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
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

// Shape says how an interface sends; the zero value means as fast as it can. Each
// direction of a link is shaped at its own end.
type Shape struct {
	Delay  time.Duration // each packet, one way
	Jitter time.Duration // around Delay
	Loss   float64       // percent of packets
	Rate   int64         // bits per second; 0 is unlimited
	Queue  int           // bytes that wait when Rate is reached, default 1 MiB; what comes on top is dropped
}

// netem keeps packets for the whole delay: room for a second of full-size frames at
// 1 Gbit/s, so that only Queue drops.
const netemPackets = 100_000

// Shape applies sh to an interface, with netem for delay and loss and a token bucket
// for the rate behind it. It needs tc(8) and the kernel's sch_netem and sch_tbf.
func (s *Space) Shape(dev string, sh Shape) error {
	// There may be nothing to remove, which is an error to tc.
	s.Run("tc", "qdisc", "del", "dev", dev, "root")
	if sh == (Shape{}) {
		return nil
	}
	args := []string{"qdisc", "add", "dev", dev, "root", "handle", "1:", "netem", "limit", strconv.Itoa(netemPackets)}
	if sh.Delay > 0 || sh.Jitter > 0 {
		args = append(args, "delay", usec(sh.Delay))
		if sh.Jitter > 0 {
			args = append(args, usec(sh.Jitter))
		}
	}
	if sh.Loss > 0 {
		args = append(args, "loss", strconv.FormatFloat(sh.Loss, 'f', 3, 64)+"%")
	}
	if _, err := s.Run("tc", args...); err != nil {
		return err
	}
	if sh.Rate <= 0 {
		return nil
	}
	queue := sh.Queue
	if queue <= 0 {
		queue = 1 << 20
	}
	// A bucket of 4 ms keeps the rate even; less than two frames would stall it.
	burst := max(sh.Rate/8/250, 2*1600)
	_, err := s.Run("tc", "qdisc", "add", "dev", dev, "parent", "1:1", "handle", "2:", "tbf",
		"rate", strconv.FormatInt(sh.Rate, 10)+"bit", "burst", strconv.FormatInt(burst, 10), "limit", strconv.Itoa(queue))
	return err
}

func usec(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) + "us" }
