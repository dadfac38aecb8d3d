package shared

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// write passes an unsafe request on, and makes stale what it changes.
func (c *Cache) write(w http.ResponseWriter, r *http.Request, t Target, next Next) error {
	t.Principal = identity(t.Principal, r.Header)
	q := &query{c: c, w: w, r: r, t: t, next: next, host: r.Host}
	if v := r.Header["Cache-Control"]; len(v) > 0 {
		q.control = httpcache.ParseCacheControl(v)
	}
	q.rule = httpcache.FindRule(c.conf.Rules, httpcache.Path(t.URI))
	if c.conf.Preconditions {
		unlock, refused, err := q.precondition()
		if err != nil || refused {
			return err
		}
		defer unlock()
	}
	x := recorders.Get().(*recorder)
	*x = recorder{query: *q, w: w, isWrite: true, sent: c.now(), spare: x.spare}
	x.q = &x.query
	if r.Method == http.MethodPost && (q.rule == nil || !q.rule.Never) && q.control.Flags == 0 && httpcache.Plain(t.URI) {
		// The answer may be stored, unless another write overtakes it on its way.
		c.mu.Lock()
		x.f = c.depart(c.siteOf(t.Space), &q.t, q.host, false)
		x.f.doomed = true // until it is known what it is
		c.mu.Unlock()
	}
	defer func() {
		if x.mode == holding { // a panic: what is there of the answer goes before the connection ends
			_ = x.letGo()
		}
		x.tell()
		x.end()
	}()
	return x.finish(next(x, q.r))
}

// wrote makes stale what a write has changed, before its answer is released.
func (q *query) wrote(x *recorder, status int, h http.Header) {
	alone := false // the write changed nothing but its target
	if httpcache.Changes(status) {
		alone = q.drops(h)
	}
	if x.f == nil {
		return
	}
	c := q.c
	c.mu.Lock()
	defer c.mu.Unlock()
	// RFC 9110 §9.3.3: the answer to a POST may be what a GET would give. It has doomed itself once.
	if alone && status == http.StatusOK && len(h["Content-Location"]) == 1 && x.f.writes == 1 {
		x.f.doomed = false
		return
	}
	c.arrive(x.f, useless)
	x.f = nil
}

// drops makes stale what a write with this answer has changed, here and where Changed tells of
// it; alone means that this is its target and nothing else.
func (q *query) drops(h http.Header) (alone bool) {
	c := q.c
	uris, everything := httpcache.Invalidates(q.r.Host, q.t.URI, h), false
	for _, u := range uris {
		everything = everything || !httpcache.Plain(u)
	}
	if everything {
		c.InvalidatePrefix(q.t.Space, "")
	} else {
		c.Invalidate(q.t.Space, uris...)
	}
	if c.conf.Changed != nil {
		c.conf.Changed(q.r.Context(), q.t.Space, uris, everything)
	}
	return !everything && len(uris) == 1
}

// refresh validates e in the background (RFC 5861 §3), if nobody does and there is room.
// Cache.mu is held.
func (q *query) refresh(s *site, e *entry) {
	c := q.c
	for f := s.flights[e.uri()]; f != nil; f = f.next {
		if f.host == e.host() && (e.owners == 0 || f.principal == e.principal()) && !f.doomed {
			return
		}
	}
	if c.closed || len(c.ends) >= c.conf.Background {
		return // a later request will
	}
	f := c.depart(s, &q.t, q.host, true)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.r.Context()), backgroundTime)
	r := q.r.Clone(ctx)
	r.Method, r.Body = http.MethodGet, http.NoBody
	for _, name := range [...]string{"If-None-Match", "If-Modified-Since", "Range", "If-Range"} {
		delete(r.Header, name)
	}
	own := &query{c: c, w: &sink{h: http.Header{}}, r: r, t: q.t, next: q.next, host: q.host, rule: q.rule}
	c.ends[f] = cancel
	c.wg.Go(func() {
		defer func() {
			if v := recover(); v != nil && v != http.ErrAbortHandler {
				panic(v)
			}
			cancel()
			c.mu.Lock()
			delete(c.ends, f)
			c.mu.Unlock()
		}()
		if err := own.fetch(e, f); err != nil {
			c.conf.Logger.Debug("validate in the background", "err", err)
		}
	})
}

// sink is the ResponseWriter of a request that no client waits for.
type sink struct{ h http.Header }

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) Flush()                      {}

// probe is the ResponseWriter of the GET before a write with a precondition.
type probe struct {
	sink
	most   int // bytes
	status int
	body   []byte
	over   bool
}

