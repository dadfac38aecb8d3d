package coherence

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/tethertest"
)

// The run takes so long; a busy machine gets as much more time as it needs to reach the floors.
const (
	devices = 6
	usual   = 15 * time.Second
	longest = 4 * time.Minute

	leastOps  = 2000
	leastHits = 100 // from each side's store
	leastEach = 2   // kinds of writes on each way, and events
)

// Kinds of writes.
const (
	put           = iota
	patch         // the register itself
	del           // GET is answered 404 then, with a lifetime
	post          // the answer may be stored as what GET would give
	location      // a write elsewhere
	contentAt     // the same with Content-Location
	otherForm     // the path is written so that the caches do not know what it names
	purge         // the service changed by itself, and one path is purged
	purgeAll      // the same with everything below a prefix
	answerLost    // the service has done it, but its answer does not come: 502
	writeKinds    = iota
	localOnlyFrom = answerLost // the relay's 502 may also mean that the gateway is still at it
)

// seen counts what a run has shown.
type seen struct {
	ops    atomic.Int64
	hits   [ways]atomic.Int64
	old    [ways]atomic.Int64 // of those, older than the register was: the control register alone
	writes [ways][writeKinds]atomic.Int64

	holds, cuts, halves, aways, restarts, unheard, relays atomic.Int64
}

