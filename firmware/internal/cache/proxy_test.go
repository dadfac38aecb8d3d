package cache

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy"
	"github.com/cloudrest/cloudrest/tether"
)

// With the real proxy behind: hits pass neither the gate nor the origin, what ends early is
// not stored, and what concerns one exchange stays with it.
func TestBeforeTheProxy(t *testing.T) {
	asked := 0
	client, err := origin.New(origin.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		h := w.Header()
		h.Set("Cache-Control", "max-age=0")
		h.Set("Etag", `"a"`)
		switch r.URL.Path {
		case "/fresh":
			h.Set("Cache-Control", "max-age=60")
			h["Content-Type"] = nil
			io.WriteString(w, "<html>")
		case "/half":
			h.Set("Cache-Control", "max-age=60")
			h.Set("Content-Length", "99")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/ask":
			if r.Header.Get("If-None-Match") == `"a"` {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			io.WriteString(w, strings.Repeat("x", 1000))
		}
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	gate := admit.New(admit.Config{Concurrency: 1, Queue: -1})
	p, err := proxy.New(proxy.Config{Origin: client, Gate: gate})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, err := New(Config{Stamp: func(*http.Request) (string, string) { return tether.HeaderID, "made for the hit" }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := httptest.NewServer(c.Handler(p.For(admit.LAN), nil))
	defer s.Close()
	get := func(path string) (*http.Response, string, error) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(tether.HeaderSequenceID, "seq "+path)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return &http.Response{Header: http.Header{}}, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}

	first, _, _ := get("/fresh")
	ticket, err := gate.Acquire(t.Context(), admit.LAN, "somebody") // the origin is full
	if err != nil {
		t.Fatal(err)
	}
	second, body, err := get("/fresh")
	if err != nil || second.StatusCode != 200 || body != "<html>" || asked != 1 {
		t.Errorf("a hit while the origin is full: %d %q, %v, asked %d times", second.StatusCode, body, err, asked)
	}
	if resp, _, _ := get("/other"); resp.StatusCode != 503 {
		t.Errorf("a miss while the origin is full: %d, want 503", resp.StatusCode)
	}
	ticket.Release()
	if id := first.Header.Get(tether.HeaderID); id == "" || second.Header.Get(tether.HeaderID) != "made for the hit" || second.Header.Get(tether.HeaderSequenceID) != "seq /fresh" {
		t.Errorf("IDs %q and %q: want one for each exchange", id, second.Header.Get(tether.HeaderID))
	}
	if v, ok := second.Header["Content-Type"]; ok {
		t.Errorf("Content-Type %q was guessed", v)
	}
	if second.Header.Get("Via") != first.Header.Get("Via") {
		t.Errorf("Via %q, want %q", second.Header.Get("Via"), first.Header.Get("Via"))
	}

	if _, body, err := get("/half"); err == nil {
		t.Errorf("half an answer %q ended well", body)
	}
	if n := len(c.Entries(9)); n != 1 {
		t.Errorf("%d entries after half an answer, want 1", n)
	}

	asked = 0
	get("/ask")
	resp, body, err := get("/ask")
	if err != nil || resp.StatusCode != 200 || len(body) != 1000 || asked != 2 || c.Stats().Validated != 1 {
		t.Errorf("validation: %d with %d bytes, %v, asked %d times, %+v", resp.StatusCode, len(body), err, asked, c.Stats())
	}
	if id := resp.Header.Get(tether.HeaderID); id == "" || id == "made for the hit" {
		t.Errorf("ID of a validated answer %q, want the proxy's", id)
	}
}
