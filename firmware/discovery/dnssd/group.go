package dnssd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// The mDNS groups and port (RFC 6762 §3), and the TTL of all that is sent (§11).
const (
	port     = 5353
	hopLimit = 255
)

var (
	group4 = netip.AddrFrom4([4]byte{224, 0, 0, 251})
	group6 = netip.MustParseAddr("ff02::fb")
)

// maxPacket is the largest mDNS datagram (RFC 6762 §17); what is longer is dropped.
const maxPacket = 9000

const (
	writeTime = time.Second            // what cannot be sent by then is dropped
	readPause = 100 * time.Millisecond // after an error, so that it cannot spin
)

// ErrNoMulticast means that no interface lets us join the mDNS groups.
var ErrNoMulticast = errors.New("no interface lets us join the multicast DNS groups")

// group is membership in the mDNS groups on some interfaces.
type group struct {
	v4 *ipv4.PacketConn // nil: this family does not work
	v6 *ipv6.PacketConn

	mu  sync.Mutex // guards ins
	ins []lan.Interface
}

// packet is one datagram that came in.
type packet struct {
	b    []byte // until the handler returns
	from netip.AddrPort
	in   lan.Interface
}

// join opens sockets and joins the groups on every interface; one family on one interface is
// enough.
func join(ins []lan.Interface) (*group, error) {
	if len(ins) == 0 {
		return nil, ErrNoInterface
	}
	g := &group{ins: ins}
	indexes := make([]int, len(ins))
	for i, in := range ins {
		indexes[i] = in.Index
	}
	var errs []error
	joined := 0
	// Given a multicast address, package net binds the wildcard with SO_REUSEADDR:
	// other responders of this machine keep theirs.
	if c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(group4, port))); err != nil {
		errs = append(errs, err)
	} else {
		g.v4 = ipv4.NewPacketConn(c)
		for _, in := range ins {
			if err := g.v4.JoinGroup(&net.Interface{Index: in.Index, Name: in.Name}, &net.UDPAddr{IP: group4.AsSlice()}); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", in.Name, err))
				continue
			}
			joined++
		}
		g.v4.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
		harden4(g.v4, indexes)
	}
	if c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(group6, port))); err != nil {
		errs = append(errs, err)
	} else {
		g.v6 = ipv6.NewPacketConn(c)
		for _, in := range ins {
			if err := g.v6.JoinGroup(&net.Interface{Index: in.Index, Name: in.Name}, &net.UDPAddr{IP: group6.AsSlice()}); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", in.Name, err))
				continue
			}
			joined++
		}
		g.v6.SetControlMessage(ipv6.FlagInterface|ipv6.FlagDst, true)
		harden6(g.v6, indexes)
	}
	if joined == 0 {
		g.close()
		return nil, fmt.Errorf("%w: %w", ErrNoMulticast, errs[0]) // the others say the same of other interfaces
	}
	return g, nil
}

// harden4 gives a socket the TTL of RFC 6762 §11 and a filter that drops what was not
// multicast on one of the interfaces. Linux delivers a group to every socket of the port as soon
// as any program has joined it anywhere; and an answer to a unicast question from
// outside would serve an attacker (§11, CERT VU#550620). Where there are no filters,
// the other checks have to do.
func harden4(c *ipv4.PacketConn, indexes []int) error {
	const dst = 16 // offset of the destination address (RFC 791 §3.1)
	b := group4.As4()
	return errors.Join(c.SetMulticastTTL(hopLimit), c.SetTTL(hopLimit), setFilter(c.SetBPF, indexes, word{dst, be32(b[:])}))
}

// harden6 does the same for IPv6.
func harden6(c *ipv6.PacketConn, indexes []int) error {
	const dst = 24 // offset of the destination address (RFC 8200 §3)
	b := group6.As16()
	return errors.Join(c.SetMulticastHopLimit(hopLimit), c.SetHopLimit(hopLimit), setFilter(c.SetBPF, indexes,
		word{dst, be32(b[:4])}, word{dst + 4, be32(b[4:8])}, word{dst + 8, be32(b[8:12])}, word{dst + 12, be32(b[12:])}))
}

// word is 32 bits of the network header.
type word struct{ at, value uint32 }

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// networkHeader is where a filter finds the IP header: SKF_NET_OFF of linux/filter.h.
const networkHeader uint32 = 0xfff00000

