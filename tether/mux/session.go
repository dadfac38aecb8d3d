package mux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
)

// Carrier moves messages of whole frames, in order (package ws, or a fake). Read is called
// by one goroutine, Write by one at a time; both end soon after Close.
type Carrier interface {
	// Read waits for a message and calls f with it; the bytes are f's only during the
	// call. It returns f's error or its own.
	Read(f func(msg []byte) error) error
	// Write sends one message. It bounds its own time.
	Write(msg []byte) error
	// Close ends the connection with a WebSocket close code; 0 means at once, without
	// a word.
	Close(code int, reason string) error
}

// Handlers are called by the goroutine of Run, one at a time, and must not block. What
// they are given they may keep, except a payload or JSON, which is only theirs during
// the call. All may be nil.
type Handlers struct {
	OnNotify      func(frame.Notify)      // relay
	OnDescribe    func(json []byte)       // relay
	OnLocate      func(lan string)        // relay; a checked URL, empty: no address on a LAN now
	OnAck         func(tether.EventID)    // device
	OnInvalidate  func(frame.Invalidate)  // relay; INVALIDATED follows when it returns
	OnInvalidated func(frame.Invalidated) // device
	OnGoAway      func(frame.GoAway)
	OnClose       func(error) // last of all; every stream has ended
	// All takes everything in place of the functions: an owner of many sessions has one
	// value for each of them anyway, and saves what the functions would hold.
	All Handler
}

// Handler is Handlers as one value.
type Handler interface {
	Notify(frame.Notify)
	Describe(json []byte)
	Locate(lan string)
	Acked(tether.EventID)
	Invalidate(frame.Invalidate)
	Invalidated(frame.Invalidated)
	GoAway(frame.GoAway)
	Closed(error)
}

// handler returns h as one value.
func (h Handlers) handler() Handler {
	if h.All != nil {
		return h.All
	}
	return &functions{h}
}

// functions are Handlers, of which any may be nil, as a Handler.
type functions struct{ h Handlers }

func (f *functions) Notify(n frame.Notify) {
	if f.h.OnNotify != nil {
		f.h.OnNotify(n)
	}
}

func (f *functions) Describe(json []byte) {
	if f.h.OnDescribe != nil {
		f.h.OnDescribe(json)
	}
}

func (f *functions) Locate(lan string) {
	if f.h.OnLocate != nil {
		f.h.OnLocate(lan)
	}
}

func (f *functions) Acked(id tether.EventID) {
	if f.h.OnAck != nil {
		f.h.OnAck(id)
	}
}

func (f *functions) Invalidate(v frame.Invalidate) {
	if f.h.OnInvalidate != nil {
		f.h.OnInvalidate(v)
	}
}

func (f *functions) Invalidated(v frame.Invalidated) {
	if f.h.OnInvalidated != nil {
		f.h.OnInvalidated(v)
	}
}

func (f *functions) GoAway(g frame.GoAway) {
	if f.h.OnGoAway != nil {
		f.h.OnGoAway(g)
	}
}

func (f *functions) Closed(err error) {
	if f.h.OnClose != nil {
		f.h.OnClose(err)
	}
}

// Config says what both sides agreed on in the handshake.
type Config struct {
	Relay      bool   // this side opens streams; else it answers them
	SendWindow uint32 // bytes that the peer grants on each new stream
	RecvWindow uint32 // bytes that we announced to grant
	// StartWindow is what a new stream gets instead of RecvWindow while the budget
	// allows: the difference follows the REQUEST as a WINDOW. 0: RecvWindow.
	StartWindow uint32
	Grow        bool // a window whose reader keeps up grows to GrownWindow, then MaxWindow
	Streams     int  // requests at once, as the device announced; 0: DefaultStreams
	Budget      *Budget
	// Keepalive makes this side send a PING after so long without sending, and give up
	// when nothing comes back; 0: the peer or the owner does it.
	Keepalive time.Duration
	// Accept takes a new request on a goroutine of its own (device). It must call
	// Reset on the stream in the end.
	Accept   func(*Stream, *frame.Request)
	Handlers Handlers
	Logger   *slog.Logger
}

