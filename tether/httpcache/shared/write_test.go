package shared

import (
	"net/http"
	"testing"
)

// The answer to a POST is stored only if it is still what a GET would give when it comes.
func TestPostOvertaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		posted := answer("Cache-Control: max-age=60", "Content-Location: /x", "body: posted")
		for _, tc := range []struct {
			name      string
			meanwhile func(g *rig)
			stored    bool
		}{
			{"nothing", func(*rig) {}, true},
			{"a GET", func(g *rig) { g.do("GET /x") }, true},
			{"a write elsewhere", func(g *rig) { g.do("PUT /y") }, true},
			{"a write", func(g *rig) { g.do("PUT /x") }, false},
			{"a write to another query", func(g *rig) { g.do("PUT /x?a") }, false},
			{"a write that may mean anything", func(g *rig) { g.do("PUT /%78") }, false},
			{"another such POST", func(g *rig) { g.do("POST /x", "again: 1") }, false},
			{"a purge", func(g *rig) { g.c.InvalidatePrefix("", "/") }, false},
		} {
			g := newRig(t, Gateway())
			g.origin = func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost && r.Header.Get("again") == "" {
					tc.meanwhile(g)
				}
				if r.Method == http.MethodPost {
					posted(w, r)
				}
			}
			g.do("POST /x")
			n := len(g.asked)
			if g.do("GET /x"); (len(g.asked) == n) != tc.stored {
				t.Errorf("%s came in between: the answer to the POST was stored: %v, want %v", tc.name, len(g.asked) == n, tc.stored)
			}
			if flights := len(g.c.siteOf("").flights); flights != 0 {
				t.Errorf("%s: %d requests are under way, want none", tc.name, flights)
			}
		}
	})
}
