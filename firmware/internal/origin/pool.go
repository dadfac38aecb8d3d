package origin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// clock is the monotonic time since the program's start, cheaper to compare and keep
// than a time.Time.
func clock() time.Duration { return time.Since(started) }

var started = time.Now()

// slack is how much later than asked a deadline may strike: a sixteenth, at most a
// second. It lets a busy connection keep one deadline for many requests, as moving a
// deadline costs about as much as parsing a head.
func slack(d time.Duration) time.Duration { return min(d/16, time.Second) }

// quietBeforeUnsafe is the longest idle time after which a connection may carry a
// request that must not be sent twice: the shorter, the less likely that the origin
// is closing it at this very moment.
const quietBeforeUnsafe = time.Second

// conn is one connection to the origin. One exchange at a time owns it.
type conn struct {
	net.Conn
	in  reader
	out []byte // the request head, and a small body

	fields []Field // scratch of the answer's fields

	deadline  time.Duration // clock time of the deadline that is set, 0 none
	idleSince time.Duration
	idleLimit time.Duration // how long the origin allows, if it said so
	reused    bool
	readOnly  bool   // deadlines are for reading only: a body is being sent
	abort     func() // closes the connection, from any goroutine
	prober    prober
}

// take returns an idle connection that looks alive, or nil.
func (c *Client) take(within time.Duration) *conn {
	for {
		c.mu.Lock()
		n := len(c.idle)
		if n == 0 {
			c.mu.Unlock()
			return nil
		}
		cn := c.idle[n-1]
		now := clock()
		if now-cn.idleSince > min(within, cn.idleLimit) {
			// The youngest is too old already; the sweeper closes what has expired.
			c.mu.Unlock()
			return nil
		}
		c.idle[n-1] = nil
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		if cn.deadline != 0 && cn.deadline <= now {
			cn.setDeadline(0)
		}
		if cn.quiet() {
			cn.reused = true
			return cn
		}
		cn.close()
	}
}

// quiet reports whether an idle connection is still open with nothing to read, as far
// as that can be told without reading.
func (cn *conn) quiet() bool {
	if m, ok := cn.Conn.(*memoryConn); ok {
		return m.quiet()
	}
	return cn.prober.quiet()
}

// put keeps a connection whose last answer was read to its end.
func (c *Client) put(cn *conn) {
	if cn.in.buffered() > 0 || c.conf.MaxIdle < 0 {
		cn.close() // bytes nobody asked for: its state is unknown
		return
	}
	if cn.readOnly {
		cn.setDeadline(0)
		cn.readOnly = false
	}
	cn.idleSince = clock()
	c.mu.Lock()
	if c.closed || cn.idleLimit <= 0 {
		c.mu.Unlock()
		cn.close()
		return
	}
	var over *conn
	if len(c.idle) >= c.conf.MaxIdle {
		over = c.idle[0]
		copy(c.idle, c.idle[1:])
		c.idle = c.idle[:len(c.idle)-1]
	}
	c.idle = append(c.idle, cn)
	if c.sweep == nil {
		c.sweep = time.AfterFunc(c.conf.IdleTimeout, c.expire)
	} else if len(c.idle) == 1 {
		c.sweep.Reset(c.conf.IdleTimeout)
	}
	c.mu.Unlock()
	if over != nil {
		over.close()
	}
}

// expire closes what was idle for too long. It runs on the timer while anything is idle.
func (c *Client) expire() {
	now := clock()
	var dead []*conn
	c.mu.Lock()
	kept := c.idle[:0]
	next := c.conf.IdleTimeout
	for _, cn := range c.idle {
		left := cn.idleSince + min(c.conf.IdleTimeout, cn.idleLimit) - now
		if left <= 0 {
			dead = append(dead, cn)
			continue
		}
		kept = append(kept, cn)
		next = min(next, left)
	}
	clear(c.idle[len(kept):])
	c.idle = kept
	if len(kept) > 0 && !c.closed {
		c.sweep.Reset(next)
	}
	c.mu.Unlock()
	for _, cn := range dead {
		cn.close()
	}
}

// connect opens a new connection.
func (c *Client) connect(ctx context.Context) (*conn, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	limited, cancel := context.WithTimeout(ctx, c.conf.ConnectTimeout)
	defer cancel()
	nc, err := c.dial(limited)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("connect to the origin: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	cn := &conn{Conn: nc, idleLimit: c.conf.IdleTimeout, out: getBuffer()[:0]}
	cn.in = reader{src: nc, buf: getBuffer()}
	cn.abort = func() { _ = nc.Close() }
	cn.prober.init(nc)
	return cn, nil
}

// close ends the connection and gives its buffers back. The owner calls it, once.
func (cn *conn) close() {
	_ = cn.Conn.Close()
	cn.recycle()
}

// recycle gives the buffers back. Nothing may read or write through cn afterwards.
func (cn *conn) recycle() {
	putBuffer(cn.in.buf)
	putBuffer(cn.out)
	cn.in.buf, cn.out, cn.in.r, cn.in.w = nil, nil, 0, 0
}

// setDeadline sets or clears (0) the deadline for both directions, in clock time.
func (cn *conn) setDeadline(at time.Duration) {
	if cn.deadline == at {
		return
	}
	cn.deadline = at
	var t time.Time
	if at != 0 {
		t = started.Add(at)
	}
	if cn.readOnly {
		_ = cn.SetReadDeadline(t)
		return
	}
	_ = cn.SetDeadline(t)
}

// within lets reads and writes fail d from now at the earliest, d + slack(d) at the
// latest. d <= 0 means never.
func (cn *conn) within(d time.Duration) {
	if d <= 0 {
		cn.setDeadline(0)
		return
	}
	if want := clock() + d; cn.deadline < want || cn.deadline > want+slack(d) {
		cn.setDeadline(want + slack(d))
	}
}

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
