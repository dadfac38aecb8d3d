package shared

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// audit checks the books: what is counted is what is there.
func (c *Cache) audit(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum int64
	n := 0
	for _, s := range c.sites {
		if len(s.targets) > 0 {
			sum += s.cost()
		}
		for _, e := range s.targets {
			for ; e != nil; e = e.next {
				sum += e.cost()
				n++
			}
		}
		if len(s.flights) > 0 {
			t.Errorf("%d targets have flights, want none", len(s.flights))
		}
	}
	listed := 0
	for e := c.lru.older; e != &c.lru; e = e.older {
		listed++
	}
	if sum != c.used || n != c.count || listed != n {
		t.Errorf("%d bytes and %d entries are counted, %d listed; there are %d and %d", c.used, c.count, listed, sum, n)
	}
	if c.used > c.conf.MaxBytes || c.count > c.conf.MaxEntries {
		t.Errorf("%d bytes, %d entries; at most %d and %d are allowed", c.used, c.count, c.conf.MaxBytes, c.conf.MaxEntries)
	}
}

func TestConcurrentRequestsAreCollapsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		var asked atomic.Int64
		g.c.conf.CollapseWait = time.Minute
		slow := func(lines ...string) {
			asked.Store(0)
			g.origin = func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				time.Sleep(10 * time.Second)
				answer(lines...)(w, r)
			}
		}
		storm := func(uri string, lines ...string) time.Duration {
			start := time.Now()
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					w := httptest.NewRecorder()
					r := httptest.NewRequest("GET", "http://host"+uri, nil)
					_ = g.c.Serve(w, r, Target{URI: uri}, func(w http.ResponseWriter, r *http.Request) error { g.origin(w, r); return nil })
					if w.Code != 200 || w.Body.String() != "body" {
						t.Errorf("%s: got %d %q", uri, w.Code, w.Body)
					}
				})
			}
			wg.Wait()
			return time.Since(start)
		}
		slow("Cache-Control: max-age=60")
		if d := storm("/x"); asked.Load() != 1 || d != 10*time.Second {
			t.Errorf("cacheable: %d requests in %v, want 1 in 10s", asked.Load(), d)
		}
		slow("Cache-Control: no-store")
		if d := storm("/y"); asked.Load() != 50 || d != 20*time.Second {
			t.Errorf("not cacheable: %d requests in %v, want 50 in 20s", asked.Load(), d)
		}
		slow("Cache-Control: no-store")
		if d := storm("/y"); asked.Load() != 50 || d != 10*time.Second {
			t.Errorf("known not to be cacheable: %d requests in %v, want 50 in 10s", asked.Load(), d)
		}
		slow("Cache-Control: no-cache", `Etag: "a"`)
		if d := storm("/z"); asked.Load() != 50 || d != 20*time.Second {
			t.Errorf("to be validated each time: %d requests in %v, want 50 in 20s", asked.Load(), d)
		}
		g.c.audit(t)
	})
}

// Fifty clients that ask again and again are few requests to the origin, if it says that an
// answer holds for as little as a second: wherever in a second it answers, however long it
// thinks, and however long the body takes.
func TestPollStorm(t *testing.T) {
	const clients, length = 50, 30 * time.Second
	rule, err := httpcache.ParseRule("/ruled ttl=1s")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what           string
		uri            string
		control        string
		think, trickle time.Duration // until the head, and the body
		dated          bool
		every          time.Duration // from one request to the origin to the next, at least
	}{
		{"quick", "/x", "max-age=1", 10 * time.Millisecond, 0, true, time.Second},
		{"quick, without Date", "/x", "max-age=1", 10 * time.Millisecond, 0, false, time.Second},
		{"slow", "/x", "max-age=1", 700 * time.Millisecond, 0, true, 700 * time.Millisecond},
		{"slower than max-age", "/x", "max-age=1", 2300 * time.Millisecond, 0, true, 2300 * time.Millisecond},
		{"a long body", "/x", "max-age=1", 10 * time.Millisecond, 3 * time.Second, true, 3 * time.Second},
		{"may be stale", "/x", "max-age=0, stale-while-revalidate=2", 300 * time.Millisecond, 0, true, 300 * time.Millisecond},
		{"a maker's rule", "/ruled", "", 2300 * time.Millisecond, 0, false, 3300 * time.Millisecond},
	} {
		bubble(t, func(t *testing.T) {
			conf := Gateway()
			conf.Rules = []httpcache.Rule{rule}
			g := newRig(t, conf)
			time.Sleep(773 * time.Millisecond) // not at the begin of a second
			var asked, answered atomic.Int64
			origin := func(w http.ResponseWriter, r *http.Request) error {
				asked.Add(1)
				time.Sleep(c.think)
				h := w.Header()
				if c.dated {
					h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
				}
				if c.control != "" {
					h.Set("Cache-Control", c.control)
				}
				w.WriteHeader(200)
				time.Sleep(c.trickle)
				w.Write([]byte("body"))
				return nil
			}
			end := time.Now().Add(length)
			var wg sync.WaitGroup
			for i := range clients {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 7 * time.Millisecond)
					for time.Now().Before(end) {
						w := httptest.NewRecorder()
						_ = g.c.Serve(w, httptest.NewRequest("GET", "http://host"+c.uri, nil), Target{URI: c.uri}, origin)
						if w.Body.String() == "body" {
							answered.Add(1)
						}
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
			wg.Wait()
			g.c.Close()
			g.c.audit(t)
			if most := int64(length/c.every) + 2; asked.Load() > most || answered.Load() < clients*int64(length/(c.think+c.trickle+time.Second)) {
				t.Errorf("%s: %d answers for %d requests to the origin, want at most %d", c.what, answered.Load(), asked.Load(), most)
			}
			t.Logf("%s: %d answers, %d requests to the origin in %v", c.what, answered.Load(), asked.Load(), length)
		})
	}
}

