package devnode

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

// Failed proofs are counted by address (SPEC.md §4.4): beyond this allowance the address
// is refused before any signature is checked.
const (
	badProofs     = 30
	badProofsEach = 10 * time.Second
)

// attempt is one handshake, in the context of its request.
type attempt struct{ known bool } // it was told why it ended, or opened

type attemptKey struct{}

// acceptor builds the endpoint of the tether.
func (n *Node) acceptor() func(w http.ResponseWriter, r *http.Request) {
	rl := &session.Relay{
		Names: n.cfg.Names, TLSEnds: n.cfg.TLS, Keepalive: n.cfg.Keepalive,
		Spread: n.spread, Budget: n.cfg.Budget, Logger: n.log,
		Verify: n.verify,
		Acked: func(_ context.Context, p *session.Peer) tether.EventID {
			last, err := n.cfg.Store.LastEvent(p.ID)
			if err != nil {
				n.log.Error("read last event", "device", p.ID, "err", err)
			}
			return last
		},
	}
	return func(w http.ResponseWriter, r *http.Request) {
		at := &attempt{}
		// The WebSocket keeps the subprotocol for its life, and with it all of the head it was cut from.
		for i, v := range r.Header["Sec-Websocket-Protocol"] {
			r.Header["Sec-Websocket-Protocol"][i] = strings.Clone(v)
		}
		rl.Accept(w, r.WithContext(context.WithValue(r.Context(), attemptKey{}, at)), func(s *mux.Session, p *session.Peer) mux.Handlers {
			at.known = true
			n.log.Info("device came", "device", p.ID, "peer", p.RemoteAddr, "session", fmt.Sprintf("%x", p.Session), "dropped", p.Dropped)
			return n.open(s, p.ID, keyHash(p.PublicDER), p.Info)
		})
		if !at.known { // a bad proof, or not even the protocol
			n.count.refusedProtocol.Add(1)
			n.failed(r.RemoteAddr)
		}
	}
}

// ServeHTTP answers GET /v1/tether. It returns once the device is in, or refused; the
// memory of the HTTP server for this connection is free then. r.RemoteAddr is the
// device's own address.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch wait := n.failures.Wait(r.RemoteAddr, time.Now()); {
	case n.draining.Load():
		refuse(w, "the relay stops", n.spread())
	case wait > 0:
		n.count.refusedThrottled.Add(1)
		refuse(w, "too many failed handshakes from this address", wait)
	case n.online() >= n.cfg.MaxDevices+n.cfg.MaxDevices/16:
		// Well above the limit nobody is looked at. Just above it, a device that is known to
		// be connected may still replace its connection: see verify.
		n.count.refusedFull.Add(1)
		refuse(w, "the relay is full", overloadRetry)
	case !n.gate.enter(r.RemoteAddr):
		n.count.refusedGate.Add(1)
		refuse(w, "too many handshakes at the moment", gateRetry)
	default:
		addr := r.RemoteAddr
		defer n.gate.leave(addr)
		n.accept(w, r)
	}
}

func refuse(w http.ResponseWriter, message string, retry time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int((retry+time.Second-1)/time.Second)))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Connection", "close") // it comes back on a new one, later
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = fmt.Fprintf(w, "{\"error\":%d,\"message\":%q}\n", http.StatusServiceUnavailable, message)
}

// failed counts a failed proof of the address and records it while that says something new.
func (n *Node) failed(addr string) bool {
	return n.failures.Fail(addr, time.Now()) == 0
}

// verify decides about enrolment. The operator's list comes first: a key on it counts
// whatever the device proved before, and without trust on first use nothing else does.
func (n *Node) verify(ctx context.Context, p *session.Peer) (err error) {
	if at, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		at.known = true
	}
	if n.online() >= n.cfg.MaxDevices && n.lookup(p.ID) == nil {
		n.count.refusedFull.Add(1)
		return fmt.Errorf("%w: %d devices are connected", session.ErrOverload, n.cfg.MaxDevices)
	}
	want, listed := n.cfg.List.Key(p.ID)
	switch {
	case listed && sameKey(want, p.PublicDER):
		err = n.cfg.Store.SetKey(ctx, p.ID, p.PublicDER)
	case listed:
	case !n.cfg.FirstUse:
		n.count.refusedUnknown.Add(1)
		if n.failed(p.RemoteAddr) {
			n.log.Warn("device refused", "security", "device_unknown", "device", p.ID, "key", p.KeyID, "peer", p.RemoteAddr)
		}
		return session.ErrUnknown
	default:
		var created bool
		want, created, err = n.cfg.Store.Enrol(ctx, p.ID, p.PublicDER)
		if created {
			n.log.Info("device enrolled", "security", "device_enrolled", "device", p.ID, "key", p.KeyID, "peer", p.RemoteAddr)
		}
	}
	if err != nil {
		n.count.refusedFull.Add(1)
		n.log.Warn("device not enrolled", "device", p.ID, "peer", p.RemoteAddr, "err", err)
		return fmt.Errorf("%w: %w", session.ErrOverload, err)
	}
	if !sameKey(want, p.PublicDER) {
		n.count.refusedAuth.Add(1)
		if n.failed(p.RemoteAddr) {
			n.log.Warn("device refused", "security", "device_key_mismatch", "device", p.ID, "key", p.KeyID, "peer", p.RemoteAddr)
		}
		return session.ErrKey
	}
	return nil
}

// keyHash is enough of a key to tell whether it is another one.
func keyHash(der []byte) [8]byte {
	sum := sha256.Sum256(der)
	return [8]byte(sum[:8])
}
