package devnode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/frame"
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
type attempt struct {
	known bool     // verify recorded why it ended, or it opened
	life  lifetime // of the certificate
	other bool     // than the device before: another owner or another key
	list  uint64   // version of the operator's that it was checked against
}

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
		err := rl.Accept(w, r.WithContext(context.WithValue(r.Context(), attemptKey{}, at)), func(s *mux.Session, p *session.Peer) mux.Handlers {
			at.known = true
			n.log.Info("device came", "device", p.ID, "peer", p.RemoteAddr, "session", fmt.Sprintf("%x", p.Session), "dropped", p.Dropped, "client_certificate", p.ClientCert != nil)
			defer n.recheck(at.list)
			return n.open(s, p.ID, keyHash(p.PublicDER), at.life, at.other, p.Info)
		})
		if !at.known { // a bad proof, or not even the protocol
			n.count.refusedProtocol.Add(1)
			if !n.failed(r.RemoteAddr) {
				return
			}
			if e, ok := errors.AsType[*session.RefusedError](err); ok && e.Code == frame.GoAwayAuth {
				n.log.Warn("device refused", "security", "device_proof_invalid", "device", e.Device, "peer", r.RemoteAddr, "err", e.Err)
				return
			}
			n.log.Info("handshake failed", "peer", r.RemoteAddr, "err", err)
		}
	}
}

// ServeHTTP answers GET /v1/tether. It returns once the device is in, or refused; the
// memory of the HTTP server for this connection is free then. r.RemoteAddr is the
// device's own address.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.shaking.Add(1) // before the look at draining: Drain looks the other way round
	defer n.shaking.Add(-1)
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

// RefusedByTLS takes note of a peer that showed a device's certificate in a TLS handshake
// that failed: it does not have the key, or the certificate is not what TLS can read.
func (n *Node) RefusedByTLS(remoteAddr string, chain []*x509.Certificate, err error) {
	n.count.refusedProtocol.Add(1)
	if !n.failed(remoteAddr) {
		return
	}
	var raw [][]byte
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	_, id, _ := devcert.Parse(raw) // empty if it is none of ours
	n.log.Warn("device refused", "security", "device_proof_invalid", "device", id, "peer", remoteAddr, "err", err)
}

// failed counts a failed proof of the address and records it while that says something new.
func (n *Node) failed(addr string) bool {
	return n.failures.Fail(addr, time.Now()) == 0
}

// verify decides about enrolment: revocations, the factory's certificate where one is
// needed, then the key. The operator's list comes first there: a key on it counts whatever
// the device proved before, and without trust on first use nothing else does. So a new key
// needs the operator, also with a good certificate.
func (n *Node) verify(ctx context.Context, p *session.Peer) (err error) {
	at, _ := ctx.Value(attemptKey{}).(*attempt)
	if at != nil {
		at.known, at.list = true, n.cfg.List.Version()
	}
	if n.online() >= n.cfg.MaxDevices && n.lookup(p.ID) == nil {
		n.count.refusedFull.Add(1)
		return fmt.Errorf("%w: %d devices are connected", session.ErrOverload, n.cfg.MaxDevices)
	}
	if n.cfg.List.Revoked(p.ID) {
		return n.deny(p, &n.count.refusedRevoked, "device_certificate_revoked", &session.DeniedError{Err: session.ErrUnknown, Text: textRevoked}, nil)
	}
	if n.cfg.Factory != nil {
		life, err := n.certified(p)
		if err != nil {
			return err
		}
		if at != nil {
			at.life = life
		}
	}
	var kept []byte // the key before
	if n.cfg.Cache != nil {
		if kept, err = n.cfg.Store.Key(p.ID); err != nil {
			return n.unstored(p, err)
		}
	}
	other := !bytes.Equal(kept, p.PublicDER)
	have := sha256.Sum256(p.PublicDER)
	want, listed := n.cfg.List.Key(p.ID)
	switch {
	case listed && want == have:
		err = n.cfg.Store.SetKey(ctx, p.ID, p.PublicDER, p.Generation)
	case listed:
	case !n.cfg.FirstUse:
		return n.deny(p, &n.count.refusedUnknown, "device_unknown", &session.DeniedError{Err: session.ErrUnknown, Text: "device not enrolled: the operator of this relay has not listed it"}, nil)
	default:
		var created bool
		kept, created, err = n.cfg.Store.Enrol(ctx, p.ID, p.PublicDER, p.Generation)
		want = sha256.Sum256(kept)
		if created {
			n.log.Info("device enrolled", "security", "device_enrolled", "device", p.ID, "key", p.KeyID, "peer", p.RemoteAddr)
		}
	}
	if err != nil {
		return n.unstored(p, err)
	}
	if want != have {
		return n.deny(p, &n.count.refusedAuth, "device_key_mismatch", &session.DeniedError{Err: session.ErrKey,
			Text: "key changed: this relay knows the device with another key, its operator can allow the new one"}, nil)
	}
	before, err := n.cfg.Store.SetGeneration(ctx, p.ID, p.Generation)
	switch {
	case err != nil:
		return n.unstored(p, err)
	case p.Generation > before:
		other = true
		n.log.Warn("device was reset to its factory state", "security", "device_factory_reset", "device", p.ID, "generation", p.Generation, "before", before, "peer", p.RemoteAddr)
	case p.Generation < before:
		n.log.Warn("device tells an owner generation that is over: an old copy of its memory?", "security", "device_generation_lower", "device", p.ID, "generation", p.Generation, "before", before, "peer", p.RemoteAddr)
	}
	if other {
		n.forget(p.ID)
		if at != nil {
			at.other = true // and again when it is in: until then an older connection may answer
		}
	}
	return nil
}

// textRevoked is what a revoked device is told.
const textRevoked = "device revoked: ask the operator of this relay"

// deny counts and records a refusal. err has more than the device is told, or is nil.
func (n *Node) deny(p *session.Peer, count *atomic.Uint64, event string, denied *session.DeniedError, err error) error {
	count.Add(1)
	if n.failed(p.RemoteAddr) {
		attrs := []any{"security", event, "device", p.ID, "key", p.KeyID, "peer", p.RemoteAddr, "reason", denied.Text}
		if err != nil {
			attrs = append(attrs, "err", err)
		}
		n.log.Warn("device refused", attrs...)
	}
	return denied
}

// unstored is a refusal because of the store.
func (n *Node) unstored(p *session.Peer, err error) error {
	n.count.refusedFull.Add(1)
	n.log.Warn("device not enrolled", "device", p.ID, "peer", p.RemoteAddr, "err", err)
	return fmt.Errorf("%w: %w", session.ErrOverload, err)
}

// keyHash is enough of a key to tell whether it is another one.
func keyHash(der []byte) [16]byte {
	sum := sha256.Sum256(der)
	return [16]byte(sum[:])
}
