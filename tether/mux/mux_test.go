package mux_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

var bg = context.Background()

func request(path string, end bool) *frame.Request {
	r := &frame.Request{Method: "GET", Path: path}
	if end {
		r.Flags = frame.FlagEnd
	}
	return r
}

// respond sends a head and p, and ends.
func respond(st *mux.Stream, p []byte) error {
	h, err := st.Encode(&frame.Response{Status: 200})
	if err != nil {
		return err
	}
	return st.Respond(h, p, true)
}

// finish closes both sessions of a pair and waits for them.
func finish(r, d *mux.Session) {
	r.Close(1000, "test over")
	<-r.Done()
	<-d.Done()
}

// meter is a carrier that keeps the books of credit: what one side may send as the frames
// on the wire say. It reports every byte over it.
type meter struct {
	t      *testing.T
	mu     sync.Mutex
	credit map[string]int64 // by side and stream
	start  map[string]int64
}

func (m *meter) watch(side, other string) func([]byte) {
	return func(msg []byte) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for len(msg) > 0 {
			f, rest, err := frame.Next(msg)
			if err != nil {
				m.t.Errorf("%s wrote %v", side, err)
				return
			}
			msg = rest
			account := func(side string) string {
				k := fmt.Sprint(side, f.Stream)
				if _, ok := m.credit[k]; !ok {
					m.credit[k] = m.start[side]
				}
				return k
			}
			switch f.Type {
			case frame.TypeData, frame.TypeDataEnd:
				k := account(side)
				if m.credit[k] -= int64(len(f.Body)); m.credit[k] < 0 {
					m.t.Errorf("%s is %d bytes over its credit on stream %d", side, -m.credit[k], f.Stream)
				}
			case frame.TypeWindow:
				k := account(other)
				v, _ := frame.ParseUint32(f.Body)
				if m.credit[k] += int64(v); m.credit[k] > mux.MaxWindow {
					m.t.Errorf("%s granted %d bytes on stream %d", side, m.credit[k], f.Stream)
				}
			}
		}
	}
}

// pattern is byte i of what a stream carries: every loss or swap shows.
func pattern(id uint32, i int) byte { return byte(uint32(i)*2654435761>>24) ^ byte(id*7) }

func checkedRead(st *mux.Stream, rnd *rand.Rand, id uint32) (n int, err error) {
	for {
		p := make([]byte, 1+rnd.IntN(20_000))
		m, err := st.Read(p)
		for i := range m {
			if p[i] != pattern(id, n+i) {
				return n, fmt.Errorf("byte %d of stream %d is wrong", n+i, id)
			}
		}
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if rnd.IntN(8) == 0 {
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		}
	}
}

func checkedWrite(st *mux.Stream, rnd *rand.Rand, id uint32, total int) error {
	for n := 0; n < total; {
		size := 1 + rnd.IntN(3)
		if rnd.IntN(2) == 0 {
			size = 1 + rnd.IntN(50_000)
		}
		p := make([]byte, min(size, total-n))
		for i := range p {
			p[i] = pattern(id, n+i)
		}
		n += len(p)
		if n == total {
			return st.End(p)
		}
		if _, err := st.Write(p); err != nil {
			return err
		}
		if rnd.IntN(8) == 0 {
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
		}
	}
	return nil
}

