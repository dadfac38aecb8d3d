package sse

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

// stepReader gives at most step bytes at a time.
type stepReader struct {
	b    []byte
	step int
}

func (s *stepReader) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.step)], s.b)
	s.b = s.b[n:]
	return n, nil
}

func readAll(r *Reader) (evs []Event, err error) {
	for {
		e, err := r.Next()
		if err != nil {
			return evs, err
		}
		evs = append(evs, e)
	}
}

// The examples and rules of WHATWG HTML §9.2.5 and §9.2.6.
func TestReader(t *testing.T) {
	text := func(id, name, data string) Event { return Event{ID: id, Name: name, Data: []byte(data)} }
	for name, c := range map[string]struct {
		in    string
		want  []Event
		last  string
		retry time.Duration
	}{
		"example stocks":           {in: "data: YHOO\ndata: +2\ndata: 10\n\n", want: []Event{text("", "", "YHOO\n+2\n10")}},
		"example comment and ids":  {in: ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n", want: []Event{text("1", "", "first event"), text("", "", "second event")}},
		"example empty events":     {in: "data\n\ndata\ndata\n\ndata:", want: []Event{text("", "", ""), text("", "", "\n")}},
		"example colon and space":  {in: "data:test\n\ndata: test\n\n", want: []Event{text("", "", "test"), text("", "", "test")}},
		"CR, CRLF and LF mixed":    {in: "data: a\rdata: b\r\ndata: c\n\r\n\r\rdata: d\r\r", want: []Event{text("", "", "a\nb\nc"), text("", "", "d")}},
		"byte order mark":          {in: "\ufeffdata: a\n\n", want: []Event{text("", "", "a")}},
		"second byte order mark":   {in: "\ufeff\ufeffdata: a\n\n"},
		"id without data":          {in: "id: 7\n\n", last: "7"},
		"id stays":                 {in: "id: 7\ndata: a\n\ndata: b\n\n", want: []Event{text("7", "", "a"), text("7", "", "b")}, last: "7"},
		"id with NUL is ignored":   {in: "id: 7\n\nid: 8\x00\ndata: a\n\n", want: []Event{text("7", "", "a")}, last: "7"},
		"id of a cut event":        {in: "id: 7\ndata: a\n\nid: 8\ndata: b\n", want: []Event{text("7", "", "a")}, last: "7"},
		"name is for one event":    {in: "event: x\n\ndata: a\n\nevent: y\ndata: b\n\n", want: []Event{text("", "", "a"), text("", "y", "b")}},
		"retry":                    {in: "retry: 2500\n\n", retry: 2500 * time.Millisecond},
		"retry not digits":         {in: "retry: 2500\nretry: +1\nretry: 1s\nretry:\n\n", retry: 2500 * time.Millisecond},
		"retry for ever is bound":  {in: "retry: 99999999999999\n\n", retry: maxRetry},
		"unknown field, odd space": {in: "Data: x\n data: y\nfoo: bar\ndata : z\n\n"},
		"nothing":                  {in: ""},
		"heartbeats":               {in: strings.Repeat(heartbeat, 3)},
	} {
		for _, step := range []int{1, 2, 3, 4096} {
			r := NewReader(&stepReader{[]byte(c.in), step})
			got, err := readAll(r)
			if !errors.Is(err, io.EOF) || !reflect.DeepEqual(got, c.want) || r.LastID() != c.last || r.Retry() != c.retry {
				t.Errorf("%s (by %d): %q, %v, last %q, retry %v, want %q, EOF, %q, %v", name, step, got, err, r.LastID(), r.Retry(), c.want, c.last, c.retry)
			}
		}
	}
}

// A CR at the end of what has come so far ends the line: the reader must not wait for a LF.
func TestReaderDoesNotWaitAfterCR(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close()
	go pw.Write([]byte("data: a\r\r")) // and nothing more: Next would hang
	if e, err := NewReader(pr).Next(); err != nil || string(e.Data) != "a" {
		t.Errorf("Next = %q, %v, want a", e.Data, err)
	}
}

func TestReaderBounds(t *testing.T) {
	if _, err := NewReader(endless{}).Next(); !errors.Is(err, ErrTooLong) {
		t.Errorf("endless line: %v, want ErrTooLong", err)
	}
	line := "data: " + strings.Repeat("x", MaxLine/2) + "\n"
	if _, err := NewReader(strings.NewReader(strings.Repeat(line, 2*MaxEvent/MaxLine+1))).Next(); !errors.Is(err, ErrTooLong) {
		t.Errorf("endless event: %v, want ErrTooLong", err)
	}
	if _, err := NewReader(strings.NewReader(strings.Repeat("event: x\nid: 1\n", 1<<17))).Next(); !errors.Is(err, io.EOF) {
		t.Errorf("many fields: %v, want EOF", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte("x"), len(p))), nil }

// Any bytes give the same events however they are cut, and nothing grows beyond its bound.
func FuzzReader(f *testing.F) {
	f.Add([]byte("\ufeffid: 1\r\nevent: x\rdata: a\n\ndata\n\n: c\nretry: 10\n\n"))
	f.Add([]byte("data: a\r\n\r\ndata: b\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := readAll(NewReader(bytes.NewReader(b)))
		parts, err2 := readAll(NewReader(&stepReader{b, 1}))
		if !reflect.DeepEqual(whole, parts) || !errors.Is(err2, err) && err.Error() != err2.Error() {
			t.Fatalf("in one piece %q, %v; by bytes %q, %v", whole, err, parts, err2)
		}
		for _, e := range whole {
			if len(e.Data) > MaxEvent || strings.ContainsAny(e.ID, "\x00\r\n") || strings.ContainsAny(e.Name, "\r\n") || bytes.IndexByte(e.Data, '\r') >= 0 {
				t.Fatalf("event %+v", e)
			}
		}
	})
}
