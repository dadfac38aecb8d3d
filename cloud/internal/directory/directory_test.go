package directory

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
)

var _ Directory = (*Memory)(nil)

func TestNewestClaimWins(t *testing.T) {
	d, id := NewMemory(), tether.NewDeviceID([]byte("x"))
	if _, err := d.Lookup(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup of a stranger = %v, want ErrNotFound", err)
	}
	first, _ := d.Claim(t.Context(), id, "a")
	second, _ := d.Claim(t.Context(), id, "b")
	if second <= first {
		t.Errorf("epochs %d, %d do not rise", first, second)
	}
	d.Release(t.Context(), id, first) // the goodbye of the older connection comes late
	if r, err := d.Lookup(t.Context(), id); err != nil || r != (Route{"b", second}) {
		t.Errorf("after a stale Release: %+v, %v, want the newer claim", r, err)
	}
	d.Release(t.Context(), id, second)
	if _, err := d.Lookup(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Release: %v, want ErrNotFound", err)
	}
	if third, _ := d.Claim(t.Context(), id, "c"); third <= second {
		t.Errorf("epoch %d after a Release does not rise above %d", third, second)
	}
}

func TestConcurrentClaims(t *testing.T) {
	d, id := NewMemory(), tether.NewDeviceID([]byte("x"))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			e, _ := d.Claim(t.Context(), id, fmt.Sprint(i))
			if i != 7 {
				d.Release(t.Context(), id, e)
			}
		})
	}
	wg.Wait()
	// Connection 7 never let go: either it is the route, or a later claim took over and left.
	if r, err := d.Lookup(t.Context(), id); err == nil && r.Conn != "7" {
		t.Errorf("route = %+v, want connection 7 or none", r)
	}
}
