package shared

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// tagPrefix begins the ETags that are made here: an origin does not know them.
const tagPrefix = `"cr.`

// mode is what happens to an answer on its way through a recorder.
type mode uint8

const (
	passing   mode = iota // to the client, and perhaps into the store
	holding               // kept back until its ETag is known, or others know of the write
	confirmed             // a 304 to our own question
	swallowed             // a failure, in whose place a stale answer is used
	muted                 // into the store only: the client got a 304
)

// recorder is the ResponseWriter that next gets.
type recorder struct {
	query query  // by value, so that a request answered from the store needs no memory
	q     *query // &query
	w     http.ResponseWriter
	stale *entry  // what may be validated, or used if the origin fails; nil: nothing
	f     *flight // nil: the answer will not be stored

	own        http.Header // fields that must not reach the client yet; nil: w's are used
	validating bool        // own preconditions went to the origin
	decides    bool        // the client's preconditions are judged here when a 200 comes
	isWrite    bool
	told       bool          // of the write
	sent, came time.Duration // the request, and the head of its answer
	old        bool          // the answer was not fresh any more then

	mode     mode
	status   int   // final; 0: not there yet
	declared int64 // Content-Length; -1: none
	n        int64 // bytes of the body so far

	pending  *entry // to be stored, still without text and body, unless it is renewed
	renewed  bool   // pending is stale anew
	same     bool   // the body so far is that of stale
	block    []byte
	owner    string // whose it will be
	buf      []byte
	reserved int64

	spare []byte // memory for buf, from a request before
}

// maxSpare bounds it, in bytes.
const maxSpare = 16 << 10

var recorders = sync.Pool{New: func() any { return new(recorder) }}

// fetch asks the origin. e is what is stored, if that is not good enough; f is nil if the
// answer is not to be stored.
func (q *query) fetch(e *entry, f *flight) error {
	x := recorders.Get().(*recorder)
	*x = recorder{query: *q, w: q.w, stale: e, f: f, sent: q.c.now(), spare: x.spare}
	x.q = &x.query
	defer x.end()
	r := q.r
	if e != nil {
		if len(q.w.Header()) > 0 { // otherwise setAside tells the origin's from others
			x.own = http.Header{}
		}
		if f != nil && e.canValidate() {
			if x.decides = true; e.unasked == 0 {
				r, x.validating = q.ask(e), true
			}
		}
	}
	return x.finish(q.next(x, r))
}

// canValidate reports whether the origin can tell whether e still holds.
func (e *entry) canValidate() bool { return e.flags&madeTag == 0 && e.flags&(hasTag|hasDate) != 0 }

// ask makes a request that asks whether e still holds (RFC 9111 §4.3.1).
func (q *query) ask(e *entry) *http.Request {
	r := q.r.WithContext(q.r.Context())
	r.Header = q.r.Header.Clone()
	for _, name := range [...]string{"If-None-Match", "If-Modified-Since", "Range", "If-Range"} {
		delete(r.Header, name)
	}
	if v := e.value("Etag"); v != "" {
		r.Header["If-None-Match"] = []string{v}
	}
	if v := e.value("Last-Modified"); v != "" {
		r.Header["If-Modified-Since"] = []string{v}
	}
	return r
}

// maxUnasked is how many requests in a row go to an origin that does not validate without our
// asking it to: one that was changed meanwhile is found out by the next.
const maxUnasked = 63

// unasked is what the answer e says for the next: an origin that sends in full what it was asked
// about does not look at preconditions, and they cost a copy of the request's head.
func (x *recorder) unasked(e *entry) uint8 {
	old := x.stale
	switch {
	case old == nil || x.status != http.StatusOK:
		return 0
	case !x.validating:
		return max(old.unasked, 1) - 1
	case e.value("Etag") == old.value("Etag") && e.value("Last-Modified") == old.value("Last-Modified"):
		return maxUnasked
	}
	return 0
}

