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
	leased, asked, forwarded := false, 0, 0
	c, err := New(Config{Fresh: func(tether.DeviceID) bool { return leased },
		Ask: func(context.Context, tether.DeviceID) bool { asked++; leased = true; return true }})
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
		{"after the write", "GET", "/a", "ann", "no-store", 3, 3}, // it does not know of the write: that costs a PING once
		{"never stored", "GET", "/a", "ann", "no-store", 3, 4},
		{"stale at once", "GET", "/b", "ann", "max-age=0", 3, 5},
		{"stale at once, again", "GET", "/b", "ann", "max-age=0", 3, 6},
		{"nobody", "GET", "/c", "", "public, max-age=60", 3, 7},
		{"nobody, again", "GET", "/c", "", "public, max-age=60", 3, 8},
		{"the gateway's own", "GET", "/.cloudrest/v1/status", "ann", "public, max-age=60", 3, 9},
		{"the gateway's own, again", "GET", "/.cloudrest/v1/status", "ann", "public, max-age=60", 3, 10},
	} {
		leased = false
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