// Who comes when the lifetime of an answer is over, while its body is still on the way, does
// not get it, whether its head was held back for an ETag or not.
func TestTooLateForABody(t *testing.T) {
	for _, c := range []struct {
		tag    string
		second time.Duration // when the second has its answer
	}{{`"a"`, 7 * time.Second}, {"", 9 * time.Second}} {
		bubble(t, func(t *testing.T) {
			g := newRig(t, Gateway())
			var asked atomic.Int64
			get := func() string {
				w := httptest.NewRecorder()
				_ = g.c.Serve(w, httptest.NewRequest("GET", "http://host/x", nil), Target{URI: "/x"}, func(w http.ResponseWriter, r *http.Request) error {
					n := asked.Add(1)
					w.Header().Set("Cache-Control", "max-age=1")
					if c.tag != "" {
						w.Header().Set("Etag", c.tag)
					}
					w.WriteHeader(200)
					time.Sleep(4 * time.Second)
					_, _ = fmt.Fprint(w, n)
					return nil
				})
				return w.Body.String()
			}
			start := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() { get() })
			time.Sleep(500 * time.Millisecond)
			wg.Go(func() {
				if got := get(); got != "1" || time.Since(start) != 4*time.Second {
					t.Errorf("ETag %q: who came in time got %q after %v, want 1 after 4s", c.tag, got, time.Since(start))
				}
			})
			time.Sleep(2500 * time.Millisecond)
			wg.Go(func() {
				if got := get(); got != "2" || time.Since(start) > c.second {
					t.Errorf("ETag %q: who came too late got %q after %v, want 2 within %v", c.tag, got, time.Since(start), c.second)
				}
			})
			wg.Wait()
		})
	}
}

// What is old when it comes is nobody else's, but the target's next answer may be.
func TestOldOnArrival(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		var asked atomic.Int64
		age := "5"
		origin := func(w http.ResponseWriter, r *http.Request) error {
			if asked.Add(1) > 1 {
				w.Header().Set("Age", age)
			} else {
				w.Header().Set("Age", "5")
			}
			time.Sleep(time.Second)
			w.Header().Set("Cache-Control", "max-age=5")
			return nil
		}
		storm := func() {
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					_ = g.c.Serve(httptest.NewRecorder(), httptest.NewRequest("GET", "http://host/x", nil), Target{URI: "/x"}, origin)
				})
			}
			wg.Wait()
		}
		if storm(); asked.Load() != 10 {
			t.Errorf("always old: the origin was asked %d times, want 10: one, one more, and then everybody by himself", asked.Load())
		}
		asked.Store(0)
		age = "0"
		if storm(); asked.Load() != 2 {
			t.Errorf("old once: the origin was asked %d times, want 2", asked.Load())
		}
	})
}

// A leader that fails leaves its place to another, and no more than that.
func TestFailedLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		var asked atomic.Int64
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			n := asked.Add(1)
			time.Sleep(time.Second)
			if n == 1 {
				w.Header().Set("Cache-Control", "max-age=60")
				w.Header().Set("Content-Length", "9")
				w.Write([]byte("half"))
				panic(http.ErrAbortHandler)
			}
			answer("Cache-Control: max-age=60")(w, r)
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				defer func() { _ = recover() }()
				w := httptest.NewRecorder()
				_ = g.c.Serve(w, httptest.NewRequest("GET", "/x", nil), Target{URI: "/x"}, func(w http.ResponseWriter, r *http.Request) error { g.origin(w, r); return nil })
				if w.Body.String() != "body" {
					t.Errorf("got %q", w.Body)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if n := asked.Load(); n != 2 {
			t.Errorf("the origin was asked %d times, want 2", n)
		}
		g.c.audit(t)
	})
}

func TestIncompleteBodiesAreNotStored(t *testing.T) {
	for name, origin := range map[string]func(w http.ResponseWriter, r *http.Request){
		"a panic": func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("half"))
			panic(http.ErrAbortHandler)
		},
		"less than Content-Length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9")
			w.Write([]byte("half"))
		},
		"a client that left": func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("half"))
			r.Context().Value(cancelKey{}).(context.CancelFunc)()
		},
	} {
		bubble(t, func(t *testing.T) {
			g := newRig(t, Gateway())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ctx = context.WithValue(ctx, cancelKey{}, cancel)
			func() {
				defer func() { _ = recover() }()
				r := httptest.NewRequest("GET", "/x", nil).WithContext(ctx)
				_ = g.c.Serve(httptest.NewRecorder(), r, Target{URI: "/x"}, func(w http.ResponseWriter, r *http.Request) error {
					w.Header().Set("Cache-Control", "max-age=60")
					w.Header().Set("Etag", `"a"`)
					origin(w, r)
					return nil
				})
			}()
			if n := g.c.Stats().Entries; n != 0 {
				t.Errorf("%s: %d entries, want none", name, n)
			}
			g.c.audit(t)
		})
	}
}

type cancelKey struct{}

func TestLongBodiesPassWithoutMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		conf := Gateway()
		conf.MaxBytes, conf.MaxBody = 64<<10, 16<<10
		g := newRig(t, conf)
		piece := []byte(strings.Repeat("x", 1000))
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=60")
			for range 100 {
				w.Write(piece)
				if used := g.c.Stats().Bytes; used > 32<<10 {
					t.Fatalf("%d bytes are taken while a long body passes", used)
				}
			}
		}
		if w := g.do("GET /x"); w.Body.Len() != 100000 {
			t.Errorf("%d bytes came through, want 100000", w.Body.Len())
		}
		if s := g.c.Stats(); s.Entries != 0 || s.Bytes != 0 {
			t.Errorf("%+v after a long body, want nothing stored", s)
		}
		g.origin = func(w http.ResponseWriter, r *http.Request) { // known to be too long: nothing is collected at all
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Content-Length", "100000")
			w.Write(piece)
			if used := g.c.Stats().Bytes; used != 0 {
				t.Errorf("%d bytes are taken for a body that is too long", used)
			}
		}
		g.do("GET /y")
	})
}

