package relay

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/boltdb"
	"github.com/cloudrest/cloudrest/cloud/internal/devnode"
	"github.com/cloudrest/cloudrest/cloud/internal/front"
	"github.com/cloudrest/cloudrest/cloud/internal/operator"
	"github.com/cloudrest/cloudrest/cloud/internal/respcache"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// The parts do not know each other; here each is given the other in its own words.

// nodes is the device node as the front wants it.
type nodes struct {
	n     *devnode.Node
	cache *respcache.Cache // nil: nothing is stored
}

// Forward answers from the cache where that may be.
func (a nodes) Forward(w http.ResponseWriter, r *http.Request, id tether.DeviceID, x front.Exchange) error {
	if a.cache == nil {
		return a.forward(w, r, id, x)
	}
	return a.cache.Serve(w, r, id, x.Path, x.User, func(w http.ResponseWriter, r *http.Request) error { return a.forward(w, r, id, x) })
}

func (a nodes) forward(w http.ResponseWriter, r *http.Request, id tether.DeviceID, x front.Exchange) error {
	err := a.n.Forward(w, r, id, exchange.Options{Path: x.Path, Client: x.Client, ID: x.ID, HeadTimeout: x.HeadTimeout})
	if err == nil {
		return nil
	}
	if errors.Is(err, devnode.ErrOffline) {
		return front.ErrOffline
	}
	if xe, ok := errors.AsType[*exchange.Error](err); ok {
		return &front.Error{Status: xe.Status, RetryAfter: xe.RetryAfter, Err: xe}
	}
	return err
}

func (a nodes) Seen(id tether.DeviceID) (time.Time, bool) { return a.n.Seen(id) }

func (a nodes) LAN(id tether.DeviceID) string { return a.n.LAN(id) }

func (a nodes) Probe(ctx context.Context, id tether.DeviceID) (front.Probe, error) {
	p, err := a.n.Probe(ctx, id)
	if errors.Is(err, devnode.ErrOffline) {
		return front.Probe{}, front.ErrOffline
	}
	if err != nil {
		return front.Probe{}, err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return front.Probe{Device: id, Online: true, TetherM: ms(p.RTT),
		Origin: front.OriginProbe{State: string(p.State), Status: p.Status, Ms: ms(p.Took)}}, nil
}

// guard tells tokens of the same name apart, one that was revoked and the next: behind the name
// follow a NUL and eight bytes of the token's hash.
type guard struct{ tokens *operator.Tokens }

func (a guard) Check(token string) (user string, ok bool) {
	name, ok := a.tokens.Check(token)
	if !ok {
		return "", false
	}
	sum := sha256.Sum256([]byte(token))
	return name + "\x00" + string(sum[:8]), true
}

// frontStore is the store as the front wants it.
type frontStore struct{ db *boltdb.DB }

func (a frontStore) Device(id tether.DeviceID) (front.Device, bool, error) {
	d, ok, err := a.db.Device(id)
	return front.Device{ID: d.ID, Name: d.Name, Since: d.Since, Generation: d.Generation}, ok, err
}

func (a frontStore) Devices(after tether.DeviceID, limit int) ([]front.Device, error) {
	list, err := a.db.Devices(after, limit)
	out := make([]front.Device, len(list))
	for i, d := range list {
		out[i] = front.Device{ID: d.ID, Name: d.Name, Since: d.Since, Generation: d.Generation}
	}
	return out, err
}

func (a frontStore) Log(id tether.DeviceID) sse.Log { return a.db.Log(id) }

// nodeStore is the store as the device node wants it.
type nodeStore struct{ *boltdb.DB }

func (a nodeStore) Append(id tether.DeviceID, n frame.Notify, c devnode.Acker) error {
	return a.DB.Append(id, n, c)
}

func (a nodeStore) Key(id tether.DeviceID) ([]byte, error) {
	d, _, err := a.Device(id)
	return d.Key, err
}
