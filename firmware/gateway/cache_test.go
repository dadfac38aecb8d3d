package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// polled is a maker's service that counts who asks for what.
type polled struct {
	*http.ServeMux
	state atomic.Int64
	mu    sync.Mutex
	asked map[string]int
}

func newPolled() *polled {
	p := &polled{ServeMux: garden(), asked: map[string]int{}}
	p.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=3600")
		fmt.Fprintf(w, "state %d", p.state.Load())
	})
	p.HandleFunc("PUT /state", func(w http.ResponseWriter, r *http.Request) { p.state.Add(1) })
	p.HandleFunc("GET /mine", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "private, max-age=3600")
		fmt.Fprintf(w, "answer %d for %s", p.count("/mine"), r.Header.Get("Authorization"))
	})
	p.HandleFunc("GET /plain", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "plain %d", p.state.Load()) })
	p.HandleFunc("PUT /plain", func(w http.ResponseWriter, r *http.Request) { p.state.Add(1) })
	return p
}

func (p *polled) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		p.mu.Lock()
		p.asked[r.URL.Path]++
		p.mu.Unlock()
	}
	p.ServeMux.ServeHTTP(w, r)
}

func (p *polled) count(path string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[path]
}

// do sends a request with fields such as "Name: value" to an absolute URL.
func do(t *testing.T, c *http.Client, method, url string, fields ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// told notes what a relay would be told.
type told struct {
	mu    sync.Mutex
	uris  []string // "*" stands for everything
	check func()
	err   error
}

func (r *told) Invalidate(ctx context.Context, uris []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.check != nil {
		r.check()
	}
	if len(uris) == 0 {
		uris = []string{"*"}
	}
	r.uris = append(r.uris, uris...)
	return r.err
}

func (r *told) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.uris
	r.uris = nil
	return u
}

// One store for LAN and tether: hits pass neither the gate nor the service, and a write on
// either way ends what both would give out.
func TestCacheOnBothWays(t *testing.T) {
	relay, service := newSmallRelay(t), newPolled()
	r := start(t, Config{OriginHandler: service, Relays: relay.url(t), RelayCA: relay.ca})
	r.until(t, "tether up", func(s Status) bool { return s.Tether.State == "up" })
	lan, far := strings.TrimSuffix(r.URL(), "/"), relay.URL+"/d"
	// The same resource: the answer is stored under the host, which a relay need not keep.
	for i, way := range []struct {
		name string
		c    *http.Client
		base string
	}{{"LAN", r.client, lan}, {"tether", relay.Client(), far}} {
		before := service.count("/state")
		first, _ := do(t, way.c, "GET", way.base+"/state")
		admitted := r.Status().Origin.Admitted
		second, body := do(t, way.c, "GET", way.base+"/state", tether.HeaderID+": 11111111-2222-4333-8444-555555555555")
		if got := service.count("/state") - before; got != 1 || body != fmt.Sprintf("state %d", 2*i) || r.Status().Origin.Admitted != admitted {
			t.Errorf("%s: two GETs asked the service %d times, the second gave %q, want 1 and a hit past the gate", way.name, got, body)
		}
		if got := second.Header.Get("Cache-Status"); !strings.HasPrefix(got, "cloudrest-gateway; hit; ttl=") {
			t.Errorf("%s: Cache-Status %q, want a hit", way.name, got)
		}
		id := second.Header.Get(tether.HeaderID)
		if id == "" || id == first.Header.Get(tether.HeaderID) || (id == "11111111-2222-4333-8444-555555555555") != (way.name == "tether") {
			t.Errorf("%s: the hit has ID %q: want the relay's, and on the LAN a new one", way.name, id)
		}
		for _, writer := range []struct {
			name string
			c    *http.Client
			base string
		}{{"LAN", r.client, lan}, {"tether", relay.Client(), far}} {
			want := fmt.Sprintf("state %d", service.state.Load()+1)
			if resp, _ := do(t, writer.c, "PUT", writer.base+"/state"); resp.StatusCode != 200 {
				t.Fatalf("PUT over %s = %d", writer.name, resp.StatusCode)
			}
			if _, got := do(t, way.c, "GET", way.base+"/state"); got != want {
				t.Errorf("after a write over the %s, the %s gives %q, want %q", writer.name, way.name, got, want)
			}
		}
	}
	// Over the tether an answer may be there a moment before it is stored; the last write then finds nothing to remove.
	if st := r.Status().Cache; st.State != "on" || st.Hits != 2 || st.Limit != 4<<20 || st.Saved == 0 || st.Invalidated < 4 || st.Invalidated > 5 {
		t.Errorf("status = %+v, want 2 hits and 4 or 5 invalidated (one of the LAN by a write while the tether was polled)", st)
	}
}

