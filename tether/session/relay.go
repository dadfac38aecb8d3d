package session

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/proof"
	"github.com/cloudrest/cloudrest/tether/ws"
)

// Peer is a device that has proved that it holds a key.
type Peer struct {
	ID         tether.DeviceID
	KeyID      string // as package proof names keys
	Public     crypto.PublicKey
	PublicDER  []byte // SubjectPublicKeyInfo; one key has one encoding
	Info       []byte // descriptor JSON, not yet parsed; empty: not known
	Epoch      uint64
	Next       tether.EventID // oldest notification it has not seen acknowledged; zero: none
	Dropped    uint64         // notifications it lost
	Streams    int            // requests at once
	RemoteAddr string
	Session    [16]byte // the session's UUID
}

// Relay accepts devices.
type Relay struct {
	// Names are the host names, lower case and without port, under which devices may
	// reach this relay; "*" allows any (tests, single-host use). The one that a device asked
	// for stands in the CHALLENGE, which the device compares with what it dialled.
	Names   []string
	TLSEnds bool // TLS ends in this process: proofs are bound to it (RFC 9266)
	// Verify decides about enrolment. It fails with an error that wraps ErrUnknown,
	// ErrKey or ErrOverload; any other error counts as overload. It may block.
	Verify func(context.Context, *Peer) error
	// Acked is the last notification of this device that is safe; nil or zero: none.
	Acked     func(context.Context, *Peer) tether.EventID
	Keepalive time.Duration        // default mux.DefaultKeepalive
	Spread    func() time.Duration // reconnect spread, at least 10 s; nil: 10 s
	Budget    *mux.Budget
	Logger    *slog.Logger
	Now       func() time.Time // nil: time.Now
}

// What Verify says.
var (
	ErrUnknown  = errors.New("device not enrolled")     // GOAWAY 3
	ErrKey      = errors.New("not the device's key")    // GOAWAY 2
	ErrOverload = errors.New("relay takes no more now") // GOAWAY 5
)

// Waits that refused devices are told (SPEC.md §4.5).
const (
	refusedRetry  = 300 * time.Second
	overloadRetry = 30 * time.Second
	defaultSpread = 10 * time.Second
)

// Accept upgrades r and shakes hands, all on the caller's goroutine; then it returns, and
// the session runs on a fresh goroutine with a small stack. onOpen gets the session before
// any frame is read, and gives the handlers; it must not block. A request that does not
// become a session has been answered: 421 for a name that is not ours, else as ws.Upgrade.
func (rl *Relay) Accept(w http.ResponseWriter, r *http.Request, onOpen func(*mux.Session, *Peer) mux.Handlers) {
	name, ok := rl.name(r.Host)
	if !ok {
		http.Error(w, "this relay does not go by that name", http.StatusMisdirectedRequest)
		return
	}
	if rl.TLSEnds && r.TLS == nil {
		http.Error(w, "tethers come over TLS", http.StatusUpgradeRequired)
		return
	}
	// The request's context ends with the handler, and is not cancelled after a hijack.
	ctx, cancel := context.WithTimeout(r.Context(), 2*HandshakeTimeout)
	defer cancel()
	c, err := ws.Upgrade(w, r)
	if err != nil {
		rl.logger().Debug("tether upgrade refused", "peer", r.RemoteAddr, "err", err)
		return
	}
	s, err := rl.handshake(ctx, c, name, r.TLS, r.RemoteAddr, onOpen)
	if err != nil {
		rl.logger().Info("device refused", "peer", r.RemoteAddr, "err", err)
		return
	}
	go s.Run() // its end is the owner's to wait for: Session.Done
}

// name is the host as the device asked for it, if it is one of ours.
func (rl *Relay) name(host string) (string, bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = canonicalHost(host)
	if host == "" || len(host) > 200 {
		return "", false
	}
	return host, slices.Contains(rl.Names, host) || slices.Contains(rl.Names, "*")
}

func (rl *Relay) logger() *slog.Logger {
	if rl.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return rl.Logger
}

func (rl *Relay) now() time.Time {
	if rl.Now != nil {
		return rl.Now()
	}
	return time.Now()
}

// refusal is a GOAWAY with the error behind it.
type refusal struct {
	code  frame.GoAwayCode
	retry time.Duration
	err   error
}

func (e *refusal) Error() string { return e.code.String() + ": " + e.err.Error() }
func (e *refusal) Unwrap() error { return e.err }

func refuse(code frame.GoAwayCode, retry time.Duration, err error) error {
	return &refusal{code, retry, err}
}

func (rl *Relay) handshake(ctx context.Context, c carrier, name string, state *tls.ConnectionState, from string, onOpen func(*mux.Session, *Peer) mux.Handlers) (*mux.Session, error) {
	s, peer, err := rl.greet(ctx, c, name, state, from)
	if err == nil {
		_ = c.SetReadDeadline(time.Time{})
		s.SetHandlers(onOpen(s, peer))
		return s, nil
	}
	code := ws.ClosePolicy
	if r, ok := errors.AsType[*refusal](err); ok {
		text := r.code.String() // what went wrong inside the relay is not the device's business
		if r.code == frame.GoAwayProtocol {
			text = r.err.Error()
		}
		_ = c.Write(frame.AppendGoAway(nil, &frame.GoAway{Code: r.code, RetryAfter: uint32(r.retry.Milliseconds()), Spread: uint32(rl.spread().Milliseconds()), Text: text}))
		if r.code == frame.GoAwayOverload {
			code = ws.CloseTryLater
		}
	}
	c.Close(code, "refused")
	return nil, err
}

