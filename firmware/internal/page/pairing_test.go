package page

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/qrcode"
	"github.com/cloudrest/cloudrest/tools/browser/pagewalk"
)

// memory is a pairing.Bucket.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (m *memory) All() (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.m), nil
}

func (m *memory) Change(values map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, v := range values {
		if v == nil {
			delete(m.m, k)
		} else {
			m.m[k] = v
		}
	}
	return nil
}

// The page and the real pairing fit together.
func TestWalkPairing(t *testing.T) {
	d := newDevice(t)
	p, err := pairing.New(pairing.Config{
		Store: &memory{m: map[string][]byte{}},
		ID:    func() tether.DeviceID { return d.id },
		Pin:   func() string { return fmt.Sprintf("%x", d.pin()) },
		URL:   func() string { return d.srv.URL },
		QR: func(text string) []byte {
			svg, err := qrcode.SVG(text)
			if err != nil {
				t.Error(err)
			}
			return svg
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	others, api := d.srv.Config.Handler, p.Handler()
	d.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if pairing.Serves(r.URL.Path) {
			api.ServeHTTP(w, r)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/events") {
			if _, err := p.Authenticate(r); err != nil {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		others.ServeHTTP(w, r)
	})
	walk := d.walked(t)
	walk.Shot = nil
	walk.Button = func() error {
		_, err := p.Open(pairing.WayButton, pairing.OpenOptions{})
		return err
	}
	pagewalk.Walk(t, walk)
}