// Private answers stay with whom they were made for, also when the token is gone.
func TestCachePrincipals(t *testing.T) {
	service := newPolled()
	dir := filepath.Join(t.TempDir(), "state")
	r := start(t, Config{OriginHandler: service, Access: AccessPaired, StateDir: dir})
	base := strings.TrimSuffix(r.URL(), "/")
	first := r.pair(t, "first")
	if _, err := r.pairing.Open(pairing.WayButton, pairing.OpenOptions{Role: pairing.Member}); err != nil {
		t.Fatal(err)
	}
	second := r.pair(t, "second")
	get := func(token string, fields ...string) string {
		_, body := do(t, r.client, "GET", base+"/mine", append(fields, "X-CloudREST-Token: "+token)...)
		return body
	}
	for range 2 {
		if got := get(first); got != "answer 1 for " {
			t.Errorf("the first client got %q, want its own answer 1", got)
		}
		if got := get(second); got != "answer 2 for " {
			t.Errorf("the second client got %q, want its own answer 2", got)
		}
		if got := get(second, "Authorization: Basic eA=="); got != "answer 3 for Basic eA==" {
			t.Errorf("the second client with an account got %q, want that account's answer 3", got)
		}
	}

	if got := ask(t, r.client, "GET", r.own("cache"), second, "", nil); got != 403 {
		t.Errorf("a member's look into the cache = %d, want 403", got)
	}
	if got := ask(t, r.client, "GET", r.own("cache"), "", "", nil); got != 401 {
		t.Errorf("a look into the cache without a token = %d, want 401", got)
	}
	var list CacheList
	if got := ask(t, r.client, "GET", r.own("cache"), first, "", &list); got != 200 || len(list.Kept) != 3 || list.Entries != 3 {
		t.Fatalf("an owner's look into the cache = %d, %+v, want 3 entries", got, list)
	}
	var gone string
	for _, e := range list.Kept {
		if e.Path != "/mine" || e.For != "client" || e.Hits != 1 || e.Fresh < 3500 || e.Body == 0 {
			t.Errorf("entry %+v, want /mine of a client with 1 hit", e)
		}
		if e.Name == "second" {
			gone = e.Client
		}
	}
	// Revoked: nothing is reachable, and nothing stays.
	if got := ask(t, r.client, "DELETE", r.own("clients/"+gone), first, "", nil); got != 204 {
		t.Fatalf("revoke = %d", got)
	}
	if resp, body := do(t, r.client, "GET", base+"/mine", "X-CloudREST-Token: "+second); resp.StatusCode != 401 {
		t.Errorf("a revoked client got %d %q, want 401", resp.StatusCode, body)
	}
	r.until(t, "the revoked client's answers are gone", func(s Status) bool { return s.Cache.Entries == 1 })

	// The control socket needs no token.
	local := &http.Client{Transport: socket(dir)}
	if got := ask(t, local, "GET", "http://device"+CachePath, "", "", &list); got != 200 || len(list.Kept) != 1 || list.Kept[0].Name != "first" {
		t.Errorf("over the socket = %d, %+v, want the first client's answer", got, list.Kept)
	}
}

// Where nobody is paired, credentials for the service tell apart.
func TestCacheCredentials(t *testing.T) {
	service := newPolled()
	r := start(t, Config{OriginHandler: service})
	base := strings.TrimSuffix(r.URL(), "/")
	for range 2 {
		for i, who := range []string{"Basic YTph", "Basic Yjpi"} {
			if _, got := do(t, r.client, "GET", base+"/mine", "Authorization: "+who); got != fmt.Sprintf("answer %d for %s", i+1, who) {
				t.Errorf("%s got %q", who, got)
			}
		}
	}
	asked := service.count("/mine")
	for range 2 {
		do(t, r.client, "GET", base+"/mine")
	}
	if got := service.count("/mine") - asked; got != 2 {
		t.Errorf("two GETs of a private answer by nobody asked the service %d times, want 2", got)
	}
}

// A service without any field of its own: gateway-made ETags, 304, 412.
func TestCacheTags(t *testing.T) {
	r := start(t, Config{OriginHandler: newPolled()})
	base := strings.TrimSuffix(r.URL(), "/")
	resp, _ := do(t, r.client, "GET", base+"/plain")
	tag := resp.Header.Get("Etag")
	if !strings.HasPrefix(tag, `"cr.`) {
		t.Fatalf("ETag %q, want one that the gateway made", tag)
	}
	if resp, body := do(t, r.client, "GET", base+"/plain", "If-None-Match: "+tag); resp.StatusCode != 304 || body != "" {
		t.Errorf("If-None-Match = %d %q, want 304", resp.StatusCode, body)
	}
	if resp, _ := do(t, r.client, "PUT", base+"/plain", "If-Match: "+tag); resp.StatusCode != 200 {
		t.Errorf("the first PUT = %d, want 200", resp.StatusCode)
	}
	if resp, _ := do(t, r.client, "PUT", base+"/plain", "If-Match: "+tag); resp.StatusCode != 412 {
		t.Errorf("the second PUT = %d, want 412", resp.StatusCode)
	}
	if st := r.Status().Cache; st.NotModified != 1 || st.Refused != 1 {
		t.Errorf("status = %+v, want 1 not modified, 1 refused", st)
	}
}