// Session is one connection with its streams. Everything may be called concurrently.
type Session struct {
	carrier   Carrier
	relay     bool
	grow      bool
	streamMax int
	sendWin   int64
	recvWin   int64
	startWin  int64
	keepalive time.Duration
	budget    *Budget
	accept    func(*Stream, *frame.Request)
	handler   Handler
	log       *slog.Logger
	done      chan struct{}

	lastSeen atomic.Int64 // Unix nanoseconds
	lastSent atomic.Int64 // kept only with keepalive

	mu       sync.Mutex
	err      error // the session is over
	mute     error // it will be, once the input has been read: nothing can be written
	closing  bool  // it will be, once the output has left
	streams  map[uint32]*Stream
	used     int             // streams, and slots given to waiters that come
	running  int             // device: handlers that have not returned
	slots    []chan struct{} // waiters for a stream, in order
	lastID   uint32          // highest stream opened (relay) or seen (device)
	sentAway bool
	lastOK   uint32        // in our GOAWAY: higher streams are refused
	away     *frame.GoAway // the peer's
	quiet    chan struct{} // closed when the last stream ends; nil: nobody waits
	token    uint32        // of the last PING
	pings    []ping
	lease    *lease    // nil: no PING yet that it is about
	probed   time.Time // when a silent device was asked
	out      output
	earned   int64 // payload bytes since floodFrom
	controls int   // control frames since floodFrom
	flooded  time.Time
	timer    *time.Timer // keepalive
	work     chan job    // device: to workers that wait for their next stream
	idle     int         // device: how many those are
	watch    *time.Timer // wakes streams whose wait has a deadline; at most one for all
	watchAt  time.Time   // when it fires; zero: not at all
}

type ping struct {
	token uint32
	back  chan struct{}
}

// Errors of sessions.
var (
	ErrClosed   = errors.New("tether session closed")
	ErrDraining = errors.New("tether session is draining")
	// ErrBusy means that all streams of the device are taken: answer 503 with Retry-After.
	ErrBusy = errors.New("all streams of the device are taken")
	// ErrSilent means that the device owed an answer and did not even answer a PING.
	ErrSilent = errors.New("the device is silent")
	errQueue  = errors.New("the peer does not take its control frames")
	errFlood  = fmt.Errorf("%w: more than %d control frames in %v", ErrProtocol, floodLimit, floodSpan)
	// ErrProtocol is wrapped by every error for which the peer got GOAWAY 4.
	ErrProtocol = errors.New("tether protocol error")
)

// LostError means that the connection broke.
type LostError struct {
	Act string // "read" or "write"
	Err error
}

func (e *LostError) Error() string { return "tether lost: " + e.Act + ": " + e.Err.Error() }
func (e *LostError) Unwrap() error { return e.Err }

// GoAwayError means that the peer ended the session and said why.
type GoAwayError struct{ frame.GoAway }

func (e *GoAwayError) Error() string {
	if e.Text == "" {
		return "the peer ended the tether: " + e.Code.String()
	}
	return fmt.Sprintf("the peer ended the tether: %v: %.100q", e.Code, e.Text)
}

// New makes a session on a carrier whose handshake is done. It does nothing until Run.
func New(c Carrier, cfg Config) *Session {
	s := &Session{
		carrier: c, relay: cfg.Relay, grow: cfg.Grow, streamMax: cfg.Streams,
		sendWin: int64(min(cfg.SendWindow, maxCredit)), recvWin: int64(cfg.RecvWindow), startWin: int64(max(cfg.RecvWindow, cfg.StartWindow)),
		keepalive: cfg.Keepalive, budget: cfg.Budget, accept: cfg.Accept, handler: cfg.Handlers.handler(), log: cfg.Logger,
		done: make(chan struct{}),
	}
	if s.streamMax <= 0 {
		s.streamMax = DefaultStreams
	}
	s.streamMax = min(s.streamMax, MaxStreams)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.lastSeen.Store(time.Now().UnixNano())
	return s
}

// SetHandlers replaces the handlers; only before Run.
func (s *Session) SetHandlers(h Handlers) { s.handler = h.handler() }

