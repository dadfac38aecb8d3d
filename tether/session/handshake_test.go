package session_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/proof"
	"github.com/cloudrest/cloudrest/tether/session"
)

var noHandler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

func TestRefusals(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, noHandler)
	for name, c := range map[string]struct {
		err  error
		code frame.GoAwayCode
	}{
		"unknown":  {session.ErrUnknown, frame.GoAwayUnknown},
		"key":      {session.ErrKey, frame.GoAwayAuth},
		"overload": {session.ErrOverload, frame.GoAwayOverload},
		"other":    {errors.New("disk full"), frame.GoAwayOverload},
	} {
		rs.relay.Verify = func(context.Context, *session.Peer) error { return c.err }
		_, _, err := d.Connect(t.Context(), rs.url(), "")
		r, ok := errors.AsType[*session.Refused](err)
		if !ok || r.Code != c.code || r.RetryAfter == 0 || strings.Contains(r.Text, "disk") {
			t.Errorf("%s: Connect = %v, want GOAWAY %v", name, err, c.code)
		}
	}
	rs.relay.Verify = func(context.Context, *session.Peer) error { t.Error("Verify without a proof"); return nil }
	rs.relay.Names = []string{"elsewhere.example"}
	_, _, err := d.Connect(t.Context(), rs.url(), "")
	if h, ok := errors.AsType[*session.HTTPError](err); !ok || h.Status != http.StatusMisdirectedRequest {
		t.Errorf("a name that is not the relay's = %v, want 421", err)
	}
}

