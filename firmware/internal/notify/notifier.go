package notify

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/cloudrest/cloudrest/firmware/internal/store"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// pendingBytes is how much one step of Pending reads from the journal.
const pendingBytes = 256 << 10

// journalName is the journal's name in the store.
const journalName = "notifications"

// Notifier is the notifier of one device. It is safe for concurrent use.
type Notifier struct {
	cfg     Config
	log     *slog.Logger
	journal *store.Journal
	epoch   uint64
	start   uint64 // position at which this epoch begins

	lookEvery time.Duration // the constant, or less in tests

	queue chan batch    // from the readers to the collector; see queueLength
	acked chan struct{} // holds a token when there is an acknowledgement to keep
	runs  sync.Mutex    // held by Run

	mu      sync.Mutex  // guards what follows
	st      store.State // of the journal, as far as others may see it
	spans   spans
	mark    uint64        // acknowledged up to this position; st.Mark is what the journal has of it
	changed chan struct{} // closed at the next append
	trouble map[string]string

	shed, cut, repaired, writeErrors, unreadable atomic.Uint64
	connections                                  atomic.Int64
}

// batch is some events that came together: lines of one read, or one event of Post.
type batch struct {
	time  time.Time
	topic string
	data  [][]byte
	done  chan<- result // nil for lines
}

type result struct {
	id  tether.EventID
	err error
}

// New opens the journal of c.Store. It starts nothing; Run does.
func New(c Config) (*Notifier, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	n := &Notifier{cfg: c, log: c.Logger, lookEvery: lookEvery, queue: make(chan batch, queueLength), acked: make(chan struct{}, 1),
		changed: make(chan struct{}), trouble: map[string]string{}}
	var err error
	if n.journal, err = c.Store.Journal(journalName, store.Limits{Entries: c.Entries, Bytes: c.Bytes}); err != nil {
		return nil, fmt.Errorf("open notifications: %w", err)
	}
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("read notifications: %w", err)
	}
	for n.epoch == 0 || n.hasEpoch(n.epoch) {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails, it says
		n.epoch = binary.BigEndian.Uint64(b[:])
	}
	return n, nil
}

// load finds out what earlier starts left.
func (n *Notifier) load() error {
	n.st = n.journal.State()
	n.start, n.mark = n.st.Next, n.st.Mark
	const atOnce = 64
	for pos := n.st.First; pos < n.st.Next; {
		recs, next, _, err := n.journal.Read(nil, pos, atOnce, atOnce*store.MaxRecord)
		if err != nil {
			return err
		}
		for _, r := range recs {
			e, err := decode(r.Data)
			if err != nil {
				n.unreadable.Add(1)
				continue
			}
			n.spans = n.spans.add(e.ID, r.Pos, 1)
		}
		pos = next
	}
	if k := n.unreadable.Load(); k > 0 {
		n.log.Warn("entries of the journal cannot be read", "count", k)
	}
	return nil
}

func (n *Notifier) hasEpoch(epoch uint64) bool {
	for _, s := range n.spans {
		if s.epoch == epoch {
			return true
		}
	}
	return false
}

// Epoch is the random number of this start.
func (n *Notifier) Epoch() uint64 { return n.epoch }

func (n *Notifier) epochText() string {
	text, _, _ := strings.Cut(tether.EventID{Epoch: n.epoch}.String(), "-")
	return text
}

// Changed returns a channel that is closed at the next append after this call.
func (n *Notifier) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Pending appends to dst the oldest unacknowledged events that follow after, at most max. If after is
// zero, or not in the journal any more, it begins with the oldest. The data is the caller's.
func (n *Notifier) Pending(dst []Event, after tether.EventID, max int) ([]Event, error) {
	n.mu.Lock()
	pos := n.mark
	if p, ok := n.spans.after(after); ok && p > pos {
		pos = p
	}
	if pos < n.st.First {
		pos = n.st.First
	}
	n.mu.Unlock()
	for max > 0 {
		recs, next, _, err := n.journal.Read(nil, pos, max, pendingBytes)
		if err != nil {
			return dst, fmt.Errorf("read notifications: %w", err)
		}
		if len(recs) == 0 {
			break
		}
		for _, r := range recs {
			if e, err := decode(r.Data); err == nil {
				dst = append(dst, e)
				max--
			}
		}
		pos = next
	}
	return dst, nil
}

// Ack says that the relay has the event and all that were sent before it; they are kept for listeners until the
// journal is full. An id that is not in the journal any more changes nothing; one that was not given out yet
// is ErrUnknownEvent. It does not wait for the disk: after a crash the relay may get an event again,
// under the same id.
func (n *Notifier) Ack(id tether.EventID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	pos, ok := n.spans.after(id)
	if !ok {
		if id.Epoch == n.epoch && id.Seq > n.appended() {
			return fmt.Errorf("%w: %s", ErrUnknownEvent, id)
		}
		return nil
	}
	if pos > n.mark {
		n.mark = pos
		n.tellAcked()
	}
	return nil
}

// tellAcked makes the collector look at the mark in a while.
func (n *Notifier) tellAcked() {
	select {
	case n.acked <- struct{}{}:
	default:
	}
}

