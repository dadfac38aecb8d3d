package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/cache"
	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// CachePath lists what the cache holds (GET), and empties it (DELETE).
const CachePath = tether.OwnPrefix + "v1/cache"

// Bounds of Config.Cache, in bytes.
const (
	MinCache = 64 << 10
	MaxCache = 1 << 30
)

// openCache makes the cache that stands between who may come in and the maker's service, on
// every way in.
func (g *Gateway) openCache() (err error) {
	c := cache.Config{Off: g.cfg.Cache < 0, Rules: g.cfg.CacheRules, Stamp: g.proxy.Stamp, Changed: g.changed, Logger: g.log}
	if !c.Off {
		c.MaxBytes = g.cfg.Cache
		if g.cfg.CacheFlash {
			c.Bucket = g.store.Bucket("cache")
		}
	}
	g.cache, err = cache.New(c)
	return err
}

// invalidator carries word of writes to the relay's copies, as *uplink.Uplink does: Invalidate
// returns when no relay gives out anything older for the targets any more (SPEC.md §4.12); no
// targets are all of the device's.
type invalidator interface {
	Invalidate(ctx context.Context, uris []string) error
}

// changed tells the relay what a write has made stale, before the write's answer is there; it
// takes 4 s at most. A client that goes away meanwhile does not end the wait: the write was
// done, and who else sees its effect must not see the old state again.
func (g *Gateway) changed(ctx context.Context, uris []string, everything bool) {
	if g.relay == nil {
		return
	}
	if everything {
		uris = nil
	}
	if err := g.relay.Invalidate(context.WithoutCancel(ctx), uris); err != nil {
		g.log.Info("the relay was not told of a write in time", "err", err)
	}
}

// holder is the principal of those who are known by nothing but their credentials for the
// maker's service, by which the cache then tells them apart. No client's ID looks so.
const holder = "~"

// principal names who asks for the service: the paired client, or the holder of credentials.
// The address of a client is no name: several share one, and it changes hands.
func principal(r *http.Request) string {
	if c, ok := pairing.ClientOf(r.Context()); ok {
		return c.ID
	}
	if len(r.Header["Authorization"]) > 0 || len(r.Header["Cookie"]) > 0 {
		return holder
	}
	return ""
}

// service is the way of requests to the maker's service: over the LAN or the tether.
func (g *Gateway) service(c admit.Class) http.Handler {
	h := g.cache.Handler(g.proxy.For(c), principal)
	if c != admit.LAN {
		return h
	}
	return g.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		delete(r.Header, tether.HeaderID) // only a relay gives exchanges their ID
		h.ServeHTTP(w, r)
	}))
}

// CacheList is the answer of CachePath.
type CacheList struct {
	CacheStatus
	Kept []CacheEntry `json:"kept"` // the most recently used first
}

// CacheEntry is one stored answer.
type CacheEntry struct {
	Path   string   `json:"path"` // with the query
	Host   string   `json:"host"`
	For    string   `json:"for"`              // "everybody", "client", or "credentials": who shows the same
	Client string   `json:"client,omitempty"` // its ID
	Name   string   `json:"name,omitempty"`   // of the client
	Status int      `json:"status"`
	Body   int      `json:"body_bytes"`
	Bytes  int64    `json:"bytes"` // with all that belongs to it
	Age    float64  `json:"age"`   // seconds
	Fresh  float64  `json:"fresh"` // for so many seconds more; negative: stale
	Hits   uint32   `json:"hits"`
	ETag   string   `json:"etag,omitempty"`
	Vary   []string `json:"vary,omitempty"`
}

// CacheStatus counts what the cache did since the start.
type CacheStatus struct {
	State       string `json:"state"` // "on" or "off"
	Entries     int    `json:"entries"`
	Bytes       int64  `json:"bytes"`
	Limit       int64  `json:"limit"`
	Hits        uint64 `json:"hits"`      // answered without the service
	Stale       uint64 `json:"stale"`     // of those, with a stale answer
	Collapsed   uint64 `json:"collapsed"` // of those, with the answer to another request that was under way
	Validations uint64 `json:"validations"`
	Misses      uint64 `json:"misses"`
	NotModified uint64 `json:"not_modified"`        // 304 by an ETag that the gateway made
	Refused     uint64 `json:"preconditions_false"` // writes answered 412
	Invalidated uint64 `json:"invalidated"`         // answers removed because of writes
	Evicted     uint64 `json:"evicted"`             // answers removed for want of room
	Saved       uint64 `json:"bytes_saved"`         // of bodies that the service or the network did not have to carry
}