// Run reads the carrier until the session ends and returns why; it is called once. When it
// returns every stream has failed and OnClose has been called.
func (s *Session) Run() error {
	if s.keepalive > 0 {
		s.startKeepalive()
	}
	read := s.message
	var err error
	for err == nil {
		err = s.carrier.Read(read)
	}
	s.mu.Lock()
	switch {
	case s.away != nil && !s.closing:
		err = &GoAwayError{*s.away}
	case errors.Is(err, ErrProtocol) || errors.Is(err, frame.ErrMalformed):
		if !errors.Is(err, ErrProtocol) {
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		last := s.lastID
		s.mu.Unlock()
		s.end(err, &frame.GoAway{Code: frame.GoAwayProtocol, LastStream: last, Text: err.Error()}, closeProtocol, "protocol error")
		s.mu.Lock()
	case s.mute != nil:
		err = s.mute
	default:
		err = &LostError{"read", err}
	}
	closing := s.closing
	s.mu.Unlock()
	if closing {
		// The closer has the word. What still comes is read away: unread bytes would make
		// the kernel answer with a reset, which destroys our last frames on their way.
		for s.carrier.Read(func([]byte) error { return nil }) == nil {
		}
		<-s.done
	}
	s.fail(err)
	err = s.Err()
	s.handler.Closed(err)
	return err
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why the session ended; nil while it runs.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// LastSeen is when the last message came.
func (s *Session) LastSeen() time.Time { return time.Unix(0, s.lastSeen.Load()) }

// Streams is how many exchanges run now.
func (s *Session) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// Draining reports whether either side has said GOAWAY: no new streams.
func (s *Session) Draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sentAway || s.away != nil || s.closing || s.err != nil
}

// Carrier is what the session runs on.
func (s *Session) Carrier() Carrier { return s.carrier }

// fail ends the session at once.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	var stops []func()
	for _, st := range s.streams {
		if st.err == nil {
			st.err = err
		}
		if st.onStop != nil {
			stops = append(stops, st.onStop)
			st.onStop = nil
		}
		st.drop()
	}
	s.streams = nil
	for m := s.out.first; m != nil; {
		next := m.next
		m.next = nil
		m.free()
		m = next
	}
	s.out.first, s.out.last, s.out.bytes = nil, nil, 0
	s.out.long, s.out.short = ring{}, ring{}
	for _, w := range s.slots {
		close(w)
	}
	s.slots = nil
	for _, c := range []*chan struct{}{&s.out.room, &s.quiet} {
		if *c != nil {
			close(*c)
			*c = nil
		}
	}
	for _, t := range []*time.Timer{s.timer, s.watch} {
		if t != nil {
			t.Stop()
		}
	}
	close(s.done)
	s.mu.Unlock()
	s.carrier.Close(0, "")
	for _, f := range stops {
		f()
	}
}

// broken ends the session after a failed write, behind what the peer has said before: its
// GOAWAY may be on its way, and tells which requests it has not processed.
func (s *Session) broken(err error) {
	s.mu.Lock()
	s.mute = err
	now := s.closing || s.away != nil
	s.mu.Unlock()
	if now {
		s.fail(err)
		return
	}
	time.AfterFunc(lastWords, func() { s.fail(err) })
}

// end sends what is queued and away (may be nil), then closes the carrier with the code
// and fails the session with err. It does not wait.
func (s *Session) end(err error, away *frame.GoAway, code int, reason string) {
	s.mu.Lock()
	if s.err != nil || s.closing {
		s.mu.Unlock()
		return
	}
	s.closing = true
	if away != nil {
		s.control(func(dst []byte) []byte { return frame.AppendGoAway(dst, away) })
	}
	idle := make(chan struct{})
	if s.mute == nil && (s.out.writing || s.ready()) {
		if s.out.idle == nil {
			s.out.idle = idle
		}
		idle = s.out.idle
	} else {
		close(idle)
	}
	s.flush(false, nil)
	go func() {
		waitUntil(idle, context.Background(), time.Now().Add(closeWait))
		s.carrier.Close(code, reason)
		s.fail(err)
	}()
}

// Close ends the session: what is queued leaves first, for two seconds at most, then the
// carrier closes with a WebSocket close code. It does not wait; Done tells.
func (s *Session) Close(code int, reason string) {
	s.end(fmt.Errorf("%w: %s", ErrClosed, reason), nil, code, reason)
}

// GoAway tells the peer that this connection ends and why: no new streams from now on, in
// either direction. LastStream is filled in. Running streams go on; the caller closes
// later, or calls Drain.
func (s *Session) GoAway(g frame.GoAway) {
	s.mu.Lock()
	if s.err != nil || s.closing {
		s.mu.Unlock()
		return
	}
	if !s.sentAway {
		s.sentAway, s.lastOK = true, s.lastID
	}
	g.LastStream = s.lastOK
	s.control(func(dst []byte) []byte { return frame.AppendGoAway(dst, &g) })
	for _, w := range s.slots {
		close(w)
	}
	s.slots = nil
	s.flush(true, nil)
}

