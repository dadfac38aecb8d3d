package httpcache

import (
	"net/http"
	"strings"
	"time"
)

// HeuristicMax bounds a lifetime that nobody stated (RFC 9111 §4.2.2). A tenth of the
// time since the last change can be days, while a device's state changes by itself:
// whoever wants more says so in Cache-Control.
const HeuristicMax = time.Minute

// clockFloor is the time before which no clock is right: boards without a battery start
// in 1970. A Date before it is not compared with our time.
var clockFloor = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// ClockRight reports whether a clock that shows t may be right.
func ClockRight(t time.Time) bool { return t.After(clockFloor) }

// Answer is a final answer as the rules see it. Status and Header are read, not changed.
type Answer struct {
	Status  int
	Header  http.Header
	Control Directives

	// Targeted: Control comes from a targeted field (RFC 9213), so that Cache-Control and
	// Expires do not count.
	Targeted bool
}

// Judge reads the fields of an answer that concern caches. targeted are the names, in
// canonical form, of the targeted fields that this cache obeys, best first (RFC 9213
// §2.2); usually none.
func Judge(status int, h http.Header, targeted ...string) Answer {
	a := Answer{Status: status, Header: h}
	for _, name := range targeted {
		if d, ok := ParseTargeted(h[name]); ok {
			a.Control, a.Targeted = d, true
			return a
		}
	}
	a.Control = ParseCacheControl(h["Cache-Control"])
	return a
}

// Lifetime is how long the answer is fresh, counted from its making, for a shared cache
// (RFC 9111 §4.2.1). explicit is false when the origin did not state it: then it is a
// guess (§4.2.2), or 0 if none is allowed. now is the wall clock.
func (a *Answer) Lifetime(now time.Time) (d time.Duration, explicit bool) {
	c := &a.Control
	switch {
	case c.Has(Malformed):
		return 0, true
	case c.Has(HasSMaxAge):
		return time.Duration(c.SMaxAge) * time.Second, true
	case c.Has(HasMaxAge):
		return time.Duration(c.MaxAge) * time.Second, true
	}
	if a.Targeted {
		return 0, false
	}
	if lines := a.Header["Expires"]; len(lines) > 0 {
		expires, ok := ParseDate(lines[0], now)
		for _, l := range lines[1:] {
			ok = ok && l == lines[0] // §4.2.1: two different ones
		}
		if !ok {
			return 0, true
		}
		return min(max(0, expires.Sub(a.date(now))), MaxDelta*time.Second), true
	}
	return a.heuristic(now), false
}

func (a *Answer) date(now time.Time) time.Time {
	if t, ok := a.dated(now); ok {
		return t
	}
	return now // RFC 9110 §6.6.1: the time of receipt
}

func (a *Answer) dated(now time.Time) (t time.Time, ok bool) {
	if lines := a.Header["Date"]; len(lines) > 0 {
		return ParseDate(lines[0], now)
	}
	return t, false
}

// heuristic is a lifetime for answers that state none (§4.2.2).
func (a *Answer) heuristic(now time.Time) time.Duration {
	if !heuristicStatus(a.Status) && !a.Control.Has(Public) || len(a.Header["Last-Modified"]) != 1 {
		return 0
	}
	changed, ok := ParseDate(a.Header["Last-Modified"][0], now)
	if !ok {
		return 0
	}
	return min(max(0, a.date(now).Sub(changed)/10), HeuristicMax).Truncate(time.Second)
}

// heuristicStatus are the status codes of RFC 9110 §15.1 whose answers may be kept
// without the origin saying so; 206 is not among them because parts are not stored.
func heuristicStatus(status int) bool {
	switch status {
	case 200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501:
		return true
	}
	return false
}

// understood are the status codes whose caching rules this package knows, for
// must-understand (§5.2.2.3).
func understood(status int) bool {
	return heuristicStatus(status) || status == 302 || status == 303 || status == 307
}

// dateSlack is by how much Date may be earlier than the moment that it stands for: it is cut
// to the second, and clocks that are set over a network differ by up to another one.
const dateSlack = 2 * time.Second

