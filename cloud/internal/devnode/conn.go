package devnode

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// WebSocket close codes (RFC 6455 §7.4.1).
const (
	closeGoing    = 1001
	closePolicy   = 1008
	closeTryLater = 1013
)

// conn is one tether of a device, and a mux.Handler. There is one for each idle device:
// keep it small.
type conn struct {
	node    *Node
	id      tether.DeviceID
	session *mux.Session
	proven  proven
	epoch   uint64                 // of the directory
	opened  int64                  // unix nanoseconds
	lan     atomic.Pointer[string] // URL on its LAN as the device says; nil: none
	leaving atomic.Bool            // the device said GOAWAY: no new requests
	told    atomic.Bool            // it tells us of writes
	mark    mark                   // of the last one; guarded by the node's mu, but for who changes it
	asked   time.Duration          // on the sweep's clock, when it sent a PING; 0: not. Only the sweep uses it
	heard   int64                  // LastSeen at that moment, unix nanoseconds

	unstored atomic.Int32 // events handed to the store
	flaps    uint8        // how often in a row a connection of this device was replaced soon
	acking   bool         // a goroutine sends ack; guarded by ackMu

	ackMu sync.Mutex
	ack   tether.EventID // to send; guarded by ackMu
}

// proven is what is kept of who came: not the certificate itself, only its times.
type proven struct {
	key   [16]byte      // begin of the key's hash: tells whether the list changed it
	renew atomic.Uint32 // when a third of the certificate's life is left, unix seconds; 0: there is none
	end   atomic.Uint32 // of the certificate, unix seconds; 0: there is none
}

// open takes a session over as the newest of its device; other: of what is another one by owner
// or key. It returns what the session is to call.
func (n *Node) open(s *mux.Session, id tether.DeviceID, key [16]byte, life lifetime, other bool, info []byte) mux.Handlers {
	c := &conn{node: n, id: id, session: s, opened: time.Now().UnixNano()}
	c.proven.key = key
	c.proven.live(life)
	epoch, err := n.cfg.Directory.Claim(context.Background(), id, n.cfg.Name)
	if err != nil {
		// Without the directory the device is still served by whoever asks this node.
		n.log.Error("claim device", "device", id, "err", err)
	}
	c.epoch = epoch
	n.mu.Lock()
	old := n.conns[id]
	stale := old != nil && old.epoch > c.epoch // a still newer one was faster
	if !stale {
		c.mark = n.remembered(id, old)
		n.conns[id] = c
		if old != nil && time.Duration(c.opened-old.opened) < flapWindow {
			c.flaps = min(old.flaps+1, 100)
		}
		if old == nil {
			n.cfg.Store.Online(id, time.Unix(0, c.opened)) // under the lock, so that it follows the Offline of an earlier connection
		}
	}
	n.mu.Unlock()
	if other && old != nil {
		n.forget(id)
	}
	n.count.opened.Add(1)
	switch {
	case stale:
		go c.replaced(0)
	case old != nil:
		n.count.replaced.Add(1)
		go old.replaced(c.flaps) // not here: the old connection may be half-open and take its time
		if c.flaps == flapLimit {
			n.log.Warn("device is replaced again and again: do two devices have one key?", "security", "device_flapping", "device", id)
		}
	}
	if len(info) > 0 {
		c.Describe(info)
	}
	return mux.Handlers{All: c}
}

// replaced tells an older connection that a newer one took over; what runs on it ends in
// peace.
func (c *conn) replaced(flaps uint8) {
	g := frame.GoAway{Code: frame.GoAwayReplaced, Text: "a newer connection of this device took over"}
	if flaps >= flapLimit {
		g.RetryAfter = uint32(flapRetry.Milliseconds())
		g.Spread = g.RetryAfter
		g.Text = "connections of this device replace each other: is its key used twice?"
	}
	ctx, cancel := context.WithTimeout(context.Background(), replacedDrain)
	defer cancel()
	c.session.Drain(ctx, g)
}