func TestWhatIsNoBusinessOfACache(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		for _, c := range [][]string{
			{"GET /x", "Upgrade: websocket", "Connection: Upgrade"}, {"GET /x", "Accept: text/event-stream"}, {"GET /a/../x"}, {"OPTIONS /x"}, {"PROPFIND /x"}, {"QUERY /x"},
		} {
			g.origin = func(w http.ResponseWriter, r *http.Request) {
				if _, ok := w.(*recorder); ok {
					t.Errorf("%q goes through a recorder, want it to pass by", c)
				}
				w.Header().Set("Cache-Control", "max-age=60")
			}
			g.do(c[0], c[1:]...)
		}
		for _, control := range []string{"no-cache", "max-age=60"} {
			g.answers("Content-Type: text/event-stream", "Cache-Control: "+control)
			g.do("GET /events")
		}
		if n := g.c.Stats().Entries; n != 0 {
			t.Errorf("%d entries, want none", n)
		}
	})
}

// An answer whose request began before a write is not stored after it, nor given to those
// who ask after it.
func TestWriteOvertakesRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		var state atomic.Value
		state.Store("old")
		release := make(chan bool)
		serve := func(method string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			_ = g.c.Serve(w, httptest.NewRequest(method, "/x", nil), Target{URI: "/x"}, func(w http.ResponseWriter, r *http.Request) error {
				if r.Method == "PUT" {
					state.Store("new")
					return nil
				}
				body := state.Load().(string)
				if body == "old" {
					<-release
				}
				w.Header().Set("Cache-Control", "max-age=60")
				w.Write([]byte(body))
				return nil
			})
			return w
		}
		early := make(chan string)
		go func() { early <- serve("GET").Body.String() }()
		synctest.Wait()
		serve("PUT")
		if got := serve("GET").Body.String(); got != "new" {
			t.Errorf("GET after PUT: %q, want new", got)
		}
		close(release)
		if got := <-early; got != "old" {
			t.Errorf("GET from before the PUT: %q, want its own answer", got)
		}
		if got := serve("GET").Body.String(); got != "new" {
			t.Errorf("GET after both: %q, want new", got)
		}
		g.c.audit(t)
	})
}

// The order inside a write: first nothing older can be given out, then others are told,
// then the client hears of it.
func TestWriteIsReleasedLast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		conf := Gateway()
		var log []string
		var g *rig
		conf.Changed = func(_ context.Context, space string, uris []string, everything bool) {
			log = append(log, fmt.Sprintf("told %q %q %v with %d entries", space, uris, everything, g.c.Stats().Entries))
		}
		g = newRig(t, conf)
		g.answers("Cache-Control: max-age=60")
		g.do("GET /x", "space: dev")
		g.answers("Location: /y")
		w := &order{ResponseRecorder: httptest.NewRecorder(), log: &log}
		if err := g.serve(w, "POST /x", "space: dev"); err != nil {
			t.Fatal(err)
		}
		want := `told "dev" ["/x" "/y"] false with 0 entries|head 200`
		if got := strings.Join(log, "|"); got != want {
			t.Errorf("order %q, want %q", got, want)
		}
		log = nil
		g.do("POST /%78", "space: dev")
		if want := `told "dev" ["/%78" "/y"] true with 0 entries`; len(log) != 1 || log[0] != want {
			t.Errorf("order %q, want %q", log, want)
		}
	})
}

// To tell others of a write takes its time: whoever answered it is done by then, unless the
// answer is long, comes in pieces, or breaks off.
func TestOriginIsDoneBeforeOthersAreTold(t *testing.T) {
	whole := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
		w.Write([]byte("bo"))
		w.Write([]byte("dy"))
	}
	for _, c := range []struct {
		name   string
		origin func(w http.ResponseWriter, r *http.Request)
		body   string
		want   string
	}{
		{"a small answer", whole, "body", "origin done|told|head 201"},
		{"no body", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, "", "origin done|told|head 204"},
		{"not even a head", func(w http.ResponseWriter, r *http.Request) {}, "", "origin done|told|head 200"},
		{"no change", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }, "", "head 403|origin done"},
		{"long, as it says", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(heldMax+1))
			w.Write(make([]byte, heldMax+1))
		}, strings.Repeat("\x00", heldMax+1), "told|head 200|origin done"},
		{"long", func(w http.ResponseWriter, r *http.Request) {
			w.Write(make([]byte, heldMax))
			w.Write([]byte("x"))
		}, strings.Repeat("\x00", heldMax) + "x", "told|head 200|origin done"},
		{"in pieces", func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("a"))
			w.(http.Flusher).Flush()
			w.Write([]byte("b"))
		}, "ab", "told|head 200|origin done"},
		{"with trailers", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Sum")
			w.Write([]byte("a"))
			w.Header().Set("Sum", "1")
		}, "a", "told|head 200|origin done"},
		{"broken off", func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("half"))
			panic(http.ErrAbortHandler)
		}, "half", "origin done|told|head 200"},
	} {
		bubble(t, func(t *testing.T) {
			var log []string
			conf := Gateway()
			conf.Changed = func(context.Context, string, []string, bool) { log = append(log, "told") }
			g := newRig(t, conf)
			g.origin = func(w http.ResponseWriter, r *http.Request) {
				defer func() { log = append(log, "origin done") }()
				c.origin(w, r)
			}
			w := &order{ResponseRecorder: httptest.NewRecorder(), log: &log}
			func() {
				defer func() {
					if v := recover(); (v != nil) != (c.name == "broken off") {
						t.Errorf("%s: panic %v", c.name, v)
					}
				}()
				if err := g.serve(w, "POST /x"); err != nil {
					t.Fatal(err)
				}
			}()
			if w.Body.String() != c.body {
				t.Errorf("%s: %d bytes came through, want %d", c.name, w.Body.Len(), len(c.body))
			}
			if got := strings.Join(log, "|"); got != c.want {
				t.Errorf("%s: %s, want %s", c.name, got, c.want)
			}
			g.c.audit(t)
		})
	}
}

type order struct {
	*httptest.ResponseRecorder
	log *[]string
}

func (o *order) WriteHeader(status int) {
	*o.log = append(*o.log, fmt.Sprint("head ", status))
	o.ResponseRecorder.WriteHeader(status)
}

