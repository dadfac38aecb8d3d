package relay

import (
	"context"
	"fmt"

	"github.com/cloudrest/cloudrest/cloud/internal/devnode"
	"github.com/cloudrest/cloudrest/cloud/internal/front"
	"github.com/cloudrest/cloudrest/cloud/internal/respcache"
	"github.com/cloudrest/cloudrest/tether"
)

// coherence says which of the two things that keep stored answers right (SPEC.md §4.12) are
// off.
type coherence struct {
	noLease bool // stored answers are given out without one
	noDrops bool // INVALIDATE is acknowledged, and that is all
}

// openCache makes the cache, unless it is off.
func (r *Relay) openCache() (err error) {
	if r.cfg.Cache < 0 {
		return nil
	}
	c := respcache.Config{MaxBytes: r.cfg.Cache, Logger: r.log}
	if !r.cfg.coherence.noLease {
		// The node is made after the cache, and asked only while the relay runs.
		c.Fresh = func(ctx context.Context, id tether.DeviceID) bool { return r.node.Lease(ctx, id) }
	}
	if r.cache, err = respcache.New(c); err != nil {
		return fmt.Errorf("open the cache: %w", err)
	}
	return nil
}

// drops is what devices invalidate.
func (r *Relay) drops() devnode.Cache {
	switch {
	case r.cache == nil:
		return nil
	case r.cfg.coherence.noDrops:
		return nothing{}
	}
	return r.cache
}

// stored is what operators look at.
func (r *Relay) stored() front.Cache {
	if r.cache == nil {
		return nil
	}
	return r.cache
}

type nothing struct{}

func (nothing) Invalidate(tether.DeviceID, ...string) int    { return 0 }
func (nothing) InvalidatePrefix(tether.DeviceID, string) int { return 0 }
func (nothing) Devices() []tether.DeviceID                   { return nil }
