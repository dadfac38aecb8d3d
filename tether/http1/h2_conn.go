//go:build !no_http2

package http1

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// HasHTTP2 says whether a Server speaks HTTP/2 too: not when built with the tag no_http2.
const HasHTTP2 = true

// HTTP/2 (RFC 9113). One goroutine reads a connection, one runs each request; each of
// them writes by itself. What is sent as a reaction to the client (acknowledgements,
// windows, resets) waits in a small buffer and leaves with the next write of anybody, so
// that the reader never waits for a lock that is held during a write.
//
// A frame that breaks the rules ends the connection, also where RFC 9113 would reset the
// stream only (§5.4 allows it). A request keeps its place until its handler has returned,
// whoever resets the stream: so no client makes more handlers run than it may by having
// them reset, by its own frames (CVE-2023-44487) or by ours (CVE-2025-8671).

// Frame types and flags (RFC 9113 §6).
const (
	frameData = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePush
	framePing
	frameGoAway
	frameWindow
	frameContinuation

	flagEnd        = 0x1 // END_STREAM
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings (RFC 9113 §6.5.2, RFC 9218 §2.1).
const (
	settingPush       = 2
	settingStreams    = 3
	settingWindow     = 4
	settingFrame      = 5
	settingListSize   = 6
	settingNoPriority = 9
)

// Error codes (RFC 9113 §7).
const (
	codeNo          = 0
	codeProtocol    = 1
	codeInternal    = 2
	codeFlow        = 3
	codeClosed      = 5
	codeFrameSize   = 6
	codeRefused     = 7
	codeCancel      = 8
	codeCompression = 9
	codeCalm        = 11
)

const (
	frameHead     = 9        // bytes before a frame's payload
	maxFrame      = 16 << 10 // bytes of a frame's payload, both ways: RFC 9113 §4.2's least
	maxWindow     = 1<<31 - 1
	startWindow   = 1<<16 - 1 // until SETTINGS say otherwise (RFC 9113 §6.9.2)
	h2Buffer      = 2 << 10   // bytes read at a time; payloads of any size pass through it
	maxControl    = 8 << 10   // bytes of reactions that the client has not read; more end the connection
	maxContinued  = 32        // CONTINUATION frames of one header block
	streamsPlaces = 2         // requests whose handlers run, also after a reset, in units of MaxConcurrentStreams

	defaultStreams     = 100
	defaultPingTimeout = 15 * time.Second
	drainWait          = 2 // ticks for the client to see the first GOAWAY, if it does not answer the PING

	// What only costs the server work is paid from a purse that fills with time and with
	// requests that are served. An empty purse ends the connection. WINDOW_UPDATE is free
	// once for so many bytes of body that were sent.
	purse       = 400
	purseTick   = 10 // 20 a second
	purseServe  = 2
	costFrame   = 1 // a frame that moves nothing
	costReset   = 4 // a request begun for nothing
	windowBytes = 1 << 10
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// drainPing is the payload of the PING whose answer says that the first GOAWAY has arrived.
var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}

// h2Error ends a connection.
type h2Error struct {
	code uint32
	text string
}

func (e *h2Error) Error() string { return fmt.Sprintf("HTTP/2 error %d: %s", e.code, e.text) }

func protocolError(text string) error { return &h2Error{codeProtocol, text} }

type h2conn struct {
	c            *conn
	maxStreams   int
	streamWindow int
	step         int // bytes read by handlers before the client is told
	pingAfter    time.Duration
	pingTimeout  time.Duration
	handlers     sync.WaitGroup

	// The sweep's clocks: 0, or the tick at which something began, plus 1.
	unfinished atomic.Uint32 // a frame or header block, of which more must come
	inData     atomic.Bool   // that is the payload of DATA
	writing    atomic.Uint32
	unsettled  atomic.Uint32 // until our SETTINGS are acknowledged
	heard      atomic.Uint32 // of the client
	pinged     atomic.Uint32

	// The reader's.
	fields    hpackDecoder
	head      h2head
	block     []byte // of a header block in several pieces
	blockID   uint32 // of the block whose CONTINUATION must come; 0: none
	blockEnd  bool   // it ends the request
	continued int
	settled   bool // the client's SETTINGS have come
	inFrame   bool // behind a frame's first bytes

	mu         sync.Mutex           // guards what follows, and the parts of streams that say so; never held during a write
	streams    map[uint32]*h2stream // whose handlers run
	lastID     uint32               // highest stream of the client
	sendWindow int64
	initial    int64 // window of the client for a new stream
	recvWindow int   // what the client may still send
	credit     int   // of what was read, not yet given back
	resets     bool  // frames for closed streams may be on their way
	purse      int
	counted    uint32 // tick of the last look at purse
	sent       int64  // bytes of body for which no WINDOW_UPDATE came
	idleSince  uint32
	draining   bool // the first GOAWAY is out
	drainTick  uint32
	final      bool  // the last GOAWAY is out
	err        error // the connection is over
	control    []byte
	writer     *h2stream // inside a write
	timed      bool      // that write has a deadline

	pending atomic.Bool // control is not empty
	wmu     sync.Mutex  // held during a write; taken before mu
	noTable bool        // guarded by wmu: hpackNoTable was sent
}

// serveHTTP2 serves a connection whose handshake is done, until it ends.
func (c *conn) serveHTTP2() {
	o := &c.srv.HTTP2
	h := &h2conn{c: c, maxStreams: o.MaxConcurrentStreams, streamWindow: o.MaxReceiveBufferPerStream,
		pingAfter: o.SendPingTimeout, pingTimeout: or(o.PingTimeout, defaultPingTimeout),
		streams: map[uint32]*h2stream{}, sendWindow: startWindow, initial: startWindow, recvWindow: startWindow, purse: purse}
	if h.maxStreams <= 0 {
		h.maxStreams = defaultStreams
	}
	if h.streamWindow <= 0 {
		h.streamWindow = startWindow
	}
	h.step = max(h.streamWindow/2, 1)
	connWindow := o.MaxReceiveBufferPerConnection
	if connWindow <= 0 {
		connWindow = h.maxStreams * h.streamWindow
	}
	now := h.now()
	h.idleSince, h.counted = now, now
	h.unfinished.Store(now) // the preface and the SETTINGS
	h.unsettled.Store(now)
	h.heard.Store(now)
	c.buf = make([]byte, h2Buffer)

	s := h.appendFrame(nil, frameSettings, 0, 0, 4*6)
	for _, v := range [4][2]int{{settingStreams, h.maxStreams}, {settingWindow, h.streamWindow}, {settingListSize, c.srv.maxHead()}, {settingNoPriority, 1}} {
		s = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(s, uint16(v[0])), uint32(v[1]))
	}
	h.control = s
	h.pending.Store(true)
	if more := connWindow - startWindow; more > 0 {
		h.window(0, more)
		h.recvWindow = connWindow
	}
	c.h2 = h
	c.enter(phaseHTTP2)
	if c.srv.closing.Load() {
		h.goAway(true)
	}
	err := h.readPreface()
	for err == nil {
		err = h.readFrame()
	}
	h.end(err)
}