// Readers and writers at random, on few targets and with random delays: once a write's answer
// was seen, no GET that begins later returns anything older.
func TestReadsAfterWrites(t *testing.T) {
	const workers, rounds, targets = 12, 400, 3
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		var state, seen [targets]atomic.Int64 // what the origin has; what some client was told
		var reads, hits atomic.Int64
		nap := func() { time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond) }
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range rounds {
					nap()
					i := rand.IntN(targets)
					uri := fmt.Sprint("/", i)
					method := "GET"
					if rand.IntN(10) == 0 {
						method = "PUT"
					}
					before := seen[i].Load()
					var put int64
					w := httptest.NewRecorder()
					_ = g.c.Serve(w, httptest.NewRequest(method, uri, nil), Target{URI: uri}, func(w http.ResponseWriter, r *http.Request) error {
						nap()
						if method == "PUT" {
							put = state[i].Add(1)
							nap()
							return nil
						}
						now := state[i].Load()
						nap()
						w.Header().Set("Cache-Control", "max-age=1, stale-while-revalidate=1")
						w.Header().Set("Etag", fmt.Sprintf(`"%d"`, now))
						if r.Header.Get("If-None-Match") == w.Header().Get("Etag") {
							w.WriteHeader(304)
							return nil
						}
						_, _ = fmt.Fprint(w, now)
						return nil
					})
					if method == "PUT" {
						for {
							old := seen[i].Load()
							if old >= put || seen[i].CompareAndSwap(old, put) {
								break
							}
						}
						continue
					}
					reads.Add(1)
					if strings.Contains(w.Header().Get("Cache-Status"), "; hit") {
						hits.Add(1)
					}
					var got int64
					if _, err := fmt.Sscan(w.Body.String(), &got); err != nil || got < before {
						t.Errorf("GET %s returned %q (%q), but the answer to write %d was seen before", uri, w.Body, w.Header()["Cache-Status"], before)
					}
				}
			})
		}
		wg.Wait()
		if hits.Load() < reads.Load()/4 {
			t.Errorf("only %d hits in %d reads: nothing was tested", hits.Load(), reads.Load())
		}
		g.c.Close()
		g.c.audit(t)
	})
}

// Two principals can never read each other's private answer: every answer says for whom it
// was made and whether it may be shared, and clients, fields and directives are random.
func TestPrincipalsStayApart(t *testing.T) {
	const rounds = 20000
	bubble(t, func(t *testing.T) {
		conf := Gateway()
		conf.MaxBytes = 256 << 10
		g := newRig(t, conf)
		rnd := rand.New(rand.NewPCG(1, 2))
		pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
		shared, own := 0, 0
		for range rounds {
			name := pick("", "ann", "bob", "annb", "a")
			who, authorized := name, false
			control := pick("max-age=60", "private, max-age=60", "public, max-age=60", "s-maxage=60", "must-revalidate, max-age=60", "no-cache", "", `private="x", max-age=60`, "max-age=0, stale-if-error=60")
			uri := pick("/x", "/y", "/x?a", "/ann", "/")
			lines := []string{"principal: " + name, "Foo: " + pick("1", "2")}
			for _, credential := range []string{"Authorization: ", "Cookie: "} {
				if rnd.IntN(4) == 0 {
					v := pick("t1", "t2")
					lines = append(lines, credential+v)
					if credential == "Authorization: " {
						authorized = true
					}
					if name != "" {
						who += "/" + credential + v // another account of the same principal
					}
				}
			}
			if rnd.IntN(4) == 0 {
				lines = append(lines, "Cache-Control: "+pick("max-stale", "no-cache", "max-age=0", "only-if-cached"))
			}
			if rnd.IntN(4) == 0 {
				lines = append(lines, "If-None-Match: "+pick(`"ann"`, `"x"`))
			}
			fail := rnd.IntN(10) == 0
			asked := len(g.asked)
			g.origin = func(w http.ResponseWriter, r *http.Request) {
				if fail {
					w.WriteHeader(502)
					return
				}
				h := w.Header()
				if control != "" {
					h.Set("Cache-Control", control)
				}
				switch rnd.IntN(3) {
				case 0:
					h.Set("Vary", "Foo")
				case 1:
					h.Set("Etag", `"`+who+`"`)
					if r.Header.Get("If-None-Match") == h.Get("Etag") {
						w.WriteHeader(304) // of the same principal, because the tag is
						return
					}
				}
				open := strings.Contains(control, "public") || strings.Contains(control, "s-maxage") || strings.Contains(control, "must-revalidate")
				if strings.HasPrefix(control, "private,") {
					open = false
				} else if who == "" && !authorized {
					open = true
				}
				_, _ = fmt.Fprintf(w, "%s|%v", who, open)
			}
			w := g.do("GET "+uri, lines...)
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
			if w.Code != 200 {
				continue
			}
			whose, open, _ := strings.Cut(w.Body.String(), "|")
			if whose != who && open != "true" {
				t.Fatalf("%q got what was made for %q (%s %q, %q)", who, whose, uri, lines, w.Header()["Cache-Status"])
			}
			if authorized && who == "" && open != "true" && len(g.asked) == asked {
				t.Fatalf("an answer to credentials of nobody known came from the store: %q", w.Body)
			}
			if len(g.asked) == asked {
				if whose == who {
					own++
				} else {
					shared++
				}
			}
			g.asked = g.asked[:0]
		}
		if shared < rounds/100 || own < rounds/100 {
			t.Errorf("%d shared and %d own answers came from the store: nothing was tested", shared, own)
		}
		g.c.audit(t)
	})
}

