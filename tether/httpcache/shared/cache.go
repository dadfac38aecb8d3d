package shared

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// Cache is made by New. It is safe for concurrent use.
type Cache struct {
	conf  Config
	base  time.Time // what now counts from; its monotonic part does not jump
	words words

	mu        sync.Mutex // guards the fields below, and what they lead to
	sites     map[string]*site
	spare     *site              // the last that was forgotten, if nothing was ever stored in it
	flights   map[string]*flight // empty, for the next space that needs one
	lru       entry              // head of the list: older is the most recent, newer the oldest
	used      int64              // bytes
	count     int
	evictions uint64
	stats     Stats

	passes []pass                         // by hash; who comes later takes the place
	ends   map[*flight]context.CancelFunc // of validations in the background
	closed bool

	wg    sync.WaitGroup // for validations in the background
	locks pathLocks
}

// words are the values of Cache-Status that do not change.
type words struct {
	hit                                                    string
	miss, missStored, stale, staleStored, pass, freshening []string
}

// New makes a cache. It starts nothing; Close ends what requests started.
func New(conf Config) (*Cache, error) {
	if err := conf.Validate(); err != nil {
		return nil, err
	}
	conf.fill()
	n := conf.Name
	c := &Cache{conf: conf, base: time.Now(), sites: map[string]*site{}, ends: map[*flight]context.CancelFunc{},
		words: words{
			hit:  n + "; hit; ttl=",
			miss: []string{n + "; fwd=uri-miss"}, missStored: []string{n + "; fwd=uri-miss; stored"},
			stale: []string{n + "; fwd=stale"}, staleStored: []string{n + "; fwd=stale; stored"},
			pass: []string{n + "; fwd=request"}, freshening: []string{n + "; fwd=stale; fwd-status=304"},
		}}
	c.lru.newer, c.lru.older = &c.lru, &c.lru
	part := min(passBytes, c.conf.MaxBytes/passPart)
	c.passes = make([]pass, max(1, part/int64(unsafe.Sizeof(pass{}))))
	c.conf.MaxBytes -= part
	return c, nil
}

// Close ends validations in the background and waits for them. The cache may still be
// used; it then starts none.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	for _, end := range c.ends {
		end()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

func (c *Cache) now() time.Duration { return time.Since(c.base) }

// Target is what a request is for.
type Target struct {
	Space     string // keeps what must not mix apart: at the relay the device
	URI       string // path and query in origin-form, as the origin will see it
	Principal string // who asks, if known: a name, and behind a NUL what else tells it apart; see httpcache.Asker
}

// Handler puts the cache in front of next, in the space "". principal, if not nil, names
// who asks; empty is nobody in particular.
func (c *Cache) Handler(next http.Handler, principal func(*http.Request) string) http.Handler {
	call := func(w http.ResponseWriter, r *http.Request) error {
		next.ServeHTTP(w, r)
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := Target{URI: r.RequestURI}
		if t.URI == "" || t.URI[0] != '/' {
			t.URI = r.URL.RequestURI()
		}
		if principal != nil {
			t.Principal = principal(r)
		}
		_ = c.Serve(w, r, t, call)
	})
}

// Serve answers r from the store, or through next. The error is next's: nothing was
// written then.
//
// With Config.Preconditions, a write whose If-Match names only ETags made here, or that
// has If-Unmodified-Since and no If-Match, is preceded by a GET of the same target with the
// same fields, and refused with 412 unless that finds the state the client means. No other
// write to the same path passes in between. All other preconditions go to the origin as
// they are.
func (c *Cache) Serve(w http.ResponseWriter, r *http.Request, t Target, next Next) error {
	switch {
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
	case httpcache.Safe(r.Method):
		return next(w, r)
	default:
		return c.write(w, r, t, next)
	}
	h := r.Header
	if len(h["Upgrade"]) > 0 || len(h["If-Match"]) > 0 || len(h["If-Unmodified-Since"]) > 0 || r.ContentLength != 0 ||
		wantsEvents(h["Accept"]) || !httpcache.Plain(t.URI) {
		return next(w, r)
	}
	t.Principal = identity(t.Principal, h)
	q := query{c: c, w: w, r: r, t: t, next: next, host: r.Host}
	if len(c.conf.Rules) > 0 {
		q.rule = httpcache.FindRule(c.conf.Rules, httpcache.Path(t.URI))
		if q.rule != nil && q.rule.Never {
			if c.conf.Announce {
				w.Header()["Cdn-Cache-Control"] = []string{"no-store"}
			}
			return next(w, r)
		}
	}
	if lines := h["Cache-Control"]; len(lines) > 0 {
		q.control = httpcache.ParseCacheControl(lines)
	} else if lines := h["Pragma"]; len(lines) > 0 && httpcache.PragmaNoCache(lines) {
		q.control.Flags = httpcache.NoCache // RFC 9111 §5.4
	}
	return q.run()
}

