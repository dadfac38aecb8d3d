//go:build no_http2

package http1

// HasHTTP2 says whether a Server speaks HTTP/2 too: not when built with the tag no_http2.
const HasHTTP2 = false

type h2conn struct{}

func (c *conn) serveHTTP2() { c.rwc.Close() } // nobody offered it
func (*h2conn) check()      {}
func (*h2conn) goAway(bool) {}