// Whatever the order of reads, writes, pauses and sizes: all bytes arrive, none is sent
// without credit, nobody waits for ever (synctest finds deadlocks), the budget is even at
// the end.
func TestRandomSchedules(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			budget := &mux.Budget{Limit: int64(rnd.IntN(400_000))}
			m := &meter{t: t, credit: map[string]int64{}, start: map[string]int64{"relay": mux.DeviceWindow, "device": mux.MinWindow}}
			a, b := tethertest.NewPipe(1 + rnd.IntN(8))
			a.Wrote, b.Wrote = m.watch("relay", "device"), m.watch("device", "relay")
			a.Latency, b.Latency = time.Duration(rnd.IntN(50))*time.Millisecond, time.Duration(rnd.IntN(50))*time.Millisecond
			sizes := sync.Map{} // what the device got and sent, by stream
			accept := func(st *mux.Stream, r *frame.Request) {
				rnd := rand.New(rand.NewPCG(seed, uint64(st.ID())))
				down := 1 + rnd.IntN(600_000)
				h, err := st.Encode(&frame.Response{Status: 200})
				if err == nil {
					err = st.Respond(h, nil, false)
				}
				if err != nil {
					t.Error(err)
				}
				var wg sync.WaitGroup
				up := 0
				wg.Go(func() {
					var err error
					if up, err = checkedRead(st, rnd, st.ID()); err != nil {
						t.Error("device:", err)
					}
				})
				wg.Go(func() {
					if err := checkedWrite(st, rand.New(rand.NewPCG(seed, 99)), st.ID()+1, down); err != nil {
						t.Error("device:", err)
					}
				})
				wg.Wait()
				sizes.Store(st.ID(), [2]int{up, down})
			}
			relay, device := tethertest.PairOn(a, b, mux.Config{Budget: budget, Streams: 6}, mux.Config{Accept: accept})
			var wg sync.WaitGroup
			for i := range 15 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(1000+i)))
					time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
					st, err := relay.Open(bg, request("/", false))
					if errors.Is(err, mux.ErrBusy) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					up := 1 + rnd.IntN(300_000)
					var both sync.WaitGroup
					both.Go(func() {
						if err := checkedWrite(st, rnd, st.ID(), up); err != nil {
							t.Error("relay:", err)
						}
					})
					if _, err := st.Head(bg, time.Now().Add(time.Minute)); err != nil {
						t.Error(err)
					}
					down, err := checkedRead(st, rand.New(rand.NewPCG(seed, uint64(i))), st.ID()+1)
					both.Wait()
					time.Sleep(time.Minute) // the device may still be reading
					if err != nil {
						t.Error("relay:", err)
					}
					if v, _ := sizes.Load(st.ID()); v != [2]int{up, down} {
						t.Errorf("stream %d: relay sent and got %d, %d; device got and sent %v", st.ID(), up, down, v)
					}
					st.Reset(frame.ResetCancel)
				})
			}
			wg.Wait()
			synctest.Wait()
			if n, m, u := relay.Streams(), device.Streams(), budget.Used(); n != 0 || m != 0 || u != 0 {
				t.Errorf("left: %d and %d streams, %d bytes in the budget", n, m, u)
			}
			finish(relay, device)
		})
	}
}

// A stream whose reader has stopped holds what it was granted and no more, and does not
// stop the others; single bytes cost about single bytes.
func TestStalledReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := &mux.Budget{}
		relay, device := tethertest.Pair(mux.Config{Budget: budget}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
			if r.Path == "/small" {
				respond(st, []byte("ok"))
				return
			}
			h, _ := st.Encode(&frame.Response{Status: 200})
			st.Respond(h, nil, false)
			p := make([]byte, 1)
			if r.Path == "/big" {
				p = make([]byte, 100_000)
			}
			for {
				if _, err := st.Write(p); err != nil {
					return
				}
			}
		}})
		big, err := relay.Open(bg, request("/big", true))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := budget.Used(); got < mux.StartWindow || got > mux.StartWindow*5/4 {
			t.Errorf("a stalled reader holds %d bytes, granted were %d", got, mux.StartWindow)
		}
		before := budget.Used()
		bytes, err := relay.Open(bg, request("/bytes", true))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := budget.Used() - before; got > mux.StartWindow*5/4 {
			t.Errorf("%d single bytes hold %d bytes", mux.StartWindow, got)
		}
		for range 20 {
			st, err := relay.Open(bg, request("/small", true))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Head(bg, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(st)
			if string(b) != "ok" || err != nil {
				t.Errorf("beside a stalled reader: %q, %v", b, err)
			}
			st.Reset(frame.ResetNone)
		}
		big.Reset(frame.ResetCancel)
		bytes.Reset(frame.ResetCancel)
		if got := budget.Used(); got != 0 {
			t.Errorf("%d bytes held after the resets", got)
		}
		finish(relay, device)
	})
}

