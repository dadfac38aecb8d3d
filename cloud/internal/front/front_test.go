package front

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/http1"
	"github.com/cloudrest/cloudrest/tether/sse"
)

const token = "crt_0123456789012345678901234567890123456789012"

var (
	dev   = tether.NewDeviceID([]byte("dev"))
	since = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// world is a fake of everything behind the front.
type world struct {
	mu      sync.Mutex
	got     *http.Request // guarded by mu
	x       Exchange      // guarded by mu
	answer  func(w http.ResponseWriter, r *http.Request) error
	devices map[tether.DeviceID]Device
	log     *sse.Ring
	online  bool
	lan     string
}

func newWorld() *world {
	return &world{
		devices: map[tether.DeviceID]Device{dev: {ID: dev, Name: "Garden", Since: since}},
		log:     sse.NewRing(16, 1<<20), online: true,
		answer: func(w http.ResponseWriter, _ *http.Request) error { _, err := io.WriteString(w, "device"); return err },
	}
}

func (w *world) Forward(rw http.ResponseWriter, r *http.Request, id tether.DeviceID, x Exchange) error {
	w.mu.Lock()
	w.got, w.x = r, x
	w.mu.Unlock()
	if !w.online || w.devices[id].ID == "" {
		return ErrOffline
	}
	return w.answer(rw, r)
}

func (w *world) Seen(tether.DeviceID) (time.Time, bool) {
	if !w.online {
		return time.Time{}, false
	}
	return since.Add(time.Hour), true
}

func (w *world) LAN(tether.DeviceID) string { return w.lan }

func (w *world) Probe(context.Context, tether.DeviceID) (Probe, error) {
	if !w.online {
		return Probe{}, ErrOffline
	}
	return Probe{Device: dev, Online: true, TetherM: 1.5, Origin: OriginProbe{State: "ok", Status: 200, Ms: 2}}, nil
}

func (w *world) Device(id tether.DeviceID) (Device, bool, error) {
	d, ok := w.devices[id]
	return d, ok, nil
}

func (w *world) Devices(after tether.DeviceID, limit int) (list []Device, err error) {
	for _, id := range slices.Sorted(maps.Keys(w.devices)) {
		if id > after && len(list) < limit {
			list = append(list, w.devices[id])
		}
	}
	return list, nil
}

func (w *world) Log(tether.DeviceID) sse.Log { return w.log }

func (w *world) Check(t string) (string, bool) { return "test", t == token }

func (w *world) front(edit func(*Config)) *Front {
	cfg := Config{Nodes: w, Store: w, Guard: w, Domains: []string{"relay.example", "other.example"}, TLS: true}
	if edit != nil {
		edit(&cfg)
	}
	return New(cfg)
}

// ask sends one raw request target, as httptest.NewRequest would parse it.
func ask(h http.Handler, method, target string, edit func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/", nil)
	r.Method = method
	r.Host = "relay.example"
	r.RequestURI = target
	r.Header.Set("Authorization", "Bearer "+token)
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestRouting(t *testing.T) {
	for _, c := range []struct {
		name, method, host, target string
		status                     int
		path                       string // what the device sees; "" it is not asked
	}{
		{"path", "GET", "relay.example", "/d/" + string(dev) + "/zones/1?on=1", 200, "/zones/1?on=1"},
		{"path, label form", "GET", "relay.example", "/d/" + dev.Label() + "/zones", 200, "/zones"},
		{"escapes, dots and doubled slashes stay", "PUT", "relay.example", "/d/" + string(dev) + "/a%2Fb//../%7e/?q=%20+&;x", 200, "/a%2Fb//../%7e/?q=%20+&;x"},
		{"query without a path", "GET", "relay.example", "/d/" + string(dev) + "?a", 200, "/?a"},
		{"empty query", "GET", "relay.example", "/d/" + string(dev) + "/x?", 200, "/x?"},
		{"no slash", "GET", "relay.example", "/d/" + string(dev), 308, ""},
		{"host", "GET", dev.Label() + ".relay.example", "/zones?x", 200, "/zones?x"},
		{"host, second domain, port, case, final dot", "GET", strings.ToUpper(dev.Label()) + ".Other.Example.:8443", "/", 200, "/"},
		{"a device's host has no relay paths", "GET", dev.Label() + ".relay.example", "/v1/devices/list", 200, "/v1/devices/list"},
		{"nor health", "GET", dev.Label() + ".relay.example", "/healthz", 200, "/healthz"},
		{"not a device's host", "GET", "www.relay.example", "/", 404, ""},
		{"a domain that only ends alike", "GET", dev.Label() + ".notrelay.example", "/", 404, ""},
		{"no device", "GET", "relay.example", "/d/abc/x", 404, ""},
		{"upper-case hex is another text", "GET", "relay.example", "/d/" + strings.ToUpper(string(dev)) + "/", 404, ""},
		{"stranger", "GET", "relay.example", "/d/" + string(tether.NewDeviceID([]byte("x"))) + "/", 404, "/"},
		{"unknown path", "GET", "relay.example", "/favicon.ico", 404, ""},
		{"§9.3.8 TRACE", "TRACE", "relay.example", "/d/" + string(dev) + "/", 405, ""},
		{"§9.3.6 CONNECT", "CONNECT", "relay.example", "/d/" + string(dev) + "/", 405, ""},
		{"unknown method", "BREW", "relay.example", "/d/" + string(dev) + "/", 501, ""},
		{"§3.2.4 asterisk", "OPTIONS", "relay.example", "*", 400, ""},
		{"§3.2.2 absolute form", "GET", "relay.example", "http://evil.example/d/" + string(dev) + "/", 400, ""},
		{"fragment", "GET", "relay.example", "/d/" + string(dev) + "/#x", 400, ""},
		{"space", "GET", "relay.example", "/d/" + string(dev) + "/a b", 400, ""},
		{"long", "GET", "relay.example", "/d/" + string(dev) + "/" + strings.Repeat("x", maxTarget), 414, ""},
	} {
		w := newWorld()
		rec := ask(w.front(nil), c.method, c.target, func(r *http.Request) { r.Host = c.host })
		if rec.Code != c.status || w.x.Path != c.path {
			t.Errorf("%s: status %d, path %q, want %d, %q", c.name, rec.Code, w.x.Path, c.status, c.path)
		}
		if c.status >= 400 {
			var e struct {
				Error   int
				Message string
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Error != c.status || e.Message == "" {
				t.Errorf("%s: body %q, want error and message", c.name, rec.Body)
			}
		}
		if rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: opened to other origins", c.name)
		}
	}
}

func TestGuard(t *testing.T) {
	bad := strings.Replace(token, "0", "1", 1)
	for _, c := range []struct {
		name    string
		header  http.Header
		status  int
		arrives http.Header // of the two fields, at the device
	}{
		{"none", http.Header{}, 401, nil},
		{"bearer", http.Header{"Authorization": {"Bearer " + token}}, 200, http.Header{}},
		{"§11.1 the scheme in any case", http.Header{"Authorization": {"bEARER  " + token}}, 200, http.Header{}},
		{"field", http.Header{"X-Cloudrest-Token": {token}}, 200, http.Header{}},
		{"field, the device's own bearer passes", http.Header{"X-Cloudrest-Token": {token}, "Authorization": {"Bearer abc"}}, 200, http.Header{"Authorization": {"Bearer abc"}}},
		{"field, basic passes", http.Header{"X-Cloudrest-Token": {token}, "Authorization": {"Basic eDp5"}}, 200, http.Header{"Authorization": {"Basic eDp5"}}},
		{"both: no copy gets through", http.Header{"X-Cloudrest-Token": {token}, "Authorization": {"Bearer " + bad, "Bearer abc"}}, 200, http.Header{"Authorization": {"Bearer abc"}}},
		{"wrong", http.Header{"Authorization": {"Bearer " + bad}}, 401, nil},
		{"wrong field beside a good bearer", http.Header{"X-Cloudrest-Token": {bad}, "Authorization": {"Bearer " + token}}, 401, nil},
		{"the device's bearer is no token", http.Header{"Authorization": {"Bearer abc"}}, 401, nil},
		{"empty field", http.Header{"X-Cloudrest-Token": {""}}, 401, nil},
	} {
		for _, target := range []string{"/d/" + string(dev) + "/", "/v1/devices/list", "/v1/devices/" + string(dev) + "/events", "/nothing"} {
			w := newWorld()
			rec := ask(w.front(nil), "HEAD", target, func(r *http.Request) { r.Header = c.header.Clone() })
			if want := c.status; rec.Code != want && (want != 200 || rec.Code != 404 || target != "/nothing") {
				t.Errorf("%s, %s: status %d, want %d", c.name, target, rec.Code, want)
			}
			if c.status == 401 && !strings.HasPrefix(rec.Header().Get("Www-Authenticate"), "Bearer ") {
				t.Errorf("%s: no WWW-Authenticate (§11.6.1)", c.name)
			}
			if w.got != nil && c.arrives == nil {
				t.Errorf("%s: the device was asked", c.name)
			} else if w.got != nil {
				got := http.Header{}
				for _, n := range []string{"Authorization", "X-Cloudrest-Token"} {
					if v, ok := w.got.Header[n]; ok {
						got[n] = v
					}
				}
				if !reflect.DeepEqual(got, c.arrives) {
					t.Errorf("%s: the device sees %v, want %v", c.name, got, c.arrives)
				}
			}
		}
	}
}

func TestBadTokensAreThrottledByAddress(t *testing.T) {
	w := newWorld()
	f := w.front(nil)
	try := func(addr, tok string) int {
		return ask(f, "GET", "/v1/devices/list", func(r *http.Request) {
			r.RemoteAddr = addr
			r.Header.Set("Authorization", "Bearer "+tok)
		}).Code
	}
	for i := range badTokens {
		if got := try("192.0.2.1:1", "crt_wrong"); got != 401 {
			t.Fatalf("try %d: %d, want 401", i+1, got)
		}
	}
	if got := try("192.0.2.1:2", "crt_wrong"); got != 429 {
		t.Errorf("after %d wrong tokens: %d, want 429", badTokens, got)
	}
	if got := try("192.0.2.2:1", "crt_wrong"); got != 401 {
		t.Errorf("another address: %d, want 401", got)
	}
	if got := try("192.0.2.1:3", token); got != 200 {
		t.Errorf("a good token from the throttled address: %d, want 200", got)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name       string
		err        error
		status     int
		retryAfter string
	}{
		{"bad gateway", &Error{Status: 502, Err: errors.New("reset")}, 502, ""},
		{"no slot in time", &Error{Status: 503, RetryAfter: 1500 * time.Millisecond, Err: errors.New("queue")}, 503, "2"},
		{"no head in time", &Error{Status: 504, Err: errors.New("timeout")}, 504, ""},
		{"something else", errors.New("bug"), 502, ""},
	} {
		w := newWorld()
		w.answer = func(http.ResponseWriter, *http.Request) error { return c.err }
		rec := ask(w.front(nil), "GET", "/d/"+string(dev)+"/", nil)
		if rec.Code != c.status || rec.Header().Get("Retry-After") != c.retryAfter {
			t.Errorf("%s: %d, Retry-After %q, want %d, %q", c.name, rec.Code, rec.Header().Get("Retry-After"), c.status, c.retryAfter)
		}
	}
	w := newWorld()
	w.online = false
	rec := ask(w.front(nil), "GET", "/d/"+string(dev)+"/", nil)
	want := fmt.Sprintf(`{"device":"%s","error":503,"message":"device offline","since":"2026-01-02T03:04:05Z"}`+"\n", dev)
	if rec.Code != 503 || rec.Body.String() != want || rec.Header().Get("Retry-After") == "" {
		t.Errorf("offline: %d %q, Retry-After %q, want 503 %q", rec.Code, rec.Body, rec.Header().Get("Retry-After"), want)
	}
}

func TestClientAddress(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		name, peer string
		xff        []string
		want       string
	}{
		{"straight", "192.0.2.1:99", nil, "192.0.2.1:99"},
		{"a stranger's word is not believed", "192.0.2.1:99", []string{"1.2.3.4"}, "192.0.2.1:99"},
		{"balancer", "10.0.0.1:5", []string{"192.0.2.7"}, "192.0.2.7:0"},
		{"what the client wrote stays left of what the balancer wrote", "10.0.0.1:5", []string{"1.2.3.4, 192.0.2.7"}, "192.0.2.7:0"},
		{"two balancers, two fields", "10.0.0.1:5", []string{"1.2.3.4", "192.0.2.7, 10.0.0.2"}, "192.0.2.7:0"},
		{"with port", "10.0.0.1:5", []string{"192.0.2.7:33"}, "192.0.2.7:33"},
		{"v6", "[fd00::1]:5", []string{"2001:db8::9"}, "[2001:db8::9]:0"},
		{"mapped", "[::ffff:10.0.0.1]:5", []string{"::ffff:192.0.2.7"}, "192.0.2.7:0"},
		{"nonsense", "10.0.0.1:5", []string{"1.2.3.4, unknown"}, "10.0.0.1:5"},
		{"nothing", "10.0.0.1:5", nil, "10.0.0.1:5"},
		{"only balancers", "10.0.0.1:5", []string{"10.0.0.9"}, "10.0.0.1:5"},
	} {
		w := newWorld()
		ask(w.front(func(cfg *Config) { cfg.Trusted = trusted }), "GET", "/d/"+string(dev)+"/", func(r *http.Request) {
			r.RemoteAddr = c.peer
			r.Header["X-Forwarded-For"] = c.xff
			r.Header.Set("Forwarded", "for=1.2.3.4")
			r.Header.Set(tether.HeaderID, "chosen by the client")
		})
		if w.x.Client != c.want {
			t.Errorf("%s: client %q, want %q", c.name, w.x.Client, c.want)
		}
		for _, n := range untrusted {
			if w.got.Header.Get(n) != "" {
				t.Errorf("%s: %s went on to the device", c.name, n)
			}
		}
		if len(w.x.ID) != 36 || w.x.ID[14] != '4' {
			t.Errorf("%s: id %q, want a new UUID", c.name, w.x.ID)
		}
	}
}

func TestList(t *testing.T) {
	for _, c := range []struct {
		name    string
		edit    func(*Config)
		request func(*http.Request)
		url     string
		host    string
	}{
		{"domain", nil, nil, "https://relay.example/d/", "https://" + dev.Label() + ".relay.example/"},
		{"second domain with a port", nil, func(r *http.Request) { r.Host = "other.example:8443" }, "https://other.example:8443/d/", "https://" + dev.Label() + ".other.example:8443/"},
		{"a Host that is not ours", nil, func(r *http.Request) { r.Host = "evil.example" }, "https://relay.example/d/", "https://" + dev.Label() + ".relay.example/"},
		{"plain", func(c *Config) { c.TLS = false }, nil, "http://relay.example/d/", "http://" + dev.Label() + ".relay.example/"},
		{"plain behind a balancer", func(c *Config) { c.TLS = false; c.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} },
			func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "https") }, "https://relay.example/d/", "https://" + dev.Label() + ".relay.example/"},
		{"an address has no names below it", func(c *Config) { c.Domains = []string{"::1"} }, func(r *http.Request) { r.Host = "[::1]:8443" }, "https://[::1]:8443/d/", ""},
	} {
		w := newWorld()
		rec := ask(w.front(c.edit), "GET", "/v1/devices/list", c.request)
		var got struct{ Devices []map[string]any }
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || len(got.Devices) != 1 {
			t.Fatalf("%s: %q, %v", c.name, rec.Body, err)
		}
		want := map[string]any{"id": string(dev), "name": "Garden", "online": true, "url": c.url + string(dev) + "/",
			"since": "2026-01-02T03:04:05Z", "seen": "2026-01-02T04:04:05Z"}
		if c.host != "" {
			want["hostUrl"] = c.host
		}
		if !reflect.DeepEqual(got.Devices[0], want) {
			t.Errorf("%s: %v, want %v", c.name, got.Devices[0], want)
		}
	}
	for _, c := range []struct {
		lan    string
		online bool
		want   any
	}{
		{"https://10.0.0.7/?a&b", true, "https://10.0.0.7/?a&b"},
		{"", true, nil},
		{"https://10.0.0.7/", false, nil}, // it went between the two questions
	} {
		w := newWorld()
		w.lan, w.online = c.lan, c.online
		var list struct{ Devices []map[string]any }
		var one map[string]any
		if err := json.Unmarshal(ask(w.front(nil), "GET", "/v1/devices/list", nil).Body.Bytes(), &list); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(ask(w.front(nil), "GET", "/v1/devices/"+string(dev), nil).Body.Bytes(), &one); err != nil {
			t.Fatal(err)
		}
		if len(list.Devices) != 1 || list.Devices[0]["lanUrl"] != c.want || one["lanUrl"] != c.want {
			t.Errorf("LAN URL %q, online %v: list %v, device %v, want lanUrl %v", c.lan, c.online, list.Devices, one, c.want)
		}
	}
	w := newWorld() // more than one page
	for i := range 2*listPage + 3 {
		id := tether.NewDeviceID(fmt.Append(nil, i))
		w.devices[id] = Device{ID: id}
	}
	rec := ask(w.front(nil), "GET", "/v1/devices/list", nil)
	var got struct{ Devices []entry }
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || len(got.Devices) != len(w.devices) {
		t.Errorf("%d devices, %v, want %d", len(got.Devices), err, len(w.devices))
	}
	if rec := ask(w.front(nil), "POST", "/v1/devices/list", nil); rec.Code != 405 || rec.Header().Get("Allow") == "" {
		t.Errorf("POST: %d, want 405 with Allow", rec.Code)
	}
}

