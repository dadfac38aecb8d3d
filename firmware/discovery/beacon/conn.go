package beacon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// conn is a UDP socket of one family that tells and takes the interface and our own
// address of each datagram (IP_PKTINFO of ip(7), RFC 3542 §6).
type conn struct {
	udp *net.UDPConn
	v4  *ipv4.PacketConn // one of the two is set
	v6  *ipv6.PacketConn
}

// errNoFamily means that the kernel has no IPv6, or none any more.
var errNoFamily = errors.New("the system has no such address family")

func listen(network string, addr netip.AddrPort) (*conn, error) {
	udp, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("%w: %w", errNoFamily, err)
	}
	if err != nil {
		return nil, err
	}
	c := &conn{udp: udp}
	// Emulated kernels may refuse; the address in the datagram has to do then.
	if network == "udp4" {
		c.v4 = ipv4.NewPacketConn(udp)
		c.v4.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
	} else {
		c.v6 = ipv6.NewPacketConn(udp)
		c.v6.SetControlMessage(ipv6.FlagInterface|ipv6.FlagDst, true)
	}
	return c, nil
}

func (c *conn) Close() error { return c.udp.Close() }

// read waits for a datagram.
func (c *conn) read(b []byte) (n int, q arrival, err error) {
	var from net.Addr
	var dst net.IP
	if c.v4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, from, err = c.v4.ReadFrom(b); cm != nil {
			dst, q.index = cm.Dst, cm.IfIndex
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, from, err = c.v6.ReadFrom(b); cm != nil {
			dst, q.index = cm.Dst, cm.IfIndex
		}
	}
	if err != nil {
		return 0, arrival{}, err
	}
	if udp, ok := from.(*net.UDPAddr); ok {
		p := udp.AddrPort()
		q.src = netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	if a, ok := netip.AddrFromSlice(dst); ok {
		q.dst = a.Unmap()
	}
	return n, q, nil
}

// write sends a datagram from our own address src, out of the interface index; where
// either is zero, the system chooses.
func (c *conn) write(b []byte, to netip.AddrPort, src netip.Addr, index int) error {
	if err := c.udp.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	dst := net.UDPAddrFromAddrPort(to)
	var own net.IP
	if src.IsValid() {
		own = src.AsSlice()
	}
	var err error
	if c.v4 != nil {
		_, err = c.v4.WriteTo(b, &ipv4.ControlMessage{Src: own, IfIndex: index}, dst)
	} else {
		_, err = c.v6.WriteTo(b, &ipv6.ControlMessage{Src: own, IfIndex: index}, dst)
	}
	return err
}
