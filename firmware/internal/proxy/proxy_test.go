package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

func TestRoundTrip(t *testing.T) {
	var mu sync.Mutex
	var seen http.Header
	var target, host string
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen, target, host = r.Header.Clone(), r.RequestURI, r.Host
		w.Header().Set("X-Two", "a")
		w.Header().Add("X-Two", "b")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Add("Via", "1.1 a")
		w.Header().Add("Via", "1.1 b")
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "%s %s", r.Method, b)
	})
	each(t, o, nil, func(t *testing.T, f *front) {
		given := "11111111-1111-4111-8111-111111111111"
		resp, b := do(t, f.c, "PUT", f.URL+"/a%2Fb//c/../d?x=%20&y;z", strings.NewReader("hello"),
			"Forwarded", "for=6.6.6.6", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "gopher", "X_Forwarded_For", "6.6.6.6",
			"X-Forwarded-Prefix", "/evil", "X-Real-Ip", "6.6.6.6", tether.HeaderID, given,
			tether.HeaderSequenceID, "42", "Cookie", "a=b", "Authorization", "Bearer x", "Proxy-Authorization", "x", "Via", "1.0 phone")
		mu.Lock()
		defer mu.Unlock()
		if resp.StatusCode != 201 || b != "PUT hello" {
			t.Errorf("answer = %d %q", resp.StatusCode, b)
		}
		if target != "/a%2Fb//c/../d?x=%20&y;z" || host != f.addr {
			t.Errorf("target, host = %q, %q", target, host)
		}
		id := seen.Get(tether.HeaderID)
		if !isUUID(id) || id == given {
			t.Errorf("id = %q, want a new one (LAN)", id)
		}
		via := "1.1 cloudrest"
		if f.h2 {
			via = "2 cloudrest"
		}
		want := http.Header{
			"Cookie": {"a=b"}, "Authorization": {"Bearer x"}, "User-Agent": {"Go-http-client/" + resp.Proto[5:]},
			"Via": {"1.0 phone", via}, tether.HeaderID: {id}, tether.HeaderSequenceID: {"42"},
			"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {f.addr},
			"Forwarded": {`for=127.0.0.1;host="` + f.addr + `";proto=https`}, "Content-Length": {"5"},
		}
		if !reflect.DeepEqual(seen, want) {
			t.Errorf("the origin saw\n%v, want\n%v", seen, want)
		}
		if got := resp.Header["X-Two"]; !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("X-Two = %q", got)
		}
		for k, v := range map[string]string{"X-Hop": "", "Via": "1.1 a, 1.1 b, 1.1 cloudrest", tether.HeaderID: id, tether.HeaderSequenceID: "42", "Etag": `"1"`} {
			if got := resp.Header.Get(k); got != v {
				t.Errorf("%s = %q, want %q", k, got, v)
			}
		}
	})
}

// asked is an Origin that keeps what it was asked and knows no answer.
type asked struct{ q origin.Request }

func (a *asked) Do(_ context.Context, q *origin.Request) (*origin.Response, error) {
	a.q = *q
	a.q.Fields = slices.Clone(q.Fields)
	return nil, origin.ErrUnreachable
}

// field returns the values of one field of the request.
func (a *asked) field(name string) []string {
	var values []string
	for _, f := range a.q.Fields {
		if f.Name == name {
			values = append(values, f.Value)
		}
	}
	return values
}