// setAside keeps the fields of an answer from the client that gets another.
func (x *recorder) setAside() {
	if x.own == nil {
		h := x.w.Header()
		x.own = maps.Clone(h)
		clear(h)
	}
}

// end gives everything back, also on the way of a panic.
func (x *recorder) end() {
	if x.f != nil || x.reserved != 0 {
		c := x.q.c
		c.mu.Lock()
		c.arrive(x.f, failed)
		c.used -= x.reserved
		c.mu.Unlock()
	}
	x.recycle()
	*x = recorder{spare: x.spare}
	recorders.Put(x)
}

// recycle keeps the memory of buf for another answer.
func (x *recorder) recycle() {
	if cap(x.buf) <= maxSpare && cap(x.buf) > cap(x.spare) {
		x.spare = x.buf[:0]
	}
	x.buf = nil
}

// Header implements http.ResponseWriter.
func (x *recorder) Header() http.Header {
	if x.own != nil {
		return x.own
	}
	return x.w.Header()
}

// Unwrap lets http.ResponseController reach the server's writer.
func (x *recorder) Unwrap() http.ResponseWriter { return x.w }

// WriteHeader implements http.ResponseWriter.
func (x *recorder) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	if status < 200 {
		x.interim(status)
		return
	}
	x.status, x.came = status, x.q.c.now()
	h := x.Header()
	x.declared = -1
	if v := h["Content-Length"]; len(v) == 1 {
		if n, err := strconv.ParseInt(v[0], 10, 64); err == nil && n >= 0 {
			x.declared = n
		}
	}
	switch {
	case x.isWrite && x.waits(status, h):
		x.mode = holding
		return
	case x.isWrite:
		x.tell()
	case x.validating && status == http.StatusNotModified:
		x.setAside()
		x.mode = confirmed
		return
	case x.stale != nil && x.instead(x.stale, status):
		x.setAside()
		x.mode = swallowed
		return
	case x.tags(status, h):
		x.mode = holding
		return
	}
	x.release()
}

// interim passes a 1xx on (RFC 9110 §15.2).
func (x *recorder) interim(status int) {
	if x.own == nil {
		x.w.WriteHeader(status)
		return
	}
	h := x.w.Header()
	for name, values := range x.own {
		h[name] = values
	}
	x.w.WriteHeader(status)
	for name := range x.own {
		delete(h, name)
	}
}

// instead reports whether e is used in place of a failure. Status 0 is no answer at all.
func (x *recorder) instead(e *entry, status int) bool {
	late := x.q.c.now() - e.born - e.lifetime
	if e.flags&neverStale != 0 {
		return false
	}
	switch status {
	case 0, http.StatusBadGateway, http.StatusGatewayTimeout:
		if most := x.q.c.conf.StaleOnError; most > 0 && late < most {
			return true
		}
	case http.StatusInternalServerError, http.StatusServiceUnavailable:
	default:
		return false
	}
	return late < e.failing() && e.sie > 0 || x.q.control.Has(httpcache.HasStaleIfError) && late < time.Duration(x.q.control.StaleIfError)*time.Second
}

// heldMax is up to how many bytes the answer to a write is kept back.
const heldMax = 64 << 10

// waits reports whether the answer to a write is kept back until next has returned: to tell
// others of the write may take its time, and by then what next holds for it is free again,
// such as its place in the origin.
func (x *recorder) waits(status int, h http.Header) bool {
	return x.q.c.conf.Changed != nil && httpcache.Changes(status) && x.declared <= heldMax && len(h["Trailer"]) == 0
}

// tell makes stale what a write has changed, once.
func (x *recorder) tell() {
	if x.told {
		return
	}
	x.told = true
	if x.status == 0 { // who knows what it did
		x.q.wrote(x, http.StatusBadGateway, nil)
		return
	}
	x.q.wrote(x, x.status, x.Header())
}

