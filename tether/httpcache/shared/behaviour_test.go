package shared

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// Two requests with a pause between them; what the origin says first, and whether it is
// asked again. These are the ideas of the public conformance suite, in our own words.
func TestReuse(t *testing.T) {
	const again, reused = true, false
	relay := Relay()
	for _, c := range []struct {
		name   string
		first  []string // of the request
		answer []string
		wait   time.Duration
		second []string
		want   bool // asked again
	}{
		{"§3 nothing stated", nil, nil, 3, nil, again},
		{"§4.2.1 fresh", nil, []string{"Cache-Control: max-age=60"}, 3, nil, reused},
		{"§4.2.1 stale", nil, []string{"Cache-Control: max-age=2"}, 3, nil, again},
		{"§4.2.1 at the last moment", nil, []string{"Cache-Control: max-age=3"}, 3, nil, again},
		{"§4.2.1 max-age=0", nil, []string{"Cache-Control: max-age=0"}, 0, nil, again},
		{"§4.2.1 s-maxage wins over max-age", nil, []string{"Cache-Control: max-age=60, s-maxage=1"}, 3, nil, again},
		{"§4.2.1 s-maxage wins over Expires", nil, []string{"Expires: -10", "Cache-Control: max-age=0, s-maxage=60"}, 3, nil, reused},
		{"§4.2.3 Age counts", nil, []string{"Cache-Control: max-age=60", "Age: 58"}, 3, nil, again},
		{"§4.2.3 Date counts", nil, []string{"Cache-Control: max-age=60", "Date: -58"}, 3, nil, again},
		{"§5.3 Expires", nil, []string{"Expires: +60", "Date: +0"}, 3, nil, reused},
		{"§5.3 Expires in the past", nil, []string{"Expires: -60", "Date: +0"}, 0, nil, again},
		{"§5.3 Expires, clocks differ", nil, []string{"Date: +10", "Expires: +20", "Age: 15"}, 0, nil, again},
		{"§4.2.2 heuristic", nil, []string{"Last-Modified: -86400"}, 3, nil, reused},
		{"§4.2.2 heuristic ends", nil, []string{"Last-Modified: -86400"}, 61, nil, again},
		{"§4.2.2 not for 403", nil, []string{"status: 403", "Last-Modified: -86400"}, 0, nil, again},
		{"§4.2.2 for 404", nil, []string{"status: 404", "Last-Modified: -86400"}, 0, nil, reused},
		{"RFC 9110 §15.1 an unknown status with a lifetime", nil, []string{"status: 599", "Cache-Control: max-age=60"}, 3, nil, reused},
		{"§5.2.2.3 must-understand", nil, []string{"status: 599", "Cache-Control: max-age=60, no-store, must-understand"}, 3, nil, again},
		{"§5.2.2.3 must-understand, understood", nil, []string{"Cache-Control: max-age=60, no-store, must-understand"}, 3, nil, reused},
		{"§5.2.2.5 no-store", nil, []string{"Cache-Control: max-age=60, no-store"}, 0, nil, again},
		{"§5.2.2.4 no-cache", nil, []string{"Cache-Control: max-age=60, no-cache", `Etag: "a"`}, 0, nil, again},
		{"§5.2.2.7 private", nil, []string{"Cache-Control: max-age=60, private"}, 0, nil, again},
		{"§5.2.2.7 private, same principal", []string{"principal: ann"}, []string{"Cache-Control: max-age=60, private"}, 0, []string{"principal: ann"}, reused},
		{"§3.5 Authorization", []string{"Authorization: a"}, []string{"Cache-Control: max-age=60"}, 0, []string{"Authorization: a"}, again},
		{"§3.5 Authorization, known principal", []string{"Authorization: a", "principal: ann"}, []string{"Cache-Control: max-age=60"}, 0, []string{"Authorization: a", "principal: ann"}, reused},
		{"§3.5 Authorization, another principal", []string{"Authorization: a", "principal: ann"}, []string{"Cache-Control: max-age=60"}, 0, []string{"Authorization: a", "principal: bob"}, again},
		{"§3.5 Authorization, public", []string{"Authorization: a"}, []string{"Cache-Control: max-age=60, public"}, 0, nil, reused},
		{"§3.5 Authorization, must-revalidate", []string{"Authorization: a"}, []string{"Cache-Control: max-age=60, must-revalidate"}, 0, nil, reused},
		{"§3.5 Authorization, s-maxage", []string{"Authorization: a"}, []string{"Cache-Control: s-maxage=60"}, 0, nil, reused},
		{"an answer to nobody in particular, for a principal", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"principal: ann"}, reused},
		{"cookies in the request", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"Cookie: a=b"}, reused},
		{"cookies in the answer", nil, []string{"Cache-Control: max-age=60", "Set-Cookie: a=b"}, 0, nil, again},
		{"a guess is not for sessions", []string{"Cookie: a=b"}, []string{"Last-Modified: -86400"}, 0, nil, again},
		{"§4.1 Vary, same", []string{"Foo: 1, 2"}, []string{"Cache-Control: max-age=60", "Vary: Foo"}, 0, []string{"Foo: 1", "Foo: 2"}, reused},
		{"§4.1 Vary, different", []string{"Foo: 1"}, []string{"Cache-Control: max-age=60", "Vary: Foo"}, 0, []string{"Foo: 2"}, again},
		{"§4.1 Vary, absent", []string{"Foo: 1"}, []string{"Cache-Control: max-age=60", "Vary: Foo"}, 0, nil, again},
		{"§4.1 Vary in two lines", []string{"Foo: 1"}, []string{"Cache-Control: max-age=60", "Vary:", "Vary: *"}, 0, []string{"Foo: 1"}, again},
		{"§4.1 a better language is stored", []string{"Accept-Language: en, de"}, []string{"Cache-Control: max-age=60", "Vary: Accept-Language", "Content-Language: de"}, 0, []string{"Accept-Language: fr;q=0.5, de;q=1.0"}, reused},
		{"another host", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"host: other"}, again},
		{"another space", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"space: other"}, again},
		{"§5.2.1.1 max-age=0 in the request", nil, []string{"Cache-Control: max-age=60"}, 1, []string{"Cache-Control: max-age=0"}, again},
		{"§5.2.1.1 max-age that is met", nil, []string{"Cache-Control: max-age=60"}, 1, []string{"Cache-Control: max-age=5"}, reused},
		{"§5.2.1.3 min-fresh", nil, []string{"Cache-Control: max-age=60"}, 1, []string{"Cache-Control: min-fresh=60"}, again},
		{"§5.2.1.2 max-stale", nil, []string{"Cache-Control: max-age=2"}, 3, []string{"Cache-Control: max-stale=5"}, reused},
		{"§5.2.1.2 max-stale too short", nil, []string{"Cache-Control: max-age=2"}, 9, []string{"Cache-Control: max-stale=5"}, again},
		{"§5.2.1.2 any max-stale", nil, []string{"Cache-Control: max-age=2"}, 9, []string{"Cache-Control: max-stale"}, reused},
		{"§5.2.2.2 must-revalidate beats max-stale", nil, []string{"Cache-Control: max-age=2, must-revalidate"}, 3, []string{"Cache-Control: max-stale"}, again},
		{"§5.2.1.4 no-cache in the request", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"Cache-Control: no-cache"}, again},
		{"§5.4 Pragma", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"Pragma: no-cache"}, again},
		{"§5.4 Pragma beside Cache-Control", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"Pragma: no-cache", "Cache-Control: x"}, reused},
		{"§5.2.1.5 no-store in the request", nil, []string{"Cache-Control: max-age=60"}, 0, []string{"Cache-Control: no-store"}, again},
		{"§5.2.1.5 no-store in the first request", []string{"Cache-Control: no-store"}, []string{"Cache-Control: max-age=60"}, 0, nil, again},
		{"CDN-Cache-Control counts at the relay", nil, []string{"Cdn-Cache-Control: max-age=60", "Cache-Control: no-store"}, 3, nil, reused},
		{"and when it is malformed it does not", nil, []string{"Cdn-Cache-Control: max-age=60, &", "Cache-Control: no-store"}, 3, nil, again},
	} {
		bubble(t, func(t *testing.T) {
			g := newRig(t, relay)
			g.answers(c.answer...)
			g.do("GET /x", c.first...)
			time.Sleep(c.wait * time.Second)
			w := g.do("GET /x", c.second...)
			if got := len(g.asked) == 2; got != c.want {
				t.Errorf("%s: the origin was asked again: %v, want %v (Cache-Status %q)", c.name, got, c.want, w.Header()["Cache-Status"])
			}
			if !c.want && w.Header().Get("Age") == "" {
				t.Errorf("§5.1 %s: no Age", c.name)
			}
		})
	}
}

func TestWhatIsStoredOfAnAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers("Cache-Control: max-age=60", "Date: +0", `Etag: "a"`, "A: 1", "B: 2", "C: 3", "C: 4", "Connection: A", "Keep-Alive: x", "Proxy-Authenticate: x",
			"X-Cloudrest-Id: 1", `Cache-Control: no-cache="b"`, "Content-Location: /y", "Set-Cookie2: x")
		g.do("GET /x")
		date := time.Now().UTC().Format(http.TimeFormat)
		time.Sleep(7 * time.Second)
		w := g.do("GET /x")
		g.want("stored", w, 200, "body", 1)
		want := map[string]string{"Date": date, "Age": "7", "Etag": `"a"`, "A": "", "B": "", "C": "3|4", "Connection": "", "Keep-Alive": "", "Proxy-Authenticate": "",
			"X-Cloudrest-Id": "", "Content-Location": "/y", "Content-Length": "4", "Cache-Status": "cloudrest-gateway; hit; ttl=53", "Set-Cookie2": "x"}
		for name, v := range want {
			if got := strings.Join(w.Header()[name], "|"); got != v {
				t.Errorf("§3.1 %s = %q, want %q", name, got, v)
			}
		}
	})
}

func TestAnswersFromTheStore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		changed := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
		g.answers("Cache-Control: max-age=60", `Etag: "a"`, "Last-Modified: "+changed, "Content-Type: text/plain", "body: 0123456789")
		g.do("GET /x")
		for _, c := range []struct {
			name   string
			method string
			fields []string
			status int
			body   string
			header string // name=value
		}{
			{"RFC 9110 §13.1.2 If-None-Match", "GET", []string{`If-None-Match: "z", "a"`}, 304, "", `Etag="a"`},
			{"RFC 9110 §15.4.5 no Content-Type in a 304", "GET", []string{`If-None-Match: "a"`}, 304, "", "Content-Type="},
			{"RFC 9110 §13.1.2 no match", "GET", []string{`If-None-Match: "z"`}, 200, "0123456789", ""},
			{"RFC 9110 §13.1.3 If-Modified-Since", "GET", []string{"If-Modified-Since: " + changed}, 304, "", ""},
			{"RFC 9110 §9.3.2 HEAD", "HEAD", nil, 200, "", "Content-Length=10"},
			{"RFC 9110 §14.2 a range", "GET", []string{"Range: bytes=2-4"}, 206, "234", "Content-Range=bytes 2-4/10"},
			{"RFC 9110 §14.2 a range to the end", "GET", []string{"Range: bytes=8-"}, 206, "89", "Content-Length=2"},
			{"RFC 9110 §14.1.2 the last bytes", "GET", []string{"Range: bytes=-3"}, 206, "789", "Content-Range=bytes 7-9/10"},
			{"RFC 9110 §15.5.17 beyond the end", "GET", []string{"Range: bytes=10-"}, 416, "", "Content-Range=bytes */10"},
			{"RFC 9110 §14.2 several ranges", "GET", []string{"Range: bytes=0-1,4-5"}, 200, "0123456789", ""},
			{"RFC 9110 §14.2 HEAD has no ranges", "HEAD", []string{"Range: bytes=0-1"}, 200, "", ""},
			{"RFC 9110 §13.1.5 If-Range", "GET", []string{"Range: bytes=2-4", `If-Range: "a"`}, 206, "234", ""},
			{"RFC 9110 §13.1.5 If-Range, changed", "GET", []string{"Range: bytes=2-4", `If-Range: "b"`}, 200, "0123456789", ""},
			{"RFC 9110 §13.2.2 304 goes before 206", "GET", []string{"Range: bytes=2-4", `If-None-Match: "a"`}, 304, "", ""},
			{"§5.2.1.7 only-if-cached", "GET", []string{"Cache-Control: only-if-cached"}, 200, "0123456789", ""},
		} {
			w := g.do(c.method+" /x", c.fields...)
			g.want(c.name, w, c.status, c.body, 1)
			if c.status == 304 && w.Body.Len() > 0 || c.method == "HEAD" && w.Body.Len() > 0 {
				t.Errorf("%s: a body of %d bytes, want none", c.name, w.Body.Len())
			}
			if name, value, ok := strings.Cut(c.header, "="); ok {
				if got := w.Header().Get(name); got != value {
					t.Errorf("%s: %s = %q, want %q", c.name, name, got, value)
				}
			}
		}
		g.want("§5.2.1.7 only-if-cached, nothing there", g.do("GET /y", "Cache-Control: only-if-cached"), 504, "", 1)
	})
}

