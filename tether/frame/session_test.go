package frame_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/proof"
)

// The example session of SPEC.md §9.1 and testdata/session.json.

const (
	sessionBegin = "<!-- session: begin, written by go test ./tether/frame -run TestSession -update -->\n"
	sessionEnd   = "<!-- session: end -->\n"
	fromRelay    = "R>D"
	fromDevice   = "D>R"
)

// message is one carrier message of the session.
type message struct {
	from string
	note string
	msg  []byte
}

// sessionInputs are what both sides bring along.
func sessionInputs() (key ed25519.PrivateKey, exporter []byte, device tether.DeviceID) {
	seed, exporter := make([]byte, ed25519.SeedSize), make([]byte, proof.ExporterSize)
	for i := range seed {
		seed[i], exporter[i] = byte(i+1), byte(0xa0+i)
	}
	return ed25519.NewKeyFromSeed(seed), exporter, tether.NewDeviceID([]byte("example unique id"))
}

func exampleSession(t testing.TB) []message {
	t.Helper()
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, exporter, device := sessionInputs()
	const epoch, now = 0x00c0ffee00c0ffee, 1767225600000
	challenge := frame.Challenge{Time: now, Relay: "relay.example", Binding: frame.BindExporter}
	for i := range challenge.Nonce {
		challenge.Nonce[i] = byte(0x40 + i)
	}
	hello := frame.Hello{Version: frame.Version, Device: string(device), Window: 32 << 10, Streams: 1, Epoch: epoch, Info: []byte(`{"name":"Sprinkler"}`)}
	if err := proof.Sign(&hello, key, &challenge, exporter); err != nil {
		t.Fatal(err)
	}
	accept := frame.Accept{Version: frame.Version, Window: 64 << 10, Keepalive: 25, Time: now + 40, Spread: 10,
		Session: [16]byte{0x01, 0x9b, 0x76, 0xda, 0xa0, 0x28, 0x7e, 0x11, 0x92, 0x06, 0x5d, 0xc8, 0x5f, 0x0a, 0x11, 0x4e}}
	request := func(stream uint32, flags uint8, method, path, id string) []byte {
		return withFields(must(frame.AppendRequest(nil, stream, &frame.Request{Flags: flags, Method: method, Path: path, Authority: "relay.example",
			Client: "192.0.2.7:40312", Timeout: 30000})), map[string][]string{tether.HeaderID: {id}})
	}
	response := func(stream uint32, flags uint8, status uint16, id string) []byte {
		return withFields(must(frame.AppendResponse(nil, stream, &frame.Response{Flags: flags, Status: status})),
			map[string][]string{"Content-Type": {"text/plain"}, tether.HeaderID: {id}})
	}
	const id1, id2, id3 = "019b76da-a0c0-7b3c-8a5e-0d1f6a2b3c01", "019b76da-a150-7d11-b3f0-5b0e4c6d7e02",
		"019b76da-c600-7f90-9c41-77a1c3e5f703"
	return []message{
		{fromRelay, "with the 101", frame.AppendChallenge(nil, &challenge)},
		{fromDevice, "the proof", must(frame.AppendHello(nil, &hello))},
		{fromRelay, "the session is OPEN", frame.AppendAccept(nil, &accept)},
		{fromRelay, "a GET", request(1, frame.FlagEnd, "GET", "/hello", id1)},
		{fromDevice, "its answer: two frames in one message", frame.AppendData(response(1, 0, 200, id1), 1, []byte("hello"), true)},
		{fromRelay, "a POST, its body begins", frame.AppendData(request(2, 0, "POST", "/echo", id2), 2, []byte("abc"), false)},
		{fromRelay, "and ends", frame.AppendData(nil, 2, []byte("def"), true)},
		{fromDevice, "the device gives credit back and answers", frame.AppendData(append(frame.AppendWindow(nil, 2, 6), response(2, 0, 200, id2)...), 2, []byte("abcdef"), true)},
		{fromDevice, "a notification", must(frame.AppendNotify(nil, &frame.Notify{Epoch: epoch, Seq: 1, Time: now + 900, Topic: "zone", Payload: []byte("zone 1 dry")}))},
		{fromRelay, "is safe", frame.AppendNotifyAck(nil, frame.NotifyAck{Epoch: epoch, Seq: 1})},
		{fromDevice, "nothing was sent for 25 s", frame.AppendPing(nil, 1)},
		{fromRelay, "the relay is there", frame.AppendPong(nil, 1)},
		{fromRelay, "a GET that the client gives up", request(3, frame.FlagEnd, "GET", "/slow", id3)},
		{fromRelay, "", frame.AppendReset(nil, 3, frame.ResetCancel)},
		{fromRelay, "the relay restarts", frame.AppendGoAway(nil, &frame.GoAway{Code: frame.GoAwayDrain, LastStream: 3, Spread: 20000, Text: "restart"})},
	}
}

