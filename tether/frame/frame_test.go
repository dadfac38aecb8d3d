package frame

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// roundTrip parses the one frame in msg. Its body, cut short by any number of bytes, must
// be refused and never read as something else; only what mayLack lists may be missing,
// because the format cannot tell: the end of a payload, or whole TLVs.
func roundTrip[T any](t *testing.T, msg []byte, want Type, parse func([]byte) (T, error), mayLack ...int) T {
	t.Helper()
	f, rest, err := Next(msg)
	if err != nil || len(rest) != 0 || f.Type != want {
		t.Fatalf("Next = %v, %d left, %v, want one %v", f.Type, len(rest), err, want)
	}
	v, err := parse(f.Body)
	if err != nil {
		t.Fatalf("parse %v: %v", want, err)
	}
	for lack := 1; lack <= len(f.Body); lack++ {
		_, err := parse(f.Body[:len(f.Body)-lack])
		switch may := slices.Contains(mayLack, lack); {
		case may && err != nil:
			t.Errorf("%v without its last %d bytes: %v", want, lack, err)
		case !may && !errors.Is(err, ErrMalformed):
			t.Errorf("%v without its last %d bytes: error %v, want ErrMalformed", want, lack, err)
		}
	}
	return v
}

func TestRoundTrip(t *testing.T) {
	req := Request{Flags: FlagEnd, Method: "GET", Path: "/a%2Fb?x=1", Authority: "h:443", Client: "192.0.2.1:5", Timeout: 30000,
		Header: map[string][]string{"Accept": {"a", "b"}, "X-Cloudrest-Id": {"1"}, "Te": {"trailers"}}}
	msg, err := AppendRequest(nil, 7, &req)
	if err != nil {
		t.Fatal(err)
	}
	if got := roundTrip(t, msg, TypeRequest, ParseRequest); !reflect.DeepEqual(got, req) {
		t.Errorf("request = %+v, want %+v", got, req)
	}

	resp := Response{Status: 200, Header: map[string][]string{"Content-Type": {"text/plain"}}}
	msg, err = AppendResponse(nil, 7, &resp)
	if err != nil {
		t.Fatal(err)
	}
	if got := roundTrip(t, msg, TypeResponse, ParseResponse); !reflect.DeepEqual(got, resp) {
		t.Errorf("response = %+v, want %+v", got, resp)
	}

	hello := Hello{Version: 1, Device: "d", Auth: AuthEd25519, KeyID: "k", Signature: []byte("s"), Window: 1, Streams: 16, Epoch: 5,
		NextEpoch: 4, NextSeq: 3, Info: []byte("{}"), PublicKey: []byte("p"), Dropped: 9}
	msg, err = AppendHello(nil, &hello)
	if err != nil {
		t.Fatal(err)
	}
	const dropped, key = 3 + 8, 3 + 1 // bytes of the two TLVs
	if got := roundTrip(t, msg, TypeHello, ParseHello, dropped, dropped+key); !reflect.DeepEqual(got, hello) {
		t.Errorf("hello = %+v, want %+v", got, hello)
	}

	accept := Accept{Version: 1, Session: [16]byte{1, 2}, Window: 65536, Keepalive: 25, Time: 7, AckEpoch: 8, AckSeq: 9, Spread: 10}
	if got := roundTrip(t, AppendAccept(nil, &accept), TypeAccept, ParseAccept); got != accept {
		t.Errorf("accept = %+v, want %+v", got, accept)
	}
	challenge := Challenge{Nonce: [NonceSize]byte{1, 2, 3}, Time: 9, Relay: "r.example", Binding: BindExporter}
	if got := roundTrip(t, AppendChallenge(nil, &challenge), TypeChallenge, ParseChallenge); got != challenge {
		t.Errorf("challenge = %+v, want %+v", got, challenge)
	}
	notify := Notify{Epoch: 1, Seq: 2, Time: 3, Topic: "t", Payload: []byte("line")}
	msg, err = AppendNotify(nil, &notify)
	if err != nil {
		t.Fatal(err)
	}
	if got := roundTrip(t, msg, TypeNotify, ParseNotify, 1, 2, 3, 4); !reflect.DeepEqual(got, notify) {
		t.Errorf("notify = %+v, want %+v", got, notify)
	}
	ack := NotifyAck{1, 2}
	if got := roundTrip(t, AppendNotifyAck(nil, ack), TypeNotifyAck, ParseNotifyAck); got != ack {
		t.Errorf("ack = %+v, want %+v", got, ack)
	}
	away := GoAway{Code: GoAwayReplaced, LastStream: 1, RetryAfter: 2, Spread: 3, Alternate: "a", Text: "b"}
	if got := roundTrip(t, AppendGoAway(nil, &away), TypeGoAway, ParseGoAway); got != away {
		t.Errorf("goaway = %+v, want %+v", got, away)
	}
	trailers := map[string][]string{"X-Sum": {"1"}}
	msg, err = AppendTrailers(nil, 7, trailers)
	if err != nil {
		t.Fatal(err)
	}
	if got := roundTrip(t, msg, TypeTrailers, ParseTrailers); !reflect.DeepEqual(got, trailers) {
		t.Errorf("trailers = %v, want %v", got, trailers)
	}
	if got := roundTrip(t, AppendWindow(nil, 3, 99), TypeWindow, ParseUint32); got != 99 {
		t.Errorf("window = %d, want 99", got)
	}
}

