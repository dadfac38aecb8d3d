package relay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

const registers = 12

// keeper is a device with numbered registers that keeps the device's side of SPEC.md §4.12.
type keeper struct {
	r *running
	d *thing
	p *tethertest.BadPath

	mu       sync.Mutex
	versions [registers]int
	history  [registers][]tethertest.Op
	seq      uint64
	links    []*tie
	changed  chan struct{}
}

type tie struct {
	s    *mux.Session
	done uint64
}

const keeperEpoch = 77

// invalidate is what firmware/internal/uplink does, in short.
func (k *keeper) invalidate(through *tie, uri string) {
	type claim struct {
		l     *tie
		until time.Time
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seq++
	seq := k.seq
	var claims []claim
	k.links = slices.DeleteFunc(k.links, func(l *tie) bool {
		ponged, err := l.s.Invalidate(frame.Invalidate{Epoch: keeperEpoch, Seq: seq, URIs: []string{uri}})
		if until := ponged.Add(4 * time.Second); until.After(time.Now()) {
			if l != through {
				claims = append(claims, claim{l, until})
			}
			return false
		}
		return err != nil
	})
	for {
		var left time.Duration
		for _, c := range claims {
			if c.l.done < seq {
				left = max(left, time.Until(c.until))
			}
		}
		if left <= 0 {
			return
		}
		if k.changed == nil {
			k.changed = make(chan struct{})
		}
		changed := k.changed
		k.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(left):
		}
		k.mu.Lock()
	}
}

// run keeps a tether.
func (k *keeper) run(ctx context.Context) {
	u := &url.URL{Scheme: "ws", Host: k.p.Addr()}
	for ctx.Err() == nil {
		l := &tie{}
		d := k.d.Device
		d.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { k.serve(w, r, l) })
		d.OnInvalidated = func(v frame.Invalidated) {
			k.mu.Lock()
			defer k.mu.Unlock()
			for _, o := range k.links[:slices.Index(k.links, l)+1] {
				o.done = max(o.done, v.Seq)
			}
			if k.changed != nil {
				close(k.changed)
				k.changed = nil
			}
		}
		s, _, err := d.Connect(ctx, u, "")
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		k.mu.Lock()
		l.s = s
		k.links = append(k.links, l)
		_, _ = s.Invalidate(frame.Invalidate{Epoch: keeperEpoch, Seq: k.seq})
		k.mu.Unlock()
		select {
		case <-s.Done():
		case <-ctx.Done():
			s.Close(1000, "test over")
			<-s.Done()
		}
	}
}