// missing names what a run has not shown yet; empty: it has shown enough.
func (s *seen) missing() (list []string) {
	want := func(what string, got, least int64) {
		if got < least {
			list = append(list, fmt.Sprintf("%s: %d, want %d", what, got, least))
		}
	}
	want("requests", s.ops.Load(), leastOps)
	for way, name := range wayNames {
		want("answers from the store, "+name, s.hits[way].Load(), leastHits)
		want("old answers about what changed without a write, "+name, s.old[way].Load(), leastEach)
		for kind := range writeKinds {
			if way == local || kind < localOnlyFrom {
				want(fmt.Sprintf("writes of kind %d, %s", kind, name), s.writes[way][kind].Load(), leastEach)
			}
		}
	}
	for what, n := range map[string]*atomic.Int64{"stalls": &s.holds, "cuts": &s.cuts, "half-open connections": &s.halves, "absences": &s.aways,
		"restarts of a gateway": &s.restarts, "restarts that the relay did not hear of": &s.unheard} {
		want(what, n.Load(), leastEach)
	}
	want("restarts of the relay", s.relays.Load(), 1)
	return list
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// stored is the field of a client that takes nothing but stored answers. It is told at once when
// there is none, and not stuck on a connection that is gone.
const stored = "only-if-cached"

// read keeps asking, with this Cache-Control if that is not empty.
func (d *device) read(ctx context.Context, way int, says string) {
	client := newClient()
	defer client.CloseIdleConnections()
	store := [ways]string{"cloudrest-gateway; hit", "cloudrest-relay; hit"}[way]
	name := ""
	if says != "" {
		name = "Cache-Control"
	}
	for ctx.Err() == nil {
		i := rand.IntN(registers + 1)
		path := "/r/" + strconv.Itoa(i)
		if rand.IntN(4) == 0 {
			path += "?q=1" // stored beside it
		}
		least := d.service.version(i)
		a, ok := d.send(ctx, client, way, http.MethodGet, path, name, says)
		if !ok || !a.numbered || a.status != http.StatusOK && a.status != http.StatusNotFound {
			rest(ctx, 10*time.Millisecond)
			continue
		}
		hit := strings.Contains(a.cache, store)
		o := tethertest.Op{Version: a.version, Begin: a.begin, End: a.end, By: wayNames[way] + ": " + a.cache}
		if hit {
			d.seen.hits[way].Add(1)
		}
		switch {
		case i != control:
			d.note(i, o)
		case hit && a.version < least:
			d.seen.old[way].Add(1)
		}
		rest(ctx, rand.N(2*time.Millisecond))
	}
}

// write keeps changing registers.
func (d *device) write(ctx context.Context, way int) {
	client := newClient()
	defer client.CloseIdleConnections()
	for n := 0; ctx.Err() == nil; n++ {
		rest(ctx, rand.N(40*time.Millisecond))
		kind := rand.IntN(writeKinds)
		if kind >= otherForm { // rarer: they empty much
			kind = rand.IntN(writeKinds)
		}
		if way != local && kind >= localOnlyFrom {
			continue
		}
		i := rand.IntN(registers)
		begin := time.Now()
		if v, ok := d.writeOnce(ctx, client, way, kind, i, fmt.Sprintf("%d-%p", n, client)); ok {
			d.seen.writes[way][kind].Add(1)
			d.note(i, tethertest.Op{Write: true, Version: v, Begin: begin, End: time.Now(), By: fmt.Sprintf("%s, kind %d", wayNames[way], kind)})
		} else {
			rest(ctx, 10*time.Millisecond)
		}
	}
}

// writeOnce returns the version that a write made, when its answer is there.
func (d *device) writeOnce(ctx context.Context, client *http.Client, way, kind, i int, name string) (version int, ok bool) {
	number := strconv.Itoa(i)
	method, path := http.MethodPut, "/r/"+number
	switch kind {
	case patch:
		method = http.MethodPatch
	case del:
		method = http.MethodDelete
	case post:
		method = http.MethodPost
	case location:
		method, path = http.MethodPost, "/made/"+number
	case contentAt:
		path = "/set/" + number
	case otherForm:
		path = "/r/%3" + number // the digits are %30 to %39
	case purge, purgeAll:
		ended := d.ended.Load()
		if kind == purgeAll {
			path = "/*"
		}
		version = d.service.change(i, false, "")
		if way == local {
			_, err := d.gw.Load().PurgeCache(ctx, path)
			return version, err == nil && d.ended.Load() == ended
		}
		a, ok := d.send(ctx, client, way, http.MethodDelete, "/.cloudrest/v1/cache?path="+path, "", "")
		return version, ok && a.status == http.StatusOK
	case answerLost:
		// A gateway that ends says 502 too, and the service may do the write later.
		ended := d.ended.Load()
		if a, ok := d.send(ctx, client, way, method, path, failing, name); !ok || a.status != http.StatusBadGateway || d.ended.Load() != ended {
			return 0, false
		}
		return d.service.madeBy(name)
	}
	a, ok := d.send(ctx, client, way, method, path, "", "")
	return a.version, ok && a.numbered && a.status < 300
}

// age changes the control register behind everybody's back.
func (d *device) age(ctx context.Context) {
	for ctx.Err() == nil {
		rest(ctx, 50*time.Millisecond+rand.N(200*time.Millisecond))
		d.service.change(control, false, "")
	}
}

// connected waits until the relay reaches the device, for so long.
func (d *device) connected(ctx context.Context, client *http.Client, within time.Duration) bool {
	for begin := time.Now(); ctx.Err() == nil && time.Since(begin) < within; rest(ctx, 50*time.Millisecond) {
		if a, ok := d.send(ctx, client, remote, http.MethodGet, "/.cloudrest/v1/status", "", ""); ok && a.status == http.StatusOK {
			return true
		}
	}
	return false
}

// trouble keeps breaking the network, and the gateway.
func (d *device) trouble(ctx context.Context, first int) {
	client := newClient()
	defer client.CloseIdleConnections()
	defer d.net.Shut(false)
	for n := first; ctx.Err() == nil; n++ {
		// The gateway comes back later each time, as it should; a new one comes at once.
		for ctx.Err() == nil && !d.connected(ctx, client, 3*time.Second) {
			d.restart()
			d.seen.restarts.Add(1)
		}
		rest(ctx, 200*time.Millisecond+rand.N(800*time.Millisecond)) // something is stored, and leases are out
		if ctx.Err() != nil {
			return
		}
		switch n % 6 {
		case 0: // what the gateway says comes late
			d.net.Hold(true)
			rest(ctx, rand.N(time.Second))
			d.net.Hold(false)
			d.seen.holds.Add(1)
		case 1: // the relay believes in a connection that is gone, and then another one comes
			d.net.Half()
			d.seen.halves.Add(1)
		case 2: // or none comes
			d.net.Shut(true)
			d.net.Half()
			rest(ctx, rand.N(4*time.Second))
			d.net.Shut(false)
			d.seen.aways.Add(1)
		case 3: // the gateway is replaced, and the relay believes in a connection with the old one
			d.net.Shut(true)
			d.net.Half()
			d.restart()
			rest(ctx, rand.N(3*time.Second))
			d.net.Shut(false)
			d.seen.unheard.Add(1)
		case 4:
			d.net.Cut()
			d.seen.cuts.Add(1)
		case 5:
			d.restart()
			d.seen.restarts.Add(1)
		}
	}
}

// TestCoherence: after a write's answer was seen on one way, no later GET on any way is answered
// with what was before.
func TestCoherence(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	seen := &seen{}
	c := newCloud(t)
	var all []*device
	for n := range devices {
		all = append(all, newDevice(t, c, seen, n))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for n, d := range all {
		for way := range ways {
			for range 2 {
				wg.Go(func() { d.read(ctx, way, "") })
			}
			wg.Go(func() { d.write(ctx, way) })
		}
		wg.Go(func() { d.read(ctx, remote, stored) })
		wg.Go(func() { d.write(ctx, local) })
		wg.Go(func() { d.age(ctx) })
		wg.Go(func() { d.trouble(ctx, n) })
	}
	begin := time.Now()
	rest(ctx, usual/2)
	c.stop()
	if err := c.start(); err != nil {
		t.Errorf("start the relay again: %v", err)
	}
	for _, d := range all {
		d.net.To(c.addr())
	}
	seen.relays.Add(1)
	for rest(ctx, usual/2); len(seen.missing()) > 0 && time.Since(begin) < longest; {
		rest(ctx, 100*time.Millisecond)
	}
	cancel()
	wg.Wait()

	stale := 0
	for n, d := range all {
		for i, h := range d.history {
			if r, w, ok := tethertest.Older(h); ok {
				stale++
				t.Errorf("device %d, register %d: a GET (%s) that began %v after the answer to the write (%s) of version %d was answered with version %d",
					n, i, r.By, r.Begin.Sub(w.End), w.By, w.Version, r.Version)
			}
		}
	}
	for _, what := range seen.missing() {
		t.Errorf("this shows nothing: %s", what)
	}
	writes := [ways]int64{}
	for way := range ways {
		for kind := range writeKinds {
			writes[way] += seen.writes[way][kind].Load()
		}
	}
	t.Logf("%d requests in %v: %d and %d answers from the gateways' and the relay's store, %d writes on the LAN, %d through the relay; "+
		"%d stalls, %d cuts, %d half-open, %d absences, %d restarts of a gateway, %d unheard, %d of the relay; %d registers stale",
		seen.ops.Load(), time.Since(begin).Round(time.Second), seen.hits[local].Load(), seen.hits[remote].Load(), writes[local], writes[remote],
		seen.holds.Load(), seen.cuts.Load(), seen.halves.Load(), seen.aways.Load(), seen.restarts.Load(), seen.unheard.Load(), seen.relays.Load(), stale)
}
