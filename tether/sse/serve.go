package sse

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// Options of Serve; the zero value is fit for use.
type Options struct {
	Heartbeat    time.Duration   // a comment after so long a silence; default 15 s
	WriteTimeout time.Duration   // a listener that does not take what is written in this time is dropped; default 20 s
	Retry        time.Duration   // reconnect hint, spread by ±50 % so that listeners do not all come back at once; default 3 s
	Done         <-chan struct{} // closed: end all streams cleanly (drain); listeners come back after Retry
	Limiter      *Limiter        // nil: any number of listeners
}

// Defaults of Options.
const (
	DefaultHeartbeat    = 15 * time.Second
	DefaultWriteTimeout = 20 * time.Second
	DefaultRetry        = 3 * time.Second
)

// What one listener holds: a cursor, and while it is being written to at most one batch.
const (
	batchEvents = 16       // events read from the log at once
	flushBytes  = 16 << 10 // the buffer is written out when it holds so much
	idleBuffer  = 4 << 10  // a larger buffer is given back while nothing happens
)

// ErrSlow means that the listener was dropped because it did not take what was written to it
// within Options.WriteTimeout.
var ErrSlow = errors.New("event listener too slow")

// Serve answers r with the events of l until the client goes, o.Done is closed or the listener
// proves too slow. It answers GET and HEAD; the place to start is the header Last-Event-ID, or the
// query parameter lastEventId for pages that cannot set headers (the header wins). Routing and
// access are the caller's. The returned error is for the log only, the answer has been
// given: nil when the client went or Done was closed, ErrSlow, ErrTooMany (answered 503), or
// what writing gave.
func Serve(w http.ResponseWriter, r *http.Request, l Log, o Options) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "events are read with GET")
		return nil
	}
	o.fill()
	if o.Limiter != nil {
		if !o.Limiter.acquire() {
			w.Header().Set("Retry-After", strconv.Itoa(int(max(o.Retry, time.Second)/time.Second)))
			refuse(w, http.StatusServiceUnavailable, "too many event listeners")
			return ErrTooMany
		}
		defer o.Limiter.release()
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx in front would collect events otherwise
	if r.ProtoMajor == 1 {
		// The stream ends with the connection anyway, and the write deadline of its last
		// bytes must not fall upon a later request: net/http does not clear it.
		h.Set("Connection", "close")
	}
	if r.Method == http.MethodHead {
		return nil
	}
	s := stream{w: w, rc: http.NewResponseController(w), o: o}
	err := s.run(r, l)
	// net/http ends the context also when a write failed.
	if r.Context().Err() != nil && !errors.Is(err, ErrSlow) {
		return nil
	}
	return err
}

func (o *Options) fill() {
	if o.Heartbeat <= 0 {
		o.Heartbeat = DefaultHeartbeat
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = DefaultWriteTimeout
	}
	if o.Retry <= 0 {
		o.Retry = DefaultRetry
	}
}

// stream is one listener.
type stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	o   Options
	buf []byte
	evs []Event
}

func (s *stream) run(r *http.Request, l Log) error {
	s.buf = appendRetry(s.buf, s.o.Retry/2+rand.N(s.o.Retry))
	pos, told := s.start(r, l)
	if err := s.flush(); err != nil {
		return err
	}
	beat := time.NewTimer(s.o.Heartbeat)
	defer beat.Stop()
	for {
		changed := l.Changed() // before Read, or an append in between would go unnoticed
		evs, next, lost := l.Read(s.evs[:0], pos, batchEvents)
		if lost && !told {
			s.buf = Append(s.buf, reset(ReasonLagged))
		}
		told = false
		for _, e := range evs {
			s.buf = Append(s.buf, e)
			if len(s.buf) >= flushBytes {
				if err := s.flush(); err != nil {
					return err
				}
			}
		}
		pos, s.evs = next, evs
		if len(s.buf) > 0 {
			if err := s.flush(); err != nil {
				return err
			}
			beat.Reset(s.o.Heartbeat)
		}
		if len(evs) > 0 {
			clear(evs)
			// Not select's choice: a listener that never catches up must notice the end too.
			if ended(s.o.Done) || r.Context().Err() != nil {
				return s.end()
			}
			continue
		}
		s.idle()
		select {
		case <-changed:
		case <-r.Context().Done():
			return nil
		case <-s.o.Done:
			return s.end()
		case <-beat.C:
			s.buf = append(s.buf, heartbeat...)
			if err := s.flush(); err != nil {
				return err
			}
			beat.Reset(s.o.Heartbeat)
		}
	}
}

// start finds the first position and puts into the buffer what the listener is to know of
// it; told means that it knows already that events are missing.
func (s *stream) start(r *http.Request, l Log) (pos uint64, told bool) {
	id := r.Header.Get("Last-Event-ID")
	if id == "" {
		id = r.URL.Query().Get("lastEventId")
	}
	if id == "" {
		if e, ok := l.(Ender); ok {
			id, pos = e.End()
			s.buf = appendMark(s.buf, id)
			return pos, false
		}
	}
	pos, ok := l.Seek(id)
	if ok {
		return pos, false
	}
	s.buf = Append(s.buf, reset(ReasonGone))
	return 0, true
}

// end leaves a deadline for what the server still writes behind the last event.
func (s *stream) end() error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(s.o.WriteTimeout))
	return nil
}

func reset(reason string) Event {
	return Event{Name: ResetName, Data: []byte(`{"reason":"` + reason + `"}`)}
}

// flush writes the buffer out and empties it. The deadline holds for this write only: HTTP/2 would
// otherwise reset a stream that is merely silent.
func (s *stream) flush() error {
	limited := s.rc.SetWriteDeadline(time.Now().Add(s.o.WriteTimeout)) == nil
	began := time.Now()
	_, err := s.w.Write(s.buf)
	if err == nil {
		err = s.rc.Flush()
	}
	s.buf = s.buf[:0]
	if err != nil {
		// HTTP/2 does not say "timeout", only the clock does.
		if limited && time.Since(began) >= s.o.WriteTimeout {
			return fmt.Errorf("%w: %w", ErrSlow, err)
		}
		return fmt.Errorf("write events: %w", err)
	}
	if limited {
		_ = s.rc.SetWriteDeadline(time.Time{})
	}
	return nil
}

// idle gives a large buffer back for the time in which nothing happens.
func (s *stream) idle() {
	if cap(s.buf) > idleBuffer {
		s.buf = nil
	}
}

func ended(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

func refuse(w http.ResponseWriter, status int, message string) {
	body, _ := json.Marshal(struct {
		Error   int    `json:"error"`
		Message string `json:"message"`
	}{status, message})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