func TestBusyRelay(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		http.Error(w, "later", http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	u, _ := url.Parse(strings.Replace(srv.URL, "http", "ws", 1))
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	d := session.Device{ID: tether.NewDeviceID(nil), Key: key, Handler: noHandler}
	_, _, err := d.Connect(t.Context(), u, "")
	if h, ok := errors.AsType[*session.HTTPError](err); !ok || h.Status != 503 || h.RetryAfter != 7*time.Second || h.Text != "later" {
		t.Errorf("Connect = %v", err)
	}
}

func TestKeysAndPeer(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, noHandler)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d.Key, d.Streams = key, 3
	d.FirstUnacked = func() tether.EventID { return tether.EventID{Epoch: 5, Seq: 6} }
	d.Dropped = func() uint64 { return 9 }
	rs.relay.Acked = func(_ context.Context, p *session.Peer) tether.EventID {
		return tether.EventID{Epoch: p.Next.Epoch, Seq: 5}
	}
	rs.relay.Keepalive = time.Second // too short: the bound counts
	s, a, err := d.Connect(t.Context(), rs.url(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close(1000, ""); <-s.Done() }()
	p := <-rs.peers
	if !key.PublicKey.Equal(p.Public) || p.KeyID != proof.KeyID(p.PublicDER) || p.Streams != 3 || p.Next != (tether.EventID{Epoch: 5, Seq: 6}) || p.Dropped != 9 || p.RemoteAddr == "" {
		t.Errorf("peer = %+v", p)
	}
	if a.AckEpoch != 5 || a.AckSeq != 5 || a.Keepalive != 15 || a.Window != mux.MinWindow || a.Session != p.Session || a.Spread != 10 || a.Version != 1 {
		t.Errorf("accept = %+v", a)
	}
}

// dialRaw opens the WebSocket and no more.
func dialRaw(t *testing.T, rs *relayServer, protocols ...string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	d := websocket.Dialer{TLSClientConfig: rs.Client().Transport.(*http.Transport).TLSClientConfig.Clone(), Subprotocols: protocols}
	d.TLSClientConfig.NextProtos = nil
	c, resp, err := d.Dial(rs.url().String(), nil)
	if c != nil {
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	return c, resp, err
}

func TestUpgradeRefused(t *testing.T) {
	rs := newRelay(t)
	for _, protocols := range [][]string{nil, {"cloudrest.2"}, {"chat", "cloudrest-h2.1"}} {
		_, resp, err := dialRaw(t, rs, protocols...)
		if err == nil || resp.StatusCode != http.StatusUpgradeRequired {
			t.Errorf("subprotocols %v: %v, %v, want 426", protocols, resp, err)
		}
	}
	if c, _, err := dialRaw(t, rs, "cloudrest.9", tether.Subprotocol); err != nil || c.Subprotocol() != tether.Subprotocol {
		t.Errorf("one in common: %v", err)
	}
}

// What comes instead of a good HELLO ends the connection and reaches nobody.
func TestBadHello(t *testing.T) {
	rs := newRelay(t)
	rs.relay.Verify = func(context.Context, *session.Peer) error { t.Error("Verify was asked"); return nil }
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	id := string(tether.NewDeviceID([]byte("x")))
	signed := func(c frame.Challenge, change func(*frame.Hello)) []byte {
		h := frame.Hello{Version: 1, Device: id, Window: 20000, Streams: 1}
		if err := proof.Sign(&h, key, &c, nil); err != nil { // without the exporter
			t.Fatal(err)
		}
		if change != nil {
			change(&h)
		}
		b, err := frame.AppendHello(nil, &h)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		kind  int
		hello func(frame.Challenge) []byte
		code  frame.GoAwayCode
		close int
	}{
		"proof for another TLS connection": {2, func(c frame.Challenge) []byte { return signed(c, nil) }, frame.GoAwayAuth, 1008},
		"version 0":                        {2, func(c frame.Challenge) []byte { return signed(c, func(h *frame.Hello) { h.Version = 0 }) }, frame.GoAwayVersion, 1008},
		"odd id":                           {2, func(c frame.Challenge) []byte { return signed(c, func(h *frame.Hello) { h.Device = "me" }) }, frame.GoAwayProtocol, 1008},
		"label as id": {2, func(c frame.Challenge) []byte {
			return signed(c, func(h *frame.Hello) { h.Device = tether.DeviceID(id).Label() })
		}, frame.GoAwayProtocol, 1008},
		"certificate without one": {2, func(c frame.Challenge) []byte {
			return signed(c, func(h *frame.Hello) { h.Auth = frame.AuthCertificate })
		}, frame.GoAwayAuth, 1008},
		"frames behind": {2, func(c frame.Challenge) []byte { return frame.AppendPing(signed(c, nil), 1) }, frame.GoAwayProtocol, 1008},
		"another frame": {2, func(frame.Challenge) []byte { return frame.AppendPing(nil, 1) }, frame.GoAwayProtocol, 1008},
		"garbage":       {2, func(frame.Challenge) []byte { return []byte("GET / HTTP/1.1") }, frame.GoAwayProtocol, 1008},
		"text":          {1, func(frame.Challenge) []byte { return []byte("hello") }, 99, 1003},
		"too large":     {2, func(frame.Challenge) []byte { return make([]byte, frame.MaxMessage+1) }, 99, 1009},
	} {
		t.Run(name, func(t *testing.T) {
			conn, _, err := dialRaw(t, rs, tether.Subprotocol)
			if err != nil {
				t.Fatal(err)
			}
			_, msg, err := conn.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			f, _, _ := frame.Next(msg)
			ch, err := frame.ParseChallenge(f.Body)
			if err != nil || f.Type != frame.TypeChallenge || ch.Relay != "127.0.0.1" || ch.Binding != frame.BindExporter {
				t.Fatalf("challenge = %+v, %v", ch, err)
			}
			if err := conn.WriteMessage(c.kind, c.hello(ch)); err != nil {
				t.Fatal(err)
			}
			code := frame.GoAwayCode(99)
			for {
				_, msg, err = conn.ReadMessage()
				if err != nil {
					break
				}
				f, _, _ := frame.Next(msg)
				if f.Type == frame.TypeAccept {
					t.Error("accepted")
				}
				if g, err := frame.ParseGoAway(f.Body); err == nil {
					code = g.Code
				}
			}
			if !websocket.IsCloseError(err, c.close) || code != c.code {
				t.Errorf("ended with %v, GOAWAY %d, want close %d, GOAWAY %d", err, code, c.close, c.code)
			}
		})
	}
}

// A relay that passes on another one's challenge gets no signature.
func TestRelayOfAnotherName(t *testing.T) {
	up := websocket.Upgrader{Subprotocols: []string{tether.Subprotocol}}
	signed := make(chan bool, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		c.WriteMessage(websocket.BinaryMessage, frame.AppendChallenge(nil, &frame.Challenge{Relay: "true.example"}))
		_, _, err = c.ReadMessage()
		signed <- err == nil
	}))
	defer srv.Close()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	d := session.Device{ID: tether.NewDeviceID(nil), Key: key, Handler: noHandler}
	u, _ := url.Parse(strings.Replace(srv.URL, "http", "ws", 1))
	if _, _, err := d.Connect(t.Context(), u, ""); !errors.Is(err, session.ErrRelayName) {
		t.Errorf("Connect = %v, want ErrRelayName", err)
	}
	if <-signed {
		t.Error("the device signed for another relay")
	}
}

