package devnode

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

// copies is a Cache that holds one answer of each device, and notes what goes.
type copies struct {
	mu    sync.Mutex
	of    []tether.DeviceID
	gone  []tether.DeviceID // in the order of InvalidatePrefix
	uris  []string          // of Invalidate
	check func()            // while something goes
}

func (c *copies) Invalidate(_ tether.DeviceID, uris ...string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uris = append(c.uris, uris...)
	return 1
}

func (c *copies) InvalidatePrefix(id tether.DeviceID, prefix string) int {
	if c.check != nil {
		c.check()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = append(c.gone, id)
	return 1
}

func (c *copies) Devices() []tether.DeviceID { return c.of }

func (c *copies) take() []tether.DeviceID {
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := c.gone
	c.gone = nil
	return gone
}

// What the operator does not allow any more leaves nothing behind, whether it is online or not,
// and nothing goes of others.
func TestBannedDevicesAreForgotten(t *testing.T) {
	other := tether.NewDeviceID([]byte("other"))
	for _, c := range []struct {
		name   string
		first  bool // trust on first use
		before map[tether.DeviceID][]byte
		ban    func(l *list)
		gone   bool
	}{
		{"revoked", true, nil, func(l *list) { l.revoke(dev) }, true},
		{"another one revoked", true, nil, func(l *list) { l.revoke(tether.NewDeviceID([]byte("x"))) }, false},
		{"taken off the list", false, map[tether.DeviceID][]byte{dev: []byte("k"), other: []byte("k")}, func(l *list) { l.set(map[tether.DeviceID][]byte{other: []byte("k")}) }, true},
		{"taken off the list, which nobody needs", true, map[tether.DeviceID][]byte{dev: []byte("k")}, func(l *list) { l.set(nil) }, false},
		{"listed with another key", true, nil, func(l *list) { l.set(map[tether.DeviceID][]byte{dev: []byte("new"), other: []byte("k")}) }, true},
		{"listed with its key", true, nil, func(l *list) { l.set(map[tether.DeviceID][]byte{dev: []byte("k")}) }, false},
	} {
		for _, online := range []bool{true, false} {
			cache := &copies{of: []tether.DeviceID{dev, other}}
			edit := func(cfg *Config) { cfg.Cache, cfg.FirstUse = cache, c.first }
			bubble(t, edit, func(t *testing.T, n *Node, store *memory, l *list) {
				store.keys[dev], store.keys[other] = []byte("k"), []byte("k")
				l.set(c.before)
				time.Sleep(2 * lookEvery)
				cache.take()
				if online {
					join(n, dev, "k", nil)
					cache.check = func() {
						if x := n.lookup(dev); x != nil && !x.leaving.Load() {
							t.Errorf("%s: requests still go there when its answers are forgotten", c.name)
						}
					}
				}
				c.ban(l)
				time.Sleep(2 * lookEvery)
				synctest.Wait()
				want := []tether.DeviceID(nil)
				if c.gone {
					want = append(want, dev)
				}
				if got := cache.take(); !slices.Equal(got, want) {
					t.Errorf("%s, online %v: forgotten were %v, want %v", c.name, online, got, want)
				}
			})
		}
	}
}

// A device that comes with another owner or another key is not the one whose answers are stored.
func TestAnotherDeviceIsForgotten(t *testing.T) {
	cache := &copies{}
	n, store, l := newNode(func(cfg *Config) { cfg.Cache = cache })
	for _, c := range []struct {
		name       string
		change     func()
		key        string
		generation uint32
		gone       bool
	}{
		{"first contact", nil, "k", 1, true},
		{"again", nil, "k", 1, false},
		{"a factory reset", nil, "k", 2, true},
		{"after it", nil, "k", 2, false},
		{"an older generation", nil, "k", 1, false},
		{"rekeyed", func() { delete(store.keys, dev) }, "k2", 2, true},
		{"after that", nil, "k2", 2, false},
		{"listed with another key", func() { l.set(map[tether.DeviceID][]byte{dev: []byte("k3")}) }, "k3", 2, true},
		{"after that, too", nil, "k3", 2, false},
	} {
		if c.change != nil {
			c.change()
		}
		at := &attempt{}
		ctx := context.WithValue(t.Context(), attemptKey{}, at)
		if err := n.verify(ctx, &session.Peer{ID: dev, PublicDER: []byte(c.key), Generation: c.generation}); err != nil {
			t.Fatal(c.name, err)
		}
		if got := len(cache.take()) > 0; got != c.gone || at.other != c.gone {
			t.Errorf("%s: forgotten %v, and again when it is in %v, want %v", c.name, got, at.other, c.gone)
		}
	}
	if err := n.verify(t.Context(), &session.Peer{ID: dev, PublicDER: []byte("wrong"), Generation: 9}); err == nil || len(cache.take()) > 0 {
		t.Errorf("a stranger with a wrong key: %v, or something is forgotten", err)
	}
}

// A device that is revoked between its check and its coming in does not stay.
func TestRevokedWhileComingIn(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, l *list) {
		at := &attempt{}
		if err := n.verify(context.WithValue(t.Context(), attemptKey{}, at), &session.Peer{ID: dev, PublicDER: []byte("k")}); err != nil {
			t.Fatal(err)
		}
		l.revoke(dev)
		time.Sleep(2 * lookEvery)
		join(n, dev, "k", nil)
		n.recheck(at.list)
		time.Sleep(2 * lookEvery)
		synctest.Wait()
		if n.lookup(dev) != nil {
			t.Error("the device is still connected")
		}
	})
}

