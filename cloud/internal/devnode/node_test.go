package devnode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/directory"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

var dev = tether.NewDeviceID([]byte("dev"))

// memory is a Store in memory.
type memory struct {
	mu      sync.Mutex
	keys    map[tether.DeviceID][]byte
	state   map[tether.DeviceID]string // "online" or "offline"
	at      map[tether.DeviceID]time.Time
	names   map[tether.DeviceID]string
	events  []frame.Notify
	full    error
	enrolls error

	generations map[tether.DeviceID]uint32
}

func newMemory() *memory {
	return &memory{keys: map[tether.DeviceID][]byte{}, state: map[tether.DeviceID]string{}, at: map[tether.DeviceID]time.Time{}, names: map[tether.DeviceID]string{}, generations: map[tether.DeviceID]uint32{}}
}

func (m *memory) Enrol(_ context.Context, id tether.DeviceID, public []byte, generation uint32) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.enrolls != nil {
		return nil, false, m.enrolls
	}
	if k, ok := m.keys[id]; ok {
		return k, false, nil
	}
	m.keys[id], m.generations[id] = public, generation
	return public, true, nil
}

func (m *memory) SetGeneration(_ context.Context, id tether.DeviceID, generation uint32) (uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.generations[id]
	m.generations[id] = max(before, generation)
	return before, nil
}

func (m *memory) Key(id tether.DeviceID) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys[id], nil
}

func (m *memory) SetKey(_ context.Context, id tether.DeviceID, public []byte, generation uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.keys[id]; !ok {
		m.generations[id] = generation
	}
	m.keys[id] = public
	return nil
}

func (m *memory) Describe(id tether.DeviceID, name string, _ []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names[id] = name
	return nil
}

func (m *memory) set(id tether.DeviceID, state string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state[id], m.at[id] = state, at
}

func (m *memory) Online(id tether.DeviceID, at time.Time)  { m.set(id, "online", at) }
func (m *memory) Offline(id tether.DeviceID, at time.Time) { m.set(id, "offline", at) }

func (m *memory) LastEvent(tether.DeviceID) (tether.EventID, error) { return tether.EventID{}, nil }

func (m *memory) Append(_ tether.DeviceID, n frame.Notify, c Acker) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full != nil {
		return m.full
	}
	n.Payload = bytes.Clone(n.Payload)
	m.events = append(m.events, n)
	c.Stored(tether.EventID{Epoch: n.Epoch, Seq: n.Seq}, 1)
	return nil
}

// list is a List that a test changes.
type list struct {
	mu      sync.Mutex
	keys    map[tether.DeviceID][]byte
	revoked map[tether.DeviceID]bool
	version uint64
}

func newList() *list { return &list{} }

func (l *list) Key(id tether.DeviceID) ([sha256.Size]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.keys[id]
	return sha256.Sum256(k), ok
}

func (l *list) Revoked(id tether.DeviceID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revoked[id]
}

func (l *list) Version() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version
}