func (h *h2conn) now() uint32 { return uint32(h.c.srv.ticks.Load()) + 1 }

// end is the end of the reader.
func (h *h2conn) end(err error) {
	e, told := errors.AsType[*h2Error](err)
	h.mu.Lock()
	told = told && h.err == nil && !h.final
	if told {
		h.appendGoAway(h.lastID, e.code, e.text)
	}
	h.die(err)
	h.mu.Unlock()
	if told {
		h.c.srv.log().Debug("connection refused", "peer", h.c.remote, "err", err)
		h.kick()
		h.c.linger()
	}
	h.c.rwc.Close()
	h.handlers.Wait()
}

// die ends everything that goes on. mu is held.
func (h *h2conn) die(err error) {
	if h.err == nil {
		h.err = err
	}
	for _, st := range h.streams {
		st.close(errClientGone)
	}
}

// check is the sweep's look.
func (h *h2conn) check() {
	now := h.now()
	age := func(since uint32) time.Duration {
		if since == 0 || since > now {
			return 0
		}
		return time.Duration(now-since) * tick
	}
	s := h.c.srv
	limit := s.headTimeout()
	if h.inData.Load() {
		limit = s.ioTimeout()
	}
	if age(h.unfinished.Load()) > limit || age(h.writing.Load()) > s.ioTimeout() || age(h.unsettled.Load()) > s.headTimeout() ||
		age(h.pinged.Load()) > h.pingTimeout {
		h.c.raw.Close() // the reader sees it
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return
	}
	switch {
	case h.draining && !h.final && age(h.drainTick) > drainWait*tick, len(h.streams) == 0 && !h.final && age(h.idleSince) > s.idleTimeout():
		s.running.Go(func() { h.goAway(true) })
	case h.pingAfter > 0 && len(h.streams) > 0 && h.pinged.Load() == 0 && age(h.heard.Load()) > h.pingAfter:
		h.pinged.Store(now)
		h.append(h.appendFrame(nil, framePing, 0, 0, 8), make([]byte, 8))
	}
	var clock time.Time
	for _, st := range h.streams {
		if st.closed() {
			continue
		}
		if !st.writeDeadline.IsZero() {
			if clock.IsZero() {
				clock = time.Now()
			}
			if clock.After(st.writeDeadline) {
				st.reset(codeCancel, errSlowAnswer)
				continue
			}
		}
		if age(st.reading) > s.ioTimeout() || age(st.blocked) > s.ioTimeout() {
			st.reset(codeCancel, errTooSlow)
		}
	}
	if h.pending.Load() && h.writing.Load() == 0 {
		s.running.Go(h.kick)
	}
}

