package origin

import (
	"io"
	"net"
	"sync"
)

// bufferSize holds a usual answer, head and body, in one read. In bytes.
const bufferSize = 8 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func getBuffer() []byte { return buffers.Get().(*[bufferSize]byte)[:] }

// putBuffer takes back a buffer of getBuffer; others (grown ones) go to the collector.
func putBuffer(b []byte) {
	if cap(b) == bufferSize {
		buffers.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}

// reader is a buffered reader that hands out views of its buffer.
type reader struct {
	src  net.Conn
	buf  []byte
	r, w int  // buf[r:w] is unread
	any  bool // at least one byte came since the last exchange began
}

func (b *reader) buffered() int { return b.w - b.r }

// fill reads once more from the source, behind what is there. It returns
// errBufferFull when the buffer has no room.
func (b *reader) fill() error {
	if b.r == b.w {
		b.r, b.w = 0, 0
	}
	if b.w == len(b.buf) {
		if b.r == 0 {
			return errBufferFull
		}
		copy(b.buf, b.buf[b.r:b.w])
		b.w -= b.r
		b.r = 0
	}
	for range 100 {
		n, err := b.src.Read(b.buf[b.w:])
		if n > 0 {
			b.w += n
			b.any = true
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// grow doubles the buffer, up to limit bytes. It reports false at the limit.
func (b *reader) grow(limit int) bool {
	if len(b.buf) >= limit {
		return false
	}
	bigger := make([]byte, min(2*len(b.buf), limit))
	n := copy(bigger, b.buf[b.r:b.w])
	putBuffer(b.buf)
	b.buf, b.r, b.w = bigger, 0, n
	return true
}

// read serves p from the buffer first, then straight from the source.
func (b *reader) read(p []byte) (int, error) {
	if b.r < b.w {
		n := copy(p, b.buf[b.r:b.w])
		b.r += n
		return n, nil
	}
	return b.src.Read(p)
}
