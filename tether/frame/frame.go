// Package frame writes and reads tether frames: a type byte, a four-byte big-endian
// length, then that many bytes, the first four of which name the stream (SPEC.md §3).
// It starts no goroutine and does no I/O, so the whole format is testable with byte
// slices. Package mux builds streams on top.
//
// Append functions add one whole frame to a slice, in the way of append. Parse
// functions read a frame's body; what they return shares no memory with the body
// unless the field says so.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Type is the first byte of a frame. An unknown type below Critical is skipped by its
// length; one from Critical on closes the connection (SPEC.md §3.2).
type Type uint8

// Frame types. 1 to 5 are the paper's; the rest is what streaming needs.
const (
	TypeHello     Type = 1  // device to relay: who I am, and the proof
	TypeAccept    Type = 2  // relay to device: you are in
	TypeRequest   Type = 3  // relay to device: a request head opens a stream
	TypeResponse  Type = 4  // device to relay: a response head; 1xx may repeat
	TypeNotify    Type = 5  // device to relay: one notification
	TypeData      Type = 6  // both: body bytes
	TypeDataEnd   Type = 7  // both: the last body bytes of this direction
	TypeTrailers  Type = 8  // both: trailer fields, ends this direction
	TypeReset     Type = 9  // both: the stream is over, with a code
	TypeWindow    Type = 10 // both: credit for a stream
	TypePing      Type = 11 // both: answer me
	TypePong      Type = 12 // both: the answer
	TypeNotifyAck Type = 13 // relay to device: notifications up to this one are safe
	TypeGoAway    Type = 14 // both: this connection ends, and why
	TypeChallenge Type = 15 // relay to device: the first frame
	TypeDescribe  Type = 16 // device to relay: the descriptor changed
	TypeLocate    Type = 17 // device to relay: its URL on the LAN

	TypeInvalidate  Type = 18 // device to relay: a write made stored answers stale
	TypeInvalidated Type = 19 // relay to device: none of them will be given out

	// Critical is the first type that a peer must not skip.
	Critical Type = 128
)

func (t Type) String() string {
	names := [...]string{1: "HELLO", "ACCEPT", "REQUEST", "RESPONSE", "NOTIFY", "DATA", "DATA_END", "TRAILERS",
		"RESET", "WINDOW", "PING", "PONG", "NOTIFY_ACK", "GOAWAY", "CHALLENGE", "DESCRIBE", "LOCATE",
		"INVALIDATE", "INVALIDATED"}
	if int(t) < len(names) && names[t] != "" {
		return names[t]
	}
	return fmt.Sprintf("TYPE(%d)", uint8(t))
}

// Limits (SPEC.md §3.3). A peer that exceeds one is in error, whatever it meant.
const (
	HeaderSize  = 9          // type, length, stream
	MaxMessage  = 192 << 10  // bytes in one carrier message
	MaxData     = 16 << 10   // bytes of body in one DATA or DATA_END
	MaxHead     = 64 << 10   // bytes of body in one REQUEST, RESPONSE or TRAILERS
	MaxFields   = 200        // header fields in one head
	MaxNotify   = 32 << 10   // bytes of one notification's payload
	MaxDescribe = 16 << 10   // bytes of a descriptor
	MaxChain    = 4 << 10    // bytes of a HELLO's certificates, with two more for the length of each
	MaxLocate   = maxControl // bytes of a LOCATE's URL
	MaxTargets  = 4 << 10    // bytes of body of an INVALIDATE
	MaxStream   = 1<<31 - 1  // highest stream id; then the connection is drained

	maxControl  = 512                     // bytes of body of the fixed small frames
	maxHello    = MaxDescribe + 4<<10     // descriptor, or certificates, key, signature
	maxSkipped  = MaxMessage - HeaderSize // a frame never crosses a message
	streamBytes = 4                       // the stream id is counted in LENGTH
)

