package netns

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	wireMTU     = 1500
	wirePackets = 1 << 15 // most packets under way in one direction, whatever Queue says
)

// Slow says what a wire does to each direction.
type Slow struct {
	Delay time.Duration // of each packet, one way
	Rate  int64         // bits per second
	Queue int           // bytes that wait for the rate; what comes on top is dropped
}

// Wire links two namespaces as Join does, by a slow wire that this process plays: what one
// end sends waits in a queue for its turn, travels, and is given to the other end. Unlike
// tc netem it needs nothing of the kernel but TUN devices, and it is exact enough for home
// uplinks (tens of Mbit/s, milliseconds). The ends are point to point and have no MAC.
func (l *Lab) Wire(a, b Port, sh Slow) error {
	if sh.Rate <= 0 || sh.Queue < wireMTU || sh.Delay < 0 {
		return fmt.Errorf("wire between %s and %s: want a rate, and a queue of a packet at least", a.Space.Name, b.Space.Name)
	}
	ends := make([]*os.File, 0, 2)
	for _, p := range []Port{a, b} {
		f, err := tun(p)
		if err != nil {
			return fmt.Errorf("%s: make %s: %w", p.Space.Name, p.Dev, err)
		}
		ends = append(ends, f)
		l.mu.Lock()
		l.wires = append(l.wires, f)
		l.mu.Unlock()
		if _, err := p.Space.Run("ip", "link", "set", p.Dev, "mtu", strconv.Itoa(wireMTU), "txqueuelen", "10000"); err != nil {
			return err
		}
		for _, addr := range p.Addrs {
			if err := p.Space.AddAddr(p.Dev, addr); err != nil {
				return err
			}
		}
		if err := p.Space.Up(p.Dev); err != nil {
			return err
		}
	}
	go carry(ends[0], ends[1], sh)
	go carry(ends[1], ends[0], sh)
	return nil
}

// tun makes a TUN device inside the port's namespace; the file works from anywhere.
func tun(p Port) (*os.File, error) {
	// The thread goes there and comes back. It must not end instead: the processes that it
	// started would get their death signal.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	there, err := os.Open(p.Space.Path())
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter the namespace: %w", err)
	}
	defer func() {
		if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("netns: a thread cannot come back to its namespace: %v", err))
		}
	}()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(p.Dev)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), p.Dev), nil
}

// carry plays one direction until an end is closed. A packet leaves the queue when the
// ones before it have been sent at the rate, so the queue's length follows from the time
// at which it will be empty.
func carry(from, to *os.File, sh Slow) {
	type packet struct {
		bytes []byte
		due   time.Time
	}
	under := make(chan packet, wirePackets)
	go func() {
		for p := range under {
			time.Sleep(time.Until(p.due))
			to.Write(p.bytes) // an end that is down loses what arrives
		}
	}()
	defer close(under)
	buf := make([]byte, wireMTU+100)
	var empty time.Time // when the queue will be empty
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		if empty.Before(now) {
			empty = now
		}
		if waiting := int64(empty.Sub(now)) * sh.Rate / 8 / int64(time.Second); waiting+int64(n) > int64(sh.Queue) {
			continue
		}
		empty = empty.Add(time.Duration(int64(n) * 8 * int64(time.Second) / sh.Rate))
		select {
		case under <- packet{append([]byte(nil), buf[:n]...), empty.Add(sh.Delay)}:
		default: // more than wirePackets under way
		}
	}
}
