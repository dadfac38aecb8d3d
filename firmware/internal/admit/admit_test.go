package admit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ask starts one waiter and returns once it stands in the queue. The order in which
// waiters are admitted is appended to order; each one holds its slot until release.
type bench struct {
	g       *Gate
	mu      sync.Mutex
	order   []string
	errs    map[string]error
	release chan struct{}
}

func newBench(c Config) *bench {
	return &bench{g: New(c), errs: map[string]error{}, release: make(chan struct{})}
}

func (b *bench) ask(ctx context.Context, c Class, client, name string) {
	go func() {
		t, err := b.g.Acquire(ctx, c, client)
		b.mu.Lock()
		if err != nil {
			b.errs[name] = err
			b.mu.Unlock()
			return
		}
		b.order = append(b.order, name)
		b.mu.Unlock()
		<-b.release
		t.Release()
	}()
	synctest.Wait()
}

// finish lets n holders go, one after the other.
func (b *bench) finish(n int) {
	for range n {
		b.release <- struct{}{}
		synctest.Wait()
	}
}

func (b *bench) wantIdle(t *testing.T) {
	t.Helper()
	s := b.g.Stats()
	if s.InOrigin != 0 || s.Queued != 0 || s.Streams != 0 {
		t.Errorf("at the end: %+v, want nothing held", s)
	}
	for c := range b.g.lines {
		if l := b.g.lines[c]; len(l.clients) != 0 || l.next != nil || l.queued != 0 {
			t.Errorf("line %v = %+v, want empty", Class(c), l)
		}
	}
}

func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Config{Concurrency: 1})
		ctx := t.Context()
		b.ask(ctx, LAN, "a", "a0") // in the origin
		for i := range 3 {
			b.ask(ctx, Tether, "x", fmt.Sprint("x", i))
		}
		for i := 1; i < 4; i++ {
			b.ask(ctx, LAN, "a", fmt.Sprint("a", i))
		}
		b.ask(ctx, LAN, "b", "b0")
		b.ask(ctx, LAN, "c", "c0")
		b.ask(ctx, Tether, "y", "y0")
		b.finish(10)
		want := []string{"a0", "a1", "x0", "b0", "y0", "c0", "x1", "a2", "x2", "a3"}
		if !slices.Equal(b.order, want) {
			t.Errorf("order = %v, want %v", b.order, want)
		}
		b.wantIdle(t)
	})
}

func TestConcurrencyBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Config{Concurrency: 3, Queue: 100})
		for i := range 20 {
			b.ask(t.Context(), Class(i%2), fmt.Sprint(i%5), fmt.Sprint(i))
		}
		if s := b.g.Stats(); s.InOrigin != 3 || s.Queued != 17 {
			t.Errorf("stats = %+v, want 3 in the origin and 17 queued", s)
		}
		b.finish(20)
		if len(b.order) != 20 {
			t.Errorf("%d admitted, want 20", len(b.order))
		}
		b.wantIdle(t)
	})
}

func TestQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Config{Concurrency: 1, Queue: 4})
		ctx := t.Context()
		for i := range 6 {
			b.ask(ctx, LAN, "flood", fmt.Sprint("f", i))
		}
		if err := b.errs["f5"]; !errors.Is(err, ErrQueueFull) {
			t.Errorf("sixth of one client = %v, want ErrQueueFull", err)
		}
		// Others push the flooding client's newest waiters out, up to an even share.
		b.ask(ctx, LAN, "guest", "g0")
		b.ask(ctx, Tether, "remote", "r0")
		b.ask(ctx, Tether, "remote", "r1")
		b.ask(ctx, Tether, "remote", "r2")
		for _, name := range []string{"f4", "f3", "f2"} {
			if err := b.errs[name]; !errors.Is(err, ErrQueueFull) {
				t.Errorf("%s = %v, want displaced with ErrQueueFull", name, err)
			}
		}
		if err := b.errs["r2"]; !errors.Is(err, ErrQueueFull) {
			t.Errorf("third of the tether = %v, want ErrQueueFull: it already holds half", err)
		}
		b.finish(5)
		if want := []string{"f0", "g0", "r0", "f1", "r1"}; !sameSet(b.order, want) {
			t.Errorf("served = %v, want %v", b.order, want)
		}
		if s := b.g.Stats(); s.RefusedFull != 5 {
			t.Errorf("refused = %d, want 5", s.RefusedFull)
		}
		b.wantIdle(t)
	})
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

func TestNoQueue(t *testing.T) {
	g := New(Config{Concurrency: 1, Queue: -1})
	k, err := g.Acquire(t.Context(), LAN, "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Acquire(t.Context(), LAN, "b"); !errors.Is(err, ErrQueueFull) {
		t.Errorf("second = %v, want ErrQueueFull", err)
	}
	k.Release()
	k.Release()
	if s := g.Stats(); s.InOrigin != 0 {
		t.Errorf("released twice: %+v", s)
	}
}

func TestMaxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Config{Concurrency: 1, MaxWait: 3 * time.Second})
		b.ask(t.Context(), LAN, "a", "a0")
		start := time.Now()
		_, err := b.g.Acquire(t.Context(), LAN, "b")
		if !errors.Is(err, ErrWait) || time.Since(start) != 3*time.Second {
			t.Errorf("after %v: %v, want ErrWait after 3s", time.Since(start), err)
		}
		b.finish(1)
		b.wantIdle(t)
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Config{Concurrency: 1})
		ctx, cancel := context.WithCancelCause(t.Context())
		b.ask(t.Context(), LAN, "a", "a0")
		b.ask(ctx, LAN, "a", "a1")
		b.ask(t.Context(), LAN, "a", "a2")
		gone := errors.New("client gone")
		cancel(gone)
		synctest.Wait()
		if err := b.errs["a1"]; !errors.Is(err, gone) {
			t.Errorf("cancelled = %v, want the cause", err)
		}
		if s := b.g.Stats(); s.Queued != 1 || s.Cancelled != 1 {
			t.Errorf("stats = %+v, want the waiter removed at once", s)
		}
		b.finish(2)
		if want := []string{"a0", "a2"}; !slices.Equal(b.order, want) {
			t.Errorf("order = %v, want %v", b.order, want)
		}
		if k, err := b.g.Acquire(ctx, LAN, "a"); err != nil {
			t.Errorf("free slot with a dead context = %v, want a ticket: nobody waits", err)
		} else {
			k.Release()
		}
		b.wantIdle(t)
	})
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{Concurrency: 1, Streams: 2})
		var open []*Ticket
		for range 2 {
			k, err := g.Acquire(t.Context(), LAN, "a")
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Stream(); err != nil {
				t.Fatal(err)
			}
			if err := k.Stream(); err != nil {
				t.Errorf("second Stream() = %v, want nil", err)
			}
			open = append(open, k)
		}
		k, err := g.Acquire(t.Context(), LAN, "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Stream(); !errors.Is(err, ErrTooManyStreams) {
			t.Errorf("third stream = %v, want ErrTooManyStreams", err)
		}
		if s := g.Stats(); s.InOrigin != 1 || s.Streams != 2 {
			t.Errorf("stats = %+v, want the third to keep its slot", s)
		}
		// A stream that begins hands its slot to the waiter at once.
		open[0].Release()
		got := make(chan *Ticket)
		go func() {
			w, _ := g.Acquire(t.Context(), Tether, "b")
			got <- w
		}()
		synctest.Wait()
		if err := k.Stream(); err != nil {
			t.Errorf("Stream() after a place came free = %v", err)
		}
		(<-got).Release()
		open[1].Release()
		k.Release()
		if s := g.Stats(); s.InOrigin != 0 || s.Streams != 0 {
			t.Errorf("at the end: %+v", s)
		}
	})
}

// TestNoLeak mixes everything at random and counts what is left.
func TestNoLeak(t *testing.T) {
	g := New(Config{Concurrency: 3, Queue: 8, Streams: 2, MaxWait: time.Millisecond})
	var wg sync.WaitGroup
	var mu sync.Mutex
	inside, most := 0, 0
	for w := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 300 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(800))*time.Microsecond)
				k, err := g.Acquire(ctx, Class(r.IntN(2)), fmt.Sprint(r.IntN(4)))
				if err == nil {
					mu.Lock()
					inside++
					most = max(most, inside)
					mu.Unlock()
					time.Sleep(time.Duration(r.IntN(200)) * time.Microsecond)
					mu.Lock()
					inside--
					mu.Unlock()
					if r.IntN(3) == 0 {
						_ = k.Stream() // a full stream bound keeps the slot, which is fine here
					}
					k.Release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if most > 3 {
		t.Errorf("%d inside at once, want at most 3", most)
	}
	s := g.Stats()
	if s.InOrigin != 0 || s.Queued != 0 || s.Streams != 0 {
		t.Errorf("at the end: %+v, want nothing held", s)
	}
	if s.Admitted+s.RefusedFull+s.RefusedWait+s.Cancelled < 16*300 {
		t.Errorf("outcomes do not add up: %+v", s)
	}
}

func TestUncontendedAllocations(t *testing.T) {
	g := New(Config{})
	ctx := t.Context()
	n := testing.AllocsPerRun(100, func() {
		k, err := g.Acquire(ctx, LAN, "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		k.Release()
	})
	if n > 1 {
		t.Errorf("%v allocations, want at most 1", n)
	}
}

func TestValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("zero = %v, want nil", err)
	}
	if err := (Config{Concurrency: -1, MaxWait: -1}).Validate(); err == nil {
		t.Error("negative values: no error")
	}
}

func BenchmarkUncontended(b *testing.B) {
	g := New(Config{})
	for b.Loop() {
		k, _ := g.Acquire(b.Context(), LAN, "192.0.2.1")
		k.Release()
	}
}