// ErrMalformed is wrapped by every refusal of this package: the peer broke the format
// and the connection must close (GOAWAY 4), except where a head is refused (ErrHead).
var ErrMalformed = errors.New("malformed frame")

// ErrHead means that a head's bytes are well framed but may not become an HTTP message
// (bad field name or value, too many fields): answer with RESET 3, the connection lives.
var ErrHead = errors.New("bad message head")

// Frame is one frame inside a carrier message. Body shares the message's memory.
type Frame struct {
	Type   Type
	Stream uint32 // 0 is the connection itself
	Body   []byte
}

// Next splits the first frame off msg, which must not be empty. It refuses a frame that
// crosses the end of the message, and a length over the limit of its type, before
// anything is done with the body.
func Next(msg []byte) (f Frame, rest []byte, err error) {
	if len(msg) < HeaderSize {
		return Frame{}, nil, fmt.Errorf("%w: %d bytes left, a header has %d", ErrMalformed, len(msg), HeaderSize)
	}
	f.Type = Type(msg[0])
	length := binary.BigEndian.Uint32(msg[1:5])
	f.Stream = binary.BigEndian.Uint32(msg[5:9])
	if length < streamBytes {
		return Frame{}, nil, fmt.Errorf("%w: %v of length %d, at least %d is needed", ErrMalformed, f.Type, length, streamBytes)
	}
	body := length - streamBytes
	if limit := f.Type.maxBody(); body > uint32(limit) {
		return Frame{}, nil, fmt.Errorf("%w: %v of %d bytes, at most %d are allowed", ErrMalformed, f.Type, body, limit)
	}
	if uint64(body) > uint64(len(msg)-HeaderSize) {
		return Frame{}, nil, fmt.Errorf("%w: %v of %d bytes, the message has %d more", ErrMalformed, f.Type, body, len(msg)-HeaderSize)
	}
	if f.Stream > MaxStream {
		return Frame{}, nil, fmt.Errorf("%w: %v on stream %d, the highest is %d", ErrMalformed, f.Type, f.Stream, uint32(MaxStream))
	}
	end := HeaderSize + int(body)
	f.Body = msg[HeaderSize:end:end]
	return f, msg[end:], nil
}

// maxBody is the most bytes that a frame of this type may carry after the stream id.
func (t Type) maxBody() int {
	switch t {
	case TypeData, TypeDataEnd:
		return MaxData
	case TypeRequest, TypeResponse, TypeTrailers:
		return MaxHead
	case TypeNotify:
		return MaxNotify + maxControl
	case TypeHello:
		return maxHello
	case TypeDescribe:
		return MaxDescribe
	case TypeLocate:
		return MaxLocate
	case TypeInvalidate:
		return MaxTargets
	case TypeAccept, TypeReset, TypeWindow, TypePing, TypePong, TypeNotifyAck, TypeGoAway, TypeChallenge, TypeInvalidated:
		return maxControl
	}
	return maxSkipped
}

// begin appends a header whose length is filled in by finish.
func begin(dst []byte, t Type, stream uint32) []byte {
	dst = append(dst, byte(t), 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, stream)
}

// finish fills in the length of the frame that starts at start.
func finish(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-HeaderSize+streamBytes))
	return dst
}

// AppendData appends data as one DATA, or DATA_END when end is set. data may be empty
// only with end, and holds at most MaxData bytes: more is a bug of the caller.
func AppendData(dst []byte, stream uint32, data []byte, end bool) []byte {
	if len(data) > MaxData {
		panic("frame: data over MaxData")
	}
	return append(AppendDataHeader(dst, stream, len(data), end), data...)
}

// AppendDataHeader appends only the header of a DATA or DATA_END whose n bytes the
// caller appends itself.
func AppendDataHeader(dst []byte, stream uint32, n int, end bool) []byte {
	t := TypeData
	if end {
		t = TypeDataEnd
	}
	dst = append(dst, byte(t))
	dst = binary.BigEndian.AppendUint32(dst, uint32(n+streamBytes))
	return binary.BigEndian.AppendUint32(dst, stream)
}

