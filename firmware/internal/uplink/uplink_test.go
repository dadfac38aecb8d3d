package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// fakeSession is a session whose far end the test plays.
type fakeSession struct {
	hooks  Hooks
	opened time.Time
	done   chan struct{}

	mu          sync.Mutex
	err         error
	streams     int
	notified    []frame.Notify
	described   []string
	located     []string
	goAways     []frame.GoAway
	closed      string
	ponged      time.Time
	invalidated []frame.Invalidate
}

func (s *fakeSession) Done() <-chan struct{} { return s.done }
func (s *fakeSession) Err() error            { s.mu.Lock(); defer s.mu.Unlock(); return s.err }
func (s *fakeSession) Notify(n frame.Notify) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != "" {
		return errors.New("closed")
	}
	if len(n.Payload) > frame.MaxNotify {
		return frame.ErrMalformed
	}
	s.notified = append(s.notified, n)
	return nil
}
func (s *fakeSession) Describe(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.described = append(s.described, string(b))
	return nil
}
func (s *fakeSession) Locate(lan string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.located = append(s.located, lan)
	return nil
}
func (s *fakeSession) Invalidate(v frame.Invalidate) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != "" {
		return s.ponged, errors.New("closed")
	}
	s.invalidated = append(s.invalidated, v)
	return s.ponged, nil
}
func (s *fakeSession) places() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.located)
}
func (s *fakeSession) Drain(ctx context.Context, g frame.GoAway) {
	s.mu.Lock()
	s.goAways = append(s.goAways, g)
	s.mu.Unlock()
	for s.busy() && ctx.Err() == nil {
		time.Sleep(time.Second / 10)
	}
	s.Close(closeGoing, g.Text)
}
func (s *fakeSession) Close(_ int, reason string) { s.lose(errors.New(reason)) }
func (s *fakeSession) busy() bool                 { s.mu.Lock(); defer s.mu.Unlock(); return s.streams > 0 }
func (s *fakeSession) lose(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == "" {
		s.closed, s.err = err.Error(), err
		close(s.done)
	}
}
func (s *fakeSession) end() string     { s.mu.Lock(); defer s.mu.Unlock(); return s.closed }
func (s *fakeSession) set(streams int) { s.mu.Lock(); defer s.mu.Unlock(); s.streams = streams }
func (s *fakeSession) seqs() (list []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.notified {
		list = append(list, n.Seq)
	}
	return list
}

// fakeRelay answers dials by a script.
type fakeRelay struct {
	mu       sync.Mutex
	dials    []time.Time
	targets  []string
	sessions []*fakeSession
	answer   func(n int) (frame.Accept, error) // n counts dials from 0
}

func (r *fakeRelay) dial(ctx context.Context, u *url.URL, addr string, h Hooks) (Session, frame.Accept, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.dials)
	r.dials = append(r.dials, time.Now())
	r.targets = append(r.targets, u.Host+" "+addr)
	a, err := r.answer(n)
	if err != nil {
		return nil, a, err
	}
	s := &fakeSession{hooks: h, opened: time.Now(), done: make(chan struct{})}
	r.sessions = append(r.sessions, s)
	return s, a, nil
}

func (r *fakeRelay) gaps() (list []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 1; i < len(r.dials); i++ {
		list = append(list, r.dials[i].Sub(r.dials[i-1]))
	}
	return list
}

func (r *fakeRelay) session(i int) *fakeSession {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[i]
}

func (r *fakeRelay) count() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.dials) }

var errDown = errors.New("connection refused")

func down(int) (frame.Accept, error) { return frame.Accept{}, errDown }
func up(int) (frame.Accept, error)   { return frame.Accept{Spread: 20}, nil }

// most makes every random wait its upper bound, so that waits can be told exactly.
func most(max time.Duration) time.Duration {
	if max <= 0 {
		return 0
	}
	if max <= 1000 { // an index to shuffle with
		return max - 1
	}
	return max
}

func start(t *testing.T, r *fakeRelay, change func(*Config)) *Uplink {
	t.Helper()
	cfg := Config{Relays: []*url.URL{{Scheme: "wss", Host: "192.0.2.1"}}, Dial: r.dial, Random: most,
		Proxy: func(*url.URL) (*url.URL, error) { return nil, nil }}
	if change != nil {
		change(&cfg)
	}
	u, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		if err := u.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		close(ended)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return u
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: down}
		u := start(t, r, nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 120, 120}
		for i := range want {
			want[i] *= time.Second
		}
		if got := r.gaps(); !reflect.DeepEqual(got[:len(want)], want) {
			t.Errorf("gaps = %v, want %v", got, want)
		}
		if s := u.State(); s.Connected || s.Attempts != r.count() || s.LastError != errDown.Error() || !s.RetryAt.After(time.Now()) {
			t.Errorf("state = %+v", s)
		}
	})
}

func TestFullJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: down}
		start(t, r, func(c *Config) { c.Random = nil })
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		var sum, lowest, highest time.Duration = 0, time.Hour, 0
		gaps := r.gaps()[8:]
		for _, g := range gaps {
			sum, lowest, highest = sum+g, min(lowest, g), max(highest, g)
		}
		// 1400 draws from [0, 120 s): the mean is within 10 s of 60 but once in 10^20.
		if mean := sum / time.Duration(len(gaps)); mean < 50*time.Second || mean > 70*time.Second || lowest > 10*time.Second || highest >= backoffMax {
			t.Errorf("gaps from %v to %v, mean %v, want 0 to 120 s with mean 60 s", lowest, highest, mean)
		}
	})
}

func TestBackoffResetsOnlyAfterAMinute(t *testing.T) {
	for _, tc := range []struct {
		open time.Duration
		want []time.Duration // the gaps after the session
	}{
		{59 * time.Second, []time.Duration{20 * time.Second, 16 * time.Second, 32 * time.Second}}, // 2^3 < spread, then on
		{61 * time.Second, []time.Duration{20 * time.Second, 1 * time.Second, 2 * time.Second}},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &fakeRelay{}
			r.answer = func(n int) (frame.Accept, error) {
				if n == 3 {
					return frame.Accept{Spread: 20}, nil
				}
				return down(n)
			}
			start(t, r, nil)
			time.Sleep(7 * time.Second) // 1 + 2 + 4
			synctest.Wait()
			time.Sleep(tc.open)
			r.session(0).lose(errors.New("reset by peer"))
			lost := time.Now()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			gaps := r.gaps()
			gaps[3] = r.dials[4].Sub(lost)
			if got := gaps[3:6]; !reflect.DeepEqual(got, tc.want) {
				t.Errorf("open %v: gaps = %v, want %v", tc.open, got, tc.want)
			}
		})
	}
}

func TestServerDirectedWaits(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want time.Duration
	}{
		"503 with Retry-After": {&BusyError{503, 40 * time.Second}, 50 * time.Second},
		"503 without":          {&BusyError{503, 0}, 10 * time.Second},
		"overload":             {&RefusedError{frame.GoAway{Code: frame.GoAwayOverload, RetryAfter: 7000, Spread: 3000}}, 10 * time.Second},
		"auth":                 {&RefusedError{frame.GoAway{Code: frame.GoAwayAuth}}, 360 * time.Second},
		"unknown, longer":      {fmt.Errorf("x: %w", &RefusedError{frame.GoAway{Code: frame.GoAwayUnknown, RetryAfter: 900000}}), 900 * time.Second},
		"a year":               {&RefusedError{frame.GoAway{Code: frame.GoAwayOverload, RetryAfter: 1<<32 - 1}}, maxServerWait},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &fakeRelay{answer: func(int) (frame.Accept, error) { return frame.Accept{}, tc.err }}
				start(t, r, nil)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if got := r.gaps()[0]; got != tc.want {
					t.Errorf("wait = %v, want %v", got, tc.want)
				}
			})
		})
	}
}

func TestDrainOverlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		u := start(t, r, func(c *Config) {
			c.Resolve = func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("192.0.2.9")}, nil
			}
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		first := r.session(0)
		first.set(1) // a download goes on
		first.hooks.OnGoAway(frame.GoAway{Code: frame.GoAwayDrain, RetryAfter: 1000, Spread: 2000, Alternate: "other.example:444"})
		began := time.Now()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if r.count() != 2 {
			t.Fatalf("dials = %d, want 2", r.count())
		}
		if got := r.dials[1].Sub(began); got != 3*time.Second {
			t.Errorf("second dial after %v, want 3s", got)
		}
		if first.end() != "" {
			t.Errorf("the old session was closed (%s) before its requests ended", first.end())
		}
		if r.targets[1] != "other.example:444 192.0.2.9:444" || !u.State().Connected || u.State().Relay != "other.example:444" {
			t.Errorf("state = %+v", u.State())
		}
		// The relay does not end it: we do, in bounded time.
		time.Sleep(drainTimeout)
		synctest.Wait()
		if first.end() != "drained" {
			t.Errorf("old session: %q, want drained", first.end())
		}
		// The alternate was for once.
		r.session(1).lose(errors.New("gone"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.targets[2]; got != "192.0.2.1 192.0.2.1:443" {
			t.Errorf("third dial to %q, want the configured relay", got)
		}
	})
}

func TestReplacedDoesNotFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		start(t, r, nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		r.session(0).hooks.OnGoAway(frame.GoAway{Code: frame.GoAwayReplaced})
		time.Sleep(refusedWait - time.Second)
		synctest.Wait()
		if r.count() != 1 || r.session(0).end() == "" {
			t.Errorf("dials = %d, old session %q: want 1, closed", r.count(), r.session(0).end())
		}
	})
}

// SPEC.md §4.8: a relay that says no wait for a fault of its or ours is not dialled at once.
func TestProtocolErrorBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		start(t, r, nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		r.session(0).hooks.OnGoAway(frame.GoAway{Code: frame.GoAwayProtocol})
		began := time.Now()
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.count() != 2 {
			t.Fatalf("dials = %d, want 2", r.count())
		}
		if got := r.dials[1].Sub(began); got != backoffBase {
			t.Errorf("second dial after %v, want %v", got, backoffBase)
		}
	})
}

func TestAllAddressesOfAllRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: down}
		lookups := 0
		start(t, r, func(c *Config) {
			c.Random = nil
			c.Relays = []*url.URL{{Scheme: "wss", Host: "a.example"}, {Scheme: "wss", Host: "b.example:99"}, {Scheme: "wss", Host: "broken.example"}}
			c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
				lookups++
				if host == "broken.example" {
					return nil, errors.New("no such host")
				}
				return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, nil
			}
		})
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		all := []string{"a.example 192.0.2.1:443", "a.example 192.0.2.2:443", "a.example [2001:db8::1]:443",
			"b.example:99 192.0.2.1:99", "b.example:99 192.0.2.2:99", "b.example:99 [2001:db8::1]:99"}
		orders := map[string]bool{}
		rounds := 0
		for round := range slices.Chunk(r.targets, len(all)) {
			if len(round) < len(all) {
				break
			}
			rounds++
			orders[strings.Join(round, "|")] = true
			slices.Sort(round)
			if !reflect.DeepEqual(round, all) {
				t.Fatalf("a round tried %q, want each of %q once", round, all)
			}
		}
		// 2 relays and 3 addresses each: 72 orders.
		if len(orders) < 10 || lookups < 2*rounds {
			t.Errorf("%d orders in %d rounds with %d lookups, want many, and names resolved anew", len(orders), rounds, lookups)
		}
	})
}

// A relay that dies takes a thousand sessions with it: they come back spread out.
func TestNoHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const devices = 1000
		r := &fakeRelay{answer: up}
		for range devices {
			start(t, r, func(c *Config) { c.Random = nil })
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		lost := time.Now()
		for i := range devices {
			r.session(i).lose(errors.New("relay died"))
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if r.count() != 2*devices {
			t.Fatalf("%d came back within the spread, want %d", r.count()-devices, devices)
		}
		perSecond := make([]int, 20)
		for _, d := range r.dials[devices:] {
			perSecond[d.Sub(lost)/time.Second]++
		}
		if busiest := slices.Max(perSecond); busiest > 2*devices/20 {
			t.Errorf("dials in each second after = %v, want about %d", perSecond, devices/20)
		}
	})
}

func TestProxyLeavesTheNameToIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		start(t, r, func(c *Config) {
			c.Relays = []*url.URL{{Scheme: "wss", Host: "a.example"}}
			c.Proxy = func(u *url.URL) (*url.URL, error) { return url.Parse("http://proxy:3128") }
			c.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("must not be asked") }
		})
		synctest.Wait()
		if got := r.targets; len(got) != 1 || got[0] != "a.example " {
			t.Errorf("dials = %q, want one without an address", got)
		}
	})
}

func TestEnvironmentProxy(t *testing.T) {
	// http.ProxyFromEnvironment reads the environment once per process; localhost is never proxied.
	if p, err := EnvironmentProxy(&url.URL{Scheme: "wss", Host: "localhost:1"}); p != nil || err != nil {
		t.Errorf("proxy for localhost = %v, %v, want none", p, err)
	}
}

