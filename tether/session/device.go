package session

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/proof"
	"github.com/cloudrest/cloudrest/tether/ws"
)

// Waits of SPEC.md §4: the relay's for HELLO, and the device's for CHALLENGE; and the
// device's for ACCEPT, behind which the relay may have asked a directory.
const (
	HandshakeTimeout = 10 * time.Second
	acceptTimeout    = 20 * time.Second
)

// dialTimeout bounds DNS, TCP, TLS, upgrade and handshake together.
const dialTimeout = 45 * time.Second

// Device is what a device says of itself when it connects.
type Device struct {
	ID      tether.DeviceID
	Key     crypto.Signer // Ed25519 or ECDSA P-256; may be a secure element
	TLS     *tls.Config   // nil: the system's roots
	Proxy   func(*http.Request) (*url.URL, error)
	Info    func() []byte // descriptor JSON; nil or empty: not known yet
	Window  uint32        // bytes granted on each request body; default mux.DeviceWindow
	Streams int           // requests at once, 1..mux.MaxStreams; default mux.DefaultStreams
	Epoch   uint64        // of this start of the daemon
	// FirstUnacked is the oldest notification that no relay has acknowledged; zero: none.
	FirstUnacked func() tether.EventID
	Dropped      func() uint64 // notifications lost since the last ACCEPT
	// Certificate is the chain that the factory issued for Key (DER, the device's own first),
	// asked for at each Connect; nil or empty: there is none (SPEC.md §4.11).
	Certificate   func() [][]byte
	Generation    func() uint32 // of the owner: rises with each factory reset; nil: not told
	Handler       http.Handler  // answers requests; each on a goroutine of its own
	Logger        *slog.Logger
	OnAck         func(tether.EventID)    // must not block
	OnInvalidated func(frame.Invalidated) // must not block
	OnGoAway      func(frame.GoAway)      // must not block
}

// Refused means that the relay spoke the protocol and said no.
type Refused struct{ frame.GoAway }

func (e *Refused) Error() string {
	return fmt.Sprintf("the relay refused: %v (%.100q), retry after %v", e.Code, e.Text, time.Duration(e.RetryAfter)*time.Millisecond)
}

// HTTPError is an answer other than 101 to the upgrade.
type HTTPError = ws.HTTPError

var (
	// ErrRelayName means that the relay calls itself by another name than the one that
	// was dialled: somebody may be passing its challenge on. Nothing was signed.
	ErrRelayName = errors.New("the relay's name is not the host that was dialled")
	// ErrHandshake means that the peer broke the protocol before the session began.
	ErrHandshake = errors.New("tether handshake")
)

// Connect dials u (ws or wss), proves who the device is, and starts the session, which
// runs until its Done. addr is the ip:port to connect to; "" resolves u's host. It fails
// with *Refused, *HTTPError, ErrRelayName, or what the network said.
func (d *Device) Connect(ctx context.Context, u *url.URL, addr string) (*mux.Session, frame.Accept, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dial := ws.DialConfig{URL: u, Addr: addr, TLS: d.TLS, Proxy: d.Proxy}
	var chain [][]byte
	if d.Certificate != nil {
		chain = d.Certificate()
	}
	if len(chain) > 0 {
		dial.Certificate = &tls.Certificate{Certificate: chain, PrivateKey: d.Key}
	}
	c, err := ws.Dial(ctx, dial)
	if err != nil {
		return nil, frame.Accept{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close(0, "") })
	defer stop()
	s, a, late, err := d.handshake(c, hostOf(u), chain)
	if err != nil {
		c.Close(ws.CloseProtocol, "handshake")
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, frame.Accept{}, fmt.Errorf("shake hands with %s: %w", u.Host, err)
	}
	if !stop() { // the carrier is closed already, and nothing runs on it
		return nil, frame.Accept{}, context.Cause(ctx)
	}
	go s.Run()
	if late != nil {
		_ = s.Describe(late) // fails only if the session has ended already
	}
	return s, a, nil
}

// hostOf is the name that the relay must use.
func hostOf(u *url.URL) string { return canonicalHost(u.Hostname()) }

