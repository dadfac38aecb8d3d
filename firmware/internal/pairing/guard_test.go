package pairing

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// origin answers what it saw.
type origin struct {
	hits int
	last *http.Request
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.hits++
	o.last = r
	io.WriteString(w, "origin")
}

func (d *device) guard(o http.Handler, method, target string, h http.Header, remote string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://irrigation.local"+target, nil)
	r.RequestURI = target
	r.RemoteAddr = remote
	maps.Copy(r.Header, h)
	w := httptest.NewRecorder()
	d.Guard(o).ServeHTTP(w, r)
	return w
}

func bearerOf(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func TestGuard(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	owner, ownerID := d.pairAs(t, Owner, cs)
	member, _ := d.pairAs(t, Member, cs)
	guest, _ := d.pairAs(t, Guest, cs)
	gone, goneID := d.pairAs(t, Owner, cs)
	d.Remove(goneID)
	upgrade := func(token string) http.Header {
		h := bearerOf(token)
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
		return h
	}
	for _, c := range []struct {
		name, method, target string
		header               http.Header
		status               int
	}{
		{"device is open", "GET", "/device", nil, 200},
		{"device is open, with a query", "HEAD", "/device?x=1", nil, 200},
		{"device is open with a bad token", "GET", "/device", bearerOf(gone), 200},
		{"device cannot be changed", "PUT", "/device", nil, 401},
		{"device in another form", "GET", "/%64evice", nil, 401},
		{"device in another form", "GET", "/x/../device", nil, 401},
		{"below device", "GET", "/device/", nil, 401},
		{"device as a WebSocket", "GET", "/device", http.Header{"Upgrade": {"websocket"}}, 401},
		{"no token", "GET", "/pumps", nil, 401},
		{"owner", "DELETE", "/pumps", bearerOf(owner), 200},
		{"member", "POST", "/pumps", bearerOf(member), 200},
		{"member, WebSocket", "GET", "/live", upgrade(member), 200},
		{"guest reads", "GET", "/pumps", bearerOf(guest), 200},
		{"guest reads", "HEAD", "/pumps", bearerOf(guest), 200},
		{"guest reads events", "GET", "/events", http.Header{"Authorization": {"Bearer " + guest}, "Accept": {"text/event-stream"}}, 200},
		{"guest writes", "POST", "/pumps", bearerOf(guest), 403},
		{"guest writes", "PATCH", "/pumps", bearerOf(guest), 403},
		{"guest, OPTIONS", "OPTIONS", "/pumps", bearerOf(guest), 403},
		{"guest, WebSocket", "GET", "/live", upgrade(guest), 403},
		{"revoked", "GET", "/pumps", bearerOf(gone), 401},
		{"cookie at the origin's paths", "GET", "/pumps", http.Header{"Cookie": {CookieName + "=" + owner}}, 401},
		{"token in the query", "GET", "/pumps?token=" + owner, nil, 401},
		{"two tokens", "GET", "/pumps", http.Header{HeaderToken: {owner, owner}}, 401},
		{"other scheme", "GET", "/pumps", http.Header{"Authorization": {"Basic " + owner}}, 401},
		{"X-CloudREST-Token counts first", "GET", "/pumps", http.Header{HeaderToken: {"crp_x"}, "Authorization": {"Bearer " + owner}}, 401},
		{"lower case scheme", "GET", "/pumps", http.Header{"Authorization": {"bearer  " + owner}}, 200},
	} {
		o := &origin{}
		w := d.guard(o, c.method, c.target, c.header, "192.0.2.1:5")
		if w.Code != c.status || (o.hits == 1) != (c.status == 200) {
			t.Errorf("%s: %d with %d requests at the origin, want %d", c.name, w.Code, o.hits, c.status)
		}
		if c.status == 401 && (w.Header().Get("WWW-Authenticate") != `Bearer realm="cloudrest"` || c.header == nil && !strings.Contains(w.Body.String(), "/.cloudrest/v1/pair")) {
			t.Errorf("%s: %v %s, want it to say how to pair", c.name, w.Header(), w.Body)
		}
	}
	o := &origin{}
	d.guard(o, "GET", "/pumps", bearerOf(owner), "192.0.2.1:5")
	if c, ok := ClientOf(o.last.Context()); !ok || c.ID != ownerID || c.LastUsed.IsZero() {
		t.Errorf("ClientOf = %+v, %v, want %s, just used", c, ok, ownerID)
	}
	d.guard(o, "GET", "/device", nil, "192.0.2.1:5")
	if _, ok := ClientOf(o.last.Context()); ok {
		t.Error("there is a client where no token was given")
	}
	// What makes a GET something else.
	for name, token := range map[string]string{"guest": guest, "nobody": ""} {
		h := http.Header{"X-Http-Method-Override": {"DELETE"}, "X_http_method": {"DELETE"}, "X-Method-Override": {"PUT"}}
		if token != "" {
			maps.Copy(h, bearerOf(token))
		}
		d.guard(o, "GET", "/device", h, "192.0.2.1:5")
		if len(o.last.Header) != 0 {
			t.Errorf("%s: fields at the origin = %v, want none", name, o.last.Header)
		}
	}
	r := Local(httptest.NewRequest("POST", "/pumps", nil))
	o.hits = 0
	d.Guard(o).ServeHTTP(httptest.NewRecorder(), r)
	if o.hits != 1 {
		t.Error("the control socket is not let through")
	}
}

func TestOriginSeesNoToken(t *testing.T) {
	d := open(t, &memory{}, nil)
	token, _ := d.pairAs(t, Member, connection(t))
	for _, c := range []struct{ in, out http.Header }{
		{http.Header{HeaderToken: {token}, "Authorization": {"Basic dXNlcjpwYXNz"}}, http.Header{"Authorization": {"Basic dXNlcjpwYXNz"}}},
		{http.Header{HeaderToken: {token}, "Authorization": {"Bearer eyJhbGciOi"}, "X-Other": {"1"}}, http.Header{"Authorization": {"Bearer eyJhbGciOi"}, "X-Other": {"1"}}},
		{http.Header{"Authorization": {"Bearer " + token}}, http.Header{}},
		{http.Header{HeaderToken: {token}, "Authorization": {"bearer " + token}}, http.Header{}},
		{http.Header{"Authorization": {"Digest x", "Bearer " + token}}, http.Header{"Authorization": {"Digest x"}}},
		{http.Header{HeaderToken: {token}, "Cookie": {"a=1; " + CookieName + "=" + token + "; b=2"}}, http.Header{"Cookie": {"a=1; b=2"}}},
		{http.Header{HeaderToken: {token}, "Cookie": {CookieName + "=" + token, "b=2"}}, http.Header{"Cookie": {"b=2"}}},
		{http.Header{HeaderToken: {token}, "Cookie": {CookieName + "=x;" + CookieName + "=y; z=" + CookieName}}, http.Header{"Cookie": {"z=" + CookieName}}},
		{http.Header{HeaderToken: {token}, "Cookie": {" odd ;;=; \"q\"=\"1\""}}, http.Header{"Cookie": {" odd ;;=; \"q\"=\"1\""}}},
	} {
		o := &origin{}
		if w := d.guard(o, "POST", "/", c.in, "192.0.2.1:5"); w.Code != 200 {
			t.Fatalf("%v: %d", c.in, w.Code)
		}
		if got := o.last.Header; !reflect.DeepEqual(got, c.out) {
			t.Errorf("origin sees %v, want %v", got, c.out)
		}
	}
	// Also where it is open to all.
	o := &origin{}
	d.guard(o, "GET", "/device", http.Header{"Cookie": {CookieName + "=" + token}, "Authorization": {"Bearer crp_wrong"}}, "192.0.2.1:5")
	if len(o.last.Header) != 0 {
		t.Errorf("origin sees %v at /device, want nothing", o.last.Header)
	}
}

// A revoked client's exchanges end, also those that are under way.
func TestRevokeEndsExchanges(t *testing.T) {
	cs := connection(t)
	for name, end := range map[string]func(d *device, id string){
		"revoke": func(d *device, id string) { d.Remove(id) },
		"demote": func(d *device, id string) {
			role := Guest
			d.change(actor{local: true, role: Owner}, id, nil, &role, nil)
		},
		"expire": func(d *device, id string) { time.Sleep(time.Hour) },
	} {
		synctest.Test(t, func(t *testing.T) {
			d := open(t, &memory{}, nil)
			token, id := d.pairAs(t, Member, cs)
			if name == "expire" {
				until := time.Now().Add(time.Hour)
				d.change(actor{local: true, role: Owner}, id, nil, nil, &until)
			}
			done := make(chan struct{})
			stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			go func() {
				d.guard(stream, "GET", "/events", bearerOf(token), "192.0.2.1:5")
				close(done)
			}()
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("%s: the stream ended before", name)
			default:
			}
			newName := "new name" // this alone ends nothing
			d.change(actor{local: true, role: Owner}, id, &newName, nil, nil)
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("%s: the stream ended by a new name", name)
			default:
			}
			end(d, id)
			synctest.Wait()
			select {
			case <-done:
			default:
				t.Errorf("%s: the stream goes on", name)
			}
		})
	}
}

