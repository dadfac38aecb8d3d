package mux

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Read takes bytes of the peer's direction; io.EOF after its end. It waits no longer than
// the read deadline (os.ErrDeadlineExceeded).
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s := st.s
	s.mu.Lock()
	if err := st.waitData(context.Background()); err != nil {
		s.mu.Unlock()
		return 0, err
	}
	n := 0
	for n < len(p) && st.recv.head != nil {
		c := st.recv.head
		m := copy(p[n:], c.buf[c.r:c.w])
		n += m
		c.r += m
		st.recv.bytes -= m
		if c.r == c.w {
			st.recv.pop()
			s.budget.add(-len(c.buf))
			c.free()
		}
	}
	st.consume(n)
	return n, nil
}

// WriteChunk waits for bytes, writes one run of them to w and only then counts them as
// consumed. more reports whether further bytes, or the end, are there already: without
// them it is time to flush. ctx ends the wait, not the write. After the end it gives io.EOF.
func (st *Stream) WriteChunk(ctx context.Context, w io.Writer) (n int, more bool, err error) {
	s := st.s
	s.mu.Lock()
	if err := st.waitData(ctx); err != nil {
		s.mu.Unlock()
		return 0, false, err
	}
	c := st.recv.pop()
	s.mu.Unlock()
	want := c.w - c.r
	n, err = w.Write(c.buf[c.r:c.w])
	if err == nil && n < want {
		err = io.ErrShortWrite
	}
	s.mu.Lock()
	s.budget.add(-len(c.buf))
	c.free()
	more = st.recv.head != nil || st.remoteEnd || st.err != nil
	st.consume(want)
	return n, more, err
}

// waitData waits until there are bytes. s.mu is held, before and after; ctx may be nil.
func (st *Stream) waitData(ctx context.Context) error {
	for {
		switch {
		case st.recv.head != nil:
			return nil
		case st.err != nil:
			return st.err
		case st.remoteEnd:
			return io.EOF
		case expired(st.rdl):
			return os.ErrDeadlineExceeded
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if st.rsig == nil {
			st.rsig = make(chan struct{}, 1)
		}
		st.rdue = st.rdl
		st.s.watchFor(st.rdue)
		st.s.mu.Unlock()
		waitSignal(st.rsig, ctx)
		st.s.mu.Lock()
		st.rdue = time.Time{}
	}
}

// consume counts n bytes as read and returns credit once half of the window is. s.mu is
// held, and released.
func (st *Stream) consume(n int) {
	s := st.s
	st.consumed += int64(n)
	if st.err != nil || st.remoteEnd || st.consumed < st.window/2 {
		s.mu.Unlock()
		return
	}
	grant := st.consumed
	now := time.Now()
	switch tight := s.budget.tight(); {
	case tight && st.window > MinWindow:
		// Withhold what is over the smallest window, so that it shrinks back.
		keep := min(grant, st.window-MinWindow)
		st.window -= keep
		grant -= keep
	case !tight && s.grow && int64(st.recv.bytes) < st.window/2 && st.window < MaxWindow && now.Sub(st.returned) < growTime:
		// The reader is faster than the window lets the peer be.
		larger := int64(GrownWindow)
		if st.window >= GrownWindow {
			larger = MaxWindow
		}
		grant += larger - st.window
		st.window = larger
	}
	st.returned = now
	st.consumed = 0
	if grant == 0 {
		s.mu.Unlock()
		return
	}
	st.recvCredit += grant
	if !s.controlFrame(frame.TypeWindow, st.id, uint32(grant)) {
		s.mu.Unlock()
		s.fail(errQueue)
		return
	}
	s.flush(true, nil)
}

// Ready reports whether WriteChunk would not wait.
func (st *Stream) Ready() bool {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.recv.head != nil || st.remoteEnd || st.err != nil
}

// Received says whether the peer's direction is over and all of it read, and gives its
// trailer fields, if any, which belong to the caller then.
func (st *Stream) Received() (trailers map[string][]string, end bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if !st.remoteEnd || st.recv.head != nil || st.err != nil {
		return nil, false
	}
	return st.trailers, true
}

// PeekTrailers gives the trailer fields that have come, before the body has been read.
func (st *Stream) PeekTrailers() (trailers map[string][]string, end bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.trailers, st.remoteEnd
}

// Buffered is how many bytes wait to be read, and whether nothing follows them.
func (st *Stream) Buffered() (n int, whole bool) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.recv.bytes, st.remoteEnd && st.err == nil
}

// Head takes the next response head, interim ones first. It waits until the time has come
// (ErrHeadTimeout) or ctx is done. While it waits and the device is silent for long, the
// device is asked; without an answer the session fails with ErrSilent.
func (st *Stream) Head(ctx context.Context, until time.Time) (frame.Response, error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case len(st.heads) > 0:
			h := st.heads[0]
			st.heads[0] = frame.Response{}
			st.heads = st.heads[1:]
			return h, nil
		case st.err != nil:
			return frame.Response{}, st.err
		case ctx.Err() != nil:
			return frame.Response{}, context.Cause(ctx)
		}
		now := time.Now()
		if !now.Before(until) {
			return frame.Response{}, ErrHeadTimeout
		}
		look, err := s.probe(st, now)
		if err != nil {
			s.mu.Unlock()
			s.fail(err)
			s.mu.Lock()
			continue
		}
		if look.After(until) {
			look = until
		}
		st.rdue = look
		s.watchFor(look)
		s.mu.Unlock()
		waitSignal(st.rsig, ctx)
		s.mu.Lock()
		st.rdue = time.Time{}
	}
}
