// Package respcache is the relay's cache of devices' answers (C6): it stands between package
// front and whoever holds the tethers. The rules are those of tether/httpcache, the store is
// tether/httpcache/shared in memory; each device is a space of its own, and every answer is
// kept for the user of the relay that asked unless the device says that it is for everybody.
package respcache

import (
	"context"
	"log/slog"
	"net/http"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
)

// Config describes a Cache. Zero values mean the defaults of shared.Relay.
type Config struct {
	MaxBytes   int64 // all memory, in bytes
	MaxBody    int64 // of one answer, in bytes
	MaxEntries int

	// Fresh reports whether answers of a device may be given out without asking its service: its
	// tether is open, and it was heard of so recently that it cannot have given up telling us of a
	// write. It may ask the device's end for that, in bounded time, and is only called when
	// there is an answer. nil: always, which is right only where nobody writes on the LAN.
	Fresh func(context.Context, tether.DeviceID) bool

	Logger *slog.Logger
}

// Cache is made by New. It is safe for concurrent use.
type Cache struct{ shared *shared.Cache }

// New makes a cache. It starts nothing; Close ends what requests started.
func New(c Config) (*Cache, error) {
	conf := shared.Relay()
	for _, p := range []struct{ to, from *int64 }{{&conf.MaxBytes, &c.MaxBytes}, {&conf.MaxBody, &c.MaxBody}} {
		if *p.from != 0 {
			*p.to = *p.from
		}
	}
	if c.MaxEntries != 0 {
		conf.MaxEntries = c.MaxEntries
	}
	if fresh := c.Fresh; fresh != nil {
		conf.Fresh = func(ctx context.Context, space string) bool { return fresh(ctx, tether.DeviceID(space)) }
	}
	conf.Logger = c.Logger
	s, err := shared.New(conf)
	if err != nil {
		return nil, err
	}
	return &Cache{s}, nil
}

// Serve answers a request of a user for a device from the store, or through next. path is
// path and query as the device will see them; user must not be empty unless the relay does
// not know its users. The error is next's: nothing was written then. What the gateway serves
// itself, upgrades, and requests of nobody pass by.
func (c *Cache) Serve(w http.ResponseWriter, r *http.Request, id tether.DeviceID, path, user string, next func(http.ResponseWriter, *http.Request) error) error {
	if user == "" || strings.HasPrefix(path, tether.OwnPrefix) || len(r.Header["Upgrade"]) > 0 {
		return next(w, r)
	}
	return c.shared.Serve(w, r, shared.Target{Space: string(id), URI: path, Principal: user}, next)
}

// Invalidate makes what is stored for these targets of a device stale, with any query, and
// keeps answers that are on their way from being stored. When it returns, nothing older can
// be given out: only then may an INVALIDATE be acknowledged.
func (c *Cache) Invalidate(id tether.DeviceID, uris ...string) int {
	return c.shared.Invalidate(string(id), uris...)
}

// InvalidatePrefix is Invalidate for every target that begins so; "/" is all of a device, as
// after a gap in its invalidations.
func (c *Cache) InvalidatePrefix(id tether.DeviceID, prefix string) int {
	return c.shared.InvalidatePrefix(string(id), prefix)
}

// Purge removes what is stored for one target of a device, as an operator asks.
func (c *Cache) Purge(id tether.DeviceID, uri string) int { return c.shared.Purge(string(id), uri) }

// PurgeDevice removes everything of a device, as when it was deleted or changed hands.
func (c *Cache) PurgeDevice(id tether.DeviceID) int { return c.shared.PurgeSpace(string(id)) }

// Devices are those of which something is stored, or on its way.
func (c *Cache) Devices() []tether.DeviceID {
	spaces := c.shared.Spaces()
	list := make([]tether.DeviceID, len(spaces))
	for i, s := range spaces {
		list[i] = tether.DeviceID(s)
	}
	return list
}

// PurgeAll removes everything.
func (c *Cache) PurgeAll() int { return c.shared.PurgeAll() }

// Entries lists at most limit stored answers of a device, the most recently used first.
func (c *Cache) Entries(id tether.DeviceID, limit int) []shared.Entry {
	return c.shared.Entries(string(id), limit)
}

// Stats returns the present numbers, of all devices together.
func (c *Cache) Stats() shared.Stats { return c.shared.Stats() }

// Close ends validations in the background.
func (c *Cache) Close() error { return c.shared.Close() }