// What may be a device's URL on its LAN (SPEC.md §4.10) is the same for sender and reader.
func TestLocate(t *testing.T) {
	full := "https://h/" + strings.Repeat("a", MaxLocate-len("https://h/"))
	for lan, good := range map[string]bool{
		"": true, "https://192.168.1.20/": true, "http://garden.local": true, "https://[fe80::1]:8443/a?b#c": true, full: true,
		full + "a": false, "HTTPS://h/": false, "https:h": false, "/zones": false, "h": false, "https://": false, "https://[]/": false,
		"https://u@h/": false, "https://h:x/": false, "https://h/%zz": false, "https://h/\x00": false, "https://h/\x7f": false, "https://h/\xff": false, "data:,x": false,
	} {
		msg, err := AppendLocate([]byte("x"), lan)
		got, parseErr := ParseLocate([]byte(lan))
		if good && (got != lan || !bytes.HasSuffix(msg, []byte(lan)) || len(msg) != 1+HeaderSize+len(lan)) {
			t.Errorf("%q: written as %x, read as %q", lan, msg, got)
		}
		if good != (err == nil) || good != (parseErr == nil) || !good && (!errors.Is(err, ErrMalformed) || !errors.Is(parseErr, ErrMalformed) || string(msg) != "x") {
			t.Errorf("%q: append %v, parse %v, want good %v", lan, err, parseErr, good)
		}
	}
}

// The paper's format is TYPE, LENGTH, payload: a reader that knows only that skips any frame.
func TestPaperFraming(t *testing.T) {
	got := AppendData(nil, 0x01020304, []byte("hi"), true)
	want := []byte{7, 0, 0, 0, 6, 1, 2, 3, 4, 'h', 'i'}
	if !bytes.Equal(got, want) {
		t.Errorf("DATA_END = %x, want %x", got, want)
	}
}

func TestNextRefuses(t *testing.T) {
	for name, msg := range map[string][]byte{
		"short header":           {6, 0, 0, 0, 4},
		"length under 4":         {6, 0, 0, 0, 3, 0, 0, 0, 1},
		"crosses the message":    {6, 0, 0, 0, 9, 0, 0, 0, 1, 'x'},
		"data over 16 KB":        append([]byte{6, 0, 0, 0x40, 5, 0, 0, 0, 1}, make([]byte, MaxData+1)...),
		"length of 4 GB":         {6, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1},
		"ping of a kilobyte":     append([]byte{11, 0, 0, 4, 4, 0, 0, 0, 0}, make([]byte, 1024)...),
		"stream over 2^31-1":     {6, 0, 0, 0, 4, 0x80, 0, 0, 0},
		"unknown over a message": {99, 0, 4, 0, 0, 0, 0, 0, 0},
	} {
		if f, _, err := Next(msg); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: Next = %v, %v, want ErrMalformed", name, f.Type, err)
		}
	}
	f, rest, err := Next([]byte{99, 0, 0, 0, 5, 0, 0, 0, 0, 'x', 1})
	if err != nil || f.Type != 99 || string(f.Body) != "x" || len(rest) != 1 {
		t.Errorf("an unknown type is split off: %v %q %v", f.Type, f.Body, err)
	}
}

