package uplink

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

func (s *fakeSession) heard() []frame.Invalidate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]frame.Invalidate(nil), s.invalidated...)
}

func (s *fakeSession) pong() { s.mu.Lock(); defer s.mu.Unlock(); s.ponged = time.Now() }

func (s *fakeSession) confirm() {
	list := s.heard()
	v := list[len(list)-1]
	s.hooks.OnInvalidated(frame.Invalidated{Epoch: v.Epoch, Seq: v.Seq})
}

// took is how long the answer to a write is held back.
func took(t *testing.T, u *Uplink, uris ...string) time.Duration {
	t.Helper()
	began := time.Now()
	if err := u.Invalidate(context.Background(), uris); err != nil {
		t.Errorf("Invalidate = %v", err)
	}
	return time.Since(began)
}

func expect(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got != want {
		t.Errorf("%s: the answer was held back for %v, want %v", what, got, want)
	}
}

func TestWritesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		u := start(t, r, nil)
		synctest.Wait()
		s := r.session(0)
		s.confirm()
		expect(t, "no PING yet", took(t, u, "/a?x", "/b"), 0)
		expect(t, "no PING yet", took(t, u), 0)
		epoch := u.ledger.epoch
		want := []frame.Invalidate{{Epoch: epoch}, {Epoch: epoch, Seq: 1, URIs: []string{"/a?x", "/b"}}, {Epoch: epoch, Seq: 2, Flags: frame.FlagAll}}
		if got := s.heard(); epoch == 0 || !reflect.DeepEqual(got, want) {
			t.Errorf("the relay heard %+v, want %+v", got, want)
		}

		s.pong()
		time.AfterFunc(time.Second, s.confirm)
		expect(t, "under lease, confirmed after 1 s", took(t, u), time.Second)
		expect(t, "under lease, never confirmed", took(t, u), 3*time.Second)
		expect(t, "the lease is over", took(t, u), 0)

		s.pong()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := u.Invalidate(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a context that ends: %v, want its error", err)
		}
		// A confirmation of something else is none.
		s.hooks.OnInvalidated(frame.Invalidated{Epoch: epoch, Seq: u.ledger.seq})
		s.hooks.OnInvalidated(frame.Invalidated{Epoch: epoch + 2, Seq: 1 << 40})
		expect(t, "another epoch confirmed", took(t, u), 3*time.Second)

		// What came over the tether goes back over it, behind the INVALIDATE.
		s.pong()
		took := map[string]time.Duration{}
		h := s.hooks.Through(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			began := time.Now()
			if err := u.Invalidate(context.WithoutCancel(r.Context()), []string{"/"}); err != nil {
				t.Error(err)
			}
			took[r.Method] = time.Since(began)
		}))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/", nil))
		if got, ok := took["PUT"]; !ok || got != 0 {
			t.Errorf("a write over the tether was held back for %v (%v), want not at all", got, ok)
		}
	})
}

func TestLeasesOfLostSessions(t *testing.T) {
	for _, tc := range []struct {
		name  string
		relay []string // hosts
		away  bool     // the relay said GOAWAY
		again bool     // the device comes back and the relay confirms, after 10 ms
		want  time.Duration
	}{
		{"the relay may not know", []string{"192.0.2.1"}, false, false, leaseWait},
		{"the relay sent us away", []string{"192.0.2.1"}, true, false, 0},
		{"back at the same relay", []string{"192.0.2.1"}, false, true, 10 * time.Millisecond},
		{"back at another relay", []string{"192.0.2.1", "192.0.2.2"}, false, true, leaseWait},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &fakeRelay{}
				r.answer = func(n int) (frame.Accept, error) {
					if n > 0 && !tc.again {
						return frame.Accept{}, errDown
					}
					return frame.Accept{}, nil
				}
				u := start(t, r, func(c *Config) {
					c.Relays = nil
					for _, h := range tc.relay {
						c.Relays = append(c.Relays, &url.URL{Scheme: "wss", Host: h})
					}
					c.Random = func(max time.Duration) time.Duration { return min(max, time.Millisecond) * min(1, max/1001) }
				})
				time.Sleep(2 * leaseWait)
				s := r.session(0)
				s.confirm()
				s.pong()
				if tc.away {
					s.hooks.OnGoAway(frame.GoAway{})
				}
				s.lose(errDown)
				if tc.again {
					go func() {
						for r.count() < 2 {
							time.Sleep(time.Millisecond)
						}
						time.Sleep(9 * time.Millisecond)
						r.session(1).confirm()
					}()
				}
				// Two sleepers that wake at one instant do so in any order, which makes a poll more or less.
				if got := took(t, u, "/"); got < tc.want || got > tc.want+2*time.Millisecond {
					t.Errorf("%s: the answer was held back for %v, want %v", tc.name, got, tc.want)
				}
				if !tc.again {
					return
				}
				// The write was made while there was no session, or is told on the new one.
				synctest.Wait()
				if list := r.session(1).heard(); list[len(list)-1].Seq != 1 {
					t.Errorf("the new session heard %+v, want of write 1", list)
				}
			})
		})
	}
}

// What a daemon before this one has answered is not known.
func TestFirstWritesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := start(t, &fakeRelay{answer: down}, nil)
		time.Sleep(time.Second)
		expect(t, "1 s after the start", took(t, u, "/"), leaseWait-time.Second)
		expect(t, "later", took(t, u, "/"), 0)
	})
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		u := start(t, r, nil)
		synctest.Wait()
		time.AfterFunc(time.Second, func() { r.session(0).confirm() })
		expect(t, "the relay confirms after 1 s", took(t, u, "/"), time.Second)
		expect(t, "and then", took(t, u, "/"), 0)
	})
}

// Sessions that are over are forgotten, also when nobody writes.
func TestLinksDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		u := start(t, r, nil)
		for i := range 20 {
			time.Sleep(5 * time.Minute)
			r.session(i).lose(errDown)
		}
		time.Sleep(5 * time.Minute)
		u.ledger.mu.Lock()
		defer u.ledger.mu.Unlock()
		if n := len(u.ledger.links); n != 1 {
			t.Errorf("%d sessions are kept, want 1", n)
		}
	})
}
