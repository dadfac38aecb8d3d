package notify

import (
	"fmt"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// Bounds and times of the way into the journal.
const (
	queueLength  = 2                    // batches between readers and collector
	commitWait   = 5 * time.Millisecond // for more to come, so that they share one sync of the disk
	commitLines  = 1024                 // a commit begins when so many have come; a batch more may be in it
	commitBytes  = 256 << 10            // or so many bytes
	ackWait      = 10 * time.Second     // an acknowledgement waits so long for an append to go with
	commitRetry  = time.Second          // after a commit that failed, doubled up to
	commitSlowly = 8 * time.Second
	// DrainTime is how long the end of Run may take for what was written before.
	DrainTime = 2 * time.Second
)

// entry is an event on its way into the journal.
type entry struct {
	Event
	done chan<- result
}

// pending is what waits for the next commit.
type pending struct {
	entries []entry
	bytes   int
}

func (p *pending) take(b batch) {
	for _, d := range b.data {
		p.entries = append(p.entries, entry{Event{Time: b.time, Topic: b.topic, Data: d}, b.done})
		p.bytes += len(d)
	}
}

func (p *pending) full() bool { return len(p.entries) >= commitLines || p.bytes >= commitBytes }

func (p *pending) clear() {
	clear(p.entries)
	p.entries, p.bytes = p.entries[:0], 0
}

// collect is the only writer of the journal: many lines share one transaction and its sync. When stop is closed,
// which is after the last reader, it takes what is left and ends.
func (n *Notifier) collect(stop <-chan struct{}) {
	var p pending
	var failing time.Time // when commits began to fail
	retry := commitRetry
	for {
		ended := n.gather(&p, stop)
		err := n.commit(p.entries)
		switch {
		case err == nil:
			p.clear()
			failing, retry = time.Time{}, commitRetry
		case ended:
			n.giveUp(&p, len(p.entries))
		default:
			if failing.IsZero() {
				failing = time.Now()
			}
			n.hold(&p, failing, retry, stop)
			retry = min(2*retry, commitSlowly)
			n.tellAcked() // if that was what could not be written
		}
		if ended {
			return
		}
	}
}

// gather waits for something to commit, and then a little for more. It reports whether stop was closed; p has all there was then.
func (n *Notifier) gather(p *pending, stop <-chan struct{}) (ended bool) {
	var ackDue <-chan time.Time
	for first := len(p.entries) == 0; first; {
		select {
		case b := <-n.queue:
			p.take(b)
			first = false
		case <-n.acked:
			if ackDue == nil {
				ackDue = time.After(ackWait)
			}
		case <-ackDue:
			return false
		case <-stop:
			first = false
		}
	}
	more := time.After(commitWait)
	for !p.full() && !ended && more != nil {
		select {
		case b := <-n.queue:
			p.take(b)
		case <-more:
			more = nil
		case <-stop:
			ended = true
		}
	}
	select {
	case <-stop:
	default:
		return false
	}
	for {
		select {
		case b := <-n.queue:
			p.take(b)
		default:
			return true
		}
	}
}

// hold waits before the next try. For StallLimit nothing is read, so writers wait; then the oldest of what waits goes, so
// that they need not.
func (n *Notifier) hold(p *pending, failing time.Time, d time.Duration, stop <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	stall := time.NewTimer(time.Until(failing.Add(StallLimit)))
	defer stall.Stop()
	var queue <-chan batch
	for {
		select {
		case b := <-queue:
			p.take(b)
			over := 0
			for bytes := p.bytes; over < len(p.entries) && (len(p.entries)-over > commitLines || bytes > commitBytes); over++ {
				bytes -= len(p.entries[over].Data)
			}
			n.giveUp(p, over)
		case <-stall.C:
			queue = n.queue
		case <-t.C:
			return
		case <-stop:
			return
		}
	}
}

// giveUp drops the oldest k of p.
func (n *Notifier) giveUp(p *pending, k int) {
	if k == 0 {
		return
	}
	for _, e := range p.entries[:k] {
		p.bytes -= len(e.Data)
		if e.done != nil {
			e.done <- result{err: ErrShed}
		}
	}
	left := copy(p.entries, p.entries[k:])
	clear(p.entries[left:])
	p.entries = p.entries[:left]
	if n.shed.Add(uint64(k)) == uint64(k) {
		n.log.Error("notifications are given up, the journal cannot be written")
	}
}

// commit puts entries and the acknowledgement into the journal in one transaction, and only then shows them.
func (n *Notifier) commit(entries []entry) error {
	n.mu.Lock()
	id := tether.EventID{Epoch: n.epoch, Seq: n.appended() + 1}
	mark, kept := n.mark, n.st.Mark
	n.mu.Unlock()
	if len(entries) == 0 && mark == kept {
		return nil
	}
	recs := make([][]byte, len(entries))
	for i := range entries {
		entries[i].ID = tether.EventID{Epoch: id.Epoch, Seq: id.Seq + uint64(i)}
		recs[i] = encode(entries[i].Event)
	}
	st, err := n.journal.Append(recs, mark)
	if err != nil {
		n.writeErrors.Add(1)
		n.note("journal", err)
		return fmt.Errorf("journal notifications: %w", err)
	}
	n.note("journal", nil)
	n.mu.Lock()
	dropped := st.DroppedPending - n.st.DroppedPending
	n.st = st
	if k := uint64(len(entries)); k > 0 {
		n.spans = n.spans.add(id, st.Next-k, k)
		close(n.changed)
		n.changed = make(chan struct{})
	}
	n.spans = n.spans.drop(st.First)
	n.mu.Unlock()
	if dropped > 0 && dropped == st.DroppedPending {
		n.log.Warn("the journal is full: the oldest notifications go before the relay has them", "dropped", dropped)
	}
	for _, e := range entries {
		if e.done != nil {
			e.done <- result{id: e.ID}
		}
	}
	return nil
}