// Age is how old the answer was when its head was here: the corrected initial age (§4.2.3),
// not rounded. now is the wall clock at that moment, delay the time since the request was sent.
//
// There are two ways to tell, Age with the delay, and Date. A Date from before the request was
// sent makes the answer as old as it says, if that is more. One from the exchange itself says
// when in it the answer was made, which is then not as old as the whole exchange: otherwise a
// service that thinks for longer than max-age would never be relieved, and nor would one that
// answers within a millisecond in which a second begins.
func (a *Answer) Age(now time.Time, delay time.Duration) time.Duration {
	stated := ParseAge(a.Header["Age"])
	delay = max(0, delay)
	age := stated + delay
	if date, ok := a.dated(now); ok && ClockRight(date) {
		switch apparent := now.Sub(date); {
		case apparent >= delay+dateSlack:
			age = max(age, apparent)
		case apparent >= 0: // otherwise the clocks differ
			age = min(age, max(stated, apparent))
		}
	}
	return min(age, MaxDelta*time.Second)
}

// ParseAge reads an Age field: the first member counts, what is no number does not (§5.1).
func ParseAge(lines []string) time.Duration {
	if len(lines) == 0 {
		return 0
	}
	first, _, _ := strings.Cut(lines[0], ",")
	n, ok := seconds(strings.Trim(first, " \t"))
	if !ok {
		return 0
	}
	return time.Duration(n) * time.Second
}

// Asker is what the rules must know of a request besides its fields.
type Asker struct {
	Method string
	// Principal names who asks, as far as the cache's owner knows: a paired client, a user
	// of the relay. Empty: nobody in particular.
	Principal string
	// Authorization: the request carries credentials for the origin (§3.5).
	Authorization bool
	Control       Directives // of the request
}

// Scope is who may be answered from a stored answer.
type Scope uint8

// Scopes.
const (
	Nobody  Scope = iota // it is not stored
	Owner                // requests of the same principal
	Anybody              // every request
)

// Stores decides whether the answer may be stored, and for whom (RFC 9111 §3, §3.5). It
// does not ask whether that is useful: an answer without lifetime and without validator
// is of no use.
func (a *Answer) Stores(q Asker) Scope {
	c := &a.Control
	if q.Control.Has(NoStore) || c.Has(Malformed) || a.Status < 200 || a.Status == 206 || a.Status == 304 {
		return Nobody
	}
	if c.Has(MustUnderstand) {
		if !understood(a.Status) { // §5.2.2.3: and if it is, no-store does not count
			return Nobody
		}
	} else if c.Has(NoStore) {
		return Nobody
	}
	if len(a.Header["Set-Cookie"]) > 0 || varyAny(a.Header["Vary"]) {
		return Nobody
	}
	explicit := c.Flags&(HasSMaxAge|HasMaxAge|Public|Private) != 0 || !a.Targeted && len(a.Header["Expires"]) > 0
	if !explicit && !heuristicStatus(a.Status) {
		return Nobody
	}
	if q.Method == http.MethodPost && c.Flags&(HasSMaxAge|HasMaxAge) == 0 && len(a.Header["Expires"]) == 0 {
		return Nobody // RFC 9110 §9.3.3
	}
	if c.Has(Private) {
		return owner(q)
	}
	if (q.Authorization || q.Principal != "") && c.Flags&(Public|HasSMaxAge|MustRevalidate) == 0 {
		return owner(q)
	}
	return Anybody
}

func owner(q Asker) Scope {
	if q.Principal == "" {
		return Nobody
	}
	return Owner
}

// Grace is how long after its lifetime a stale answer may be used.
type Grace struct {
	Revalidate time.Duration // while it is validated in the background (RFC 5861 §3)
	Error      time.Duration // when the origin fails (RFC 5861 §4)
	Never      bool          // not even to a client that asks for it (RFC 9111 §5.2.2.2)
}

// Grace returns what the origin allows. s-maxage implies proxy-revalidate (§5.2.2.10),
// unless the same field states a time.
func (a *Answer) Grace() (g Grace) {
	c := &a.Control
	if c.Flags&(MustRevalidate|ProxyRevalidate|NoCache|Malformed) != 0 {
		return Grace{Never: true}
	}
	g.Revalidate = time.Duration(c.StaleWhileRevalidate) * time.Second
	g.Error = time.Duration(c.StaleIfError) * time.Second
	g.Never = c.Has(HasSMaxAge) && g.Revalidate == 0 && g.Error == 0
	return g
}
