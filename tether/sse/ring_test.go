package sse

import (
	"fmt"
	"strings"
	"testing"
)

func numbered(n int) Event {
	return Event{ID: fmt.Sprint(n), Data: fmt.Appendf(nil, "event %d", n)}
}

func TestRing(t *testing.T) {
	r := NewRing(3, 1<<20)
	if pos, ok := r.Seek(""); pos != 0 || !ok {
		t.Errorf("Seek of the end of nothing = %d, %v, want 0, true", pos, ok)
	}
	for i := 1; i <= 5; i++ {
		changed := r.Changed()
		r.Append(numbered(i))
		select {
		case <-changed:
		default:
			t.Errorf("append %d did not tell", i)
		}
	}
	if r.Len() != 3 || r.Dropped() != 2 {
		t.Errorf("kept %d, dropped %d, want 3, 2", r.Len(), r.Dropped())
	}
	for id, want := range map[string]struct {
		pos uint64
		ok  bool
	}{"": {5, true}, "5": {5, true}, "3": {3, true}, "2": {0, false}, "x": {0, false}} {
		if pos, ok := r.Seek(id); pos != want.pos || ok != want.ok {
			t.Errorf("Seek(%q) = %d, %v, want %d, %v", id, pos, ok, want.pos, want.ok)
		}
	}
	for _, c := range []struct {
		pos  uint64
		max  int
		ids  string
		next uint64
		lost bool
	}{
		{0, 9, "3 4 5", 5, true}, {1, 1, "3", 3, true}, {2, 9, "3 4 5", 5, false}, {3, 1, "4", 4, false},
		{5, 9, "", 5, false}, {7, 9, "", 5, false},
	} {
		evs, next, lost := r.Read(nil, c.pos, c.max)
		var ids []string
		for _, e := range evs {
			ids = append(ids, e.ID)
		}
		if got := strings.Join(ids, " "); got != c.ids || next != c.next || lost != c.lost {
			t.Errorf("Read(%d, %d) = %q, %d, %v, want %q, %d, %v", c.pos, c.max, got, next, lost, c.ids, c.next, c.lost)
		}
	}
}

func TestRingBytes(t *testing.T) {
	r := NewRing(1000, 1000)
	for i := range 100 {
		r.Append(Event{ID: fmt.Sprint(i), Data: make([]byte, 100)})
		if r.bytes > 1000 {
			t.Fatalf("holds %d bytes, at most 1000 are allowed", r.bytes)
		}
	}
	r.Append(Event{ID: "big", Data: make([]byte, 5000)})
	if evs, _, _ := r.Read(nil, 0, 10); len(evs) != 1 || evs[0].ID != "big" {
		t.Errorf("after an event above the bound: %d events, want it alone", len(evs))
	}
	if cap(r.evs) > 64 {
		t.Errorf("the array has %d places for one event", cap(r.evs))
	}
}
