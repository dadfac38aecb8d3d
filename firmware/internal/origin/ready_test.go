package origin

import (
	"io"
	"net/http"
	"testing"
)

// A caller that flushes whenever Ready says no must get to flush an event as soon as it
// is here, although the line end of its chunk is here too.
func TestReadyBetweenChunks(t *testing.T) {
	needLocal(t)
	more := make(chan struct{})
	c, err := New(Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-more
		io.WriteString(w, "data: 2\n\n")
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	if b, err := resp.Next(); err != nil || string(b) != "data: 1\n\n" {
		t.Fatalf("first event: %q, %v", b, err)
	}
	if resp.Ready() {
		t.Error("Ready between two events: the first would not be flushed")
	}
	close(more)
	if b, err := resp.Next(); err != nil || string(b) != "data: 2\n\n" {
		t.Fatalf("second event: %q, %v", b, err)
	}
}
