package frame_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/frame"
)

var update = flag.Bool("update", false, "write SPEC.md's example and ../testdata anew")

// vector is one carrier message with one frame.
type vector struct {
	name  string
	class string // SPEC.md §10
	msg   []byte
}

func validVectors(t testing.TB) []vector {
	t.Helper()
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	request := func(stream uint32, r frame.Request) []byte {
		h := r.Header
		r.Header = nil
		return withFields(must(frame.AppendRequest(nil, stream, &r)), h)
	}
	response := func(stream uint32, r frame.Response) []byte {
		h := r.Header
		r.Header = nil
		return withFields(must(frame.AppendResponse(nil, stream, &r)), h)
	}
	nonce := [frame.NonceSize]byte{}
	for i := range nonce {
		nonce[i] = byte(i)
	}
	hello := frame.Hello{Version: 1, Device: strings.Repeat("0123456789abcdef", 4), Auth: frame.AuthEd25519, KeyID: "21fe31dfa154a261626bf854046fd227",
		Signature: bytes.Repeat([]byte{0x5a}, 64), Window: 32 << 10, Streams: 16, Epoch: 0xfedcba9876543210, NextEpoch: 0x00c0ffee00c0ffee, NextSeq: 41,
		Info: []byte(`{"name":"Grüner Daumen","version":"1.10"}`), PublicKey: append([]byte{0x30, 0x2a}, bytes.Repeat([]byte{7}, 42)...), Dropped: 3}
	bare := frame.Hello{Version: 1, Device: hello.Device, Streams: 1, Window: 16 << 10, Epoch: 1}
	certified := hello
	certified.Chain, certified.Generation, certified.Dropped = [][]byte{bytes.Repeat([]byte{0x30}, 300), {0x30, 0x80}}, 2, 0
	accept := frame.Accept{Version: 1, Session: [16]byte{0x01, 0x92, 0xf0, 0x5e, 0x3b, 0x1a, 0x7c, 0x4d, 0x8e, 0x21, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff},
		Window: 64 << 10, Keepalive: 25, Time: 1767225600000, AckEpoch: 0x00c0ffee00c0ffee, AckSeq: 40, Spread: 10}
	challenge := frame.Challenge{Nonce: nonce, Time: 1767225600000, Relay: "relay.example", Binding: frame.BindExporter}
	get := frame.Request{Flags: frame.FlagEnd, Method: "GET", Path: "/zones/1?full=a%2Fb", Authority: "relay.example:443", Client: "192.0.2.7:40312", Timeout: 30000}
	return []vector{
		{"HELLO with Ed25519, its key and a count of what was dropped", "ok", must(frame.AppendHello(nil, &hello))},
		{"HELLO with two certificates and an owner generation", "ok", must(frame.AppendHello(nil, &certified))},
		{"HELLO with a client certificate, serial, no descriptor", "ok", must(frame.AppendHello(nil, &bare))},
		{"HELLO with an unknown TLV", "read", withTLV(must(frame.AppendHello(nil, &bare)), 200, []byte("new"))},
		{"ACCEPT", "ok", frame.AppendAccept(nil, &accept)},
		{"ACCEPT without acknowledgement", "ok", frame.AppendAccept(nil, &frame.Accept{Version: 1, Window: 65536, Keepalive: 240, Spread: 3600})},
		{"ACCEPT with an unknown TLV", "read", withTLV(frame.AppendAccept(nil, &accept), 1, nil)},
		{"CHALLENGE", "ok", frame.AppendChallenge(nil, &challenge)},
		{"CHALLENGE without binding", "ok", frame.AppendChallenge(nil, &frame.Challenge{Nonce: nonce, Relay: "2001:db8::1"})},
		{"CHALLENGE with an unknown TLV", "read", withTLV(frame.AppendChallenge(nil, &challenge), 255, bytes.Repeat([]byte{0xff}, 300))},
		{"REQUEST GET without fields", "ok", request(1, get)},
		{"REQUEST POST with fields", "ok", request(2, frame.Request{Method: "POST", Path: "/echo", Authority: "h", Client: "[2001:db8::1]:1", Header: map[string][]string{
			"Accept": {"text/html", "*/*;q=0.1"}, "Content-Length": {"5"}, "Content-Type": {"text/plain; charset=utf-8"}, "X-Cloudrest-Id": {"0192f05e-3b1a-7c4d-8e21-aabbccddeeff"}}})},
		{"REQUEST UPGRADE", "ok", request(3, frame.Request{Flags: frame.FlagUpgrade, Method: "GET", Path: "/ws", Authority: "h", Client: "192.0.2.7:1", Timeout: 1,
			Header: map[string][]string{"Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}}})},
		{"REQUEST between relay nodes, highest stream", "ok", request(frame.MaxStream, frame.Request{Flags: frame.FlagEnd, Target: hello.Device, Method: "OPTIONS", Path: "*"})},
		{"REQUEST with bytes from 128 on", "ok", request(4, frame.Request{Flags: frame.FlagEnd, Method: "GET", Path: "/ü", Header: map[string][]string{"X": {"", "a\tü"}}})},
		{"REQUEST with an unknown flag", "read", withFlags(request(5, get), 0x81)},
		{"RESPONSE 200 with fields", "ok", response(1, frame.Response{Status: 200, Header: map[string][]string{"Content-Type": {"application/json"}, "Set-Cookie": {"a=1", "b=2"}}})},
		{"RESPONSE 204 END", "ok", response(1, frame.Response{Flags: frame.FlagEnd, Status: 204})},
		{"RESPONSE 103", "ok", response(1, frame.Response{Status: 103, Header: map[string][]string{"Link": {"</a.css>; rel=preload"}}})},
		{"RESPONSE 101", "ok", response(3, frame.Response{Status: 101, Header: map[string][]string{"Upgrade": {"websocket"}}})},
		{"RESPONSE 999", "ok", response(1, frame.Response{Status: 999})},
		{"NOTIFY", "ok", must(frame.AppendNotify(nil, &frame.Notify{Epoch: 0x00c0ffee00c0ffee, Seq: 41, Time: 1767225600123, Topic: "zone", Payload: []byte("zone 1 dry\n")}))},
		{"NOTIFY, best effort, empty", "ok", must(frame.AppendNotify(nil, &frame.Notify{Epoch: 1}))},
		{"DATA", "ok", frame.AppendData(nil, 1, []byte("hello"), false)},
		{"DATA with no bytes", "ok", []byte{6, 0, 0, 0, 4, 0, 0, 0, 1}},
		{"DATA_END", "ok", frame.AppendData(nil, 0x01020304, []byte{0, 0xff}, true)},
		{"DATA_END with no bytes", "ok", frame.AppendData(nil, 1, nil, true)},
		{"TRAILERS", "ok", withFields(must(frame.AppendTrailers(nil, 1, nil)), map[string][]string{"Digest": {"x"}, "X-Rows": {"17"}})},
		{"TRAILERS without fields", "ok", must(frame.AppendTrailers(nil, 1, nil))},
		{"RESET", "ok", frame.AppendReset(nil, 9, frame.ResetRefused)},
		{"RESET with an unknown code", "ok", frame.AppendReset(nil, 9, 0xffffffff)},
		{"WINDOW", "ok", frame.AppendWindow(nil, 1, 16<<10)},
		{"PING", "ok", frame.AppendPing(nil, 0xdeadbeef)},
		{"PONG", "ok", frame.AppendPong(nil, 0xdeadbeef)},
		{"NOTIFY_ACK", "ok", frame.AppendNotifyAck(nil, frame.NotifyAck{Epoch: 0x00c0ffee00c0ffee, Seq: 41})},
		{"GOAWAY drain", "ok", frame.AppendGoAway(nil, &frame.GoAway{LastStream: 12, Spread: 20000, Alternate: "relay2.example", Text: "restarting"})},
		{"GOAWAY with an unknown code", "ok", frame.AppendGoAway(nil, &frame.GoAway{Code: 0xffff, RetryAfter: 300000})},
		{"DESCRIBE", "ok", frame.AppendDescribe(nil, []byte(`{"name":"a"}`))},
		{"LOCATE", "ok", must(frame.AppendLocate(nil, "https://192.168.1.20/"))},
		{"LOCATE with IPv6, a port and bytes from 128 on", "ok", must(frame.AppendLocate(nil, "http://[fd00::7]:8443/grün"))},
		{"LOCATE, no address now", "ok", must(frame.AppendLocate(nil, ""))},
		{"INVALIDATE", "ok", must(frame.AppendInvalidate(nil, &frame.Invalidate{Epoch: 0x00c0ffee00c0ffee, Seq: 7, URIs: []string{"/zones/1?full=a%2Fb", "/zones"}}))},
		{"INVALIDATE everything", "ok", must(frame.AppendInvalidate(nil, &frame.Invalidate{Epoch: 1, Seq: 1 << 40, Flags: frame.FlagAll}))},
		{"INVALIDATE, where the count is", "ok", must(frame.AppendInvalidate(nil, &frame.Invalidate{Epoch: 1}))},
		{"INVALIDATE with an unknown flag", "read", withFlag(must(frame.AppendInvalidate(nil, &frame.Invalidate{Epoch: 1, Seq: 2, Flags: frame.FlagAll})), 16, 0x81)},
		{"INVALIDATED", "ok", frame.AppendInvalidated(nil, frame.Invalidated{Epoch: 0x00c0ffee00c0ffee, Seq: 7})},
		{"type 19 + 1, not known to version 1", "skip", []byte{20, 0, 0, 0, 6, 0, 0, 0, 0, 'h', 'i'}},
		{"type 127 on a stream", "skip", []byte{127, 0, 0, 0, 4, 0, 0, 0, 1}},
	}
}

func invalidVectors() []vector {
	raw := func(typ frame.Type, stream uint32, body ...any) []byte {
		var b []byte
		for _, part := range body {
			switch v := part.(type) {
			case int:
				b = append(b, byte(v))
			case string:
				b = append(b, v...)
			case []byte:
				b = append(b, v...)
			}
		}
		msg := binary.BigEndian.AppendUint32([]byte{byte(typ)}, uint32(len(b)+4))
		return append(binary.BigEndian.AppendUint32(msg, stream), b...)
	}
	// request is a REQUEST "GET /" with the raw fields given, each with its lengths.
	request := func(n int, fields string) []byte {
		return raw(frame.TypeRequest, 1, 1, 0, 3, "GET", 0, 1, "/", 0, 0, 0, 0, 0, 0, 0, 0, n>>8, n, fields)
	}
	one := func(name, value string) string {
		return string([]byte{byte(len(name))}) + name + string([]byte{byte(len(value) >> 8), byte(len(value))}) + value
	}
	head := func(name, method, path, authority, client string) vector {
		s := func(v string) string { return string([]byte{0, byte(len(v))}) + v }
		return vector{name, "head", raw(frame.TypeRequest, 1, 1, 0, len(method), method, s(path), s(authority), s(client), 0, 0, 0, 0, 0, 0)}
	}
	nonce := make([]byte, frame.NonceSize)
	hello := []byte{1, 1, 'd', 0, 0, 0, 0}
	hello = append(hello, make([]byte, 4+2+8+8+8)...)
	return []vector{
		{"a header cut short", "malformed", []byte{6, 0, 0, 0, 4, 0, 0, 0}},
		{"LENGTH 3", "malformed", []byte{6, 0, 0, 0, 3, 0, 0, 0, 1}},
		{"LENGTH 0", "malformed", []byte{11, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"a frame longer than its message", "malformed", []byte{6, 0, 0, 0, 9, 0, 0, 0, 1, 'x'}},
		{"LENGTH of 4 GB", "malformed", []byte{99, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1}},
		{"DATA of 16385 bytes, by its header", "malformed", []byte{6, 0, 0, 0x40, 5, 0, 0, 0, 1}},
		{"REQUEST of 65537 bytes, by its header", "malformed", []byte{3, 0, 1, 0, 5, 0, 0, 0, 1}},
		{"PING of 513 bytes, by its header", "malformed", []byte{11, 0, 0, 2, 5, 0, 0, 0, 0}},
		{"stream 2147483648", "malformed", []byte{6, 0, 0, 0, 4, 0x80, 0, 0, 0}},
		{"rubbish after a good frame", "malformed", append(frame.AppendPing(nil, 1), 0)},
		{"PING of 3 bytes", "malformed", raw(frame.TypePing, 0, 0, 0, 0)},
		{"PONG of 5 bytes", "malformed", raw(frame.TypePong, 0, 0, 0, 0, 0, 0)},
		{"RESET without code", "malformed", raw(frame.TypeReset, 1)},
		{"WINDOW of 8 bytes", "malformed", raw(frame.TypeWindow, 1, make([]byte, 8))},
		{"CHALLENGE with a nonce of 31 bytes", "malformed", raw(frame.TypeChallenge, 0, nonce[1:])},
		{"CHALLENGE without binding", "malformed", raw(frame.TypeChallenge, 0, nonce, make([]byte, 8), 1, "r")},
		{"CHALLENGE with a cut TLV", "malformed", raw(frame.TypeChallenge, 0, nonce, make([]byte, 8), 1, "r", 0, 9, 0, 2, 0)},
		{"HELLO without info", "malformed", raw(frame.TypeHello, 0, hello)},
		{"HELLO with info longer than the body", "malformed", raw(frame.TypeHello, 0, hello, 0, 3, "{}")},
		{"HELLO with a dropped count of 4 bytes", "malformed", raw(frame.TypeHello, 0, hello, 0, 0, 2, 0, 4, 0, 0, 0, 0)},
		{"HELLO with an empty chain", "malformed", raw(frame.TypeHello, 0, hello, 0, 0, 3, 0, 0)},
		{"HELLO with an empty certificate", "malformed", raw(frame.TypeHello, 0, hello, 0, 0, 3, 0, 5, 0, 1, 0x30, 0, 0)},
		{"HELLO with a certificate longer than its TLV", "malformed", raw(frame.TypeHello, 0, hello, 0, 0, 3, 0, 4, 0, 3, 0x30, 0x80)},
		{"HELLO with a byte behind its certificates", "malformed", raw(frame.TypeHello, 0, hello, 0, 0, 3, 0, 4, 0, 1, 0x30, 0)},
		{"HELLO with an owner generation of 8 bytes", "malformed", raw(frame.TypeHello, 0, hello, 0, 0, 4, 0, 8, make([]byte, 8))},
		{"HELLO with a signature of 513 bytes", "malformed", raw(frame.TypeHello, 0, 1, 1, "d", 1, 0, 2, 1, make([]byte, 513), make([]byte, 30), 0, 0)},
		{"ACCEPT cut short", "malformed", raw(frame.TypeAccept, 0, 1, make([]byte, 47))},
		{"NOTIFY with a topic longer than the body", "malformed", raw(frame.TypeNotify, 0, make([]byte, 24), 5, "zone")},
		{"NOTIFY_ACK of 15 bytes", "malformed", raw(frame.TypeNotifyAck, 0, make([]byte, 15))},
		{"NOTIFY_ACK of 17 bytes", "malformed", raw(frame.TypeNotifyAck, 0, make([]byte, 17))},
		{"GOAWAY with bytes after its text", "malformed", raw(frame.TypeGoAway, 0, make([]byte, 14), 0, 0, 1)},
		{"LOCATE of 513 bytes, by its header", "malformed", []byte{17, 0, 0, 2, 5, 0, 0, 0, 0}},
		{"LOCATE with another scheme", "malformed", raw(frame.TypeLocate, 0, "ftp://192.168.1.20/")},
		{"LOCATE with a script", "malformed", raw(frame.TypeLocate, 0, "javascript:alert(1)")},
		{"LOCATE without scheme", "malformed", raw(frame.TypeLocate, 0, "//192.168.1.20/")},
		{"LOCATE without host", "malformed", raw(frame.TypeLocate, 0, "https:///zones")},
		{"LOCATE with a port alone", "malformed", raw(frame.TypeLocate, 0, "https://:8443/")},
		{"LOCATE with user info", "malformed", raw(frame.TypeLocate, 0, "https://a:b@192.168.1.20/")},
		{"LOCATE with a line feed", "malformed", raw(frame.TypeLocate, 0, "https://192.168.1.20/\n")},
		{"LOCATE with a space", "malformed", raw(frame.TypeLocate, 0, "https://192.168.1.20/ ")},
		{"LOCATE with U+0085", "malformed", raw(frame.TypeLocate, 0, "https://192.168.1.20/\u0085")},
		{"LOCATE that is not UTF-8", "malformed", raw(frame.TypeLocate, 0, "https://192.168.1.20/", 0xc3)},
		{"INVALIDATE of 4097 bytes, by its header", "malformed", []byte{18, 0, 0, 0x10, 5, 0, 0, 0, 0}},
		{"INVALIDATE without targets", "malformed", raw(frame.TypeInvalidate, 0, make([]byte, 17))},
		{"INVALIDATE with fewer targets than it says", "malformed", raw(frame.TypeInvalidate, 0, make([]byte, 17), 0, 2, 0, 1, "/")},
		{"INVALIDATE with more bytes than its targets", "malformed", raw(frame.TypeInvalidate, 0, make([]byte, 17), 0, 1, 0, 1, "/", 0)},
		{"INVALIDATE of an empty target", "malformed", raw(frame.TypeInvalidate, 0, make([]byte, 17), 0, 1, 0, 0)},
		{"INVALIDATE of what is no path", "malformed", raw(frame.TypeInvalidate, 0, make([]byte, 17), 0, 1, 0, 1, "*")},
		{"INVALIDATE of a target with a space", "malformed", raw(frame.TypeInvalidate, 0, make([]byte, 17), 0, 1, 0, 3, "/ a")},
		{"INVALIDATED of 15 bytes", "malformed", raw(frame.TypeInvalidated, 0, make([]byte, 15))},
		{"REQUEST without its fields", "malformed", raw(frame.TypeRequest, 1, 1, 0, 3, "GET", 0, 1, "/", 0, 0, 0, 0, 0, 0, 0, 0)},
		{"REQUEST with fewer fields than it says", "malformed", request(2, one("A", "b"))},
		{"REQUEST with more bytes than its fields", "malformed", request(1, one("A", "b")+"c")},
		{"RESPONSE of 2 bytes", "malformed", raw(frame.TypeResponse, 1, 0, 200)},
		{"TRAILERS of 1 byte", "malformed", raw(frame.TypeTrailers, 1, 0)},
		head("method with a space", "G T", "/", "", ""),
		head("method empty", "", "/", "", ""),
		head("path empty", "GET", "", "", ""),
		head("path without a slash", "GET", "a", "", ""),
		head("path in absolute form", "GET", "http://h/", "", ""),
		head("path with a space", "GET", "/a b", "", ""),
		head("path with a line feed", "GET", "/a\n", "", ""),
		head("authority with CR LF", "GET", "/", "h\r\nX: y", ""),
		head("client with a space", "GET", "/", "", "a b"),
		{"field name empty", "head", request(1, one("", "v"))},
		{"field name in lower case", "head", request(1, one("accept", "v"))},
		{"field name in capitals", "head", request(1, one("ETag", "v"))},
		{"field name with a colon", "head", request(1, one("A:b", "v"))},
		{"field value with CR LF", "head", request(1, one("A", "b\r\nC: d"))},
		{"field value with NUL", "head", request(1, one("A", "b\x00"))},
		{"field value with DEL", "head", request(1, one("A", "\x7f"))},
		{"field value with a space at its end", "head", request(1, one("A", "b "))},
		{"field value with a tab at its start", "head", request(1, one("A", "\tb"))},
		{"Connection", "head", request(1, one("Connection", "close"))},
		{"Keep-Alive", "head", request(1, one("Keep-Alive", "5"))},
		{"Proxy-Connection", "head", request(1, one("Proxy-Connection", "close"))},
		{"Proxy-Authenticate", "head", request(1, one("Proxy-Authenticate", "Basic"))},
		{"Proxy-Authorization", "head", request(1, one("Proxy-Authorization", "Basic eDp5"))},
		{"Transfer-Encoding", "head", request(1, one("Transfer-Encoding", "chunked"))},
		{"Host", "head", request(1, one("Host", "h"))},
		{"201 fields", "head", request(201, strings.Repeat(one("A", ""), 201))},
		{"status 99", "head", raw(frame.TypeResponse, 1, 0, 0, 99, 0, 0)},
		{"status 1000", "head", raw(frame.TypeResponse, 1, 0, 3, 232, 0, 0)},
		{"status 100 with END", "head", raw(frame.TypeResponse, 1, 1, 0, 100, 0, 0)},
		{"trailer field with LF", "head", raw(frame.TypeTrailers, 1, 0, 1, one("A", "\n"))},
		{"type 128", "critical", raw(frame.Critical, 0)},
		{"type 255 on a stream", "critical", raw(255, 1, "x")},
	}
}

// withFields adds fields to a head that has none, sorted by name, so that a vector is
// always the same bytes.
func withFields(msg []byte, h map[string][]string) []byte {
	msg = msg[:len(msg)-2]
	list := sortedFields(h)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(list)))
	for _, f := range list {
		msg = append(append(msg, byte(len(f[0]))), f[0]...)
		msg = append(binary.BigEndian.AppendUint16(msg, uint16(len(f[1]))), f[1]...)
	}
	return withLength(msg)
}

func sortedFields(h map[string][]string) [][2]string {
	list := [][2]string{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[name] {
			list = append(list, [2]string{name, v})
		}
	}
	return list
}

func withTLV(msg []byte, typ byte, v []byte) []byte {
	return withLength(append(binary.BigEndian.AppendUint16(append(msg, typ), uint16(len(v))), v...))
}

func withFlags(msg []byte, flags byte) []byte { return withFlag(msg, 0, flags) }

func withFlag(msg []byte, at int, flags byte) []byte {
	msg[frame.HeaderSize+at] = flags
	return msg
}

func withLength(msg []byte) []byte {
	binary.BigEndian.PutUint32(msg[1:], uint32(len(msg)-5))
	return msg
}

// written renders the two files of frame vectors.
func written(t *testing.T) (js, text []byte) {
	t.Helper()
	tables := layouts(t)
	var j, x bytes.Buffer
	x.WriteString("# class, name (with _ for spaces), message in hex; see SPEC.md section 10\n")
	line := func(v vector, last bool, extra ...item) {
		o := append(object{{name: "name", value: v.name}, {name: "class", value: v.class}}, extra...)
		comma := ","
		if last {
			comma = ""
		}
		fmt.Fprintf(&j, "    %v%s\n", append(o, item{name: "hex", value: hex.EncodeToString(v.msg)}), comma)
		fmt.Fprintf(&x, "%s %s %x\n", v.class, strings.ReplaceAll(v.name, " ", "_"), v.msg)
	}
	j.WriteString("{\n  \"protocol\": \"cloudrest.1\",\n  \"valid\": [\n")
	valid := validVectors(t)
	for i, v := range valid {
		f, rest, err := frame.Next(v.msg)
		if err != nil || len(rest) != 0 {
			t.Fatalf("%s: %d left, %v", v.name, len(rest), err)
		}
		extra := []item{{name: "type", value: uint8(f.Type)}, {name: "stream", value: f.Stream}}
		if v.class != "skip" {
			o, ok := decode(tables[f.Type.String()], f.Body)
			if !ok {
				t.Errorf("%s: the table of SPEC.md does not fit the body %x", v.name, f.Body)
			}
			extra = append(extra, item{name: "fields", value: o})
		}
		line(v, i == len(valid)-1, extra...)
	}
	j.WriteString("  ],\n  \"invalid\": [\n")
	invalid := invalidVectors()
	for i, v := range invalid {
		line(v, i == len(invalid)-1)
	}
	j.WriteString("  ]\n}\n")
	return j.Bytes(), x.Bytes()
}

// golden compares a file in testdata with what the code gives now, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("..", "testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what the code gives; if the change of the wire format is meant, run with -update and change SPEC.md", file)
	}
}

func TestVectorFiles(t *testing.T) {
	js, text := written(t)
	if !json.Valid(js) {
		t.Fatal("frames.json is not JSON")
	}
	golden(t, "frames.json", js)
	golden(t, "frames.txt", text)
}

// The package reads from each valid vector what SPEC.md's tables read.
func TestValidVectors(t *testing.T) {
	tables := layouts(t)
	for _, v := range validVectors(t) {
		t.Run(v.name, func(t *testing.T) {
			f, rest, err := frame.Next(v.msg)
			if err != nil || len(rest) != 0 {
				t.Fatalf("Next: %d left, %v", len(rest), err)
			}
			if v.class == "skip" {
				if f.Type >= frame.Critical || !strings.HasPrefix(f.Type.String(), "TYPE(") {
					t.Errorf("%v is not an unknown type below %d", f.Type, frame.Critical)
				}
				return
			}
			got, err := parsed(f)
			if err != nil {
				t.Fatal(err)
			}
			want, ok := decode(tables[f.Type.String()], f.Body)
			if !ok {
				t.Fatal("the table of SPEC.md does not fit the body")
			}
			if v.class == "read" { // the package drops what it does not know
				for i := range want {
					if want[i].name == "extensions" {
						want[i].value = [][2]any{}
					}
				}
			}
			if got.String() != want.String() {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

func TestInvalidVectors(t *testing.T) {
	for _, v := range invalidVectors() {
		t.Run(v.name, func(t *testing.T) {
			switch class, err := classify(v.msg); {
			case class != v.class:
				t.Errorf("class %s (%v), want %s", class, err, v.class)
			}
		})
	}
}

// The reader in C, which was written from SPEC.md, agrees on every vector.
func TestVectorsInC(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler is installed")
	}
	program := filepath.Join(t.TempDir(), "frames")
	build := func(flags ...string) ([]byte, error) {
		return exec.CommandContext(t.Context(), cc, append(flags, "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", program, "../testdata/frames.c")...).CombinedOutput()
	}
	if out, err := build("-fsanitize=address,undefined"); err != nil {
		t.Logf("without sanitizers: %s", out)
		if out, err := build(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	vectors, err := os.Open("../testdata/frames.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer vectors.Close()
	run := exec.CommandContext(t.Context(), program)
	run.Stdin = vectors
	want := fmt.Sprintf("%d messages, 0 wrong\n", len(validVectors(t))+len(invalidVectors()))
	if out, err := run.CombinedOutput(); err != nil || string(out) != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
}

// classify reads a message to its end in the way of SPEC.md §3.4.
func classify(msg []byte) (string, error) {
	for len(msg) > 0 {
		f, rest, err := frame.Next(msg)
		if err != nil {
			return classOf(err), err
		}
		if f.Type >= frame.Critical {
			return "critical", nil
		}
		if _, err := parsed(f); err != nil {
			return classOf(err), err
		}
		msg = rest
	}
	return "ok", nil
}

func classOf(err error) string {
	malformed, head := errors.Is(err, frame.ErrMalformed), errors.Is(err, frame.ErrHead)
	switch {
	case malformed && !head:
		return "malformed"
	case head && !malformed:
		return "head"
	}
	return "unclassed"
}
