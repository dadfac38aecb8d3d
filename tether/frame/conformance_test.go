package frame_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/proof"
	"github.com/cloudrest/cloudrest/tether/session"
	"github.com/cloudrest/cloudrest/tether/ws"
)

// These tests send the vectors to the module's own two sides over a real WebSocket and
// look at what comes back: SPEC.md §3.4 as a stranger sees it.

const patient = 20 * time.Second // for what takes milliseconds on a quiet machine

// answer is what a side did with a message.
type answer struct {
	frames []frame.Frame // all that came back
	code   int           // of the close frame; 0: the connection lives, a PING was answered
}

func (a answer) String() string {
	var b strings.Builder
	for _, f := range a.frames {
		fmt.Fprintf(&b, "%v on %d %x, ", f.Type, f.Stream, f.Body)
	}
	fmt.Fprintf(&b, "close code %d", a.code)
	return b.String()
}

// closedFor reports whether the side said GOAWAY with the code and closed.
func (a answer) closedFor(code frame.GoAwayCode, closeCode int) bool {
	if a.code != closeCode || len(a.frames) == 0 {
		return false
	}
	last := a.frames[len(a.frames)-1]
	g, err := frame.ParseGoAway(last.Body)
	return last.Type == frame.TypeGoAway && err == nil && g.Code == code
}

// ask sends msg and then a PING, and gathers what comes until the PONG or the end.
func ask(t *testing.T, c *ws.Conn, msg []byte) answer {
	t.Helper()
	const token = 0x7e57
	if err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	_ = c.Write(frame.AppendPing(nil, token)) // fails where the message has ended the connection
	if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	var a answer
	for ponged := false; !ponged; {
		err := c.Read(func(msg []byte) error {
			for msg = bytes.Clone(msg); len(msg) > 0; {
				f, rest, err := frame.Next(msg)
				if err != nil {
					return err
				}
				msg = rest
				if f.Type == frame.TypePong && bytes.Equal(f.Body, []byte{0, 0, 0x7e, 0x57}) {
					ponged = true
					continue
				}
				a.frames = append(a.frames, f)
			}
			return nil
		})
		if err != nil {
			if a.code = ws.CloseCode(err); a.code == 0 {
				t.Fatalf("%v, and the connection broke without a close frame: %v", a, err)
			}
			return a
		}
	}
	return a
}

