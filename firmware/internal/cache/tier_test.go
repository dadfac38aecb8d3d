package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// flash is a Bucket that counts and can fail.
type flash struct {
	mu     sync.Mutex
	values map[string][]byte
	writes int
	broken bool
	slow   atomic.Int64 // nanoseconds
}

func (f *flash) All() (map[string][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.values), nil
}

func (f *flash) Change(values map[string][]byte) error {
	time.Sleep(time.Duration(f.slow.Load()))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return errors.New("disk full")
	}
	f.writes++
	for k, v := range values {
		if v == nil {
			delete(f.values, k)
		} else {
			f.values[k] = v
		}
	}
	return nil
}

func (f *flash) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.values)
}

func (f *flash) fail(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

// device is a gateway's cache with flash, which can be restarted.
type device struct {
	t     *testing.T
	flash *flash
	c     *Cache
	end   func()
	h     http.Handler
	asked int
	reply map[string]string // fields
}

func newDevice(t *testing.T) *device {
	d := &device{t: t, flash: &flash{values: map[string][]byte{}}, reply: map[string]string{"Cache-Control": "max-age=7200"}}
	d.start()
	return d
}

func (d *device) start() {
	c, err := New(Config{Bucket: d.flash})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	done := make(chan bool)
	go func() { c.Run(ctx); close(done) }()
	d.c, d.end = c, func() { cancel(); <-done; c.Close() }
	d.h = c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.asked++
		for k, v := range d.reply {
			w.Header().Set(k, v)
		}
		fmt.Fprint(w, "answer ", d.asked)
	}), func(r *http.Request) string { return r.Header.Get("Who") })
}

// crash ends without a word: what is on flash stays as it is.
func (d *device) crash() {
	values, _ := d.flash.All()
	d.end()
	d.flash.values = values
	d.start()
}

func bubble(t *testing.T, f func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))
		f(t)
	})
}

func TestAnswersOutliveARestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t)
		request(d.h, "GET", "/x")
		time.Sleep(time.Minute)
		d.end() // keeps what it has
		time.Sleep(time.Minute)
		d.start()
		w := request(d.h, "GET", "/x")
		if w.Body.String() != "answer 1" || w.Header().Get("Age") != "120" || d.asked != 1 {
			t.Errorf("after a restart: %q, Age %s, asked %d times, want the kept answer of 120 s", w.Body, w.Header().Get("Age"), d.asked)
		}
		time.Sleep(2 * time.Hour)
		d.crash()
		if n := d.flash.count(); n != 0 || len(d.c.Entries(9)) != 0 {
			t.Errorf("%d kept answers are left when their time is over, want none", n)
		}
		d.end()
	})
}

func TestWhatIsNotKept(t *testing.T) {
	for name, c := range map[string]struct{ control, vary, who string }{
		"short": {"max-age=599", "", ""}, "private": {"max-age=7200", "", "ann"}, "variant": {"max-age=7200", "Foo", ""}, "to be asked": {"max-age=7200, no-cache", "", ""},
	} {
		bubble(t, func(t *testing.T) {
			d := newDevice(t)
			d.reply = map[string]string{"Cache-Control": c.control, "Etag": `"a"`}
			if c.vary != "" {
				d.reply["Vary"] = c.vary
			}
			request(d.h, "GET", "/x", "Who: "+c.who)
			if n := len(d.c.Entries(9)); n != 1 {
				t.Errorf("%s: %d entries in memory, want 1", name, n)
			}
			d.end()
			if n := d.flash.count(); n != 0 {
				t.Errorf("%s: %d answers are on flash, want none", name, n)
			}
		})
	}
}

// Nothing that a write has made stale comes back, not even after a power cut right behind it.
func TestWritesReachTheFlash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t)
		request(d.h, "GET", "/x")
		time.Sleep(KeepEvery + time.Second)
		if d.flash.count() != 1 {
			t.Fatalf("%d answers on flash, want 1", d.flash.count())
		}
		request(d.h, "PUT", "/x")
		d.crash()
		if w := request(d.h, "GET", "/x"); w.Body.String() == "answer 1" {
			t.Error("the answer from before the write came back")
		}

		// The write comes while the answer is on its way to flash.
		d.flash.slow.Store(int64(time.Second))
		time.Sleep(KeepEvery)
		time.Sleep(500 * time.Millisecond)
		if len(d.c.tier.io) != 1 {
			t.Fatal("no transaction is under way")
		}
		before := d.asked
		request(d.h, "PUT", "/x")
		d.flash.slow.Store(0)
		d.crash()
		if w := request(d.h, "GET", "/x"); w.Body.String() != fmt.Sprint("answer ", before+2) {
			t.Errorf("after a write during a transaction: %q, want a new answer", w.Body)
		}

		// A newer answer that is not worth keeping takes the kept one away.
		d.end()
		d.start()
		d.reply["Cache-Control"] = "max-age=20"
		request(d.h, "GET", "/x", "Cache-Control: no-cache")
		time.Sleep(KeepEvery)
		synctest.Wait()
		if n := d.flash.count(); n != 0 {
			t.Errorf("%d answers on flash after a newer one, want none", n)
		}
		d.end()
	})
}

func TestFlashIsSpared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t)
		for i := range 3600 { // an hour of new answers
			request(d.h, "GET", fmt.Sprintf("/%d", i%50))
			request(d.h, "GET", fmt.Sprintf("/%d", i%50), "Cache-Control: no-cache")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if most := int(time.Hour / KeepEvery); d.flash.writes > most || d.flash.writes == 0 {
			t.Errorf("%d transactions in an hour, want 1 to %d", d.flash.writes, most)
		}
		d.reply["Big"] = strings.Repeat("x", keepEach)
		d.flash.fail(true)
		request(d.h, "GET", "/big")
		time.Sleep(KeepEvery)
		d.flash.fail(false)
		d.end()
		total := 0
		for _, v := range d.flash.values {
			total += len(v)
		}
		if d.c.tier.bytes != total || total > KeepMax {
			t.Errorf("%d bytes are counted, %d are on flash, at most %d are allowed", d.c.tier.bytes, total, KeepMax)
		}
	})
}

// What flash takes in memory is bounded: the list of what is kept, and what waits to be.
func TestFlashTakesLittleMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := newDevice(t)
		d.reply["Cache-Control"] = "max-age=864000"
		d.reply["Big"] = strings.Repeat("x", keepEach-1000)
		for i := range keepAtOnce {
			request(d.h, "GET", fmt.Sprintf("/big/%d", i))
		}
		waiting := 0
		for _, n := range d.c.tier.pending {
			waiting += n.s.Size()
		}
		if waiting > keepWaiting || len(d.c.tier.pending) != keepWaiting/keepEach {
			t.Errorf("%d answers of %d bytes wait, want %d of at most %d", len(d.c.tier.pending), waiting, keepWaiting/keepEach, keepWaiting)
		}
		delete(d.reply, "Big")
		for i := range 2 * keepMost {
			request(d.h, "GET", fmt.Sprintf("/%d", i))
			time.Sleep(KeepEvery / keepAtOnce)
		}
		d.end()
		if n := d.flash.count(); n != keepMost || len(d.c.tier.kept) != n {
			t.Errorf("%d answers are kept, %d listed, want %d", n, len(d.c.tier.kept), keepMost)
		}
	})
}
