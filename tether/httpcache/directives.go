package httpcache

import (
	"strconv"
	"strings"
)

// MaxDelta is the longest time in seconds that is told apart from longer ones
// (RFC 9111 §1.2.2).
const MaxDelta = 1 << 31

// Flags are the directives of a Cache-Control field that were present.
type Flags uint32

// The directives of RFC 9111 §5.2, RFC 5861 and RFC 8246. HasX means that the time X was
// given, however badly.
const (
	NoStore Flags = 1 << iota
	NoCache       // without a list of fields
	Private       // without a list of fields
	Public
	MustRevalidate
	ProxyRevalidate
	MustUnderstand
	Immutable
	OnlyIfCached
	HasMaxAge
	HasSMaxAge
	HasStaleWhileRevalidate
	HasStaleIfError
	HasMaxStale
	HasMinFresh
	Malformed // a quoted string without end: what follows cannot be trusted
)

// Directives is a parsed Cache-Control field, all lines together. Times are in seconds,
// at most MaxDelta. A time that was malformed, or given twice with different values, is
// 0, except MinFresh, which then is MaxDelta: never a way to something fresher.
type Directives struct {
	Flags                Flags
	MaxAge               int64
	SMaxAge              int64
	StaleWhileRevalidate int64
	StaleIfError         int64
	MaxStale             int64 // MaxDelta when given without a value
	MinFresh             int64

	// Fields that may not be stored, as written: no-cache="..." and private="..."
	// (§5.2.2.4, §5.2.2.7).
	Omit []string
}

// Has reports whether all of f are there.
func (d *Directives) Has(f Flags) bool { return d.Flags&f == f }

// String writes d as ParseTargeted reads it (RFC 9213 §2.1). What cannot be said there is said
// more strictly.
func (d Directives) String() string {
	if d.Has(Malformed) {
		return "no-store"
	}
	if len(d.Omit) > 0 {
		d.Flags |= NoCache
	}
	var b []byte
	add := func(f Flags, name string) bool {
		if !d.Has(f) {
			return false
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, name...)
		return true
	}
	add(NoStore, "no-store")
	add(NoCache, "no-cache")
	add(Private, "private")
	add(Public, "public")
	add(MustRevalidate, "must-revalidate")
	add(ProxyRevalidate, "proxy-revalidate")
	add(MustUnderstand, "must-understand")
	add(Immutable, "immutable")
	for _, t := range [...]struct {
		f    Flags
		name string
		n    int64
	}{{HasMaxAge, "max-age=", d.MaxAge}, {HasSMaxAge, "s-maxage=", d.SMaxAge},
		{HasStaleWhileRevalidate, "stale-while-revalidate=", d.StaleWhileRevalidate}, {HasStaleIfError, "stale-if-error=", d.StaleIfError}} {
		if add(t.f, t.name) {
			b = strconv.AppendInt(b, t.n, 10)
		}
	}
	return string(b)
}

// ParseCacheControl reads the lines of a Cache-Control field of a request or an answer.
// Unknown directives are ignored (§5.2.3). Nothing is an error: see Directives.
func ParseCacheControl(lines []string) (d Directives) {
	for _, line := range lines {
		d.line(line)
	}
	return d
}

func (d *Directives) line(s string) {
	for s != "" {
		var item string
		var ok bool
		item, s, ok = cutList(s)
		if !ok {
			d.Flags |= Malformed
		}
		if item == "" {
			continue
		}
		name, value, has := strings.Cut(item, "=")
		spaced := false
		if has {
			// "max-age =1" is no directive of ours, and not one that may be overlooked.
			trimmed := strings.TrimRight(name, " \t")
			spaced = trimmed != name || strings.HasPrefix(value, " ") || strings.HasPrefix(value, "\t")
			name, value = trimmed, strings.Trim(value, " \t")
		}
		d.directive(name, value, has, spaced)
	}
}

