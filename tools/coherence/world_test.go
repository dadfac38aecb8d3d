package coherence

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/cloud/relay"
	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/tethertest"
)

// Registers of each service. Their numbers are one digit. The last one is the control: it changes
// without a write, so copies of it do get old.
const (
	registers = 8
	control   = registers
)

// failing is the field of a write whose answer is lost on its way to the gateway, with a name for it.
const failing = "X-Lost"

func pause() {
	if rand.IntN(3) == 0 {
		time.Sleep(rand.N(2 * time.Millisecond))
	}
}

// service is a maker's REST service with registers whose version rises with each write:
//
//	/r/N     the register
//	/made/N  a write there changes register N and says so in Location
//	/set/N   the same with Content-Location
type service struct {
	mu       sync.Mutex // guards the fields below
	versions [registers + 1]int
	gone     [registers + 1]bool
	lost     map[string]int // the version that a write with that name made
}

// change makes a new version of a register.
func (s *service) change(i int, gone bool, name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.versions[i]++
	s.gone[i] = gone
	if name != "" {
		s.lost[name] = s.versions[i]
	}
	return s.versions[i]
}

func (s *service) version(i int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.versions[i]
}

func (s *service) madeBy(name string) (version int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	version, ok = s.lost[name]
	return version, ok
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := strings.LastIndexByte(r.URL.Path, '/') + 1
	i, err := strconv.Atoi(r.URL.Path[at:])
	if err != nil || i < 0 || i > control {
		http.NotFound(w, r)
		return
	}
	pause()
	h := w.Header()
	if r.Method != http.MethodGet {
		name := r.Header.Get(failing)
		v := s.change(i, r.Method == http.MethodDelete, name)
		pause() // others may see it already
		if name != "" {
			panic(http.ErrAbortHandler)
		}
		switch r.URL.Path[:at] {
		case "/made/":
			h.Set("Location", "/r/"+strconv.Itoa(i))
			w.WriteHeader(http.StatusCreated)
		case "/set/":
			h.Set("Content-Location", "http://"+r.Host+"/r/"+strconv.Itoa(i))
		default:
			if r.Method == http.MethodPost { // this answer may be stored (RFC 9110 §9.3.3)
				h.Set("Content-Location", r.URL.Path)
				h.Set("Cache-Control", "public, max-age=3600")
			}
		}
		fmt.Fprint(w, v)
		return
	}
	s.mu.Lock()
	v, gone := s.versions[i], s.gone[i]
	s.mu.Unlock()
	pause() // a write may come in between: this answer must not be stored then
	switch i % 4 {
	case 0:
		h.Set("Cache-Control", "public, max-age=3600")
	case 1:
		tag := fmt.Sprintf(`"v%d"`, v)
		h.Set("Cache-Control", "max-age=3600")
		h.Set("Etag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	case 2:
		h.Set("Cache-Control", "public, max-age=1, stale-while-revalidate=3600")
	default: // the gateway's rule says it
	}
	if gone {
		w.WriteHeader(http.StatusNotFound)
	}
	fmt.Fprint(w, v)
}

var rules = []string{"/r/3 ttl=1h public", "/r/7 ttl=1h"}

// cloud is a relay that can be replaced by another one with the same state.
type cloud struct {
	t     *testing.T
	dir   string
	token string
	base  atomic.Pointer[string] // http://host:port
	stop  func()
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{t: t, dir: t.TempDir()}
	var err error
	if c.token, err = relay.NewToken(c.dir, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *cloud) start() error {
	r, err := relay.New(relay.Config{Listen: "127.0.0.1:0", TLSOff: true, Domains: []string{"127.0.0.1"}, StateDir: c.dir,
		GoAway: 100 * time.Millisecond, Grace: time.Second})
	if err != nil {
		return err
	}
	stop, err := running(r.Run, r.Ready())
	if err != nil {
		return err
	}
	c.stop = sync.OnceFunc(func() {
		if err := stop(); err != nil {
			c.t.Errorf("the relay's Run: %v", err)
		}
	})
	base := "http://" + r.Addrs().Listen.String()
	c.base.Store(&base)
	return nil
}

func (c *cloud) addr() string { return strings.TrimPrefix(*c.base.Load(), "http://") }

// running runs a roof until stop is called, and returns when it is ready.
func running(run func(context.Context) error, ready <-chan struct{}) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	select {
	case <-ready:
		return func() error { cancel(); return <-ended }, nil
	case err := <-ended:
		cancel()
		return nil, errors.Join(errors.New("it ended before it was ready"), err)
	}
}

// device is a gateway in front of a service, behind a bad network.
type device struct {
	t       *testing.T
	c       *cloud
	net     *tethertest.BadPath
	service *service
	cfg     gateway.Config
	seen    *seen

	gw    atomic.Pointer[gateway.Gateway]
	lan   atomic.Pointer[string] // https://host:port
	ended atomic.Int64           // gateways before this one; rises when one is told to end
	stop  func() error           // for one goroutine at a time
	id    string                 // the same for all of them

	mu      sync.Mutex // guards history
	history [registers][]tethertest.Op
}

// Ways of requests.
const (
	local  = iota // HTTPS to the gateway
	remote        // through the relay
	ways
)

var wayNames = [ways]string{"LAN", "relay"}

func newDevice(t *testing.T, c *cloud, seen *seen, n int) *device {
	t.Helper()
	d := &device{t: t, c: c, net: tethertest.NewBadPath(t, c.addr()), service: &service{lost: map[string]int{}}, seen: seen}
	origin := httptest.NewUnstartedServer(d.service)
	origin.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	origin.Start()
	t.Cleanup(origin.Close)
	u, err := url.Parse(origin.URL)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg = gateway.Config{Origin: u, HTTPS: "127.0.0.1:0", Access: gateway.AccessOrigin, StateDir: filepath.Join(t.TempDir(), strconv.Itoa(n)),
		Relays: []*url.URL{{Scheme: "ws", Host: d.net.Addr()}}, CacheRules: rules, CacheFlash: true, StopWait: 500 * time.Millisecond}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.id = string(d.gw.Load().ID())
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("a gateway's Run: %v", err)
		}
	})
	return d
}

