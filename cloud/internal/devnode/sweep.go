package devnode

import (
	"context"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// Run sweeps over the tethers until ctx is done. It ends none then; see Drain.
func (n *Node) Run(ctx context.Context) error {
	start := time.Now()
	sweep, look := time.NewTicker(sweepEvery), time.NewTicker(lookEvery)
	defer sweep.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			n.sweep(time.Since(start))
		case <-look.C:
			n.checkList()
		}
	}
}

// all is a copy of the connections, so that nothing is done under the lock.
func (n *Node) all() []*conn {
	n.mu.RLock()
	defer n.mu.RUnlock()
	list := make([]*conn, 0, len(n.conns))
	for _, c := range n.conns {
		list = append(list, c)
	}
	return list
}

// sweep asks those that have been silent for longer than they should (a device sends a
// PING after a keepalive interval) and ends those that did not answer within 10 s: 45 s
// at most with the usual interval. now is a clock that never jumps. The time of the last
// byte is wall time: after a jump of the clock everybody is asked, and nobody is ended who
// answers.
func (n *Node) sweep(now time.Duration) {
	limit := n.cfg.Keepalive * 12 / 10
	var ask []*conn
	for _, c := range n.all() {
		last := c.session.LastSeen()
		silent := time.Since(last)
		switch {
		case c.asked > 0 && last.UnixNano() != c.heard:
			c.asked = 0
		case c.asked > 0 && now-c.asked >= pongWait:
			n.count.silent.Add(1)
			n.log.Info("device is silent", "device", c.id, "since", last)
			c.session.Close(closeGoing, "silent")
		case c.asked == 0 && (silent > limit || silent < -time.Second):
			c.asked, c.heard = max(now, 1), last.UnixNano()
			ask = append(ask, c)
		case c.session.Draining() && !c.leaving.Load() && !n.draining.Load():
			// Its stream ids are used up: the device is to come again (SPEC.md §5).
			c.leaving.Store(true)
			ask = append(ask, c)
		}
	}
	if len(ask) > 0 && n.asking.CompareAndSwap(false, true) {
		go func() { // writing may take its time
			defer n.asking.Store(false)
			sent, cancel := context.WithCancel(context.Background())
			cancel() // the answer shows in LastSeen, nobody waits for it
			for _, c := range ask {
				if c.leaving.Load() {
					c.session.GoAway(frame.GoAway{Code: frame.GoAwayDrain, Text: "please connect again"})
					continue
				}
				_, _ = c.session.Ping(sent)
			}
		}()
	}
}

// checkList ends connections that a change of the operator's does not allow any more, and
// drops what is stored of such devices.
func (n *Node) checkList() {
	now := n.cfg.List.Version()
	if n.listed.Swap(now) == now {
		return
	}
	for _, c := range n.all() {
		g, event := n.banned(c.id, c.proven.key)
		if event == "" {
			continue
		}
		n.log.Warn("device is not allowed any more", "security", event, "device", c.id, "code", g.Code)
		c.leaving.Store(true) // before what is on its way is forgotten
		g.RetryAfter = uint32(refusedRetry.Milliseconds())
		go c.end(g, closePolicy)
	}
	if n.cfg.Cache == nil {
		return
	}
	for _, id := range n.cfg.Cache.Devices() {
		var key [16]byte
		if c := n.lookup(id); c != nil {
			key = c.proven.key
		} else if kept, err := n.cfg.Store.Key(id); err == nil {
			key = keyHash(kept)
		} else {
			n.log.Error("read key", "device", id, "err", err) // then it counts as another one
		}
		if _, event := n.banned(id, key); event != "" {
			n.forget(id)
		}
	}
}

// recheck has the list looked at again if it has changed since a device that is in now was
// checked against it: checkList may have been there in between.
func (n *Node) recheck(version uint64) {
	if version != n.cfg.List.Version() {
		n.listed.Store(version)
	}
}

// banned says how a device with this key is told that the operator does not allow it, and what
// that is called in the log; "": it is allowed.
func (n *Node) banned(id tether.DeviceID, key [16]byte) (g frame.GoAway, event string) {
	sum, ok := n.cfg.List.Key(id)
	switch {
	case n.cfg.List.Revoked(id):
		return frame.GoAway{Code: frame.GoAwayUnknown, Text: textRevoked}, "device_certificate_revoked"
	case ok && [16]byte(sum[:]) != key:
		return frame.GoAway{Code: frame.GoAwayAuth, Text: "key changed: another one is on the list for this device"}, "device_removed"
	case !ok && !n.cfg.FirstUse:
		return frame.GoAway{Code: frame.GoAwayUnknown, Text: "device not enrolled: it was taken off the list"}, "device_removed"
	}
	return g, ""
}

// Drain sends the devices elsewhere: GOAWAY 0, spread over the given time, and an end to
// each tether once its last request is answered. It returns when all have ended, and
// after ctx is done ends what is left. New tethers are refused from its begin.
func (n *Node) Drain(ctx context.Context, over time.Duration) {
	n.Settle(ctx)
	list := n.all()
	// Telling them is spread already: a device that has nothing under way is offline until it
	// is back, so it waits only for what that leaves over.
	rest := max(0, handshakes(len(list), runtime.GOMAXPROCS(0))-over)
	g := frame.GoAway{Code: frame.GoAwayDrain, Spread: uint32(min(rest.Milliseconds(), math.MaxUint32)), Text: "the relay stops"}
	const parts = 20
	var wg sync.WaitGroup
	for i := range parts {
		part := list[len(list)*i/parts : len(list)*(i+1)/parts]
		wg.Go(func() {
			for _, c := range part {
				wg.Go(func() { c.session.Drain(ctx, g); <-c.session.Done() })
			}
		})
		if len(part) == 0 || i == parts-1 {
			continue
		}
		select {
		case <-time.After(over / parts):
		case <-ctx.Done():
		}
	}
	wg.Wait()
}

// How long Settle waits for handshakes that had begun, and how often it looks.
const (
	settleTime = time.Second
	settleLook = 5 * time.Millisecond
)

// Settle refuses new tethers from now on, and waits until devices that are just coming in
// are in, so that they are told to go like all others. Nobody may touch their connections
// before: call it ahead of the HTTP server's Shutdown.
func (n *Node) Settle(ctx context.Context) {
	n.draining.Store(true)
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for n.shaking.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(settleLook):
		}
	}
}

// Close ends all tethers at once.
func (n *Node) Close() {
	n.draining.Store(true)
	for _, c := range n.all() {
		c.session.Close(closeGoing, "the relay stops")
	}
	for _, c := range n.all() {
		<-c.session.Done()
	}
}
