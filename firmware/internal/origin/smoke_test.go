package origin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

func body(t *testing.T, r *Response) string {
	t.Helper()
	var all []byte
	for {
		b, err := r.Next()
		all = append(all, b...)
		if err == io.EOF {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSmoke(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(append([]byte(r.Method+" "+r.RequestURI+" "), b...))
	})
	s := httptest.NewServer(h)
	defer s.Close()
	u, _ := url.Parse(s.URL)
	for _, conf := range []Config{{URL: u}, {Handler: h}} {
		c, err := New(conf)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 {
			r, err := c.Do(t.Context(), &Request{Method: "POST", Target: "/x?y", Payload: []byte("hello")})
			if err != nil {
				t.Fatal(err)
			}
			if got := body(t, r); got != "POST /x?y hello" {
				t.Errorf("got %q", got)
			}
			r.Close()
		}
		if len(c.idle) != 1 {
			t.Errorf("%d idle", len(c.idle))
		}
	}
}

func BenchmarkDo(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 1000)) }))
	defer s.Close()
	u, _ := url.Parse(s.URL)
	c, _ := New(Config{URL: u})
	q := &Request{Method: "GET", Target: "/", Fields: []Field{{"Accept", "*/*"}, {"User-Agent", "x"}}}
	b.ReportAllocs()
	for b.Loop() {
		r, err := c.Do(b.Context(), q)
		if err != nil {
			b.Fatal(err)
		}
		for !r.Done() {
			r.Next()
		}
		r.Close()
	}
}
