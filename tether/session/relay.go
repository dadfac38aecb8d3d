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
	ID        tether.DeviceID
	KeyID     string // as package proof names keys
	Public    crypto.PublicKey
	PublicDER []byte // SubjectPublicKeyInfo; one key has one encoding
	Info      []byte // descriptor JSON, not yet parsed; empty: not known
	Epoch     uint64
	Next      tether.EventID // oldest notification it has not seen acknowledged; zero: none
	Dropped   uint64         // notifications it lost
	// Chain is what HELLO carried of certificates (DER, the device's own first), unchecked.
	Chain      [][]byte
	Generation uint32 // of the owner; 0: not told
	// ClientCert was shown to TLS by whoever has its key; its issuer is unchecked. nil: none.
	ClientCert *x509.Certificate
	Streams    int // requests at once
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
	// ErrKey or ErrOverload, perhaps in a *DeniedError; any other error counts as overload.
	// It may block.
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

// DeniedError is a refusal by Verify whose reason the device is told.
type DeniedError struct {
	Err  error  // ErrUnknown, ErrKey or ErrOverload
	Text string // for people at the device, at most 200 bytes
}

func (e *DeniedError) Error() string { return e.Text }

// Unwrap returns the kind of refusal.
func (e *DeniedError) Unwrap() error { return e.Err }

// RefusedError is why Accept sent a device away.
type RefusedError struct {
	Code   frame.GoAwayCode
	Device tether.DeviceID // that the peer called itself; empty: it did not come so far
	Err    error
	retry  time.Duration
}

func (e *RefusedError) Error() string { return e.Code.String() + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(code frame.GoAwayCode, retry time.Duration, err error) error {
	return &RefusedError{Code: code, Err: err, retry: retry}
}

// text is what the peer is told: what it did itself, and what Verify has for it; what went
// wrong inside the relay is not its business.
func (e *RefusedError) text() string {
	if d, ok := errors.AsType[*DeniedError](e.Err); ok {
		return d.Text
	}
	if e.Code == frame.GoAwayProtocol || errors.Is(e.Err, proof.ErrSignature) || errors.Is(e.Err, proof.ErrKey) {
		return e.Err.Error()
	}
	return e.Code.String()
}

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
// The error says why there is no session, as a *RefusedError where the peer was sent away.
func (rl *Relay) Accept(w http.ResponseWriter, r *http.Request, onOpen func(*mux.Session, *Peer) mux.Handlers) error {
	name, ok := rl.name(r.Host)
	if !ok {
		http.Error(w, errName.Error(), http.StatusMisdirectedRequest)
		return errName
	}
	if rl.TLSEnds && r.TLS == nil {
		http.Error(w, errNoTLS.Error(), http.StatusUpgradeRequired)
		return errNoTLS
	}
	// The request's context ends with the handler, and is not cancelled after a hijack.
	ctx, cancel := context.WithTimeout(r.Context(), 2*HandshakeTimeout)
	defer cancel()
	c, err := ws.Upgrade(w, r)
	if err != nil {
		return err
	}
	s, err := rl.handshake(ctx, c, name, r.TLS, r.RemoteAddr, onOpen)
	if err != nil {
		return err
	}
	go s.Run() // its end is the owner's to wait for: Session.Done
	return nil
}

// What the peer is told when it comes the wrong way.
var (
	errName  = errors.New("this relay does not go by that name")
	errNoTLS = errors.New("tethers come over TLS")
)

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

func (rl *Relay) now() time.Time {
	if rl.Now != nil {
		return rl.Now()
	}
	return time.Now()
}

func (rl *Relay) handshake(ctx context.Context, c carrier, name string, state *tls.ConnectionState, from string, onOpen func(*mux.Session, *Peer) mux.Handlers) (*mux.Session, error) {
	s, peer, err := rl.greet(ctx, c, name, state, from)
	if err == nil {
		_ = c.SetReadDeadline(time.Time{})
		s.SetHandlers(onOpen(s, peer))
		return s, nil
	}
	code := ws.ClosePolicy
	if r, ok := errors.AsType[*RefusedError](err); ok {
		_ = c.Write(frame.AppendGoAway(nil, &frame.GoAway{Code: r.Code, RetryAfter: uint32(r.retry.Milliseconds()), Spread: uint32(rl.spread().Milliseconds()), Text: r.text()}))
		if r.Code == frame.GoAwayOverload {
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
		Chain: hello.Chain, Generation: hello.Generation,
	}
	if state != nil && len(state.PeerCertificates) > 0 {
		peer.ClientCert = state.PeerCertificates[0]
		// The TLS connection would keep them parsed for as long as the device is connected,
		// 3.6 KB each, for a question that nobody asks again. It reads them in its handshake
		// only, which is over, and a server's are nobody else's (crypto/tls of Go 1.26).
		clear(state.PeerCertificates)
	}
	if err := prove(peer, &hello, &challenge, export, state); err != nil {
		return nil, nil, &RefusedError{frame.GoAwayAuth, id, err, refusedRetry}
	}
	if err := rl.Verify(ctx, peer); err != nil {
		refused := &RefusedError{frame.GoAwayOverload, id, err, overloadRetry}
		switch {
		case errors.Is(err, ErrUnknown):
			refused.Code, refused.retry = frame.GoAwayUnknown, refusedRetry
		case errors.Is(err, ErrKey):
			refused.Code, refused.retry = frame.GoAwayAuth, refusedRetry
		}
		return nil, nil, refused
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
		cert := p.ClientCert
		if cert == nil || len(state.VerifiedChains) == 0 {
			return errors.New("no verified client certificate")
		}
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