// The same with many clients at once, so that requests wait for each other's answers, stale
// ones are validated in the background, and writes, purges and failures come in between.
func TestPrincipalsStayApartAtOnce(t *testing.T) {
	const workers, rounds = 16, 300
	for _, conf := range []Config{Gateway(), Relay()} {
		bubble(t, func(t *testing.T) {
			conf.MaxBytes = 64 << 10
			if conf.Name == Relay().Name {
				conf.Fresh = func(context.Context, string) bool {
					time.Sleep(rand.N(20 * time.Millisecond))
					return rand.IntN(3) > 0
				}
			}
			g := newRig(t, conf)
			pick := func(list ...string) string { return list[rand.IntN(len(list))] }
			var shared, own, waited atomic.Int64
			start := time.Now()
			var wg sync.WaitGroup
			for range workers {
				wg.Go(func() {
					for range rounds {
						name := pick("", "ann", "bob", "annb")
						who, authorized := name, false
						r := httptest.NewRequest(pick("GET", "GET", "GET", "GET", "HEAD", "POST"), fmt.Sprintf("http://host/%d/%d", time.Since(start)/(4*time.Second), rand.IntN(2)), nil)
						r.RequestURI = r.URL.RequestURI()
						if rand.IntN(5) == 0 {
							v := pick("t1", "t2")
							r.Header.Set("Authorization", v)
							authorized = true
							if name != "" {
								who += "/" + v
							}
						}
						if rand.IntN(8) == 0 {
							r.Header.Set("Range", "bytes=0-999")
						}
						if rand.IntN(8) == 0 {
							r.Header.Set("If-None-Match", pick(`"ann"`, `"x"`))
						}
						if rand.IntN(40) == 0 {
							g.c.PurgePrincipal("", pick("ann", "bob"))
						}
						touched := false // by the origin, for this request; for another one in the background it does not count
						w := httptest.NewRecorder()
						err := g.c.Serve(w, r, Target{URI: r.RequestURI, Principal: name}, func(w http.ResponseWriter, r *http.Request) error {
							if _, background := w.(*recorder).w.(*sink); !background {
								touched = true
							}
							time.Sleep(rand.N(300 * time.Millisecond))
							if rand.IntN(12) == 0 {
								return errors.New("offline")
							}
							control := pick("max-age=1", "private, max-age=1", "public, max-age=1", "s-maxage=1", "must-revalidate, max-age=1", "no-cache",
								"max-age=1, stale-while-revalidate=5", "private, max-age=1, stale-while-revalidate=5, stale-if-error=9", "max-age=0, stale-if-error=9", "")
							h := w.Header()
							if control != "" {
								h.Set("Cache-Control", control)
							}
							if r.Method == "POST" {
								h.Set("Content-Location", r.RequestURI)
							}
							if rand.IntN(2) == 0 {
								h.Set("Etag", `"`+who+`"`)
								if r.Header.Get("If-None-Match") == h.Get("Etag") {
									w.WriteHeader(304)
									return nil
								}
							}
							open := strings.Contains(control, "public") || strings.Contains(control, "s-maxage") || strings.Contains(control, "must-revalidate")
							if strings.HasPrefix(control, "private,") {
								open = false
							} else if who == "" && !authorized {
								open = true
							}
							_, _ = fmt.Fprintf(w, "%s|%v", who, open)
							return nil
						})
						if err != nil || w.Code != 200 && w.Code != 206 || r.Method == "HEAD" {
							continue
						}
						whose, open, _ := strings.Cut(w.Body.String(), "|")
						if whose != who && open != "true" {
							t.Errorf("%q got what was made for %q (%s, %q)", who, whose, r.Method, w.Header()["Cache-Status"])
						}
						switch {
						case touched:
						case strings.Contains(w.Header().Get("Cache-Status"), "collapsed"):
							waited.Add(1)
						case whose == who:
							own.Add(1)
						default:
							shared.Add(1)
						}
						time.Sleep(rand.N(400 * time.Millisecond))
					}
				})
			}
			wg.Wait()
			g.c.Close()
			if least := int64(workers * rounds / 100); shared.Load() < least || own.Load() < least || waited.Load() < least/5 {
				t.Errorf("%s: %d shared and %d own answers came from the store, %d were waited for: nothing was tested", conf.Name, shared.Load(), own.Load(), waited.Load())
			}
			g.c.audit(t)
		})
	}
}

func TestMemoryIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		conf := Gateway()
		conf.MaxBytes, conf.MaxEntries, conf.MaxBody = 100<<10, 50, 40<<10
		g := newRig(t, conf)
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 3000 {
			n := rnd.IntN(50 << 10)
			g.origin = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Cache-Control", "max-age=60")
				if rnd.IntN(2) == 0 {
					w.Header().Set("Content-Length", fmt.Sprint(n))
				}
				for left := n; left > 0; {
					m := min(left, 1+rnd.IntN(9000))
					w.Write(make([]byte, m))
					left -= m
				}
			}
			g.do(fmt.Sprintf("GET /%d", rnd.IntN(200)), "Foo: x", fmt.Sprintf("space: %d", rnd.IntN(3)))
			if rnd.IntN(20) == 0 {
				g.c.Invalidate("1", fmt.Sprintf("/%d", rnd.IntN(200)))
			}
			g.c.audit(t)
		}
		if s := g.c.Stats(); s.Evictions == 0 || s.Hits == 0 {
			t.Errorf("%+v: nothing was tested", s)
		}
		if n := g.c.PurgeAll(); n == 0 || g.c.Stats().Bytes != 0 || len(g.c.sites) != 0 {
			t.Errorf("after PurgeAll of %d: %+v, %d spaces", n, g.c.Stats(), len(g.c.sites))
		}
	})
}