func (l *list) set(m map[tether.DeviceID][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys = m
	l.version++
}

func (l *list) revoke(ids ...tether.DeviceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = map[tether.DeviceID]bool{}
	for _, id := range ids {
		l.revoked[id] = true
	}
	l.version++
}

func newNode(edit func(*Config)) (*Node, *memory, *list) {
	store, l := newMemory(), newList()
	cfg := Config{Name: "n", Names: []string{"relay.example"}, Store: store, Directory: directory.NewMemory(), List: l, FirstUse: true}
	if edit != nil {
		edit(&cfg)
	}
	return New(cfg), store, l
}

// wire is one end of a carrier in memory; like a socket it takes some messages ahead.
type wire struct {
	in, out chan []byte
	closed  chan struct{} // of both ends
	once    *sync.Once
	mu      sync.Mutex
	mute    bool // what is written is lost
	code    int
}

func newWire() (a, b *wire) {
	x, y, closed, once := make(chan []byte, 1000), make(chan []byte, 1000), make(chan struct{}), &sync.Once{}
	return &wire{in: x, out: y, closed: closed, once: once}, &wire{in: y, out: x, closed: closed, once: once}
}

func (w *wire) Read(f func([]byte) error) error {
	select {
	case m := <-w.in:
		return f(m)
	case <-w.closed:
		select { // what was sent before the end arrives
		case m := <-w.in:
			return f(m)
		default:
			return io.EOF
		}
	}
}

func (w *wire) Write(m []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mute {
		return nil
	}
	select {
	case w.out <- bytes.Clone(m):
		return nil
	case <-w.closed:
		return io.ErrClosedPipe
	}
}

func (w *wire) Close(code int, _ string) error {
	w.mu.Lock()
	if w.code == 0 {
		w.code = code
	}
	w.mu.Unlock()
	w.once.Do(func() { close(w.closed) })
	return nil
}

// end is a device's end of a tether in memory.
type end struct {
	*mux.Session
	wire *wire
	away chan frame.GoAway
	acks chan tether.EventID
}

// join opens a tether of a device and runs both ends.
func join(n *Node, id tether.DeviceID, key string, h http.Handler) *end {
	return joinProven(n, id, keyHash([]byte(key)), lifetime{}, h)
}

func joinProven(n *Node, id tether.DeviceID, key [16]byte, life lifetime, h http.Handler) *end {
	a, b := newWire()
	relay := mux.New(a, mux.Config{Relay: true, SendWindow: mux.DeviceWindow, RecvWindow: mux.MinWindow, Streams: 4})
	e := &end{wire: b, away: make(chan frame.GoAway, 4), acks: make(chan tether.EventID, 100)}
	server := exchange.Server{Handler: h}
	e.Session = mux.New(b, mux.Config{
		SendWindow: mux.MinWindow, RecvWindow: mux.DeviceWindow, Streams: 4, Keepalive: n.cfg.Keepalive, Accept: server.Serve,
		Handlers: mux.Handlers{OnGoAway: func(g frame.GoAway) { e.away <- g }, OnAck: func(id tether.EventID) { e.acks <- id }},
	})
	relay.SetHandlers(n.open(relay, id, key, life, false, []byte(`{"name":"Garden"}`)))
	go relay.Run()
	go e.Run()
	return e
}

func ok(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }

func get(n *Node, path string) (*httptest.ResponseRecorder, error) {
	w := httptest.NewRecorder()
	return w, n.Forward(w, httptest.NewRequest("GET", path, nil), dev, exchange.Options{Path: path, Client: "192.0.2.1:1"})
}

// bubble runs a test with a swept node in a bubble of synthetic time.
func bubble(t *testing.T, edit func(*Config), f func(t *testing.T, n *Node, store *memory, l *list)) {
	synctest.Test(t, func(t *testing.T) {
		n, store, l := newNode(edit)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		f(t, n, store, l)
		cancel()
		<-done
		n.Close()
		time.Sleep(time.Minute) // whatever closes late
		synctest.Wait()
		if len(n.conns) != 0 {
			t.Errorf("%d tethers are left", len(n.conns))
		}
	})
}

func TestOnlineIsTheTruth(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, store *memory, _ *list) {
		e := join(n, dev, "k", http.HandlerFunc(ok))
		time.Sleep(10 * time.Minute) // the device pings by itself
		if last, online := n.Seen(dev); !online || time.Since(last) > 30*time.Second {
			t.Errorf("after ten quiet minutes: online %v, last heard %v ago", online, time.Since(last))
		}
		e.wire.mu.Lock()
		e.wire.mute = true // half-open: nothing comes any more, nothing says so
		e.wire.mu.Unlock()
		last, _ := n.Seen(dev)
		time.Sleep(time.Until(last.Add(45 * time.Second)))
		synctest.Wait()
		if _, online := n.Seen(dev); online {
			t.Error("45 s after its last byte the device is still called online")
		}
		if store.state[dev] != "offline" || !store.at[dev].Equal(last) {
			t.Errorf("store says %s since %v, want offline since %v", store.state[dev], store.at[dev], last)
		}
		if s := n.Stats(); s.Silent != 1 || s.Online != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}

// Where a device is on its LAN is known while its newest tether is open, and no longer.
func TestLAN(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		want := func(when, lan string) {
			t.Helper()
			synctest.Wait()
			if got := n.LAN(dev); got != lan {
				t.Errorf("%s: %q, want %q", when, got, lan)
			}
		}
		tell := func(e *end, lan string) {
			t.Helper()
			if err := e.Locate(lan); err != nil {
				t.Fatal(err)
			}
		}
		want("before it came", "")
		e := join(n, dev, "k", http.HandlerFunc(ok))
		want("not told", "")
		tell(e, "https://10.0.0.7/")
		want("told", "https://10.0.0.7/")
		tell(e, "https://10.0.0.8/")
		want("moved", "https://10.0.0.8/")
		tell(e, "")
		want("taken back", "")
		tell(e, "https://10.0.0.8/")
		newer := join(n, dev, "k", http.HandlerFunc(ok))
		want("a newer tether that told nothing", "")
		tell(newer, "https://10.0.0.9/")
		newer.GoAway(frame.GoAway{})
		want("after its goodbye", "")
		newer.Close(closeGoing, "bye")
		want("offline", "")
	})
}

