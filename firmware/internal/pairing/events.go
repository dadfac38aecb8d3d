package pairing

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// SecurityEvent is something that concerns who controls the device (TRUST 5.10).
type SecurityEvent struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"`            // one of the Event constants, or a word of the caller of Record
	Client string    `json:"client,omitempty"` // ID of the client it is about
	From   string    `json:"from,omitempty"`   // source address without port
	Detail string    `json:"detail,omitempty"` // for people; no secrets
}

// Events of this package.
const (
	EventPaired       = "client_paired"
	EventRefused      = "pair_refused"
	EventBadToken     = "bad_token"
	EventRevoked      = "client_revoked"
	EventChanged      = "client_changed"
	EventWindowOpened = "window_opened"
	EventWindowClosed = "window_closed"
	EventInvited      = "invitation_made"
)

// Bounds of the events.
const (
	maxEvents  = 64
	maxStrange = 16 // of those that strangers can cause at will; the rest of the ring is safe from them

	maxDetail = 200 // bytes
)

// strange reports whether anybody in the LAN can cause such events without end.
func strange(event string) bool { return event == EventBadToken || event == EventRefused }

// entry is an event in the ring and its number in the store.
type entry struct {
	SecurityEvent
	seq   uint64
	saved bool
}

// ring holds the newest events, oldest first. It is copied by who changes it.
type ring struct {
	entries []entry
	next    uint64   // number of the next event
	dropped []uint64 // saved events that are to be deleted from the store
}

// with returns the ring with one more event.
func (g ring) with(e SecurityEvent) ring {
	e.Detail = e.Detail[:min(len(e.Detail), maxDetail)]
	e.Detail = strings.ToValidUTF8(e.Detail, "")
	g.entries, g.dropped = slices.Clone(g.entries), slices.Clone(g.dropped)
	oldest, n := -1, 0
	for i := range g.entries {
		if strange(g.entries[i].Event) {
			if n++; oldest < 0 {
				oldest = i
			}
		}
	}
	switch {
	case strange(e.Event) && n >= maxStrange:
		g.drop(oldest)
	case len(g.entries) >= maxEvents:
		g.drop(0)
	}
	g.entries = append(g.entries, entry{SecurityEvent: e, seq: g.next})
	g.next++
	return g
}

func (g *ring) drop(i int) {
	if g.entries[i].saved {
		g.dropped = append(g.dropped, g.entries[i].seq)
	}
	g.entries = slices.Delete(g.entries, i, i+1)
}

// changes adds to the store's changes what it does not have yet.
func (g ring) changes(generation uint32, to map[string][]byte) {
	for _, seq := range g.dropped {
		to[seqKey(seq)] = nil
	}
	for _, e := range g.entries {
		if !e.saved {
			to[seqKey(e.seq)] = mustJSON(storedEvent{generation, e.SecurityEvent})
		}
	}
}

// saved returns the ring after its changes are in the store.
func (g ring) asSaved() ring {
	g.entries, g.dropped = slices.Clone(g.entries), nil
	for i := range g.entries {
		g.entries[i].saved = true
	}
	return g
}

// unsaved reports whether the store lacks something, and whether that should not wait for long.
func (g ring) unsaved() (any, soon bool) {
	any = len(g.dropped) > 0
	for _, e := range g.entries {
		if !e.saved {
			any = true
			soon = soon || !strange(e.Event)
		}
	}
	return any, soon
}

// storedEvent is an event in the store, as JSON.
type storedEvent struct {
	Generation uint32 `json:"gen"`
	SecurityEvent
}

// seqKey sorts as the numbers do.
func seqKey(seq uint64) string { return fmt.Sprintf("%s%016x", eventKey, seq) }

// loadEvents takes the events out of the store's values; stale are the keys of those that are not of this generation.
func loadEvents(values map[string][]byte, generation uint32) (g ring, stale []string) {
	g.next = 1
	for _, k := range slices.Sorted(maps.Keys(values)) {
		hex, ok := strings.CutPrefix(k, eventKey)
		if !ok {
			continue
		}
		var s storedEvent
		seq, err := strconv.ParseUint(hex, 16, 64)
		if err != nil || seqKey(seq) != k || json.Unmarshal(values[k], &s) != nil || s.Generation != generation {
			stale = append(stale, k)
			continue
		}
		g.entries = append(g.entries, entry{SecurityEvent: s.SecurityEvent, seq: seq, saved: true})
		g.next = max(g.next, seq+1)
	}
	for len(g.entries) > maxEvents {
		g.drop(0)
	}
	return g, stale
}

// commit writes changes, these events and whatever else the store lacks in one transaction. On an error the store and
// the events are as before; sync asks for flash, and if that refuses, undo is written. p.mu is held.
func (p *Pairing) commit(changes map[string][]byte, sync bool, undo map[string][]byte, events ...SecurityEvent) error {
	now := p.cfg.Now()
	next := p.events
	for i := range events {
		events[i].Time = now.UTC().Truncate(time.Second)
		next = next.with(events[i])
	}
	all := map[string][]byte{}
	lasts := map[*record]int64{}
	for _, r := range *p.clients.Load() {
		if last := r.last.Load(); last != r.savedLast {
			all[clientKey+r.ID] = r.encode(p.cfg.Generation)
			lasts[r] = last
		}
	}
	next.changes(p.cfg.Generation, all)
	for id := range p.deletes {
		all[clientKey+id] = nil
	}
	maps.Copy(all, changes)
	if len(all) == 0 {
		return nil
	}
	if err := p.cfg.Store.Change(all); err != nil {
		p.storeFailed(err)
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	if sync && p.cfg.Sync != nil {
		if err := p.cfg.Sync(); err != nil {
			p.storeFailed(err)
			back := maps.Clone(undo)
			if back == nil {
				back = map[string][]byte{}
			}
			for _, e := range next.entries {
				if e.seq >= p.events.next {
					back[seqKey(e.seq)] = nil
				}
			}
			if len(back) > 0 {
				if err := p.cfg.Store.Change(back); err != nil {
					p.log.Warn("take back a change that did not reach the flash", "err", err)
				}
			}
			return fmt.Errorf("%w: %w", ErrStore, err)
		}
	}
	if p.failing {
		p.failing = false
		p.log.Info("pairings can be stored again")
	}
	for r, last := range lasts {
		r.savedLast = last
	}
	clear(p.deletes)
	p.events = next.asSaved()
	p.flushed = now
	for _, e := range events {
		p.tell(e)
	}
	return nil
}

func (p *Pairing) storeFailed(err error) {
	if !p.failing {
		p.failing = true
		p.log.Warn("store pairings", "err", err)
	}
}

// record adds an event; it reaches the store with the next change, or with the next flush of Run. p.mu is held.
func (p *Pairing) record(e SecurityEvent) {
	e.Time = p.cfg.Now().UTC().Truncate(time.Second)
	p.events = p.events.with(e)
	p.tell(e)
}

// tell reports an event once p.mu is free. p.mu is held.
func (p *Pairing) tell(e SecurityEvent) {
	if p.cfg.OnEvent != nil {
		p.later = append(p.later, func() { p.cfg.OnEvent(e) })
	}
}