// Above the budget new streams get the smallest window.
func TestTightBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := &mux.Budget{Limit: 100_000}
		relay, device := tethertest.Pair(mux.Config{Budget: budget, Streams: 64}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
			h, _ := st.Encode(&frame.Response{Status: 200})
			st.Respond(h, make([]byte, 1_000_000), true)
		}})
		for range 2 + 10 {
			if _, err := relay.Open(bg, request("/", true)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if got, want := budget.Used(), int64(2*mux.StartWindow+10*mux.MinWindow); got > want*5/4 {
			t.Errorf("12 stalled streams hold %d bytes, want about %d", got, want)
		}
		finish(relay, device)
	})
}

// A fast reader gets larger windows; a slow one does not.
func TestWindowGrows(t *testing.T) {
	for name, c := range map[string]struct {
		pause time.Duration
		want  func(int64) bool
	}{
		"fast": {0, func(n int64) bool { return n > mux.MaxWindow/2 && n <= mux.MaxWindow }},
		"slow": {time.Second, func(n int64) bool { return n == mux.StartWindow }},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := tethertest.NewPipe(0)
			a.Latency, b.Latency = 20*time.Millisecond, 20*time.Millisecond
			granted := int64(mux.MinWindow) // and not used
			var mu sync.Mutex
			most := int64(0)
			count := func(sign int64, data bool) func([]byte) {
				return func(msg []byte) {
					mu.Lock()
					defer mu.Unlock()
					for len(msg) > 0 {
						f, rest, _ := frame.Next(msg)
						if f.Type == frame.TypeWindow && !data {
							v, _ := frame.ParseUint32(f.Body)
							granted += int64(v)
						}
						if data && (f.Type == frame.TypeData || f.Type == frame.TypeDataEnd) {
							granted -= int64(len(f.Body))
						}
						most = max(most, granted)
						msg = rest
					}
				}
			}
			a.Wrote, b.Wrote = count(1, false), count(-1, true)
			relay, device := tethertest.PairOn(a, b, mux.Config{}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
				h, _ := st.Encode(&frame.Response{Status: 200})
				st.Respond(h, make([]byte, 8<<20), true)
			}})
			st, err := relay.Open(bg, request("/", true))
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			p := make([]byte, 16<<10)
			for i := 0; ; i++ {
				n, err := st.Read(p)
				got += n
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.pause)
			}
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got != 8<<20 || !c.want(most) {
				t.Errorf("%s reader: %d bytes, the largest window was %d", name, got, most)
			}
			finish(relay, device)
		})
	}
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		relay, device := tethertest.Pair(mux.Config{Streams: 2}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
			<-release
			respond(st, nil)
		}})
		var first []*mux.Stream
		for range 2 {
			st, err := relay.Open(bg, request("/", true))
			if err != nil {
				t.Fatal(err)
			}
			first = append(first, st)
		}
		start := time.Now()
		if _, err := relay.Open(bg, request("/", true)); !errors.Is(err, mux.ErrBusy) || time.Since(start) != 5*time.Second {
			t.Errorf("a third request = %v after %v, want ErrBusy after 5 s", err, time.Since(start))
		}
		results := make(chan error, 64)
		for range 33 {
			go func() {
				st, err := relay.Open(bg, request("/", true))
				if err == nil {
					_, err = st.Head(bg, time.Now().Add(time.Minute))
					st.Reset(frame.ResetNone)
				}
				results <- err
			}()
		}
		synctest.Wait()
		if err := <-results; !errors.Is(err, mux.ErrBusy) || len(results) != 0 {
			t.Errorf("request 33 in the queue = %v, want ErrBusy at once", err)
		}
		close(release)
		for range 32 {
			if err := <-results; err != nil {
				t.Errorf("queued request = %v", err)
			}
		}
		ctx, cancel := context.WithCancelCause(bg)
		cancel(io.ErrNoProgress)
		if _, err := relay.Open(ctx, request("/", true)); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("Open with a done context = %v", err)
		}
		for _, st := range first {
			st.Reset(frame.ResetNone)
		}
		finish(relay, device)
	})
}

func TestKeepaliveOfTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := tethertest.NewPipe(0)
		var pings atomic.Int32
		b.Wrote = func(msg []byte) {
			if f, _, _ := frame.Next(msg); f.Type == frame.TypePing {
				pings.Add(1)
			}
		}
		_, device := tethertest.PairOn(a, b, mux.Config{}, mux.Config{Keepalive: 25 * time.Second})
		time.Sleep(10 * time.Minute)
		if n := pings.Load(); n < 23 || n > 28 {
			t.Errorf("%d pings in ten minutes", n)
		}
		// The line dies without a word: two pings, then the end.
		pings.Store(0)
		cut := time.Now()
		a.Cut()
		<-device.Done()
		if took := time.Since(cut); !errors.Is(device.Err(), mux.ErrSilent) || took > 45*time.Second || pings.Load() != 2 {
			t.Errorf("a half-open line: %v after %v and %d pings", device.Err(), took, pings.Load())
		}
	})
}

// The relay asks when a device owes an answer, and gives up soon when it stays silent.
func TestSilentDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := tethertest.NewPipe(0)
		relay, device := tethertest.PairOn(a, b, mux.Config{}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
			st.Read(make([]byte, 1)) // never answers
		}})
		st, err := relay.Open(bg, request("/", false))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := st.Head(bg, start.Add(30*time.Second)); !errors.Is(err, mux.ErrHeadTimeout) || time.Since(start) != 30*time.Second {
			t.Errorf("a slow origin behind a live device = %v after %v", err, time.Since(start))
		}
		b.Cut()
		st2, err := relay.Open(bg, request("/", false))
		if err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if _, err := st2.Head(bg, start.Add(30*time.Second)); !errors.Is(err, mux.ErrSilent) || time.Since(start) != 10*time.Second {
			t.Errorf("a dead device = %v after %v, want ErrSilent after 10 s", err, time.Since(start))
		}
		<-relay.Done()
		<-device.Done()
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan frame.GoAway, 1)
		release := make(chan struct{})
		device := mux.Config{Accept: func(st *mux.Stream, r *frame.Request) { <-release; respond(st, []byte("done")) }}
		device.Handlers.OnGoAway = func(g frame.GoAway) { gone <- g }
		relay, dev := tethertest.Pair(mux.Config{}, device)
		st, err := relay.Open(bg, request("/", true))
		if err != nil {
			t.Fatal(err)
		}
		drained := make(chan struct{})
		go func() { relay.Drain(bg, frame.GoAway{Code: frame.GoAwayDrain, Spread: 7}); close(drained) }()
		if g := <-gone; g.Spread != 7 || g.LastStream != st.ID() {
			t.Errorf("GOAWAY = %+v", g)
		}
		if _, err := relay.Open(bg, request("/", true)); !errors.Is(err, mux.ErrDraining) {
			t.Errorf("Open while draining = %v", err)
		}
		close(release)
		if _, err := st.Head(bg, time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(st); string(b) != "done" || err != nil {
			t.Errorf("the running answer = %q, %v", b, err)
		}
		<-drained
		<-relay.Done()
		<-dev.Done()
		if _, ok := errors.AsType[*mux.GoAwayError](dev.Err()); !ok {
			t.Errorf("the device's session ended with %v", dev.Err())
		}
	})
	// The device drains: what runs is answered, what comes behind is refused as safe, also
	// when the write fails before the GOAWAY is read.
	synctest.Test(t, func(t *testing.T) {
		a, b := tethertest.NewPipe(0)
		a.Latency = 10 * time.Millisecond
		relay, dev := tethertest.PairOn(a, b, mux.Config{}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) { respond(st, nil) }})
		go dev.Drain(bg, frame.GoAway{})
		st, err := relay.Open(bg, request("/", true))
		if err == nil {
			_, err = st.Head(bg, time.Now().Add(time.Minute))
		}
		_, ended := errors.AsType[*mux.GoAwayError](err) // Open came after the end
		if !errors.Is(err, frame.ResetRefused) && !errors.Is(err, mux.ErrDraining) && !ended {
			t.Errorf("a request that crosses GOAWAY = %v, want refused", err)
		}
		<-relay.Done()
		<-dev.Done()
		time.Sleep(time.Second) // the reader is still on its way
	})
}

