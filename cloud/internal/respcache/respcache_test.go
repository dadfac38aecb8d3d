package respcache

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
)

func TestDevicesAndUsersStayApart(t *testing.T) {
	fresh := true
	c, err := New(Config{MaxBytes: 1 << 20, Fresh: func(context.Context, tether.DeviceID) bool { return fresh }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, b := tether.NewDeviceID([]byte("a")), tether.NewDeviceID([]byte("b"))
	control, asked := "max-age=60", 0
	get := func(id tether.DeviceID, user string) string {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/d/"+string(id)+"/x", nil)
		if err := c.Serve(w, r, id, "/x", user, func(w http.ResponseWriter, r *http.Request) error {
			asked++
			w.Header().Set("Cache-Control", control)
			w.Write([]byte(string(id[:4]) + user))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return w.Body.String()
	}
	for range 2 {
		for _, id := range []tether.DeviceID{a, b} {
			for _, user := range []string{"ann", "bob"} {
				if got, want := get(id, user), string(id[:4])+user; got != want {
					t.Errorf("%s got %q, want %q", user, got, want)
				}
			}
		}
	}
	if asked != 4 || len(c.Entries(a, 9)) != 2 || c.Stats().Hits != 4 {
		t.Errorf("asked %d times, %d entries, %+v, want 4, 2 and 4 hits", asked, len(c.Entries(a, 9)), c.Stats())
	}
	if n := c.Invalidate(a, "/x"); n != 2 || len(c.Entries(b, 9)) != 2 {
		t.Errorf("%d answers of one device went, %d of the other stayed, want 2 and 2", n, len(c.Entries(b, 9)))
	}
	if n := c.PurgeDevice(b); n != 2 || c.Purge(b, "/x")+c.PurgeAll()+c.InvalidatePrefix(a, "/") != 0 {
		t.Errorf("%d answers purged, want 2 and then none", n)
	}

	// A device that may have given up telling us of writes is asked, and if it is offline
	// only stale-if-error lets us answer for it.
	control = "public, max-age=60, stale-if-error=60"
	get(a, "ann")
	fresh, asked = false, 0
	if get(a, "bob"); asked != 1 {
		t.Errorf("asked %d times, want 1", asked)
	}
	offline := errors.New("offline")
	w := httptest.NewRecorder()
	err = c.Serve(w, httptest.NewRequest("GET", "/d/x", nil), a, "/x", "ann", func(http.ResponseWriter, *http.Request) error { return offline })
	if err != nil || !strings.Contains(w.Header().Get("Cache-Status"), "cloudrest-relay; fwd=stale") {
		t.Errorf("offline: %v, %v, want the stored answer marked stale", err, w.Header())
	}
}