// goAway begins the end of the connection: requests under way are finished (RFC 9113
// §6.8). The first of two says that no more may come, and lets those that are on their
// way arrive; final says which was the last.
func (h *h2conn) goAway(final bool) {
	h.mu.Lock()
	if h.err == nil && !h.draining {
		h.draining, h.drainTick = true, h.now()
		if !final {
			h.appendGoAway(maxWindow, codeNo, "")
			h.append(h.appendFrame(nil, framePing, 0, 0, 8), drainPing[:])
		}
	}
	if h.err == nil && final && !h.final {
		h.final, h.resets = true, true
		h.appendGoAway(h.lastID, codeNo, "")
	}
	over := h.final && len(h.streams) == 0 && h.err == nil
	h.mu.Unlock()
	h.kick()
	if over {
		h.finish()
	}
}

// finish closes our side; the reader goes on until the client has closed its own, so that
// nothing unread destroys the last answer on its way.
func (h *h2conn) finish() {
	h.c.enter(phaseLinger)
	h.c.closeWrite()
}

func (h *h2conn) appendGoAway(last, code uint32, text string) {
	b := h.appendFrame(nil, frameGoAway, 0, 0, 8+len(text))
	h.append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, last), code), []byte(text))
}

func (h *h2conn) appendFrame(b []byte, kind, flags byte, id uint32, length int) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

// append puts a reaction behind those that wait. mu is held, and kick must follow.
func (h *h2conn) append(b, more []byte) {
	if len(h.control) > maxControl {
		if h.err == nil { // the client provokes answers and does not read them
			h.die(&h2Error{codeCalm, "too many unread control frames"})
			h.c.raw.Close()
		}
		return
	}
	h.control = append(append(h.control, b...), more...)
	h.pending.Store(true)
}

// window lets the client send n bytes more. mu is held.
func (h *h2conn) window(id uint32, n int) {
	h.append(binary.BigEndian.AppendUint32(h.appendFrame(nil, frameWindow, 0, id, 4), uint32(n)), nil)
}

// giveBack counts n bytes that need no room any more. mu is held.
func (h *h2conn) giveBack(st *h2stream, n int) {
	if h.credit += n; h.credit >= h.step {
		h.window(0, h.credit)
		h.recvWindow += h.credit
		h.credit = 0
	}
	if st == nil || st.recvEnd || st.bodyClosed || st.closed() {
		return
	}
	if st.credit += n; st.credit >= h.step {
		h.window(st.id, st.credit)
		st.recvWindow += st.credit
		st.credit = 0
	}
}

