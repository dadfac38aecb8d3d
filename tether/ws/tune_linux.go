package ws

import (
	"net"
	"syscall"
	"time"
)

// Options of tcp(7) that package syscall does not name; the numbers are the same on all
// architectures (include/uapi/linux/tcp.h).
const (
	tcpUserTimeout  = 18
	tcpNotsentLowat = 25
)

const (
	// notsent is how many unsent bytes the kernel takes before a write waits: what lies
	// there cannot be overtaken any more.
	notsent     = 32 << 10
	userTimeout = 20 * time.Second // sent but unacknowledged for so long: the peer is gone
)

// tune sets what the kernel offers; each option helps alone, so failures are ignored.
func tune(c net.Conn) {
	for {
		inner, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = inner.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		s := int(fd)
		_ = syscall.SetsockoptInt(s, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
		_ = syscall.SetsockoptInt(s, syscall.IPPROTO_TCP, tcpNotsentLowat, notsent)
		_ = syscall.SetsockoptInt(s, syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout.Milliseconds()))
		// BBR paces to the measured rate and so keeps the queue in the router short.
		_ = syscall.SetsockoptString(s, syscall.IPPROTO_TCP, syscall.TCP_CONGESTION, "bbr")
	})
}
