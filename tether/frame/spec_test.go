package frame_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// These tests read SPEC.md: its tables of fields become a decoder, independent of the
// package, that must agree with it on every vector; its tables of numbers must be the
// constants.

const specFile = "../SPEC.md"

// part is one row of a table of fields.
type part struct{ name, kind string }

// item is one field of a frame, by its name in SPEC.md.
type item struct {
	name  string
	value any
	kind  string // of SPEC.md §3.1
	raw   []byte // the bytes it was read from
}

// object is written as a JSON object in the order of its items.
type object []item

func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, it := range o {
		if i > 0 {
			b = append(b, ", "...)
		}
		v, err := json.Marshal(it.value)
		if err != nil {
			return nil, err
		}
		b = append(append(strconv.AppendQuote(b, it.name), ": "...), v...)
	}
	return append(b, '}'), nil
}

func (o object) String() string {
	b, err := o.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func readSpec(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// rows returns the cells of the table that follows the first line that begins with
// after, without its two head lines.
func rows(t testing.TB, spec, after string) (table [][]string) {
	t.Helper()
	_, text, ok := strings.Cut(spec, "\n"+after)
	if !ok {
		t.Fatalf("SPEC.md has no line %q", after)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if table != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		table = append(table, cells)
	}
	if len(table) < 3 {
		t.Fatalf("SPEC.md has no table after %q", after)
	}
	return table[2:]
}

var bodyOf = regexp.MustCompile("(?m)^Body of `([A-Z_]+)`(?: and `([A-Z_]+)`)?:")

// layouts reads the table of fields of each frame type.
func layouts(t testing.TB) map[string][]part {
	t.Helper()
	spec := readSpec(t)
	all := map[string][]part{}
	for _, m := range bodyOf.FindAllStringSubmatch(spec, -1) {
		var parts []part
		for _, row := range rows(t, spec, m[0]) {
			parts = append(parts, part{row[0], row[1]})
		}
		for _, name := range m[1:] {
			if name != "" {
				all[name] = parts
			}
		}
	}
	return all
}

// decode reads a body by a table of fields; ok is false when the body is too short or
// too long for it.
func decode(layout []part, body []byte) (o object, ok bool) {
	ok = true
	take := func(n int) []byte {
		if n > len(body) {
			ok, n = false, len(body)
		}
		v := body[:n]
		body = body[n:]
		return v
	}
	num := func(size int) (v uint64) {
		for _, c := range take(size) {
			v = v<<8 | uint64(c)
		}
		return v
	}
	for _, p := range layout {
		before := body
		var v any
		switch p.kind {
		case "u8":
			v = num(1)
		case "u16":
			v = num(2)
		case "u32":
			v = num(4)
		case "u64":
			v = fmt.Sprintf("%016x", num(8))
		case "16 bytes":
			v = hex.EncodeToString(take(16))
		case "32 bytes":
			v = hex.EncodeToString(take(32))
		case "str8":
			v = string(take(int(num(1))))
		case "str16":
			v = string(take(int(num(2))))
		case "bin16":
			v = hex.EncodeToString(take(int(num(2))))
		case "rest":
			v = hex.EncodeToString(take(len(body)))
		case "fields":
			list := [][2]string{}
			for n := num(2); n > 0 && ok; n-- {
				list = append(list, [2]string{string(take(int(num(1)))), string(take(int(num(2))))})
			}
			v = list
		case "targets":
			list := []string{}
			for n := num(2); n > 0 && ok; n-- {
				list = append(list, string(take(int(num(2)))))
			}
			v = list
		case "TLVs":
			list := [][2]any{}
			for len(body) > 0 && ok {
				list = append(list, [2]any{num(1), hex.EncodeToString(take(int(num(2))))})
			}
			v = list
		default:
			panic("SPEC.md: unknown kind " + p.kind)
		}
		o = append(o, item{p.name, v, p.kind, before[:len(before)-len(body)]})
	}
	return o, ok && len(body) == 0
}

// parsed is what the package reads from a body, as an object with the names of SPEC.md.
func parsed(f frame.Frame) (object, error) {
	u64 := func(v uint64) string { return fmt.Sprintf("%016x", v) }
	switch f.Type {
	case frame.TypeChallenge:
		c, err := frame.ParseChallenge(f.Body)
		return object{{name: "nonce", value: hex.EncodeToString(c.Nonce[:])}, {name: "time", value: u64(c.Time)}, {name: "relay", value: c.Relay}, {name: "binding", value: c.Binding},
			{name: "extensions", value: [][2]any{}}}, err
	case frame.TypeHello:
		h, err := frame.ParseHello(f.Body)
		tlvs := [][2]any{}
		if h.PublicKey != nil {
			tlvs = append(tlvs, [2]any{frame.TLVPublicKey, hex.EncodeToString(h.PublicKey)})
		}
		if h.Dropped != 0 {
			tlvs = append(tlvs, [2]any{frame.TLVDropped, u64(h.Dropped)})
		}
		if h.Chain != nil {
			value := ""
			for _, der := range h.Chain {
				value += fmt.Sprintf("%04x%x", len(der), der)
			}
			tlvs = append(tlvs, [2]any{frame.TLVChain, value})
		}
		if h.Generation != 0 {
			tlvs = append(tlvs, [2]any{frame.TLVGeneration, fmt.Sprintf("%08x", h.Generation)})
		}
		return object{{name: "version", value: h.Version}, {name: "device", value: h.Device}, {name: "auth", value: h.Auth}, {name: "key_id", value: h.KeyID},
			{name: "signature", value: hex.EncodeToString(h.Signature)}, {name: "window", value: h.Window}, {name: "streams", value: h.Streams}, {name: "epoch", value: u64(h.Epoch)},
			{name: "next_epoch", value: u64(h.NextEpoch)}, {name: "next_seq", value: u64(h.NextSeq)}, {name: "info", value: string(h.Info)}, {name: "extensions", value: tlvs}}, err
	case frame.TypeAccept:
		a, err := frame.ParseAccept(f.Body)
		return object{{name: "version", value: a.Version}, {name: "session", value: hex.EncodeToString(a.Session[:])}, {name: "window", value: a.Window}, {name: "keepalive", value: a.Keepalive},
			{name: "time", value: u64(a.Time)}, {name: "ack_epoch", value: u64(a.AckEpoch)}, {name: "ack_seq", value: u64(a.AckSeq)}, {name: "spread", value: a.Spread},
			{name: "extensions", value: [][2]any{}}}, err
	case frame.TypeGoAway:
		g, err := frame.ParseGoAway(f.Body)
		return object{{name: "code", value: g.Code}, {name: "last_stream", value: g.LastStream}, {name: "retry_after", value: g.RetryAfter}, {name: "spread", value: g.Spread},
			{name: "alternate", value: g.Alternate}, {name: "text", value: g.Text}}, err
	case frame.TypeNotify:
		n, err := frame.ParseNotify(f.Body)
		return object{{name: "epoch", value: u64(n.Epoch)}, {name: "seq", value: u64(n.Seq)}, {name: "time", value: u64(n.Time)}, {name: "topic", value: n.Topic},
			{name: "payload", value: hex.EncodeToString(n.Payload)}}, err
	case frame.TypeNotifyAck:
		a, err := frame.ParseNotifyAck(f.Body)
		return object{{name: "epoch", value: u64(a.Epoch)}, {name: "seq", value: u64(a.Seq)}}, err
	case frame.TypeRequest:
		r, err := frame.ParseRequest(f.Body)
		return object{{name: "flags", value: r.Flags}, {name: "target", value: r.Target}, {name: "method", value: r.Method}, {name: "path", value: r.Path}, {name: "authority", value: r.Authority},
			{name: "client", value: r.Client}, {name: "timeout", value: r.Timeout}, {name: "header", value: sortedFields(r.Header)}}, err
	case frame.TypeResponse:
		r, err := frame.ParseResponse(f.Body)
		return object{{name: "flags", value: r.Flags}, {name: "status", value: r.Status}, {name: "header", value: sortedFields(r.Header)}}, err
	case frame.TypeTrailers:
		h, err := frame.ParseTrailers(f.Body)
		return object{{name: "header", value: sortedFields(h)}}, err
	case frame.TypeData, frame.TypeDataEnd:
		return object{{name: "data", value: hex.EncodeToString(f.Body)}}, nil
	case frame.TypeDescribe:
		return object{{name: "info", value: hex.EncodeToString(f.Body)}}, nil
	case frame.TypeLocate:
		lan, err := frame.ParseLocate(f.Body)
		return object{{name: "url", value: hex.EncodeToString([]byte(lan))}}, err
	case frame.TypeInvalidate:
		v, err := frame.ParseInvalidate(f.Body)
		return object{{name: "epoch", value: u64(v.Epoch)}, {name: "seq", value: u64(v.Seq)}, {name: "flags", value: v.Flags}, {name: "targets", value: append([]string{}, v.URIs...)}}, err
	case frame.TypeInvalidated:
		v, err := frame.ParseInvalidated(f.Body)
		return object{{name: "epoch", value: u64(v.Epoch)}, {name: "seq", value: u64(v.Seq)}}, err
	case frame.TypeReset, frame.TypeWindow, frame.TypePing, frame.TypePong:
		v, err := frame.ParseUint32(f.Body)
		name := map[frame.Type]string{frame.TypeReset: "code", frame.TypeWindow: "credit", frame.TypePing: "token", frame.TypePong: "token"}[f.Type]
		return object{{name: name, value: v}}, err
	}
	return nil, fmt.Errorf("no parser for %v", f.Type)
}

func TestSpecTypes(t *testing.T) {
	known := map[string]bool{}
	tables := layouts(t)
	for _, row := range rows(t, readSpec(t), "### 3.5 Types") {
		number, err := strconv.ParseUint(row[0], 10, 8)
		if err != nil || frame.Type(number).String() != row[1] {
			t.Errorf("SPEC.md §3.5 says %s %s, the code says %v", row[0], row[1], frame.Type(number))
		}
		if tables[row[1]] == nil {
			t.Errorf("SPEC.md has no table of fields for %s", row[1])
		}
		known[row[1]] = true
	}
	for n := range frame.Critical {
		if name := n.String(); !strings.HasPrefix(name, "TYPE(") && !known[name] {
			t.Errorf("SPEC.md §3.5 lacks %s", name)
		}
	}
}

func TestSpecCodes(t *testing.T) {
	spec := readSpec(t)
	for _, table := range []struct {
		after string // the line before the table
		name  func(int) string
	}{
		{"GOAWAY codes:", func(n int) string { return frame.GoAwayCode(n).String() }},
		{"RESET codes:", func(n int) string { return frame.ResetCode(n).String() }},
	} {
		list := rows(t, spec, table.after)
		for n, row := range list {
			if row[0] != strconv.Itoa(n) || row[1] != table.name(n) {
				t.Errorf("SPEC.md, %s row %s %q, the code says %d %q", table.after, row[0], row[1], n, table.name(n))
			}
		}
		if next := table.name(len(list)); !strings.Contains(next, "code") {
			t.Errorf("SPEC.md, %s lacks %q", table.after, next)
		}
	}
}

func TestSpecLimits(t *testing.T) {
	got := map[string]string{}
	for _, row := range rows(t, readSpec(t), "### 3.3 Limits") {
		got[row[0]] = strings.Fields(row[1])[0]
	}
	for name, want := range map[string]uint64{
		"message":                                   frame.MaxMessage,
		"body of DATA, DATA_END":                    frame.MaxData,
		"body of REQUEST, RESPONSE, TRAILERS":       frame.MaxHead,
		"fields in one head":                        frame.MaxFields,
		"payload of NOTIFY":                         frame.MaxNotify,
		"descriptor (HELLO info, body of DESCRIBE)": frame.MaxDescribe,
		"certificates (HELLO TLV 3)":                frame.MaxChain,
		"body of INVALIDATE":                        frame.MaxTargets,
		"stream id":                                 frame.MaxStream,
		"body of NOTIFY":                            limitOf(frame.TypeNotify),
		"body of HELLO":                             limitOf(frame.TypeHello),
		"body of any other known type":              limitOf(frame.TypePing),
		"body of an unknown type":                   limitOf(99),
	} {
		if got[name] != strconv.FormatUint(want, 10) {
			t.Errorf("SPEC.md §3.3: %s = %s, the code has %d", name, got[name], want)
		}
	}
	if want := limitOf(frame.TypePing); limitOf(frame.TypeGoAway) != want || limitOf(frame.TypeChallenge) != want || limitOf(frame.TypeAccept) != want || limitOf(frame.TypeLocate) != want || limitOf(frame.TypeInvalidated) != want || frame.MaxLocate != want {
		t.Error("the small frames differ in their limits")
	}
}

// limitOf finds the most body bytes that Next lets pass for a type.
func limitOf(typ frame.Type) uint64 {
	msg := make([]byte, 2*frame.MaxMessage)
	msg[0] = byte(typ)
	low, high := 0, len(msg)-frame.HeaderSize // accepted, refused
	for high-low > 1 {
		mid := (low + high) / 2
		binary.BigEndian.PutUint32(msg[1:], uint32(mid+4))
		if _, _, err := frame.Next(msg); err == nil {
			low = mid
		} else {
			high = mid
		}
	}
	return uint64(low)
}

// The table of what is signed is checked by the proof vectors; here only that no
// frame's bytes are left unexplained.
func TestSpecDecodesAll(t *testing.T) {
	tables := layouts(t)
	for _, v := range validVectors(t) {
		f, _, err := frame.Next(v.msg)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if v.class == "skip" {
			continue
		}
		o, ok := decode(tables[f.Type.String()], f.Body)
		if !ok {
			t.Errorf("%s: the table of SPEC.md does not fit the body", v.name)
		}
		var all []byte
		for _, it := range o {
			all = append(all, it.raw...)
		}
		if !bytes.Equal(all, f.Body) {
			t.Errorf("%s: the items of SPEC.md's table give other bytes", v.name)
		}
	}
}
