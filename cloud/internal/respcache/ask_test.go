package respcache

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
)

// A device is asked for a lease only where an answer is stored that is of use then.
func TestAskOnlyForHits(t *testing.T) {
	asked, forwarded := 0, 0
	c, err := New(Config{Fresh: func(context.Context, tether.DeviceID) bool { asked++; return true }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	id, control := tether.NewDeviceID([]byte("a")), ""
	for _, tc := range []struct {
		what, method, path, user, control string
		asked, forwarded                  int
	}{
		{"a miss", "GET", "/a", "ann", "public, max-age=60", 0, 1},
		{"a hit", "GET", "/a", "ann", "", 1, 1},
		{"another user's hit", "HEAD", "/a", "bob", "", 2, 1},
		{"a write", "PUT", "/a", "ann", "", 2, 2},
		{"after the write", "GET", "/a", "ann", "no-store", 2, 3},
		{"never stored", "GET", "/a", "ann", "no-store", 2, 4},
		{"stale at once", "GET", "/b", "ann", "max-age=0", 2, 5},
		{"stale at once, again", "GET", "/b", "ann", "max-age=0", 2, 6},
		{"private", "GET", "/d", "ann", "private, max-age=60", 2, 7},
		{"private, another user", "GET", "/d", "bob", "private, max-age=60", 2, 8},
		{"nobody", "GET", "/c", "", "public, max-age=60", 2, 9},
		{"nobody, again", "GET", "/c", "", "public, max-age=60", 2, 10},
		{"the gateway's own", "GET", "/.cloudrest/v1/status", "ann", "public, max-age=60", 2, 11},
		{"the gateway's own, again", "GET", "/.cloudrest/v1/status", "ann", "public, max-age=60", 2, 12},
	} {
		control = tc.control
		err := c.Serve(httptest.NewRecorder(), httptest.NewRequest(tc.method, "/", nil), id, tc.path, tc.user, func(w http.ResponseWriter, _ *http.Request) error {
			forwarded++
			w.Header().Set("Cache-Control", control)
			w.WriteHeader(200)
			return nil
		})
		if err != nil || asked != tc.asked || forwarded != tc.forwarded {
			t.Errorf("%s: asked %d times, forwarded %d, %v; want %d and %d", tc.what, asked, forwarded, err, tc.asked, tc.forwarded)
		}
	}
}
