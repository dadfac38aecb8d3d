package shared

import (
	"hash/maphash"
	"net/http"
	"strings"
	"time"
	"unsafe"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// site is what belongs to one space. Cache.mu guards it.
type site struct {
	name    string
	targets map[string]*entry  // by target in origin-form; chained by next, newest first
	flights map[string]*flight // requests to the origin that may yet be stored; chained. nil: none
	crowded bool               // flights had more than spareFlights
	used    bool               // something was stored
}

// spareFlights is how many requests the map that a space leaves for the next one had at most:
// maps do not shrink.
const spareFlights = 32

// siteOverhead is what a space costs besides its name, while something is stored in it: the
// struct, its map with the smallest table, its place among the others.
const siteOverhead = int64(unsafe.Sizeof(site{})) + 48 + 208 + 64

func (s *site) cost() int64 { return siteOverhead + int64(len(s.name)) }

// result is what became of a flight.
type result uint8

const (
	flying  result = iota
	stored         // others may look it up
	useless        // it was for its own client only
	aged           // it was, because it was old when it came
	failed         // it did not come through
)

// flight is a request to the origin whose answer may be stored. Cache.mu guards it.
type flight struct {
	next      *flight
	site      *site
	uri       string
	host      string
	principal string
	join      bool // others may wait for it; not once it is doomed
	doomed    bool // a write came in between: it is not to be stored
	writes    int  // that came in between
	gone      bool // over
	result    result
	until     time.Duration // others may wait for it; 0: its head is not there yet
	answer    *entry        // stored
	done      chan struct{} // made by who waits first, closed at the end
}

var seed = maphash.MakeSeed()

// siteOf returns a space, made if need be.
func (c *Cache) siteOf(space string) *site {
	s := c.sites[space]
	switch {
	case s != nil:
	case c.spare != nil && c.spare.name == space:
		s, c.spare = c.spare, nil
		c.sites[s.name] = s
	default:
		s = &site{name: strings.Clone(space), targets: map[string]*entry{}} // not a part of a request's head
		c.sites[s.name] = s
	}
	return s
}

// tidy forgets a space that holds nothing. The last one, and its map of flights, may be what the
// next request needs.
func (c *Cache) tidy(s *site) {
	if len(s.flights) == 0 && s.flights != nil {
		if !s.crowded {
			c.flights = s.flights
		}
		s.flights, s.crowded = nil, false // most spaces of a relay have none at most times
	}
	if len(s.targets) == 0 && s.flights == nil && c.sites[s.name] == s {
		delete(c.sites, s.name)
		if !s.used {
			c.spare = s
		}
	}
}

func (s *site) find(t *Target, host string, h http.Header) *entry {
	for e := s.targets[t.URI]; e != nil; e = e.next {
		if e.fits(host, t.Principal, h) {
			return e
		}
	}
	return nil
}

// use moves e to the front.
func (c *Cache) use(e *entry) {
	if c.lru.older == e {
		return
	}
	e.newer.older, e.older.newer = e.older, e.newer
	c.link(e)
}

func (c *Cache) link(e *entry) {
	e.newer, e.older = &c.lru, c.lru.older
	c.lru.older.newer, c.lru.older = e, e
}

// drop removes e, if it is still there.
func (c *Cache) drop(e *entry) {
	if e.newer == nil {
		return
	}
	uri := e.uri()
	head := e.site.targets[uri]
	if head == e {
		delete(e.site.targets, uri) // the key is a part of e
		if e.next != nil {
			e.site.targets[e.next.uri()] = e.next
		}
	} else {
		for head != nil && head.next != e {
			head = head.next
		}
		if head == nil {
			return
		}
		head.next = e.next
	}
	e.newer.older, e.older.newer = e.older, e.newer
	c.used -= e.cost()
	if len(e.site.targets) == 0 {
		c.used -= e.site.cost()
	}
	c.count--
	e.next, e.newer, e.older = nil, nil, nil
}

// reserve takes n bytes of the memory, from the oldest entries if need be.
func (c *Cache) reserve(n int64) bool {
	for c.used+n > c.conf.MaxBytes {
		e := c.lru.newer
		if e == &c.lru {
			return false
		}
		c.evict(e)
	}
	c.used += n
	return true
}

func (c *Cache) evict(e *entry) {
	s := e.site
	c.drop(e)
	c.evictions++
	c.tidy(s)
}

// add stores e in place of what it replaces: what a request with the fields h would have
// been answered from, of the same owner.
func (c *Cache) add(e *entry, h http.Header) bool {
	s, uri, n := e.site, e.uri(), 0
	for old := s.targets[uri]; old != nil; {
		next := old.next
		if n++; n >= maxVariants || old.principal() == e.principal() && old.fits(e.host(), e.principal(), h) {
			c.drop(old)
		}
		old = next
	}
	for c.count >= c.conf.MaxEntries {
		c.evict(c.lru.newer)
	}
	if !c.reserve(e.cost() + s.cost()) {
		return false
	}
	if len(s.targets) > 0 {
		c.used -= s.cost() // it is counted already
	}
	c.sites[s.name] = s // which may have been forgotten while there was made room
	s.used = true
	e.next = s.targets[uri]
	delete(s.targets, uri) // the key is a part of the entry before
	s.targets[uri] = e
	c.link(e)
	c.count++
	return true
}

// depart notes a request to the origin.
func (c *Cache) depart(s *site, t *Target, host string, join bool) *flight {
	if s.flights == nil {
		if s.flights, c.flights = c.flights, nil; s.flights == nil {
			s.flights = map[string]*flight{}
		}
	}
	s.crowded = s.crowded || len(s.flights) >= spareFlights
	f := &flight{site: s, uri: t.URI, host: host, principal: t.Principal, join: join, next: s.flights[t.URI]}
	s.flights[t.URI] = f
	return f
}

// arrive ends a flight.
func (c *Cache) arrive(f *flight, r result) {
	if f == nil || f.gone {
		return
	}
	f.gone = true
	s := f.site
	if p := s.flights[f.uri]; p == f {
		if f.next == nil {
			delete(s.flights, f.uri)
		} else {
			s.flights[f.uri] = f.next
		}
	} else {
		for p != nil && p.next != f {
			p = p.next
		}
		if p != nil {
			p.next = f.next
		}
	}
	c.tell(f, r)
	c.tidy(s)
}

// tell lets those go who wait for a flight; it may go on for its own client.
func (c *Cache) tell(f *flight, r result) {
	if f == nil || f.result != flying {
		return
	}
	f.result, f.join = r, false
	if f.done == nil {
		return
	}
	close(f.done)
	if r == useless && !f.doomed {
		h := passHash(f.site.name, f.uri)
		c.passes[h%uint64(len(c.passes))] = pass{h, c.now() + passTime}
	}
}

// pass is a target whose answer was of no use to others.
type pass struct {
	hash  uint64
	until time.Duration
}

func passHash(space, uri string) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(space)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(uri)
	return h.Sum64()
}

