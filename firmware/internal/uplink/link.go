package uplink

import (
	"context"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// maxInFlight is how many notifications may be sent and not acknowledged (SPEC.md §6).
const maxInFlight = 32

// link is one session with what the uplink knows of it.
type link struct {
	up      *Uplink
	url     *url.URL
	session Session
	id      string
	spread  time.Duration // over which to spread the next dial if this session is lost

	infoChanged <-chan struct{} // taken before the Info of the HELLO was read

	done uint64 // writes that the relay has confirmed; guarded by the ledger's mu

	mu     sync.Mutex
	acked  tether.EventID // last acknowledgement; guarded by mu
	ackNew bool           // acked was not looked at yet; guarded by mu
	goAway *frame.GoAway  // guarded by mu

	feeders sync.WaitGroup // they may hang in the session until it ends: wait for Done first

	ackSignal    chan struct{} // holds one; wakes the sender
	goAwaySignal chan struct{} // closed at the first GOAWAY
}

func newLink(u *Uplink, target *url.URL) *link {
	return &link{up: u, url: target, spread: defaultSpread, ackSignal: make(chan struct{}, 1), goAwaySignal: make(chan struct{})}
}

// hooks is what the handshake needs. The reader calls the functions: they only note and signal.
func (l *link) hooks() Hooks {
	h := Hooks{OnAck: l.onAck, OnGoAway: l.onGoAway, OnInvalidated: l.onInvalidated, link: l}
	cfg := &l.up.cfg
	if cfg.InfoChanged != nil {
		l.infoChanged = cfg.InfoChanged()
	}
	if cfg.Info != nil {
		h.Info = cfg.Info()
	}
	if cfg.Journal != nil {
		if evs, err := cfg.Journal.Pending(nil, tether.EventID{}, 1); err == nil && len(evs) > 0 {
			h.First = evs[0].ID
		}
	}
	return h
}

func (l *link) onAck(id tether.EventID) {
	l.mu.Lock()
	l.acked, l.ackNew = id, true
	l.mu.Unlock()
	select {
	case l.ackSignal <- struct{}{}:
	default:
	}
}

func (l *link) onGoAway(g frame.GoAway) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.goAway == nil {
		l.goAway = &g
		close(l.goAwaySignal)
	}
}

func (l *link) open(s Session, a frame.Accept) {
	l.session, l.id = s, hex.EncodeToString(a.Session[:])
	if features.Cache { // else nobody counts the writes, and the relay must ask each time (SPEC.md §4.12)
		l.up.ledger.tell(l)
	}
	if a.Spread > 0 {
		l.spread = time.Duration(a.Spread) * time.Second
	}
	if a.AckSeq > 0 {
		l.onAck(tether.EventID{Epoch: a.AckEpoch, Seq: a.AckSeq})
	}
}

// end waits until the session and what serve started have ended.
func (l *link) end() {
	<-l.session.Done()
	l.feeders.Wait()
}

// serve works until the session ends, the relay tells us to go away (moved is true then
// and the session may still be answering requests), or ctx is done.
func (l *link) serve(ctx context.Context) (g frame.GoAway, moved bool) {
	ctx, cancel := context.WithCancel(ctx)
	l.feeders.Go(func() { l.sendNotifications(ctx) })
	l.feeders.Go(func() { l.sendDescriptor(ctx) })
	l.feeders.Go(func() { l.sendLocation(ctx) })
	defer cancel()
	select {
	case <-ctx.Done():
	case <-l.goAwaySignal:
	case <-l.session.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.goAway != nil {
		return *l.goAway, true
	}
	return frame.GoAway{}, false
}

// drain lets a session that was told to go away finish what it answers; the relay ends
// it, and if it does not, we do.
func (l *link) drain(ctx context.Context) {
	defer l.end()
	t := time.NewTimer(drainTimeout)
	defer t.Stop()
	select {
	case <-l.session.Done():
		return
	case <-t.C:
	case <-ctx.Done():
		l.stop(l.up.cfg.StopWait)
		return
	}
	l.session.Close(closeGoing, "drained")
}

// stop ends the session because the device stops: no new requests, then those in flight
// get their time.
func (l *link) stop(wait time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	l.session.Drain(ctx, frame.GoAway{Code: frame.GoAwayDrain, Text: "the device stops"})
	l.end()
}

// sendDescriptor tells the relay of every change of the descriptor.
func (l *link) sendDescriptor(ctx context.Context) {
	cfg := &l.up.cfg
	if cfg.Info == nil || cfg.InfoChanged == nil {
		return
	}
	changed := l.infoChanged
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.session.Done():
			return
		case <-changed:
		}
		changed = cfg.InfoChanged()
		if info := cfg.Info(); len(info) > 0 {
			if err := l.session.Describe(info); err != nil {
				l.up.log.Debug("descriptor not sent", "err", err)
			}
		}
	}
}