// kick sends the reactions that wait, unless somebody is writing who will do it.
func (h *h2conn) kick() {
	for h.pending.Load() && h.wmu.TryLock() {
		h.mu.Lock()
		out := h.control
		h.control = nil
		h.pending.Store(false)
		h.mu.Unlock()
		h.write(nil, out)
		h.wmu.Unlock()
	}
}

// write sends b. wmu is held.
func (h *h2conn) write(st *h2stream, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if st != nil {
		h.mu.Lock()
		if h.writer = st; !st.writeDeadline.IsZero() {
			h.timed = true
			h.c.rwc.SetWriteDeadline(st.writeDeadline)
		}
		h.mu.Unlock()
	}
	h.writing.Store(h.now())
	_, err := h.c.rwc.Write(b)
	h.writing.Store(0)
	if st != nil || err != nil {
		h.mu.Lock()
		h.writer = nil
		if h.timed {
			h.timed = false
			h.c.rwc.SetWriteDeadline(time.Time{})
		}
		if err != nil {
			h.die(fmt.Errorf("write: %w", err))
			h.c.raw.Close()
		}
		h.mu.Unlock()
	}
	return err
}

// charge takes coins for what only costs. mu is held.
func (h *h2conn) charge(n int) error {
	now := h.now()
	h.earn(int(min(now-h.counted, purse)) * purseTick)
	h.counted = now
	if h.purse -= n; h.purse < 0 {
		return &h2Error{codeCalm, "too much work for nothing"}
	}
	return nil
}

func (h *h2conn) earn(n int) { h.purse = min(h.purse+n, purse) }