func TestDeviceEntryAndProbe(t *testing.T) {
	w := newWorld()
	if rec := ask(w.front(nil), "GET", "/v1/devices/"+dev.Label(), nil); rec.Code != 200 || !strings.Contains(rec.Body.String(), `"name":"Garden"`) {
		t.Errorf("entry: %d %q", rec.Code, rec.Body)
	}
	rec := ask(w.front(nil), "GET", "/v1/devices/"+string(dev)+"/probe", nil)
	want := fmt.Sprintf(`{"device":"%s","online":true,"tetherMs":1.5,"origin":{"state":"ok","status":200,"ms":2}}`+"\n", dev)
	if rec.Code != 200 || rec.Body.String() != want {
		t.Errorf("probe: %d %q, want %q", rec.Code, rec.Body, want)
	}
	w.online = false
	if rec := ask(w.front(nil), "GET", "/v1/devices/"+string(dev)+"/probe", nil); rec.Code != 503 || !strings.Contains(rec.Body.String(), "device offline") {
		t.Errorf("probe of an offline device: %d %q", rec.Code, rec.Body)
	}
	if rec := ask(w.front(nil), "GET", "/v1/devices/"+string(tether.NewDeviceID(nil))+"/probe", nil); rec.Code != 404 {
		t.Errorf("probe of a stranger: %d, want 404", rec.Code)
	}
}