// tags reports whether an answer gets an ETag here: it is small, has no validator, and may
// be kept by somebody.
func (x *recorder) tags(status int, h http.Header) bool {
	most := int64(x.q.c.conf.TagMax)
	if most == 0 || status != http.StatusOK || x.q.r.Method != http.MethodGet || x.declared > most || len(h["Etag"]) > 0 || len(h["Last-Modified"]) > 0 ||
		len(h["Trailer"]) > 0 || len(h["Content-Range"]) > 0 {
		return false
	}
	if lines := h["Cache-Control"]; len(lines) > 0 {
		if c := httpcache.ParseCacheControl(lines); c.Has(httpcache.NoStore) {
			return false
		}
	}
	t := h["Content-Type"]
	return len(t) == 0 || !strings.HasPrefix(t[0], eventStream)
}

// eventStream is the type of answers without end.
const eventStream = "text/event-stream"

// tagger makes ETags; its memory is used again.
type tagger struct {
	hash hash.Hash
	buf  []byte
	text [len(tagPrefix) + tagText + 1]byte
}

// Of a SHA-256 an ETag has tagBytes, which are tagText characters. A cheaper hash would do for
// chance, but not where somebody chooses what a service says: two states with one ETag are a lost update.
const (
	tagBytes = 15
	tagText  = tagBytes * 4 / 3
)

var taggers = sync.Pool{New: func() any { return &tagger{hash: sha256.New()} }}

// makeTag is a strong ETag of a body and of what says how to read it.
func makeTag(h http.Header, body []byte) string {
	t := taggers.Get().(*tagger)
	defer taggers.Put(t)
	t.hash.Reset()
	t.buf = t.buf[:0]
	for _, name := range [...]string{"Content-Type", "Content-Encoding"} {
		for _, v := range h[name] {
			t.buf = append(t.buf, v...)
		}
		t.buf = append(t.buf, 0)
	}
	t.hash.Write(t.buf)
	t.hash.Write(body)
	t.buf = t.hash.Sum(t.buf[:0])
	copy(t.text[:], tagPrefix)
	base64.RawURLEncoding.Encode(t.text[len(tagPrefix):], t.buf[:tagBytes])
	t.text[len(t.text)-1] = '"'
	return string(t.text[:])
}

