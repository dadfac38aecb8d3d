package httpcache

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// fields makes a header of "Name: value" lines.
func fields(lines ...string) http.Header {
	h := http.Header{}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		h.Add(name, strings.TrimSpace(value))
	}
	return h
}

func TestLifetime(t *testing.T) {
	const never = time.Duration(0)
	for _, c := range []struct {
		name     string
		fields   []string
		want     time.Duration
		explicit bool
	}{
		{"§4.2.1 nothing stated", nil, never, false},
		{"§5.2.2.1 max-age", []string{"Cache-Control: max-age=60"}, time.Minute, true},
		{"§5.2 names in any case", []string{"Cache-Control: MaX-aGe=60"}, time.Minute, true},
		{"§5.2 quoted form", []string{`Cache-Control: max-age="60"`}, time.Minute, true},
		{"§5.2 single quotes are no quotes", []string{"Cache-Control: max-age='60'"}, never, true},
		{"§5.2.3 unknown directives", []string{`Cache-Control: a, b=c, d="e, max-age=9", max-age=60`}, time.Minute, true},
		{"§5.2 inside a quoted string is no directive", []string{`Cache-Control: max-age=1, x="max-age=60"`}, time.Second, true},
		{"§1.2.2 leading zeros", []string{"Cache-Control: max-age=0060"}, time.Minute, true},
		{"§1.2.2 overflow", []string{"Cache-Control: max-age=99999999999999999999"}, MaxDelta * time.Second, true},
		{"§4.2.1 negative", []string{"Cache-Control: max-age=-60"}, never, true},
		{"§4.2.1 fraction", []string{"Cache-Control: max-age=60.5"}, never, true},
		{"§4.2.1 without value", []string{"Cache-Control: max-age"}, never, true},
		{"§4.2.1 space before the sign", []string{"Cache-Control: max-age =60"}, never, true},
		{"§4.2.1 space after the sign", []string{"Cache-Control: max-age= 60"}, never, true},
		{"§4.2.1 two different ones", []string{"Cache-Control: max-age=60, max-age=61"}, never, true},
		{"§4.2.1 two different ones in two lines", []string{"Cache-Control: max-age=60", "Cache-Control: max-age=61"}, never, true},
		{"§4.2.1 the same twice", []string{"Cache-Control: max-age=60, max-age=60"}, time.Minute, true},
		{"quoted string without end", []string{`Cache-Control: max-age=60, x="y`}, never, true},
		{"§4.2.1 s-maxage wins", []string{"Cache-Control: max-age=1, s-maxage=60"}, time.Minute, true},
		{"§4.2.1 s-maxage wins in any order", []string{"Cache-Control: s-maxage=1, max-age=60"}, time.Second, true},
		{"§4.2.1 a bad s-maxage does not let max-age win", []string{"Cache-Control: s-maxage=x, max-age=60"}, never, true},
		{"§5.3 Expires", []string{"Date: Wed, 04 Mar 2026 05:06:07 GMT", "Expires: Wed, 04 Mar 2026 05:07:07 GMT"}, time.Minute, true},
		{"§5.3 Expires, no Date", []string{"Expires: Wed, 04 Mar 2026 05:07:07 GMT"}, time.Minute, true},
		{"§5.3 Expires, bad Date", []string{"Date: x", "Expires: Wed, 04 Mar 2026 05:07:07 GMT"}, time.Minute, true},
		{"§5.3 Expires before Date", []string{"Date: Wed, 04 Mar 2026 05:08:07 GMT", "Expires: Wed, 04 Mar 2026 05:07:07 GMT"}, never, true},
		{"§5.3 Expires: 0", []string{"Expires: 0"}, never, true},
		{"§4.2.1 two different Expires", []string{"Expires: Wed, 04 Mar 2026 05:07:07 GMT", "Expires: Wed, 04 Mar 2026 05:08:07 GMT"}, never, true},
		{"§5.3 max-age beats Expires", []string{"Cache-Control: max-age=60", "Expires: 0"}, time.Minute, true},
		{"§4.2.2 a tenth", []string{"Date: Wed, 04 Mar 2026 05:06:07 GMT", "Last-Modified: Wed, 04 Mar 2026 05:05:07 GMT"}, 6 * time.Second, false},
		{"§4.2.2 bounded", []string{"Last-Modified: Wed, 04 Mar 2020 05:05:07 GMT"}, HeuristicMax, false},
		{"a clock in 1970", []string{"Date: Thu, 01 Jan 1970 00:05:00 GMT", "Expires: Thu, 01 Jan 1970 00:06:00 GMT"}, time.Minute, true},
	} {
		a := Judge(200, fields(c.fields...))
		if got, explicit := a.Lifetime(now); got != c.want || explicit != c.explicit {
			t.Errorf("%s: Lifetime(%q) = %v, %v, want %v, %v", c.name, c.fields, got, explicit, c.want, c.explicit)
		}
	}
}