func TestValidation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers("Cache-Control: max-age=2", `Etag: "a"`, "Last-Modified: -3600", "A: 1", "B: 1", "body: old")
		g.do("GET /x")
		time.Sleep(3 * time.Second)
		g.answers("status: 304", "Cache-Control: max-age=20", "B: 2", "Content-Length: 99", `Etag: "a"`)
		w := g.do("GET /x", `If-None-Match: "client"`, "Range: bytes=1-1", "Abc: 1")
		g.want("§4.3.3 a 304 makes it fresh", w, 206, "l", 2)
		q := g.asked[1].Header
		if q.Get("If-None-Match") != `"a"` || q.Get("If-Modified-Since") == "" || q.Get("Range") != "" || q.Get("Abc") != "1" {
			t.Errorf("§4.3.1 asked with %v", q)
		}
		time.Sleep(10 * time.Second)
		w = g.do("GET /x")
		g.want("§4.3.4 the new lifetime counts", w, 200, "old", 2)
		if w.Header().Get("A") != "1" || w.Header().Get("B") != "2" || w.Header().Get("Content-Length") != "3" || w.Header().Get("Age") != "10" {
			t.Errorf("§3.2 fields after the 304: %v", w.Header())
		}

		time.Sleep(20 * time.Second)
		g.answers("Cache-Control: max-age=2", `Etag: "b"`, "body: new")
		g.want("§4.3.3 a 200 takes its place", g.do("GET /x"), 200, "new", 3)
		g.want("", g.do("GET /x"), 200, "new", 3)
		time.Sleep(3 * time.Second)
		g.answers("Cache-Control: max-age=2", `Etag: "c"`, "body: newer")
		w = g.do("GET /x", `If-None-Match: "c"`)
		g.want("§4.3.2 the client's own condition on a new answer", w, 304, "", 4)
		g.want("which is stored", g.do("GET /x"), 200, "newer", 4)

		time.Sleep(3 * time.Second)
		n := 0
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			if n++; n == 1 {
				answer("status: 304", `Etag: "z"`)(w, r)
				return
			}
			answer("Cache-Control: max-age=2", `Etag: "z"`, "body: z")(w, r)
		}
		g.want("§4.3.4 a 304 about something else", g.do("GET /x"), 200, "z", 6)
	})
}