// release lets the final head go to the client, after the decision whether to store.
func (x *recorder) release() {
	q, h := x.q, x.Header()
	x.mode = passing
	var e *entry
	if x.f != nil {
		if e = x.renew(h); e == nil {
			e = x.assess(h, x.status)
		}
		x.same = e != nil && x.stale != nil && len(x.buf) == 0 && (x.declared < 0 || x.declared == int64(len(x.stale.body)))
	}
	q.c.head(x, e)
	if x.own != nil {
		to := x.w.Header()
		for name, values := range h {
			to[name] = values
		}
		h, x.own = to, nil
	}
	if e != nil {
		x.pending = e
	}
	if !x.isWrite {
		list := &q.c.words.miss
		switch {
		case x.stale != nil && e != nil:
			list = &q.c.words.staleStored
		case x.stale != nil:
			list = &q.c.words.stale
		case e != nil:
			list = &q.c.words.missStored
		case q.control.Has(httpcache.NoStore):
			list = &q.c.words.pass
		}
		if inner := h["Cache-Status"]; len(inner) > 0 {
			h["Cache-Status"] = append(inner[:len(inner):len(inner)], (*list)[0])
		} else {
			h["Cache-Status"] = (*list)[:1:1]
		}
	}
	if x.decides && x.status == http.StatusOK && httpcache.Conditional(q.r.Header) {
		// The client asked under a condition of its own, which did not reach the origin, or not
		// one that looks at them.
		v := validators(one(h["Etag"]), one(h["Last-Modified"]), one(h["Date"]))
		if httpcache.NotModified(q.r.Header, v, time.Now()) {
			x.mode = muted
			for _, name := range [...]string{"Content-Length", "Content-Type", "Content-Encoding", "Content-Language", "Content-Range"} {
				delete(h, name)
			}
			x.w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	x.w.WriteHeader(x.status)
}

// one is the line of a field that has no more than that.
func one(lines []string) string {
	if len(lines) != 1 {
		return ""
	}
	return lines[0]
}

// head notes what the head of an answer means for others.
func (c *Cache) head(x *recorder, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !x.isWrite {
		c.stats.Misses++
	}
	if x.stale != nil && e == nil && x.q.r.Method == http.MethodGet && x.status < 500 {
		c.drop(x.stale) // something newer was seen
		c.noted(x.stale, false)
	}
	if x.f == nil {
		return
	}
	switch {
	case e != nil:
		x.expect(e)
		return
	case x.old:
		c.arrive(x.f, aged)
	default:
		c.arrive(x.f, useless)
	}
	x.f = nil
}

// expect decides about those who wait for a flight, by the head of its answer. They may have
// what is fresh then, or may be used while it is validated (RFC 9111 §4), however long the body
// takes. What must be validated for each request, or is stale from the begin (max-age=0), is
// for nobody else, though it was asked for after they came: §5.2.2.4 and §4.2.4 make no
// difference there. Cache.mu is held.
func (x *recorder) expect(e *entry) {
	life := e.lifetime + e.while()
	switch {
	case e.flags&askFirst != 0 || life <= 0:
		x.q.c.tell(x.f, useless)
	case e.born+life <= x.came:
		x.q.c.tell(x.f, aged)
	default:
		x.f.until = e.born + life
	}
}

// assess makes the entry that an answer is stored as, still without its block and body; nil
// if it is not. A lifetime from a rule is announced in h.
func (x *recorder) assess(h http.Header, status int) *entry {
	q, c := x.q, x.q.c
	r, rule, wall := q.r, q.rule, time.Now().Add(x.came-c.now())
	if t := h["Content-Type"]; x.declared > c.conf.MaxBody || len(t) > 0 && strings.HasPrefix(t[0], eventStream) {
		return nil
	}
	a := httpcache.Judge(status, h, c.conf.Targeted...)
	scope := a.Stores(httpcache.Asker{
		Method: r.Method, Principal: q.t.Principal, Authorization: len(r.Header["Authorization"]) > 0, Control: q.control,
	})
	if scope == httpcache.Nobody && rule == nil {
		return nil
	}
	life, explicit := a.Lifetime(wall)
	grace := a.Grace()
	open := a.Control.Has(httpcache.Public) // to everybody, by somebody's word
	ruled, announced := false, false        // for how long, by the maker's word; it is told further
	if rule != nil {
		if rule.TTL > 0 && !explicit && status == http.StatusOK && r.Method == http.MethodGet &&
			a.Control.Flags&(httpcache.NoCache|httpcache.NoStore|httpcache.Private|httpcache.Malformed) == 0 {
			life, ruled = rule.TTL, true // counted from now
			if rule.Public {
				// Only whose credentials were with the request may be let be by the maker.
				if a.Stores(httpcache.Asker{Method: r.Method, Control: q.control}) == httpcache.Anybody {
					scope, open = httpcache.Anybody, true
				}
			}
		}
		if rule.Private && scope == httpcache.Anybody {
			scope = httpcache.Owner
		}
		if !grace.Never {
			grace.Error = max(grace.Error, rule.Stale)
		}
		announced = c.conf.Announce && announce(h, &a, rule, life, ruled)
	}
	if !explicit && !open && len(r.Header["Cookie"]) > 0 && scope == httpcache.Anybody {
		scope = httpcache.Owner // the origin did not think of caches, and a cookie may be credentials
	}
	if scope == httpcache.Nobody || scope == httpcache.Owner && q.t.Principal == "" {
		return nil
	}
	if max(len(q.t.URI), len(q.host), len(q.t.Principal)) > maxPart {
		return nil
	}
	e := &entry{site: x.f.site, status: int16(status), lifetime: life, swr: seconds(grace.Revalidate), sie: seconds(grace.Error)}
	x.owner = ""
	if scope == httpcache.Owner {
		x.owner = q.t.Principal
	}
	if grace.Never {
		e.flags |= neverStale
	}
	if a.Control.Has(httpcache.NoCache) {
		e.flags |= askFirst
	}
	if announced {
		e.flags |= told
	}
	e.born = x.came
	if !ruled {
		e.born -= a.Age(wall, x.came-x.sent)
	}
	tag := h["Etag"]
	checkable := len(tag) == 1
	if checkable && strings.HasPrefix(tag[0], tagPrefix) {
		e.flags |= madeTag
		checkable = false
	}
	if lines := h["Last-Modified"]; len(lines) == 1 {
		_, ok := httpcache.ParseDate(lines[0], wall)
		checkable = checkable || ok
	}
	if !checkable && (e.born+e.lifetime+max(e.while(), e.failing()) <= x.came || e.flags&askFirst != 0) {
		x.old = e.lifetime > 0 && e.flags&askFirst == 0
		return nil // of no use to anybody
	}
	dated := false
	if lines := h["Date"]; len(lines) > 0 {
		_, dated = httpcache.ParseDate(lines[0], wall)
	}
	if !dated {
		h["Date"] = []string{wall.UTC().Format(http.TimeFormat)} // RFC 9110 §6.6.1
	}
	var ok bool
	if e.vary, ok = newVariant(h, r.Header); !ok {
		return nil
	}
	if x.block, ok = e.pack(h, a.Omitted()); !ok {
		return nil
	}
	return e
}

// renew makes the entry for an answer whose head is that of the stale one, as of most services that
// are asked again and again. All that assess would find out is known then, and the entry
// takes over text and body: for as long as no other body comes, see Write. nil: assess has to look.
func (x *recorder) renew(h http.Header) *entry {
	q, old := x.q, x.stale
	if old == nil || x.status != http.StatusOK || old.status != http.StatusOK || old.lifetime != 0 || q.rule != nil || len(x.buf) > 0 ||
		x.declared != int64(len(old.body)) || len(h["Age"]) > 0 || len(h["Set-Cookie"]) > 0 ||
		old.owners == 0 && (q.t.Principal != "" || len(q.r.Header["Authorization"]) > 0 || len(q.r.Header["Cookie"]) > 0) || !old.hasHead(h) {
		return nil
	}
	x.renewed = true
	return &entry{site: x.f.site, vary: old.vary, text: old.text, body: old.body, born: x.sent, swr: old.swr, sie: old.sie,
		uris: old.uris, hosts: old.hosts, owners: old.owners, status: old.status, fields: old.fields, flags: old.flags}
}

// hasHead reports whether e would be stored with the fields of h. A Date that h lacks is added,
// if that of e is of this second.
func (e *entry) hasHead(h http.Header) bool {
	n, last, line := 0, "", 0
	for b := e.block(); b != ""; {
		var name, value string
		name, value, b = cutField(b)
		if line++; name != last {
			last, line = name, 0
		}
		switch lines := h[name]; {
		case name == "Content-Length": // looked at already
		case line < len(lines) && lines[line] == value:
			n++
		case name == "Date" && len(lines) == 0:
			wall := time.Now()
			if t, ok := httpcache.ParseDate(value, wall); !ok || wall.Sub(t).Abs() >= time.Second {
				return false
			}
			h[name] = []string{value}
			n++
		default:
			return false
		}
	}
	for name, lines := range h {
		if httpcache.Stored(name) {
			n -= len(lines)
		}
	}
	return n == 0
}

// announce tells caches further out (RFC 9213) what only a rule says: a lifetime (ruled), for whom
// the answer is, how long it may be used when the service fails. What the service itself
// says, also to them, stays; false: nothing was to be told.
func announce(h http.Header, a *httpcache.Answer, rule *httpcache.Rule, life time.Duration, ruled bool) bool {
	d := a.Control
	stale := rule.Stale > 0 && !d.Has(httpcache.HasStaleIfError) && d.Flags&(httpcache.NoCache|httpcache.MustRevalidate|httpcache.ProxyRevalidate) == 0
	if !ruled && !stale && !rule.Private || d.Flags&(httpcache.NoStore|httpcache.Malformed) != 0 {
		return false
	}
	if own := h["Cdn-Cache-Control"]; len(own) > 0 {
		if rule.Private {
			h["Cdn-Cache-Control"] = append(own[:len(own):len(own)], "private")
		}
		return false
	}
	if ruled || len(h["Expires"]) > 0 && !d.Has(httpcache.HasMaxAge) {
		d.Flags |= httpcache.HasMaxAge
		d.MaxAge = int64(life / time.Second)
	}
	switch {
	case rule.Private:
		d.Flags = d.Flags&^httpcache.Public | httpcache.Private
	case rule.Public && ruled:
		d.Flags |= httpcache.Public
	}
	if stale {
		d.Flags |= httpcache.HasStaleIfError
		d.StaleIfError = int64(rule.Stale / time.Second)
	}
	h["Cdn-Cache-Control"] = []string{d.String()}
	return true
}

// Write implements http.ResponseWriter.
func (x *recorder) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	x.n += int64(len(b))
	switch x.mode {
	case confirmed, swallowed:
		return len(b), nil
	case holding:
		most := x.q.c.conf.TagMax
		if x.isWrite {
			most = heldMax
		}
		if len(x.buf)+len(b) <= most && x.keep(b) {
			return len(b), nil
		}
		if err := x.letGo(); err != nil {
			return 0, err
		}
	}
	if x.pending != nil && !x.keepBody(b) {
		x.abandon()
	}
	if x.mode == muted {
		return len(b), nil
	}
	return x.w.Write(b)
}

// letGo gives up holding: the head and what is there of the body go to the client.
func (x *recorder) letGo() error {
	if x.isWrite {
		x.tell()
	}
	held := x.buf
	x.release()
	var err error
	if len(held) > 0 {
		_, err = x.w.Write(held)
	}
	if x.pending == nil {
		x.recycle()
	}
	return err
}

// keepBody keeps what comes of a body to be stored: without memory, as far as it is that of the
// stale answer.
func (x *recorder) keepBody(b []byte) bool {
	if !x.same {
		return x.keep(b)
	}
	old, at := x.stale.body, x.n-int64(len(b))
	if x.n <= int64(len(old)) && bytes.Equal(old[at:x.n], b) {
		return true
	}
	x.same = false
	return !x.renewed && x.keep(old[:at]) && x.keep(b) // another body under the same head is not to be trusted
}

// keep appends to what will be stored, within the memory.
func (x *recorder) keep(b []byte) bool {
	need := len(x.buf) + len(b)
	if int64(need) > x.q.c.conf.MaxBody && x.mode != holding {
		return false
	}
	if need > cap(x.buf) {
		size := max(need, 2*cap(x.buf), 512)
		if x.declared >= int64(need) {
			size = int(x.declared)
		}
		c := x.q.c
		grown := x.spare
		if x.mode == holding && cap(grown) >= size {
			x.spare = nil
		} else {
			grown = slices.Grow([]byte(nil), size) // as much as the allocator really takes
		}
		c.mu.Lock()
		ok := c.reserve(int64(cap(grown)))
		if ok {
			c.used -= x.reserved
			x.reserved = int64(cap(grown))
		}
		c.mu.Unlock()
		if !ok {
			return false
		}
		x.buf = append(grown, x.buf...)
	}
	x.buf = append(x.buf, b...)
	return true
}

// abandon gives up storing: the body is too long, or not what its head says.
func (x *recorder) abandon() {
	c := x.q.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= x.reserved
	if x.renewed {
		c.drop(x.stale)
		c.noted(x.stale, false)
	}
	c.arrive(x.f, useless)
	x.reserved, x.pending, x.buf, x.block, x.f = 0, nil, nil, nil, nil
}

// Flush implements http.Flusher.
func (x *recorder) Flush() { _ = x.FlushError() }

// FlushError is Flush with its error, as http.ResponseController looks for it.
func (x *recorder) FlushError() error {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	switch x.mode {
	case confirmed, swallowed, muted:
		return nil
	case holding:
		// The origin has sent something and not the rest: who waits for it is not kept waiting.
		if err := x.letGo(); err != nil {
			return err
		}
	}
	return http.NewResponseController(x.w).Flush()
}

// finish ends the exchange after next has returned err.
func (x *recorder) finish(err error) error {
	q := x.q
	if err != nil {
		if x.isWrite {
			x.tell()
			return err
		}
		if x.status != 0 || x.stale == nil || !x.instead(x.stale, 0) {
			return err
		}
		x.setAside()
		x.mode = swallowed
	} else if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	switch x.mode {
	case swallowed:
		x.fallBack()
		return nil
	case confirmed:
		return x.confirm()
	case holding:
		let := x.tagged
		if x.isWrite {
			let = x.letGo
		}
		if err := let(); err != nil {
			return nil // the client is gone
		}
	}
	if q.r.Method == http.MethodHead && x.stale != nil {
		x.compare()
	}
	if x.pending == nil {
		return nil
	}
	if x.declared >= 0 && x.n != x.declared && !bodyless(x.status) || x.declared < 0 && q.r.Context().Err() != nil {
		return nil // not complete: end tells those who wait
	}
	e, body := x.pending, x.buf
	switch {
	case x.renewed: // whole, as declared is its length
		x.commit(e)
		return nil
	case x.same && x.n == int64(len(x.stale.body)):
		body = x.stale.body
	case x.same:
		body = bytes.Clone(x.stale.body[:x.n])
	case cap(body)-len(body) > len(body)/8+64:
		body = bytes.Clone(body)
	}
	e.seal(x.block, q.t.URI, q.host, x.owner, body)
	if len(body) > 0 && len(x.buf) > 0 && &body[0] == &x.buf[0] {
		x.buf = nil // it is the store's now
	}
	x.commit(e)
	return nil
}

// commit puts e into the store, unless a write came in between.
func (x *recorder) commit(e *entry) {
	c := x.q.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= x.reserved
	x.reserved = 0
	r := useless
	if x.f.doomed {
		r = failed
	} else {
		e.unasked = x.unasked(e)
		if x.stale != nil {
			c.drop(x.stale)
		}
		if c.add(e, x.q.r.Header) {
			c.stats.Stores++
			c.noted(e, true)
			r = stored
			x.f.answer = e
		}
	}
	c.arrive(x.f, r)
}

// tagged gives a held answer its ETag and answers.
func (x *recorder) tagged() error {
	q := x.q
	if x.declared >= 0 && x.n != x.declared {
		return x.letGo() // not complete: the server sees to it
	}
	h := x.Header()
	tag := makeTag(h, x.buf)
	h["Etag"] = []string{tag}
	h["Content-Length"] = []string{strconv.Itoa(len(x.buf))}
	x.declared = int64(len(x.buf))
	if !httpcache.MatchesTag(q.r.Header["If-None-Match"], tag, true) {
		return x.letGo()
	}
	x.q.c.mu.Lock()
	x.q.c.stats.Tagged++
	x.q.c.stats.Saved += uint64(len(x.buf))
	x.q.c.mu.Unlock()
	x.decides = true
	held := x.buf
	x.release()
	if x.mode == muted {
		return nil
	}
	_, err := x.w.Write(held)
	return err
}

// fallBack answers with the stale answer in place of a failure.
func (x *recorder) fallBack() {
	q, e := x.q, x.stale
	c := q.c
	c.mu.Lock()
	c.stats.Hits++
	c.stats.Stale++
	c.stats.Saved += uint64(len(e.body))
	c.mu.Unlock()
	age := max(0, c.now()-e.born)
	left := strconv.FormatInt(int64((e.lifetime-age)/time.Second), 10)
	q.send(e, c.conf.Name+"; fwd=stale; ttl="+left+"; detail=stale-if-error", strconv.FormatInt(int64(age/time.Second), 10), true)
}

// confirm answers after a 304 that was meant for us (RFC 9111 §4.3.4).
func (x *recorder) confirm() error {
	q, c, old := x.q, x.q.c, x.stale
	if tag := x.own["Etag"]; len(tag) > 0 && old.flags&hasTag != 0 && !httpcache.MatchesTag(tag, old.value("Etag"), true) {
		// It is about another state than the one we have.
		c.mu.Lock()
		c.drop(old)
		c.noted(old, false)
		c.arrive(x.f, failed)
		f := c.depart(c.siteOf(q.t.Space), &q.t, q.host, false)
		c.mu.Unlock()
		x.f = nil
		return q.fetch(nil, f)
	}
	merged := old.header()
	if old.flags&told != 0 {
		delete(merged, "Cdn-Cache-Control") // it was ours, and may not hold with what the 304 says
	}
	a := httpcache.Judge(http.StatusNotModified, x.own, c.conf.Targeted...)
	httpcache.Freshen(merged, &a)
	if age := x.own["Age"]; len(age) > 0 {
		merged["Age"] = age // for assess; it is not stored
	}
	if len(x.own["Date"]) == 0 {
		delete(merged, "Date") // that was of the old answer
	}
	x.declared = int64(len(old.body))
	e := x.assess(merged, int(old.status))
	keep := e != nil
	if !keep {
		// It may not be stored any more, but it may be used now.
		e = &entry{site: old.site, status: old.status, born: c.now()}
		x.block, _ = e.pack(merged, a.Omitted())
	}
	if old.owners > 0 {
		x.owner = old.principal() // the body was made for its owner, whatever the fields say now
	}
	e.seal(x.block, q.t.URI, q.host, x.owner, old.body)
	c.mu.Lock()
	e.hits = old.hits
	c.stats.Validated++
	c.stats.Saved += uint64(len(old.body))
	if !keep {
		c.drop(old)
		c.noted(old, false)
		c.arrive(x.f, useless)
	} else {
		x.expect(e)
	}
	c.mu.Unlock()
	if keep {
		x.commit(e)
	}
	x.f = nil
	h := q.w.Header()
	for _, name := range [...]string{"Set-Cookie", tether.HeaderID, tether.HeaderSequenceID} {
		if v := x.own[name]; len(v) > 0 {
			h[name] = v
		}
	}
	status := c.words.freshening[0]
	if inner := x.own["Cache-Status"]; len(inner) > 0 {
		status = strings.Join(inner, ", ") + ", " + status
	}
	q.send(e, status, strconv.FormatInt(int64(max(0, c.now()-e.born)/time.Second), 10), false)
	return nil
}

// compare looks at the answer to a HEAD beside what is stored (RFC 9111 §4.3.5): the same
// state is fresh again, another one is gone.
func (x *recorder) compare() {
	c, old, h := x.q.c, x.stale, x.w.Header()
	if x.status != http.StatusOK || old.status != http.StatusOK {
		return
	}
	same := true
	for _, name := range [...]string{"Etag", "Last-Modified", "Content-Length"} {
		if v := h[name]; len(v) > 0 && v[0] != old.value(name) {
			same = false
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !same {
		c.drop(old)
		c.noted(old, false)
	}
}