func TestHeuristicOnlyWhereAllowed(t *testing.T) {
	h := fields("Last-Modified: Wed, 04 Mar 2026 05:05:07 GMT")
	for status, want := range map[int]bool{200: true, 203: true, 204: true, 404: true, 405: true, 410: true, 414: true, 501: true,
		201: false, 202: false, 302: false, 403: false, 500: false, 502: false, 503: false, 504: false, 599: false} {
		a := Judge(status, h)
		life, _ := a.Lifetime(now)
		if got := life > 0; got != want {
			t.Errorf("§4.2.2 a lifetime for %d is guessed: %v, want %v", status, got, want)
		}
	}
	h.Set("Cache-Control", "public")
	a := Judge(599, h)
	if life, _ := a.Lifetime(now); life <= 0 {
		t.Errorf("§5.2.2.9 599 with public: lifetime %v, want one", life)
	}
}

func TestAge(t *testing.T) {
	for _, c := range []struct {
		name   string
		fields []string
		delay  time.Duration
		want   time.Duration
	}{
		{"none", nil, 0, 0},
		{"§4.2.3 delay", nil, 2 * time.Second, 2 * time.Second},
		{"§5.1 Age", []string{"Age: 30"}, time.Second, 31 * time.Second},
		{"§5.1 the first member", []string{"Age: 30, 0"}, 0, 30 * time.Second},
		{"§5.1 the first line", []string{"Age: 0", "Age: 30"}, 0, 0},
		{"§5.1 not a number", []string{"Age: abc"}, 0, 0},
		{"§5.1 negative", []string{"Age: -7200"}, 0, 0},
		{"§5.1 fraction", []string{"Age: 7200.0"}, 0, 0},
		{"§1.2.2 overflow", []string{"Age: 2147483649"}, 0, MaxDelta * time.Second},
		{"§4.2.3 apparent age", []string{"Date: Wed, 04 Mar 2026 05:05:07 GMT"}, 0, time.Minute},
		{"§4.2.3 Date in the future", []string{"Date: Wed, 04 Mar 2026 05:07:07 GMT", "Age: 3"}, 0, 3 * time.Second},
		{"a clock in 1970 tells nothing", []string{"Date: Thu, 01 Jan 1970 00:05:00 GMT"}, 0, 0},
		{"§4.2.3 Date from before the request", []string{"Date: Wed, 04 Mar 2026 05:05:57 GMT"}, 8 * time.Second, 10 * time.Second},
		{"§4.2.3 Date from the exchange", []string{"Date: Wed, 04 Mar 2026 05:06:04 GMT"}, 8 * time.Second, 3 * time.Second},
		{"§4.2.3 Date from its begin", []string{"Date: Wed, 04 Mar 2026 05:05:58 GMT"}, 8 * time.Second, 8 * time.Second},
		{"§4.2.3 Date from the second before", []string{"Date: Wed, 04 Mar 2026 05:06:06 GMT"}, 10 * time.Millisecond, 10 * time.Millisecond},
		{"§4.2.3 Date of a clock that is a little late", []string{"Date: Wed, 04 Mar 2026 05:06:05 GMT"}, time.Millisecond, time.Millisecond},
		{"§4.2.3 Date of a clock that is late", []string{"Date: Wed, 04 Mar 2026 05:06:04 GMT"}, time.Millisecond, 3 * time.Second},
		{"§4.2.3 Age and Date from the exchange", []string{"Date: Wed, 04 Mar 2026 05:06:06 GMT", "Age: 0"}, 8 * time.Second, time.Second},
		{"§4.2.3 Age says more than Date", []string{"Date: Wed, 04 Mar 2026 05:06:06 GMT", "Age: 5"}, 8 * time.Second, 5 * time.Second},
		{"§4.2.3 Date in the future says nothing", []string{"Date: Wed, 04 Mar 2026 05:06:08 GMT"}, 8 * time.Second, 8 * time.Second},
	} {
		a := Judge(200, fields(c.fields...))
		if got := a.Age(now, c.delay); got != c.want {
			t.Errorf("%s: Age = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestStores(t *testing.T) {
	get := Asker{Method: "GET"}
	auth := Asker{Method: "GET", Authorization: true}
	ann := Asker{Method: "GET", Principal: "ann"}
	for _, c := range []struct {
		name   string
		q      Asker
		status int
		fields []string
		want   Scope
	}{
		{"§3 a plain 200", get, 200, nil, Anybody},
		{"§3 max-age", get, 200, []string{"Cache-Control: max-age=1"}, Anybody},
		{"§3 a status that is not cacheable by itself", get, 302, nil, Nobody},
		{"§3 but with a lifetime", get, 302, []string{"Cache-Control: max-age=1"}, Anybody},
		{"§3 an unknown status with a lifetime", get, 599, []string{"Cache-Control: max-age=1"}, Anybody},
		{"§3 with Expires", get, 503, []string{"Expires: Wed, 04 Mar 2026 05:07:07 GMT"}, Anybody},
		{"parts are not stored", get, 206, []string{"Cache-Control: max-age=1"}, Nobody},
		{"interim", get, 103, []string{"Cache-Control: max-age=1"}, Nobody},
		{"§5.2.2.5 no-store", get, 200, []string{"Cache-Control: max-age=1, No-StOrE"}, Nobody},
		{"§5.2.1.5 no-store in the request", Asker{Method: "GET", Control: Directives{Flags: NoStore}}, 200, []string{"Cache-Control: max-age=1"}, Nobody},
		{"§5.2.2.3 must-understand beats no-store", get, 200, []string{"Cache-Control: max-age=1, no-store, must-understand"}, Anybody},
		{"§5.2.2.3 must-understand, unknown status", get, 599, []string{"Cache-Control: max-age=1, must-understand"}, Nobody},
		{"§5.2.2.7 private", get, 200, []string{"Cache-Control: private, max-age=1"}, Nobody},
		{"§5.2.2.7 private, for its owner", ann, 200, []string{"Cache-Control: private, max-age=1"}, Owner},
		{"§5.2.2.7 private for one field", get, 200, []string{`Cache-Control: private="X-A", max-age=1`}, Anybody},
		{"§5.2.2.7 private with a list that is none", get, 200, []string{`Cache-Control: private="X A", max-age=1`}, Nobody},
		{"§3.5 Authorization", auth, 200, []string{"Cache-Control: max-age=1"}, Nobody},
		{"§3.5 Authorization, public", auth, 200, []string{"Cache-Control: max-age=1, public"}, Anybody},
		{"§3.5 Authorization, s-maxage", auth, 200, []string{"Cache-Control: s-maxage=1"}, Anybody},
		{"§3.5 Authorization, must-revalidate", auth, 200, []string{"Cache-Control: max-age=1, must-revalidate"}, Anybody},
		{"§3.5 a principal", ann, 200, []string{"Cache-Control: max-age=1"}, Owner},
		{"§3.5 a principal, public", ann, 200, []string{"Cache-Control: max-age=1, public"}, Anybody},
		{"§3.5 private wins over public", ann, 200, []string{"Cache-Control: max-age=1, public, private"}, Owner},
		{"§4.1 Vary: *", get, 200, []string{"Cache-Control: max-age=1", "Vary: a, *"}, Nobody},
		{"cookies", get, 200, []string{"Cache-Control: max-age=1", "Set-Cookie: a=b"}, Nobody},
		{"quoted string without end", get, 200, []string{`Cache-Control: max-age=1, x="no-store`}, Nobody},
		{"RFC 9110 §9.3.3 POST", Asker{Method: "POST"}, 200, nil, Nobody},
		{"RFC 9110 §9.3.3 POST with a lifetime", Asker{Method: "POST"}, 200, []string{"Cache-Control: max-age=1"}, Anybody},
	} {
		a := Judge(c.status, fields(c.fields...))
		if got := a.Stores(c.q); got != c.want {
			t.Errorf("%s: Stores(%+v) of %d %q = %v, want %v", c.name, c.q, c.status, c.fields, got, c.want)
		}
	}
}

func TestGrace(t *testing.T) {
	for _, c := range []struct {
		control string
		want    Grace
	}{
		{"max-age=1", Grace{}},
		{"max-age=1, stale-while-revalidate=5, stale-if-error=6", Grace{Revalidate: 5 * time.Second, Error: 6 * time.Second}},
		{"max-age=1, stale-while-revalidate=x", Grace{}},
		{"max-age=1, must-revalidate, stale-if-error=6", Grace{Never: true}},
		{"max-age=1, proxy-revalidate", Grace{Never: true}},
		{"no-cache", Grace{Never: true}},
		{"s-maxage=1", Grace{Never: true}},
		{"s-maxage=1, stale-if-error=6", Grace{Error: 6 * time.Second}},
	} {
		a := Judge(200, fields("Cache-Control: "+c.control))
		if got := a.Grace(); got != c.want {
			t.Errorf("Grace of %q = %+v, want %+v", c.control, got, c.want)
		}
	}
}

func TestTargeted(t *testing.T) {
	for _, c := range []struct {
		field string
		ok    bool
		flags Flags
		age   int64
	}{
		{"max-age=60", true, HasMaxAge, 60},
		{"  max-age=60 ,\tno-cache ", true, HasMaxAge | NoCache, 60},
		{"foo;a=1;b=\"x\", max-age=60;z", true, HasMaxAge, 60},
		{"max-age=99999999999", true, HasMaxAge, MaxDelta},
		{"max-age=1, max-age=2", true, HasMaxAge, 2},
		{"private", true, Private, 0},
		{"private=?0", true, 0, 0},
		{`max-age="60"`, true, 0, 0},
		{"max-age=6.5", true, 0, 0},
		{"max-age=-1", true, 0, 0},
		{"x=(1 2 \"a\"), no-store", true, NoStore, 0},
		{"x=:YQ==:, no-store", true, NoStore, 0},
		{"x=*a/b:c, no-store", true, NoStore, 0},
		{"", false, 0, 0},
		{"max-age=60, &&&&&", false, 0, 0},
		{"MaX-aGe=60", false, 0, 0},
		{"max-age =60", false, 0, 0},
		{"max-age= 60", false, 0, 0},
		{"max-age=60,", false, 0, 0},
		{"max-age=1234567890123456", false, 0, 0},
		{`a="b`, false, 0, 0},
	} {
		d, ok := ParseTargeted([]string{c.field})
		if ok != c.ok || d.Flags != c.flags || d.MaxAge != c.age {
			t.Errorf("ParseTargeted(%q) = %b, %d, %v, want %b, %d, %v", c.field, d.Flags, d.MaxAge, ok, c.flags, c.age, c.ok)
		}
	}
	a := Judge(200, fields("Cache-Control: no-store", "Expires: 0", "CDN-Cache-Control: max-age=5"), "Cdn-Cache-Control")
	if life, _ := a.Lifetime(now); life != 5*time.Second || a.Stores(Asker{Method: "GET"}) != Anybody {
		t.Errorf("RFC 9213 §2.2: lifetime %v, stored for %v, want 5s for anybody", life, a.Stores(Asker{Method: "GET"}))
	}
	a = Judge(200, fields("Expires: Wed, 04 Mar 2036 05:07:07 GMT", "CDN-Cache-Control: foo"), "Cdn-Cache-Control")
	if life, explicit := a.Lifetime(now); life != 0 || explicit {
		t.Errorf("RFC 9213 §2.2 Expires does not count: lifetime %v, want 0", life)
	}
}

func TestParseDate(t *testing.T) {
	want := time.Date(2050, 8, 8, 2, 1, 18, 0, time.UTC)
	for _, s := range []string{
		"Mon, 08 Aug 2050 02:01:18 GMT", "MON, 08 AUG 2050 02:01:18 gMT", "Monday, 08-Aug-50 02:01:18 GMT", "Mon Aug  8 02:01:18 2050", "Mon Aug 08 02:01:18 2050",
	} {
		if got, ok := ParseDate(s, now); !ok || !got.Equal(want) {
			t.Errorf("ParseDate(%q) = %v, %v, want %v", s, got, ok, want)
		}
	}
	if got, ok := ParseDate("Sunday, 06-Nov-94 08:49:37 GMT", now); !ok || got.Year() != 1994 {
		t.Errorf("RFC 9110 §5.6.7 more than 50 years ahead is the past: got %v, %v, want 1994", got, ok)
	}
	for _, s := range []string{
		"", "0", "x", "Thu, 18 Aug 2050 02:01:18 UTC", "Thu, 18 Aug 2050 02:01:18 AEST", "Thu, 18 Aug 50 02:01:18 GMT", "Thu 18 Aug 2050 02:01:18 GMT",
		"Thu, 18  Aug  2050 02:01:18 GMT", "Thu, 18-Aug-2050 02:01:18 GMT", "Thu, 18 Aug 2050 02.01.18 GMT", "Thu, 18 Aug 2050 2:01:18 GMT",
		"Thu, 31 Apr 2050 02:01:18 GMT", "Thu, 18 Foo 2050 02:01:18 GMT", "Thu, 18 Aug 2050 24:01:18 GMT", "Thu, 18 ugs 2050 02:01:18 GMT", "Xyz, 18 Aug 2050 02:01:18 GMT",
	} {
		if got, ok := ParseDate(s, now); ok {
			t.Errorf("ParseDate(%q) = %v, want a refusal", s, got)
		}
	}
}

func TestNotModified(t *testing.T) {
	v := Validators{ETag: `"b"`, LastModified: now.Add(-time.Hour), Date: now}
	for _, c := range []struct {
		name   string
		fields []string
		v      Validators
		want   bool
	}{
		{"no condition", nil, v, false},
		{"If-None-Match", []string{`If-None-Match: "b"`}, v, true},
		{"RFC 9110 §8.8.3.2 weak comparison", []string{`If-None-Match: W/"b"`}, v, true},
		{"first of a list", []string{`If-None-Match: "b", "c"`}, v, true},
		{"last of a list", []string{`If-None-Match: "a,b", "b"`}, v, true},
		{"two lines", []string{`If-None-Match: "a"`, `If-None-Match: "b"`}, v, true},
		{"*", []string{`If-None-Match: *`}, v, true},
		{"another", []string{`If-None-Match: "a", "b "`}, v, false},
		{"§13.1.3 If-None-Match goes first", []string{`If-None-Match: "a"`, "If-Modified-Since: Wed, 04 Mar 2026 05:06:07 GMT"}, v, false},
		{"§13.2.2 and the other way", []string{`If-None-Match: "b"`, "If-Modified-Since: Wed, 04 Mar 2020 05:06:07 GMT"}, v, true},
		{"exact date", []string{"If-Modified-Since: Wed, 04 Mar 2026 04:06:07 GMT"}, v, true},
		{"later date", []string{"If-Modified-Since: Wed, 04 Mar 2026 05:06:07 GMT"}, v, true},
		{"earlier date", []string{"If-Modified-Since: Wed, 04 Mar 2026 04:06:06 GMT"}, v, false},
		{"old format", []string{"If-Modified-Since: Wednesday, 04-Mar-26 04:06:07 GMT"}, v, true},
		{"no date at all", []string{"If-Modified-Since: yesterday"}, v, false},
		{"RFC 9111 §4.3.2 no Last-Modified: Date", []string{"If-Modified-Since: Wed, 04 Mar 2026 05:06:07 GMT"}, Validators{Date: now}, true},
		{"RFC 9111 §4.3.2 no Last-Modified, earlier than Date", []string{"If-Modified-Since: Wed, 04 Mar 2026 05:06:06 GMT"}, Validators{Date: now}, false},
	} {
		if got := NotModified(fields(c.fields...), c.v, now); got != c.want {
			t.Errorf("%s: NotModified(%q) = %v, want %v", c.name, c.fields, got, c.want)
		}
	}
}

func TestRange(t *testing.T) {
	for _, c := range []struct {
		field      string
		size       int64
		start, end int64
		kind       RangeKind
	}{
		{"bytes=0-1", 10, 0, 2, Part},
		{"bytes=1-", 10, 1, 10, Part},
		{"bytes=-1", 10, 9, 10, Part},
		{"bytes=-99", 10, 0, 10, Part},
		{"bytes=5-99", 10, 5, 10, Part},
		{"BYTES=5-5", 10, 5, 6, Part},
		{"bytes=10-", 10, 0, 0, Unsatisfiable},
		{"bytes=-0", 10, 0, 0, Unsatisfiable},
		{"bytes=0-", 0, 0, 0, Unsatisfiable},
		{"bytes=99999999999999999999-", 10, 0, 0, Unsatisfiable},
		{"bytes=5-4", 10, 0, 0, Whole},
		{"bytes=0-1,3-4", 10, 0, 0, Whole},
		{"lines=0-1", 10, 0, 0, Whole},
		{"bytes=", 10, 0, 0, Whole},
		{"bytes=-", 10, 0, 0, Whole},
		{"bytes=a-b", 10, 0, 0, Whole},
	} {
		start, end, kind := ParseRange([]string{c.field}, c.size)
		if start != c.start || end != c.end || kind != c.kind {
			t.Errorf("ParseRange(%q, %d) = %d, %d, %v, want %d, %d, %v", c.field, c.size, start, end, kind, c.start, c.end, c.kind)
		}
	}
	v := Validators{ETag: `"b"`, LastModified: now.Add(-time.Hour), Date: now}
	for field, want := range map[string]bool{`"b"`: true, `"c"`: false, `W/"b"`: false, "Wed, 04 Mar 2026 04:06:07 GMT": true, "Wed, 04 Mar 2026 05:06:07 GMT": false, "b": false} {
		if got := IfRange(fields("If-Range: "+field), v, now); got != want {
			t.Errorf("RFC 9110 §13.1.5 IfRange(%q) = %v, want %v", field, got, want)
		}
	}
}

func TestVaryKey(t *testing.T) {
	key := func(vary string, lines ...string) string {
		names, ok := VaryNames(fields("Vary: " + vary))
		if !ok {
			return "none"
		}
		return string(AppendVaryKey(nil, names, fields(lines...)))
	}
	for _, c := range []struct {
		name string
		vary string
		a, b []string
		same bool
	}{
		{"equal", "foo", []string{"Foo: 1"}, []string{"Foo: 1", "Bar: 2"}, true},
		{"different", "foo", []string{"Foo: 1"}, []string{"Foo: 2"}, false},
		{"absent and present", "foo", nil, []string{"Foo: 1"}, false},
		{"absent and empty", "foo", nil, []string{"Foo:"}, false},
		{"both absent", "foo, bar", []string{"Foo: 1"}, []string{"Foo: 1"}, true},
		{"lines combined", "foo", []string{"Foo: 1, 2"}, []string{"Foo: 1", "Foo: 2"}, true},
		{"white space", "foo", []string{"Foo: 1,2"}, []string{"Foo:  1 ,   2 "}, true},
		{"white space in quotes", "foo", []string{`Foo: "1, 2"`}, []string{`Foo: "1,2"`}, false},
		{"values do not flow into each other", "foo, bar", []string{"Foo: 1", "Bar: 23"}, []string{"Foo: 12", "Bar: 3"}, false},
		{"order of languages", "accept-language", []string{"Accept-Language: en, de"}, []string{"Accept-Language: DE,en"}, true},
		{"weights of languages", "accept-language", []string{"Accept-Language: en, de;q=0.5"}, []string{"Accept-Language: en;q=0.5, de"}, false},
		{"credentials as they are", "cookie", []string{"Cookie: a=1, b=2"}, []string{"Cookie: a=1,b=2"}, false},
	} {
		if got := key(c.vary, c.a...) == key(c.vary, c.b...); got != c.same {
			t.Errorf("§4.1 %s: the same key: %v, want %v", c.name, got, c.same)
		}
	}
	for _, vary := range []string{"*", "*, *", ", *", "*, foo", "foo, *"} {
		if got := key(vary); got != "none" {
			t.Errorf("§4.1 VaryNames(%q) gives a key, want a refusal", vary)
		}
	}
	if got := BestLanguage(fields("Accept-Language: fr;q=0.5, DE;q=1.0")); got != "de" {
		t.Errorf("BestLanguage = %q, want de", got)
	}
}

func TestInvalidates(t *testing.T) {
	for _, c := range []struct {
		uri    string
		answer []string
		want   []string
	}{
		{"/a/b?c", nil, []string{"/a/b?c"}},
		{"/a/b", []string{"Location: c"}, []string{"/a/b", "/a/c"}},
		{"/a/b", []string{"Location: /x/./y/../z?q#f"}, []string{"/a/b", "/x/z?q"}},
		{"/a/b", []string{"Location: https://HOST/x", "Content-Location: ?q"}, []string{"/a/b", "/x", "/a/b?q"}},
		{"/a/b", []string{"Location: //host"}, []string{"/a/b", "/"}},
		{"/a/b", []string{"Location: https://other/x", "Content-Location: mailto://host/x"}, []string{"/a/b"}},
		{"/a/b", []string{"Content-Location:"}, []string{"/a/b"}},
	} {
		if got := Invalidates("host", c.uri, fields(c.answer...)); !slices.Equal(got, c.want) {
			t.Errorf("§4.4 Invalidates(%q, %q) = %q, want %q", c.uri, c.answer, got, c.want)
		}
	}
	for status, want := range map[int]bool{200: true, 201: true, 204: true, 303: true, 400: false, 404: false, 500: false, 502: true, 503: false, 504: true} {
		if got := Changes(status); got != want {
			t.Errorf("Changes(%d) = %v, want %v", status, got, want)
		}
	}
}

func TestPlain(t *testing.T) {
	for uri, want := range map[string]bool{
		"/": true, "/a/b": true, "/a/b/": true, "/a.b/.c/..d": true, "/a?b=c/../d&e=//f": true, "/a%2Fb": true, "/a%20b?c=%C3%A4": true, "/@:;=!$": true,
		"": false, "a": false, "//a": false, "/a//b": false, "/a/./b": false, "/a/../b": false, "/a/..": false, "/a/.?b": false,
		"/%61": false, "/a%2fb": false, "/a%2": false, "/a%zz": false, "/a b": false, "/a#b": false, "/ä": false, "/a\\b": false, "/a?b%7E": false,
	} {
		if got := Plain(uri); got != want {
			t.Errorf("Plain(%q) = %v, want %v", uri, got, want)
		}
	}
}

func TestRule(t *testing.T) {
	r, err := ParseRule("/zones/*/state  ttl=5s stale=1m private")
	if want := (Rule{Pattern: "/zones/*/state", TTL: 5 * time.Second, Stale: time.Minute, Private: true}); err != nil || r != want {
		t.Errorf("ParseRule = %+v, %v, want %+v", r, err, want)
	}
	for _, text := range []string{"", "/a", "a ttl=5s", "/a ttl", "/a ttl=5", "/a ttl=-5s", "/a ttl=0s", "/a foo", "/a never ttl=5s", "/a private public", "/a?b never", "/a*b never", "/a ttl=99999h"} {
		if r, err := ParseRule(text); err == nil {
			t.Errorf("ParseRule(%q) = %+v, want an error", text, r)
		}
	}
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"/a", "/a", true}, {"/a", "/a/", false}, {"/a", "/ab", false}, {"/*", "/", true}, {"/*", "/a/b", true}, {"/a*", "/ab/c", true}, {"/a*", "/b", false},
		{"/a/*/c", "/a/b/c", true}, {"/a/*/c", "/a/c", false}, {"/a/*/c", "/a/b/b/c", false}, {"/a/*/c/*", "/a/b/c/d", true}, {"/a/*/c", "/a//c", false}, {"/a/*/c", "/a/b/cd", false},
	} {
		rule := Rule{Pattern: c.pattern}
		if got := rule.Match(c.path); got != c.want {
			t.Errorf("Match(%q, %q) = %v, want %v", c.pattern, c.path, got, c.want)
		}
	}
	rules := []Rule{{Pattern: "/a", Never: true}, {Pattern: "/*"}}
	if r := FindRule(rules, "/b"); r != &rules[1] {
		t.Errorf("FindRule = %v, want the second", r)
	}
}

func TestFreshen(t *testing.T) {
	stored := fields("A: 1", "B: 1", "Content-Encoding: gzip", "Content-Type: text/plain")
	a := Judge(304, fields("B: 2", "C: 3", "Content-Encoding: br", "Content-Length: 9", "Set-Cookie: x", "Connection: d", "D: 4", "Content-Type: text/html"))
	Freshen(stored, &a)
	want := fields("A: 1", "B: 2", "C: 3", "Content-Encoding: gzip", "Content-Type: text/html")
	for name := range want {
		if stored.Get(name) != want.Get(name) {
			t.Errorf("§3.2 %s = %q, want %q", name, stored.Get(name), want.Get(name))
		}
	}
	if len(stored) != len(want) {
		t.Errorf("§3.2 fields %v, want %v", stored, want)
	}
}