// identity is a principal together with the credentials that it shows to the origin: whoever
// has two accounts there is two. What is nobody's stays nobody's.
func identity(principal string, h http.Header) string {
	if principal == "" || len(h["Authorization"]) == 0 && len(h["Cookie"]) == 0 {
		return principal
	}
	var buf [256]byte // for usual tokens
	sum := sha256.Sum256(httpcache.AppendVaryKey(buf[:0], credentials, h))
	return principal + separator + string(sum[:identityBytes])
}

// separator ends a principal's name where something follows.
const separator = "\x00"

// identityBytes of a SHA-256 tell credentials apart.
const identityBytes = 16

var credentials = []string{"Authorization", "Cookie"}

// wantsEvents reports whether a client asks for an event stream, which has no end.
func wantsEvents(accept []string) bool {
	return len(accept) == 1 && strings.HasPrefix(accept[0], eventStream)
}

// query is one GET or HEAD.
type query struct {
	c       *Cache
	w       http.ResponseWriter
	r       *http.Request
	t       Target
	next    Next
	host    string
	rule    *httpcache.Rule // nil: none
	control httpcache.Directives
}

// trust is what Config.Fresh says of a space.
type trust uint8

const (
	unasked trust = iota
	trusted
	distrusted
)

// maxJoins is how often a request waits for another one that then fails.
const maxJoins = 3

func (q *query) run() error {
	c := q.c
	if q.control.Has(httpcache.NoStore) {
		return q.fetch(nil, nil)
	}
	word := unasked
	if c.conf.Fresh == nil {
		word = trusted
	}
	var got *entry // what was waited for, since then
	var since time.Duration
	for tries := 0; ; tries++ {
		c.mu.Lock()
		s := c.siteOf(q.t.Space)
		now := c.now()
		e := s.find(&q.t, q.host, q.r.Header)
		how, f := mustAsk, (*flight)(nil)
		switch {
		case e == nil || word == distrusted:
		case e == got && since < e.born+e.lifetime+e.while():
			how = asFresh // it was when it was asked for
		default:
			how = q.usable(e, now)
		}
		patient := how == mustAsk && q.patient() && !c.alone(&q.t, now)
		if patient && word != distrusted && tries < maxJoins && !q.control.Has(httpcache.OnlyIfCached) {
			f = s.joinable(&q.t, q.host, e != nil && e.owners == 0 || q.rule != nil && q.rule.Public, now)
		}
		if word == unasked && (how != mustAsk || f != nil) {
			// There is something to be had without asking the origin, if that may be. To find out
			// can take time: what is there is looked up anew then.
			c.tidy(s)
			c.mu.Unlock()
			if word = distrusted; c.conf.Fresh(q.r.Context(), q.t.Space) {
				word = trusted
			}
			tries--
			continue
		}
		if how != mustAsk {
			c.use(e)
			c.count1(e, how, tries > 0)
			if how == whileAsking {
				q.refresh(s, e)
			}
			c.mu.Unlock()
			q.answer(e, now, tries > 0)
			return nil
		}
		if q.control.Has(httpcache.OnlyIfCached) {
			c.tidy(s)
			c.mu.Unlock()
			q.refuse(http.StatusGatewayTimeout)
			return nil
		}
		if f != nil {
			if f.done == nil {
				f.done = make(chan struct{})
			}
			done := f.done
			c.mu.Unlock()
			since = now
			switch q.wait(f, done) {
			case stored:
				got = f.answer
			case useless, flying:
				tries = maxJoins
			case aged: // the next one may be younger
				tries = max(tries, maxJoins-2)
			}
			continue
		}
		if q.r.Method == http.MethodGet {
			// The answer to a question about a part, or about the client's own state, is of no use to others.
			narrow := len(q.r.Header["Range"]) > 0 || httpcache.Conditional(q.r.Header)
			f = c.depart(s, &q.t, q.host, patient && (!narrow || e != nil && e.canValidate() && e.unasked == 0))
		} else {
			c.tidy(s)
		}
		c.mu.Unlock()
		return q.fetch(e, f)
	}
}

