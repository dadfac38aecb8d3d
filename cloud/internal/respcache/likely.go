package respcache

import (
	"hash/maphash"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
)

// likely remembers, as well as 64 KB can, for which targets an answer was stored and until
// when that is fresh. Only for those is it worth a round trip to ask a device for its word
// that nothing has changed: a miss costs one in any case, and is not to cost two. It may be
// wrong either way, which costs time and nothing else.
type likely struct {
	base  time.Time
	until [8192]atomic.Int64 // nanoseconds after base, by the hash of the target
}

var seed = maphash.MakeSeed()

func (l *likely) slot(t shared.Target) *atomic.Int64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(t.Space)
	_, _ = h.WriteString(t.URI)
	return &l.until[h.Sum64()%uint64(len(l.until))]
}

func (l *likely) fresh(slot *atomic.Int64) bool { return slot.Load() > int64(time.Since(l.base)) }

// note looks at the head of an answer.
func (l *likely) note(slot *atomic.Int64, h http.Header, targeted []string) {
	status := h["Cache-Status"]
	if len(status) == 0 {
		return
	}
	switch last := status[len(status)-1]; {
	case strings.Contains(last, "; hit"):
	case strings.HasSuffix(last, "; stored") || strings.HasSuffix(last, "fwd-status=304"):
		a := httpcache.Judge(http.StatusOK, h, targeted...)
		now := time.Now()
		life, _ := a.Lifetime(now)
		slot.Store(int64(now.Sub(l.base) + life - a.Age(now, 0)))
	default:
		slot.Store(0)
	}
}
