package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/store"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

func ids(evs []Event) (out []string) {
	for _, e := range evs {
		out = append(out, e.ID.String())
	}
	return out
}

// The life of events over two starts: ids stay, earlier epochs come first, acknowledgements are cumulative.
func TestPendingAndAck(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	a := run(t, Config{Store: s})
	changed := a.Changed()
	if id, err := a.FirstUnacked(); err != nil || id != (tether.EventID{Epoch: a.Epoch(), Seq: 1}) {
		t.Errorf("FirstUnacked of nothing = %v, %v, want seq 1", id, err)
	}
	var given []string
	for i := 1; i <= 5; i++ {
		id := post(t, a.Notifier, fmt.Sprint(i))
		if id.Epoch != a.Epoch() || id.Seq != uint64(i) {
			t.Errorf("id = %v, want %x-%d", id, a.Epoch(), i)
		}
		given = append(given, id.String())
	}
	select {
	case <-changed:
	default:
		t.Error("Changed was not closed")
	}
	if err := a.Ack(tether.EventID{Epoch: a.Epoch(), Seq: 2}); err != nil {
		t.Error(err)
	}
	if err := a.Ack(tether.EventID{Epoch: a.Epoch(), Seq: 1}); err != nil { // late: changes nothing
		t.Error(err)
	}
	if err := a.Ack(tether.EventID{Epoch: a.Epoch(), Seq: 6}); !errors.Is(err, ErrUnknownEvent) {
		t.Errorf("Ack of what was never sent = %v, want ErrUnknownEvent", err)
	}
	if err := a.Ack(tether.EventID{Epoch: 1, Seq: 6}); err != nil {
		t.Errorf("Ack of an epoch that is gone = %v, want nil", err)
	}
	a.stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	b := run(t, Config{Store: openStore(t, dir)})
	if b.Epoch() == a.Epoch() || b.Epoch() == 0 {
		t.Errorf("epochs %x and %x", a.Epoch(), b.Epoch())
	}
	if id, err := b.FirstUnacked(); err != nil || id.String() != given[2] {
		t.Errorf("FirstUnacked = %v, %v, want %s", id, err, given[2])
	}
	given = append(given, post(t, b.Notifier, "6").String(), post(t, b.Notifier, "7").String())
	pending := func(after tether.EventID, max int, want ...string) {
		t.Helper()
		evs, err := b.Pending(nil, after, max)
		if got := ids(evs); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Pending(%v, %d) = %v, %v, want %v", after, max, got, err, want)
		}
	}
	pending(tether.EventID{}, 10, given[2:]...)
	pending(tether.EventID{}, 2, given[2:4]...)
	pending(tether.EventID{Epoch: a.Epoch(), Seq: 4}, 10, given[4:]...)
	pending(tether.EventID{Epoch: a.Epoch(), Seq: 5}, 1, given[5])
	pending(tether.EventID{Epoch: a.Epoch(), Seq: 1}, 1, given[2]) // behind the mark
	pending(tether.EventID{Epoch: 1, Seq: 1}, 1, given[2])         // unknown
	pending(tether.EventID{Epoch: b.Epoch(), Seq: 2}, 10)
	if st := b.Stats(); st.Unacked != 5 || st.Entries != 7 || st.Appended != 2 {
		t.Errorf("stats = %+v, want 5 of 7 unacknowledged, 2 appended", st)
	}
	if err := b.Ack(tether.EventID{Epoch: b.Epoch(), Seq: 1}); err != nil { // and with it those of the epoch before
		t.Error(err)
	}
	pending(tether.EventID{}, 10, given[6])
	if got, want := len(all(t, b.Notifier)), 7; got != want {
		t.Errorf("%d events for listeners, want all %d", got, want)
	}
}

