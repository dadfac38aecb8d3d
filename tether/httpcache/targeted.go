package httpcache

import "strings"

// ParseTargeted reads a targeted field such as CDN-Cache-Control (RFC 9213 §2.1): a
// dictionary of structured fields (RFC 9651 §3.2). ok is false when it is absent, empty
// or malformed: then it counts as absent. Directives with a value of the wrong type are
// ignored.
func ParseTargeted(lines []string) (d Directives, ok bool) {
	if len(lines) == 0 {
		return d, false
	}
	s := strings.Trim(strings.Join(lines, ","), " ")
	if s == "" {
		return d, false
	}
	p := sfParser{s}
	for {
		name, ok := p.key()
		if !ok {
			return Directives{}, false
		}
		v := sfValue{kind: 'b', yes: true}
		if p.take('=') {
			if v, ok = p.item(); !ok {
				return Directives{}, false
			}
		}
		if !p.parameters() {
			return Directives{}, false
		}
		d.targeted(name, v)
		p.blank(" \t")
		if p.s == "" {
			return d, true
		}
		if !p.take(',') {
			return Directives{}, false
		}
		if p.blank(" \t"); p.s == "" {
			return Directives{}, false // a comma at the end
		}
	}
}

// targeted notes one member; the last of several counts (RFC 9651 §3.2).
func (d *Directives) targeted(name string, v sfValue) {
	set := func(f Flags, on bool) {
		d.Flags &^= f
		if on {
			d.Flags |= f
		}
	}
	flag := func(f Flags) { set(f, v.kind != 'b' || v.yes) } // with fields listed: all of it, to be safe
	time := func(f Flags, to *int64) {
		if v.kind == 'i' && v.n >= 0 {
			set(f, true)
			*to = min(v.n, MaxDelta)
		}
	}
	switch name {
	case "no-store":
		flag(NoStore)
	case "no-cache":
		flag(NoCache)
	case "private":
		flag(Private)
	case "public":
		flag(Public)
	case "must-revalidate":
		flag(MustRevalidate)
	case "proxy-revalidate":
		flag(ProxyRevalidate)
	case "must-understand":
		flag(MustUnderstand)
	case "max-age":
		time(HasMaxAge, &d.MaxAge)
	case "s-maxage":
		time(HasSMaxAge, &d.SMaxAge)
	case "stale-while-revalidate":
		time(HasStaleWhileRevalidate, &d.StaleWhileRevalidate)
	case "stale-if-error":
		time(HasStaleIfError, &d.StaleIfError)
	}
}

// sfParser reads structured fields (RFC 9651 §4.2), as far as dictionaries of bare items
// and inner lists need it.
type sfParser struct{ s string }

type sfValue struct {
	kind byte // 'b' boolean, 'i' integer, else something that no directive here has
	yes  bool
	n    int64
}

func (p *sfParser) take(b byte) bool {
	if p.s != "" && p.s[0] == b {
		p.s = p.s[1:]
		return true
	}
	return false
}

func (p *sfParser) blank(set string) { p.s = strings.TrimLeft(p.s, set) }

// span takes the longest prefix whose bytes fit.
func (p *sfParser) span(fits func(b byte) bool) string {
	n := 0
	for n < len(p.s) && fits(p.s[n]) {
		n++
	}
	out := p.s[:n]
	p.s = p.s[n:]
	return out
}

func lower(b byte) bool { return b >= 'a' && b <= 'z' }
func digit(b byte) bool { return b >= '0' && b <= '9' }

func (p *sfParser) key() (string, bool) {
	if p.s == "" || !lower(p.s[0]) && p.s[0] != '*' {
		return "", false
	}
	return p.span(func(b byte) bool { return lower(b) || digit(b) || strings.IndexByte("_-.*", b) >= 0 }), true
}

func (p *sfParser) parameters() bool {
	for p.take(';') {
		p.blank(" ")
		if _, ok := p.key(); !ok {
			return false
		}
		if p.take('=') {
			if _, ok := p.bare(); !ok {
				return false
			}
		}
	}
	return true
}

// item reads a bare item or an inner list.
func (p *sfParser) item() (sfValue, bool) {
	if !p.take('(') {
		return p.bare()
	}
	for {
		if p.blank(" "); p.take(')') {
			return sfValue{kind: '('}, true
		}
		if _, ok := p.bare(); !ok || !p.parameters() {
			return sfValue{}, false
		}
		if p.s == "" || p.s[0] != ' ' && p.s[0] != ')' {
			return sfValue{}, false
		}
	}
}

func (p *sfParser) bare() (v sfValue, ok bool) {
	if p.s == "" {
		return v, false
	}
	switch b := p.s[0]; {
	case digit(b) || b == '-':
		return p.number()
	case b == '"':
		for i := 1; i < len(p.s); i++ {
			switch c := p.s[i]; {
			case c == '"':
				p.s = p.s[i+1:]
				return sfValue{kind: 's'}, true
			case c < ' ' || c > '~':
				return v, false
			case c == '\\':
				if i++; i == len(p.s) || p.s[i] != '"' && p.s[i] != '\\' {
					return v, false
				}
			}
		}
		return v, false
	case b == '?':
		if len(p.s) < 2 || p.s[1] != '0' && p.s[1] != '1' {
			return v, false
		}
		v = sfValue{kind: 'b', yes: p.s[1] == '1'}
		p.s = p.s[2:]
		return v, true
	case b == ':':
		end := strings.IndexByte(p.s[1:], ':')
		if end < 0 {
			return v, false
		}
		p.s = p.s[end+2:]
		return sfValue{kind: ':'}, true
	case b == '*' || lower(b|0x20) && b != 0x40:
		p.span(func(b byte) bool { return b == ':' || b == '/' || isToken(string(rune(b))) && b < 0x80 })
		return sfValue{kind: 't'}, true
	}
	return v, false // dates and display strings too: nothing here has them
}

func (p *sfParser) number() (v sfValue, ok bool) {
	minus := p.take('-')
	whole := p.span(digit)
	if whole == "" || len(whole) > 15 {
		return v, false
	}
	if p.take('.') {
		if part := p.span(digit); part == "" || len(part) > 3 || len(whole) > 12 {
			return v, false
		}
		return sfValue{kind: 'd'}, true
	}
	for i := range len(whole) {
		v.n = v.n*10 + int64(whole[i]-'0')
	}
	if minus {
		v.n = -v.n
	}
	v.kind = 'i'
	return v, true
}