// canonicalHost is lower case, without a final dot and without brackets (SPEC.md §4.1).
func canonicalHost(host string) string {
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// carrier is a ws.Conn, or a fake.
type carrier interface {
	mux.Carrier
	SetReadDeadline(time.Time) error
	TLS() (tls.ConnectionState, bool)
}

// handshake returns, as late, a descriptor that did not fit into HELLO beside the chain.
func (d *Device) handshake(c carrier, host string, chain [][]byte) (s *mux.Session, accept frame.Accept, late []byte, err error) {
	var challenge frame.Challenge
	err = expect(c, frame.TypeChallenge, func(body []byte) (err error) {
		challenge, err = frame.ParseChallenge(body)
		return err
	})
	if err != nil {
		return nil, frame.Accept{}, nil, err
	}
	if challenge.Relay != host {
		return nil, frame.Accept{}, nil, fmt.Errorf("%w: it says %.80q", ErrRelayName, challenge.Relay)
	}
	hello := frame.Hello{
		Version: frame.Version, Device: string(d.ID), Window: d.Window, Streams: uint16(d.streams()), Epoch: d.Epoch,
		Chain: chain,
	}
	if hello.Window == 0 {
		hello.Window = mux.DeviceWindow
	}
	hello.Window = min(max(hello.Window, mux.MinWindow), mux.MaxWindow)
	if d.Info != nil {
		hello.Info = d.Info()
	}
	if d.FirstUnacked != nil {
		id := d.FirstUnacked()
		hello.NextEpoch, hello.NextSeq = id.Epoch, id.Seq
	}
	if d.Dropped != nil {
		hello.Dropped = d.Dropped()
	}
	if d.Generation != nil {
		hello.Generation = d.Generation()
	}
	exporter, err := clientExporter(c, challenge.Binding)
	if err != nil {
		return nil, frame.Accept{}, nil, err
	}
	if err := proof.Sign(&hello, d.Key, &challenge, exporter); err != nil {
		return nil, frame.Accept{}, nil, err
	}
	msg, err := frame.AppendHello(nil, &hello)
	if err != nil && len(chain) > 0 && len(hello.Info) > 0 && len(hello.Info) <= frame.MaxDescribe {
		late, hello.Info = hello.Info, nil // SPEC.md §4.2
		msg, err = frame.AppendHello(nil, &hello)
	}
	if err != nil {
		return nil, frame.Accept{}, nil, err
	}
	if err := c.Write(msg); err != nil {
		return nil, frame.Accept{}, nil, fmt.Errorf("send HELLO: %w", err)
	}
	var early []byte // frames in ACCEPT's message, which belong to the session already
	err = expectMore(c, frame.TypeAccept, func(body, rest []byte) (err error) {
		accept, err = frame.ParseAccept(body)
		early = append([]byte(nil), rest...)
		return err
	})
	switch {
	case err != nil:
		return nil, frame.Accept{}, nil, err
	case accept.Version == 0 || accept.Version > frame.Version:
		return nil, frame.Accept{}, nil, fmt.Errorf("%w: the relay chose version %d of at most %d", ErrHandshake, accept.Version, frame.Version)
	}
	_ = c.SetReadDeadline(time.Time{})
	var carry mux.Carrier = c
	if len(early) > 0 {
		carry = &earlyCarrier{Carrier: c, early: early}
	}
	server := exchange.Server{Handler: d.Handler, Logger: d.Logger}
	s = mux.New(carry, mux.Config{
		SendWindow: accept.Window, RecvWindow: hello.Window, Streams: d.streams(), Accept: server.Serve, Logger: d.Logger,
		Keepalive: keepalive(accept.Keepalive),
		Handlers:  mux.Handlers{OnAck: d.OnAck, OnInvalidated: d.OnInvalidated, OnGoAway: d.OnGoAway},
	})
	return s, accept, late, nil
}

func (d *Device) streams() int {
	if d.Streams <= 0 {
		return mux.DefaultStreams
	}
	return min(d.Streams, mux.MaxStreams)
}

// Bounds of the keepalive that a relay may ask for (SPEC.md §4.3).
const (
	minKeepalive = 15 * time.Second
	maxKeepalive = 240 * time.Second
)

// keepalive is the relay's wish within the bounds; 0 means the default.
func keepalive(s uint16) time.Duration {
	if s == 0 {
		return mux.DefaultKeepalive
	}
	return min(max(time.Duration(s)*time.Second, minKeepalive), maxKeepalive)
}

// clientExporter gives what the challenge asks to bind the proof to.
func clientExporter(c carrier, binding uint8) ([]byte, error) {
	switch binding {
	case frame.BindNone:
		return nil, nil
	case frame.BindExporter:
	default:
		return nil, fmt.Errorf("%w: unknown binding %d", ErrHandshake, binding)
	}
	state, ok := c.TLS()
	if !ok {
		return nil, fmt.Errorf("%w: the relay asks for a TLS binding on a connection without TLS", ErrHandshake)
	}
	return exporter(state)
}

func exporter(state tls.ConnectionState) ([]byte, error) {
	e, err := state.ExportKeyingMaterial(proof.ExporterLabel, []byte{}, proof.ExporterSize)
	if err != nil {
		return nil, fmt.Errorf("export TLS keying material: %w", err)
	}
	return e, nil
}

// expect reads one message that holds exactly one frame of type t. A GOAWAY instead is
// *Refused.
func expect(c carrier, t frame.Type, parse func(body []byte) error) error {
	return expectMore(c, t, func(body, rest []byte) error {
		if len(rest) > 0 {
			return fmt.Errorf("%w: frames behind %v", ErrHandshake, t)
		}
		return parse(body)
	})
}

// expectMore is expect for a frame that others may follow.
func expectMore(c carrier, t frame.Type, parse func(body, rest []byte) error) error {
	wait := HandshakeTimeout
	if t == frame.TypeAccept {
		wait = acceptTimeout
	}
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	empty := true
	read := func(msg []byte) error {
		if empty = len(msg) == 0; empty {
			return nil // SPEC.md §2.1
		}
		f, rest, err := frame.Next(msg)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", ErrHandshake, err)
		case f.Type == frame.TypeGoAway && f.Stream == 0:
			g, err := frame.ParseGoAway(f.Body)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrHandshake, err)
			}
			return &Refused{g}
		case f.Type != t || f.Stream != 0:
			return fmt.Errorf("%w: %v on stream %d, want %v", ErrHandshake, f.Type, f.Stream, t)
		}
		if err := parse(f.Body, rest); err != nil {
			return fmt.Errorf("%w: %w", ErrHandshake, err)
		}
		return nil
	}
	for empty {
		if err := c.Read(read); err != nil {
			return fmt.Errorf("read %v: %w", t, err)
		}
	}
	return nil
}

// earlyCarrier gives the frames that shared ACCEPT's message first.
type earlyCarrier struct {
	mux.Carrier
	early []byte
}

func (c *earlyCarrier) Read(f func([]byte) error) error {
	if c.early != nil {
		msg := c.early
		c.early = nil
		return f(msg)
	}
	return c.Carrier.Read(f)
}