// journal is a Journal in memory.
type journal struct {
	mu      sync.Mutex
	events  []Event
	changed chan struct{}
	acked   []tether.EventID
}

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

func (j *journal) post(n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for range n {
		seq := uint64(1)
		if len(j.events) > 0 {
			seq = j.events[len(j.events)-1].ID.Seq + 1
		}
		j.events = append(j.events, Event{ID: tether.EventID{Epoch: 7, Seq: seq}, Time: time.Now(), Topic: "t", Data: []byte("x")})
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *journal) Pending(dst []Event, after tether.EventID, max int) ([]Event, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if e.ID.Seq > after.Seq && max > 0 && !slices.ContainsFunc(j.acked, func(a tether.EventID) bool { return a.Seq >= e.ID.Seq }) {
			dst = append(dst, e)
			max--
		}
	}
	return dst, nil
}

func (j *journal) Ack(id tether.EventID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acked = append(j.acked, id)
	return nil
}

func (j *journal) Changed() <-chan struct{} { j.mu.Lock(); defer j.mu.Unlock(); return j.changed }

func (j *journal) lastAck() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.acked) == 0 {
		return 0
	}
	return j.acked[len(j.acked)-1].Seq
}

func span(from, to uint64) (list []uint64) {
	for i := from; i <= to; i++ {
		list = append(list, i)
	}
	return list
}

func TestNotifications(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		j.post(40)
		r := &fakeRelay{}
		r.answer = func(n int) (frame.Accept, error) {
			if n == 1 { // the relay had stored more than its acknowledgements told
				return frame.Accept{AckEpoch: 7, AckSeq: 30}, nil
			}
			return frame.Accept{}, nil
		}
		u := start(t, r, func(c *Config) { c.Journal = j })
		synctest.Wait()
		s := r.session(0)
		if s.hooks.First.Seq != 1 {
			t.Errorf("first unacknowledged = %v, want 1", s.hooks.First)
		}
		if got := s.seqs(); !reflect.DeepEqual(got, span(1, 32)) {
			t.Fatalf("sent %v, want 1 to 32", got)
		}
		if u.State().InFlight != 32 {
			t.Errorf("in flight = %d, want 32", u.State().InFlight)
		}
		s.hooks.OnAck(tether.EventID{Epoch: 7, Seq: 3})
		synctest.Wait()
		if got := s.seqs(); !reflect.DeepEqual(got, span(1, 35)) || j.lastAck() != 3 {
			t.Fatalf("sent %v, acked %d, want 1 to 35, 3", got, j.lastAck())
		}
		// An acknowledgement of what was never sent is not believed.
		s.hooks.OnAck(tether.EventID{Epoch: 7, Seq: 40})
		synctest.Wait()
		if j.lastAck() != 3 {
			t.Errorf("acked %d, want 3", j.lastAck())
		}
		s.lose(errors.New("cut"))
		time.Sleep(time.Minute)
		synctest.Wait()
		s = r.session(1)
		if got := s.seqs(); s.hooks.First.Seq != 4 || !reflect.DeepEqual(got, span(31, 40)) || j.lastAck() != 30 {
			t.Fatalf("after reconnect: first %v, sent %v, acked %d, want 4, 31 to 40, 30", s.hooks.First, got, j.lastAck())
		}
		j.post(1)
		synctest.Wait()
		if got := s.seqs(); !reflect.DeepEqual(got, span(31, 41)) {
			t.Errorf("sent %v, want 31 to 41", got)
		}
		s.hooks.OnAck(tether.EventID{Epoch: 7, Seq: 41})
		synctest.Wait()
		if j.lastAck() != 41 || u.State().InFlight != 0 {
			t.Errorf("acked %d with %d in flight, want 41 with 0", j.lastAck(), u.State().InFlight)
		}
	})
}

func TestDescribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		info, changed := "", make(chan struct{})
		set := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			info = s
			close(changed)
			changed = make(chan struct{})
		}
		r := &fakeRelay{answer: up}
		start(t, r, func(c *Config) {
			c.Info = func() []byte { mu.Lock(); defer mu.Unlock(); return []byte(info) }
			c.InfoChanged = func() <-chan struct{} { mu.Lock(); defer mu.Unlock(); return changed }
		})
		synctest.Wait()
		for _, text := range []string{`{"name":"a"}`, `{"name":"b"}`} {
			set(text)
			synctest.Wait()
		}
		s := r.session(0)
		if got := strings.Join(s.described, " "); got != `{"name":"a"} {"name":"b"}` || len(s.hooks.Info) != 0 {
			t.Errorf("described %s, hello %s", got, s.hooks.Info)
		}
		s.lose(errors.New("cut"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := string(r.session(1).hooks.Info); got != `{"name":"b"}` {
			t.Errorf("the next hello says %s", got)
		}
	})
}