// Off is off, but a relay must still hear of writes: its copies are its own.
func TestCacheOff(t *testing.T) {
	service, relay := newPolled(), &told{}
	r := start(t, Config{OriginHandler: service, Cache: -1, CacheRules: []string{"/plain ttl=1h"}})
	r.relay = relay
	base := strings.TrimSuffix(r.URL(), "/")
	for range 3 {
		if resp, _ := do(t, r.client, "GET", base+"/state"); resp.Header.Get("Cache-Status") != "" {
			t.Errorf("Cache-Status %q with the cache off", resp.Header.Get("Cache-Status"))
		}
		if resp, _ := do(t, r.client, "GET", base+"/plain"); resp.Header.Get("Etag") != "" {
			t.Errorf("ETag %q with the cache off", resp.Header.Get("Etag"))
		}
	}
	if a, b := service.count("/state"), service.count("/plain"); a != 3 || b != 3 {
		t.Errorf("the service was asked %d and %d times, want 3 and 3", a, b)
	}
	do(t, r.client, "PUT", base+"/state")
	if got := relay.take(); !slices.Equal(got, []string{"/state"}) {
		t.Errorf("the relay was told of %q, want /state", got)
	}
	if st := r.Status().Cache; st != (CacheStatus{State: "off"}) {
		t.Errorf("status = %+v, want off", st)
	}
}

// A relay hears of a write before its answer is there; that it does not answer holds up no
// write for good.
func TestCacheTellsTheRelay(t *testing.T) {
	service, relay := newPolled(), &told{}
	r := start(t, Config{OriginHandler: service, CacheRules: []string{"/plain ttl=1h"}})
	r.relay = relay
	relay.check = func() {
		if n := r.Status().Cache.Entries; n != 0 {
			t.Errorf("the relay is told with %d answers left here", n)
		}
	}
	base := strings.TrimSuffix(r.URL(), "/")
	do(t, r.client, "GET", base+"/plain")
	relay.err = errors.New("no relay answered")
	if resp, _ := do(t, r.client, "PUT", base+"/plain"); resp.StatusCode != 200 {
		t.Errorf("PUT while the relay is mute = %d, want 200", resp.StatusCode)
	}
	if got := relay.take(); !slices.Equal(got, []string{"/plain"}) {
		t.Errorf("the relay was told of %q, want /plain", got)
	}
	do(t, r.client, "POST", base+"/echo/%61") // not in normal form: it may mean anything
	if got := relay.take(); !slices.Equal(got, []string{"*"}) {
		t.Errorf("the relay was told of %q, want everything", got)
	}
	do(t, r.client, "PUT", base+"/nothing") // 404
	if got := relay.take(); len(got) != 0 {
		t.Errorf("the relay was told of %q for a write that failed", got)
	}
}

// The same with a relay that has leave to answer by itself: it has heard of a write over the
// LAN before the writer has the answer, with the cache and without.
func TestCacheTellsAnOpenRelay(t *testing.T) {
	for _, size := range []int64{0, -1} {
		relay := newSmallRelay(t)
		r := start(t, Config{OriginHandler: newPolled(), Cache: size, Relays: relay.url(t), RelayCA: relay.ca})
		r.until(t, "tether up", func(s Status) bool { return s.Tether.State == "up" })
		relay.mu.Lock()
		session, heard, free := relay.last, make(chan struct{}), make(chan struct{})
		relay.hold = func(v frame.Invalidate) {
			if len(v.URIs) == 1 && v.URIs[0] == "/state" {
				close(heard)
				<-free
			}
		}
		relay.mu.Unlock()
		if _, err := session.Ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			req, _ := http.NewRequestWithContext(t.Context(), "PUT", r.URL()+"state", nil)
			if resp, err := r.client.Do(req); err != nil {
				t.Error(err)
			} else {
				resp.Body.Close()
			}
		}()
		select {
		case <-heard:
		case <-done:
			t.Fatalf("cache %d: the write was answered before the relay had heard of it", size)
		}
		select {
		case <-done:
			t.Errorf("cache %d: the write was answered before the relay had confirmed", size)
		default:
		}
		close(free)
		<-done
	}
}

