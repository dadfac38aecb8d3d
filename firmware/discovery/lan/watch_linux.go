package lan

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
)

// Multicast groups of rtnetlink(7).
const (
	groupLink  = 0x1   // RTMGRP_LINK
	groupAddr4 = 0x10  // RTMGRP_IPV4_IFADDR
	groupAddr6 = 0x100 // RTMGRP_IPV6_IFADDR
)

// listen signals each link or address change that the kernel tells of (rtnetlink(7)), and
// reports whether it can. The messages are not read into: they are a reason to look.
func listen(ctx context.Context, wg *sync.WaitGroup, events chan<- struct{}) bool {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	err = syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: groupLink | groupAddr4 | groupAddr6})
	if err != nil {
		syscall.Close(fd)
		return false
	}
	f := os.NewFile(uintptr(fd), "rtnetlink")
	stop := context.AfterFunc(ctx, func() { f.Close() })
	wg.Go(func() {
		defer f.Close()
		defer stop()
		buf := make([]byte, 4096)
		for {
			// ENOBUFS says that messages were lost, which is a reason to look as well.
			if _, err := f.Read(buf); err != nil && !errors.Is(err, syscall.ENOBUFS) {
				return // closed by ctx; any other error leaves the slow look
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	})
	return true
}