func TestThrottle(t *testing.T) {
	cs := connection(t)
	synctest.Test(t, func(t *testing.T) {
		d := open(t, &memory{}, nil)
		token, _ := d.pairAs(t, Owner, cs)
		o := &origin{}
		bad := func(from string) *httptest.ResponseRecorder {
			return d.guard(o, "GET", "/x", bearerOf("crp_"+strings.Repeat("A", 43)), from)
		}
		for i := range badAllowed {
			if w := bad("[2001:db8::1]:1"); w.Code != 401 {
				t.Fatalf("bad token %d: %d, want 401", i+1, w.Code)
			}
		}
		wait := blockFirst
		for range 6 {
			w := bad("[2001:db8::2]:9") // the same /64
			if got, want := w.Header().Get("Retry-After"), fmt.Sprint(int(wait/time.Second)); w.Code != 429 || got != want {
				t.Fatalf("too many: %d, Retry-After %s, want 429, %s", w.Code, got, want)
			}
			if w := bad("[2001:db8::1]:1"); w.Code != 429 {
				t.Fatalf("again while it should wait: %d, want 429", w.Code)
			}
			if w := d.guard(o, "GET", "/x", bearerOf(token), "[2001:db8::1]:1"); w.Code != 200 {
				t.Fatalf("a good token from the same address: %d, want 200", w.Code)
			}
			for _, other := range []string{"192.0.2.1:1", "[2001:db8:0:1::1]:1"} {
				if w := bad(other); w.Code == 429 && wait == blockFirst {
					t.Fatalf("%s is locked out by another", other)
				}
			}
			time.Sleep(wait)
			for i := range badAllowed {
				if w := bad("[2001:db8::1]:1"); w.Code != 401 {
					t.Fatalf("after the wait, bad token %d: %d, want 401", i+1, w.Code)
				}
			}
			wait = min(2*wait, blockLongest)
		}
		if wait != blockLongest {
			t.Errorf("the wait grew to %v, want %v", wait, blockLongest)
		}
		_, err := d.Authenticate(&http.Request{Header: bearerOf("crp_bad"), RemoteAddr: "[2001:db8::1]:1"})
		if te, ok := errors.AsType[*ThrottledError](err); !ok || te.RetryAfter != blockLongest {
			t.Errorf("Authenticate = %v, want a wait of %v", err, blockLongest)
		}
		time.Sleep(3 * blockLongest)
		if w := bad("[2001:db8::1]:1"); w.Code != 401 {
			t.Errorf("after a long silence: %d, want 401", w.Code)
		}
		for range badAllowed - 1 {
			bad("[2001:db8::1]:1")
		}
		if w := bad("[2001:db8::1]:1"); w.Header().Get("Retry-After") != "30" {
			t.Errorf("after a long silence: Retry-After %s, want 30 again", w.Header().Get("Retry-After"))
		}
		if s := d.Stats(); s.Clients != 1 || s.BadTokens == 0 || s.Throttled == 0 || !s.Storing {
			t.Errorf("stats = %+v", s)
		}
	})
}