func (d *device) start() error {
	g, err := gateway.New(d.cfg)
	if err != nil {
		return err
	}
	if d.stop, err = running(g.Run, g.Ready()); err != nil {
		return err
	}
	base := strings.TrimSuffix(g.URL(), "/")
	d.lan.Store(&base)
	d.gw.Store(g)
	return nil
}

// restart ends the gateway and starts another one with the same state.
func (d *device) restart() {
	d.ended.Add(1)
	if err := d.stop(); err != nil {
		d.t.Errorf("a gateway's Run: %v", err)
	}
	d.stop = func() error { return nil }
	if err := d.start(); err != nil {
		d.t.Errorf("start a gateway again: %v", err)
	}
}

func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, // the gateway's certificate is its own
	}}
}

// How long a client waits. A write on the LAN may be held back for 4 s.
var waits = [ways]time.Duration{10 * time.Second, 2500 * time.Millisecond}

type answer struct {
	status     int
	version    int
	numbered   bool // the body is a version
	cache      string
	begin, end time.Time
}

// send makes one request, with a field if its name is not empty; ok is false if there was no
// whole answer.
func (d *device) send(ctx context.Context, client *http.Client, way int, method, path, name, value string) (a answer, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, waits[way])
	defer cancel()
	base := *d.lan.Load()
	if way == remote {
		base = *d.c.base.Load() + "/d/" + d.id
	}
	r, err := http.NewRequestWithContext(ctx, method, base+path, nil)
	if err != nil {
		d.t.Error(err)
		return a, false
	}
	if way == remote {
		r.Header.Set("Authorization", "Bearer "+d.c.token)
	}
	if name != "" {
		r.Header.Set(name, value)
	}
	a.begin = time.Now()
	resp, err := client.Do(r)
	if err != nil {
		return a, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return a, false
	}
	a.end, a.status, a.cache = time.Now(), resp.StatusCode, strings.Join(resp.Header["Cache-Status"], ", ")
	a.version, err = strconv.Atoi(string(body))
	a.numbered = err == nil
	return a, true
}

func (d *device) note(i int, o tethertest.Op) {
	d.seen.ops.Add(1)
	d.mu.Lock()
	d.history[i] = append(d.history[i], o)
	d.mu.Unlock()
}