func TestHead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers("Cache-Control: max-age=2", `Etag: "a"`)
		g.do("GET /x")
		time.Sleep(3 * time.Second)
		g.answers(`Etag: "b"`, "Cache-Control: max-age=2")
		g.want("HEAD goes on when what is stored is stale", g.do("HEAD /x"), 200, "", 2)
		if n := g.c.Stats().Entries; n != 0 {
			t.Errorf("§4.3.5 %d entries after a HEAD that says it changed, want 0", n)
		}
	})
}

func TestStaleAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		conf    Config
		control string
		wait    time.Duration
		then    string // status of the origin
		want    int
	}{
		{"RFC 5861 §4 stale-if-error", Relay(), "max-age=2, stale-if-error=10", 5, "status: 503", 200},
		{"RFC 5861 §4 500", Relay(), "max-age=2, stale-if-error=10", 5, "status: 500", 200},
		{"RFC 5861 §4 not for 404", Relay(), "max-age=2, stale-if-error=10", 5, "status: 404", 404},
		{"RFC 5861 §4 is over", Relay(), "max-age=2, stale-if-error=10", 13, "status: 503", 503},
		{"the relay does not by itself", Relay(), "max-age=2", 5, "status: 502", 502},
		{"the gateway bridges a restart", Gateway(), "max-age=2", 5, "status: 502", 200},
		{"not for long", Gateway(), "max-age=2", 40, "status: 502", 502},
		{"and not what the service itself says", Gateway(), "max-age=2", 5, "status: 503", 503},
		{"§4.2.4 must-revalidate", Gateway(), "max-age=2, must-revalidate", 5, "status: 502", 502},
		{"§4.2.4 proxy-revalidate", Gateway(), "max-age=2, proxy-revalidate", 5, "status: 502", 502},
		{"§4.2.4 no-cache", Gateway(), "max-age=2, no-cache", 5, "status: 502", 502},
		{"§4.2.4 s-maxage", Gateway(), "s-maxage=2", 5, "status: 502", 502},
	} {
		bubble(t, func(t *testing.T) {
			g := newRig(t, c.conf)
			g.answers("Cache-Control: "+c.control, `Etag: "a"`, "body: old")
			g.do("GET /x")
			time.Sleep(c.wait * time.Second)
			g.answers(c.then, "body: failed")
			w := g.do("GET /x")
			body := map[bool]string{true: "old", false: "failed"}[c.want == 200]
			g.want(c.name, w, c.want, body, 2)
			if s := w.Header().Get("Cache-Status"); c.want == 200 && !strings.Contains(s, "detail=stale-if-error") {
				t.Errorf("%s: Cache-Status %q does not say stale", c.name, s)
			}
		})
	}
}

