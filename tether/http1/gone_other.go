//go:build !linux

package http1

import "net"

// peerClosed is only known on Linux; elsewhere a write finds out.
func peerClosed(net.Conn) bool { return false }
