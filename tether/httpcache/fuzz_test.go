package httpcache

import (
	"math/big"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The reference: slow, and word for word after the standards.

var directive = regexp.MustCompile(`^([!#$%&'*+.^_|~0-9A-Za-z` + "`" + `-]+)(?:=(?:([!#$%&'*+.^_|~0-9A-Za-z` + "`" + `-]+)|"((?:[^"\\]|\\.)*)"))?$`)

// referenceLifetime returns the longest lifetime that RFC 9111 §4.2.1 lets a shared cache
// give to an answer with these lines of Cache-Control; nil: none.
func referenceLifetime(lines []string) *big.Int {
	members := referenceMembers(strings.Join(lines, ","))
	for _, name := range []string{"s-maxage", "max-age"} {
		var first *big.Int
		found := false
		for _, m := range members {
			match := directive.FindStringSubmatch(m)
			if match == nil || !strings.EqualFold(match[1], name) {
				continue
			}
			value := match[2] + regexp.MustCompile(`\\(.)`).ReplaceAllString(match[3], "$1")
			if !found { // the first occurrence, or stale
				found = true
				if regexp.MustCompile(`^[0-9]+$`).MatchString(value) {
					first, _ = new(big.Int).SetString(value, 10)
				}
			}
		}
		if found {
			return first // nil: invalid, so stale
		}
	}
	return nil
}

// referenceMembers splits a list at commas outside of quoted strings, byte by byte.
func referenceMembers(s string) (list []string) {
	var item strings.Builder
	in, escaped := false, false
	for _, b := range []byte(s) {
		switch {
		case escaped:
			escaped = false
		case in && b == '\\':
			escaped = true
		case b == '"':
			in = !in
		case b == ',' && !in:
			list = append(list, strings.Trim(item.String(), " \t"))
			item.Reset()
			continue
		}
		item.WriteByte(b)
	}
	return append(list, strings.Trim(item.String(), " \t"))
}

func FuzzLifetimeNeverFresher(f *testing.F) {
	for _, s := range []string{"max-age=60", "max-age=1, max-age=2", `x="max-age=3", s-maxage="4"`, "max-age=\"1\\2\"", "no-cache=\"a, b\", max-age=9", "max-age=5;x", "s-maxage=-1, max-age=7", `a="`, "max-age = 5", "max-age=99999999999999999999"} {
		f.Add(s, "")
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		lines := []string{one}
		if two != "" {
			lines = append(lines, two)
		}
		a := Judge(200, http.Header{"Cache-Control": lines})
		got, _ := a.Lifetime(now)
		want := referenceLifetime(lines)
		if want == nil {
			want = new(big.Int)
		}
		if want.Cmp(big.NewInt(int64(got/time.Second))) < 0 && got != 0 {
			t.Errorf("Lifetime of %q = %v, want at most %v s", lines, got, want)
		}
		if strings.Contains(strings.ToLower(one+two), "no-store") || strings.Contains(strings.ToLower(one+two), "private") {
			// Whoever writes it as a directive of its own is obeyed.
			for _, m := range referenceMembers(strings.Join(lines, ",")) {
				if d := directive.FindStringSubmatch(m); d != nil && d[2] == "" && d[3] == "" && (strings.EqualFold(d[1], "no-store") || strings.EqualFold(d[1], "private")) &&
					!a.Control.Has(MustUnderstand) && a.Stores(Asker{Method: "GET"}) != Nobody {
					t.Errorf("%q is stored, want not", lines)
				}
			}
		}
	})
}

func FuzzDate(f *testing.F) {
	for _, s := range []string{"Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Sun, 31 Feb 2000 00:00:00 GMT", "Mon Jan 02 15:04:60 2006"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := ParseDate(s, now)
		if !ok {
			return
		}
		// What we take, net/http takes too, to the second, apart from case and leap seconds.
		canonical := got.Format(http.TimeFormat)
		if again, ok := ParseDate(canonical, now); !ok || !again.Equal(got) {
			t.Errorf("ParseDate(%q) = %v; ParseDate(%q) = %v, %v, want the same", s, got, canonical, again, ok)
		}
		if strings.Contains(s, ":60") {
			return
		}
		if ref, err := http.ParseTime(s); err == nil && !ref.Equal(got) && strings.Count(s, "-") != 2 {
			t.Errorf("ParseDate(%q) = %v, want %v", s, got, ref)
		}
	})
}