// Closed is called when the session has ended, whatever the reason.
func (c *conn) Closed(err error) {
	n := c.node
	n.mu.Lock()
	current := n.conns[c.id] == c
	if current {
		delete(n.conns, c.id)
		n.remember(c)
		n.cfg.Store.Offline(c.id, c.session.LastSeen())
	}
	n.mu.Unlock()
	if err := n.cfg.Directory.Release(context.Background(), c.id, c.epoch); err != nil {
		n.log.Error("release device", "device", c.id, "err", err)
	}
	n.count.lost.Add(1)
	if current {
		n.log.Info("device left", "device", c.id, "err", err)
	}
}

// GoAway: the device ends this connection. Requests are not sent there any more.
func (c *conn) GoAway(g frame.GoAway) {
	c.leaving.Store(true)
	c.node.log.Debug("device says goodbye", "device", c.id, "code", g.Code)
}

// Describe keeps what the device says of itself. An odd descriptor is kept out, the
// device is not (SPEC.md §4.7).
func (c *conn) Describe(raw []byte) {
	d, err := tether.ParseDescriptor(raw)
	if err != nil {
		c.node.log.Warn("descriptor ignored", "device", c.id, "err", err)
		return
	}
	if err := c.node.cfg.Store.Describe(c.id, d.Name, bytes.Clone(raw)); err != nil {
		c.node.log.Error("keep descriptor", "device", c.id, "err", err)
	}
}

// Locate keeps where the device is on its LAN, for as long as this connection lives.
func (c *conn) Locate(lan string) {
	if lan == "" {
		c.lan.Store(nil)
		return
	}
	c.lan.Store(&lan)
}

// Notify hands an event to the store. A store that takes no more means that this
// connection ends: the device keeps the event and sends it again later.
func (c *conn) Notify(ev frame.Notify) {
	n := c.node
	n.count.notified.Add(1)
	if c.unstored.Add(1) > maxUnstored {
		c.unstored.Add(-1)
		if ev.Seq == 0 {
			return // best effort
		}
		n.count.overloaded.Add(1)
		go c.end(frame.GoAway{Code: frame.GoAwayOverload, RetryAfter: uint32(overloadRetry.Milliseconds()), Text: "too many notifications without an acknowledgement"}, closeTryLater)
		return
	}
	if err := n.cfg.Store.Append(c.id, ev, c); err != nil {
		c.unstored.Add(-1)
		n.count.overloaded.Add(1)
		n.log.Warn("notification not taken", "device", c.id, "err", err)
		if ev.Seq > 0 {
			go c.end(frame.GoAway{Code: frame.GoAwayOverload, RetryAfter: uint32(overloadRetry.Milliseconds()), Spread: uint32(n.spread().Milliseconds()), Text: "the relay cannot store notifications now"}, closeTryLater)
		}
	}
}

// Acked is for devices: mux refuses it here.
func (c *conn) Acked(tether.EventID) {}

// Invalidated is for devices: mux refuses it here.
func (c *conn) Invalidated(frame.Invalidated) {}

// end says why and closes.
func (c *conn) end(g frame.GoAway, code int) {
	c.session.GoAway(g)
	c.session.Close(code, g.Code.String())
}

// Stored implements Acker. The acknowledgement is sent by a goroutine that exists while
// there is one to send: a device that does not read must not hold up the store.
func (c *conn) Stored(last tether.EventID, done int) {
	c.unstored.Add(int32(-done))
	if last.IsZero() {
		return
	}
	c.ackMu.Lock()
	defer c.ackMu.Unlock()
	c.ack = last
	if !c.acking {
		c.acking = true
		go c.sendAcks()
	}
}

func (c *conn) sendAcks() {
	for {
		c.ackMu.Lock()
		id := c.ack
		c.ack = tether.EventID{}
		if id.IsZero() {
			c.acking = false
			c.ackMu.Unlock()
			return
		}
		c.ackMu.Unlock()
		if err := c.session.Ack(id); err != nil {
			c.node.log.Debug("acknowledge", "device", c.id, "err", err)
		}
	}
}