func (g *Gateway) cacheStatus() CacheStatus {
	if g.cfg.Cache < 0 {
		return CacheStatus{State: "off"}
	}
	s := g.cache.Stats()
	return CacheStatus{State: "on", Entries: s.Entries, Bytes: s.Bytes, Limit: g.cfg.Cache, Hits: s.Hits, Stale: s.Stale, Collapsed: s.Collapsed,
		Validations: s.Validated, Misses: s.Misses, NotModified: s.Tagged, Refused: s.Refused, Invalidated: s.Invalidated,
		Evicted: s.Evictions, Saved: s.Saved}
}

// How many entries are listed: a list of all takes more memory than a small board likes.
const (
	listedEntries = 200
	mostListed    = cache.DefaultEntries
)

// serveCache shows what is stored, or removes it: GET with ?limit=, DELETE with ?path=, which
// may end in "*". It tells what people asked for, so it is for owners.
func (g *Gateway) serveCache(w http.ResponseWriter, r *http.Request) {
	if !method(w, r, http.MethodGet, http.MethodHead, http.MethodDelete) {
		return
	}
	if c, ok := pairing.ClientOf(r.Context()); !pairing.IsLocal(r) && !pairing.IsRemote(r) && (!ok || c.Role != pairing.Owner) {
		writeError(w, http.StatusForbidden, "only an owner looks into the cache")
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	q := r.URL.Query()
	if r.Method == http.MethodDelete {
		n, err := g.PurgeCache(r.Context(), q.Get("path"))
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		writeJSON(w, http.StatusOK, struct {
			Removed int `json:"removed"`
		}{n})
		return
	}
	limit := listedEntries
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > mostListed {
			writeError(w, http.StatusBadRequest, fmt.Sprintf("limit is %.20q, want 0 to %d", text, mostListed))
			return
		}
		limit = n
	}
	names := map[string]string{}
	for _, c := range g.pairing.Clients() {
		names[c.ID] = c.Name
	}
	list := CacheList{CacheStatus: g.cacheStatus(), Kept: []CacheEntry{}}
	for _, e := range g.cache.Entries(limit) {
		x := CacheEntry{Path: e.URI, Host: e.Host, For: "everybody", Status: e.Status, Body: e.Body, Bytes: e.Cost,
			Age: seconds(e.Age), Fresh: seconds(e.Fresh), Hits: e.Hits, ETag: e.ETag, Vary: e.Vary}
		switch e.Principal {
		case "":
		case holder:
			x.For = "credentials"
		default:
			x.For, x.Client, x.Name = "client", e.Principal, names[e.Principal]
		}
		list.Kept = append(list.Kept, x)
	}
	writeJSON(w, http.StatusOK, list)
}

// seconds are those of d, to a tenth.
func seconds(d time.Duration) float64 { return float64(d/(100*time.Millisecond)) / 10 }

// PurgeCache removes the stored answers for a path with any query, or for all that begins so
// if it ends in "*", here and at the relay; "" is everything. It returns how many there were
// here. The error says what is wrong with the path.
func (g *Gateway) PurgeCache(ctx context.Context, path string) (n int, err error) {
	var uris []string
	switch {
	case path == "" || path == "*" || path == "/*":
		n = g.cache.PurgeAll()
	case path[0] != '/':
		return 0, errors.New("a path begins with /")
	case path[len(path)-1] == '*':
		n = g.cache.InvalidatePrefix(path[:len(path)-1])
	case !httpcache.Plain(path):
		return 0, errors.New("a path in this form is never stored")
	default:
		n = g.cache.Invalidate(path)
		uris = []string{path}
	}
	g.changed(ctx, uris, uris == nil)
	return n, nil
}
