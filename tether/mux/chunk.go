package mux

import "sync"

// Received bytes wait in chunks of three sizes; small pieces fill the last chunk first, so
// that a peer that sends single bytes costs no more than one that does not.
var chunkSizes = [...]int{1 << 10, 4 << 10, 16 << 10}

var chunkPools [len(chunkSizes)]sync.Pool

// chunk is queued in one stream and then belongs to that stream's reader. Nothing outside
// this package keeps one: Read copies, WriteChunk lends it to one Write call.
type chunk struct {
	next  *chunk
	class int
	r, w  int // unread bytes are buf[r:w]
	buf   []byte
}

// newChunk gives a chunk for at least want bytes if there is such a class, else the largest.
func newChunk(want int) *chunk {
	class := 0
	for class < len(chunkSizes)-1 && chunkSizes[class] < want {
		class++
	}
	if c, ok := chunkPools[class].Get().(*chunk); ok {
		return c
	}
	return &chunk{class: class, buf: make([]byte, chunkSizes[class])}
}

func (c *chunk) free() {
	c.next, c.r, c.w = nil, 0, 0
	chunkPools[c.class].Put(c)
}

// queue is a stream's received bytes in order.
type queue struct {
	head, tail *chunk
	bytes      int // unread
}

// push appends p.
func (q *queue) push(p []byte, b *Budget) {
	q.bytes += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.buf) {
			// A queue that grows takes larger chunks even for small pieces.
			c := newChunk(max(len(p), min(q.bytes, chunkSizes[len(chunkSizes)-1])))
			b.add(len(c.buf))
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.buf[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

// pop takes the first chunk out; nil if there is none. Its bytes stay in the budget until
// it is freed.
func (q *queue) pop() *chunk {
	c := q.head
	if c == nil {
		return nil
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	q.bytes -= c.w - c.r
	return c
}

// drop frees all chunks and says how many bytes they held.
func (q *queue) drop(b *Budget) {
	for c := q.pop(); c != nil; c = q.pop() {
		b.add(-len(c.buf))
		c.free()
	}
}
