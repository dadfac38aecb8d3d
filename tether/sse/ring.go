package sse

import "sync"

// Ring is a Log in memory that drops its oldest events when it is full. An empty Ring costs
// little; it grows with what it holds. It is safe for concurrent use.
type Ring struct {
	maxEvents int
	maxBytes  int

	mu      sync.Mutex // guards what follows
	evs     []Event    // oldest first
	first   uint64     // position of evs[0]
	lastID  string     // of the newest event appended, also after it was dropped
	bytes   int
	dropped uint64
	changed chan struct{} // nil: nobody waits
}

// eventOverhead is what an Event is counted with besides its texts, in bytes.
const eventOverhead = 64

// NewRing returns a Ring that holds at most maxEvents events and about maxBytes bytes of them
// (ids, names and data, and a little for each event). The newest event is kept even if it alone is larger.
func NewRing(maxEvents, maxBytes int) *Ring {
	return &Ring{maxEvents: max(maxEvents, 1), maxBytes: maxBytes}
}

// Append adds e, which must not be changed any more, and wakes the listeners.
func (r *Ring) Append(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes += size(e)
	drop := 0
	for drop < len(r.evs) && (len(r.evs)-drop >= r.maxEvents || r.bytes > r.maxBytes) {
		r.bytes -= size(r.evs[drop])
		r.evs[drop] = Event{} // let the collector have it although the array lives on
		drop++
	}
	// Slicing off the front and appending lets append copy only now and then.
	r.evs = append(r.evs[drop:], e)
	r.first += uint64(drop)
	r.dropped += uint64(drop)
	r.lastID = e.ID
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Dropped counts the events that had to go so far.
func (r *Ring) Dropped() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

// Len is how many events are kept now.
func (r *Ring) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.evs)
}

// Seek is of Log.
func (r *Ring) Seek(id string) (pos uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.first + uint64(len(r.evs))
	if id == "" || id == r.lastID {
		return end, true
	}
	for i := len(r.evs) - 1; i >= 0; i-- {
		if r.evs[i].ID == id {
			return r.first + uint64(i) + 1, true
		}
	}
	return 0, false
}

// End is of Ender.
func (r *Ring) End() (id string, pos uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastID, r.first + uint64(len(r.evs))
}

// Read is of Log.
func (r *Ring) Read(dst []Event, pos uint64, max int) (evs []Event, next uint64, lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pos < r.first {
		pos, lost = r.first, true
	}
	at := min(pos-r.first, uint64(len(r.evs)))
	n := min(uint64(max), uint64(len(r.evs))-at)
	return append(dst, r.evs[at:at+n]...), r.first + at + n, lost
}

// Changed is of Log.
func (r *Ring) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

func size(e Event) int { return len(e.ID) + len(e.Name) + len(e.Data) + eventOverhead }