func wsURL(t *testing.T, srv *httptest.Server) *url.URL {
	t.Helper()
	u, err := url.Parse(strings.Replace(srv.URL, "http", "ws", 1))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// rawDevice gives a connection on which the relay has let us in as a device.
func rawDevice(t *testing.T, srv *httptest.Server) *ws.Conn {
	t.Helper()
	c, err := ws.Dial(t.Context(), ws.DialConfig{URL: wsURL(t, srv)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(0, "") })
	key, _, device := sessionInputs()
	err = c.Read(func(msg []byte) error {
		f, _, err := frame.Next(msg)
		if err != nil {
			return err
		}
		challenge, err := frame.ParseChallenge(f.Body)
		if err != nil {
			return err
		}
		hello := frame.Hello{Version: frame.Version, Device: string(device), Window: mux.MinWindow, Streams: 1, Epoch: 1}
		if err := proof.Sign(&hello, key, &challenge, nil); err != nil {
			return err
		}
		answer, err := frame.AppendHello(nil, &hello)
		if err != nil {
			return err
		}
		return c.Write(answer)
	})
	if err == nil {
		err = c.Read(func(msg []byte) error {
			if f, _, err := frame.Next(msg); err != nil || f.Type != frame.TypeAccept {
				return fmt.Errorf("%v instead of ACCEPT, %v", f.Type, err)
			}
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newRelay(t *testing.T, handlers mux.Handlers) (srv *httptest.Server, sessions chan *mux.Session) {
	t.Helper()
	relay := session.Relay{Names: []string{"127.0.0.1"}, Verify: func(context.Context, *session.Peer) error { return nil }}
	sessions = make(chan *mux.Session, 200)
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		relay.Accept(w, r, func(s *mux.Session, _ *session.Peer) mux.Handlers {
			sessions <- s
			return handlers
		})
	}))
	t.Cleanup(srv.Close)
	return srv, sessions
}

// deviceSends are the types that a device sends on an open connection.
func deviceSends(t frame.Type) bool {
	switch t {
	case frame.TypeResponse, frame.TypeNotify, frame.TypeDescribe, frame.TypeLocate, frame.TypeInvalidate:
		return true
	}
	return bothSend(t)
}

func bothSend(t frame.Type) bool {
	switch t {
	case frame.TypeData, frame.TypeDataEnd, frame.TypeTrailers, frame.TypeReset, frame.TypeWindow, frame.TypePing, frame.TypePong, frame.TypeGoAway:
		return true
	}
	return false
}

// Before any REQUEST a device may send NOTIFY and other frames of the connection; all
// else, and everything malformed, ends the connection with GOAWAY 4 and 1002.
func TestRelayAnswersVectors(t *testing.T) {
	srv, _ := newRelay(t, mux.Handlers{})
	for _, v := range append(validVectors(t), invalidVectors()...) {
		t.Run(v.name, func(t *testing.T) {
			typ := frame.Type(v.msg[0])
			good := v.class == "skip" || (v.class == "ok" || v.class == "read") && deviceSends(typ) && !belongsToStream(typ)
			got := ask(t, rawDevice(t, srv), v.msg)
			switch {
			case good && got.code != 0:
				t.Errorf("the relay answered %v, want no more than the PONG", got)
			case !good && !got.closedFor(frame.GoAwayProtocol, ws.CloseProtocol):
				t.Errorf("the relay answered %v, want GOAWAY 4 and close code 1002", got)
			}
		})
	}
}

// rawRelay gives a connection on which a device believes us to be its relay.
func rawRelay(t *testing.T) *ws.Conn {
	t.Helper()
	conns := make(chan *ws.Conn, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := ws.Upgrade(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		if err = c.Write(frame.AppendChallenge(nil, &frame.Challenge{Relay: "127.0.0.1"})); err == nil {
			err = c.Read(func([]byte) error { return nil })
		}
		if err == nil {
			err = c.Write(frame.AppendAccept(nil, &frame.Accept{Version: frame.Version, Window: mux.MinWindow}))
		}
		if err != nil {
			t.Error(err)
		}
		conns <- c
	}))
	t.Cleanup(srv.Close)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	device := session.Device{ID: tether.NewDeviceID([]byte(t.Name())), Key: key, Epoch: 1, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // whatever is asked: the stream stays open
	})}
	s, _, err := device.Connect(t.Context(), wsURL(t, srv), "")
	if err != nil {
		t.Fatal(err)
	}
	c := <-conns
	t.Cleanup(func() {
		c.Close(0, "")
		<-s.Done()
	})
	return c
}

// A bad head in a REQUEST costs its stream only.
func TestDeviceAnswersVectors(t *testing.T) {
	for _, v := range append(validVectors(t), invalidVectors()...) {
		t.Run(v.name, func(t *testing.T) {
			typ := frame.Type(v.msg[0])
			good := v.class == "skip" || (v.class == "ok" || v.class == "read") &&
				(typ == frame.TypeRequest || typ == frame.TypeNotifyAck || typ == frame.TypeInvalidated || bothSend(typ) && !belongsToStream(typ))
			got := ask(t, rawRelay(t), v.msg)
			switch {
			case v.class == "head" && typ == frame.TypeRequest:
				if got.code != 0 || len(got.frames) != 1 || got.frames[0].Type != frame.TypeReset || got.frames[0].Stream != 1 ||
					!bytes.Equal(got.frames[0].Body, []byte{0, 0, 0, byte(frame.ResetBadHead)}) {
					t.Errorf("the device answered %v, want RESET 3", got)
				}
			case good && got.code != 0:
				t.Errorf("the device answered %v, want the connection to live", got)
			case !good && !got.closedFor(frame.GoAwayProtocol, ws.CloseProtocol):
				t.Errorf("the device answered %v, want GOAWAY 4 and close code 1002", got)
			}
		})
	}
}

