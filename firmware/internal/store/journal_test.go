package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func record(pos uint64) []byte { return fmt.Appendf(nil, "%d:%s", pos, make([]byte, pos%97)) }

// model is a journal written the plain way.
type model struct {
	limits Limits
	State
	recs []Record
}

func (m *model) append(recs [][]byte, mark uint64) {
	m.Mark = max(m.Mark, min(mark, m.Next+uint64(len(recs))))
	for _, r := range recs {
		m.recs = append(m.recs, Record{m.Next, r})
		m.Bytes += recordSize(r)
		m.Next++
	}
	for len(m.recs) > 1 && (len(m.recs) > m.limits.Entries || m.Bytes > m.limits.Bytes) {
		m.Bytes -= recordSize(m.recs[0].Data)
		if m.Dropped++; m.recs[0].Pos >= m.Mark {
			m.DroppedPending++
		}
		m.recs = m.recs[1:]
	}
	m.Entries, m.First = len(m.recs), m.Next
	if len(m.recs) > 0 {
		m.First = m.recs[0].Pos
	}
}

// A journal does what the model does, across restarts.
func TestJournal(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := Config{Dir: t.TempDir()}
		limits := Limits{Entries: 1 + rng.IntN(50), Bytes: 100 + rng.Int64N(5000)}
		m := model{limits: limits}
		s := mustOpen(t, c)
		j, err := s.Journal("events", limits)
		if err != nil {
			t.Fatal(err)
		}
		for step := range 200 {
			var recs [][]byte
			for i := range rng.IntN(8) {
				recs = append(recs, record(m.Next+uint64(i)))
			}
			mark := uint64(0)
			if rng.IntN(3) == 0 {
				mark = m.First + rng.Uint64N(20)
			}
			m.append(recs, mark)
			st, err := j.Append(recs, mark)
			if err != nil || st != m.State || j.State() != st {
				t.Fatalf("seed %d step %d: state %+v, %v, want %+v", seed, step, st, err, m.State)
			}
			if rng.IntN(10) == 0 {
				mustClose(t, s)
				s = mustOpen(t, c)
				if j, err = s.Journal("events", limits); err != nil || j.State() != m.State {
					t.Fatalf("seed %d step %d: state after reopening %+v, %v, want %+v", seed, step, j.State(), err, m.State)
				}
			}
			pos, n := rng.Uint64N(m.Next+3), 1+rng.IntN(9)
			got, next, lost, err := j.Read(nil, pos, n, 1<<20)
			want := m.recs
			for len(want) > 0 && want[0].Pos < pos {
				want = want[1:]
			}
			want = want[:min(n, len(want))]
			wantNext := m.Next
			if len(want) > 0 {
				wantNext = want[len(want)-1].Pos + 1
			}
			if err != nil || next != wantNext || lost != (pos < m.First) || !slices.EqualFunc(got, want, func(a, b Record) bool { return a.Pos == b.Pos && string(a.Data) == string(b.Data) }) {
				t.Fatalf("seed %d step %d: Read(%d, %d) = %d records, next %d, lost %v, %v, want %d, %d, %v", seed, step, pos, n, len(got), next, lost, err, len(want), wantNext, pos < m.First)
			}
		}
	}
}

func TestJournalReadBytes(t *testing.T) {
	j, err := mustOpen(t, Config{Dir: t.TempDir()}).Journal("events", Limits{Entries: 10, Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append([][]byte{make([]byte, 100), make([]byte, 100), make([]byte, 100)}, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ maxBytes, want int }{{1, 1}, {199, 1}, {200, 2}, {1000, 3}} {
		if recs, next, _, err := j.Read(nil, 0, 10, c.maxBytes); len(recs) != c.want || next != uint64(c.want) || err != nil {
			t.Errorf("Read of at most %d bytes = %d records, next %d, %v, want %d", c.maxBytes, len(recs), next, err, c.want)
		}
	}
	if _, err := j.Append([][]byte{make([]byte, MaxRecord+1)}, 0); err == nil {
		t.Error("a record above the bound was taken")
	}
}

// A commit whose last sync fails may be in the file all the same. Nobody was told of it, so its positions
// are given to what comes next, and nothing of it is left.
func TestJournalAfterFailedSync(t *testing.T) {
	failure := errors.New("input/output error")
	var fail error
	s := mustOpen(t, Config{Dir: t.TempDir(), committed: func() error { return fail }})
	j, err := s.Journal("events", Limits{Entries: 5, Bytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var st State
	for _, c := range []struct {
		fail error
		recs []string
		want string // what can be read then
	}{
		{nil, []string{"a", "b", "c"}, "a b c"},
		{failure, []string{"d", "e", "f", "g"}, "c"}, // a and b were dropped for what failed
		{failure, []string{"d", "e", "f", "g"}, "c"},
		{nil, []string{"h"}, "c h"},
		{nil, []string{"i", "j"}, "c h i j"},
	} {
		before := j.State()
		var recs [][]byte
		for _, r := range c.recs {
			recs = append(recs, []byte(r))
		}
		fail = c.fail
		st, err = j.Append(recs, 0)
		if !errors.Is(err, c.fail) || c.fail != nil && (st.Next != before.Next) {
			t.Fatalf("Append(%q) = %+v, %v, want %v", c.recs, st, err, c.fail)
		}
		got, next, _, err := j.Read(nil, 0, 100, 1<<20)
		if err != nil || next != st.Next {
			t.Fatalf("Read = next %d, %v, want %d", next, err, st.Next)
		}
		text := ""
		for i, r := range got {
			text += " "[:min(i, 1)] + string(r.Data)
		}
		if text != c.want || c.fail == nil && (st.Entries != len(got) || st.Next != got[len(got)-1].Pos+1 || st.First != got[0].Pos) {
			t.Errorf("after %q: %q, state %+v, want %q", c.recs, text, st, c.want)
		}
	}
}