// A device whose own PINGs are late (or a clock that jumped) is asked, not ended.
func TestSilentDeviceIsAskedFirst(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		a, b := newWire()
		relay := mux.New(a, mux.Config{Relay: true})
		device := mux.New(b, mux.Config{}) // no keepalive of its own
		relay.SetHandlers(n.open(relay, dev, keyHash(nil), lifetime{}, false, nil))
		go relay.Run()
		go device.Run()
		time.Sleep(10 * time.Minute)
		if _, online := n.Seen(dev); !online {
			t.Error("a device that answers PINGs was ended")
		}
	})
}

func TestNewestTakesOver(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, store *memory, _ *list) {
		release := make(chan struct{})
		old := join(n, dev, "k", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-release; io.WriteString(w, "old") }))
		var first *httptest.ResponseRecorder
		var wg sync.WaitGroup
		wg.Go(func() { first, _ = get(n, "/slow") })
		synctest.Wait()
		join(n, dev, "k", http.HandlerFunc(ok))
		synctest.Wait()
		if g := <-old.away; g.Code != frame.GoAwayReplaced || g.RetryAfter != 0 {
			t.Errorf("the older connection is told %+v, want replaced", g)
		}
		if w, err := get(n, "/new"); err != nil || w.Body.String() != "/new" {
			t.Errorf("a new request: %q, %v, want it on the newer connection", w.Body, err)
		}
		close(release)
		wg.Wait()
		if first.Body.String() != "old" {
			t.Errorf("the running request got %q, want its answer", first.Body)
		}
		<-old.Done()
		synctest.Wait()
		if _, online := n.Seen(dev); !online || store.state[dev] != "online" {
			t.Errorf("the goodbye of the older connection made the device %s", store.state[dev])
		}
		if old.wire.code != 0 && old.wire.code != closeGoing {
			t.Errorf("close code %d, want 1001", old.wire.code)
		}
	})
}

func TestFlappingIsLimited(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		e := join(n, dev, "k", http.HandlerFunc(ok))
		for i := 1; i <= 5; i++ {
			time.Sleep(time.Second)
			next := join(n, dev, "k", http.HandlerFunc(ok))
			synctest.Wait()
			g := <-e.away
			if wait := time.Duration(g.RetryAfter) * time.Millisecond; (wait >= 30*time.Second) != (i >= flapLimit) {
				t.Errorf("replacement %d: told to wait %v", i, wait)
			}
			e = next
		}
		time.Sleep(2 * flapWindow)
		next := join(n, dev, "k", http.HandlerFunc(ok))
		synctest.Wait()
		if g := <-e.away; g.RetryAfter != 0 {
			t.Errorf("after a quiet time the loser is told to wait %d ms", g.RetryAfter)
		}
		_ = next
	})
}

