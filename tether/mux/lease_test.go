package mux_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

// slowPipe is a pipe with a round trip.
func slowPipe(rtt time.Duration) (a, b *tethertest.Pipe) {
	a, b = tethertest.NewPipe(0)
	a.Latency, b.Latency = rtt/2, rtt/2
	return a, b
}

func TestInvalidateBeforePong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := slowPipe(200 * time.Millisecond)
		var got []frame.Invalidate
		done := make(chan frame.Invalidated, 10)
		r := mux.New(a, mux.Config{Relay: true, Handlers: mux.Handlers{OnInvalidate: func(v frame.Invalidate) { got = append(got, v) }}})
		d := mux.New(b, mux.Config{Handlers: mux.Handlers{OnInvalidated: func(v frame.Invalidated) { done <- v }}})
		go r.Run()
		go d.Run()
		defer finish(r, d)
		if !r.Proven().IsZero() {
			t.Error("something is proven before anybody asked")
		}
		if ponged, err := d.Invalidate(frame.Invalidate{Epoch: 5}); err != nil || !ponged.IsZero() {
			t.Errorf("before any PING: ponged %v, %v, want never", ponged, err)
		}
		// All who ask at the same time wait for one PING.
		began := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if sent, err := r.Ask(bg); err != nil || !sent.Equal(began) {
					t.Errorf("Ask = %v, %v, want %v", sent, err, began)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took != 200*time.Millisecond || !r.Proven().Equal(began) {
			t.Errorf("asked for %v, proven %v, want one round trip and the time when it went out", took, r.Proven().Sub(began))
		}
		// What was told before a PONG is done when it comes.
		sent := time.Now()
		time.AfterFunc(50*time.Millisecond, func() {
			if _, err := d.Invalidate(frame.Invalidate{Epoch: 5, Seq: 1, URIs: []string{"/a"}}); err != nil {
				t.Error(err)
			}
		})
		if _, err := r.Ask(bg); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want := []frame.Invalidate{{Epoch: 5}, {Epoch: 5, Seq: 1, URIs: []string{"/a"}}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("at the PONG the relay had %+v, want %+v", got, want)
		}
		// Too much for a frame is everything.
		ponged, err := d.Invalidate(frame.Invalidate{Epoch: 5, Seq: 2, URIs: []string{"/" + strings.Repeat("x", frame.MaxTargets)}})
		if err != nil || !ponged.Equal(sent.Add(100*time.Millisecond)) {
			t.Errorf("ponged %v, %v, want when the PING came", ponged.Sub(sent), err)
		}
		for _, want := range []frame.Invalidated{{Epoch: 5}, {Epoch: 5, Seq: 1}, {Epoch: 5, Seq: 2}} {
			if v := <-done; v != want {
				t.Errorf("INVALIDATED %+v, want %+v", v, want)
			}
		}
		if last := got[len(got)-1]; !last.All() || len(last.URIs) != 0 {
			t.Errorf("the large one came as %+v, want everything", last)
		}
	})
}

// More writes than a flood of control frames has are none.
func TestManyWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := slowPipe(time.Millisecond)
		n := 0
		r := mux.New(a, mux.Config{Relay: true, Handlers: mux.Handlers{OnInvalidate: func(frame.Invalidate) { n++ }}})
		d := mux.New(b, mux.Config{})
		go r.Run()
		go d.Run()
		defer finish(r, d)
		for i := range 5000 {
			if _, err := d.Invalidate(frame.Invalidate{Epoch: 5, Seq: uint64(i), URIs: []string{"/a"}}); err != nil {
				t.Fatalf("write %d: %v", i, err)
			}
			if i%100 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
		time.Sleep(time.Second)
		if r.Err() != nil || n != 5000 {
			t.Errorf("%d came, session %v, want 5000 and a session that lives", n, r.Err())
		}
	})
}

func TestAskEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := slowPipe(time.Second)
		r, d := mux.New(a, mux.Config{Relay: true}), mux.New(b, mux.Config{})
		go r.Run()
		go d.Run()
		ctx, cancel := context.WithTimeout(bg, 100*time.Millisecond)
		defer cancel()
		if _, err := r.Ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ask = %v, want the end of its context", err)
		}
		time.AfterFunc(100*time.Millisecond, func() { d.Close(1000, "") })
		if _, err := r.Ask(bg); err == nil {
			t.Error("Ask on a session that ended succeeded")
		}
		finish(r, d)
		if _, err := d.Invalidate(frame.Invalidate{Epoch: 1}); err == nil {
			t.Error("Invalidate on a session that ended succeeded")
		}
		time.Sleep(time.Second) // what is still on its way
	})
}