// dump renders a frame with its meaning, by the tables of SPEC.md.
func dump(b *strings.Builder, f frame.Frame, o object) {
	const column = 24 // bytes in a line
	row := func(raw []byte, meaning string) {
		for first := true; first || len(raw) > 0; first = false {
			n := min(len(raw), column)
			line := fmt.Sprintf("  %-*s  %s", 2*column, hex.EncodeToString(raw[:n]), meaning)
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			raw, meaning = raw[n:], ""
		}
	}
	length := len(f.Body) + 4
	fmt.Fprintf(b, "  %02x %08x %08x%*s  %v, length %d, stream %d\n", uint8(f.Type), length, f.Stream, 2*column-20, "", f.Type, length, f.Stream)
	for _, it := range o {
		if len(it.raw) == 0 {
			continue
		}
		meaning := it.name
		switch v := it.value.(type) {
		case uint64:
			meaning += " " + strconv.FormatUint(v, 10)
		case string:
			switch raw, err := hex.DecodeString(v); {
			case it.name == "nonce" || it.name == "signature" || it.name == "session":
			case strings.HasSuffix(it.name, "epoch"):
				meaning += " " + v
			case it.kind == "u64":
				meaning += " " + strconv.FormatUint(binary.BigEndian.Uint64(raw), 10)
			case it.kind == "rest" && err == nil:
				meaning += " " + strconv.Quote(string(raw))
			default:
				meaning += " " + strconv.Quote(v)
			}
		case [][2]string:
			for _, f := range v {
				meaning += fmt.Sprintf(", %s: %s", f[0], f[1])
			}
		case [][2]any:
			meaning = "TLV 1: public key"
		}
		row(it.raw, meaning)
	}
}

func TestSession(t *testing.T) {
	tables := layouts(t)
	key, exporter, device := sessionInputs()
	var text strings.Builder
	var js bytes.Buffer
	spki := hex.EncodeToString(proofKey(t, key))
	fmt.Fprintf(&text, "Ed25519 seed: `%x`. Device ID: SHA-256 of the text `example unique id`.\nTLS exporter: `%x`.\n\n```\n", key.Seed(), exporter)
	fmt.Fprintf(&js, "{\n  \"protocol\": \"cloudrest.1\",\n  \"seed\": \"%x\",\n  \"public_key\": \"%s\",\n  \"exporter\": \"%x\",\n  \"device\": \"%s\",\n  \"messages\": [\n",
		key.Seed(), spki, exporter, device)
	session := exampleSession(t)
	for i, m := range session {
		if i > 0 {
			text.WriteString("\n")
		}
		text.WriteString(strings.TrimSuffix(m.from+" "+m.note, " ") + "\n")
		var frames []object
		for left := m.msg; len(left) > 0; {
			f, rest, err := frame.Next(left)
			if err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			left = rest
			o, ok := decode(tables[f.Type.String()], f.Body)
			got, err := parsed(f)
			if !ok || err != nil || got.String() != o.String() {
				t.Fatalf("message %d, %v: %v, %v, %v", i, f.Type, got, o, err)
			}
			dump(&text, f, o)
			frames = append(frames, object{{name: "type", value: uint8(f.Type)}, {name: "stream", value: f.Stream}, {name: "fields", value: o}})
		}
		list, err := json.Marshal(frames)
		if err != nil {
			t.Fatal(err)
		}
		comma := ","
		if i == len(session)-1 {
			comma = ""
		}
		fmt.Fprintf(&js, "    {\"from\": %q, \"hex\": \"%x\", \"frames\": %s}%s\n", m.from, m.msg, list, comma)
	}
	text.WriteString("```\n")
	js.WriteString("  ]\n}\n")
	golden(t, "session.json", js.Bytes())

	spec := readSpec(t)
	before, rest, ok := strings.Cut(spec, sessionBegin)
	old, after, ok2 := strings.Cut(rest, sessionEnd)
	if !ok || !ok2 {
		t.Fatal("SPEC.md has lost the marks around the example session")
	}
	switch {
	case *update:
		if err := os.WriteFile(specFile, []byte(before+sessionBegin+text.String()+sessionEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case old != text.String():
		t.Error("the example session in SPEC.md differs from what the code gives; run with -update")
	}
}

// The example is true: the relay would let this device in.
func TestSessionProof(t *testing.T) {
	_, exporter, device := sessionInputs()
	session := exampleSession(t)
	first, _, err := frame.Next(session[0].msg)
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := frame.Next(session[1].msg)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := frame.ParseChallenge(first.Body)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := frame.ParseHello(second.Body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proof.Verify(&hello, &challenge, exporter); err != nil {
		t.Error(err)
	}
	if id, err := tether.ParseDeviceID(hello.Device); err != nil || id != device {
		t.Errorf("device = %q, %v, want %q", id, err, device)
	}
}

// proofKey is the SubjectPublicKeyInfo by SPEC.md §4.4, without x509.
func proofKey(t testing.TB, key ed25519.PrivateKey) []byte {
	t.Helper()
	prefix, err := hex.DecodeString("302a300506032b6570032100")
	if err != nil {
		t.Fatal(err)
	}
	return append(prefix, key.Public().(ed25519.PublicKey)...)
}