func TestStaleWhileRevalidate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers("Cache-Control: max-age=2, stale-while-revalidate=10", `Etag: "a"`, "body: old")
		g.do("GET /x")
		time.Sleep(5 * time.Second)
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			answer("Cache-Control: max-age=2, stale-while-revalidate=10", `Etag: "b"`, "body: new")(w, r)
		}
		start := time.Now()
		for range 5 {
			if w := g.do("GET /x"); w.Body.String() != "old" {
				t.Errorf("RFC 5861 §3: got %q, want the stale answer", w.Body)
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("RFC 5861 §3: clients waited %v, want no wait", d)
		}
		time.Sleep(1500 * time.Millisecond)
		g.want("one validation in the background", g.do("GET /x"), 200, "new", 2)
		time.Sleep(13 * time.Second)
		g.want("the time is over", g.do("GET /x"), 200, "new", 3)
	})
}

func TestInvalidation(t *testing.T) {
	for _, c := range []struct {
		name   string
		write  string
		status string
		extra  string
		gone   bool
	}{
		{"§4.4 POST", "POST /x", "status: 200", "A: 1", true},
		{"§4.4 PUT", "PUT /x", "status: 204", "A: 1", true},
		{"§4.4 PATCH", "PATCH /x", "status: 200", "A: 1", true},
		{"§4.4 DELETE", "DELETE /x", "status: 200", "A: 1", true},
		{"§4.4 an unknown method", "M-SEARCH /x", "status: 200", "A: 1", true},
		{"§4.4 a redirect", "POST /x", "status: 303", "A: 1", true},
		{"§4.4 refused", "POST /x", "status: 403", "A: 1", false},
		{"§4.4 failed", "POST /x", "status: 500", "A: 1", false},
		{"who knows whether it failed", "POST /x", "status: 504", "A: 1", true},
		{"§4.4 Location", "POST /y", "status: 201", "Location: /x", true},
		{"§4.4 Content-Location", "POST /y", "status: 200", "Content-Location: http://host/x", true},
		{"§4.4 of another origin", "POST /y", "status: 201", "Location: http://other/x", false},
		{"another query of the path", "POST /x?a=b", "status: 200", "A: 1", true},
		{"another path", "POST /xy", "status: 200", "A: 1", false},
		{"another spelling", "POST /%78", "status: 200", "A: 1", true},
		{"a path with dots", "POST /y/../x", "status: 200", "A: 1", true},
		{"safe", "OPTIONS /x", "status: 200", "A: 1", false},
	} {
		bubble(t, func(t *testing.T) {
			conf := Gateway()
			g := newRig(t, conf)
			g.answers("Cache-Control: max-age=60")
			g.do("GET /x")
			g.do("GET /x", "principal: ann", "host: other")
			stored := g.c.Stats().Entries
			g.answers(c.status, c.extra)
			g.do(c.write)
			if got := g.c.Stats().Entries; (got == 0) != c.gone || !c.gone && got != stored {
				t.Errorf("%s: %d of %d entries are left, want them gone: %v", c.name, got, stored, c.gone)
			}
		})
	}
}

// Many principals that poll what is for everybody are one request.
func TestPrincipalsShareOneQuestion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		var asked atomic.Int64
		origin := func(w http.ResponseWriter, r *http.Request) error {
			asked.Add(1)
			time.Sleep(time.Second)
			answer("Cache-Control: public, max-age=5", `Etag: "a"`)(w, r)
			return nil
		}
		for round, want := range []int64{5, 6, 7} { // at first nobody can know that it is for everybody
			var wg sync.WaitGroup
			for n := range 5 {
				wg.Go(func() {
					w := httptest.NewRecorder()
					_ = g.c.Serve(w, httptest.NewRequest("GET", "/x", nil), Target{URI: "/x", Principal: strings.Repeat("p", n+1)}, origin)
				})
			}
			wg.Wait()
			if n := asked.Load(); n != want {
				t.Errorf("round %d: the origin was asked %d times in all, want %d", round, n, want)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

// RFC 9110 §9.3.3.
func TestPostThatSaysWhatGetWould(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers("Cache-Control: max-age=60", "Content-Location: /x", "body: posted")
		g.do("POST /x")
		g.want("GET after POST", g.do("GET /x"), 200, "posted", 1)
		g.answers("Cache-Control: max-age=60", "Content-Location: /z")
		g.do("POST /y")
		g.want("another Content-Location", g.do("GET /y"), 200, "", 3)
		for n, rule := range []httpcache.Rule{{Pattern: "/z", Stale: time.Minute}, {Pattern: "/z", Private: true}, {Pattern: "/z", Never: true}} {
			g.c.PurgeAll()
			g.c.conf.Rules = []httpcache.Rule{rule}
			g.answers("Cache-Control: max-age=60", "Content-Location: /z")
			g.do("POST /z")
			if got, want := g.c.Stats().Entries, 1-min(n, 1); got != want {
				t.Errorf("rule %+v: %d entries after the POST, want %d", rule, got, want)
			}
		}
	})
}