// TestWriteFailsBehindGoAway: the device has said GOAWAY and closed, the relay's write fails,
// and only then the GOAWAY arrives. The request was not processed, and the error says so.
func TestWriteFailsBehindGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := tethertest.NewPipe(0)
		b.Latency = 20 * time.Millisecond
		relay, dev := tethertest.PairOn(a, b, mux.Config{}, mux.Config{})
		dev.Drain(bg, frame.GoAway{})
		<-dev.Done()
		st, err := relay.Open(bg, request("/", true))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Head(bg, time.Now().Add(time.Minute)); !errors.Is(err, frame.ResetRefused) {
			t.Errorf("a request whose write failed behind GOAWAY = %v, want refused", err)
		}
		<-relay.Done()
		if _, ok := errors.AsType[*mux.GoAwayError](relay.Err()); !ok {
			t.Errorf("the session ended with %v, want the peer's GOAWAY", relay.Err())
		}
	})
	// Nothing comes any more: the session ends all the same, with the write's error.
	synctest.Test(t, func(t *testing.T) {
		relay := mux.New(deaf{make(chan struct{})}, mux.Config{Relay: true, SendWindow: mux.MinWindow, RecvWindow: mux.MinWindow, Streams: 1})
		go relay.Run()
		st, err := relay.Open(bg, request("/", true))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = st.Head(bg, start.Add(time.Minute))
		if lost, ok := errors.AsType[*mux.LostError](err); !ok || lost.Act != "write" || time.Since(start) > 5*time.Second {
			t.Errorf("a request on a broken line = %v after %v, want the write's error soon", err, time.Since(start))
		}
		if _, err := relay.Open(bg, request("/", true)); err == nil {
			t.Error("Open on a broken session succeeded")
		}
		<-relay.Done()
	})
}

// deaf is a carrier whose peer neither reads nor writes.
type deaf struct{ closed chan struct{} }

func (d deaf) Read(func([]byte) error) error { <-d.closed; return io.EOF }
func (d deaf) Write([]byte) error            { return io.ErrClosedPipe }
func (d deaf) Close(int, string) error       { close(d.closed); return nil }

