package shared

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// A principal that is no more: what it had goes, under whatever credentials, and what is under
// way for it is not stored; others keep theirs.
func TestPurgePrincipal(t *testing.T) {
	c, err := New(Gateway())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	entered, leave := make(chan struct{}), make(chan struct{})
	h := c.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-leave
		}
		w.Header().Set("Cache-Control", "private, max-age=60")
		io.WriteString(w, "x")
	}), func(r *http.Request) string { return r.Header.Get("Who") })
	get := func(path, who, account string) string {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Who", who)
		if account != "" {
			r.Header.Set("Authorization", account)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Header().Get("Cache-Status")
	}
	get("/a", "ann", "")
	get("/a", "ann", "Basic eA==")
	get("/a", "bob", "")
	get("/b", "bob", "")
	if got, want := get("/a", "bob", ""), "cloudrest-gateway; hit; ttl=59"; got != want && got != "cloudrest-gateway; hit; ttl=60" {
		t.Errorf("Cache-Status %q, want %q", got, want)
	}
	if l := c.Entries("", 1); l[0].Principal != "bob" || l[0].URI != "/a" || l[0].Hits != 1 {
		t.Errorf("the entry used last is %+v, want bob's /a with 1 hit", l[0])
	}
	done := make(chan struct{})
	go func() { get("/slow", "ann", ""); close(done) }()
	<-entered
	if n := c.PurgePrincipal("", "ann"); n != 2 {
		t.Errorf("%d answers removed, want 2", n)
	}
	close(leave)
	<-done
	if n := c.PurgePrincipal("", "ann") + c.PurgePrincipal("", "") + c.PurgePrincipal("elsewhere", "bob"); n != 0 {
		t.Errorf("%d answers removed after that, want none", n)
	}
	if s := c.Stats(); s.Entries != 2 {
		t.Errorf("%d entries stay, want bob's 2", s.Entries)
	}
}
