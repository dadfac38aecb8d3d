package mux_test

import (
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

// A home uplink: 20 Mbit/s, 37 ms there and back, a queue without end, which no TCP below
// keeps short. Small answers beside downloads must not wait long, and the link must still
// be used.
func TestSmallBesideBulk(t *testing.T) {
	for _, c := range []struct {
		bulks, rate int // bytes a second
		times       time.Duration
	}{{1, 20_000_000 / 8, 3}, {4, 20_000_000 / 8, 3}, {1, 1_000_000 / 8, 3}, {3, 1_000_000 / 8, 3}, {1, 200_000_000 / 8, 3}} {
		synctest.Test(t, func(t *testing.T) {
			const oneWay = 18500 * time.Microsecond
			bulks, rate := c.bulks, c.rate
			a, b := tethertest.NewPipe(100_000)
			a.Latency, b.Latency, b.Rate = oneWay, oneWay, rate
			relay, device := tethertest.PairOn(a, b, mux.Config{}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
				h, _ := st.Encode(&frame.Response{Status: 200})
				if r.Path == "/small" {
					st.Respond(h, make([]byte, 4096), true)
					return
				}
				st.Respond(h, nil, false)
				for p := make([]byte, 32<<10); ; {
					if _, err := st.Write(p); err != nil {
						return
					}
				}
			}})
			got := make(chan int, bulks)
			var streams []*mux.Stream
			for range bulks {
				st, err := relay.Open(bg, request("/bulk", true))
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, st)
				go func() {
					n, _ := io.Copy(io.Discard, struct{ io.Reader }{st})
					got <- int(n)
				}()
			}
			start := time.Now()
			time.Sleep(3 * time.Second)
			var took []time.Duration
			for range 200 {
				from := time.Now()
				st, err := relay.Open(bg, request("/small", true))
				if err != nil {
					t.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, struct{ io.Reader }{st}); n != 4096 || err != nil {
					t.Fatal(n, err)
				}
				st.Reset(frame.ResetNone)
				took = append(took, time.Since(from))
				if time.Since(from) > 200*time.Millisecond {
				}
				time.Sleep(20 * time.Millisecond)
			}
			span := time.Since(start)
			for _, st := range streams {
				st.Reset(frame.ResetCancel)
			}
			total := 0
			for range bulks {
				total += <-got
			}
			slices.Sort(took)
			p99, use := took[len(took)*99/100], float64(total)/(float64(rate)*span.Seconds())
			t.Logf("%d downloads at %d bytes/s: GET p50 %v, p99 %v, link use %.2f", bulks, rate, took[len(took)/2], p99, use)
			if alone := 2*oneWay + 4096*time.Second/time.Duration(rate); p99 > c.times*alone {
				t.Errorf("p99 beside %d downloads = %v, alone it were %v", bulks, p99, alone)
			}
			if use < 0.7 {
				t.Errorf("%d downloads use %.2f of the link", bulks, use)
			}
			finish(relay, device)
			time.Sleep(time.Second)
		})
	}
}