func (p *probe) WriteHeader(status int) {
	if p.status == 0 && status >= 200 {
		p.status = status
	}
}

func (p *probe) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	if len(p.body)+len(b) > p.most {
		p.over = true
	} else {
		p.body = append(p.body, b...)
	}
	return len(b), nil
}

func (p *probe) Flush() {}

// precondition checks the precondition of a write, if that is for us to do. unlock must be
// called after the write; refused means that the request was answered.
func (q *query) precondition() (unlock func(), refused bool, err error) {
	c, h := q.c, q.r.Header
	tags, since := h["If-Match"], h["If-Unmodified-Since"]
	ours := len(tags) > 0 && onlyMade(tags)
	dated := len(tags) == 0 && len(since) == 1
	var date time.Time
	if dated {
		date, dated = httpcache.ParseDate(since[0], time.Now()) // RFC 9110 §13.1.4: otherwise it is ignored
	}
	path := q.t.Space + "\x00" + httpcache.Path(q.t.URI)
	if !c.locks.lock(q.r.Context(), path, ours || dated) {
		panic(http.ErrAbortHandler) // the client is gone
	}
	free := func() { c.locks.unlock(path) }
	if !ours && !dated {
		return free, false, nil
	}
	passed := false
	defer func() {
		if !passed {
			free()
		}
	}()
	r := q.r.Clone(q.r.Context())
	r.Method, r.Body, r.ContentLength, r.TransferEncoding, r.Trailer = http.MethodGet, http.NoBody, 0, nil, nil
	for _, name := range [...]string{"If-Match", "If-Unmodified-Since", "If-None-Match", "If-Modified-Since", "Range", "If-Range", "Content-Type",
		"Content-Length", "Content-Encoding", "Expect", "Transfer-Encoding", "Trailer"} {
		delete(r.Header, name)
	}
	p := &probe{sink: sink{h: http.Header{}}, most: max(c.conf.TagMax, 1)}
	if err := q.next(p, r); err != nil {
		return nil, true, err
	}
	if p.status == 0 {
		p.status = http.StatusOK
	}
	holds := false
	switch {
	case p.status >= 500:
		refuse(c, q.w, q.r, p.status)
		return nil, true, nil
	case ours:
		holds = p.status == http.StatusOK && !p.over && len(p.h["Etag"]) == 0 && httpcache.MatchesTag(tags, makeTag(p.h, p.body), false)
	default:
		changed, known := time.Time{}, false
		if v := p.h["Last-Modified"]; len(v) == 1 {
			changed, known = httpcache.ParseDate(v[0], time.Now())
		}
		holds = !known || !changed.After(date) // without a date the origin may know better
	}
	if !holds {
		c.mu.Lock()
		c.stats.Refused++
		c.mu.Unlock()
		refuse(c, q.w, q.r, http.StatusPreconditionFailed)
		return nil, true, nil
	}
	if ours { // the origin would not know the tag
		r := q.r.WithContext(q.r.Context())
		r.Header = h.Clone()
		delete(r.Header, "If-Match")
		q.r = r
	}
	passed = true
	return free, false, nil
}

// onlyMade reports whether a list of tags has none but those made here.
func onlyMade(lines []string) bool {
	n := 0
	for _, l := range lines {
		for tag := range strings.SplitSeq(l, ",") { // ours have no comma
			tag = strings.Trim(tag, " \t")
			if tag == "" {
				continue
			}
			if n++; !strings.HasPrefix(tag, tagPrefix) {
				return false
			}
		}
	}
	return n > 0
}

// pathLocks lets writes with a checked precondition be alone at their path.
type pathLocks struct {
	mu sync.Mutex
	m  map[string]*pathLock // those in use
}

type pathLock struct {
	holders   int
	exclusive bool
	freed     chan struct{} // closed when the holders have changed
}

// lock waits for the path; false: ctx was done before.
func (l *pathLocks) lock(ctx context.Context, path string, exclusive bool) bool {
	for {
		l.mu.Lock()
		if l.m == nil {
			l.m = map[string]*pathLock{}
		}
		p := l.m[path]
		if p == nil {
			p = &pathLock{freed: make(chan struct{})}
			l.m[path] = p
		}
		if p.holders == 0 || !exclusive && !p.exclusive {
			p.holders++
			p.exclusive = exclusive
			l.mu.Unlock()
			return true
		}
		freed := p.freed
		l.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return false
		}
	}
}

func (l *pathLocks) unlock(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.m[path]
	if p.holders--; p.holders == 0 {
		close(p.freed)
		delete(l.m, path)
	}
}
