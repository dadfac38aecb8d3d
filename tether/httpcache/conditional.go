package httpcache

import (
	"net/http"
	"strings"
	"time"
)

// Conditional reports whether a request has a precondition on what a cache stores
// (RFC 9111 §4.3.2). Range alone is none.
func Conditional(h http.Header) bool {
	return len(h["If-None-Match"]) > 0 || len(h["If-Modified-Since"]) > 0
}

// Validators are what tells one state of a resource from another.
type Validators struct {
	ETag         string    // as written; empty: none
	LastModified time.Time // zero: none
	Date         time.Time // when the answer was made
}

// NotModified reports whether a GET or HEAD with the fields h is answered with 304 by an
// answer with these validators (RFC 9110 §13.2.2; RFC 9111 §4.3.2). now decides the century
// of old dates.
func NotModified(h http.Header, v Validators, now time.Time) bool {
	if lines := h["If-None-Match"]; len(lines) > 0 {
		return MatchesTag(lines, v.ETag, true)
	}
	lines := h["If-Modified-Since"]
	if len(lines) != 1 {
		return false
	}
	since, ok := ParseDate(lines[0], now)
	if !ok {
		return false
	}
	if changed := v.LastModified; !changed.IsZero() {
		return !changed.After(since)
	}
	return !v.Date.After(since)
}

// MatchesTag reports whether a field like If-None-Match has the tag, or is "*". weak is
// the comparison that lets W/ be (RFC 9110 §8.8.3.2); the other one fails on any W/.
func MatchesTag(lines []string, tag string, weak bool) bool {
	for _, s := range lines {
		for s != "" {
			var item string
			item, s = cutTag(s)
			if item == "" {
				continue
			}
			if item == "*" || tag != "" && sameTag(item, tag, weak) {
				return true
			}
		}
	}
	return false
}

// cutTag takes one member off a list of tags. A backslash in a tag escapes nothing
// (RFC 9110 §8.8.3), other than in quoted strings.
func cutTag(s string) (item, rest string) {
	quoted := false
	for i := range len(s) {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			return strings.Trim(s[:i], " \t"), s[i+1:]
		}
	}
	return strings.Trim(s, " \t"), ""
}

func sameTag(a, b string, weak bool) bool {
	if weak {
		return strings.TrimPrefix(a, "W/") == strings.TrimPrefix(b, "W/")
	}
	return a == b && !strings.HasPrefix(a, "W/")
}

// RangeKind is what to do about a Range field.
type RangeKind uint8

// What to do about a Range field.
const (
	Whole         RangeKind = iota // answer with everything: no range, one we do not understand, or several
	Part                           // 206
	Unsatisfiable                  // 416
)

// ParseRange reads a Range field for a body of size bytes (RFC 9110 §14.1.2, §14.2). end is
// the position after the last byte.
func ParseRange(lines []string, size int64) (start, end int64, kind RangeKind) {
	if len(lines) != 1 || len(lines[0]) < 6 || !strings.EqualFold(lines[0][:6], "bytes=") {
		return 0, 0, Whole
	}
	first, last, ok := strings.Cut(strings.Trim(lines[0][6:], " \t"), "-")
	if !ok {
		return 0, 0, Whole
	}
	if first == "" { // the last so many bytes
		n, ok := position(last)
		switch {
		case !ok:
			return 0, 0, Whole
		case n == 0 || size == 0:
			return 0, 0, Unsatisfiable
		}
		return max(0, size-n), size, Part
	}
	start, ok = position(first)
	if !ok {
		return 0, 0, Whole
	}
	end = size
	if last != "" {
		n, ok := position(last)
		if !ok || n < start {
			return 0, 0, Whole
		}
		end = min(size, n+1)
	}
	if start >= size {
		return 0, 0, Unsatisfiable
	}
	return start, end, Part
}

// position reads digits; what is larger than any body is as good as the largest.
func position(s string) (n int64, ok bool) {
	const most = 1 << 60
	for i := range len(s) {
		if !digit(s[i]) {
			return 0, false
		}
		if n = n*10 + int64(s[i]-'0'); n > most {
			n = most
		}
	}
	return n, s != ""
}

// IfRange reports whether a Range may be applied to an answer with these validators: there
// is no If-Range, or it names exactly this state (RFC 9110 §13.1.5).
func IfRange(h http.Header, v Validators, now time.Time) bool {
	lines := h["If-Range"]
	switch {
	case len(lines) == 0:
		return true
	case len(lines) > 1:
		return false
	case strings.HasSuffix(lines[0], `"`):
		return v.ETag != "" && sameTag(lines[0], v.ETag, false)
	}
	t, ok := ParseDate(lines[0], now)
	// §8.8.2.2: a date is strong only if it was long past when the answer was made.
	return ok && !v.LastModified.IsZero() && t.Equal(v.LastModified) && v.Date.Sub(v.LastModified) >= time.Second
}