func pause() {
	if rand.IntN(3) == 0 {
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}

func (k *keeper) read(i int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.versions[i]
}

func (k *keeper) write(i int, through *tie) int {
	k.mu.Lock()
	k.versions[i]++
	v := k.versions[i]
	k.mu.Unlock()
	pause()
	k.invalidate(through, uriOf(i))
	return v
}

func uriOf(i int) string { return "/r/" + strconv.Itoa(i) }

func (k *keeper) serve(w http.ResponseWriter, r *http.Request, l *tie) {
	i, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/r/"))
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	pause()
	if r.Method == http.MethodPut {
		fmt.Fprint(w, k.write(i, l))
		return
	}
	v := k.read(i)
	pause() // a write may come in between: this answer must not be stored then
	control := "max-age=60"
	switch i % 4 {
	case 1:
		control = "no-cache"
	case 2:
		control = "max-age=1, stale-while-revalidate=60"
	}
	h := w.Header()
	h.Set("Cache-Control", control)
	if i%4 != 3 {
		tag := fmt.Sprintf("%q", fmt.Sprint("v", v))
		h.Set("Etag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	fmt.Fprint(w, v)
}

func (k *keeper) note(i int, o tethertest.Op) {
	k.mu.Lock()
	k.history[i] = append(k.history[i], o)
	k.mu.Unlock()
}

// storm lets clients on both ways loose for a while, on a network that gets worse and worse,
// and returns how many requests were answered and what the checker says.
func storm(t *testing.T, off coherence, length time.Duration) (ops int, hits uint64, wrong []string) {
	r := start(t, func(c *Config) { c.coherence = off })
	k := &keeper{r: r, d: newThing(t, "keeper", nil)}
	k.p = tethertest.NewBadPath(t, strings.TrimPrefix(r.base, "http://"))
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { k.run(ctx) })
	remote := func(method string, i int) {
		within, stop := context.WithTimeout(ctx, 700*time.Millisecond)
		defer stop()
		req := httptest.NewRequestWithContext(within, method, k.d.path(uriOf(i)), nil)
		req.Host = "127.0.0.1"
		req.Header.Set("Authorization", "Bearer "+r.token)
		begin := time.Now()
		w := httptest.NewRecorder()
		func() { // without the client's connection, which is not what this is about
			defer func() {
				if v := recover(); v != nil {
					if v != http.ErrAbortHandler {
						panic(v)
					}
					w.Code = http.StatusGatewayTimeout
				}
			}()
			r.front.ServeHTTP(w, req)
		}()
		if w.Code != http.StatusOK {
			time.Sleep(5 * time.Millisecond) // offline
			return
		}
		if v, err := strconv.Atoi(w.Body.String()); err == nil {
			k.note(i, tethertest.Op{Write: method == http.MethodPut, Version: v, Begin: begin, End: time.Now()})
		}
	}
	for range 8 {
		all.Go(func() {
			for ctx.Err() == nil {
				remote(http.MethodGet, rand.IntN(registers))
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for ctx.Err() == nil {
				remote(http.MethodPut, rand.IntN(registers))
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		})
	}
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				i, begin := rand.IntN(registers), time.Now()
				k.note(i, tethertest.Op{Write: true, Version: k.write(i, nil), Begin: begin, End: time.Now()})
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		})
	}
	all.Go(func() { // the network
		rest := func(d time.Duration) {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		}
		until := time.Now().Add(length / 2)
		for ctx.Err() == nil && time.Now().Before(until) {
			rest(100*time.Millisecond + rand.N(400*time.Millisecond))
			switch rand.IntN(4) {
			case 0:
				k.p.Hold(true)
				rest(rand.N(600 * time.Millisecond))
				k.p.Hold(false)
			case 1:
				k.p.Half()
			default:
				k.p.Cut()
			}
		}
		// For the rest the relay believes in a connection that is gone.
		k.p.Shut(true)
		k.p.Half()
		<-ctx.Done()
	})
	all.Wait()
	for i, h := range k.history {
		ops += len(h)
		if g, w, ok := tethertest.Older(h); ok {
			wrong = append(wrong, fmt.Sprintf("register %d: a GET that began %v after the answer to the write of version %d was answered with version %d",
				i, g.Begin.Sub(w.End), w.Version, g.Version))
		}
	}
	return ops, r.cache.Stats().Hits, wrong
}

// So many answers from the store show something; until then there is another storm, up to so many.
const (
	leastHits = 100
	maxStorms = 8
)

// After a write's answer was seen on one way, no later GET on any way is answered with what
// was before.
func TestCoherence(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 25 s")
	}
	for _, tc := range []struct {
		name   string
		off    coherence
		length time.Duration
		wrong  bool
	}{
		{"as it is", coherence{}, 13 * time.Second, false},
		{"without lease", coherence{noLease: true}, 6 * time.Second, true},
		{"INVALIDATE does nothing", coherence{noDrops: true}, 2 * time.Second, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			// A busy machine gets little done in one of them.
			var hits uint64
			var wrong []string
			for range maxStorms {
				n, h, w := storm(t, tc.off, tc.length)
				hits, wrong = hits+h, append(wrong, w...)
				t.Logf("%d requests, %d answered from the store, %d registers wrong", n, h, len(w))
				if hits >= leastHits && (len(wrong) > 0 || !tc.wrong) {
					break
				}
			}
			if (len(wrong) > 0) != tc.wrong {
				t.Errorf("the checker found %q, want something found: %v", wrong, tc.wrong)
			}
			if hits < leastHits {
				t.Errorf("%d requests were answered from the store: this shows nothing", hits)
			}
		})
	}
}
