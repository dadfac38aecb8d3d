//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package origin

import (
	"net"
	"syscall"
)

// prober looks at an idle connection without reading from it.
type prober struct {
	raw  syscall.RawConn
	look func(fd uintptr) bool
	open bool
}

func (p *prober) init(nc net.Conn) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	p.raw = raw
	p.look = func(fd uintptr) bool {
		var b [1]byte
		_, _, e := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		p.open = e == syscall.EAGAIN
		return true
	}
}

// quiet reports whether the connection is still open with nothing to read. One system
// call that never blocks: a request is not wasted on a connection that the origin has
// closed, nor is a late or unasked answer taken for the next one's.
func (p *prober) quiet() bool {
	if p.raw == nil {
		return true
	}
	p.open = false
	return p.raw.Read(p.look) == nil && p.open
}
