package notify

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// A record of the journal: version u8, epoch u64, seq u64, time in ms u64, topic str8, data; big-endian.
const (
	recordVersion = 1
	recordHead    = 1 + 3*8 + 1
)

var errRecord = errors.New("not a record of the notifier")

func encode(e Event) []byte {
	b := make([]byte, 0, recordHead+len(e.Topic)+len(e.Data))
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint64(b, e.ID.Epoch)
	b = binary.BigEndian.AppendUint64(b, e.ID.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time.UnixMilli()))
	b = append(b, byte(len(e.Topic)))
	b = append(b, e.Topic...)
	return append(b, e.Data...)
}

// decode reads what encode wrote; the data is part of b.
func decode(b []byte) (Event, error) {
	if len(b) < recordHead || b[0] != recordVersion {
		return Event{}, errRecord
	}
	topic := int(b[recordHead-1])
	if len(b) < recordHead+topic {
		return Event{}, errRecord
	}
	e := Event{
		ID:    tether.EventID{Epoch: binary.BigEndian.Uint64(b[1:]), Seq: binary.BigEndian.Uint64(b[9:])},
		Time:  time.UnixMilli(int64(binary.BigEndian.Uint64(b[17:]))),
		Topic: string(b[recordHead : recordHead+topic]),
		Data:  b[recordHead+topic:],
	}
	if e.ID.Epoch == 0 || e.ID.Seq == 0 {
		return Event{}, errRecord
	}
	return e, nil
}

// span is a run of entries of one epoch: seq and position grow together. There is one span for each
// daemon start that left entries, so ids are found without a search in the journal.
type span struct {
	epoch    uint64
	seq, pos uint64 // of the first
	n        uint64
}

func (s span) last() tether.EventID { return tether.EventID{Epoch: s.epoch, Seq: s.seq + s.n - 1} }
func (s span) end() uint64          { return s.pos + s.n }

// spans is all of them in the order of positions.
type spans []span

// add notes that n entries from id on lie at pos.
func (s spans) add(id tether.EventID, pos, n uint64) spans {
	if i := len(s) - 1; i >= 0 && s[i].epoch == id.Epoch && s[i].seq+s[i].n == id.Seq && s[i].end() == pos {
		s[i].n += n
		return s
	}
	return append(s, span{id.Epoch, id.Seq, pos, n})
}

// drop forgets spans that lie wholly before first. One that ends there stays: who has seen its last event has missed nothing.
func (s spans) drop(first uint64) spans {
	for len(s) > 1 && s[0].end() < first {
		s = s[1:]
	}
	return s
}

// after returns the position after the event with that id.
func (s spans) after(id tether.EventID) (pos uint64, ok bool) {
	for _, p := range s {
		if p.epoch == id.Epoch && id.Seq >= p.seq && id.Seq-p.seq < p.n {
			return p.pos + id.Seq - p.seq + 1, true
		}
	}
	return 0, false
}

// listenerBytes is how much one Read for a listener gets at once, so that a stream stays
// small in memory.
const listenerBytes = 64 << 10

// eventLog is the notifier's journal as sse wants it.
type eventLog struct{ n *Notifier }

// startSuffix makes the id of "before the first event of this epoch", which a listener
// gets that comes before there is any event.
const startSuffix = "-0"

// Seek is of sse.Log.
func (l eventLog) Seek(text string) (pos uint64, ok bool) {
	n := l.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if text == "" {
		return n.st.Next, true
	}
	if epoch, found := strings.CutSuffix(text, startSuffix); found && epoch == n.epochText() {
		return n.start, n.start >= n.st.First
	}
	id, err := tether.ParseEventID(text)
	if err != nil {
		return 0, false
	}
	pos, ok = n.spans.after(id)
	return pos, ok && pos >= n.st.First
}

// End is of sse.Ender.
func (l eventLog) End() (id string, pos uint64) {
	n := l.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := len(n.spans) - 1; i >= 0 {
		return n.spans[i].last().String(), n.st.Next
	}
	return n.epochText() + startSuffix, n.st.Next
}

// Read is of sse.Log.
func (l eventLog) Read(dst []sse.Event, pos uint64, max int) (evs []sse.Event, next uint64, lost bool) {
	recs, next, lost, err := l.n.journal.Read(nil, pos, max, listenerBytes)
	if err != nil {
		l.n.noteRead(err)
		return dst, pos, false
	}
	for _, r := range recs {
		if e, err := decode(r.Data); err == nil { // else it was counted at the start
			dst = append(dst, sse.Event{ID: e.ID.String(), Name: e.Topic, Data: e.Data})
		}
	}
	return dst, next, lost
}

// Changed is of sse.Log.
func (l eventLog) Changed() <-chan struct{} { return l.n.Changed() }

// Log is the journal for listeners on the LAN, the entries of earlier starts included.
func (n *Notifier) Log() sse.Log { return eventLog{n} }