// patient reports whether the answer to an earlier request will do.
func (q *query) patient() bool {
	return q.control.Flags&(httpcache.NoCache|httpcache.HasMaxAge|httpcache.HasMinFresh|httpcache.NoStore) == 0
}

// wait waits until a flight is over. The result is flying when that took too long.
func (q *query) wait(f *flight, done chan struct{}) result {
	timer := time.NewTimer(q.c.conf.CollapseWait)
	defer timer.Stop()
	select {
	case <-done:
		q.c.mu.Lock()
		defer q.c.mu.Unlock()
		return f.result
	case <-timer.C:
		return flying
	case <-q.r.Context().Done():
		panic(http.ErrAbortHandler) // the client is gone, nobody reads an answer
	}
}

// use says how a stored answer may be used for a request.
type use uint8

const (
	mustAsk     use = iota
	asFresh         // §4.2
	asStale         // the client takes it (§5.2.1.2)
	whileAsking     // RFC 5861 §3
)

func (q *query) usable(e *entry, now time.Duration) use {
	c := &q.control
	if c.Has(httpcache.NoCache) || e.flags&askFirst != 0 {
		return mustAsk
	}
	age := now - e.born
	if c.Has(httpcache.HasMaxAge) && age > time.Duration(c.MaxAge)*time.Second {
		return mustAsk
	}
	left := e.lifetime - age
	if c.Has(httpcache.HasMinFresh) {
		if left < time.Duration(c.MinFresh)*time.Second {
			return mustAsk
		}
	}
	switch {
	case left > 0:
		return asFresh
	case e.flags&neverStale != 0:
		return mustAsk
	case c.Has(httpcache.HasMaxStale) && (c.MaxStale == httpcache.MaxDelta || -left <= time.Duration(c.MaxStale)*time.Second):
		return asStale
	case -left < e.while() && !c.Has(httpcache.HasMaxAge):
		return whileAsking
	}
	return mustAsk
}

// count1 counts a hit.
func (c *Cache) count1(e *entry, how use, waited bool) {
	e.hits++
	c.stats.Hits++
	c.stats.Saved += uint64(len(e.body))
	if how != asFresh {
		c.stats.Stale++
	}
	if waited {
		c.stats.Collapsed++
	}
}

// answer answers from the store.
func (q *query) answer(e *entry, now time.Duration, waited bool) {
	age := max(0, now-e.born)
	var buf [160]byte
	b := append(buf[:0], q.c.words.hit...)
	b = strconv.AppendInt(b, int64((e.lifetime-age)/time.Second), 10)
	if waited {
		b = append(b, "; collapsed"...)
	}
	n := len(b)
	b = strconv.AppendInt(b, int64(age/time.Second), 10)
	if q.sendLines(e, b[:n], b[n:]) {
		return
	}
	text := string(b) // both values in one allocation
	q.send(e, text[:n], text[n:], true)
}

// lineWriter is the ResponseWriter of tether/http1, which takes fields as they go over the wire.
type lineWriter interface {
	OpenHead(status int, length int64, dated bool) ([]byte, bool)
	CloseHead([]byte)
}