func TestNotifyAckDescribeLocatePing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		acks := make(chan tether.EventID, 1)
		closed := make(chan error, 1)
		rc := mux.Config{Handlers: mux.Handlers{
			OnNotify: func(n frame.Notify) {
				got = append(got, fmt.Sprintf("%d-%d %s %s", n.Epoch, n.Seq, n.Topic, n.Payload))
			},
			OnDescribe: func(b []byte) { got = append(got, string(b)) },
			OnLocate:   func(lan string) { got = append(got, lan) },
			OnClose:    func(err error) { closed <- err },
		}}
		a, b := tethertest.NewPipe(0)
		a.Latency, b.Latency = 20*time.Millisecond, 30*time.Millisecond
		relay, device := tethertest.PairOn(a, b, rc, mux.Config{Handlers: mux.Handlers{OnAck: func(id tether.EventID) { acks <- id }}})
		for i := range 40 {
			if err := device.Notify(frame.Notify{Epoch: 9, Seq: uint64(i + 1), Topic: "t", Payload: bytes.Repeat([]byte("x"), i*800)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := device.Describe([]byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		if err := device.Locate("ftp://10.0.0.7/"); !errors.Is(err, frame.ErrMalformed) {
			t.Errorf("Locate with another scheme = %v, want malformed, and nothing sent", err)
		}
		for _, lan := range []string{"https://10.0.0.7/", ""} {
			if err := device.Locate(lan); err != nil {
				t.Fatal(err)
			}
		}
		if d, err := device.Ping(bg); err != nil || d < 50*time.Millisecond || d > 60*time.Millisecond {
			t.Errorf("Ping = %v, %v, want about 50 ms", d, err)
		}
		if len(got) != 43 || got[0] != "9-1 t " || got[40] != "{}" || got[41] != "https://10.0.0.7/" || got[42] != "" || len(got[39]) != len("9-40 t ")+39*800 {
			t.Errorf("%d things came", len(got))
		}
		if err := relay.Ack(tether.EventID{Epoch: 9, Seq: 40}); err != nil {
			t.Fatal(err)
		}
		if id := <-acks; id != (tether.EventID{Epoch: 9, Seq: 40}) {
			t.Errorf("ack = %v", id)
		}
		device.GoAway(frame.GoAway{Code: frame.GoAwayDrain, Text: "bye"})
		device.Close(1000, "bye")
		if g, ok := errors.AsType[*mux.GoAwayError](<-closed); !ok || g.Text != "bye" {
			t.Errorf("OnClose got %v", relay.Err())
		}
		<-device.Done()
	})
}

// hostile sends messages as the peer and returns the session's end and what it said.
func hostile(t *testing.T, relay bool, messages ...[]byte) (said []frame.Frame, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := tethertest.NewPipe(0)
		cfg := mux.Config{Relay: relay, SendWindow: 20_000, RecvWindow: 20_000, Accept: func(st *mux.Stream, r *frame.Request) {
			st.Read(make([]byte, 1)) // reads one byte, then holds the stream
			<-st.Session().Done()
		}}
		s := mux.New(a, cfg)
		end := make(chan error, 1)
		go func() { end <- s.Run() }()
		if relay { // two requests wait for their answers
			for range 2 {
				if _, err := s.Open(bg, request("/", true)); err != nil {
					t.Fatal(err)
				}
			}
		}
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			for b.Read(func(msg []byte) error {
				for msg = bytes.Clone(msg); len(msg) > 0; {
					f, rest, err := frame.Next(msg)
					if err != nil {
						t.Error(err)
						return err
					}
					said = append(said, f)
					msg = rest
				}
				return nil
			}) == nil {
			}
		}()
		for _, m := range messages {
			b.Write(m)
		}
		synctest.Wait()
		select {
		case err = <-end:
		default:
			s.Close(1000, "")
			<-end
		}
		<-heard
	})
	return said, err
}

