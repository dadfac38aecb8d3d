package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/origin"
)

var started = time.Now()

// now is the monotonic time since the program's start.
func now() time.Duration { return time.Since(started) }

// Failures of a client's body.
var (
	errTooLarge = errors.New("request body too large")
	errTooSlow  = errors.New("request body too slow")
)

// past is a deadline that has struck.
var past = time.Unix(1, 0)

// requestBody prepares the body, and answers itself when that is not possible.
func (x *exchange) requestBody() bool {
	r, limit := x.r, x.p.conf.MaxBody
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 && len(r.Trailer) == 0 {
		return true
	}
	if limit > 0 && r.ContentLength > limit {
		x.refuse(http.StatusRequestEntityTooLarge, errTooLarge.Error())
		return false
	}
	expect := len(r.Header["Expect"]) > 0
	if r.ContentLength >= 0 && r.ContentLength <= smallBody && !expect && len(r.Trailer) == 0 {
		if err := x.readSmall(int(r.ContentLength)); err != nil {
			x.refuseFor(fmt.Errorf("%w: %w", origin.ErrRequestBody, err))
			return false
		}
		x.req.Payload = x.small
		return true
	}
	if r.ProtoMajor == 1 {
		// Without it the server would read the rest of the body itself before the first
		// byte of an answer. Where it is not supported it is not needed.
		_ = http.NewResponseController(x.w).EnableFullDuplex()
	}
	x.body = &clientBody{x: x, start: now()}
	x.req.Body, x.req.Length = x.body, r.ContentLength
	x.req.Trailer = func() map[string][]string { return r.Trailer }
	x.req.Expect = expect
	x.req.Interrupt = x.interrupt
	return true
}

// readSmall reads a whole body of n bytes into x.small.
func (x *exchange) readSmall(n int) error {
	if cap(x.small) < n {
		x.small = make([]byte, smallBody)
	}
	x.small = x.small[:n]
	var slow atomic.Bool
	if d := x.p.conf.ClientTimeout; d > 0 {
		w, r := x.w, x.r // not x, which may have moved on when the timer strikes
		t := time.AfterFunc(d, func() {
			slow.Store(true)
			stopReading(w, r)
		})
		defer t.Stop()
	}
	_, err := io.ReadFull(x.r.Body, x.small)
	if err != nil && slow.Load() {
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(drainTime))
		return errTooSlow
	}
	return err
}

// stopReading makes a blocked read of the request's body return.
func stopReading(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).SetReadDeadline(past) != nil {
		_ = r.Body.Close()
	}
}

// interrupt ends the reading of the request's body for good.
func (x *exchange) interrupt() {
	x.body.over.Store(true)
	stopReading(x.w, x.r)
}

// clientBody reads a streaming request body and keeps its limits: size, silence, and a
// rate below which a client only means to occupy a place (slow loris). One goroutine
// reads it, package origin's.
type clientBody struct {
	x     *exchange
	start time.Duration
	n     int64
	timer *time.Timer // runs while a read waits

	whole atomic.Bool // read to its end
	slow  atomic.Bool // the timer struck
	over  atomic.Bool // nobody wants the rest
}

func (b *clientBody) Read(p []byte) (int, error) {
	conf := &b.x.p.conf
	if b.over.Load() {
		return 0, io.ErrUnexpectedEOF
	}
	if conf.ClientTimeout > 0 {
		if b.timer == nil {
			b.timer = time.AfterFunc(conf.ClientTimeout, func() {
				b.slow.Store(true)
				stopReading(b.x.w, b.x.r)
			})
		} else {
			b.timer.Reset(conf.ClientTimeout)
		}
	}
	n, err := b.x.r.Body.Read(p)
	if b.timer != nil {
		b.timer.Stop()
	}
	b.n += int64(n)
	switch {
	case err == io.EOF:
		b.whole.Store(true)
	case err != nil && b.slow.Load():
		err = errTooSlow
	}
	if conf.MaxBody > 0 && b.n > conf.MaxBody {
		return 0, errTooLarge
	}
	if err == nil && conf.MinBodyRate > 0 && !b.x.answered.Load() {
		if judged := now() - b.start - rateGrace; judged > 0 && b.n < int64(judged.Seconds()*float64(conf.MinBodyRate)) {
			return n, errTooSlow
		}
	}
	return n, err
}
