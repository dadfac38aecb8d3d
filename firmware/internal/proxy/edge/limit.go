package edge

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// limiter counts connections, in all and by client address.
type limiter struct {
	all, each int

	mu    sync.Mutex // guards the fields below
	open  int
	by    map[netip.Addr]int
	stats Stats
}

// take counts a new connection, or refuses it. The device's own programs all come from
// one loopback address, so only the bound in all holds for them.
func (l *limiter) take(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.open >= l.all:
		l.stats.RefusedAll++
		return false
	case l.by[a] >= l.each && !a.IsLoopback():
		l.stats.RefusedAddress++
		return false
	}
	if l.by == nil {
		l.by = make(map[netip.Addr]int)
	}
	l.open++
	l.by[a]++
	l.stats.Accepted++
	return true
}

func (l *limiter) give(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.by[a]--; l.by[a] <= 0 {
		delete(l.by, a)
	}
}

// source is the address that connections are counted under. IPv6 clients own whole
// /64 networks (RFC 6177), so one of those counts as one client.
func source(a net.Addr) netip.Addr {
	var addr netip.Addr
	if t, ok := a.(*net.TCPAddr); ok {
		addr = t.AddrPort().Addr()
	} else if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		addr = ap.Addr()
	}
	addr = addr.WithZone("").Unmap()
	if addr.Is6() && !addr.IsLinkLocalUnicast() && !addr.IsLoopback() {
		const bitsOfOneClient = 64
		if p, err := addr.Prefix(bitsOfOneClient); err == nil {
			return p.Addr()
		}
	}
	return addr
}

// limitListener refuses excess connections by closing them: before TLS nothing cheaper
// could be said.
type limitListener struct {
	net.Listener
	limits *limiter
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := source(c.RemoteAddr())
		if l.limits.take(from) {
			return &socket{Conn: c, limits: l.limits, from: from}, nil
		}
		_ = c.Close()
	}
}

// socket is one counted connection.
type socket struct {
	net.Conn
	limits *limiter
	from   netip.Addr
	once   sync.Once
}

// Close gives the place back.
func (s *socket) Close() error {
	s.once.Do(func() { s.limits.give(s.from) })
	return s.Conn.Close()
}

// CloseWrite ends our direction only.
func (s *socket) CloseWrite() error {
	if h, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return s.Close()
}

// SyscallConn lets the server look whether the client is still there.
func (s *socket) SyscallConn() (syscall.RawConn, error) {
	if c, ok := s.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, syscall.EINVAL
}

// NetConn is the connection inside, for socket options.
func (s *socket) NetConn() net.Conn { return s.Conn }