// The rules of SPEC.md §5 that need a stream.
func TestStreamRules(t *testing.T) {
	srv, sessions := newRelay(t, mux.Handlers{})
	head := func(stream uint32, flags uint8, status uint16) []byte {
		b, err := frame.AppendResponse(nil, stream, &frame.Response{Flags: flags, Status: status})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	trailers, err := frame.AppendTrailers(nil, 1, map[string][]string{"A": {"b"}})
	if err != nil {
		t.Fatal(err)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	reset := func(code frame.ResetCode) []byte { return frame.AppendReset(nil, 1, code) }
	full := bytes.Repeat(frame.AppendData(nil, 1, make([]byte, frame.MaxData), false), mux.StartWindow/frame.MaxData)
	for name, c := range map[string]struct {
		msg    []byte
		closes bool            // with GOAWAY 4
		reset  frame.ResetCode // else; none: nothing
	}{
		"§5.2 a second final RESPONSE":      {msg: join(head(1, 0, 200), head(1, 0, 200)), closes: true},
		"§5.2 a RESPONSE after END":         {msg: join(head(1, frame.FlagEnd, 204), head(1, 0, 200)), closes: true},
		"§5.2 interim, then final":          {msg: join(head(1, 0, 103), head(1, 0, 100), head(1, frame.FlagEnd, 204)), reset: none},
		"§5.2 too many interim":             {msg: bytes.Repeat(head(1, 0, 103), 40), reset: frame.ResetBadHead},
		"§5.3 DATA before RESPONSE":         {msg: frame.AppendData(nil, 1, []byte("x"), false), closes: true},
		"§5.3 DATA after interim":           {msg: join(head(1, 0, 103), frame.AppendData(nil, 1, []byte("x"), false)), closes: true},
		"§5.3 TRAILERS before RESPONSE":     {msg: trailers, closes: true},
		"§5.3 DATA after DATA_END":          {msg: join(head(1, 0, 200), frame.AppendData(nil, 1, nil, true), frame.AppendData(nil, 1, nil, true)), closes: true},
		"§5.3 empty DATA":                   {msg: join(head(1, 0, 200), frame.AppendData(nil, 1, nil, false)), reset: none},
		"§5.4 all credit":                   {msg: join(head(1, 0, 200), full), reset: none},
		"§5.4 a byte over the credit":       {msg: join(head(1, 0, 200), full, frame.AppendData(nil, 1, []byte("x"), false)), reset: frame.ResetFlow},
		"§5.4 WINDOW over the sum":          {msg: join(frame.AppendWindow(nil, 1, 1<<31-1), frame.AppendWindow(nil, 1, 1<<31-1)), reset: frame.ResetFlow},
		"§5.4 WINDOW 2^32-1":                {msg: frame.AppendWindow(nil, 1, 1<<32-1), reset: frame.ResetFlow},
		"§5.5 RESET twice":                  {msg: join(reset(frame.ResetUnreachable), reset(frame.ResetUnreachable)), reset: none},
		"§5.5 an unknown code":              {msg: reset(77), reset: none},
		"§5.6 frames for a closed stream":   {msg: join(reset(frame.ResetInternal), head(1, 0, 200), full, trailers, frame.AppendWindow(nil, 1, 1)), reset: none},
		"§5 RESPONSE on an unopened stream": {msg: head(2, 0, 200), closes: true},
		"§5 RESET on an unopened stream":    {msg: frame.AppendReset(nil, 7, 1), closes: true},
		"§5.8 101 without UPGRADE":          {msg: head(1, 0, 101), reset: frame.ResetBadHead},
	} {
		t.Run(name, func(t *testing.T) {
			conn := rawDevice(t, srv)
			s := <-sessions
			st, err := s.Open(t.Context(), &frame.Request{Method: "POST", Path: "/"})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Reset(frame.ResetCancel)
			got := ask(t, conn, c.msg)
			if c.closes {
				if !got.closedFor(frame.GoAwayProtocol, ws.CloseProtocol) {
					t.Errorf("the relay answered %v, want GOAWAY 4 and close code 1002", got)
				}
				return
			}
			code := none
			for _, f := range got.frames {
				switch f.Type {
				case frame.TypeRequest, frame.TypeWindow:
				case frame.TypeReset:
					v, err := frame.ParseUint32(f.Body)
					if err != nil || code != none {
						t.Fatalf("the relay answered %v", got)
					}
					code = frame.ResetCode(v)
				default:
					t.Errorf("the relay sent %v", f.Type)
				}
			}
			if got.code != 0 || code != c.reset {
				t.Errorf("the relay answered %v, want RESET %d (%d: none)", got, c.reset, none)
			}
		})
	}
}

// none is no RESET at all.
const none frame.ResetCode = 1 << 31

// SPEC.md §5.9: a thousand control frames are allowed, not many more; payload earns more.
func TestControlFlood(t *testing.T) {
	srv, _ := newRelay(t, mux.Handlers{})
	if got := ask(t, rawDevice(t, srv), bytes.Repeat(frame.AppendPong(nil, 1), 900)); got.code != 0 {
		t.Errorf("after 900 control frames: %v", got)
	}
	if got := ask(t, rawDevice(t, srv), bytes.Repeat(frame.AppendPong(nil, 1), 2000)); !got.closedFor(frame.GoAwayProtocol, ws.CloseProtocol) {
		t.Errorf("after 2000 control frames: %v, want GOAWAY 4 and close code 1002", got)
	}
}

// SPEC.md §2.1: what is refused before frames are looked at.
func TestCarrierRules(t *testing.T) {
	srv, _ := newRelay(t, mux.Handlers{})
	if got := ask(t, rawDevice(t, srv), make([]byte, frame.MaxMessage+1)); got.code != 1009 {
		t.Errorf("a message over the limit: %v, want close code 1009", got)
	}
	if got := ask(t, rawDevice(t, srv), nil); got.code != 0 {
		t.Errorf("an empty message: %v, want it skipped", got)
	}
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a plain GET = %d, want 400", resp.StatusCode)
	}
	_, err = ws.Dial(t.Context(), ws.DialConfig{URL: wsURL(t, srv), Header: http.Header{"Origin": {"https://evil.example"}}})
	if e, ok := errors.AsType[*ws.HTTPError](err); !ok || e.Status != http.StatusForbidden {
		t.Errorf("from a browser: %v, want HTTP 403", err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}, "Sec-Websocket-Protocol": {"cloudrest.9"}}
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("another subprotocol = %d, want 426", resp.StatusCode)
	}
	req.Host, req.Header["Sec-Websocket-Protocol"] = "other.example", []string{tether.Subprotocol}
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("another host name = %d, want 421", resp.StatusCode)
	}
}