// sendLocation tells the relay where the device is on its LAN, and of every change
// (SPEC.md §4.10). A relay that was told nothing assumes no address.
func (l *link) sendLocation(ctx context.Context) {
	cfg := &l.up.cfg
	if cfg.LAN == nil {
		return
	}
	told := ""
	for {
		var changed <-chan struct{}
		if cfg.LANChanged != nil {
			changed = cfg.LANChanged() // before LAN, so that nothing falls between
		}
		if lan := cfg.LAN(); lan != told {
			if err := l.session.Locate(lan); err != nil {
				l.up.log.Debug("LAN address not sent", "err", err)
			}
			told = lan
		}
		if changed == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-l.session.Done():
			return
		case <-changed:
		}
	}
}

// sendNotifications sends what the journal holds, in order, at most maxInFlight ahead of
// the acknowledgements, and takes the acknowledgements to the journal.
func (l *link) sendNotifications(ctx context.Context) {
	j := l.up.cfg.Journal
	if j == nil {
		return
	}
	var inFlight []tether.EventID
	var last tether.EventID // sent last in this session
	first := true
	for {
		changed := j.Changed() // before Pending, so that nothing falls between
		// What ACCEPT acknowledged was sent in an earlier session: the journal judges it.
		if id, ok := l.takeAck(); ok {
			inFlight = l.acknowledge(j, inFlight, id, first)
		}
		first = false
		more := false
		if room := maxInFlight - len(inFlight); room > 0 {
			evs, err := j.Pending(nil, last, room)
			if err != nil {
				l.up.log.Warn("notifications cannot be read", "err", err)
			}
			for _, e := range evs {
				err := l.session.Notify(frame.Notify{Epoch: e.ID.Epoch, Seq: e.ID.Seq, Time: uint64(max(0, e.Time.UnixMilli())), Topic: e.Topic, Payload: e.Data})
				last = e.ID
				switch {
				case errors.Is(err, frame.ErrMalformed):
					// It can never be sent. The acknowledgement of a later one removes it.
					l.up.log.Warn("a notification is too large for the tether", "event", e.ID.String(), "err", err)
					continue
				case err != nil:
					return // the session is over; the next one starts from the first unacknowledged
				}
				inFlight = append(inFlight, e.ID)
			}
			more = len(evs) == room
		}
		l.up.update(func(s *State) { s.InFlight = len(inFlight) })
		if more && len(inFlight) < maxInFlight {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.session.Done():
			return
		case <-l.ackSignal:
		case <-changed:
		}
	}
}

// acknowledge takes one cumulative acknowledgement to the journal and returns what is
// still in flight. One for an event that this session did not send is only believed in
// ACCEPT, where it speaks of an earlier session.
func (l *link) acknowledge(j Journal, inFlight []tether.EventID, id tether.EventID, accept bool) []tether.EventID {
	at := slices.Index(inFlight, id)
	if at < 0 && !accept {
		return inFlight
	}
	if err := j.Ack(id); err != nil {
		l.up.log.Warn("an acknowledgement cannot be kept", "event", id.String(), "err", err)
	}
	return inFlight[at+1:]
}

// takeAck returns the last acknowledgement if there is a new one.
func (l *link) takeAck() (tether.EventID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh := l.ackNew
	l.ackNew = false
	return l.acked, fresh
}
