//go:build !linux

package ws

import "net"

// tune has nothing to set: TCP_NODELAY is Go's default everywhere.
func tune(net.Conn) {}