// TestForwarded: RFC 7239 §4 and §6, and what X-Forwarded-For's readers expect.
func TestForwarded(t *testing.T) {
	var a asked
	p, err := New(Config{Origin: &a})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		class                   admit.Class
		remote, host            string
		plain                   bool
		forwarded, xfor, xproto string
	}{
		"IPv4":               {remote: "192.0.2.1:4711", host: "device", forwarded: "for=192.0.2.1;host=device;proto=https", xfor: "192.0.2.1", xproto: "https"},
		"§6 IPv6":            {remote: "[2001:db8::1]:4711", host: "device:8443", forwarded: `for="[2001:db8::1]";host="device:8443";proto=https`, xfor: "2001:db8::1", xproto: "https"},
		"zone":               {remote: "[fe80::1%eth0]:4711", host: "[fe80::2]", forwarded: `for="[fe80::1]";host="[fe80::2]";proto=https`, xfor: "fe80::1", xproto: "https"},
		"mapped IPv4":        {remote: "[::ffff:192.0.2.1]:4711", host: "d", forwarded: "for=192.0.2.1;host=d;proto=https", xfor: "192.0.2.1", xproto: "https"},
		"§6.3 unknown":       {remote: "@", host: "d", forwarded: "for=unknown;host=d;proto=https", xproto: "https"},
		"plain HTTP":         {remote: "192.0.2.1:1", host: "d", plain: true, forwarded: "for=192.0.2.1;host=d;proto=http", xfor: "192.0.2.1", xproto: "http"},
		"tether":             {class: admit.Tether, plain: true, remote: "198.51.100.7:9", host: "relay.example", forwarded: "for=198.51.100.7;host=relay.example;proto=https", xfor: "198.51.100.7", xproto: "https"},
		"tether, no port":    {class: admit.Tether, plain: true, remote: "2001:db8::2", host: "relay.example", forwarded: `for="[2001:db8::2]";host=relay.example;proto=https`, xfor: "2001:db8::2", xproto: "https"},
		"tether, no address": {class: admit.Tether, plain: true, remote: "", host: "", forwarded: "for=unknown;proto=https", xproto: "https"},
		"§4 quoting":         {remote: "192.0.2.1:1", host: `a"b\c`, forwarded: `for=192.0.2.1;host="a\"b\\c";proto=https`, xfor: "192.0.2.1", xproto: "https"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr, r.Host = c.remote, c.host
		if !c.plain {
			r.TLS = &tls.ConnectionState{}
		}
		r.Header = http.Header{"Forwarded": {"for=6.6.6.6"}, "X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"x"}, "X-Forwarded-Host": {"x"},
			"X-Forwarded-Server": {"x"}, "Connection": {"Forwarded, X-Forwarded-For, X-Cloudrest-Id"}}
		if c.class == admit.Tether {
			r.Header["x-forwarded-for"] = []string{"6.6.6.6"} // not canonical: no parser of ours made this
			r.Header["x_forwarded_proto"] = []string{"6.6.6.6"}
		}
		p.For(c.class).ServeHTTP(httptest.NewRecorder(), r)
		one := func(v string) []string {
			if v == "" {
				return nil
			}
			return []string{v}
		}
		for field, want := range map[string][]string{"Forwarded": one(c.forwarded), "X-Forwarded-For": one(c.xfor), "X-Forwarded-Proto": one(c.xproto),
			"X-Forwarded-Host": one(c.host), "X-Forwarded-Server": nil, "X_forwarded_proto": nil} {
			if got := a.field(field); !slices.Equal(got, want) {
				t.Errorf("%s: %s = %q, want %q", name, field, got, want)
			}
		}
		if len(a.field(tether.HeaderID)) != 1 {
			t.Errorf("%s: ids %q, want one", name, a.field(tether.HeaderID))
		}
	}
}

func TestIDs(t *testing.T) {
	answer := ""
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if answer != "" {
			w.Header().Set(tether.HeaderID, answer)
			w.Header().Set(tether.HeaderSequenceID, "of the origin")
		}
		fmt.Fprint(w, r.Header.Get(tether.HeaderID))
	})
	f := newFront(t, "nethttp", o)
	given := "0198c2e4-5b1a-7c3d-9e8f-0123456789ab" // version 7, RFC 9562 §5.7
	tests := []struct {
		class admit.Class
		given []string
		keep  bool
	}{
		{admit.LAN, []string{given}, false},
		{admit.LAN, nil, false},
		{admit.Tether, []string{given}, true},
		{admit.Tether, []string{strings.ToUpper(given)}, true},
		{admit.Tether, nil, false},
		{admit.Tether, []string{given, given}, false},
		{admit.Tether, []string{given + "0"}, false},
		{admit.Tether, []string{"0198c2e4-5b1a-7c3d-9e8f-0123456789aX"}, false},
		{admit.Tether, []string{"0198c2e4+5b1a-7c3d-9e8f-0123456789ab"}, false},
	}
	for _, answer = range []string{"", "22222222-2222-4222-8222-222222222222"} {
		for _, c := range tests {
			r := httptest.NewRequest("GET", "/", nil)
			if c.given != nil {
				r.Header[tether.HeaderID] = c.given
			}
			r.Header.Set(tether.HeaderSequenceID, "7")
			w := httptest.NewRecorder()
			f.proxy.For(c.class).ServeHTTP(w, r)
			sent := w.Body.String()
			if got := w.Result().Header[tether.HeaderID]; len(got) != 1 || got[0] != sent || !isUUID(sent) {
				t.Errorf("%v %v: sent %q, answered %q, want the same UUID", c.class, c.given, sent, got)
			}
			if kept := len(c.given) == 1 && sent == c.given[0]; kept != c.keep {
				t.Errorf("%v %v: kept = %v, want %v", c.class, c.given, kept, c.keep)
			}
			want := "7"
			if answer != "" {
				want = "of the origin"
			}
			if got := w.Result().Header[tether.HeaderSequenceID]; !slices.Equal(got, []string{want}) {
				t.Errorf("sequence id = %q, want %q", got, want)
			}
		}
	}
}

