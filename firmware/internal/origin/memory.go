package origin

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// memoryBuffer bounds what one direction of an in-memory connection holds, in bytes.
// Like a socket's buffer it must take a whole request head, so that both ends may
// write first.
const memoryBuffer = 128 << 10

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "memory" }

// pipe makes a connection inside the process, buffered unlike net.Pipe.
func pipe() (a, b net.Conn) {
	x, y := newHalf(), newHalf()
	return &memoryConn{in: x, out: y}, &memoryConn{in: y, out: x}
}

type memoryConn struct{ in, out *half }

func (c *memoryConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memoryConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *memoryConn) CloseWrite() error           { c.out.end(); return nil }
func (c *memoryConn) LocalAddr() net.Addr         { return memoryAddr{} }
func (c *memoryConn) RemoteAddr() net.Addr        { return memoryAddr{} }

func (c *memoryConn) Close() error {
	c.in.drop()
	c.out.end()
	return nil
}

func (c *memoryConn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.reader, t)
	c.out.setDeadline(&c.out.writer, t)
	return nil
}

func (c *memoryConn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.reader, t)
	return nil
}

func (c *memoryConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writer, t)
	return nil
}

// quiet reports whether the connection is open with nothing to read.
func (c *memoryConn) quiet() bool {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return !c.in.ended && !c.in.dropped && len(c.in.buf) == 0
}

// half is one direction.
type half struct {
	mu      sync.Mutex // guards all below
	changed *sync.Cond
	buf     []byte
	ended   bool // the writer is done: io.EOF behind buf
	dropped bool // the reader is gone
	reader  limit
	writer  limit
}

// limit is the deadline of one side.
type limit struct {
	timer  *time.Timer
	passed bool
}

func newHalf() *half {
	h := &half{}
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.dropped:
			return 0, net.ErrClosed
		case h.reader.passed:
			return 0, os.ErrDeadlineExceeded
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[:copy(h.buf, h.buf[n:])]
			h.changed.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		h.changed.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.dropped || h.ended:
			return n, io.ErrClosedPipe
		case h.writer.passed:
			return n, os.ErrDeadlineExceeded
		case n == len(p):
			return n, nil
		}
		if room := memoryBuffer - len(h.buf); room > 0 {
			k := min(room, len(p)-n)
			h.buf = append(h.buf, p[n:n+k]...)
			n += k
			h.changed.Broadcast()
			continue
		}
		h.changed.Wait()
	}
}

func (h *half) end() {
	h.mu.Lock()
	h.ended = true
	h.writer.stop()
	h.changed.Broadcast()
	h.mu.Unlock()
}

func (h *half) drop() {
	h.mu.Lock()
	h.dropped, h.buf = true, nil
	h.reader.stop()
	h.changed.Broadcast()
	h.mu.Unlock()
}

func (l *limit) stop() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

func (h *half) setDeadline(l *limit, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.stop()
	l.passed = false
	if t.IsZero() {
		return
	}
	d := time.Until(t)
	if d <= 0 {
		l.passed = true
		h.changed.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.timer == timer {
			l.passed = true
			h.changed.Broadcast()
		}
	})
	l.timer = timer
}