func TestNotificationsAreAcknowledgedOnceStored(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, store *memory, _ *list) {
		e := join(n, dev, "k", nil)
		for seq := uint64(1); seq <= 3; seq++ {
			if err := e.Notify(frame.Notify{Epoch: 7, Seq: seq, Topic: "t", Payload: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		var last tether.EventID
		for len(e.acks) > 0 {
			last = <-e.acks
		}
		if (last != tether.EventID{Epoch: 7, Seq: 3}) || len(store.events) != 3 {
			t.Errorf("acknowledged %v, stored %d, want 7-3 and 3", last, len(store.events))
		}
		store.mu.Lock()
		store.full = errors.New("full")
		store.mu.Unlock()
		e.Notify(frame.Notify{Epoch: 7, Seq: 4})
		synctest.Wait()
		if g := <-e.away; g.Code != frame.GoAwayOverload || g.RetryAfter == 0 {
			t.Errorf("a full store: the device is told %+v, want overload", g)
		}
		if len(e.acks) != 0 {
			t.Error("an event that was not stored is acknowledged")
		}
	})
}

func TestChangedListEndsConnections(t *testing.T) {
	other := tether.NewDeviceID([]byte("other"))
	bubble(t, func(c *Config) { c.FirstUse = false }, func(t *testing.T, n *Node, _ *memory, l *list) {
		l.set(map[tether.DeviceID][]byte{dev: []byte("k"), other: []byte("k")})
		a, b := join(n, dev, "k", nil), join(n, other, "k", nil)
		time.Sleep(time.Minute)
		l.set(map[tether.DeviceID][]byte{other: []byte("k2")})
		time.Sleep(2 * sweepEvery)
		if g := <-a.away; g.Code != frame.GoAwayUnknown || g.RetryAfter != 300000 {
			t.Errorf("a device off the list is told %+v, want unknown", g)
		}
		if g := <-b.away; g.Code != frame.GoAwayAuth {
			t.Errorf("a device with another key is told %+v, want auth failed", g)
		}
		if n.Stats().Online != 0 {
			t.Error("they are still online")
		}
	})
}

func TestDrain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		release := make(chan struct{})
		busy := join(n, dev, "k", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-release; io.WriteString(w, "whole") }))
		var idle []*end
		for i := range 50 {
			idle = append(idle, join(n, tether.NewDeviceID([]byte{byte(i)}), "k", nil))
		}
		var w *httptest.ResponseRecorder
		var err error
		var wg sync.WaitGroup
		wg.Go(func() { w, err = get(n, "/slow") })
		synctest.Wait()
		began := time.Now()
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			n.Drain(ctx, 2*time.Second)
		})
		time.Sleep(time.Second)
		early := 0
		for _, e := range idle {
			early += len(e.away)
		}
		if early == 0 || early == len(idle) {
			t.Errorf("after half of the time %d of %d devices were told, want some", early, len(idle))
		}
		time.Sleep(5 * time.Second)
		for _, e := range append(idle, busy) {
			if g := <-e.away; g.Code != frame.GoAwayDrain || g.Spread != 0 {
				t.Fatalf("told %+v, want drain, and no wait for so few devices", g)
			}
		}
		if _, err := get(n, "/late"); err == nil {
			t.Error("a draining relay took a new request")
		}
		if got := n.Stats().Online; got != 1 {
			t.Errorf("%d tethers while one request runs, want 1", got)
		}
		close(release)
		wg.Wait()
		if err != nil || w.Body.String() != "whole" {
			t.Errorf("the running request: %q, %v", w.Body, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the drain went on for %v after the last request", took)
		}
		rec := httptest.NewRecorder()
		n.ServeHTTP(rec, httptest.NewRequest("GET", tether.TetherPath, nil))
		if rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
			t.Errorf("a new tether: %d, want 503 with Retry-After", rec.Code)
		}
	})
}

// A device whose handshake had begun when the drain does is told like all others, and one
// that never ends its handshake holds nobody up.
func TestDrainTellsWhoComesIn(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		n.shaking.Add(2)
		ended := make(chan struct{})
		began := time.Now()
		go func() {
			defer close(ended)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			n.Drain(ctx, time.Second)
		}()
		time.Sleep(100 * time.Millisecond)
		late := join(n, dev, "k", nil)
		n.shaking.Add(-1)
		<-ended
		if g := <-late.away; g.Code != frame.GoAwayDrain {
			t.Errorf("told %+v, want drain", g)
		}
		if took := time.Since(began); took > settleTime+2*time.Second {
			t.Errorf("drain took %v, want the wait for handshakes to end after %v", took, settleTime)
		}
	})
}

