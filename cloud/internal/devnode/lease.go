package devnode

import (
	"context"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// The relay's times of SPEC.md §4.12.
const (
	leaseTime = 3 * time.Second // a stored answer may be given out without asking, from when the PING went out
	askTime   = 2 * time.Second // for the PONG
)

// maxMarks bounds the devices without a tether whose stored answers may still be good when
// they come back. 64 bytes each.
const maxMarks = 8192

// Cache is where answers of devices are stored.
type Cache interface {
	// Invalidate drops what is stored of these targets, and of any below a prefix. When they
	// return nobody gets it any more.
	Invalidate(id tether.DeviceID, uris ...string) int
	InvalidatePrefix(id tether.DeviceID, prefix string) int
	// Devices are those of which something is stored, or on its way.
	Devices() []tether.DeviceID
}

// forget drops all that is stored of a device, and keeps what is on its way from being stored:
// it has another owner or another key, or may not come any more.
func (n *Node) forget(id tether.DeviceID) {
	if n.cfg.Cache != nil {
		n.cfg.Cache.InvalidatePrefix(id, "/")
	}
}

// mark is the last invalidation that was done for a device; epoch 0: there was none.
type mark struct{ epoch, seq uint64 }

// Invalidate drops what a write on the device made stale. The acknowledgement follows when it
// returns.
func (c *conn) Invalidate(v frame.Invalidate) {
	n := c.node
	if n.cfg.Cache == nil {
		return
	}
	was := c.mark // only this goroutine changes it
	switch {
	case v.Epoch == was.epoch && v.Seq == was.seq && !v.All() && len(v.URIs) == 0:
	case v.Epoch == was.epoch && v.Seq == was.seq+1 && !v.All() && len(v.URIs) > 0:
		n.cfg.Cache.Invalidate(c.id, v.URIs...)
	default:
		n.cfg.Cache.InvalidatePrefix(c.id, "/")
	}
	n.mu.Lock()
	c.mark = mark{v.Epoch, v.Seq}
	n.mu.Unlock()
	c.told.Store(true)
}

// remembered is the mark of a device's connection before. n.mu is held.
func (n *Node) remembered(id tether.DeviceID, old *conn) mark {
	if old != nil {
		return old.mark
	}
	m := n.marks[id]
	delete(n.marks, id)
	return m
}

// remember keeps the mark of a connection that has ended. n.mu is held.
func (n *Node) remember(c *conn) {
	if c.mark.epoch == 0 {
		return
	}
	if len(n.marks) >= maxMarks {
		clear(n.marks)
	}
	n.marks[c.id] = c.mark
}

// Lease reports whether stored answers of a device may be given out without asking its service:
// it asks the device's end for a lease if there is none, one PING for all who wait. It takes
// 2 s at most.
func (n *Node) Lease(ctx context.Context, id tether.DeviceID) bool {
	c := n.lookup(id)
	switch {
	case c == nil || !c.told.Load() || !c.open():
		return false
	case c.leased():
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if _, err := c.session.Ask(ctx); err != nil {
		return false
	}
	c = n.lookup(id) // another one may have come meanwhile
	return c != nil && c.leased()
}

// open reports whether requests go to this connection, as far as it knows itself.
func (c *conn) open() bool { return !c.leaving.Load() && !c.session.Draining() }

func (c *conn) leased() bool {
	return c.told.Load() && c.open() && time.Since(c.session.Proven()) < leaseTime
}
