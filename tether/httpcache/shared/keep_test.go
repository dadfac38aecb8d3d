package shared

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// memo is a Keeper that keeps the last snapshot.
type memo struct{ last *Snapshot }

func (m *memo) Note(host, uri string, s *Snapshot) { m.last = s }
func (m *memo) Forget(func(string) bool)           { m.last = nil }

func snapshotOf(t *testing.T) []byte {
	m := &memo{}
	conf := Gateway()
	conf.Keeper = m
	g := newRig(t, conf)
	g.answers("Cache-Control: max-age=600", `Etag: "a"`, "Content-Type: text/plain")
	g.do("GET /x?y")
	if m.last == nil {
		t.Fatal("nothing was noted")
	}
	return m.last.Append(nil)
}

func TestRestore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		data := snapshotOf(t)
		g := newRig(t, Gateway())
		time.Sleep(10 * time.Second)
		if host, uri, err := g.c.Restore("", data); err != nil || host != "host" || uri != "/x?y" {
			t.Fatalf("Restore: %q %q %v", host, uri, err)
		}
		w := g.do("GET /x?y")
		g.want("restored", w, 200, "body", 0)
		if w.Header().Get("Age") != "10" || w.Header().Get("Etag") != `"a"` || w.Header().Get("Content-Length") != "4" {
			t.Errorf("fields %v", w.Header())
		}
		g.c.audit(t)
		if _, _, err := g.c.Restore("", data); !errors.Is(err, ErrExpired) {
			t.Errorf("Restore where something is: %v, want %v", err, ErrExpired)
		}
		time.Sleep(600 * time.Second)
		if _, _, err := newRig(t, Gateway()).c.Restore("", data); !errors.Is(err, ErrExpired) {
			t.Errorf("Restore too late: %v, want %v", err, ErrExpired)
		}
		for i := range data {
			if _, _, err := newRig(t, Gateway()).c.Restore("", data[:i]); !errors.Is(err, ErrSnapshot) {
				t.Errorf("Restore of %d bytes: %v, want %v", i, err, ErrSnapshot)
			}
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	e := &entry{status: 200, lifetime: time.Hour}
	block, _ := e.pack(map[string][]string{"A": {"1", "2"}, "Etag": {`"a"`}}, nil)
	e.seal(block, "/x", "h", "", []byte("body"))
	f.Add((&Snapshot{e, time.Unix(1.8e9, 0)}).Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, born, err := parseSnapshot(data)
		if err != nil {
			return
		}
		e.born = 0
		again, born2, err := parseSnapshot((&Snapshot{e, born}).Append(nil))
		if err != nil || again.text != e.text || again.block() != e.block() || !bytes.Equal(again.body, e.body) || again.uri() != e.uri() || again.flags != e.flags || !born2.Equal(born) {
			t.Errorf("%x does not survive another round: %v", data, err)
		}
		_ = e.header()
	})
}