func TestHeadRefuses(t *testing.T) {
	many := map[string][]string{"X": make([]string, MaxFields+1)}
	for name, r := range map[string]Request{
		"method":     {Method: "G T", Path: "/"},
		"no method":  {Path: "/"},
		"path":       {Method: "GET", Path: "/a b"},
		"no slash":   {Method: "GET", Path: "a"},
		"path LF":    {Method: "GET", Path: "/a\nb"},
		"authority":  {Method: "GET", Path: "/", Authority: "a\r\nb"},
		"client":     {Method: "GET", Path: "/", Client: "a b"},
		"name":       {Method: "GET", Path: "/", Header: map[string][]string{"x-lower": {"v"}}},
		"empty name": {Method: "GET", Path: "/", Header: map[string][]string{"": {"v"}}},
		"value LF":   {Method: "GET", Path: "/", Header: map[string][]string{"X": {"a\nb"}}},
		"value NUL":  {Method: "GET", Path: "/", Header: map[string][]string{"X": {"a\x00b"}}},
		"value edge": {Method: "GET", Path: "/", Header: map[string][]string{"X": {" a"}}},
		"fields":     {Method: "GET", Path: "/", Header: many},
		"size":       {Method: "GET", Path: "/", Header: map[string][]string{"X": {strings.Repeat("v", 0xfff0), "w"}, "Y": {"z"}}},
	} {
		if b, err := AppendRequest([]byte("keep"), 1, &r); !errors.Is(err, ErrHead) || string(b) != "keep" {
			t.Errorf("%s: AppendRequest = %d bytes, %v, want ErrHead and dst unchanged", name, len(b), err)
		}
	}
	b, err := AppendResponse(nil, 1, &Response{Status: 200, Header: map[string][]string{"Connection": {"close"}, "Transfer-Encoding": {"chunked"}}})
	if err != nil {
		t.Fatal(err)
	}
	f, _, _ := Next(b)
	if r, err := ParseResponse(f.Body); err != nil || len(r.Header) != 0 {
		t.Errorf("hop-by-hop fields travelled: %v, %v", r.Header, err)
	}
	if _, err := AppendResponse(nil, 1, &Response{Status: 99}); !errors.Is(err, ErrHead) {
		t.Errorf("status 99: %v, want ErrHead", err)
	}
	if _, err := AppendResponse(nil, 1, &Response{Status: 103, Flags: FlagEnd}); !errors.Is(err, ErrHead) {
		t.Errorf("a 103 that ends: %v, want ErrHead", err)
	}
}

func TestLongTexts(t *testing.T) {
	long := strings.Repeat("x", 300)
	msg := AppendGoAway(AppendChallenge(nil, &Challenge{Relay: long}), &GoAway{Alternate: long, Text: long})
	f, rest, err := Next(msg)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := ParseChallenge(f.Body); err != nil || c.Relay != long[:255] {
		t.Errorf("relay of %d bytes, %v, want 255", len(c.Relay), err)
	}
	if f, _, err = Next(rest); err != nil {
		t.Fatal(err)
	}
	if g, err := ParseGoAway(f.Body); err != nil || g.Alternate != "" || g.Text != long[:maxText] {
		t.Errorf("alternate %q, text of %d bytes, %v, want none and %d", g.Alternate, len(g.Text), err, maxText)
	}
}

// Parsing takes memory for what is there, not for what the peer says is there.
func TestAllocation(t *testing.T) {
	fields := make([]byte, 0, 4*MaxFields)
	for range MaxFields {
		fields = append(fields, 1, 'A', 0, 0)
	}
	const most = 32 // allocations, of which an error text takes a few
	for name, body := range map[string][]byte{
		"200 fields":                   append([]byte{0, 0, 200, 0, MaxFields}, fields...),
		"200 fields, none there":       {0, 0, 200, 0, MaxFields},
		"a count over the limit":       {0, 0, 200, 0xff, 0xff},
		"a value longer than the body": {0, 0, 200, 0, 1, 1, 'A', 0xff, 0xff},
	} {
		if n := testing.AllocsPerRun(10, func() { _, _ = ParseResponse(body) }); n > most {
			t.Errorf("%s: %v allocations, want at most %d", name, n, most)
		}
	}
	huge := []byte{byte(TypeData), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1}
	if n := testing.AllocsPerRun(10, func() { _, _, _ = Next(huge) }); n > most {
		t.Errorf("a length of 4 GB: %v allocations, want at most %d", n, most)
	}
}