func TestHealth(t *testing.T) {
	ready := errors.New("draining")
	f := newWorld().front(func(c *Config) { c.Ready = func() error { return ready } })
	anonymous := func(r *http.Request) { r.Header.Del("Authorization") }
	if rec := ask(f, "GET", "/healthz", anonymous); rec.Code != 200 {
		t.Errorf("healthz: %d, want 200", rec.Code)
	}
	if rec := ask(f, "GET", "/readyz", anonymous); rec.Code != 503 || !strings.Contains(rec.Body.String(), "draining") {
		t.Errorf("readyz: %d %q, want 503 and why", rec.Code, rec.Body)
	}
	ready = nil
	if rec := ask(f, "GET", "/readyz", anonymous); rec.Code != 200 {
		t.Errorf("readyz: %d, want 200", rec.Code)
	}
}

// Links of a device that was named by the path stay within its path.
func TestLocation(t *testing.T) {
	prefix := "/d/" + string(dev)
	for _, c := range []struct{ from, want string }{
		{"/zones/2", prefix + "/zones/2"}, {"zones/2", "zones/2"}, {"//other.example/x", "//other.example/x"}, {"https://other.example/", "https://other.example/"},
	} {
		w := newWorld()
		w.answer = func(rw http.ResponseWriter, _ *http.Request) error {
			rw.Header().Set("Location", c.from)
			rw.WriteHeader(http.StatusEarlyHints)
			rw.WriteHeader(http.StatusCreated)
			return nil
		}
		if rec := ask(w.front(nil), "POST", prefix+"/zones", nil); rec.Header().Get("Location") != c.want || rec.Code != 201 && rec.Code != 103 {
			t.Errorf("Location %q became %q, want %q", c.from, rec.Header().Get("Location"), c.want)
		}
		rec := ask(w.front(nil), "POST", "/zones", func(r *http.Request) { r.Host = dev.Label() + ".relay.example" })
		if got := rec.Header().Get("Location"); got != c.from {
			t.Errorf("with host routing Location %q became %q", c.from, got)
		}
	}
}