func TestThrottleIsBounded(t *testing.T) {
	var b throttle
	now := time.Now()
	for i := range 3 * maxAddresses {
		b.fail(fmt.Sprintf("10.0.%d.%d:1", i>>8, i&255), now)
	}
	if n := len(b.seen); n > maxAddresses {
		t.Errorf("%d addresses are remembered, want at most %d", n, maxAddresses)
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1", true}, {"[::ffff:192.0.2.1]:5", "192.0.2.1", true}, {"[2001:db8::1]:1", "2001:db8::ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false}, {"fe80::1%eth0", "fe80::2", true}, {"192.0.2.1", "192.0.2.2", false}, {"pipe", "unknown", true},
	} {
		if got := source(c.a) == source(c.b); got != c.same {
			t.Errorf("%s and %s count as one: %v, want %v", c.a, c.b, got, c.same)
		}
	}
}

func TestCookie(t *testing.T) {
	cs := connection(t)
	d := open(t, &memory{}, nil)
	owner, id := d.pairAs(t, Owner, cs)
	_, other := d.pairAs(t, Member, cs)
	g := want(t, "session", d.do("POST", "session", fmt.Sprintf(`{"token":%q}`, owner), call{}), 200)
	c, err := http.ParseSetCookie(g.header.Get("Set-Cookie"))
	if err != nil || c.Name != CookieName || c.Value != owner || c.Path != "/.cloudrest/" || !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode {
		t.Fatalf("cookie = %v, %v", c, err)
	}
	want(t, "wrong token", d.do("POST", "session", `{"token":"crp_x"}`, call{}), 401)
	want(t, "from elsewhere", d.do("POST", "session", fmt.Sprintf(`{"token":%q}`, owner), call{header: http.Header{"Origin": {"https://evil.example"}}}), 403)
	got := want(t, "who", d.do("GET", "session", "", call{cookie: owner}), 200)
	if got.body.Client.ID != id {
		t.Errorf("session = %v, want %s", got, id)
	}
	want(t, "nobody", d.do("GET", "session", "", call{}), 401)
	// Cross-site request forgery.
	for name, c := range map[string]struct {
		header http.Header
		status int
	}{
		"no word on the page":       {nil, 403},
		"another site":              {http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		"a neighbour of the domain": {http.Header{"Sec-Fetch-Site": {"same-site"}}, 403},
		"another origin":            {http.Header{"Origin": {"https://evil.example"}}, 403},
		"no TLS":                    {http.Header{"Origin": {"http://irrigation.local"}}, 403},
		"another port":              {http.Header{"Origin": {"https://irrigation.local:8443"}}, 403},
		"opaque origin":             {http.Header{"Origin": {"null"}}, 403},
		"one of them is wrong":      {http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"https://evil.example"}}, 403},
		"old browser":               {http.Header{"Origin": {"https://irrigation.local"}}, 200},
		"with the port":             {http.Header{"Origin": {"https://irrigation.local:443"}}, 200},
		"browser":                   {http.Header{"Sec-Fetch-Site": {"same-origin"}}, 200},
		"both":                      {http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {"https://irrigation.local"}}, 200},
	} {
		want(t, name, d.do("PATCH", "clients/"+other, `{"name":"x"}`, call{cookie: owner, header: c.header}), c.status)
	}
	// Below /.cloudrest/ the cookie opens what Guard keeps, and a WebSocket counts as unsafe.
	o := &origin{}
	cookie := http.Header{"Cookie": {"a=1; " + CookieName + "=" + owner}}
	if w := d.guard(o, "GET", "/.cloudrest/v1/events", cookie, "192.0.2.1:1"); w.Code != 200 {
		t.Errorf("events with the cookie: %d, want 200", w.Code)
	}
	cookie = http.Header{"Cookie": {CookieName + "=" + owner}, "Upgrade": {"websocket"}}
	if w := d.guard(o, "GET", "/.cloudrest/v1/live", cookie, "192.0.2.1:1"); w.Code != 403 {
		t.Errorf("WebSocket with the cookie and no origin: %d, want 403", w.Code)
	}
	end := want(t, "end", d.do("DELETE", "session", "", call{cookie: owner, header: http.Header{"Sec-Fetch-Site": {"same-origin"}}}), 204)
	if c, err := http.ParseSetCookie(end.header.Get("Set-Cookie")); err != nil || c.MaxAge >= 0 || c.Value != "" {
		t.Errorf("cookie at the end = %v, %v", c, err)
	}
	// The page pairs with "cookie": no script sees the token.
	d.Open(WayButton, OpenOptions{})
	g = want(t, "pair", d.do("POST", "pair", `{"name":"page","cookie":true}`, call{tls: cs, header: http.Header{"Sec-Fetch-Site": {"same-origin"}}}), 200)
	c, err = http.ParseSetCookie(g.header.Get("Set-Cookie"))
	if err != nil || g.body.Token != "" {
		t.Fatalf("cookie = %v, %v, token in the body %q, want the cookie alone", c, err, g.body.Token)
	}
	want(t, "page", d.do("GET", "session", "", call{cookie: c.Value}), 200)
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"": noName, " \t\n": noName, "Pixel 8": "Pixel 8", "a\x00b\x1b[31m": "ab[31m", "x\u202egnp": "xgnp", "\xff\xfe": noName,
		"a  \n b ": "a b", strings.Repeat("é", 40): strings.Repeat("é", 32), strings.Repeat("a", 63) + " b": strings.Repeat("a", 63),
		"<b>\"&'": "<b>\"&'", "地图 📱": "地图 📱",
	} {
		if got := cleanName(in); got != want {
			t.Errorf("cleanName(%q) = %q, want %q", in, got, want)
		}
	}
}