func TestStopLetsRequestsFinish(t *testing.T) {
	for _, finishes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := &fakeRelay{answer: up}
			u, err := New(Config{Relays: []*url.URL{{Scheme: "wss", Host: "192.0.2.1"}}, Dial: r.dial, Proxy: func(*url.URL) (*url.URL, error) { return nil, nil }, StopWait: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { u.Run(ctx); close(ended) }()
			synctest.Wait()
			s := r.session(0)
			s.set(1)
			began := time.Now()
			cancel()
			want := 10 * time.Second
			if finishes {
				want = 3 * time.Second
				time.Sleep(want)
				s.set(0)
			}
			<-ended
			if took := time.Since(began); took < want || took > want+time.Second {
				t.Errorf("stop took %v, want %v", took, want)
			}
			if len(s.goAways) != 1 || s.closed == "" {
				t.Errorf("goaways %v, closed %q", s.goAways, s.closed)
			}
		})
	}
}

func TestLogsStartChangeAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		r := &fakeRelay{}
		r.answer = func(n int) (frame.Accept, error) {
			switch {
			case n < 20:
				return down(n)
			case n < 40:
				return frame.Accept{}, &BusyError{503, 0}
			}
			return frame.Accept{}, nil
		}
		start(t, r, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if got := strings.Count(log.String(), "\n"); got != 3 {
			t.Errorf("%d lines, want 3 (down, busy, up):\n%s", got, log.String())
		}
		for _, want := range []string{"reason=unreachable", "retry_in=1s", "reason=busy", "attempts=41"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %s:\n%s", want, log.String())
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no relays: no error")
	}
	if _, err := New(Config{Relays: []*url.URL{{}}}); err == nil {
		t.Error("no dialler: no error")
	}
}

func FuzzAlternateURL(f *testing.F) {
	f.Add("relay.example:443")
	f.Add("evil@host/path")
	f.Fuzz(func(t *testing.T, host string) {
		u := alternateURL(&url.URL{Scheme: "wss", Host: "a.example", Path: "/p"}, host)
		if u != nil && (u.Scheme != "wss" || u.Hostname() == "" || u.User != nil || u.Path != "/p" || u.RawQuery != "") {
			t.Errorf("alternate %q gives %v", host, u)
		}
	})
}

func TestLocate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		lan, changed := "", make(chan struct{})
		set := func(s string) {
			mu.Lock()
			lan = s
			close(changed)
			changed = make(chan struct{})
			mu.Unlock()
			synctest.Wait()
		}
		r := &fakeRelay{answer: up}
		start(t, r, func(c *Config) {
			c.LAN = func() string { mu.Lock(); defer mu.Unlock(); return lan }
			c.LANChanged = func() <-chan struct{} { mu.Lock(); defer mu.Unlock(); return changed }
		})
		synctest.Wait()
		if got := r.session(0).places(); len(got) != 0 {
			t.Errorf("without an address the relay is told %q, want nothing", got)
		}
		for _, s := range []string{"https://10.0.0.7/", "https://10.0.0.7/", "", "https://10.0.0.9/"} {
			set(s)
		}
		want := []string{"https://10.0.0.7/", "", "https://10.0.0.9/"}
		if got := r.session(0).places(); !slices.Equal(got, want) {
			t.Errorf("the relay is told %q, want %q", got, want)
		}
		r.session(0).lose(errors.New("cut"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.session(1).places(); !slices.Equal(got, want[2:]) {
			t.Errorf("the next session is told %q, want %q", got, want[2:])
		}
	})
}

func TestLocateOnceWithoutChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &fakeRelay{answer: up}
		start(t, r, func(c *Config) { c.LAN = func() string { return "https://10.0.0.7/" } })
		synctest.Wait()
		if got := r.session(0).places(); !slices.Equal(got, []string{"https://10.0.0.7/"}) {
			t.Errorf("the relay is told %q", got)
		}
	})
}
