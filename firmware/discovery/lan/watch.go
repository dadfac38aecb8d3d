package lan

import (
	"context"
	"sync"
	"time"
)

// Times of Watch.
const (
	settle   = 300 * time.Millisecond // of quiet after a change: DHCP and bridges change in bursts
	settleAt = 2 * time.Second        // at the latest, however long the burst is
	// A look without being told, for kernels and emulators that tell nothing.
	pollTold   = time.Minute
	pollUntold = 5 * time.Second
)

// Watch reads the interfaces with read (Interfaces with the caller's names, usually) and calls
// changed with each reading that differs from the one before; the first reading counts
// as a change. It works until ctx is done. A reading that fails is passed over; the next
// one tells.
func Watch(ctx context.Context, read func() ([]Interface, error), changed func([]Interface)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan struct{}, 1) // full: one wake-up already waits
	poll := pollUntold
	if told := listen(ctx, &wg, events); told {
		poll = pollTold
	}
	watch(ctx, read, changed, events, poll)
}

func watch(ctx context.Context, read func() ([]Interface, error), changed func([]Interface), events <-chan struct{}, poll time.Duration) {
	var last []Interface
	first := true
	for {
		if now, err := read(); err == nil && (first || !Equal(last, now)) {
			first, last = false, now
			changed(now)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		case <-events:
			if !quiet(ctx, events) {
				return
			}
		}
	}
}

// quiet waits for the end of a burst of events.
func quiet(ctx context.Context, events <-chan struct{}) bool {
	latest := time.After(settleAt)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-latest:
			return true
		case <-time.After(settle):
			return true
		case <-events:
		}
	}
}