// alone reports whether requests for a target had better not wait for each other.
func (c *Cache) alone(t *Target, now time.Duration) bool {
	h := passHash(t.Space, t.URI)
	p := &c.passes[h%uint64(len(c.passes))]
	return p.hash == h && now < p.until
}

// joinable returns a flight whose answer a request may wait for; open means that another
// principal's may do.
func (s *site) joinable(t *Target, host string, open bool, now time.Duration) *flight {
	for f := s.flights[t.URI]; f != nil; f = f.next {
		if f.join && f.host == host && (f.until == 0 || now < f.until) && (open || f.principal == t.Principal) {
			return f
		}
	}
	return nil
}

// sweep removes every entry of a space whose target is meant, and dooms every flight; it
// returns the number of entries.
func (c *Cache) sweep(s *site, meant func(uri string) bool) (n int) {
	if s == nil {
		return 0
	}
	for uri, e := range s.targets {
		if !meant(uri) {
			continue
		}
		for e != nil {
			next := e.next
			c.drop(e)
			n++
			e = next
		}
	}
	for uri, f := range s.flights {
		if !meant(uri) {
			continue
		}
		for ; f != nil; f = f.next {
			c.doom(f)
		}
	}
	c.tidy(s)
	return n
}

// doom keeps the answer to a request under way from being stored; who waits for it asks anew.
func (c *Cache) doom(f *flight) {
	f.doomed = true
	f.writes++
	c.tell(f, failed)
}

// Invalidate makes what is stored for these targets in a space unusable, with any query,
// for every principal; answers under way to the origin will not be stored. It returns the
// number of answers removed.
func (c *Cache) Invalidate(space string, uris ...string) (n int) {
	for _, u := range uris {
		path := httpcache.Path(u)
		n += c.invalidate(space, func(uri string) bool {
			return strings.HasPrefix(uri, path) && (len(uri) == len(path) || uri[len(path)] == '?')
		})
	}
	return n
}