// A write that waits for the relay is done with the service: it does not hold the place of another
// request there.
func TestWaitForTheRelayHoldsNoPlace(t *testing.T) {
	for _, size := range []int64{0, -1} {
		relay, waiting, free := &told{}, make(chan struct{}), make(chan struct{})
		relay.check = sync.OnceFunc(func() { close(waiting); <-free })
		r := start(t, Config{OriginHandler: newPolled(), OriginConcurrency: 1, OriginQueue: 1, Cache: size})
		r.relay = relay
		base := strings.TrimSuffix(r.URL(), "/")
		done := make(chan struct{})
		go func() {
			defer close(done)
			req, _ := http.NewRequestWithContext(t.Context(), "PUT", base+"/state", nil)
			resp, err := r.client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("cache %d: the write = %d, want 200", size, resp.StatusCode)
			}
		}()
		<-waiting
		if resp, _ := do(t, r.client, "GET", base+"/echo/a"); resp.StatusCode != 200 {
			t.Errorf("cache %d: a GET while the write waits = %d, want 200", size, resp.StatusCode)
		}
		select {
		case <-done:
			t.Errorf("cache %d: the write did not wait", size)
		default:
		}
		close(free)
		<-done
	}
}

func TestCachePurge(t *testing.T) {
	service, relay := newPolled(), &told{}
	dir := filepath.Join(t.TempDir(), "state")
	r := start(t, Config{OriginHandler: service, StateDir: dir, CacheRules: []string{"/* ttl=1h"}})
	r.relay = relay
	base, local := strings.TrimSuffix(r.URL(), "/"), &http.Client{Transport: socket(dir)}
	fill := func() {
		for _, path := range []string{"/state", "/state?x=1", "/plain", "/echo/a"} {
			do(t, r.client, "GET", base+path)
		}
		n := 0
		for end := time.Now().Add(5 * time.Second); n != 4 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			n = r.Status().Cache.Entries // the last is stored when its client has it already
		}
		if n != 4 {
			t.Fatalf("%d entries, want 4", n)
		}
	}
	for _, c := range []struct {
		path    string
		status  int
		removed int
		told    string
	}{
		{"/state", 200, 2, "/state"}, {"/echo/*", 200, 1, "*"}, {"", 200, 4, "*"}, {"*", 200, 4, "*"}, {"/none", 200, 0, "/none"},
		{"state", 400, 0, ""}, {"/a/../b", 400, 0, ""},
	} {
		fill()
		var answer struct{ Removed int }
		if got := ask(t, local, "DELETE", "http://device"+CachePath+"?path="+url.QueryEscape(c.path), "", "", &answer); got != c.status || answer.Removed != c.removed {
			t.Errorf("purge %q = %d, %d removed, want %d, %d", c.path, got, answer.Removed, c.status, c.removed)
		}
		if got := strings.Join(relay.take(), " "); got != c.told {
			t.Errorf("purge %q: the relay was told of %q, want %q", c.path, got, c.told)
		}
	}
	resp, body := do(t, local, "GET", "http://device"+CachePath+"?limit=2")
	var list CacheList
	if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Kept) != 2 || list.Entries != 4 || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("limit=2: %s, %v, want 2 of 4", body, err)
	}
	for _, bad := range []string{"-1", "x", "99999"} {
		if got := ask(t, local, "GET", "http://device"+CachePath+"?limit="+bad, "", "", nil); got != 400 {
			t.Errorf("limit=%s = %d, want 400", bad, got)
		}
	}
	if got := ask(t, local, "POST", "http://device"+CachePath, "", "", nil); got != 405 {
		t.Errorf("POST = %d, want 405", got)
	}
	// A factory reset leaves nothing to be read while the old gateway ends.
	if err := r.FactoryReset("test"); err != nil {
		t.Fatal(err)
	}
	if n := r.cache.Stats().Entries; n != 0 {
		t.Errorf("%d entries after the reset, want 0", n)
	}
	if err := r.wait(t); !errors.Is(err, ErrFactoryReset) {
		t.Errorf("Run = %v, want ErrFactoryReset", err)
	}
	<-r.ended
	r.ended <- nil
}

// What stays fresh for long survives a restart where that is asked for.
func TestCacheFlash(t *testing.T) {
	for _, flash := range []bool{true, false} {
		service := newPolled()
		cfg := Config{OriginHandler: service, StateDir: filepath.Join(t.TempDir(), "state"), CacheFlash: flash, HTTPS: "127.0.0.1:0"}
		for range 2 {
			r := start(t, cfg)
			do(t, r.client, "GET", strings.TrimSuffix(r.URL(), "/")+"/state", "Host: x")
			r.stop()
			if err := r.wait(t); err != nil {
				t.Fatal(err)
			}
			cfg.HTTPS = r.Addresses().HTTPS.String() // the answer belongs to the host
		}
		if got, want := service.count("/state"), map[bool]int{true: 1, false: 2}[flash]; got != want {
			t.Errorf("flash %v: the service was asked %d times over a restart, want %d", flash, got, want)
		}
	}
}