// greet runs the handshake. The ACCEPT has left before anybody gets to know the session,
// since no REQUEST may come before it.
func (rl *Relay) greet(ctx context.Context, c carrier, name string, state *tls.ConnectionState, from string) (*mux.Session, *Peer, error) {
	challenge := frame.Challenge{Time: uint64(rl.now().UnixMilli()), Relay: name}
	rand.Read(challenge.Nonce[:]) // fresh for each connection and kept nowhere else: it cannot be used twice
	var export []byte
	if rl.TLSEnds {
		if state == nil {
			return nil, nil, errors.New("no TLS state")
		}
		challenge.Binding = frame.BindExporter
		var err error
		if export, err = exporter(*state); err != nil {
			return nil, nil, err
		}
	}
	if err := c.Write(frame.AppendChallenge(nil, &challenge)); err != nil {
		return nil, nil, fmt.Errorf("send CHALLENGE: %w", err)
	}
	var hello frame.Hello
	err := expect(c, frame.TypeHello, func(body []byte) (err error) {
		hello, err = frame.ParseHello(body)
		return err
	})
	if err != nil {
		if errors.Is(err, ErrHandshake) {
			err = refuse(frame.GoAwayProtocol, refusedRetry, err)
		}
		return nil, nil, err
	}
	if hello.Version < 1 {
		return nil, nil, refuse(frame.GoAwayVersion, refusedRetry, fmt.Errorf("the device speaks version %d", hello.Version))
	}
	// The label form of an ID is for host names: on the wire there is one spelling.
	id, err := tether.ParseDeviceID(hello.Device)
	if err != nil || string(id) != hello.Device {
		return nil, nil, refuse(frame.GoAwayProtocol, refusedRetry, tether.ErrDeviceID)
	}
	peer := &Peer{
		ID: id, Info: hello.Info, Epoch: hello.Epoch, Next: tether.EventID{Epoch: hello.NextEpoch, Seq: hello.NextSeq}, Dropped: hello.Dropped,
		Streams: min(max(int(hello.Streams), 1), mux.MaxStreams), RemoteAddr: from,
	}
	if err := prove(peer, &hello, &challenge, export, state); err != nil {
		return nil, nil, refuse(frame.GoAwayAuth, refusedRetry, err)
	}
	if err := rl.Verify(ctx, peer); err != nil {
		switch {
		case errors.Is(err, ErrUnknown):
			err = refuse(frame.GoAwayUnknown, refusedRetry, err)
		case errors.Is(err, ErrKey):
			err = refuse(frame.GoAwayAuth, refusedRetry, err)
		default:
			err = refuse(frame.GoAwayOverload, overloadRetry, err)
		}
		return nil, nil, err
	}
	accept := frame.Accept{
		Version: min(hello.Version, frame.Version), Window: mux.MinWindow,
		Keepalive: uint16(rl.keepalive() / time.Second), Time: uint64(rl.now().UnixMilli()), Spread: uint16(rl.spread() / time.Second),
	}
	rand.Read(accept.Session[:])
	accept.Session[6] = accept.Session[6]&0x0f | 0x40 // RFC 9562 §5.4, version 4
	accept.Session[8] = accept.Session[8]&0x3f | 0x80
	peer.Session = accept.Session
	if rl.Acked != nil {
		acked := rl.Acked(ctx, peer)
		accept.AckEpoch, accept.AckSeq = acked.Epoch, acked.Seq
	}
	s := mux.New(c, mux.Config{
		Relay: true, Grow: true, SendWindow: hello.Window, RecvWindow: accept.Window, StartWindow: mux.StartWindow,
		Streams: peer.Streams, Budget: rl.Budget, Logger: rl.Logger,
	})
	if err := c.Write(frame.AppendAccept(nil, &accept)); err != nil {
		return nil, nil, fmt.Errorf("send ACCEPT: %w", err)
	}
	return s, peer, nil
}

func (rl *Relay) keepalive() time.Duration {
	if rl.Keepalive == 0 {
		return mux.DefaultKeepalive
	}
	return min(max(rl.Keepalive, minKeepalive), maxKeepalive)
}

func (rl *Relay) spread() time.Duration {
	if rl.Spread == nil {
		return defaultSpread
	}
	return max(rl.Spread(), defaultSpread)
}

// prove checks the device's proof and fills in its key.
func prove(p *Peer, h *frame.Hello, c *frame.Challenge, export []byte, state *tls.ConnectionState) error {
	if h.Auth == frame.AuthCertificate {
		if state == nil || len(state.VerifiedChains) == 0 {
			return errors.New("no verified client certificate")
		}
		cert := state.PeerCertificates[0]
		spki, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
		if err != nil {
			return err
		}
		p.Public, p.PublicDER, p.KeyID = cert.PublicKey, spki, proof.KeyID(spki)
		return nil
	}
	pub, err := proof.Verify(h, c, export)
	if err != nil {
		return err
	}
	p.Public, p.PublicDER, p.KeyID = pub, h.PublicKey, h.KeyID
	return nil
}
