//go:build !no_http2

package features

// HTTP2: the LAN is served by HTTP/2, too.
const HTTP2 = true