func TestPostRefuses(t *testing.T) {
	n := run(t, Config{})
	for name, c := range map[string]struct{ topic, data string }{
		"long topic": {strings.Repeat("t", MaxTopic+1), ""}, "LF in topic": {"a\nb", ""}, "topic reset": {"reset", ""},
		"long data": {"", strings.Repeat("d", MaxData+1)}, "binary data": {"", "\xff"}, "binary topic": {"\xff", ""},
	} {
		if _, err := n.Post(t.Context(), c.topic, []byte(c.data)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := n.Post(t.Context(), strings.Repeat("t", MaxTopic), bytes.Repeat([]byte("d"), MaxData)); err != nil {
		t.Errorf("the largest: %v", err)
	}
	evs, err := n.Pending(nil, tether.EventID{}, 9)
	if err != nil || len(evs) != 1 || len(evs[0].Topic) != MaxTopic || len(evs[0].Data) != MaxData || time.Since(evs[0].Time) > time.Hour {
		t.Errorf("the largest came back as %d events, %v", len(evs), err)
	}
	n.stop()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("too late"))
	for range queueLength + 1 {
		if _, err := n.Post(ctx, "", nil); err == nil || !strings.Contains(err.Error(), "too late") {
			t.Errorf("Post when nothing runs = %v, want the cause", err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New without a store: no error")
	}
}

// The oldest go when the journal is full: exactly counted, those without acknowledgement apart, also over a restart.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	c := Config{Store: s, Entries: 10}
	a := run(t, c)
	for i := range 8 {
		post(t, a.Notifier, fmt.Sprint(i))
	}
	if err := a.Ack(tether.EventID{Epoch: a.Epoch(), Seq: 3}); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		post(t, a.Notifier, fmt.Sprint(8+i))
	}
	want := "[5 6 7 8 9 10 11 12 13 14]"
	if got := fmt.Sprint(texts(all(t, a.Notifier))); got != want {
		t.Errorf("kept %s, want %s", got, want)
	}
	if st := a.Stats(); st.Dropped != 5 || st.DroppedUnacked != 2 || st.Entries != 10 || st.Unacked != 10 {
		t.Errorf("stats = %+v, want 5 dropped, 2 of them unacknowledged, 10 left", st)
	}
	if err := a.Ack(tether.EventID{Epoch: a.Epoch(), Seq: 2}); err != nil {
		t.Errorf("Ack of a dropped event = %v, want nil", err)
	}
	a.stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.Store = openStore(t, dir)
	b := run(t, c)
	if st := b.Stats(); st.Dropped != 5 || st.DroppedUnacked != 2 || st.Entries != 10 {
		t.Errorf("stats after a restart = %+v", st)
	}
}

// Where a listener goes on after an id, the ways in which it may be unknown included.
func TestLogSeek(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	c := Config{Store: s, Entries: 6}
	a := run(t, c)
	l := a.Log().(eventLog)
	id, _ := l.End()
	if want := strings.TrimSuffix(tether.EventID{Epoch: a.Epoch(), Seq: 1}.String(), "1") + "0"; id != want {
		t.Errorf("End of nothing = %q, want %q", id, want)
	}
	next := func(l eventLog, id string) string {
		pos, ok := l.Seek(id)
		if !ok {
			return "gone"
		}
		evs, _, _ := l.Read(nil, pos, 1)
		return strings.Join(texts(evs), "")
	}
	for i := 1; i <= 4; i++ {
		post(t, a.Notifier, fmt.Sprintf("a%d", i))
	}
	if got := next(l, id); got != "a1" {
		t.Errorf("after the first id: %q, want a1", got)
	}
	a.stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.Store = openStore(t, dir)
	b := run(t, c)
	l = b.Log().(eventLog)
	at := func(epoch, seq uint64) string { return tether.EventID{Epoch: epoch, Seq: seq}.String() }
	if got, _ := l.End(); got != at(a.Epoch(), 4) {
		t.Errorf("End after a restart = %q, want the last event before it", got)
	}
	zero := b.epochText() + "-0"
	if got := next(l, zero); got != "" {
		t.Errorf("after %s: %q, want nothing yet", zero, got)
	}
	for i := 1; i <= 4; i++ {
		post(t, b.Notifier, fmt.Sprintf("b%d", i)) // a1 and a2 go
	}
	for id, want := range map[string]string{
		"": "", at(a.Epoch(), 1): "gone", at(a.Epoch(), 2): "a3", at(a.Epoch(), 3): "a4", at(a.Epoch(), 4): "b1",
		zero: "b1", at(b.Epoch(), 3): "b4", at(b.Epoch(), 4): "", at(b.Epoch(), 5): "gone", at(a.Epoch(), 5): "gone",
		id: "gone", at(77, 1): "gone", "nonsense": "gone", "-0": "gone",
	} {
		if got := next(l, id); got != want {
			t.Errorf("after %q: %q, want %q", id, got, want)
		}
	}
	for i := 5; i <= 12; i++ {
		post(t, b.Notifier, fmt.Sprintf("b%d", i))
	}
	if got := len(b.spans); got != 1 {
		t.Errorf("%d spans are kept, want that of the entries only", got)
	}
	if got := next(l, at(a.Epoch(), 4)); got != "gone" {
		t.Errorf("after a dropped epoch: %q, want gone", got)
	}
}

// Events that come together share a commit, however many Posts there are.
func TestGroupCommit(t *testing.T) {
	n, err := New(Config{Store: openStore(t, t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	commits := 0
	changed := n.Changed()
	var posts, collector sync.WaitGroup
	for i := range 200 {
		posts.Go(func() {
			if _, err := n.Post(t.Context(), "", fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		})
	}
	collector.Go(func() { n.collect(stop) })
	done := make(chan struct{})
	go func() { posts.Wait(); close(done) }()
	for more := true; more; {
		select {
		case <-changed:
			changed = n.Changed()
			commits++
		case <-done:
			more = false
		}
	}
	close(stop)
	collector.Wait()
	if commits > 50 || n.Stats().Appended != 200 {
		t.Errorf("%d commits for %d of 200 events, want few", commits, n.Stats().Appended)
	}
}

// An acknowledgement is kept with the next append, or alone after a while, or at the end.
func TestAckIsKept(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(store.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		n, err := New(Config{Store: s})
		if err != nil {
			t.Fatal(err)
		}
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() { n.collect(stop); close(ended) }()
		for range 5 {
			if _, err := n.Post(t.Context(), "", []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		ack := func(seq uint64) {
			t.Helper()
			if err := n.Ack(tether.EventID{Epoch: n.Epoch(), Seq: seq}); err != nil {
				t.Error(err)
			}
		}
		kept := func(want uint64) {
			t.Helper()
			synctest.Wait()
			if got := n.journal.State().Mark; got != want {
				t.Errorf("the journal has the mark %d, want %d", got, want)
			}
		}
		ack(1)
		kept(0)
		time.Sleep(ackWait / 2)
		ack(2) // does not put it off
		time.Sleep(ackWait / 2)
		kept(2)
		ack(3)
		if _, err := n.Post(t.Context(), "", []byte("x")); err != nil {
			t.Fatal(err)
		}
		kept(3)
		ack(4)
		kept(3)
		close(stop)
		<-ended
		kept(4)
	})
}

// A listener over HTTP that is cut off and comes back, while the daemon restarts in between, gets each event once.
func TestEventsOverHTTP(t *testing.T) {
	dir := t.TempDir()
	lastID, seen := "", []string(nil)
	for start := range 3 {
		s := openStore(t, dir)
		n := run(t, Config{Store: s})
		done := make(chan struct{})
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = sse.Serve(w, r, n.Log(), sse.Options{Done: done})
		}))
		for part := range 3 {
			req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			if lastID != "" {
				req.Header.Set("Last-Event-ID", lastID)
			}
			missed := start > 0 || part > 0
			if missed {
				post(t, n.Notifier, fmt.Sprintf("%d.%d missed", start, part))
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			post(t, n.Notifier, fmt.Sprintf("%d.%d\nheard", start, part))
			r := sse.NewReader(res.Body)
			want := 1
			if missed {
				want = 2
			}
			for range want {
				e, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				seen = append(seen, string(e.Data))
			}
			lastID = r.LastID()
			res.Body.Close()
		}
		close(done)
		srv.Close()
		n.stop()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for i := range 9 {
		if i > 0 {
			want = append(want, fmt.Sprintf("%d.%d missed", i/3, i%3))
		}
		want = append(want, fmt.Sprintf("%d.%d\nheard", i/3, i%3))
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(Event{ID: tether.EventID{Epoch: 1, Seq: 2}, Time: time.UnixMilli(3), Topic: "t", Data: []byte("d")}))
	f.Add([]byte{recordVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := decode(b); err == nil && !bytes.Equal(encode(e), b) {
			t.Errorf("%x is read as %+v, which is written as %x", b, e, encode(e))
		}
	})
}