func TestInFlightIsBounded(t *testing.T) {
	w := newWorld()
	entered, leave := make(chan struct{}), make(chan struct{})
	w.answer = func(http.ResponseWriter, *http.Request) error { close(entered); <-leave; return nil }
	f := w.front(func(c *Config) { c.MaxInFlight = 1 })
	done := make(chan struct{})
	go func() { defer close(done); ask(f, "GET", "/d/"+string(dev)+"/", nil) }()
	<-entered
	if rec := ask(f, "GET", "/d/"+string(dev)+"/", nil); rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
		t.Errorf("second request: %d, want 503 with Retry-After", rec.Code)
	}
	close(leave)
	<-done
	if n := f.Stats().InFlight; n != 0 {
		t.Errorf("%d in flight afterwards", n)
	}
}

// Drain ends event streams (ours and a device's) and tunnels, over HTTP/1.1 and HTTP/2,
// and leaves an ordinary request alone.
func TestDrainEndsWhatLasts(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", h2), func(t *testing.T) {
			w := newWorld()
			release := make(chan struct{})
			w.answer = func(rw http.ResponseWriter, r *http.Request) error {
				switch r.URL.Path {
				case "/d/" + string(dev) + "/events":
					rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
					rw.WriteHeader(200)
					http.NewResponseController(rw).Flush()
					<-r.Context().Done()
				case "/d/" + string(dev) + "/tunnel":
					c, _, err := http.NewResponseController(rw).Hijack()
					if err != nil {
						return err
					}
					io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
					io.Copy(io.Discard, c)
				default:
					<-release
					io.WriteString(rw, "complete")
				}
				return nil
			}
			f := w.front(nil)
			srv := serveTLS(t, f, h2)
			open := func(path string) *http.Response {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.url+path, nil)
				req.Header.Set("X-Cloudrest-Token", token)
				resp, err := srv.client.Do(req)
				if err != nil {
					t.Error(err)
					return &http.Response{Body: http.NoBody}
				}
				return resp
			}
			ours := open("/v1/devices/" + string(dev) + "/events")
			theirs := open("/d/" + string(dev) + "/events")
			if h2 != (theirs.ProtoMajor == 2) {
				t.Fatalf("protocol %s", theirs.Proto)
			}
			var tunnel net.Conn
			if !h2 {
				tunnel = rawTunnel(t, srv, "/d/"+string(dev)+"/tunnel")
			}
			ordinary := make(chan string)
			go func() {
				b, err := io.ReadAll(open("/d/" + string(dev) + "/slow").Body)
				ordinary <- fmt.Sprint(string(b), err)
			}()
			for f.Stats().InFlight < 2 {
				time.Sleep(time.Millisecond)
			}
			f.Drain()
			io.ReadAll(ours.Body) // these would never return
			io.ReadAll(theirs.Body)
			if tunnel != nil {
				tunnel.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.ReadAll(tunnel); err != nil && errors.Is(err, errTimeout(err)) {
					t.Error("the tunnel was not closed")
				}
			}
			close(release)
			if got, want := <-ordinary, "complete<nil>"; got != want {
				t.Errorf("ordinary request = %q, want %q", got, want)
			}
		})
	}
}