func TestHostilePeers(t *testing.T) {
	res := func(id uint32, r frame.Response) []byte { b, _ := frame.AppendResponse(nil, id, &r); return b }
	req := func(id uint32) []byte { b, _ := frame.AppendRequest(nil, id, request("/", false)); return b }
	ok := frame.Response{Status: 200}
	var pings, windows, empty [][]byte
	for i := range 1100 {
		pings = append(pings, frame.AppendPing(nil, uint32(i)))
		windows = append(windows, frame.AppendWindow(nil, 1, 1))
		empty = append(empty, frame.AppendData(nil, 1, nil, false))
	}
	big := frame.AppendData(nil, 1, make([]byte, 16<<10), false)
	long := binary.BigEndian.AppendUint32([]byte{6}, 17<<10)
	for name, c := range map[string]struct {
		relay bool
		msgs  [][]byte
	}{
		"length over the limit":     {true, [][]byte{append(long, make([]byte, 17<<10)...)}},
		"half a frame":              {true, [][]byte{{6, 0, 0}}},
		"an id never opened":        {true, [][]byte{frame.AppendData(nil, 9, []byte("x"), false)}},
		"response never asked for":  {true, [][]byte{res(3, ok)}},
		"stream 0":                  {true, [][]byte{frame.AppendWindow(nil, 0, 1)}},
		"ping on a stream":          {true, [][]byte{{11, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1}}},
		"data before head":          {true, [][]byte{frame.AppendData(nil, 1, []byte("x"), false)}},
		"data before final head":    {true, [][]byte{res(1, frame.Response{Status: 103}), frame.AppendData(nil, 1, []byte("x"), false)}},
		"two responses":             {true, [][]byte{res(1, ok), res(1, ok)}},
		"data after end":            {false, [][]byte{req(1), frame.AppendData(nil, 1, nil, true), frame.AppendData(nil, 1, []byte("x"), false)}},
		"request from the device":   {true, [][]byte{req(5)}},
		"accept":                    {true, [][]byte{frame.AppendAccept(nil, &frame.Accept{})}},
		"ack from the device":       {true, [][]byte{frame.AppendNotifyAck(nil, frame.NotifyAck{})}},
		"critical extension":        {true, [][]byte{{200, 0, 0, 0, 4, 0, 0, 0, 0}}},
		"pings without end":         {true, pings},
		"windows without end":       {true, append([][]byte{res(1, ok)}, windows...)},
		"empty data":                {true, append([][]byte{res(1, ok)}, empty...)},
		"same id twice":             {false, [][]byte{req(1), req(1)}},
		"falling ids":               {false, [][]byte{req(5), req(3)}},
		"response from the relay":   {false, [][]byte{req(1), res(1, ok)}},
		"notify from the relay":     {false, [][]byte{mustNotify()}},
		"describe from the relay":   {false, [][]byte{frame.AppendDescribe(nil, nil)}},
		"locate from the relay":     {false, [][]byte{{17, 0, 0, 0, 4, 0, 0, 0, 0}}},
		"locate on a stream":        {true, [][]byte{{17, 0, 0, 0, 4, 0, 0, 0, 1}}},
		"locate that is no URL":     {true, [][]byte{{17, 0, 0, 0, 5, 0, 0, 0, 0, 'h'}}},
		"data on an id not opened":  {false, [][]byte{big}},
		"reset on an id not opened": {false, [][]byte{frame.AppendReset(nil, 4, 1)}},
	} {
		said, err := hostile(t, c.relay, c.msgs...)
		var away *frame.GoAway
		for _, f := range said {
			if f.Type == frame.TypeGoAway {
				g, _ := frame.ParseGoAway(f.Body)
				away = &g
			}
		}
		if !errors.Is(err, mux.ErrProtocol) || away == nil || away.Code != frame.GoAwayProtocol {
			t.Errorf("%s: session ended with %v, GOAWAY %+v", name, err, away)
		}
	}
	// These cost only their stream, or nothing.
	bad := res(1, ok)
	bad = append(bad[:len(bad)-2], 0, 1, 1, 'x', 0, 0) // a field name in lower case
	binary.BigEndian.PutUint32(bad[1:], uint32(len(bad)-5))
	for name, c := range map[string]struct {
		relay bool
		want  frame.ResetCode
		msgs  [][]byte
	}{
		"over its credit":           {true, frame.ResetFlow, [][]byte{res(1, ok), big, frame.AppendData(nil, 1, make([]byte, 5000), false)}},
		"credit without bound":      {true, frame.ResetFlow, [][]byte{frame.AppendWindow(nil, 1, 1<<31-1)}},
		"a bad head":                {true, frame.ResetBadHead, [][]byte{bad}},
		"101 unasked":               {true, frame.ResetBadHead, [][]byte{res(1, frame.Response{Status: 101})}},
		"20 interim heads":          {true, frame.ResetBadHead, slicesRepeat(res(1, frame.Response{Status: 103}), 20)},
		"credit of the device":      {false, frame.ResetFlow, [][]byte{req(1), big, frame.AppendData(nil, 1, make([]byte, 5000), false)}},
		"more requests than agreed": {false, frame.ResetRefused, manyRequests(req)},
	} {
		said, err := hostile(t, c.relay, c.msgs...)
		code := frame.ResetCode(99)
		for _, f := range said {
			if f.Type == frame.TypeReset {
				v, _ := frame.ParseUint32(f.Body)
				code = frame.ResetCode(v)
			}
		}
		if err != nil || code != c.want {
			t.Errorf("%s: session ended with %v, RESET %d, want only RESET %d", name, err, code, c.want)
		}
	}
	for name, msgs := range map[string][][]byte{
		"unknown type":     {{99, 0, 0, 0, 5, 0, 0, 0, 7, 1}},
		"empty message":    {{}},
		"pong unasked":     {frame.AppendPong(nil, 77)},
		"after a reset":    {frame.AppendReset(nil, 1, 8), frame.AppendData(nil, 1, []byte("late"), true), res(1, ok), frame.AppendReset(nil, 1, 8)},
		"goaway, then all": {frame.AppendGoAway(nil, &frame.GoAway{LastStream: 1}), res(1, ok)},
	} {
		if _, err := hostile(t, true, msgs...); err != nil {
			t.Errorf("%s: session ended with %v", name, err)
		}
	}
}