func TestVariants(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			answer("Cache-Control: max-age=60", "Vary: Foo", "body: "+r.Header.Get("Foo"))(w, r)
		}
		g.do("GET /x", "Foo: 1")
		g.do("GET /x", "Foo: 2", "Other: 1")
		g.want("first", g.do("GET /x", "Foo: 1", "Other: 2"), 200, "1", 2)
		g.want("second", g.do("GET /x", "Foo: 2"), 200, "2", 2)
		for i := range 3 * maxVariants {
			g.do("GET /x", "Foo: "+strings.Repeat("x", i+1))
		}
		if n := g.c.Stats().Entries; n > maxVariants {
			t.Errorf("%d answers for one target, want at most %d", n, maxVariants)
		}
	})
}

func TestRules(t *testing.T) {
	rule := func(text string) httpcache.Rule {
		t.Helper()
		r, err := httpcache.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, c := range []struct {
		name   string
		rule   string
		first  []string
		answer []string
		second []string
		again  bool
	}{
		{"ttl", "/x ttl=5s", nil, nil, nil, false},
		{"ttl for 200 only", "/x ttl=5s", nil, []string{"status: 404"}, nil, true},
		{"the origin's own lifetime wins", "/x ttl=5s", nil, []string{"Cache-Control: max-age=0"}, nil, true},
		{"the origin's no-store wins", "/x ttl=5s", nil, []string{"Cache-Control: no-store"}, nil, true},
		{"the origin's no-cache wins", "/x ttl=5s", nil, []string{"Cache-Control: no-cache"}, nil, true},
		{"ttl is not for others", "/x ttl=5s", []string{"principal: ann"}, nil, []string{"principal: bob"}, true},
		{"ttl is for the same", "/x ttl=5s", []string{"principal: ann"}, nil, []string{"principal: ann"}, false},
		{"ttl with credentials of nobody known", "/x ttl=5s", []string{"Authorization: a"}, nil, []string{"Authorization: a"}, true},
		{"ttl with a cookie of nobody known", "/x ttl=5s", []string{"Cookie: a"}, nil, []string{"Cookie: a"}, true},
		{"public", "/x ttl=5s public", []string{"principal: ann", "Cookie: a"}, nil, []string{"principal: bob"}, false},
		{"public does not beat private", "/x ttl=5s public", []string{"principal: ann"}, []string{"Cache-Control: private"}, []string{"principal: bob"}, true},
		{"public does not beat cookies", "/x ttl=5s public", nil, []string{"Set-Cookie: a=b"}, nil, true},
		{"private", "/x ttl=5s private", nil, nil, nil, true},
		{"private beats a public lifetime", "/x private", nil, []string{"Cache-Control: max-age=60, public"}, nil, true},
		{"never", "/x never", nil, []string{"Cache-Control: max-age=60"}, nil, true},
	} {
		bubble(t, func(t *testing.T) {
			conf := Gateway()
			conf.Rules = []httpcache.Rule{rule(c.rule)}
			g := newRig(t, conf)
			g.answers(c.answer...)
			g.do("GET /x?q", c.first...)
			w := g.do("GET /x?q", c.second...)
			if got := len(g.asked) == 2; got != c.again {
				t.Errorf("%s: asked again: %v, want %v (%q)", c.name, got, c.again, w.Header())
			}
			if v := w.Header().Get("Cdn-Cache-Control"); c.name == "public" && v != "public, max-age=5" {
				t.Errorf("%s: CDN-Cache-Control = %q, want the lifetime announced", c.name, v)
			}
			time.Sleep(6 * time.Second)
			g.do("GET /x?q", c.second...)
			if n := len(g.asked); strings.HasPrefix(c.rule, "/x ttl") && !c.again && n != 2 {
				t.Errorf("%s: asked %d times after the time, want 2", c.name, n)
			}
		})
	}
	conf := Relay()
	conf.Rules = []httpcache.Rule{rule("/x stale=1m")}
	bubble(t, func(t *testing.T) {
		g := newRig(t, conf)
		g.answers("Cache-Control: max-age=1", "body: old")
		g.do("GET /x")
		time.Sleep(30 * time.Second)
		g.answers("status: 502")
		g.want("stale", g.do("GET /x"), 200, "old", 2)
	})
}

// What only a maker's rule says reaches the relay, and what the service says stays.
func TestRulesReachTheRelay(t *testing.T) {
	for _, c := range []struct {
		rule   string
		fields []string // of the service's answer
		want   string   // CDN-Cache-Control
		stored int      // at the relay
		stale  bool     // the relay may use it while the device is offline
	}{
		{"/x ttl=5s", nil, "max-age=5", 1, false},
		{"/x ttl=5s public", nil, "public, max-age=5", 1, false},
		{"/x ttl=5s stale=1m", nil, "max-age=5, stale-if-error=60", 1, true},
		{"/x ttl=5s", []string{"Cache-Control: stale-while-revalidate=9"}, "max-age=5, stale-while-revalidate=9", 1, false},
		{"/x ttl=5s", []string{"Cache-Control: max-age=9"}, "", 1, false},
		{"/x ttl=5s", []string{"Cdn-Cache-Control: no-store"}, "no-store", 0, false},
		{"/x stale=1m", []string{"Cache-Control: Max-Age=9, private"}, "private, max-age=9, stale-if-error=60", 1, true},
		{"/x stale=1m", []string{"Cache-Control: max-age=9, must-revalidate"}, "", 1, false},
		{"/x stale=1m", []string{"Cache-Control: max-age=9, stale-if-error=1"}, "", 1, false},
		{"/x stale=1m", []string{`Cache-Control: max-age=9, x="`}, "", 0, false},
		{"/x stale=1m", []string{"Expires: +9", "Date: +0"}, "max-age=9, stale-if-error=60", 1, true},
		{"/x stale=1m", nil, "stale-if-error=60", 1, true},
		{"/x private", []string{"Cache-Control: public, max-age=9"}, "private, max-age=9", 1, false},
		{"/x private", []string{"Cdn-Cache-Control: public, max-age=9"}, "public, max-age=9, private", 1, false},
		{"/x never", []string{"Cache-Control: max-age=9"}, "no-store", 0, false},
		{"/y never", []string{"Cache-Control: max-age=9"}, "", 1, false},
	} {
		bubble(t, func(t *testing.T) {
			rule, err := httpcache.ParseRule(c.rule)
			if err != nil {
				t.Fatal(err)
			}
			conf := Gateway()
			conf.Rules = []httpcache.Rule{rule}
			device, relay := newRig(t, conf), newRig(t, Relay())
			device.answers(c.fields...)
			relay.origin = func(w http.ResponseWriter, r *http.Request) {
				_ = device.c.Serve(w, r, Target{URI: r.RequestURI}, func(w http.ResponseWriter, r *http.Request) error { device.origin(w, r); return nil })
			}
			w := relay.do("GET /x", "principal: ann")
			if got := strings.Join(w.Header()["Cdn-Cache-Control"], ", "); got != c.want {
				t.Errorf("%s with %q: CDN-Cache-Control %q, want %q", c.rule, c.fields, got, c.want)
			}
			if n := relay.c.Stats().Entries; n != c.stored {
				t.Errorf("%s with %q: the relay stores %d answers, want %d", c.rule, c.fields, n, c.stored)
			}
			if rule.Private {
				if got := relay.do("GET /x", "principal: bob").Header().Get("Cache-Status"); strings.Contains(got, "cloudrest-relay; hit") {
					t.Errorf("%s: another user got %q", c.rule, got)
				}
			}
			time.Sleep(30 * time.Second)
			relay.answers("status: 504")
			w = relay.do("GET /x", "principal: ann")
			if (w.Code == 200) != c.stale || c.stale && !strings.Contains(w.Header().Get("Cache-Status"), "fwd=stale") {
				t.Errorf("%s with %q: offline, the relay says %d, %q, want the stale answer: %v", c.rule, c.fields, w.Code, w.Header()["Cache-Status"], c.stale)
			}
		})
	}
	// What was told holds no longer than the service lets it.
	bubble(t, func(t *testing.T) {
		conf := Gateway()
		conf.Rules = []httpcache.Rule{{Pattern: "/x", TTL: 5 * time.Second}}
		g := newRig(t, conf)
		g.answers(`Etag: "a"`)
		g.do("GET /x")
		time.Sleep(6 * time.Second)
		g.answers("status: 304", `Etag: "a"`, "Cache-Control: no-cache")
		if h := g.do("GET /x").Header(); h.Get("Cdn-Cache-Control") != "" || h.Get("Cache-Control") != "no-cache" {
			t.Errorf("after a 304 with no-cache: %v, want no lifetime for others", h)
		}
	})
}

func TestMadeTags(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		g.answers("Content-Type: application/json", "body: {}")
		w := g.do("GET /x")
		tag := w.Header().Get("Etag")
		if !strings.HasPrefix(tag, tagPrefix) || w.Header().Get("Content-Length") != "2" || w.Body.String() != "{}" {
			t.Fatalf("answer without validator: %v %q, want an ETag", w.Header(), w.Body)
		}
		w = g.do("GET /x", "If-None-Match: "+tag)
		g.want("the same state", w, 304, "", 2)
		if w.Body.Len() != 0 || w.Header().Get("Etag") != tag {
			t.Errorf("304: %v %q", w.Header(), w.Body)
		}
		g.answers("Content-Type: application/json", "body: []")
		w = g.do("GET /x", "If-None-Match: "+tag)
		g.want("another state", w, 200, "[]", 3)
		if other := w.Header().Get("Etag"); other == tag || other == "" {
			t.Errorf("ETag of another state %q, want another than %q", other, tag)
		}
		for name, fields := range map[string][]string{"no-store": {"Cache-Control: no-store"}, "its own": {`Etag: "a"`}, "dated": {"Last-Modified: -9"},
			"an error": {"status: 404"}, "too long": {"body: " + strings.Repeat("x", TagMax+1)}, "events": {"Content-Type: text/event-stream"}} {
			g.answers(fields...)
			if tag := g.do("GET /x").Header().Get("Etag"); strings.HasPrefix(tag, tagPrefix) {
				t.Errorf("%s: got the ETag %q, want none of ours", name, tag)
			}
		}
		// What comes in pieces is not kept back.
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("a"))
			w.(http.Flusher).Flush()
			if got := w.(*recorder).w.(interface{ Result() *http.Response }); got.Result().StatusCode != 200 {
				t.Errorf("the first piece was kept back")
			}
			w.Write([]byte("b"))
		}
		w = g.do("GET /x")
		if w.Body.String() != "ab" || w.Header().Get("Etag") != "" {
			t.Errorf("in pieces: %q %v, want ab without ETag", w.Body, w.Header())
		}
	})
}