// tlsServer is the front behind the server and the gate that a relay has.
type tlsServer struct {
	url, addr string
	client    *http.Client
	roots     *tls.Config
}

func serveTLS(t *testing.T, f *Front, h2 bool) *tlsServer {
	t.Helper()
	lend := httptest.NewTLSServer(nil) // its certificate is what we want
	roots := lend.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	cert := lend.TLS.Certificates
	lend.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := NewGate(GateConfig{})
	protocols := []string{"http/1.1"}
	if h2 {
		protocols = []string{"h2", "http/1.1"}
	}
	srv := &http1.Server{Handler: g.Handler(f), TLS: &tls.Config{Certificates: cert, NextProtos: protocols}}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(g.Listener(ln)) }()
	tr := &http.Transport{TLSClientConfig: roots.Clone(), ForceAttemptHTTP2: h2}
	t.Cleanup(func() { tr.CloseIdleConnections(); srv.Close(); <-done })
	return &tlsServer{url: "https://" + ln.Addr().String(), addr: ln.Addr().String(), client: &http.Client{Transport: tr}, roots: roots}
}

func rawTunnel(t *testing.T, srv *tlsServer, path string) net.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", srv.addr, srv.roots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\nX-CloudREST-Token: %s\r\n\r\n", path, token)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "101") {
		t.Fatalf("tunnel: %q, %v", line, err)
	}
	return c
}

func FuzzTarget(f *testing.F) {
	f.Add("GET", "relay.example", "/d/"+string(dev)+"/a?b")
	f.Add("GET", dev.Label()+".relay.example", "//x")
	f.Add("OPTIONS", "[::1]:1", "*")
	f.Fuzz(func(t *testing.T, method, host, target string) {
		w := newWorld()
		ask(w.front(nil), method, target, func(r *http.Request) { r.Host = host })
		if w.got == nil {
			return
		}
		// Whatever reached the device is the tail of what was sent, unchanged.
		tail := strings.TrimPrefix(w.x.Path, "/")
		if !strings.HasSuffix(target, tail) || !strings.HasPrefix(w.x.Path, "/") || strings.ContainsAny(w.x.Path, " \r\n\x00#") {
			t.Errorf("%q became %q", target, w.x.Path)
		}
	})
}
