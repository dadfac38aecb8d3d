//go:build no_http2

package http1

import (
	"context"
	"net"
)

// HasHTTP2 says whether a Server speaks HTTP/2 too: not when built with the tag no_http2.
const HasHTTP2 = false

type http2Server struct{}

func startHTTP2(*Server, net.Addr) *http2Server     { return nil }
func (*http2Server) give(c net.Conn)                { c.Close() } // nobody offered it
func (*http2Server) shutdown(context.Context) error { return nil }
func (*http2Server) close()                         {}