func (c *Cache) invalidate(space string, meant func(uri string) bool) int {
	c.mu.Lock()
	n := c.sweep(c.sites[space], meant)
	c.stats.Invalidated += uint64(n)
	c.mu.Unlock()
	c.forget(meant)
	return n
}

// InvalidatePrefix is Invalidate for every target that begins so; "/" is all of a space.
func (c *Cache) InvalidatePrefix(space, prefix string) int {
	return c.invalidate(space, func(uri string) bool { return strings.HasPrefix(uri, prefix) })
}

// Purge removes what is stored for one target, as an operator asks.
func (c *Cache) Purge(space, uri string) int { return c.Invalidate(space, uri) }

// PurgeSpace removes everything that is stored for a space.
func (c *Cache) PurgeSpace(space string) int { return c.InvalidatePrefix(space, "/") }

// PurgePrincipal removes what is stored for one principal in a space, whatever credentials it
// showed to the origin, and keeps its answers under way from being stored: the principal is no
// more. It returns the number of answers removed.
func (c *Cache) PurgePrincipal(space, principal string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sites[space]
	if s == nil || principal == "" {
		return 0
	}
	is := func(p string) bool {
		name, _, _ := strings.Cut(p, separator)
		return name == principal
	}
	for _, e := range s.targets {
		for e != nil {
			next := e.next
			if is(e.principal()) {
				c.drop(e)
				n++
			}
			e = next
		}
	}
	for _, f := range s.flights {
		for ; f != nil; f = f.next {
			if is(f.principal) {
				c.doom(f)
			}
		}
	}
	c.tidy(s)
	return n
}

// Spaces are those in which something is stored, or on its way from the origin.
func (c *Cache) Spaces() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]string, 0, len(c.sites))
	for name := range c.sites {
		list = append(list, name)
	}
	return list
}

// PurgeAll removes everything.
func (c *Cache) PurgeAll() (n int) {
	every := func(string) bool { return true }
	c.mu.Lock()
	for _, s := range c.sites {
		n += c.sweep(s, every)
	}
	c.mu.Unlock()
	c.forget(every)
	return n
}

// Entry is one stored answer, for people.
type Entry struct {
	URI       string        `json:"uri"`
	Host      string        `json:"host,omitempty"`
	Principal string        `json:"principal,omitempty"`
	Status    int           `json:"status"`
	Body      int           `json:"bodyBytes"`
	Cost      int64         `json:"bytes"` // with all that belongs to it
	Age       time.Duration `json:"age"`
	Fresh     time.Duration `json:"fresh"` // negative: stale for so long
	Hits      uint32        `json:"hits"`
	ETag      string        `json:"etag,omitempty"`
	Vary      []string      `json:"vary,omitempty"`
}

// Entries lists at most limit stored answers of a space, the most recently used first.
func (c *Cache) Entries(space string, limit int) (list []Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for e := c.lru.older; e != &c.lru && len(list) < limit; e = e.older {
		if e.site.name != space {
			continue
		}
		name, _, _ := strings.Cut(e.principal(), separator)
		x := Entry{Principal: name, URI: e.uri(), Host: e.host(), Status: int(e.status), Body: len(e.body), Cost: e.cost(),
			Age: now - e.born, Fresh: e.born + e.lifetime - now, Hits: e.hits, ETag: e.value("Etag")}
		if e.vary != nil {
			x.Vary = e.vary.names
		}
		list = append(list, x)
	}
	return list
}

// Stats are numbers since the start, except those about now.
type Stats struct {
	Hits        uint64 `json:"hits"`        // answered from the store alone
	Stale       uint64 `json:"stale"`       // of those, with a stale answer
	Collapsed   uint64 `json:"collapsed"`   // of those, by waiting for another request's answer
	Validated   uint64 `json:"validated"`   // answered from the store after a 304
	Misses      uint64 `json:"misses"`      // answered by the origin, though it was a GET or HEAD
	Stores      uint64 `json:"stores"`      // answers stored
	Invalidated uint64 `json:"invalidated"` // answers removed because of a write
	Evictions   uint64 `json:"evictions"`   // answers removed for want of room
	Tagged      uint64 `json:"tagged"`      // 304 by an ETag made here
	Refused     uint64 `json:"refused"`     // writes refused with 412
	Saved       uint64 `json:"savedBytes"`  // of bodies that did not have to be fetched, or sent on

	Entries int   `json:"entries"` // now
	Bytes   int64 `json:"bytes"`   // now, of Config.MaxBytes
}

// Stats returns the present numbers.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Evictions, s.Entries, s.Bytes = c.evictions, c.count, c.used
	return s
}