func TestConnectGivesUp(t *testing.T) {
	up := websocket.Upgrader{Subprotocols: []string{tether.Subprotocol}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := up.Upgrade(w, r, nil); err == nil {
			c.ReadMessage() // and never a challenge
			c.Close()
		}
	}))
	defer srv.Close()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	d := session.Device{ID: tether.NewDeviceID(nil), Key: key, Handler: noHandler}
	u, _ := url.Parse(strings.Replace(srv.URL, "http", "ws", 1))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, _, err := d.Connect(ctx, u, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Connect = %v, want cancelled", err)
	}
}

// A newer session of the same device takes over; the older one hears why.
func TestReplaced(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, noHandler)
	away := make(chan frame.GoAway, 4)
	d.OnGoAway = func(g frame.GoAway) { away <- g }
	oldRelay, old := connect(t, rs, d)
	connect(t, rs, d)
	oldRelay.GoAway(frame.GoAway{Code: frame.GoAwayReplaced})
	oldRelay.Close(1001, "replaced")
	if g := <-away; g.Code != frame.GoAwayReplaced {
		t.Errorf("GOAWAY = %+v", g)
	}
	<-old.Done()
	if g, ok := errors.AsType[*mux.GoAwayError](old.Err()); !ok || g.Code != frame.GoAwayReplaced {
		t.Errorf("the old session ended with %v", old.Err())
	}
}

// A text message or a broken frame ends only the session it came on.
func TestTextOnAnOpenSession(t *testing.T) {
	rs := newRelay(t)
	rs.relay.TLSEnds = false
	other, _ := connect(t, rs, newDevice(t, rs, noHandler))
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
		c, _, err := dialRaw(t, rs, tether.Subprotocol)
		if err != nil {
			t.Fatal(err)
		}
		_, msg, _ := c.ReadMessage()
		f, _, _ := frame.Next(msg)
		ch, _ := frame.ParseChallenge(f.Body)
		h := frame.Hello{Version: 1, Device: string(tether.NewDeviceID([]byte("raw"))), Window: 20000, Streams: 1}
		proof.Sign(&h, key, &ch, nil)
		b, _ := frame.AppendHello(nil, &h)
		c.WriteMessage(websocket.BinaryMessage, b)
		if _, msg, err = c.ReadMessage(); err != nil || frame.Type(msg[0]) != frame.TypeAccept {
			t.Fatalf("no ACCEPT: %x, %v", msg, err)
		}
		s := <-rs.sessions
		c.WriteMessage(kind, []byte("not a frame"))
		for err == nil {
			_, _, err = c.ReadMessage()
		}
		want := map[int]int{websocket.TextMessage: 1003, websocket.BinaryMessage: 1002}[kind]
		if !websocket.IsCloseError(err, want) {
			t.Errorf("kind %d: ended with %v, want %d", kind, err, want)
		}
		<-s.Done()
	}
	if _, err := other.Ping(t.Context()); err != nil {
		t.Errorf("another session suffered: %v", err)
	}
}