// sendLines is send for most answers, without a map of the fields in between. false: nothing was
// done, this one needs more.
func (q *query) sendLines(e *entry, status, age []byte) bool {
	w, ok := q.w.(lineWriter)
	h := q.r.Header
	if !ok || e.flags&asLines == 0 || len(h["Range"]) > 0 || httpcache.Conditional(h) || len(h[tether.HeaderSequenceID]) > 0 {
		return false
	}
	length := int64(len(e.body))
	if bodyless(int(e.status)) {
		length = -1
	}
	b, ok := w.OpenHead(int(e.status), length, true)
	if !ok {
		return false
	}
	for block := e.block(); block != ""; {
		var name, value string
		name, value, block = cutField(block)
		b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
	}
	b = append(append(append(b, "Cache-Status: "...), status...), "\r\nAge: "...)
	b = append(append(b, age...), "\r\n"...)
	if q.c.conf.Stamp != nil {
		name, value := q.c.conf.Stamp(q.r)
		b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
	}
	w.CloseHead(b)
	if q.r.Method != http.MethodHead && len(e.body) > 0 {
		_, _ = q.w.Write(e.body)
	}
	return true
}

// send writes a stored answer as the request wants it: 200, 206, 304, 416.
func (q *query) send(e *entry, status, age string, stamp bool) {
	h := q.w.Header()
	code, body := int(e.status), e.body
	reqh := q.r.Header
	short := false // only what a 304 has
	part := ""
	if e.status == http.StatusOK {
		if httpcache.Conditional(reqh) && httpcache.NotModified(reqh, e.validators(), time.Now()) {
			code, short = http.StatusNotModified, true
		} else if lines := reqh["Range"]; len(lines) > 0 && q.r.Method == http.MethodGet && httpcache.IfRange(reqh, e.validators(), time.Now()) {
			size := int64(len(body))
			switch start, end, kind := httpcache.ParseRange(lines, size); kind {
			case httpcache.Part:
				code, body = http.StatusPartialContent, body[start:end]
				part = "bytes " + strconv.FormatInt(start, 10) + "-" + strconv.FormatInt(end-1, 10) + "/" + strconv.FormatInt(size, 10)
			case httpcache.Unsatisfiable:
				code, body = http.StatusRequestedRangeNotSatisfiable, nil
				part = "bytes */" + strconv.FormatInt(size, 10)
			}
		}
	}
	values := make([]string, int(e.fields)+2)
	i, last := 0, ""
	for b := e.block(); b != ""; i++ {
		var name, value string
		name, value, b = cutField(b)
		if short && describesBody(name) {
			continue
		}
		values[i] = value
		if name == last {
			h[name] = append(h[name], value)
		} else {
			h[name] = values[i : i+1 : i+1]
		}
		last = name
	}
	values[i], values[i+1] = status, age
	h["Cache-Status"] = values[i : i+1 : i+1]
	h["Age"] = values[i+1 : i+2 : i+2]
	if e.flags&hasType == 0 {
		h["Content-Type"] = nil // the server is not to guess
	}
	if part != "" {
		h["Content-Range"] = []string{part}
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	if v := reqh[tether.HeaderSequenceID]; len(v) > 0 {
		h[tether.HeaderSequenceID] = v
	}
	if stamp && q.c.conf.Stamp != nil {
		name, value := q.c.conf.Stamp(q.r)
		h[name] = []string{value}
	}
	q.w.WriteHeader(code)
	if !short && q.r.Method != http.MethodHead && len(body) > 0 {
		_, _ = q.w.Write(body)
	}
}

// describesBody reports whether a 304 leaves a field out (RFC 9110 §15.4.5).
func describesBody(name string) bool {
	switch name {
	case "Content-Length", "Content-Type", "Content-Encoding", "Content-Language", "Content-Range":
		return true
	}
	return false
}

// refuse answers in place of the origin.
func (q *query) refuse(status int) { refuse(q.c, q.w, q.r, status) }

func refuse(c *Cache, w http.ResponseWriter, r *http.Request, status int) {
	h := w.Header()
	text := strings.ToLower(http.StatusText(status))
	body := `{"error":` + strconv.Itoa(status) + `,"message":"` + text + `"}` + "\n"
	h["Content-Type"] = []string{"application/json"}
	h["Cache-Control"] = []string{"no-store"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if c.conf.Stamp != nil {
		name, value := c.conf.Stamp(r)
		h[name] = []string{value}
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(body))
	}
}