// The numbers of SPEC.md that live above this package.
func TestSpecNumbers(t *testing.T) {
	spec := readSpec(t)
	seconds := func(d time.Duration) string { return fmt.Sprintf("%d s", int(d.Seconds())) }
	for _, want := range []string{
		fmt.Sprintf("| window | %d | %d to %d;", mux.DeviceWindow, mux.MinWindow, mux.MaxWindow),
		fmt.Sprintf("| streams | %d | 1 to %d;", mux.DefaultStreams, mux.MaxStreams),
		fmt.Sprintf("bytes; default %d, see", mux.MinWindow),
		fmt.Sprintf("WINDOW of %d behind each REQUEST", mux.StartWindow-mux.MinWindow),
		fmt.Sprintf("%d in all", mux.StartWindow),
		fmt.Sprintf("to %d bytes, then %d", mux.GrownWindow, mux.MaxWindow),
		fmt.Sprintf("0 means %d |", int(mux.DefaultKeepalive.Seconds())),
		"| HELLO, at the relay; CHALLENGE, at the device | " + seconds(session.HandshakeTimeout),
		"| one write to the socket | " + seconds(ws.WriteTimeout),
		"the relay waits " + seconds(exchange.DefaultHeadTimeout) + " (`timeout`)",
		fmt.Sprintf("of an answer for %d minutes", int(exchange.DefaultStallTimeout.Minutes())),
		"subprotocol `" + tether.Subprotocol + "`", "| path at the relay | `" + tether.TetherPath + "` |",
		"| tracing field | `" + tether.HeaderID + "` |", "| sequence field | `" + tether.HeaderSequenceID + "` |",
		"label `" + proof.ExporterLabel + "`, a context of zero length, " + fmt.Sprint(proof.ExporterSize) + " bytes",
	} {
		if !strings.Contains(strings.Join(strings.Fields(spec), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("SPEC.md lacks %q", want)
		}
	}
}