// FirstUnacked is the id of the oldest event that is not acknowledged; if all are, of the next one to come.
func (n *Notifier) FirstUnacked() (tether.EventID, error) {
	evs, err := n.Pending(nil, tether.EventID{}, 1)
	if err != nil || len(evs) > 0 {
		if err != nil {
			return tether.EventID{}, err
		}
		return evs[0].ID, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return tether.EventID{Epoch: n.epoch, Seq: n.appended() + 1}, nil
}

// appended is the last sequence number of this epoch; n.mu is held.
func (n *Notifier) appended() uint64 {
	if i := len(n.spans) - 1; i >= 0 && n.spans[i].epoch == n.epoch {
		return n.spans[i].last().Seq
	}
	return 0
}

// Post makes an event from within the process and returns its id once it is in the journal. Topic is at most
// MaxTopic bytes without control characters, and not the one that listeners know as "reset"; data is
// at most MaxData bytes of UTF-8; it must not be changed any more. Errors: ErrInvalid; ErrShed; the cause of
// ctx, and then the event may still become a notification. It waits while Run is not running.
func (n *Notifier) Post(ctx context.Context, topic string, data []byte) (tether.EventID, error) {
	control := strings.ContainsFunc(topic, func(r rune) bool { return r < ' ' || r == 0x7f })
	if len(topic) > MaxTopic || !utf8.ValidString(topic) || control || topic == sse.ResetName {
		return tether.EventID{}, fmt.Errorf("%w: topic %.40q", ErrInvalid, topic)
	}
	if len(data) > MaxData || !utf8.Valid(data) {
		return tether.EventID{}, fmt.Errorf("%w: %d bytes of data, at most %d of UTF-8 are allowed", ErrInvalid, len(data), MaxData)
	}
	done := make(chan result, 1)
	select {
	case n.queue <- batch{time.Now(), topic, [][]byte{data}, done}:
	case <-ctx.Done():
		return tether.EventID{}, fmt.Errorf("post notification: %w", context.Cause(ctx))
	}
	select {
	case r := <-done:
		return r.id, r.err
	case <-ctx.Done():
		return tether.EventID{}, fmt.Errorf("wait for the journal: %w", context.Cause(ctx))
	}
}

// Run reads the pipe and the socket and keeps the journal until ctx is done. What was written before is
// read and journalled then, within DrainTime, and Run returns nil. A pipe or socket that cannot be had is logged, shown in
// Stats and tried for again: it does not end Run. It may be called again once it has returned.
func (n *Notifier) Run(ctx context.Context) error {
	if !n.runs.TryLock() {
		return errors.New("notify: Run is running")
	}
	defer n.runs.Unlock()
	// What readers have read they may still hand over for a while after ctx.
	hand, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	defer context.AfterFunc(ctx, func() {
		t := time.NewTimer(DrainTime)
		defer t.Stop()
		select {
		case <-t.C:
			giveUp()
		case <-hand.Done():
		}
	})()

	var readers, collector sync.WaitGroup
	stop := make(chan struct{})
	collector.Go(func() { n.collect(stop) })
	if n.cfg.FIFO != "" {
		readers.Go(func() { n.keepUp(ctx, "pipe", func() error { return n.fifo(ctx, hand) }) })
	}
	if n.cfg.Socket != "" {
		readers.Go(func() { n.keepUp(ctx, "socket", func() error { return n.socket(ctx, hand) }) })
	}
	<-ctx.Done()
	readers.Wait()
	close(stop)
	collector.Wait()
	return nil
}

// How long a pipe or socket that failed is left alone.
const (
	retryFirst = 5 * time.Second
	retryMost  = time.Minute
)

// keepUp runs one way in again and again until ctx is done.
func (n *Notifier) keepUp(ctx context.Context, name string, run func() error) {
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		began := time.Now()
		err := run()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMost {
			wait = retryFirst
		}
		if errors.Is(err, errReplaced) {
			wait = 0
		}
		n.note(name, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// note logs the start, the change and the end of a trouble, for Stats as well.
func (n *Notifier) note(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	n.mu.Lock()
	before := n.trouble[what]
	n.trouble[what] = text
	n.mu.Unlock()
	switch {
	case text == before:
	case text == "":
		n.log.Info("notifications: it works again", "part", what)
	default:
		n.log.Warn("notifications: a part fails", "part", what, "err", text)
	}
}

// noteRead logs that the journal could not be read for a listener.
func (n *Notifier) noteRead(err error) { n.note("reading", err) }

// Stats is for the status page and metrics.
func (n *Notifier) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Stats{
		Durability: n.cfg.Store.Status().Durability,
		Epoch:      n.epoch, Appended: n.appended(),
		Entries: n.st.Entries, Bytes: n.st.Bytes, Unacked: n.st.Next - min(n.st.Next, max(n.mark, n.st.First)),
		Dropped: n.st.Dropped, DroppedUnacked: n.st.DroppedPending,
		Shed: n.shed.Load(), CutLines: n.cut.Load(), RepairedLines: n.repaired.Load(),
		WriteErrors: n.writeErrors.Load(), Unreadable: n.unreadable.Load(), Connections: int(n.connections.Load()),
		FIFO: n.trouble["pipe"], Socket: n.trouble["socket"], Journal: n.trouble["journal"],
	}
}