func setFilter(set func([]bpf.RawInstruction) error, indexes []int, dst ...word) error {
	drop := bpf.RetConstant{Val: 0}
	var program []bpf.Instruction
	for _, w := range dst {
		program = append(program, bpf.LoadAbsolute{Off: networkHeader + w.at, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: w.value, SkipTrue: 1}, drop)
	}
	program = append(program, bpf.LoadExtension{Num: bpf.ExtInterfaceIndex})
	for _, i := range indexes {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(i), SkipTrue: 1}, bpf.RetConstant{Val: 1 << 16})
	}
	raw, err := bpf.Assemble(append(program, drop))
	if err != nil {
		return err
	}
	return set(raw)
}

// update takes new addresses of the same interfaces.
func (g *group) update(ins []lan.Interface) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ins = ins
}

func (g *group) interfaces() []lan.Interface {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ins
}

// receive hands each datagram to handle, one at a time for each family, until close.
func (g *group) receive(wg *sync.WaitGroup, handle func(packet)) {
	if g.v4 != nil {
		wg.Go(func() {
			g.loop(handle, func(b []byte) (int, net.IP, int, net.Addr, error) {
				n, cm, from, err := g.v4.ReadFrom(b)
				if cm == nil {
					return n, nil, 0, from, err
				}
				return n, cm.Dst, cm.IfIndex, from, err
			})
		})
	}
	if g.v6 != nil {
		wg.Go(func() {
			g.loop(handle, func(b []byte) (int, net.IP, int, net.Addr, error) {
				n, cm, from, err := g.v6.ReadFrom(b)
				if cm == nil {
					return n, nil, 0, from, err
				}
				return n, cm.Dst, cm.IfIndex, from, err
			})
		})
	}
}

func (g *group) loop(handle func(packet), read func([]byte) (int, net.IP, int, net.Addr, error)) {
	buf := make([]byte, maxPacket+1) // one more tells what is too long
	for {
		n, dst, index, from, err := read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(readPause) // close ends it; a link that went may fail for a while
			continue
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok || n > maxPacket || dst != nil && !dst.IsMulticast() {
			continue
		}
		ins := g.interfaces()
		i := slices.IndexFunc(ins, func(in lan.Interface) bool { return in.Index == index })
		if i < 0 {
			continue
		}
		p := udp.AddrPort()
		handle(packet{buf[:n], netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), ins[i]})
	}
}

// multicast sends b on one interface, over both families.
func (g *group) multicast(b []byte, in lan.Interface) error {
	var errs [2]error
	sent := false
	if g.v4 != nil {
		g.v4.SetWriteDeadline(time.Now().Add(writeTime))
		_, errs[0] = g.v4.WriteTo(b, &ipv4.ControlMessage{IfIndex: in.Index}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group4, port)))
		sent = errs[0] == nil
	}
	if g.v6 != nil {
		g.v6.SetWriteDeadline(time.Now().Add(writeTime))
		_, errs[1] = g.v6.WriteTo(b, &ipv6.ControlMessage{IfIndex: in.Index}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group6, port)))
		sent = sent || errs[1] == nil
	}
	if sent {
		return nil
	}
	return fmt.Errorf("send on %s: %w", in.Name, errors.Join(errs[:]...))
}

// unicast sends b to one peer, out of the interface that it is on.
func (g *group) unicast(b []byte, to netip.AddrPort, in lan.Interface) error {
	dst := net.UDPAddrFromAddrPort(to)
	var err error
	switch {
	case to.Addr().Is4() && g.v4 != nil:
		g.v4.SetWriteDeadline(time.Now().Add(writeTime))
		_, err = g.v4.WriteTo(b, &ipv4.ControlMessage{IfIndex: in.Index}, dst)
	case to.Addr().Is6() && g.v6 != nil:
		g.v6.SetWriteDeadline(time.Now().Add(writeTime))
		_, err = g.v6.WriteTo(b, &ipv6.ControlMessage{IfIndex: in.Index}, dst)
	}
	return err
}

func (g *group) close() {
	if g.v4 != nil {
		g.v4.Close()
	}
	if g.v6 != nil {
		g.v6.Close()
	}
}

// sleep waits and reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