func (d *Directives) directive(name, value string, has, bad bool) {
	switch len(name) { // most unknown names end here without a comparison
	case 6:
		if strings.EqualFold(name, "public") {
			d.Flags |= Public
		}
	case 7:
		if strings.EqualFold(name, "max-age") {
			d.time(HasMaxAge, &d.MaxAge, value, bad || !has, 0)
		} else if strings.EqualFold(name, "private") {
			d.listed(Private, value, has, bad)
		}
	case 8:
		if strings.EqualFold(name, "no-store") {
			d.Flags |= NoStore
		} else if strings.EqualFold(name, "no-cache") {
			d.listed(NoCache, value, has, bad)
		} else if strings.EqualFold(name, "s-maxage") {
			d.time(HasSMaxAge, &d.SMaxAge, value, bad || !has, 0)
		}
	case 9:
		if strings.EqualFold(name, "immutable") {
			d.Flags |= Immutable
		} else if strings.EqualFold(name, "max-stale") {
			if !has {
				d.Flags |= HasMaxStale
				d.MaxStale = MaxDelta
			} else {
				d.time(HasMaxStale, &d.MaxStale, value, bad, 0)
			}
		} else if strings.EqualFold(name, "min-fresh") {
			d.time(HasMinFresh, &d.MinFresh, value, bad || !has, MaxDelta)
		}
	default:
		switch {
		case strings.EqualFold(name, "must-revalidate"):
			d.Flags |= MustRevalidate
		case strings.EqualFold(name, "proxy-revalidate"):
			d.Flags |= ProxyRevalidate
		case strings.EqualFold(name, "must-understand"):
			d.Flags |= MustUnderstand
		case strings.EqualFold(name, "only-if-cached"):
			d.Flags |= OnlyIfCached
		case strings.EqualFold(name, "stale-while-revalidate"):
			d.time(HasStaleWhileRevalidate, &d.StaleWhileRevalidate, value, bad || !has, 0)
		case strings.EqualFold(name, "stale-if-error"):
			d.time(HasStaleIfError, &d.StaleIfError, value, bad || !has, 0)
		}
	}
}

// time notes one time. Other values than one number of digits, and two different ones,
// are worst.
func (d *Directives) time(flag Flags, to *int64, value string, bad bool, worst int64) {
	n, ok := seconds(unquote(value))
	if bad || !ok {
		n = worst
	}
	if d.Flags&flag != 0 && *to != n {
		n = worst // §4.2.1: the first, or stale
	}
	d.Flags |= flag
	*to = n
}

// listed notes no-cache and private: with a list of fields they concern only those.
func (d *Directives) listed(flag Flags, value string, has, bad bool) {
	list := unquote(value)
	if !has || bad || list == "" || list == value && strings.HasPrefix(value, `"`) {
		d.Flags |= flag
		return
	}
	n := len(d.Omit)
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.Trim(name, " \t"); name == "" {
			continue
		}
		if !isToken(name) {
			d.Flags |= flag
			d.Omit = d.Omit[:n]
			return
		}
		d.Omit = append(d.Omit, name)
	}
	if len(d.Omit) == n {
		d.Flags |= flag
	}
}

// seconds reads delta-seconds (§1.2.2).
func seconds(s string) (n int64, ok bool) {
	if s == "" {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		if n = n*10 + int64(s[i]-'0'); n > MaxDelta {
			n = MaxDelta
		}
	}
	return n, true
}

// cutList takes the first member off a comma-separated list; commas in quoted strings do
// not count. ok is false when a quoted string has no end; then item is all of s.
func cutList(s string) (item, rest string, ok bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			return strings.Trim(s[:i], " \t"), s[i+1:], true
		}
	}
	return strings.Trim(s, " \t"), "", !quoted
}

// unquote takes the quotes off a quoted-string (RFC 9110 §5.6.4); anything else is
// returned as it is.
func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	in := s[1 : len(s)-1]
	if strings.IndexByte(in, '\\') < 0 {
		if strings.IndexByte(in, '"') >= 0 {
			return s
		}
		return in
	}
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		switch in[i] {
		case '"':
			return s
		case '\\':
			if i++; i == len(in) {
				return s
			}
		}
		out = append(out, in[i])
	}
	return string(out)
}

func isToken(s string) bool {
	for i := range len(s) {
		b := s[i]
		if !(b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0) {
			return false
		}
	}
	return s != ""
}

// PragmaNoCache reports whether a request's Pragma field says no-cache, which counts when
// it has no Cache-Control (RFC 9111 §5.4).
func PragmaNoCache(lines []string) bool {
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.Trim(item, " \t"), "no-cache") {
				return true
			}
		}
	}
	return false
}