// The older connection of a device answers until the newer one is open: what it still said goes then.
func TestAnotherDeviceTakesOver(t *testing.T) {
	cache := &copies{}
	bubble(t, func(cfg *Config) { cfg.Cache = cache }, func(t *testing.T, n *Node, _ *memory, _ *list) {
		for i, other := range []bool{true, false, true} { // the first one replaces nobody
			a, _ := newWire()
			s := mux.New(a, mux.Config{Relay: true})
			s.SetHandlers(n.open(s, dev, keyHash([]byte(fmt.Sprint(i))), lifetime{}, other, nil))
			go s.Run()
			if got, want := len(cache.take()), []int{0, 0, 1}[i]; got != want {
				t.Errorf("connection %d: forgotten %d times, want %d", i+1, got, want)
			}
		}
	})
}

// teller is a device that has said that it tells of writes.
func teller(t *testing.T, n *Node) *end {
	t.Helper()
	e := join(n, dev, "k", http.HandlerFunc(ok))
	if _, err := e.Invalidate(frame.Invalidate{Epoch: 9}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return e
}

func (e *end) mute(on bool) {
	e.wire.mu.Lock()
	e.wire.mute = on
	e.wire.mu.Unlock()
}

func TestLease(t *testing.T) {
	cache := &copies{}
	bubble(t, func(cfg *Config) { cfg.Cache = cache }, func(t *testing.T, n *Node, _ *memory, _ *list) {
		want := func(when string, want bool, took time.Duration) {
			t.Helper()
			start := time.Now()
			if got := n.Lease(t.Context(), dev); got != want || time.Since(start) != took {
				t.Errorf("%s: %v after %v, want %v after %v", when, got, time.Since(start), want, took)
			}
		}
		want("offline", false, 0)
		e := join(n, dev, "k", http.HandlerFunc(ok))
		synctest.Wait()
		want("it did not say that it tells of writes", false, 0)
		e.Close(closeGoing, "")
		e = teller(t, n)
		want("it answers", true, 0)
		e.mute(true)
		time.Sleep(leaseTime - time.Millisecond)
		want("it answered 3 s ago", true, 0)
		time.Sleep(time.Millisecond)
		want("it does not answer any more", false, askTime)

		// All who wait are one PING, and each waits for no longer than its own client.
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if n.Lease(ctx, dev) || time.Since(start) != 100*time.Millisecond {
			t.Errorf("a client that goes: waited %v, want 100ms", time.Since(start))
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { want("many at once", false, askTime) })
		}
		wg.Wait()

		// A tether that ends has nobody wait for it, and the next one must say for itself that it tells.
		wg.Go(func() { want("the tether ends", false, time.Second) })
		time.Sleep(time.Second)
		e.Close(closeGoing, "")
		wg.Wait()
		join(n, dev, "k", http.HandlerFunc(ok))
		synctest.Wait()
		want("the next tether, which did not say that it tells", false, 0)
		e = teller(t, n)
		want("the one after that", true, 0)
		e.GoAway(frame.GoAway{})
		synctest.Wait()
		want("after its goodbye", false, 0)
	})
}

// SPEC.md §4.12: what follows on in order drops what it names, all else everything.
func TestInvalidations(t *testing.T) {
	cache := &copies{}
	bubble(t, func(cfg *Config) { cfg.Cache = cache }, func(t *testing.T, n *Node, _ *memory, _ *list) {
		e := join(n, dev, "k", http.HandlerFunc(ok))
		for _, c := range []struct {
			name string
			v    frame.Invalidate
			uris string // dropped
			all  bool
		}{
			{"the first contact", frame.Invalidate{Epoch: 9, Seq: 4}, "[]", true},
			{"the same count", frame.Invalidate{Epoch: 9, Seq: 4}, "[]", false},
			{"the next write", frame.Invalidate{Epoch: 9, Seq: 5, URIs: []string{"/a", "/b"}}, "[/a /b]", false},
			{"a write was missed", frame.Invalidate{Epoch: 9, Seq: 7, URIs: []string{"/a"}}, "[]", true},
			{"the count went back", frame.Invalidate{Epoch: 9, Seq: 6, URIs: []string{"/a"}}, "[]", true},
			{"everything", frame.Invalidate{Epoch: 9, Seq: 7, Flags: frame.FlagAll}, "[]", true},
			{"another start of the daemon", frame.Invalidate{Epoch: 10, Seq: 8, URIs: []string{"/a"}}, "[]", true},
			{"the next write again", frame.Invalidate{Epoch: 10, Seq: 9, URIs: []string{"/a"}}, "[/a]", false},
		} {
			if _, err := e.Invalidate(c.v); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got, all := fmt.Sprint(cache.uris), len(cache.take()) > 0; got != c.uris || all != c.all {
				t.Errorf("%s: dropped %s, everything %v, want %s, %v", c.name, got, all, c.uris, c.all)
			}
			cache.uris = nil
		}
	})
}