// Drain is GoAway, then Close once the last stream has ended or ctx is done. Endless
// streams are ended first (Stream.Endless): their clients come back another way.
func (s *Session) Drain(ctx context.Context, g frame.GoAway) {
	s.GoAway(g)
	s.mu.Lock()
	var endless []*Stream
	var stops []func()
	for _, st := range s.streams {
		if !st.endless {
			continue
		}
		endless = append(endless, st)
		if st.onStop != nil {
			stops = append(stops, st.onStop)
		}
	}
	s.mu.Unlock()
	for _, st := range endless {
		st.Fail(frame.ResetCancel, ErrDraining)
	}
	for _, f := range stops {
		f()
	}
	s.mu.Lock()
	if len(s.streams) > 0 && s.err == nil {
		if s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		quiet := s.quiet
		s.mu.Unlock()
		waitSignal(quiet, ctx)
	} else {
		s.mu.Unlock()
	}
	s.Close(closeGoing, g.Code.String())
}

// Ping measures one round trip through both readers.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	back := make(chan struct{})
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return 0, s.err
	}
	s.token++
	token := s.token
	s.earned += floodEarn
	if !s.controlFrame(frame.TypePing, 0, token) {
		s.mu.Unlock()
		return 0, errQueue
	}
	s.pings = append(s.pings, ping{token, back})
	s.flush(true, nil)
	select {
	case <-back:
		return time.Since(start), nil
	case <-s.done:
		return 0, s.Err()
	case <-ctx.Done():
		s.mu.Lock()
		s.dropPing(token)
		s.mu.Unlock()
		return 0, fmt.Errorf("wait for PONG: %w", context.Cause(ctx))
	}
}

// dropPing forgets a PING and gives its channel; nil if it is unknown. s.mu is held.
func (s *Session) dropPing(token uint32) chan struct{} {
	for i, p := range s.pings {
		if p.token == token {
			s.pings = append(s.pings[:i], s.pings[i+1:]...)
			if len(s.pings) == 0 {
				s.pings = nil
			}
			return p.back
		}
	}
	return nil
}

// Notify sends one notification (device). It waits while the output queue is full.
func (s *Session) Notify(n frame.Notify) error {
	m := newMessage()
	var err error
	if m.b, err = frame.AppendNotify(m.b, &n); err != nil {
		m.free()
		return err
	}
	return s.send(m)
}

// Describe sends a changed descriptor, at most frame.MaxDescribe bytes (device).
func (s *Session) Describe(json []byte) error {
	if len(json) > frame.MaxDescribe {
		return fmt.Errorf("descriptor of %d bytes, at most %d are allowed", len(json), frame.MaxDescribe)
	}
	m := newMessage()
	m.b = frame.AppendDescribe(m.b, json)
	return s.send(m)
}

// Locate tells the device's URL on its LAN, empty: it has no address there now (device).
// A URL that SPEC.md §4.10 does not allow is not sent: frame.ErrMalformed.
func (s *Session) Locate(lan string) error {
	m := newMessage()
	var err error
	if m.b, err = frame.AppendLocate(m.b, lan); err != nil {
		m.free()
		return err
	}
	return s.send(m)
}

// Ack tells the device that a notification, and all before it, are safe (relay).
func (s *Session) Ack(id tether.EventID) error {
	m := newMessage()
	m.b = frame.AppendNotifyAck(m.b, frame.NotifyAck{Epoch: id.Epoch, Seq: id.Seq})
	return s.send(m)
}

// send queues a message for the connection itself, when there is room.
func (s *Session) send(m *message) error {
	s.mu.Lock()
	for s.err == nil && !s.closing && s.out.bytes >= outLimit {
		room := s.waitRoomChan()
		s.mu.Unlock()
		<-room // the write timeout bounds it
		s.mu.Lock()
	}
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		m.free()
		return err
	}
	s.queue(m)
	s.earned += floodEarn // a NOTIFY brings a NOTIFY_ACK
	s.flush(true, nil)
	return nil
}

// usable is the error of a session that is over or about to be. s.mu is held.
func (s *Session) usable() error {
	if s.err != nil {
		return s.err
	}
	if s.mute != nil {
		return s.mute
	}
	if s.closing {
		return ErrClosed
	}
	return nil
}

// waitRoomChan is closed when the output queue has room again. s.mu is held.
func (s *Session) waitRoomChan() chan struct{} {
	if s.out.room == nil {
		s.out.room = make(chan struct{})
	}
	return s.out.room
}
