package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// The suite itself is not here; what is ours of the run is.
func TestServePutsACacheInFront(t *testing.T) {
	asked := 0
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.Header().Set("Cache-Control", "max-age=60")
		io.WriteString(w, "x")
	}))
	defer origin.Close()
	u, err := url.Parse(origin.URL)
	if err != nil {
		t.Fatal(err)
	}
	for policy, want := range map[string]int{"gateway": 1, "relay": 1, "none": 2} {
		asked = 0
		target, stop, err := serve(policy, u)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			resp, err := http.Get(target + "/x")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "x" {
				t.Errorf("%s: got %q, %v, want x", policy, b, err)
			}
			resp.Body.Close()
		}
		stop()
		if asked != want {
			t.Errorf("%s: the origin was asked %d times, want %d", policy, asked, want)
		}
	}
	if _, _, err := serve("x", u); err == nil {
		t.Error("an unknown policy is accepted")
	}
}