func FuzzTargeted(f *testing.F) {
	for _, s := range []string{"max-age=60", "a;b=1, c=(1 2);d", `x="y\"", max-age=1`, "private, max-age=?1", "a=:YQ==:", "*x=1.5,no-store",
		`no-cache="a", s-maxage=1, must-revalidate, immutable`, "stale-while-revalidate=1, stale-if-error=2, public, must-understand, proxy-revalidate", `max-age=1, "`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := ParseTargeted([]string{s})
		if ok && d.Has(HasMaxAge) {
			// The last max-age with an integer counts, and it is in the text.
			if !strings.Contains(s, "max-age=") || d.MaxAge < 0 || d.MaxAge > MaxDelta {
				t.Errorf("ParseTargeted(%q): max-age is %d", s, d.MaxAge)
			}
		}
		if !ok && d.Flags != 0 {
			t.Errorf("ParseTargeted(%q) refuses and gives %b", s, d.Flags)
		}
		for _, d := range []Directives{d, ParseCacheControl([]string{s})} {
			want := d
			switch {
			case d.Has(Malformed):
				want = Directives{Flags: NoStore}
			case len(d.Omit) > 0:
				want.Flags |= NoCache
			}
			want.Flags &^= Immutable | OnlyIfCached | HasMaxStale | HasMinFresh // of no concern there
			want.MaxStale, want.MinFresh, want.Omit = 0, 0, nil
			again, ok := ParseTargeted([]string{d.String()})
			if ok != (d.String() != "") || ok && !reflect.DeepEqual(again, want) {
				t.Errorf("%q is %+v, written %q, and read back %+v", s, d, d.String(), again)
			}
		}
	})
}

// Two requests with the same key say the same in the fields that count.
func FuzzVaryKey(f *testing.F) {
	f.Add("1", "2", "1,2", "", "en, de", "de,en")
	f.Add("a\"b, c", "", "a\"b,c", "x", "en;q=0.5", "en;q=0.50")
	f.Add("-", "+", "", "-+", "q", "q;q=1")
	f.Fuzz(func(t *testing.T, a1, a2, b1, b2, al, bl string) {
		names := []string{"Accept-Language", "Cookie", "Foo"}
		make := func(foo, cookie, language string) http.Header {
			h := http.Header{"Foo": {foo}}
			if cookie != "" {
				h["Cookie"] = []string{cookie}
			}
			if language != "" {
				h["Accept-Language"] = []string{language}
			}
			return h
		}
		a, b := make(a1, a2, al), make(b1, b2, bl)
		ka, kb := string(AppendVaryKey(nil, names, a)), string(AppendVaryKey(nil, names, b))
		if ka != kb {
			return
		}
		if a2 != b2 {
			t.Errorf("cookies %q and %q have the same key", a2, b2)
		}
		if (al == "") != (bl == "") {
			t.Errorf("languages %q and %q have the same key", al, bl)
		}
		letters := func(s string) string {
			return strings.Map(func(r rune) rune {
				if r == ' ' || r == '\t' {
					return -1
				}
				return r
			}, s)
		}
		if letters(a1) != letters(b1) {
			t.Errorf("%q and %q have the same key", a1, b1)
		}
		sortedLetters := func(s string) int {
			n := 0
			for _, c := range strings.ToLower(letters(s)) {
				if c >= 'a' && c <= 'z' && c != 'q' {
					n += int(c) * int(c)
				}
			}
			return n
		}
		if sortedLetters(al) != sortedLetters(bl) {
			t.Errorf("languages %q and %q have the same key", al, bl)
		}
	})
}
