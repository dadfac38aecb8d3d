package devnode

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
)

// Probe is what a deeper look at a device found.
type Probe struct {
	RTT    time.Duration // to the device's own end and back
	State  OriginState
	Status int           // of the REST service's answer; 0: none
	Took   time.Duration // until its head
}

// OriginState says how the maker's REST service is.
type OriginState string

// What a probe can find.
const (
	OriginOK          OriginState = "ok"          // it answered
	OriginError       OriginState = "error"       // it, or the gateway before it, answered with a 5xx
	OriginUnreachable OriginState = "unreachable" // the device's gateway could not reach it
	OriginTimeout     OriginState = "timeout"     // it did not answer in time
)

// probePath is the one resource that every REST service has (paper, "Device API").
const probePath = "/device"

// Probe asks the device's end for a PONG and the REST service behind it for GET /device.
// It fails with ErrOffline, or with why the device's end did not answer before ctx ended.
func (n *Node) Probe(ctx context.Context, id tether.DeviceID) (Probe, error) {
	c := n.lookup(id)
	if c == nil || c.leaving.Load() {
		return Probe{}, ErrOffline
	}
	var p Probe
	var err error
	if p.RTT, err = c.session.Ping(ctx); err != nil {
		return Probe{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, probePath, nil)
	if err != nil {
		return Probe{}, err
	}
	r.Host = n.cfg.Names[0]
	began := time.Now()
	w := &probeWriter{header: http.Header{}}
	left := time.Minute
	if at, ok := ctx.Deadline(); ok {
		left = time.Until(at)
	}
	err = forwardOwn(w, r, c, exchange.Options{Path: probePath, Client: "127.0.0.1:0", HeadTimeout: left})
	p.Took = time.Since(began)
	if w.status > 0 { // the head came; what happened to the body does not matter
		p.Took = w.at.Sub(began)
		p.Status = w.status
		p.State = stateOf(w.status)
		return p, nil
	}
	if e, ok := errors.AsType[*exchange.Error](err); ok {
		p.State = stateOf(e.Status)
	} else {
		p.State = OriginUnreachable
	}
	return p, nil
}

func stateOf(status int) OriginState {
	switch {
	case status == http.StatusBadGateway:
		return OriginUnreachable
	case status == http.StatusGatewayTimeout || status == exchange.StatusClientClosed:
		return OriginTimeout
	case status >= 500:
		return OriginError
	}
	return OriginOK
}

// forwardOwn contains the panic by which an exchange breaks off.
func forwardOwn(w http.ResponseWriter, r *http.Request, c *conn, o exchange.Options) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				panic(v)
			}
			err = errors.New("the answer broke off")
		}
	}()
	return exchange.Forward(w, r, c.session, o)
}

// maxProbeBody is how much of the answer is taken before the probe has seen enough.
const maxProbeBody = tether.MaxDescriptor

// probeWriter notes the head and throws the body away.
type probeWriter struct {
	header http.Header
	status int
	at     time.Time
	n      int
}

func (w *probeWriter) Header() http.Header { return w.header }

func (w *probeWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status, w.at = status, time.Now()
	}
}

func (w *probeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.n += len(b); w.n > maxProbeBody {
		return 0, errors.New("seen enough")
	}
	return len(b), nil
}

func (w *probeWriter) Flush() {}