// What is counted is what is taken, whatever the size of the body; and besides the body that is
// not much, on the gateway and on the relay, with fields, target, host, owner and space.
func TestCountedMemoryIsReal(t *testing.T) {
	const most = 400 // bytes besides the body, which is as long as the allocator likes
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	fields := []string{"Cache-Control: max-age=600", `Etag: "5f2a1b-1000"`, "Content-Type: application/json", "Date: +0", "Via: 1.1 cloudrest"}
	cdn := append(fields[:len(fields):len(fields)], "Cdn-Cache-Control: max-age=600")
	for _, c := range []struct {
		name    string
		conf    Config
		n, body int
		fields  []string
		host    string
		owner   string
		spaces  int
	}{
		{"gateway, small", Gateway(), 8000, 64, fields, "garden.local", "", 1},
		{"gateway, 4 KB", Gateway(), 4000, 4096, fields, "garden.local", "", 1},
		{"gateway, a client's own, 4 KB", Gateway(), 4000, 4096, fields, "garden.local", "c-8f2a1b7711", 1},
		{"gateway, odd size", Gateway(), 4000, 4200, fields, "garden.local", "", 1},
		{"relay, small", Relay(), 8000, 64, cdn, "relay.example", "operator", 800},
		{"relay, 4 KB", Relay(), 4000, 4096, cdn, "relay.example", "operator", 400},
		{"relay, one answer of each device", Relay(), 5000, 64, cdn, "relay.example", "operator", 5000},
	} {
		c.conf.MaxBytes, c.conf.MaxEntries = 1<<30, c.n
		cache, err := New(c.conf)
		if err != nil {
			t.Fatal(err)
		}
		body := strings.Repeat("x", c.body)
		before := heap()
		for i := range c.n {
			r := httptest.NewRequest("GET", fmt.Sprintf("/zones/%d/state", i), nil)
			r.Host = c.host
			target := Target{URI: r.RequestURI, Principal: c.owner, Space: fmt.Sprintf("%064d", i%c.spaces)}
			_ = cache.Serve(httptest.NewRecorder(), r, target, func(w http.ResponseWriter, r *http.Request) error {
				answer(append(c.fields, "body: "+body)...)(w, r)
				return nil
			})
		}
		real, counted := (heap()-before)/int64(c.n), cache.Stats().Bytes/int64(c.n)
		besides := real - int64(c.body)
		t.Logf("%s: an answer of %d bytes takes %d bytes, %d besides its body; %d are counted", c.name, c.body, real, besides, counted)
		if counted < real*95/100 || cache.Stats().Entries != c.n {
			t.Errorf("%s: %d bytes are counted for each of %d, but %d are taken", c.name, counted, cache.Stats().Entries, real)
		}
		if besides > most && c.body != 4200 && c.spaces < c.n {
			t.Errorf("%s: %d bytes besides the body, want at most %d", c.name, besides, most)
		}
		runtime.KeepAlive(cache)
	}
}

func TestDistrustedSpace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		conf := Relay()
		trusted := false
		conf.Fresh = func(_ context.Context, space string) bool { return trusted || space != "dev" }
		g := newRig(t, conf)
		g.answers("Cache-Control: max-age=60, stale-if-error=60", `Etag: "a"`)
		g.do("GET /x", "space: dev")
		g.answers("status: 304")
		g.want("asked although fresh", g.do("GET /x", "space: dev"), 200, "body", 2)
		offline := errors.New("offline")
		next := func(http.ResponseWriter, *http.Request) error { return offline }
		r := httptest.NewRequest("GET", "http://host/x", nil)
		w := httptest.NewRecorder()
		if err := g.c.Serve(w, r, Target{Space: "dev", URI: "/x"}, next); err != nil || w.Body.String() != "body" || !strings.Contains(w.Header().Get("Cache-Status"), "stale") {
			t.Errorf("offline: %v, %q, %q, want the stored answer marked stale", err, w.Body, w.Header()["Cache-Status"])
		}
		r.RequestURI = "/y"
		if err := g.c.Serve(httptest.NewRecorder(), r, Target{Space: "dev", URI: "/y"}, next); !errors.Is(err, offline) {
			t.Errorf("offline, nothing stored: %v, want %v", err, offline)
		}
		g.answers("Cache-Control: max-age=60", `Etag: "b"`)
		g.do("GET /z", "space: dev")
		if err := g.c.Serve(httptest.NewRecorder(), httptest.NewRequest("GET", "http://host/z", nil), Target{Space: "dev", URI: "/z"}, next); !errors.Is(err, offline) {
			t.Errorf("offline, and nobody allows stale answers: %v, want %v", err, offline)
		}
		trusted = true
		n := len(g.asked)
		g.want("trusted again", g.do("GET /z", "space: dev"), 200, "", n)
	})
}

// Whether a space may be answered for is asked only where something can be had without the
// origin, once for a request, and what is had is looked up after that.
func TestFreshIsAskedForWhatIsThere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		conf := Relay()
		var asked atomic.Int64
		var meanwhile func()
		refuse := false
		conf.Fresh = func(context.Context, string) bool {
			asked.Add(1)
			if meanwhile != nil {
				meanwhile()
			}
			return !refuse
		}
		g := newRig(t, conf)
		for _, c := range []struct {
			what    string
			uri     string
			fields  []string // of the request
			control string   // of the origin's answer
			asked   int64
			origin  int
		}{
			{"a miss", "/a", nil, "max-age=2", 0, 1},
			{"a hit", "/a", nil, "", 1, 1},
			{"only-if-cached, a hit", "/a", []string{"Cache-Control: only-if-cached"}, "", 2, 1},
			{"only-if-cached, a miss", "/none", []string{"Cache-Control: only-if-cached"}, "", 2, 1},
			{"no-cache in the request", "/a", []string{"Cache-Control: no-cache"}, "max-age=2", 2, 2},
			{"no-store in the request", "/a", []string{"Cache-Control: no-store"}, "max-age=2", 2, 3},
			{"no-cache in the answer", "/b", nil, "no-cache", 2, 4},
			{"no-cache in the answer, again", "/b", nil, "no-cache", 2, 5},
			{"of another host", "/a", []string{"host: other"}, "no-store", 2, 6},
		} {
			if c.control != "" {
				g.answers("Cache-Control: "+c.control, `Etag: "a"`)
			}
			g.do("GET "+c.uri, c.fields...)
			if n := asked.Load(); n != c.asked || len(g.asked) != c.origin {
				t.Errorf("%s: Fresh was asked %d times, the origin %d times, want %d and %d", c.what, n, len(g.asked), c.asked, c.origin)
			}
		}
		time.Sleep(3 * time.Second)
		g.answers("Cache-Control: max-age=60", `Etag: "a"`, "body: new")
		if g.do("GET /a"); asked.Load() != 2 {
			t.Errorf("a stale answer: Fresh was asked %d times, want 2", asked.Load())
		}
		meanwhile = func() { g.c.Invalidate("", "/a") }
		g.answers("Cache-Control: max-age=60", "body: newer")
		g.want("a write while Fresh waits", g.do("GET /a"), 200, "newer", 8)
		if asked.Load() != 3 {
			t.Errorf("a write while Fresh waits: Fresh was asked %d times, want 3", asked.Load())
		}

		// An answer that is under way: who asks for it then needs leave to wait for it, and who does
		// not get it asks by himself.
		meanwhile = func() { time.Sleep(time.Second) }
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Second)
			answer("Cache-Control: max-age=60")(w, r)
		}
		var origin atomic.Int64
		get := func(uri string) {
			r := httptest.NewRequest("GET", "http://host"+uri, nil)
			_ = g.c.Serve(httptest.NewRecorder(), r, Target{URI: uri}, func(w http.ResponseWriter, r *http.Request) error { origin.Add(1); g.origin(w, r); return nil })
		}
		for _, want := range []int64{1, 6} {
			asked.Store(0)
			origin.Store(0)
			refuse = want > 1
			start := time.Now()
			var wg sync.WaitGroup
			uri := fmt.Sprint("/slow/", want)
			wg.Go(func() { get(uri) })
			synctest.Wait()
			for range 5 {
				wg.Go(func() { get(uri) })
			}
			wg.Wait()
			if d := time.Since(start); origin.Load() != want || asked.Load() != 5 || d > 11*time.Second {
				t.Errorf("six requests at once: the origin was asked %d times, Fresh %d times, in %v, want %d, 5 and at most 11s", origin.Load(), asked.Load(), d, want)
			}
		}
	})
}

func TestBackgroundIsBoundedAndEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.c.conf.Background = 2
		g.answers("Cache-Control: max-age=1, stale-while-revalidate=60")
		for i := range 5 {
			g.do(fmt.Sprintf("GET /%d", i))
		}
		time.Sleep(2 * time.Second)
		var running atomic.Int64
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			running.Add(1)
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		for i := range 5 {
			r := httptest.NewRequest("GET", fmt.Sprintf("http://host/%d", i), nil)
			_ = g.c.Serve(httptest.NewRecorder(), r, Target{URI: fmt.Sprintf("/%d", i)}, func(w http.ResponseWriter, r *http.Request) error { g.origin(w, r); return nil })
		}
		synctest.Wait()
		if n := running.Load(); n != 2 {
			t.Errorf("%d validations in the background, want 2", n)
		}
		g.c.Close()
		g.c.audit(t)
	})
}

func TestEntriesAndPurge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Relay())
		g.answers("Cache-Control: max-age=60, private", `Etag: "a"`, "Vary: Foo")
		g.do("GET /x?q", "space: dev", "principal: ann")
		g.do("GET /y", "space: other", "principal: ann")
		time.Sleep(10 * time.Second)
		list := g.c.Entries("dev", 10)
		if len(list) != 1 {
			t.Fatalf("%d entries, want 1", len(list))
		}
		e := list[0]
		if e.URI != "/x?q" || e.Principal != "ann" || e.Age != 10*time.Second || e.Fresh != 50*time.Second || e.ETag != `"a"` || e.Body != 4 || len(e.Vary) != 1 {
			t.Errorf("entry %+v", e)
		}
		if n := g.c.Purge("dev", "/x"); n != 1 {
			t.Errorf("purged %d, want 1", n)
		}
		if n := g.c.PurgeSpace("other"); n != 1 || g.c.Stats().Bytes != 0 {
			t.Errorf("purged %d, %+v, want 1 and nothing left", n, g.c.Stats())
		}
	})
}

// nothing is a ResponseWriter as cheap as can be.
type nothing struct {
	h http.Header
	n int
}

func (w *nothing) Header() http.Header         { return w.h }
func (w *nothing) WriteHeader(int)             {}
func (w *nothing) Write(b []byte) (int, error) { w.n += len(b); return len(b), nil }

func BenchmarkHit(b *testing.B) {
	c, err := New(Gateway())
	if err != nil {
		b.Fatal(err)
	}
	body := strings.Repeat("x", 4096)
	origin := func(w http.ResponseWriter, r *http.Request) error {
		answer("Cache-Control: max-age=600", `Etag: "12345678"`, "Content-Type: application/json", "Date: +0", "body: "+body)(w, r)
		return nil
	}
	r := httptest.NewRequest("GET", "/zones/1/state", nil)
	w := &nothing{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		_ = c.Serve(w, r, Target{URI: r.RequestURI}, origin)
	}
}

// Most services say nothing of caches, and many do not look at preconditions either.
func TestServiceThatDoesNotValidate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fields := []string{`Etag: "a"`, "Content-Length: 4", "Date: +0", "A: 1", "A: 2"}
		g := newRig(t, Gateway())
		g.answers(fields...)
		asked := func() bool { return g.asked[len(g.asked)-1].Header.Get("If-None-Match") == `"a"` }
		g.do("GET /x")
		for i := range 2 * (maxUnasked + 1) {
			if i%8 == 0 {
				time.Sleep(time.Second) // another Date
				g.answers(fields...)
			}
			w := g.do("GET /x")
			if got, want := asked(), i%(maxUnasked+1) == 0; got != want {
				t.Errorf("request %d: asked under a condition: %v, want %v", i, got, want)
			}
			h := w.Header()
			if w.Body.String() != "body" || len(h["A"]) != 2 || h.Get("Date") != time.Now().UTC().Format(http.TimeFormat) || h.Get("Cache-Status") != "cloudrest-gateway; fwd=stale; stored" {
				t.Fatalf("request %d: %q with %v", i, w.Body, h)
			}
			if s := g.c.Stats(); s.Entries != 1 || s.Stores != uint64(i+2) {
				t.Fatalf("request %d: %d entries, stored %d times", i, s.Entries, s.Stores)
			}
		}

		n := len(g.asked)
		w := g.do("GET /x", `If-None-Match: "a"`)
		g.want("its ETag is of use nevertheless", w, 304, "", n+1)
		if w.Body.Len() != 0 || w.Header().Get("Content-Length") != "" {
			t.Errorf("304 with %q, %v", w.Body, w.Header())
		}
		time.Sleep(BridgeTime - time.Second)
		g.answers("status: 502", "B: 1", "Content-Type: text/plain", "Via: 1.1 bad")
		w = g.do("GET /x")
		g.want("the newest answer bridges a restart", w, 200, "body", n+2)
		if h := w.Header(); h.Get("B")+h.Get("Via") != "" || h.Get("Age") != "29" || len(h["A"]) != 2 {
			t.Errorf("in place of a failure: %v, want nothing of that and Age 29", h)
		}
		g.answers(`Etag: "b"`, "Content-Length: 5", "body: other")
		g.want("another answer", g.do("GET /x"), 200, "other", n+3)
		g.answers("status: 502")
		g.want("takes its place", g.do("GET /x"), 200, "other", n+4)
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") == `"b"` {
				w.Header()["B"] = []string{"1"}
				w.WriteHeader(http.StatusNotModified)
				return
			}
			answer(`Etag: "b"`, "body: other")(w, r)
		}
		for range maxUnasked {
			g.do("GET /x")
		}
		validated := g.c.Stats().Validated
		g.want("a service that has learned it", g.do("GET /x"), 200, "other", len(g.asked))
		if got := g.c.Stats().Validated - validated; got != 1 {
			t.Errorf("%d answers validated, want 1", got)
		}
	})
}

