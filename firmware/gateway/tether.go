//go:build !no_tether

package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/notify"
	"github.com/cloudrest/cloudrest/firmware/internal/pairing"
	"github.com/cloudrest/cloudrest/firmware/internal/uplink"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/session"
)

// openUplink makes the part that keeps the tether, if a relay is configured.
func (g *Gateway) openUplink() error {
	if len(g.cfg.Relays) == 0 {
		return nil
	}
	tlsConfig, err := g.relayTLS()
	if err != nil {
		return err
	}
	own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.own(w, pairing.Remote(r)) })
	handler := dispatch(own, g.service(admit.Tether))
	lost := func() uint64 {
		st := g.notes.Stats()
		return st.DroppedUnacked + st.Shed
	}
	told := uint64(0) // of those, as far as a relay knows; dials come one at a time
	dial := func(ctx context.Context, u *url.URL, addr string, h uplink.Hooks) (uplink.Session, frame.Accept, error) {
		d := session.Device{
			ID: g.id.ID, Key: g.id.Key(), TLS: tlsConfig, Proxy: http.ProxyFromEnvironment,
			Info:         func() []byte { return h.Info },
			Epoch:        g.notes.Epoch(),
			FirstUnacked: func() tether.EventID { return h.First },
			Dropped:      func() uint64 { return lost() - told },
			Certificate:  g.chain,
			Generation:   func() uint32 { return g.generation },
			Handler:      h.Through(handler), Logger: g.log,
			OnAck: h.OnAck, OnGoAway: h.OnGoAway, OnInvalidated: h.OnInvalidated,
		}
		now := lost()
		s, accept, err := d.Connect(ctx, u, addr)
		if err != nil {
			return nil, accept, dialError(err)
		}
		told = now
		return s, accept, nil
	}
	g.uplink, err = uplink.New(uplink.Config{
		Relays: g.cfg.Relays, Dial: dial, Journal: journal{g.notes},
		Info: func() []byte {
			d, _ := g.watcher.Current()
			return d.Raw
		},
		InfoChanged: g.watcher.Changed,
		LAN:         g.location.URL,
		LANChanged:  g.location.Changed,
		StopWait:    g.cfg.StopWait,
		Logger:      g.log,
	})
	if err != nil {
		return err
	}
	g.relay = g.uplink
	return nil
}

// dialError says in uplink's words what directs the next attempt.
func dialError(err error) error {
	if r, ok := errors.AsType[*session.Refused](err); ok {
		return fmt.Errorf("%w: %w", &uplink.RefusedError{GoAway: r.GoAway}, err)
	}
	if h, ok := errors.AsType[*session.HTTPError](err); ok {
		return fmt.Errorf("%w: %w", &uplink.BusyError{Status: h.Status, RetryAfter: h.RetryAfter}, err)
	}
	return err
}

// journal is the notifier as uplink wants it.
type journal struct{ n *notify.Notifier }

func (j journal) Pending(dst []uplink.Event, after tether.EventID, max int) ([]uplink.Event, error) {
	evs, err := j.n.Pending(nil, after, max)
	for _, e := range evs {
		dst = append(dst, uplink.Event{ID: e.ID, Time: e.Time, Topic: e.Topic, Data: e.Data})
	}
	return dst, err
}

func (j journal) Ack(id tether.EventID) error { return j.n.Ack(id) }
func (j journal) Changed() <-chan struct{}    { return j.n.Changed() }

// relayTLS is what the tether's TLS needs: the authorities, and a clock that is never
// before the build, because boards start in 1970.
func (g *Gateway) relayTLS() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Time: func() time.Time {
		if now := time.Now(); now.After(buildinfo.BuildTime()) {
			return now
		}
		return buildinfo.BuildTime()
	}}
	if g.cfg.RelayCA == "" {
		return cfg, nil
	}
	pool, err := readAuthorities(g.cfg.RelayCA)
	if err != nil {
		return nil, err
	}
	cfg.RootCAs = pool
	return cfg, nil
}

// readAuthorities reads the certificates of a PEM file.
func readAuthorities(name string) (*x509.CertPool, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the relays' authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, &ConfigError{"relay-ca", fmt.Sprintf("%q holds no certificate: want PEM, with lines like -----BEGIN CERTIFICATE-----", name)}
	}
	return pool, nil
}
