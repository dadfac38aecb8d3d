package cache

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func request(h http.Handler, method, uri string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, uri, nil)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// One store, two ways in: a write on either makes stale what both would give out, and others
// are told before its answer is there.
func TestTwoWaysIn(t *testing.T) {
	var told []string
	var c *Cache
	c, err := New(Config{Rules: []string{"/state ttl=1h public"}, Stamp: func(r *http.Request) (string, string) { return "X-Stamp", r.Method },
		Changed: func(_ context.Context, uris []string, everything bool) {
			if len(c.Entries(9)) != 0 || everything {
				t.Errorf("told with %d entries left, everything %v", len(c.Entries(9)), everything)
			}
			told = append(told, uris...)
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	state, asked := "a", 0
	origin := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			state += "b"
			return
		}
		asked++
		w.Write([]byte(state))
	})
	lan, tether := c.Handler(origin, nil), c.Handler(origin, func(*http.Request) string { return "user" })
	if w := request(lan, "GET", "/state"); w.Body.String() != "a" || w.Header().Get("X-Stamp") != "" {
		t.Errorf("first: %q %v", w.Body, w.Header())
	}
	if w := request(tether, "GET", "/state"); w.Body.String() != "a" || asked != 1 || w.Header().Get("X-Stamp") != "GET" {
		t.Errorf("by the other way: %q, asked %d times, %v, want one answer for both, stamped", w.Body, asked, w.Header())
	}
	request(lan, "PUT", "/state")
	if !slices.Equal(told, []string{"/state"}) {
		t.Errorf("told of %q, want /state", told)
	}
	if w := request(tether, "GET", "/state"); w.Body.String() != "ab" || asked != 2 {
		t.Errorf("after the write: %q, asked %d times, want ab, 2", w.Body, asked)
	}
	if s := c.Stats(); s.Hits != 1 || s.Entries != 1 {
		t.Errorf("stats %+v, want 1 hit and 1 entry", s)
	}
	if c.Invalidate("/state") != 1 || c.InvalidatePrefix("/") != 0 || c.PurgeAll() != 0 {
		t.Error("Invalidate did not remove the one entry")
	}
}

func TestConfigTellsEveryMistake(t *testing.T) {
	_, err := New(Config{MaxBytes: -1, Rules: []string{"/a foo", "/a ttl=5s", "a never"}})
	for _, want := range []string{"foo", `"a"`, "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want it to name %s", err, want)
		}
	}
	if _, err := New(Config{Rules: make([]string, MaxRules+1)}); err == nil {
		t.Error("too many rules are accepted")
	}
}