// need waits until n bytes can be read from the buffer.
func (h *h2conn) need(n int) error {
	for c := h.c; c.w-c.r < n; {
		h.kick() // reactions to what came before, in one write
		if h.inData.Load() || h.unfinished.Load() == 0 && (h.inFrame || c.w > c.r) {
			h.unfinished.Store(h.now())
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
	return nil
}

// take gives the next n bytes of the buffer, which are there.
func (h *h2conn) take(n int) []byte {
	b := h.c.buf[h.c.r : h.c.r+n]
	h.c.r += n
	return b
}

// pieces hands the next n bytes of a payload to f as they come.
func (h *h2conn) pieces(n int, f func([]byte)) error {
	for n > 0 {
		if err := h.need(1); err != nil {
			return err
		}
		b := h.take(min(n, h.c.w-h.c.r))
		if n -= len(b); f != nil {
			f(b)
		}
	}
	return nil
}

func (h *h2conn) readPreface() error {
	if err := h.need(len(preface)); err != nil {
		return err
	}
	if string(h.take(len(preface))) != preface {
		return protocolError("malformed preface")
	}
	return nil
}

// readFrame reads one frame and does what it says.
func (h *h2conn) readFrame() error {
	if h.inFrame = false; h.blockID == 0 && h.settled {
		h.unfinished.Store(0)
	}
	if err := h.need(frameHead); err != nil {
		return err
	}
	h.inFrame = true
	b := h.take(frameHead)
	length, kind, flags := int(b[0])<<16|int(b[1])<<8|int(b[2]), b[3], b[4]
	id := binary.BigEndian.Uint32(b[5:]) & maxWindow
	h.heard.Store(h.now())
	h.pinged.Store(0)
	switch {
	case length > maxFrame:
		return &h2Error{codeFrameSize, "frame too large"}
	case h.blockID != 0 && (kind != frameContinuation || id != h.blockID):
		return protocolError("want CONTINUATION")
	case !h.settled && (kind != frameSettings || flags&flagAck != 0):
		return protocolError("want SETTINGS first")
	case kind < frameWindow && (id != 0) != (kind < frameSettings || kind == framePush):
		return protocolError("frame on the wrong stream")
	}
	want := -1
	switch kind {
	case framePriority:
		want = 5
	case frameReset, frameWindow:
		want = 4
	case framePing:
		want = 8
	}
	if want >= 0 {
		if length != want {
			return &h2Error{codeFrameSize, "frame of a wrong size"}
		}
		if err := h.need(want); err != nil {
			return err
		}
		b = h.take(want)
	}
	switch kind {
	case frameData:
		return h.data(flags, id, length)
	case frameHeaders:
		return h.headers(flags, id, length)
	case frameContinuation:
		if h.blockID == 0 {
			return protocolError("CONTINUATION without HEADERS")
		}
		if h.continued++; h.continued > maxContinued {
			return &h2Error{codeCalm, "too many CONTINUATION frames"}
		}
		return h.fragment(flags, length)
	case frameSettings:
		return h.settings(flags, length)
	case framePush:
		return protocolError("PUSH_PROMISE of a client")
	}
	h.mu.Lock()
	err := h.small(kind, flags, id, b)
	h.mu.Unlock()
	if err == nil && (want < 0 && length > 0) {
		err = h.pieces(length, nil) // GOAWAY, unknown types (RFC 9113 §4.1)
	}
	return err
}

// small does what the frames of a fixed size say. mu is held.
func (h *h2conn) small(kind, flags byte, id uint32, b []byte) error {
	st := h.stream(id)
	if id > h.lastID && (kind == frameReset || kind == frameWindow) {
		return protocolError("frame for an idle stream")
	}
	switch kind {
	case framePriority: // RFC 9113 §5.3.2: ignored
		if binary.BigEndian.Uint32(b)&maxWindow == id {
			return protocolError("a stream depends on itself")
		}
	case frameReset:
		if st != nil {
			st.close(errClientGone)
			return h.charge(costReset)
		}
	case framePing:
		if flags&flagAck == 0 {
			h.append(h.appendFrame(nil, framePing, flagAck, 0, 8), b)
		} else if [8]byte(b) == drainPing && h.draining && !h.final {
			h.c.srv.running.Go(func() { h.goAway(true) })
		}
	case frameWindow:
		n := int64(binary.BigEndian.Uint32(b) & maxWindow)
		switch {
		case n == 0:
			return protocolError("WINDOW_UPDATE of 0")
		case id == 0:
			if h.sendWindow += n; h.sendWindow > maxWindow {
				return &h2Error{codeFlow, "window too large"}
			}
			for _, st := range h.streams {
				if st.blocked != 0 {
					st.cond.Broadcast()
				}
			}
		case st != nil:
			if st.sendWindow += n; st.sendWindow > maxWindow {
				st.reset(codeFlow, errMalformed) // RFC 9113 §6.9.1 leaves no choice
				return h.charge(costReset)
			}
			st.cond.Broadcast()
		}
		if h.sent >= windowBytes {
			h.sent -= windowBytes
			return nil
		}
	}
	return h.charge(costFrame)
}

// settings applies the client's SETTINGS (RFC 9113 §6.5).
func (h *h2conn) settings(flags byte, length int) error {
	if flags&flagAck != 0 {
		if length != 0 {
			return &h2Error{codeFrameSize, "SETTINGS ACK with a payload"}
		}
		h.unsettled.Store(0)
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.charge(costFrame)
	}
	if length%6 != 0 {
		return &h2Error{codeFrameSize, "SETTINGS of a wrong size"}
	}
	for ; length > 0; length -= 6 {
		if err := h.need(6); err != nil {
			return err
		}
		b := h.take(6)
		v := int64(binary.BigEndian.Uint32(b[2:]))
		h.mu.Lock()
		err := h.charge(costFrame)
		switch binary.BigEndian.Uint16(b) {
		case settingPush:
			if v > 1 {
				err = protocolError("malformed setting")
			}
		case settingFrame:
			if v < maxFrame || v > 1<<24-1 {
				err = protocolError("malformed setting")
			}
		case settingWindow:
			if v > maxWindow {
				err = &h2Error{codeFlow, "window too large"}
				break
			}
			for _, st := range h.streams {
				if st.sendWindow += v - h.initial; st.sendWindow > maxWindow && !st.closed() {
					err = &h2Error{codeFlow, "window of a stream too large"}
				}
				st.cond.Broadcast()
			}
			h.initial = v
		}
		h.mu.Unlock()
		if err != nil {
			return err
		}
	}
	h.settled = true
	h.mu.Lock()
	defer h.mu.Unlock()
	h.append(h.appendFrame(nil, frameSettings, flagAck, 0, 0), nil)
	return h.charge(costFrame)
}

// padding reads the length of the padding, if there is any (RFC 9113 §6.1).
func (h *h2conn) padding(flags byte, length *int) (pad int, err error) {
	if flags&flagPadded == 0 {
		return 0, nil
	}
	if *length < 1 {
		return 0, &h2Error{codeFrameSize, "no room for the padding's length"}
	}
	if err := h.need(1); err != nil {
		return 0, err
	}
	pad = int(h.take(1)[0])
	if *length -= 1 + pad; *length < 0 {
		return 0, protocolError("padding longer than the frame")
	}
	return pad, nil
}

// data receives a piece of a request's body.
func (h *h2conn) data(flags byte, id uint32, length int) error {
	whole := length
	pad, err := h.padding(flags, &length)
	if err != nil {
		return err
	}
	h.mu.Lock()
	st := h.stream(id)
	h.recvWindow -= whole
	switch {
	case id > h.lastID:
		err = protocolError("DATA on an idle stream")
	case h.recvWindow < 0:
		err = &h2Error{codeFlow, "more than the connection's window"}
	case st == nil && !h.resets, st != nil && st.recvEnd:
		err = &h2Error{codeClosed, "DATA on a closed stream"}
	case st == nil:
		err = h.charge(costFrame)
	default:
		if st.recvWindow -= whole; st.recvWindow < 0 {
			err = &h2Error{codeFlow, "more than the stream's window"}
			break
		}
		if st.got += int64(length); st.declared >= 0 && st.got > st.declared {
			if err = h.malformed(st); err != nil {
				break
			}
			st = nil
		} else if length == 0 && flags&flagEnd == 0 {
			err = h.charge(costFrame)
		}
	}
	if err == nil {
		h.giveBack(st, whole-length)
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	h.inData.Store(true)
	err = h.pieces(length, func(b []byte) {
		h.mu.Lock()
		if st == nil || st.err != nil || st.bodyClosed {
			h.giveBack(nil, len(b))
		} else {
			st.receive(b)
		}
		h.mu.Unlock()
	})
	if err == nil {
		err = h.pieces(pad, nil)
	}
	h.inData.Store(false)
	if err != nil || st == nil || flags&flagEnd == 0 {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requestEnds(st)
}

// requestEnds notes that the client has sent all of a request. mu is held.
func (h *h2conn) requestEnds(st *h2stream) error {
	if st.err == nil && st.declared >= 0 && st.got != st.declared {
		return h.malformed(st)
	}
	st.recvEnd = true
	st.cond.Broadcast()
	return nil
}

// malformed resets a request that breaks the rules of HTTP (RFC 9113 §8.1.1). mu is held.
func (h *h2conn) malformed(st *h2stream) error {
	st.reset(codeProtocol, errMalformed)
	return h.charge(costReset)
}

// headers begins a header block (RFC 9113 §6.2).
func (h *h2conn) headers(flags byte, id uint32, length int) error {
	pad, err := h.padding(flags, &length)
	if err != nil {
		return err
	}
	if flags&flagPriority != 0 {
		if length -= 5; length < 0 {
			return &h2Error{codeFrameSize, "no room for the priority"}
		}
		if err := h.need(5); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(h.take(5))&maxWindow == id {
			return protocolError("a stream depends on itself")
		}
	}
	h.mu.Lock()
	st := h.stream(id)
	switch {
	case id%2 == 0:
		err = protocolError("an even stream of a client")
	case id > h.lastID:
	case st == nil && !h.resets, st != nil && st.recvEnd:
		err = &h2Error{codeClosed, "HEADERS on a closed stream"}
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	if h.unfinished.Load() == 0 {
		h.unfinished.Store(h.now())
	}
	h.blockID, h.blockEnd, h.continued = id, flags&flagEnd != 0, 0
	if err := h.fragment(flags, length); err != nil {
		return err
	}
	return h.pieces(pad, nil)
}

// fragment reads a piece of a header block, and has the block used when it was the last.
func (h *h2conn) fragment(flags byte, length int) error {
	last := flags&flagEndHeaders != 0
	if len(h.block)+length > h.c.srv.maxHead() {
		return &h2Error{codeCalm, "header block too large"}
	}
	if last && len(h.block) == 0 && length <= len(h.c.buf) { // usually
		if err := h.need(length); err != nil {
			return err
		}
		return h.blockEnds(h.take(length))
	}
	if err := h.pieces(length, func(b []byte) { h.block = append(h.block, b...) }); err != nil || !last {
		return err
	}
	block := h.block
	h.block = nil
	return h.blockEnds(block)
}

// blockEnds has a header block: a request, or trailers.
func (h *h2conn) blockEnds(block []byte) error {
	id := h.blockID
	h.blockID = 0
	h.mu.Lock()
	st := h.stream(id)
	fresh := id > h.lastID
	if fresh {
		h.lastID = id
	}
	h.mu.Unlock()
	h.head = h2head{max: h.c.srv.maxHead(), trailers: !fresh}
	if h.fields.decode(block, h.head.field) != nil {
		return &h2Error{codeCompression, errHPACK.Error()}
	}
	defer func() { h.head = h2head{} }()
	head := &h.head
	if fresh {
		return h.request(id, head)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case st == nil:
		return h.charge(costFrame)
	case !h.blockEnd || head.err != nil:
		return h.malformed(st)
	}
	for name := range head.fields {
		if forbiddenTrailer[name] {
			delete(head.fields, name)
		}
	}
	st.trailer = head.fields
	return h.requestEnds(st)
}

// request starts the handler of a new request.
func (h *h2conn) request(id uint32, head *h2head) error {
	st := &h2stream{h: h, id: id, recvEnd: h.blockEnd, declared: -1}
	handler := h.c.srv.Handler
	refused, _ := errors.AsType[*statusError](st.build(head))
	if refused != nil {
		h.c.srv.log().Debug("request refused", "peer", h.c.remote, "err", refused)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.final: // the client knows from GOAWAY that it was not served
		return h.charge(costFrame)
	case len(h.streams) >= h.maxStreams && (h.open() >= h.maxStreams || len(h.streams) >= h.maxStreams*streamsPlaces):
		h.resets = true
		h.appendReset(id, codeRefused)
		return h.charge(costReset)
	case refused != nil && refused.status == http.StatusBadRequest:
		h.resets = true
		h.appendReset(id, codeProtocol)
		return h.charge(costReset)
	case refused != nil:
		handler = refused
		if err := h.charge(costReset); err != nil {
			return err
		}
	}
	st.cond.L = &h.mu
	st.sendWindow = h.initial
	if st.recvWindow = h.streamWindow; h.unsettled.Load() != 0 {
		st.recvWindow = max(h.streamWindow, startWindow) // the client may not know better yet
	}
	h.streams[id] = st
	h.handlers.Go(func() { st.run(handler) })
	return nil
}

// stream finds one that is not closed. mu is held.
func (h *h2conn) stream(id uint32) *h2stream {
	if st := h.streams[id]; st != nil && !st.closed() {
		return st
	}
	return nil
}

// open counts what the client may count as its streams. mu is held.
func (h *h2conn) open() (n int) {
	for _, st := range h.streams {
		if !st.closed() {
			n++
		}
	}
	return n
}

func (h *h2conn) appendReset(id, code uint32) {
	h.append(binary.BigEndian.AppendUint32(h.appendFrame(nil, frameReset, 0, id, 4), code), nil)
}

// returned notes the end of a handler.
func (h *h2conn) returned(st *h2stream) {
	h.mu.Lock()
	st.bodyClosed = true
	if st.err == nil {
		if st.sentEnd {
			h.earn(purseServe)
		}
		if !st.recvEnd || !st.sentEnd {
			code := uint32(codeNo) // RFC 9113 §8.1: the answer is complete, the rest is not wanted
			if !st.sentEnd {
				code = codeInternal
			}
			st.reset(code, ErrBodyClosed)
		}
	}
	st.close(ErrBodyClosed)
	delete(h.streams, st.id)
	h.idleSince = h.now()
	over := h.final && len(h.streams) == 0 && h.err == nil
	h.mu.Unlock()
	h.kick()
	if over {
		h.finish()
	}
}

var (
	errMalformed  = errors.New("http1: the client broke the rules of HTTP/2")
	errSlowAnswer = fmt.Errorf("http1: write of an answer: %w", os.ErrDeadlineExceeded)
)