func mustNotify() []byte { b, _ := frame.AppendNotify(nil, &frame.Notify{Epoch: 1, Seq: 1}); return b }

func slicesRepeat(b []byte, n int) (all [][]byte) {
	for range n {
		all = append(all, b)
	}
	return all
}

func manyRequests(req func(uint32) []byte) (all [][]byte) {
	for i := range mux.DefaultStreams + 1 {
		all = append(all, req(uint32(i+1)))
	}
	return all
}

// A waiting write ends with its deadline, with the peer's RESET, with the session.
func TestBlockedWriteEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay, device := tethertest.Pair(mux.Config{}, mux.Config{Accept: func(st *mux.Stream, r *frame.Request) {
			time.Sleep(time.Minute)
			if r.Path == "/reset" {
				st.Reset(frame.ResetTooLarge)
			}
			<-st.Session().Done()
		}})
		open := func(path string) *mux.Stream {
			st, err := relay.Open(bg, request(path, false))
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
		p := make([]byte, 100_000)
		st := open("/")
		st.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := st.Write(p); n != mux.DeviceWindow || !isTimeout(err) {
			t.Errorf("Write with a deadline = %d, %v", n, err)
		}
		st2 := open("/reset")
		if n, err := st2.Write(p); n != mux.DeviceWindow || !errors.Is(err, frame.ResetTooLarge) {
			t.Errorf("Write until RESET = %d, %v", n, err)
		}
		st3 := open("/")
		time.AfterFunc(time.Second, func() { device.Close(1000, "") })
		if _, err := st3.Write(p); err == nil {
			t.Error("Write survived its session")
		}
		st4, err := relay.Open(bg, request("/", false))
		if err == nil {
			t.Errorf("Open on a closed session gave %v", st4.ID())
		}
		<-relay.Done()
		time.Sleep(time.Minute) // the last handler
	})
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// FuzzReader feeds arbitrary bytes to either side's reader: no panic, no stuck session.
func FuzzReader(f *testing.F) {
	res, _ := frame.AppendResponse(nil, 1, &frame.Response{Status: 200})
	req, _ := frame.AppendRequest(nil, 1, request("/", false))
	f.Add(true, frame.AppendData(res, 1, []byte("x"), true))
	f.Add(false, frame.AppendData(req, 1, []byte("x"), true))
	f.Add(false, frame.AppendGoAway(frame.AppendReset(req, 1, 0), &frame.GoAway{}))
	f.Add(true, frame.AppendWindow(frame.AppendPing(nil, 1), 1, 1<<31))
	f.Fuzz(func(t *testing.T, relay bool, msg []byte) {
		a, b := tethertest.NewPipe(0)
		s := mux.New(a, mux.Config{Relay: relay, SendWindow: 1000, RecvWindow: 1000, Accept: func(st *mux.Stream, r *frame.Request) {
			io.Copy(io.Discard, st)
			respond(st, []byte("answer"))
		}})
		go s.Run()
		go func() {
			for b.Read(func([]byte) error { return nil }) == nil {
			}
		}()
		if relay {
			st, err := s.Open(bg, request("/", true))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				st.Head(bg, time.Now().Add(time.Second))
				io.Copy(io.Discard, st)
			}()
		}
		for _, part := range bytes.SplitAfter(msg, []byte{0xfe}) { // several messages
			if b.Write(part) != nil {
				break
			}
		}
		b.Close(1000, "")
		<-s.Done()
		if n := s.Streams(); n != 0 {
			t.Errorf("%d streams on a session that ended", n)
		}
	})
}
