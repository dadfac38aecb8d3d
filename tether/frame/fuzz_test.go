package frame_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// codec is the pair of functions for one type, made to look alike.
type codec struct {
	parse func(body []byte) (any, error)
	write func(stream uint32, v any) ([]byte, error)
}

func codecOf[T any](parse func([]byte) (T, error), write func(dst []byte, stream uint32, v *T) ([]byte, error)) codec {
	return codec{
		func(body []byte) (any, error) { return parse(body) },
		func(stream uint32, v any) ([]byte, error) { t := v.(T); return write(nil, stream, &t) },
	}
}

// plain fits the Append functions of frames that belong to the connection and cannot fail.
func plain[T any](parse func([]byte) (T, error), write func([]byte, *T) []byte) codec {
	return codecOf(parse, func(dst []byte, _ uint32, v *T) ([]byte, error) { return write(dst, v), nil })
}

func number(write func(dst []byte, stream, v uint32) []byte) codec {
	return codecOf(frame.ParseUint32, func(dst []byte, stream uint32, v *uint32) ([]byte, error) { return write(dst, stream, *v), nil })
}

func bytesOf(write func(dst []byte, stream uint32, b []byte) []byte) codec {
	return codecOf(func(body []byte) ([]byte, error) { return body, nil },
		func(dst []byte, stream uint32, v *[]byte) ([]byte, error) { return write(dst, stream, *v), nil })
}

var codecs = map[frame.Type]codec{
	frame.TypeChallenge: plain(frame.ParseChallenge, frame.AppendChallenge),
	frame.TypeAccept:    plain(frame.ParseAccept, frame.AppendAccept),
	frame.TypeGoAway:    plain(frame.ParseGoAway, frame.AppendGoAway),
	frame.TypeNotifyAck: plain(frame.ParseNotifyAck, func(dst []byte, a *frame.NotifyAck) []byte { return frame.AppendNotifyAck(dst, *a) }),
	frame.TypeHello:     codecOf(frame.ParseHello, func(dst []byte, _ uint32, h *frame.Hello) ([]byte, error) { return frame.AppendHello(dst, h) }),
	frame.TypeNotify:    codecOf(frame.ParseNotify, func(dst []byte, _ uint32, n *frame.Notify) ([]byte, error) { return frame.AppendNotify(dst, n) }),
	frame.TypeRequest:   codecOf(frame.ParseRequest, frame.AppendRequest),
	frame.TypeResponse:  codecOf(frame.ParseResponse, frame.AppendResponse),
	frame.TypeTrailers: codecOf(frame.ParseTrailers, func(dst []byte, stream uint32, h *map[string][]string) ([]byte, error) {
		return frame.AppendTrailers(dst, stream, *h)
	}),
	frame.TypeReset:  number(func(dst []byte, stream, v uint32) []byte { return frame.AppendReset(dst, stream, frame.ResetCode(v)) }),
	frame.TypeWindow: number(frame.AppendWindow),
	frame.TypePing:   number(func(dst []byte, _, v uint32) []byte { return frame.AppendPing(dst, v) }),
	frame.TypePong:   number(func(dst []byte, _, v uint32) []byte { return frame.AppendPong(dst, v) }),
	frame.TypeData:   bytesOf(func(dst []byte, stream uint32, b []byte) []byte { return frame.AppendData(dst, stream, b, false) }),
	frame.TypeDataEnd: bytesOf(func(dst []byte, stream uint32, b []byte) []byte {
		return frame.AppendData(dst, stream, b, true)
	}),
	frame.TypeDescribe: bytesOf(func(dst []byte, _ uint32, b []byte) []byte { return frame.AppendDescribe(dst, b) }),
	frame.TypeInvalidate: codecOf(frame.ParseInvalidate, func(dst []byte, _ uint32, v *frame.Invalidate) ([]byte, error) {
		return frame.AppendInvalidate(dst, v)
	}),
	frame.TypeInvalidated: plain(frame.ParseInvalidated, func(dst []byte, v *frame.Invalidated) []byte { return frame.AppendInvalidated(dst, *v) }),
	frame.TypeLocate:      codecOf(frame.ParseLocate, func(dst []byte, _ uint32, lan *string) ([]byte, error) { return frame.AppendLocate(dst, *lan) }),
}