func TestUUID(t *testing.T) {
	var g ids
	seen := map[string]bool{}
	for range 1000 {
		id := g.next()
		if !isUUID(id) || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("id %q: not a new UUID of version 4 (RFC 9562 §5.4)", id)
		}
		seen[id] = true
	}
}

// TestNeverReachesTheOrigin: requests that are refused here (RFC 9110 §9.3.6, §9.3.8,
// RFC 9112 §3.2.4).
func TestNeverReachesTheOrigin(t *testing.T) {
	var got atomic.Int32
	o := serve(t, func(w http.ResponseWriter, r *http.Request) { got.Add(1) })
	f := newFront(t, "http1", o)
	for _, c := range []struct {
		head string
		want string // status, or "" for any refusal
	}{
		{"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "405"},
		{"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", ""},
		{"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", "405"},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "400"},
		{"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", ""},
	} {
		conn := f.raw(t)
		io.WriteString(conn, c.head)
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, "HTTP/1.1 4"+strings.TrimPrefix(c.want, "4")) {
			t.Errorf("%q is answered %q, want %s", c.head, line, c.want)
		}
	}
	h := f.proxy.For(admit.Tether)
	for name, change := range map[string]func(*http.Request){
		"CR LF":     func(r *http.Request) { r.RequestURI = "/\r\nX: 1" },
		"space":     func(r *http.Request) { r.RequestURI = "/ HTTP/1.1" },
		"NUL":       func(r *http.Request) { r.RequestURI = "/\x00" },
		"asterisk":  func(r *http.Request) { r.RequestURI = "*"; r.URL.Path = "*" },
		"query":     func(r *http.Request) { r.RequestURI = ""; r.URL.RawQuery = "a\r\nb" },
		"field":     func(r *http.Request) { r.Header["X"] = []string{"1\r\nContent-Length: 5"} },
		"name":      func(r *http.Request) { r.Header["X: 1\r\nY"] = []string{"1"} },
		"host":      func(r *http.Request) { r.Host = "a\r\nX: 1" },
		"authority": func(r *http.Request) { r.RequestURI = "a:80"; r.URL.Opaque = "a:80" },
	} {
		r := httptest.NewRequest("GET", "/", nil)
		change(r)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 400 {
			t.Errorf("%s: %d, want 400", name, w.Code)
		}
	}
	if n := got.Load(); n != 0 {
		t.Errorf("%d requests reached the origin, want none", n)
	}
}

func TestTargets(t *testing.T) {
	var a asked
	p, err := New(Config{Origin: &a})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ uri, want string }{
		{"/a%2fb//c/./../d?x=%zz&&;", "/a%2fb//c/./../d?x=%zz&&;"},
		{"//evil.example/x", "//evil.example/x"},
		{"/\xc3\xa4?\xff", "/\xc3\xa4?\xff"},
		{"http://other.example/a?b", "/a?b"},
		{"http://other.example", "/"},
		{"http://other.example?b", "/?b"},
	} {
		r := httptest.NewRequest("GET", "http://example.com/", nil)
		r.RequestURI = c.uri
		p.For(admit.LAN).ServeHTTP(httptest.NewRecorder(), r)
		if a.q.Target != c.want {
			t.Errorf("%q is forwarded as %q, want %q", c.uri, a.q.Target, c.want)
		}
	}
	r := httptest.NewRequest("GET", "/a%2Fb?c", nil)
	r.RequestURI = ""
	p.For(admit.LAN).ServeHTTP(httptest.NewRecorder(), r)
	if a.q.Target != "/a%2Fb?c" {
		t.Errorf("from URL: %q", a.q.Target)
	}
}

