// Package cache is the gateway's cache (D7): it stands between the listeners and package
// proxy, so that a request answered from the store takes no place in the origin's queue. The
// rules are those of tether/httpcache, the store is tether/httpcache/shared in memory; this
// package adds the gateway's policy and reads the maker's rules.
//
// It leaves to others: who a client is, what an exchange is called, and to tell the relay of
// writes (Config).
package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether/httpcache"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
)

// Defaults and bounds of Config.
const (
	DefaultMaxBytes = 4 << 20
	DefaultMaxBody  = 256 << 10
	DefaultEntries  = 1024
	MaxRules        = 64
)

// Config describes a Cache. Zero values mean the defaults above.
type Config struct {
	MaxBytes   int64 // all memory, in bytes
	MaxBody    int64 // of one answer, in bytes
	MaxEntries int

	// Off keeps nothing and answers nothing: only Changed is told of writes.
	Off bool

	// Rules are the maker's, such as "/zones/* ttl=5s"; see httpcache.ParseRule. The first
	// that matches a path holds.
	Rules []string

	// Stamp gives the field that is added to an answer from the store, such as the exchange's ID;
	// see shared.Config. It may be nil.
	Stamp func(r *http.Request) (name, value string)
	// Changed is told of each write before its answer is released, when nothing older can be
	// had here any more; everything means that the targets are not known, and all of the
	// device's answers are meant. It may wait, in bounded time, and may be nil.
	Changed func(ctx context.Context, uris []string, everything bool)

	// Bucket keeps answers for everybody that stay fresh for KeepFrom over a restart, while Run
	// runs; nil: nothing does. Such an answer is used again only if the clock is right and no
	// write has come in between.
	Bucket Bucket

	Logger *slog.Logger
}

// Validate reports every mistake at once.
func (c *Config) Validate() error {
	_, err := c.rules()
	if c.MaxBytes < 0 || c.MaxBody < 0 || c.MaxEntries < 0 {
		err = errors.Join(err, errors.New("cache: a limit is negative"))
	}
	return err
}

func (c *Config) rules() (list []httpcache.Rule, err error) {
	if len(c.Rules) > MaxRules {
		return nil, fmt.Errorf("cache: %d rules, at most %d", len(c.Rules), MaxRules)
	}
	var errs []error
	for _, text := range c.Rules {
		r, err := httpcache.ParseRule(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("cache: %w", err))
		}
		list = append(list, r)
	}
	return list, errors.Join(errs...)
}

// Cache is made by New. It is safe for concurrent use.
type Cache struct {
	shared *shared.Cache
	tier   *tier // nil: none
}

// space is where the gateway keeps its answers: it has only one device.
const space = ""

// New makes a cache. It starts nothing; Close ends what requests started. In a build without the
// feature it keeps nothing, and Changed is told nothing.
func New(c Config) (*Cache, error) {
	if !features.Cache {
		return new(Cache), nil
	}
	rules, err := c.rules()
	if err = errors.Join(err, c.Validate()); err != nil {
		return nil, err
	}
	conf := shared.Gateway()
	conf.MaxBytes, conf.MaxBody, conf.MaxEntries = c.MaxBytes, c.MaxBody, c.MaxEntries
	if conf.MaxBytes == 0 {
		conf.MaxBytes = DefaultMaxBytes
	}
	if conf.MaxBody == 0 {
		conf.MaxBody = min(DefaultMaxBody, conf.MaxBytes)
	}
	if conf.MaxEntries == 0 {
		conf.MaxEntries = DefaultEntries
	}
	conf.Rules, conf.Stamp, conf.Logger = rules, c.Stamp, c.Logger
	if changed := c.Changed; changed != nil {
		conf.Changed = func(ctx context.Context, _ string, uris []string, everything bool) { changed(ctx, uris, everything) }
	}
	g := &Cache{}
	if c.Off {
		conf.Rules, conf.TagMax, conf.Preconditions, conf.Announce = []httpcache.Rule{{Pattern: "/*", Never: true}}, 0, false, false
	} else if c.Bucket != nil {
		g.tier = newTier(c.Bucket, c.Logger)
		conf.Keeper, conf.KeepFrom = g.tier, KeepFrom
	}
	if g.shared, err = shared.New(conf); err != nil {
		return nil, err
	}
	if g.tier != nil {
		g.tier.load(g.shared)
	}
	return g, nil
}

// Handler puts the cache in front of next. Each way in has a handler of its own on the same
// store. principal names who asks; it is called for each request, and may be nil: then
// nobody is known, and answers to requests with Authorization are kept only if the service
// says that they are for everybody.
func (g *Cache) Handler(next http.Handler, principal func(*http.Request) string) http.Handler {
	if !features.Cache {
		return next
	}
	return g.shared.Handler(next, principal)
}

// Run keeps answers in the Bucket until ctx is done, and then once more.
func (g *Cache) Run(ctx context.Context) error {
	if features.Cache && g.tier != nil {
		g.tier.run(ctx)
	}
	return nil
}

// Close ends validations in the background.
func (g *Cache) Close() error {
	if !features.Cache {
		return nil
	}
	return g.shared.Close()
}

// Invalidate makes what is stored for these targets stale, with any query: the service
// changed without a request, as a notification may say. It returns how many answers went.
func (g *Cache) Invalidate(uris ...string) int {
	if !features.Cache {
		return 0
	}
	return g.shared.Invalidate(space, uris...)
}

// InvalidatePrefix is Invalidate for every target that begins so.
func (g *Cache) InvalidatePrefix(prefix string) int {
	if !features.Cache {
		return 0
	}
	return g.shared.InvalidatePrefix(space, prefix)
}

// PurgePrincipal removes what is stored for a principal that is no more.
func (g *Cache) PurgePrincipal(name string) int {
	if !features.Cache {
		return 0
	}
	return g.shared.PurgePrincipal(space, name)
}

// PurgeAll removes everything.
func (g *Cache) PurgeAll() int {
	if !features.Cache {
		return 0
	}
	return g.shared.PurgeAll()
}

// Entries lists at most limit stored answers, the most recently used first.
func (g *Cache) Entries(limit int) []shared.Entry {
	if !features.Cache {
		return nil
	}
	return g.shared.Entries(space, limit)
}

// Stats returns the present numbers.
func (g *Cache) Stats() shared.Stats {
	if !features.Cache {
		return shared.Stats{}
	}
	return g.shared.Stats()
}