// AppendReset appends a RESET with one of the Reset codes.
func AppendReset(dst []byte, stream uint32, code ResetCode) []byte {
	return appendUint32(dst, TypeReset, stream, uint32(code))
}

// AppendWindow appends credit bytes for a stream.
func AppendWindow(dst []byte, stream, credit uint32) []byte {
	return appendUint32(dst, TypeWindow, stream, credit)
}

// AppendPing appends a PING whose token comes back in the PONG.
func AppendPing(dst []byte, token uint32) []byte { return appendUint32(dst, TypePing, 0, token) }

// AppendPong answers a PING.
func AppendPong(dst []byte, token uint32) []byte { return appendUint32(dst, TypePong, 0, token) }

func appendUint32(dst []byte, t Type, stream, v uint32) []byte {
	dst = append(dst, byte(t), 0, 0, 0, streamBytes+4)
	dst = binary.BigEndian.AppendUint32(dst, stream)
	return binary.BigEndian.AppendUint32(dst, v)
}

// AppendDescribe appends the descriptor, at most MaxDescribe bytes of JSON.
func AppendDescribe(dst []byte, json []byte) []byte {
	if len(json) > MaxDescribe {
		panic("frame: descriptor over MaxDescribe")
	}
	start := len(dst)
	return finish(append(begin(dst, TypeDescribe, 0), json...), start)
}

// ParseUint32 reads the body of RESET, WINDOW, PING and PONG.
func ParseUint32(body []byte) (uint32, error) {
	if len(body) != 4 {
		return 0, fmt.Errorf("%w: %d bytes, want 4", ErrMalformed, len(body))
	}
	return binary.BigEndian.Uint32(body), nil
}

// ResetCode says why a stream ended early (SPEC.md §5.5).
type ResetCode uint32

// Reset codes.
const (
	ResetNone        ResetCode = 0 // the answer is complete, stop sending
	ResetCancel      ResetCode = 1 // the client went away
	ResetClientBody  ResetCode = 2 // the client's request body broke off
	ResetBadHead     ResetCode = 3 // a head that cannot become an HTTP message
	ResetUnreachable ResetCode = 4 // the origin cannot be reached: 502
	ResetRefused     ResetCode = 5 // not processed at all: safe to send again
	ResetTimeout     ResetCode = 6 // the origin did not answer in time: 504
	ResetFlow        ResetCode = 7 // more bytes than credit
	ResetInternal    ResetCode = 8 // a bug, a panic
	ResetTooLarge    ResetCode = 9 // over a size limit
)

func (c ResetCode) String() string {
	names := [...]string{"none", "cancelled", "client body failed", "bad head", "origin unreachable", "refused",
		"timeout", "flow control", "internal error", "too large"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("reset code %d", uint32(c))
}

// Error makes a code usable as an error.
func (c ResetCode) Error() string { return "stream reset: " + c.String() }

// GoAwayCode says why a connection ends (SPEC.md §4.5).
type GoAwayCode uint16

// GOAWAY codes.
const (
	GoAwayDrain    GoAwayCode = 0 // the peer stops; come back elsewhere
	GoAwayReplaced GoAwayCode = 1 // a newer connection of the same device took over
	GoAwayAuth     GoAwayCode = 2 // the proof did not hold
	GoAwayUnknown  GoAwayCode = 3 // the device is not enrolled here
	GoAwayProtocol GoAwayCode = 4 // the peer broke the protocol
	GoAwayOverload GoAwayCode = 5 // too much at the moment
	GoAwayVersion  GoAwayCode = 6 // no version in common
)

func (c GoAwayCode) String() string {
	names := [...]string{"drain", "replaced by a newer connection", "authentication refused", "device not enrolled",
		"protocol error", "overload", "no common version"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("goaway code %d", uint16(c))
}
