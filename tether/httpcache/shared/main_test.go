package shared

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// rig is a cache with an origin that answers as the test says.
type rig struct {
	t      *testing.T
	c      *Cache
	origin func(w http.ResponseWriter, r *http.Request)
	asked  []*http.Request // what the origin got
}

func newRig(t *testing.T, conf Config) *rig {
	t.Helper()
	c, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &rig{t: t, c: c}
}

// do sends one request: "GET /path" and "Name: value" lines. A line "principal: x" says
// who asks.
func (g *rig) do(request string, lines ...string) *httptest.ResponseRecorder {
	g.t.Helper()
	w := httptest.NewRecorder()
	if err := g.serve(w, request, lines...); err != nil {
		g.t.Fatalf("%s: %v", request, err)
	}
	return w
}

func (g *rig) serve(w http.ResponseWriter, request string, lines ...string) error {
	method, uri, _ := strings.Cut(request, " ")
	var body *strings.Reader
	r := httptest.NewRequest(method, "http://host/", nil)
	if !httpcache.Safe(method) {
		body = strings.NewReader("change")
		r = httptest.NewRequest(method, "http://host/", body)
	}
	r.RequestURI = uri
	r = r.WithContext(g.t.Context())
	t := Target{URI: uri}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "principal":
			t.Principal = value
		case "space":
			t.Space = value
		case "host":
			r.Host = value
		default:
			r.Header.Add(name, value)
		}
	}
	return g.c.Serve(w, r, t, func(w http.ResponseWriter, r *http.Request) error {
		g.asked = append(g.asked, r)
		g.origin(w, r)
		return nil
	})
}

// answers makes an origin that says "body n" with these fields, n counting its answers.
// "status: 404" sets the status; a Date or other time "+5" is so many seconds from now.
func (g *rig) answers(lines ...string) {
	g.origin = answer(lines...)
}

func answer(lines ...string) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		status, body := 200, "body"
		for _, l := range lines {
			name, value, _ := strings.Cut(l, ":")
			value = strings.TrimSpace(value)
			switch name {
			case "status":
				status, _ = strconv.Atoi(value)
				continue
			case "body":
				body = value
				continue
			}
			if n, err := strconv.Atoi(value); err == nil && (value[0] == '+' || value[0] == '-') {
				value = time.Now().Add(time.Duration(n) * time.Second).UTC().Format(http.TimeFormat)
			}
			w.Header().Add(name, value)
		}
		w.WriteHeader(status)
		if status >= 200 && status != 204 && status != 304 && r.Method != http.MethodHead {
			w.Write([]byte(body))
		}
	}
}

// want checks one answer: status, body ("": any), and whether the origin was asked n times
// so far.
func (g *rig) want(what string, w *httptest.ResponseRecorder, status int, body string, asked int) {
	g.t.Helper()
	if w.Code != status || body != "" && w.Body.String() != body {
		g.t.Errorf("%s: got %d %q, want %d %q (Cache-Status %q)", what, w.Code, w.Body, status, body, w.Header()["Cache-Status"])
	}
	if len(g.asked) != asked {
		g.t.Errorf("%s: the origin was asked %d times, want %d (Cache-Status %q)", what, len(g.asked), asked, w.Header()["Cache-Status"])
	}
}

// bubble runs f with a clock that costs no time, in the present: that of synctest starts in
// 2000, before any clock is right.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))
		f(t)
	})
}
