package lan

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := []Interface{{Index: 2, Name: "eth0", Prefixes: prefixes(t, "192.168.1.2/24")}}
		two := []Interface{{Index: 2, Name: "eth0", Prefixes: prefixes(t, "192.168.7.2/24")}}
		var now atomic.Pointer[[]Interface] // nil: cannot be read
		now.Store(&one)
		read := func() ([]Interface, error) {
			if p := now.Load(); p != nil {
				return *p, nil
			}
			return nil, errors.New("no memory")
		}
		var got [][]Interface
		events := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			watch(ctx, read, func(in []Interface) { got = append(got, in) }, events, pollTold)
		}()
		synctest.Wait()
		if len(got) != 1 || !Equal(got[0], one) {
			t.Fatalf("after the start: %v, want one reading", got)
		}
		events <- struct{}{} // something else changed
		time.Sleep(settleAt + settle)
		synctest.Wait()
		if len(got) != 1 {
			t.Errorf("an event without a difference told %v", got[1:])
		}
		now.Store(new([]Interface)) // taken away and given anew in one burst
		events <- struct{}{}
		time.Sleep(settle / 2)
		now.Store(&two)
		events <- struct{}{}
		time.Sleep(2 * settle)
		synctest.Wait()
		if len(got) != 2 || !Equal(got[1], two) {
			t.Errorf("after a burst: %v, want only its end", got[1:])
		}
		now.Store(nil)
		events <- struct{}{}
		time.Sleep(2 * settle)
		now.Store(&one)
		time.Sleep(pollTold) // nobody tells
		synctest.Wait()
		if len(got) != 3 || !Equal(got[2], one) {
			t.Errorf("after the slow look: %v", got[2:])
		}
		cancel()
		<-done
	})
}