func TestDrainEndsInTime(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		join(n, dev, "k", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		var err error
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() { recover() }()
			_, err = get(n, "/hangs")
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		began := time.Now()
		n.Drain(ctx, time.Second)
		wg.Wait()
		if took := time.Since(began); took > 35*time.Second || err == nil {
			t.Errorf("drain took %v, the hanging request got %v, want an end after 30 s", took, err)
		}
	})
}

func TestForward(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		if _, err := get(n, "/"); !errors.Is(err, ErrOffline) {
			t.Errorf("no tether: %v, want ErrOffline", err)
		}
		e := join(n, dev, "k", http.HandlerFunc(ok))
		if w, err := get(n, "/a/b"); err != nil || w.Body.String() != "/a/b" {
			t.Errorf("%q, %v", w.Body, err)
		}
		e.GoAway(frame.GoAway{Code: frame.GoAwayDrain}) // the device stops
		synctest.Wait()
		if _, err := get(n, "/"); !errors.Is(err, ErrOffline) {
			t.Errorf("a leaving device: %v, want ErrOffline", err)
		}
		if _, online := n.Seen(dev); online {
			t.Error("a leaving device is called online")
		}
		join(n, dev, "k", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		w := httptest.NewRecorder()
		err := n.Forward(w, httptest.NewRequest("GET", "/", nil), dev, exchange.Options{Path: "/", HeadTimeout: 3 * time.Second})
		if xe, isX := errors.AsType[*exchange.Error](err); !isX || xe.Status != 504 {
			t.Errorf("a service that does not answer: %v, want 504", err)
		}
	})
}

func TestProbe(t *testing.T) {
	bubble(t, nil, func(t *testing.T, n *Node, _ *memory, _ *list) {
		probe := func() (Probe, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			return n.Probe(ctx, dev)
		}
		if _, err := probe(); !errors.Is(err, ErrOffline) {
			t.Errorf("no tether: %v, want ErrOffline", err)
		}
		for _, c := range []struct {
			name string
			h    http.HandlerFunc
			want OriginState
			code int
		}{
			{"answers", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }, OriginOK, 200},
			{"needs a password", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) }, OriginOK, 401},
			{"never stops", func(w http.ResponseWriter, r *http.Request) {
				for r.Context().Err() == nil {
					w.Write(make([]byte, 4096))
				}
			}, OriginOK, 200},
			{"broken", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, OriginError, 500},
			{"down", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(502) }, OriginUnreachable, 502},
			{"hangs", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, OriginTimeout, 0},
		} {
			e := join(n, dev, "k", c.h)
			p, err := probe()
			if err != nil || p.State != c.want || p.Status != c.code {
				t.Errorf("%s: %+v, %v, want %s %d", c.name, p, err, c.want, c.code)
			}
			e.Close(1000, "next")
			synctest.Wait()
		}
		e := join(n, dev, "k", nil)
		e.wire.mu.Lock()
		e.wire.mute = true
		e.wire.mu.Unlock()
		if _, err := probe(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no PONG: %v, want the deadline", err)
		}
	})
}