// FuzzMessage: for any message,
//   - its frames follow each other without gap or overlap: one pass, linear in its size;
//   - each frame is read, or refused with exactly one class (SPEC.md §3.4);
//   - what is read is what the tables of SPEC.md say;
//   - what is read, written and read again is the same.
func FuzzMessage(f *testing.F) {
	for _, v := range validVectors(f) {
		f.Add(v.msg)
	}
	for _, v := range invalidVectors() {
		f.Add(v.msg)
	}
	for _, m := range exampleSession(f) {
		f.Add(m.msg)
	}
	tables := layouts(f)
	f.Fuzz(func(t *testing.T, msg []byte) {
		for left := msg; len(left) > 0; {
			fr, rest, err := frame.Next(left)
			if err != nil {
				if classOf(err) != "malformed" {
					t.Fatalf("Next: %v is not malformed", err)
				}
				return
			}
			if len(fr.Body) != cap(fr.Body) || frame.HeaderSize+len(fr.Body)+len(rest) != len(left) {
				t.Fatalf("%v: %d bytes of %d taken, capacity %d, %d left", fr.Type, len(fr.Body), len(left), cap(fr.Body), len(rest))
			}
			left = rest
			checkFrame(t, tables, fr)
		}
	})
}

func checkFrame(t *testing.T, tables map[string][]part, f frame.Frame) {
	c, known := codecs[f.Type]
	if known != !strings.HasPrefix(f.Type.String(), "TYPE(") {
		t.Fatalf("%v has no codec in this test", f.Type)
	}
	if !known {
		return
	}
	first, err := c.parse(f.Body)
	if err != nil {
		if classOf(err) == "unclassed" {
			t.Fatalf("%v: %v is neither malformed nor a bad head", f.Type, err)
		}
		return
	}
	got, err := parsed(f)
	want, ok := decode(tables[f.Type.String()], f.Body)
	if err != nil || !ok || orderless(got) != orderless(want) {
		t.Fatalf("%v is read as %v (%v), by SPEC.md as %v (%v)", f.Type, got, err, want, ok)
	}
	if g, ok := first.(frame.GoAway); ok && (len(g.Alternate) > 200 || len(g.Text) > 200) {
		return // read, but not written like that
	}
	stream := f.Stream
	if !belongsToStream(f.Type) {
		stream = 0
	}
	msg, err := c.write(stream, first)
	if err != nil {
		t.Fatalf("%v was read as %+v but is not written: %v", f.Type, first, err)
	}
	again, rest, err := frame.Next(msg)
	if err != nil || len(rest) != 0 || again.Type != f.Type || again.Stream != stream {
		t.Fatalf("%v written again is %v on %d, %d left, %v", f.Type, again.Type, again.Stream, len(rest), err)
	}
	if second, err := c.parse(again.Body); err != nil || !reflect.DeepEqual(first, second) {
		t.Fatalf("%v = %+v, again %+v, %v", f.Type, first, second, err)
	}
}

func belongsToStream(t frame.Type) bool {
	return t >= frame.TypeRequest && t <= frame.TypeResponse || t >= frame.TypeData && t <= frame.TypeWindow
}

// orderless is o without TLVs, of which the package drops unknown ones, and with fields
// in the order of their names.
func orderless(o object) string {
	o = slices.Clone(o)
	for i := range o {
		if fields, ok := o[i].value.([][2]string); ok {
			fields = slices.Clone(fields)
			slices.SortStableFunc(fields, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
			o[i].value = fields
		}
		if o[i].name == "extensions" {
			o[i].value = nil
		}
	}
	return o.String()
}
