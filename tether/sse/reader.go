package sse

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Bounds of a Reader.
const (
	MaxLine  = 64 << 10 // bytes of one line
	MaxEvent = 1 << 20  // bytes of the data of one event
	maxRetry = 24 * time.Hour
)

// ErrTooLong means that a line or the data of an event exceeds its bound; the stream cannot be read on.
var ErrTooLong = errors.New("event stream: too long")

// Reader reads an event stream as a browser's EventSource does (WHATWG HTML §9.2.6), except
// that it leaves invalid UTF-8 as it is. It is for one goroutine. Deadlines and reconnecting are the caller's.
type Reader struct {
	br      *bufio.Reader
	started bool
	sawCR   bool // the last line ended with CR: a LF that comes next belongs to it
	line    []byte

	id    string // "last event ID buffer"
	last  string // as of the last dispatched or marked event
	name  string
	data  []byte
	retry time.Duration
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{br: bufio.NewReader(r)} }

// LastID is what to send as Last-Event-ID when reconnecting; "" when there is none yet.
func (r *Reader) LastID() string { return r.last }

// Retry is the wait before reconnecting that the server asked for last, 0 when it did not.
func (r *Reader) Retry() time.Duration { return r.retry }

// Next returns the next event. Its ID is the id in effect, which an earlier event may have
// set. The data is the caller's. The end of the stream is io.EOF, and an event that it cut off is
// discarded; a bound exceeded is ErrTooLong.
func (r *Reader) Next() (Event, error) {
	for {
		line, err := r.readLine()
		if err != nil {
			return Event{}, err
		}
		if len(line) > 0 {
			if err := r.field(line); err != nil {
				return Event{}, err
			}
			continue
		}
		r.last = r.id
		name, data := r.name, r.data
		r.name, r.data = "", nil
		if len(data) > 0 { // each line of data added a LF, so "data:" alone dispatches an empty event
			return Event{ID: r.last, Name: name, Data: data[:len(data)-1]}, nil
		}
	}
}

func (r *Reader) field(line []byte) error {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		r.name = string(value)
		if r.name == "message" {
			r.name = "" // the same by definition
		}
	case "data":
		if len(r.data)+len(value) >= MaxEvent {
			return fmt.Errorf("%w: more than %d bytes in one event", ErrTooLong, MaxEvent)
		}
		r.data = append(append(r.data, value...), '\n')
	case "id":
		if bytes.IndexByte(value, 0) < 0 {
			r.id = string(value)
		}
	case "retry":
		for _, c := range value {
			if c < '0' || c > '9' {
				return nil
			}
		}
		if ms, err := strconv.ParseInt(string(value), 10, 64); err == nil {
			r.retry = time.Duration(min(ms, maxRetry.Milliseconds())) * time.Millisecond
		}
	}
	return nil // comments have an empty name; unknown fields are ignored
}

// readLine returns the next line without its end. It never waits for the byte after a CR.
func (r *Reader) readLine() ([]byte, error) {
	r.line = r.line[:0]
	for {
		if _, err := r.br.Peek(1); err != nil {
			return nil, err
		}
		chunk, _ := r.br.Peek(r.br.Buffered())
		if r.sawCR {
			r.sawCR = false
			if chunk[0] == '\n' {
				_, _ = r.br.Discard(1)
				continue
			}
		}
		i := bytes.IndexAny(chunk, "\r\n")
		n := i
		if i < 0 {
			n = len(chunk)
		}
		if len(r.line)+n > MaxLine {
			return nil, fmt.Errorf("%w: more than %d bytes in one line", ErrTooLong, MaxLine)
		}
		r.line = append(r.line, chunk[:n]...)
		if i < 0 {
			_, _ = r.br.Discard(n)
			continue
		}
		r.sawCR = chunk[i] == '\r'
		_, _ = r.br.Discard(n + 1)
		if !r.started {
			r.started = true
			r.line = bytes.TrimPrefix(r.line, []byte("\xef\xbb\xbf")) // one byte order mark (§9.2.5)
		}
		return r.line, nil
	}
}