func TestHopByHop(t *testing.T) {
	var a asked
	p, err := New(Config{Origin: &a})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header = http.Header{"Connection": {"x-secret, TE", "Keep-Alive"}, "X-Secret": {"1"}, "Keep-Alive": {"300"}, "Te": {"gzip, trailers;q=0.5"},
		"Trailer": {"X"}, "Transfer-Encoding": {"chunked"}, "Upgrade": {"h2c"}, "Http2-Settings": {"x"}, "Proxy-Connection": {"x"},
		"Proxy-Authorization": {"x"}, "Content-Length": {"5"}, "Host": {"x"}, "Accept": {"a", "b"}}
	p.For(admit.LAN).ServeHTTP(httptest.NewRecorder(), r)
	var names []string
	for _, f := range a.q.Fields {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	want := []string{"Accept", "Accept", "Forwarded", "Via", tether.HeaderID, "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}
	slices.Sort(want)
	if !slices.Equal(names, want) || !a.q.TETrailers || a.q.Upgrade != "" {
		t.Errorf("forwarded %q, TE: trailers %v, upgrade %q", names, a.q.TETrailers, a.q.Upgrade)
	}
	for _, c := range []struct{ connection, upgrade, want string }{
		{"Upgrade", "websocket", "websocket"}, {"keep-alive, upgrade", "WebSocket, chat/2", "WebSocket, chat/2"},
		{"", "websocket", ""}, {"Upgrade, HTTP2-Settings", "h2c", ""}, {"Upgrade", "websocket, H2C", ""}, {"Upgrade", "TLS/1.0", ""},
		{"Upgrade", "HTTP/2.0", ""}, {"Upgrade", ",", ""},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = http.Header{"Connection": {c.connection}, "Upgrade": {c.upgrade}}
		p.For(admit.LAN).ServeHTTP(httptest.NewRecorder(), r)
		if a.q.Upgrade != c.want {
			t.Errorf("Connection: %s, Upgrade: %s is forwarded as %q, want %q", c.connection, c.upgrade, a.q.Upgrade, c.want)
		}
	}
}

func TestOriginTrouble(t *testing.T) {
	mode := atomic.Value{}
	mode.Store("")
	o := script(t, func(c net.Conn, r *bufio.Reader) {
		for readHead(r) != "" {
			switch mode.Load() {
			case "garbage":
				io.WriteString(c, "\x00\x01garbage\r\n\r\n")
				return
			case "both":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
			case "closes":
				return
			case "slow":
				r.ReadByte() // until the gateway gives up
				return
			case "unasked":
				io.WriteString(c, "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			default:
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	})
	slow := func(_ *Config, c *origin.Config, _ *admit.Config) { c.HeadTimeout = 50 * time.Millisecond }
	each(t, o, []option{slow}, func(t *testing.T, f *front) {
		for _, c := range []struct {
			mode string
			want int
		}{{"garbage", 502}, {"both", 502}, {"closes", 502}, {"slow", 504}, {"unasked", 502}, {"", 200}} {
			mode.Store(c.mode)
			resp, body := get(t, f, "/x", "Accept", "application/json")
			if resp.StatusCode != c.want || !isUUID(resp.Header.Get(tether.HeaderID)) {
				t.Errorf("%s: %d with id %q, want %d", c.mode, resp.StatusCode, resp.Header.Get(tether.HeaderID), c.want)
			}
			if c.want == 200 {
				continue
			}
			var e struct {
				Error   int
				Message string
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error != c.want || e.Message == "" {
				t.Errorf("%s: body %q, %v", c.mode, body, err)
			}
			if strings.Contains(body, "127.0.0.1") || strings.Contains(body, "garbage") || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %v %q tells of the inside, or may be cached", c.mode, resp.Header, body)
			}
		}
		log := f.log.String()
		for line, n := range map[string]int{"bad answer from the origin": 2, "origin unreachable": 1, "origin too slow": 1, "origin answers again": 1} {
			if got := strings.Count(log, "msg=\""+line); got != n {
				t.Errorf("%q %d times in the log, want %d:\n%s", line, got, n, log)
			}
		}
	})
}

func TestOriginDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	each(t, "http://"+l.Addr().String(), nil, func(t *testing.T, f *front) {
		for accept, html := range map[string]bool{
			"": false, "*/*": false, "application/json": false, "text/html": true, "text/html,application/xhtml+xml,*/*;q=0.8": true,
			"text/html;q=0.5, application/json": false, "text/html;q=0": false,
		} {
			resp, body := get(t, f, "/", "Accept", accept)
			kind := resp.Header.Get("Content-Type")
			if resp.StatusCode != 502 || strings.HasPrefix(kind, "text/html") != html || strings.HasPrefix(body, "<!doctype html>") != html {
				t.Errorf("Accept: %s gets %d %s %q", accept, resp.StatusCode, kind, body)
			}
		}
		resp, body := do(t, f.c, "HEAD", f.URL+"/", nil)
		if resp.StatusCode != 502 || body != "" {
			t.Errorf("HEAD: %d %q", resp.StatusCode, body)
		}
		if n := strings.Count(f.log.String(), "\n"); n != 1 {
			t.Errorf("logged %d times, want once:\n%s", n, f.log)
		}
	})
}

// TestIdleCloses: the origin closes kept connections without a word; nobody notices.
func TestIdleCloses(t *testing.T) {
	o := script(t, func(c net.Conn, r *bufio.Reader) {
		if h := readHead(r); h != "" {
			if strings.Contains(h, "Content-Length: 1\r\n") {
				r.ReadByte()
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	f := newFront(t, "http1", o)
	for i := range 60 {
		method := []string{"GET", "PUT", "DELETE"}[i%3]
		var body io.Reader
		if method == "PUT" {
			body = strings.NewReader("x")
		}
		if resp, b := do(t, f.c, method, f.URL+"/", body); resp.StatusCode != 200 || b != "ok" {
			t.Fatalf("%s number %d: %d %q", method, i, resp.StatusCode, b)
		}
	}
}

func TestBusy(t *testing.T) {
	release := make(chan struct{})
	var inside, most atomic.Int32
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n := inside.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer inside.Add(-1)
		<-release
	})
	f := newFront(t, "http1", o, func(_ *Config, _ *origin.Config, a *admit.Config) { a.Concurrency, a.Queue = 2, 1 })
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			resp, err := f.c.Get(f.URL)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("admitted: %v, %v", resp, err)
				return
			}
			resp.Body.Close()
		})
	}
	until(t, "two inside and one waiting", func() bool { s := f.gate.Stats(); return s.InOrigin == 2 && s.Queued == 1 })
	resp, body := get(t, f, "/")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" || body != "{\"error\":503,\"message\":\"device busy\"}\n" {
		t.Errorf("fourth: %d, Retry-After %q, %q", resp.StatusCode, resp.Header.Get("Retry-After"), body)
	}
	close(release)
	wg.Wait()
	if most.Load() > 2 {
		t.Errorf("%d in the origin at once, want at most 2", most.Load())
	}
}

func TestConcurrent(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Saw", r.Header.Get(tether.HeaderID))
		fmt.Fprintf(w, "%s %d %s", r.RequestURI, len(b), b[:min(9, len(b))])
	})
	each(t, o, []option{concurrency(7)}, func(t *testing.T, f *front) {
		var wg sync.WaitGroup
		for w := range 20 {
			wg.Go(func() {
				for i := range 15 {
					path := fmt.Sprintf("/%d/%d", w, i)
					body := strings.Repeat(fmt.Sprintf("%-9s", path), 1+i*i*100) // from 9 bytes to 180 KB
					req, _ := http.NewRequest("POST", f.URL+path, strings.NewReader(body))
					if i%2 == 1 {
						req.ContentLength = -1
					}
					resp, err := f.c.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if want := fmt.Sprintf("%s %d %-9s", path, len(body), path); err != nil || string(b) != want {
						t.Errorf("%q, %v, want %q", b, err, want)
					}
					if resp.Header.Get("X-Saw") != resp.Header.Get(tether.HeaderID) {
						t.Errorf("ids %q and %q", resp.Header.Get("X-Saw"), resp.Header.Get(tether.HeaderID))
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestValidate(t *testing.T) {
	if err := (Config{}).Validate(); err == nil {
		t.Error("no origin: no error")
	}
	if err := (Config{Pseudonym: "a b", MaxBody: -1, StreamAfter: -1}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("not every mistake is reported: %v", err)
	}
}