func TestVerify(t *testing.T) {
	for _, c := range []struct {
		name     string
		firstUse bool
		listed   string // key on the list; "": not on it
		kept     string // key of an earlier connection
		enrolls  error
		key      string
		want     error
		counts   func(Stats) uint64
	}{
		{"first use", true, "", "", nil, "a", nil, nil},
		{"same key again", true, "", "a", nil, "a", nil, nil},
		{"foreign key", true, "", "a", nil, "b", session.ErrKey, func(s Stats) uint64 { return s.RefusedAuth }},
		{"list only, not on it", false, "", "", nil, "a", session.ErrUnknown, func(s Stats) uint64 { return s.RefusedUnknown }},
		{"list only, known from an earlier time", false, "", "a", nil, "a", session.ErrUnknown, func(s Stats) uint64 { return s.RefusedUnknown }},
		{"list only, on it", false, "a", "", nil, "a", nil, nil},
		{"list only, foreign key", false, "a", "", nil, "b", session.ErrKey, func(s Stats) uint64 { return s.RefusedAuth }},
		{"the list has a new key", true, "b", "a", nil, "b", nil, nil},
		{"and the old one is not good any more", true, "b", "a", nil, "a", session.ErrKey, func(s Stats) uint64 { return s.RefusedAuth }},
		{"store is full", true, "", "", errors.New("full"), "a", session.ErrOverload, func(s Stats) uint64 { return s.RefusedFull }},
	} {
		n, store, l := newNode(func(cfg *Config) { cfg.FirstUse = c.firstUse })
		store.enrolls = c.enrolls
		if c.kept != "" {
			store.keys[dev] = []byte(c.kept)
		}
		if c.listed != "" {
			l.set(map[tether.DeviceID][]byte{dev: []byte(c.listed)})
		}
		err := n.verify(t.Context(), &session.Peer{ID: dev, KeyID: "k", PublicDER: []byte(c.key), RemoteAddr: "192.0.2.1:1"})
		if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if c.counts != nil && c.counts(n.Stats()) != 1 {
			t.Errorf("%s: not counted: %+v", c.name, n.Stats())
		}
		if c.want == nil && string(store.keys[dev]) != c.key {
			t.Errorf("%s: the store keeps %q, want %q", c.name, store.keys[dev], c.key)
		}
	}
}

func TestMaxDevices(t *testing.T) {
	bubble(t, func(c *Config) { c.MaxDevices = 1 }, func(t *testing.T, n *Node, _ *memory, _ *list) {
		join(n, dev, "k", nil)
		p := &session.Peer{ID: tether.NewDeviceID([]byte("other")), PublicDER: []byte("k")}
		if err := n.verify(t.Context(), p); !errors.Is(err, session.ErrOverload) {
			t.Errorf("one device too many: %v, want ErrOverload", err)
		}
		p.ID = dev // comes back before its old connection is gone
		if err := n.verify(t.Context(), p); err != nil {
			t.Errorf("the same device again: %v, want it taken", err)
		}
	})
}

func TestGate(t *testing.T) {
	g := gate{limit: 4}
	for i := range 3 {
		if !g.enter("192.0.2.1:1") {
			t.Fatalf("handshake %d was refused", i+1)
		}
	}
	if g.enter("192.0.2.1:2") {
		t.Error("one address may hold all places")
	}
	if !g.enter("192.0.2.2:1") {
		t.Error("another address is shut out")
	}
	if g.enter("192.0.2.3:1") {
		t.Error("more handshakes than the limit")
	}
	g.leave("192.0.2.1:1")
	if !g.enter("192.0.2.3:1") || g.busy() != 4 {
		t.Error("a place that was left is not given again")
	}
}

func TestThrottledAddress(t *testing.T) {
	n, _, _ := newNode(nil)
	for range badProofs {
		n.failed("192.0.2.1:1")
	}
	for i, addr := range []string{"192.0.2.2:5", "192.0.2.1:5"} {
		want := uint64(i) // only the second is the one that failed
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("GET", tether.TetherPath, nil)
		r.RemoteAddr, r.Host = addr, "relay.example"
		n.ServeHTTP(rec, r)
		if got := n.Stats().RefusedThrottled; got != want {
			t.Errorf("%s: %d refused by address, want %d (status %d)", addr, got, want, rec.Code)
		}
	}
}

// §4.8: devices x 2.4 ms / cores, at least 10 s.
func TestSpread(t *testing.T) {
	for _, c := range []struct {
		devices, cores int
		want           time.Duration
	}{{0, 1, 10 * time.Second}, {1000, 2, 10 * time.Second}, {10000, 2, 12 * time.Second}, {10000, 1, 24 * time.Second}, {1 << 30, 1, 65535 * time.Second}} {
		if got := spread(c.devices, c.cores); got != c.want {
			t.Errorf("%d devices, %d cores: %v, want %v", c.devices, c.cores, got, c.want)
		}
	}
}