func TestPreconditions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, Gateway())
		state, writes := "a", 0
		changed := time.Time{}
		g.origin = func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				if r.Header.Get("If-Match") == `"origin"` {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				if v := r.Header.Get("If-Match"); v != "" {
					t.Errorf("the origin got If-Match %s", v)
				}
				time.Sleep(time.Second)
				state += "+"
				writes++
				return
			}
			if !changed.IsZero() {
				w.Header().Set("Last-Modified", changed.UTC().Format(http.TimeFormat))
			}
			w.Write([]byte(state))
		}
		tag := g.do("GET /x").Header().Get("Etag")
		if w := g.do("PUT /x", "If-Match: "+tag); w.Code != 200 || writes != 1 {
			t.Errorf("If-Match that holds: %d, %d writes, want 200 and one", w.Code, writes)
		}
		if w := g.do("PUT /x", "If-Match: "+tag); w.Code != 412 || writes != 1 {
			t.Errorf("RFC 9110 §13.1.1 If-Match that does not: %d, %d writes, want 412 and no other", w.Code, writes)
		}
		if w := g.do("PUT /x", `If-Match: "origin"`); w.Code != http.StatusTeapot {
			t.Errorf("a tag of the origin's: %d, want its own answer", w.Code)
		}
		// Of two that mean the same state, one wins.
		tag = g.do("GET /x").Header().Get("Etag")
		codes := make(chan int, 2)
		for range 2 {
			go func() { codes <- g.do("PUT /x", "If-Match: "+tag).Code }()
		}
		if a, b := <-codes, <-codes; a+b != 200+412 {
			t.Errorf("two writes at once: %d and %d, want 200 and 412", a, b)
		}
		changed = time.Now().Add(-time.Minute)
		since := changed.Add(-time.Second).UTC().Format(http.TimeFormat)
		if w := g.do("PUT /x", "If-Unmodified-Since: "+since); w.Code != 412 {
			t.Errorf("RFC 9110 §13.1.4 If-Unmodified-Since, changed: %d, want 412", w.Code)
		}
		since = changed.UTC().Format(http.TimeFormat)
		if w := g.do("PUT /x", "If-Unmodified-Since: "+since); w.Code != 200 {
			t.Errorf("RFC 9110 §13.1.4 If-Unmodified-Since, unchanged: %d, want 200", w.Code)
		}
	})
}
