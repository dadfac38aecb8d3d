package cache

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
)

// Bounds of what is kept over a restart: flash wears out.
const (
	// KeepFrom is how long an answer must still be fresh to be worth a write.
	KeepFrom = 10 * time.Minute
	// KeepEvery is the shortest time between two transactions that keep answers, and
	// keepAtOnce how many one of them keeps at most.
	KeepEvery  = 5 * time.Minute
	keepAtOnce = 16
	// KeepMax bounds all that is kept, keepEach one answer, in bytes.
	KeepMax  = 1 << 20
	keepEach = 16 << 10
	// keepMost bounds the number of those that are kept, and keepWaiting the bytes of those that
	// wait for the next transaction: both take memory besides the cache's own.
	keepMost    = 256
	keepWaiting = 64 << 10
)

// Bucket is durable storage of small values by name, such as package store's. Change sets
// several at once, all or none, and nil deletes; it is durable when it returns.
type Bucket interface {
	All() (map[string][]byte, error)
	Change(values map[string][]byte) error
}

// tier keeps long-lived answers in a Bucket. What is noted waits in memory for the next
// transaction. Forgetting is never put off: each deletion takes away what an earlier
// transaction has kept, so there are no more of them than of those.
type tier struct {
	bucket Bucket
	log    *slog.Logger

	io chan struct{} // full during a transaction; taken before mu

	mu      sync.Mutex // guards the fields below
	pending map[string]note
	kept    map[string]item // by key; also what is being written now
	bytes   int             // of kept
}

type note struct {
	uri string
	s   *shared.Snapshot // nil: what is kept does not hold any more
}

type item struct {
	uri  string
	size int
}

func newTier(b Bucket, log *slog.Logger) *tier {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &tier{bucket: b, log: log, io: make(chan struct{}, 1), pending: map[string]note{}, kept: map[string]item{}}
}

// keyOf names an answer in the bucket.
func keyOf(host, uri string) string {
	sum := sha256.Sum256([]byte(host + "\x00" + uri))
	return base64.RawURLEncoding.EncodeToString(sum[:18])
}

// load gives the cache what was kept, and deletes what is of no use. Without a right clock
// nothing is used and nothing deleted.
func (t *tier) load(c *shared.Cache) {
	all, err := t.bucket.All()
	if err != nil {
		t.log.Warn("load kept answers", "err", err)
		return
	}
	useless := map[string][]byte{}
	for key, data := range all {
		_, uri, err := c.Restore(space, data)
		switch {
		case errors.Is(err, shared.ErrSnapshot), err != nil && httpcache.ClockRight(time.Now()):
			useless[key] = nil
			continue
		}
		// Without a right clock it is not used, but a write must find it.
		t.kept[key] = item{strings.Clone(uri), len(data)} // not a part of an entry
		t.bytes += len(data)
	}
	if len(useless) > 0 {
		if err := t.bucket.Change(useless); err != nil {
			t.log.Warn("delete useless kept answers", "err", err)
		}
	}
}

// Note implements shared.Keeper.
func (t *tier) Note(host, uri string, s *shared.Snapshot) {
	if s != nil && s.Size() > keepEach {
		s = nil
	}
	key := keyOf(host, uri)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s != nil {
		bytes := s.Size()
		for k, n := range t.pending {
			if k != key && n.s != nil {
				bytes += n.s.Size()
			}
		}
		if bytes > keepWaiting {
			s = nil
		}
	}
	_, kept := t.kept[key]
	switch _, noted := t.pending[key]; {
	case s == nil && !kept:
		delete(t.pending, key)
	case noted || s == nil || len(t.pending) < keepAtOnce:
		t.pending[key] = note{uri, s}
	}
}

// Forget implements shared.Keeper.
func (t *tier) Forget(meant func(uri string) bool) {
	t.mu.Lock()
	for key, n := range t.pending {
		if meant(n.uri) {
			delete(t.pending, key)
		}
	}
	found := false
	for _, k := range t.kept {
		found = found || meant(k.uri)
	}
	t.mu.Unlock()
	if !found {
		return // nothing of it was ever written
	}
	t.io <- struct{}{}
	defer func() { <-t.io }()
	values := map[string][]byte{}
	t.mu.Lock()
	for key, k := range t.kept {
		if meant(k.uri) {
			values[key] = nil
		}
	}
	t.mu.Unlock()
	if err := t.bucket.Change(values); err != nil {
		t.log.Error("delete kept answers after a write", "err", err) // tried again by the next write to it
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range values {
		t.bytes -= t.kept[key].size
		delete(t.kept, key)
	}
}

// run keeps what was noted, from time to time and at the end.
func (t *tier) run(ctx context.Context) {
	tick := time.NewTicker(KeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.flush()
		case <-ctx.Done():
			t.flush()
			return
		}
	}
}

// flush writes what was noted in one transaction.
func (t *tier) flush() {
	t.io <- struct{}{}
	defer func() { <-t.io }()
	t.mu.Lock()
	values := map[string][]byte{}
	before := map[string]item{}
	for key, n := range t.pending {
		had, kept := t.kept[key]
		if n.s == nil {
			values[key] = nil
			continue
		}
		data := n.s.Append(nil)
		if t.bytes-had.size+len(data) > KeepMax || !kept && len(t.kept) >= keepMost {
			if kept {
				values[key] = nil // what is there is old
			}
			continue
		}
		before[key] = had
		values[key] = data
		t.bytes += len(data) - had.size
		t.kept[key] = item{n.uri, len(data)} // a write that comes now must find it
	}
	clear(t.pending)
	t.mu.Unlock()
	if len(values) == 0 {
		return
	}
	err := t.bucket.Change(values)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		// All as before; what was noted is lost, and the next answer is noted again.
		t.log.Warn("keep answers", "err", err)
		for key, had := range before {
			t.bytes -= t.kept[key].size - had.size
			if had.uri == "" {
				delete(t.kept, key)
			} else {
				t.kept[key] = had
			}
		}
		return
	}
	for key, data := range values {
		if data == nil {
			t.bytes -= t.kept[key].size
			delete(t.kept, key)
		}
	}
}
