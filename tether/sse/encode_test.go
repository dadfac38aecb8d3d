package sse

import (
	"bytes"
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	for name, c := range map[string]struct {
		e    Event
		want string
	}{
		"plain":                          {Event{ID: "1", Data: []byte("a")}, "id: 1\ndata: a\n\n"},
		"name":                           {Event{Name: "zone", Data: []byte("a")}, "event: zone\ndata: a\n\n"},
		"empty data is an event":         {Event{ID: "1"}, "id: 1\ndata: \n\n"},
		"LF":                             {Event{Data: []byte("a\nid: 9")}, "data: a\ndata: id: 9\n\n"},
		"CR":                             {Event{Data: []byte("a\rid: 9")}, "data: a\ndata: id: 9\n\n"},
		"CRLF is one line end":           {Event{Data: []byte("a\r\nb\n\r")}, "data: a\ndata: b\ndata: \ndata: \n\n"},
		"empty line does not end it":     {Event{Data: []byte("a\n\nevent: x")}, "data: a\ndata: \ndata: event: x\n\n"},
		"leading space is kept":          {Event{Data: []byte(" a")}, "data:  a\n\n"},
		"id with LF is left out":         {Event{ID: "1\ndata: x", Data: []byte("a")}, "data: a\n\n"},
		"id with NUL is left out":        {Event{ID: "1\x00", Data: []byte("a")}, "data: a\n\n"},
		"name with CR is left out":       {Event{Name: "a\rdata: x", Data: []byte("a")}, "data: a\n\n"},
		"colon and field names are text": {Event{ID: ":", Name: "data: x", Data: []byte(":")}, "event: data: x\nid: :\ndata: :\n\n"},
	} {
		if got := string(Append(nil, c.e)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := string(appendMark(nil, "")) + string(appendMark(nil, "a\nb")); got != "" {
		t.Errorf("mark without an id that can be carried = %q, want nothing", got)
	}
}

// What is written is what is read, whatever the texts hold and however the stream is cut.
func FuzzRoundTrip(f *testing.F) {
	f.Add("1", "zone", []byte("a"), 1)
	f.Add("", "", []byte("a\nid: 9\n\ndata: x\r\nretry: 1\r\r"), 2)
	f.Add("\x00", "message", []byte(" \xff\xfe: \n"), 3)
	f.Add("1\r2", "\n", []byte{}, 7)
	f.Add("\ufeff", "\ufeff", []byte("\ufeff"), 1)
	f.Fuzz(func(t *testing.T, id, name string, data []byte, step int) {
		if len(id) > 1<<10 || len(name) > 1<<10 || len(data) > 32<<10 {
			t.Skip("longer than what one line may be")
		}
		first, last := Event{ID: "first", Name: "x", Data: []byte("first")}, Event{ID: "last", Data: []byte("last")}
		wire := Append(nil, first)
		wire = Append(wire, Event{ID: id, Name: name, Data: data})
		wire = Append(append(wire, heartbeat...), last)

		want := Event{ID: id, Name: name, Data: data}
		if id == "" || strings.ContainsAny(id, "\x00\r\n") {
			want.ID = first.ID
		}
		if strings.ContainsAny(name, "\r\n") || name == "message" {
			want.Name = ""
		}
		want.Data = bytes.ReplaceAll(want.Data, []byte("\r\n"), []byte("\n"))
		want.Data = bytes.ReplaceAll(want.Data, []byte("\r"), []byte("\n"))

		r := NewReader(&stepReader{wire, max(1, step%64)})
		for i, w := range []Event{first, want, last} {
			got, err := r.Next()
			if err != nil || got.ID != w.ID || got.Name != w.Name || !bytes.Equal(got.Data, w.Data) {
				t.Fatalf("event %d of %q = %+v, %v, want %+v", i, wire, got, err, w)
			}
		}
		if got, err := r.Next(); err == nil {
			t.Fatalf("one event too many: %+v", got)
		}
	})
}
