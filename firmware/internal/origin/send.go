package origin

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// bodyBuffer is how much of a streaming request body is in flight, in bytes.
const bodyBuffer = 32 << 10

// chunkRoom is kept free around the data for the chunk's size line and end.
const chunkRoom = len("fffffff\r\n")

var bodyBuffers = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}

// sender writes a streaming request body while the answer is awaited and read by
// others, since an origin may answer before it has read the body (RFC 9110 §10.1.1,
// RFC 9112 §9.5).
type sender struct {
	cn *conn
	q  *Request

	goAhead chan struct{} // closed when the body may go out; nil: at once
	quit    chan struct{} // closed when the exchange is over
	done    chan struct{} // closed when run has returned
	err     error         // valid after done; nil: the whole body went out

	reading  atomic.Bool  // waits for the client, not for the origin
	consumed atomic.Bool  // the client's body was read to its end
	progress atomic.Int64 // clock at the end of the last write, as a time.Duration
}

func (s *sender) run() {
	defer close(s.done)
	s.err = s.copy()
	if s.err != nil && !errors.Is(s.err, errPeerClosed) {
		// The origin must not take half a body for a whole one, and whoever waits for
		// the answer must wake up. After a failed write the answer may still be there.
		s.cn.abort()
	}
}

// errPeerClosed: the origin reads no more. It may have answered already.
var errPeerClosed = errors.New("origin stopped reading")

var errOver = errors.New("exchange over")

func (s *sender) copy() error {
	if s.goAhead != nil {
		t := time.NewTimer(continueWait)
		defer t.Stop()
		select {
		case <-s.goAhead:
		case <-t.C:
		case <-s.quit:
			return errOver
		}
	}
	buf := bodyBuffers.Get().(*[bodyBuffer]byte)
	defer bodyBuffers.Put(buf)
	if s.q.chunked() {
		return s.copyChunked(buf[:])
	}
	for left := s.q.Length; left > 0; {
		n, err := s.read(buf[:min(int64(bodyBuffer), left)])
		left -= int64(n)
		if left == 0 {
			s.consumed.Store(true)
		}
		if n > 0 {
			if werr := s.write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil && left > 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%w: %w", ErrRequestBody, err)
		}
	}
	s.consumed.Store(true)
	return nil
}

func (s *sender) copyChunked(buf []byte) error {
	for {
		n, err := s.read(buf[chunkRoom : len(buf)-chunkRoom])
		if err != nil && err != io.EOF {
			return fmt.Errorf("%w: %w", ErrRequestBody, err)
		}
		out := buf[chunkRoom:chunkRoom]
		if n > 0 {
			const hex = "0123456789abcdef"
			at := chunkRoom - 2
			copy(buf[at:], "\r\n")
			for v := n; v > 0; v >>= 4 {
				at--
				buf[at] = hex[v&15]
			}
			out = append(buf[at:chunkRoom+n], "\r\n"...)
		}
		if err == io.EOF {
			s.consumed.Store(true)
			var terr error
			if out, terr = s.q.appendTrailer(out); terr != nil {
				return terr
			}
			return s.write(out)
		}
		if len(out) > 0 {
			if werr := s.write(out); werr != nil {
				return werr
			}
		}
	}
}

func (s *sender) read(p []byte) (int, error) {
	s.reading.Store(true)
	n, err := s.q.Body.Read(p)
	s.reading.Store(false)
	return n, err
}

func (s *sender) write(p []byte) error {
	s.progress.Store(int64(clock()))
	_, err := s.cn.Write(p)
	s.progress.Store(int64(clock()))
	if err != nil {
		return fmt.Errorf("%w: %w", errPeerClosed, err)
	}
	return nil
}

// waitingSince is the clock since which the origin has had all it can expect of us; now
// while the client is the one who is slow.
func (s *sender) waitingSince() time.Duration {
	if s.reading.Load() {
		return clock()
	}
	return time.Duration(s.progress.Load())
}

// senderGrace is how long a sender gets to finish by itself when the answer is over:
// the answer to the last chunk can overtake the return of its write.
const senderGrace = 50 * time.Millisecond

// stop ends the sender and waits for it. It reports whether the whole body went out.
func (s *sender) stop() bool {
	select {
	case <-s.done:
		return s.err == nil
	default:
	}
	if s.consumed.Load() {
		t := time.NewTimer(senderGrace)
		defer t.Stop()
		select {
		case <-s.done:
			return s.err == nil
		case <-t.C:
		}
	}
	close(s.quit)
	s.cn.abort()
	if s.q.Interrupt != nil {
		s.q.Interrupt()
	}
	<-s.done
	return false
}