// The body is compared with the stored one as it comes, in whatever pieces.
func TestBodyBesideTheStoredOne(t *testing.T) {
	const old = "0123456789"
	for _, c := range []struct {
		name   string
		pieces []string
		length bool   // is declared
		tag    string // "": the one before
		kept   string // what a restart is bridged with; "": nothing
	}{
		{"the same", []string{"0123", "456789"}, true, "", old},
		{"the same of unknown length", []string{"0123", "456789"}, false, "", old},
		{"the same under another tag", []string{old}, true, `"b"`, old},
		{"another under the same tag", []string{"0123", "x56789"}, true, "", ""},
		{"another under another tag", []string{"0123", "x56789"}, true, `"b"`, "0123x56789"},
		{"longer", []string{old, "ab", "c"}, false, `"b"`, old + "abc"},
		{"longer under the same tag", []string{old, "ab"}, true, "", old + "ab"},
		{"shorter", []string{"012", "34"}, false, `"b"`, "01234"},
		{"nothing", nil, true, `"b"`, ""},
		{"another from the begin", []string{"x", "y"}, false, `"b"`, "xy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, Gateway())
				g.answers(`Etag: "a"`, "Content-Length: 10", "body: "+old)
				g.do("GET /x")
				body, tag := strings.Join(c.pieces, ""), `"a"`
				if c.tag != "" {
					tag = c.tag
				}
				g.origin = func(w http.ResponseWriter, r *http.Request) {
					w.Header()["Etag"] = []string{tag}
					if c.length {
						w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
					}
					for _, p := range c.pieces {
						b := []byte(p)
						w.Write(b)
						clear(b) // it is the writer's again
					}
				}
				if w := g.do("GET /x"); w.Body.String() != body || w.Header().Get("Etag") != tag {
					t.Errorf("got %q with %v, want %q", w.Body, w.Header(), body)
				}
				used := g.c.Stats().Bytes
				g.answers("status: 502", "body: gone")
				status, kept := 200, c.kept
				if kept == "" && body != "" {
					status, kept = 502, "gone"
				}
				g.want("when the service restarts", g.do("GET /x"), status, kept, 3)
				if used != 0 && status == 502 {
					t.Errorf("%d bytes used by nothing", used)
				}
			})
		})
	}
}

// An answer is only taken for the stored one's if it could have been stored so.
func TestSameAnswerForWhom(t *testing.T) {
	first := []string{`Etag: "a"`, "Content-Length: 4", "Date: +0", "A: 1", "A: 2"}
	for _, c := range []struct {
		name   string
		ask    []string
		then   []string
		whose  string
		fields string
	}{
		{"the same", nil, first, "", "1 2"},
		{"less fields", nil, []string{`Etag: "a"`, "Content-Length: 4", "Date: +0"}, "", ""},
		{"less lines", nil, []string{`Etag: "a"`, "Content-Length: 4", "Date: +0", "A: 1"}, "", "1"},
		{"more lines", nil, append([]string{"A: 1"}, first...), "", "1 1 2"},
		{"more fields", nil, append([]string{"B: 3"}, first...), "", "1 2 3"},
		{"without Date", nil, []string{`Etag: "a"`, "Content-Length: 4", "A: 1", "A: 2"}, "", "1 2"},
		{"another client's", []string{"principal: ann"}, first, "ann", "1 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, Gateway())
				g.answers(first...)
				g.do("GET /x")
				if c.name == "without Date" {
					time.Sleep(2 * time.Second)
				}
				g.answers(c.then...)
				g.do("GET /x", c.ask...)
				now := time.Now().UTC().Format(http.TimeFormat)
				list := g.c.Entries("", 9)
				if len(list) != 1 || list[0].Principal != c.whose {
					t.Fatalf("stored %+v, want one answer, for %q", list, c.whose)
				}
				g.answers("status: 502")
				h := g.do("GET /x", c.ask...).Header()
				if got := strings.Join(append(h["A"], h["B"]...), " "); got != c.fields || h.Get("Date") != now {
					t.Errorf("later: A and B %q, Date %q, want %q, %q", got, h.Get("Date"), c.fields, now)
				}
			})
		})
	}
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers(first...)
		g.do("GET /x")
		g.answers(append([]string{"Set-Cookie: a=b"}, first...)...)
		g.do("GET /x")
		if list := g.c.Entries("", 9); len(list) != 0 {
			t.Errorf("with a cookie: stored %+v, want nothing", list)
		}
	})
}

// What is kept back for its ETag uses the same memory again, but not that of what is stored.
func TestMemoryForTagsIsNotStored(t *testing.T) {
	g := newRig(t, Gateway())
	for i, life := range []string{"max-age=60", "max-age=0", "max-age=60", "max-age=0", "max-age=0"} {
		for _, size := range []int{4096, 3000, 9000} {
			uri := "/" + strconv.Itoa(i) + "/" + strconv.Itoa(size)
			body := strings.Repeat(strconv.Itoa(i), size)
			g.answers("Cache-Control: "+life, "Content-Length: "+strconv.Itoa(size), "body: "+body)
			g.want(uri, g.do("GET "+uri), 200, body, len(g.asked))
		}
	}
	n := len(g.asked)
	for _, i := range []int{0, 2} {
		for _, size := range []int{4096, 3000, 9000} {
			uri := "/" + strconv.Itoa(i) + "/" + strconv.Itoa(size)
			g.want(uri+" from the store", g.do("GET "+uri), 200, strings.Repeat(strconv.Itoa(i), size), n)
		}
	}
}
