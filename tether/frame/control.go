package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Version is the protocol version of this implementation (SPEC.md §4.2).
const Version = 1

// NonceSize is the size of a challenge's nonce in bytes.
const NonceSize = 32

// Proof kinds in HELLO.
const (
	AuthCertificate uint8 = 0 // a client certificate, verified by the relay or its load balancer
	AuthEd25519     uint8 = 1
	AuthECDSA       uint8 = 2 // P-256, SHA-256, ASN.1 signature
)

// Bindings that CHALLENGE asks for.
const (
	BindNone uint8 = 0
	// BindExporter: the signature covers the TLS exporter "EXPORTER-Channel-Binding",
	// 32 bytes (RFC 9266), because TLS ends at the relay itself.
	BindExporter uint8 = 1
)

// TLV types. Unknown ones are skipped.
const (
	TLVPublicKey  uint8 = 1 // HELLO: SubjectPublicKeyInfo, DER
	TLVDropped    uint8 = 2 // HELLO: u64, notifications the journal had to drop
	TLVChain      uint8 = 3 // HELLO: n x (u16 length, certificate in DER), the device's own first
	TLVGeneration uint8 = 4 // HELLO: u32, rises with each factory reset
)

// Challenge is the relay's first frame (SPEC.md §4.1).
type Challenge struct {
	Nonce   [NonceSize]byte
	Time    uint64 // the relay's clock, Unix milliseconds
	Relay   string // must equal the host the device dialled
	Binding uint8  // BindNone or BindExporter
}

// Hello is the device's first frame (SPEC.md §4.2).
type Hello struct {
	Version   uint8  // highest version the device speaks
	Device    string // device ID
	Auth      uint8  // kind of proof
	KeyID     string // names the key: lower-case hex of the first 16 bytes of SHA-256(PublicKey)
	Signature []byte // at most 512 bytes
	Window    uint32 // credit the device grants on each new stream, bytes
	Streams   uint16 // requests the device takes at once; 1 is the paper's serial mode
	Epoch     uint64 // of this start of the daemon
	NextEpoch uint64 // oldest unacknowledged notification; both 0: none
	NextSeq   uint64
	Info      []byte // descriptor JSON, at most MaxDescribe bytes; empty: not known yet
	PublicKey []byte // TLV: SubjectPublicKeyInfo, DER; needed for trust on first use
	Dropped   uint64 // TLV: notifications the journal dropped since the last accepted HELLO
	// Chain is the device's certificate and those above it, DER, the device's own first;
	// none is empty, and at most MaxChain bytes with two more for each. TLV; nil: it has none.
	Chain [][]byte
	// Generation counts the device's owners: a factory reset raises it. TLV; 0: not told.
	Generation uint32
}

// Accept is the relay's answer to a good HELLO (SPEC.md §4.3).
type Accept struct {
	Version   uint8    // min of both
	Session   [16]byte // a UUID, for logs on both sides
	Window    uint32   // credit the relay grants on each new stream, bytes
	Keepalive uint16   // seconds without sending after which the device sends PING; 15..240
	Time      uint64   // the relay's clock, Unix milliseconds
	AckEpoch  uint64   // last notification that is safe with the relay; both 0: none
	AckSeq    uint64
	Spread    uint16 // seconds over which to spread a reconnect after losing this session
}

// Notify is one notification (SPEC.md §6).
type Notify struct {
	Epoch   uint64
	Seq     uint64 // from 1; 0: best effort, never acknowledged
	Time    uint64 // Unix milliseconds on the device
	Topic   string // at most 255 bytes
	Payload []byte // at most MaxNotify bytes; parsed: shares the frame's memory
}

// NotifyAck says that this notification, and all sent before it, are safe (SPEC.md §6.2).
type NotifyAck struct{ Epoch, Seq uint64 }

// GoAway announces the end of the connection (SPEC.md §4.5).
type GoAway struct {
	Code       GoAwayCode
	LastStream uint32 // highest stream that was or will be processed
	RetryAfter uint32 // milliseconds to wait before dialling again, plus a random part of Spread
	Spread     uint32 // milliseconds
	Alternate  string // host to dial instead; empty: the same list
	Text       string // for people
}

// AppendChallenge appends c. Relay is a host name, so at most 253 bytes (RFC 1035 §2.3.4);
// what is longer is cut at 255, and no device will agree with it.
func AppendChallenge(dst []byte, c *Challenge) []byte {
	start := len(dst)
	b := append(begin(dst, TypeChallenge, 0), c.Nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Time)
	b = appendStr8(b, c.Relay[:min(len(c.Relay), 0xff)])
	return finish(append(b, c.Binding), start)
}

// ParseChallenge reads the body of a CHALLENGE.
func ParseChallenge(body []byte) (Challenge, error) {
	c := cursor{b: body}
	var ch Challenge
	copy(ch.Nonce[:], c.take(NonceSize))
	ch.Time, ch.Relay, ch.Binding = c.u64(), c.str8(), c.u8()
	c.tlvs(nil)
	return ch, c.err()
}

// AppendHello appends h. It fails when a part is over its limit.
func AppendHello(dst []byte, h *Hello) ([]byte, error) {
	start := len(dst)
	if len(h.Device) > 0xff || len(h.KeyID) > 0xff || len(h.Signature) > maxControl || len(h.Info) > MaxDescribe || len(h.PublicKey) > maxControl {
		return dst, fmt.Errorf("%w: HELLO with a part over its limit", ErrMalformed)
	}
	chain, err := appendChain(nil, h.Chain)
	if err != nil {
		return dst, err
	}
	b := append(begin(dst, TypeHello, 0), h.Version)
	b = appendStr8(b, h.Device)
	b = append(b, h.Auth)
	b = appendStr8(b, h.KeyID)
	b = appendStr16(b, string(h.Signature))
	b = binary.BigEndian.AppendUint32(b, h.Window)
	b = binary.BigEndian.AppendUint16(b, h.Streams)
	b = binary.BigEndian.AppendUint64(b, h.Epoch)
	b = binary.BigEndian.AppendUint64(b, h.NextEpoch)
	b = binary.BigEndian.AppendUint64(b, h.NextSeq)
	b = appendStr16(b, string(h.Info))
	if len(h.PublicKey) > 0 {
		b = appendTLV(b, TLVPublicKey, h.PublicKey)
	}
	if h.Dropped > 0 {
		b = appendTLV(b, TLVDropped, binary.BigEndian.AppendUint64(nil, h.Dropped))
	}
	if len(chain) > 0 {
		b = appendTLV(b, TLVChain, chain)
	}
	if h.Generation > 0 {
		b = appendTLV(b, TLVGeneration, binary.BigEndian.AppendUint32(nil, h.Generation))
	}
	if n := len(b) - start - HeaderSize; n > maxHello {
		return dst, fmt.Errorf("%w: HELLO of %d bytes, at most %d are allowed", ErrMalformed, n, maxHello)
	}
	return finish(b, start), nil
}

// appendChain appends the value of TLVChain; nothing for an empty chain.
func appendChain(dst []byte, chain [][]byte) ([]byte, error) {
	start := len(dst)
	for _, der := range chain {
		if len(der) == 0 || len(dst)-start+2+len(der) > MaxChain {
			return dst[:start], fmt.Errorf("%w: HELLO with an empty certificate, or more than %d bytes of them", ErrMalformed, MaxChain)
		}
		dst = append(binary.BigEndian.AppendUint16(dst, uint16(len(der))), der...)
	}
	return dst, nil
}

// parseChain reads the value of TLVChain; nil when it is not one.
func parseChain(v []byte) (chain [][]byte) {
	if len(v) > MaxChain {
		return nil
	}
	for c := (cursor{b: v}); len(c.b) > 0; {
		der := c.take(int(c.u16()))
		if c.bad || len(der) == 0 {
			return nil
		}
		chain = append(chain, append([]byte(nil), der...))
	}
	return chain
}

// ParseHello reads the body of a HELLO.
func ParseHello(body []byte) (Hello, error) {
	c := cursor{b: body}
	h := Hello{Version: c.u8(), Device: c.str8(), Auth: c.u8(), KeyID: c.str8(), Signature: []byte(c.str16()), Window: c.u32(),
		Streams: c.u16(), Epoch: c.u64(), NextEpoch: c.u64(), NextSeq: c.u64(), Info: []byte(c.str16())}
	badTLV := false
	c.tlvs(func(t uint8, v []byte) {
		switch t {
		case TLVPublicKey:
			h.PublicKey, badTLV = append([]byte(nil), v...), badTLV || len(v) == 0 || len(v) > maxControl
		case TLVDropped:
			if len(v) != 8 {
				badTLV = true
				return
			}
			h.Dropped = binary.BigEndian.Uint64(v)
		case TLVChain:
			h.Chain = parseChain(v)
			badTLV = badTLV || h.Chain == nil
		case TLVGeneration:
			if len(v) != 4 {
				badTLV = true
				return
			}
			h.Generation = binary.BigEndian.Uint32(v)
		}
	})
	if err := c.err(); err != nil {
		return Hello{}, err
	}
	if badTLV || len(h.Signature) > maxControl || len(h.Info) > MaxDescribe {
		return Hello{}, fmt.Errorf("%w: HELLO with a part that is not of its size", ErrMalformed)
	}
	return h, nil
}

// AppendAccept appends a.
func AppendAccept(dst []byte, a *Accept) []byte {
	start := len(dst)
	b := append(begin(dst, TypeAccept, 0), a.Version)
	b = append(b, a.Session[:]...)
	b = binary.BigEndian.AppendUint32(b, a.Window)
	b = binary.BigEndian.AppendUint16(b, a.Keepalive)
	b = binary.BigEndian.AppendUint64(b, a.Time)
	b = binary.BigEndian.AppendUint64(b, a.AckEpoch)
	b = binary.BigEndian.AppendUint64(b, a.AckSeq)
	return finish(binary.BigEndian.AppendUint16(b, a.Spread), start)
}

// ParseAccept reads the body of an ACCEPT.
func ParseAccept(body []byte) (Accept, error) {
	c := cursor{b: body}
	a := Accept{Version: c.u8()}
	copy(a.Session[:], c.take(len(a.Session)))
	a.Window, a.Keepalive, a.Time, a.AckEpoch, a.AckSeq, a.Spread = c.u32(), c.u16(), c.u64(), c.u64(), c.u64(), c.u16()
	c.tlvs(nil)
	return a, c.err()
}

// AppendNotify appends n. It fails when the topic or payload is over its limit.
func AppendNotify(dst []byte, n *Notify) ([]byte, error) {
	if len(n.Topic) > 0xff || len(n.Payload) > MaxNotify {
		return dst, fmt.Errorf("%w: NOTIFY with a topic of %d bytes and a payload of %d, at most %d and %d are allowed",
			ErrMalformed, len(n.Topic), len(n.Payload), 0xff, MaxNotify)
	}
	start := len(dst)
	b := begin(dst, TypeNotify, 0)
	b = binary.BigEndian.AppendUint64(b, n.Epoch)
	b = binary.BigEndian.AppendUint64(b, n.Seq)
	b = binary.BigEndian.AppendUint64(b, n.Time)
	b = appendStr8(b, n.Topic)
	return finish(append(b, n.Payload...), start), nil
}

// ParseNotify reads the body of a NOTIFY; Payload shares its memory.
func ParseNotify(body []byte) (Notify, error) {
	c := cursor{b: body}
	n := Notify{Epoch: c.u64(), Seq: c.u64(), Time: c.u64(), Topic: c.str8()}
	n.Payload = c.b
	if err := c.err(); err != nil {
		return Notify{}, err
	}
	if len(n.Payload) > MaxNotify {
		return Notify{}, fmt.Errorf("%w: NOTIFY of %d bytes, at most %d are allowed", ErrMalformed, len(n.Payload), MaxNotify)
	}
	return n, nil
}

// AppendNotifyAck appends a.
func AppendNotifyAck(dst []byte, a NotifyAck) []byte {
	start := len(dst)
	b := binary.BigEndian.AppendUint64(begin(dst, TypeNotifyAck, 0), a.Epoch)
	return finish(binary.BigEndian.AppendUint64(b, a.Seq), start)
}

// ParseNotifyAck reads the body of a NOTIFY_ACK.
func ParseNotifyAck(body []byte) (NotifyAck, error) {
	c := cursor{b: body}
	a := NotifyAck{c.u64(), c.u64()}
	return a, c.end()
}

// AppendLocate appends the device's URL on its LAN; empty: it has no address there now.
// It fails when ParseLocate would refuse it.
func AppendLocate(dst []byte, lan string) ([]byte, error) {
	if err := checkLocate(lan); err != nil {
		return dst, err
	}
	start := len(dst)
	return finish(append(begin(dst, TypeLocate, 0), lan...), start), nil
}

// ParseLocate reads the body of a LOCATE: empty, or an absolute https or http URL with a
// host and without user info (SPEC.md §4.10). It says nothing about where the URL leads.
func ParseLocate(body []byte) (string, error) {
	lan := string(body)
	if err := checkLocate(lan); err != nil {
		return "", err
	}
	return lan, nil
}

func checkLocate(lan string) error {
	if lan == "" {
		return nil
	}
	if len(lan) > MaxLocate {
		return fmt.Errorf("%w: LOCATE of %d bytes, at most %d are allowed", ErrMalformed, len(lan), MaxLocate)
	}
	if !utf8.ValidString(lan) || strings.ContainsFunc(lan, func(r rune) bool { return r == ' ' || unicode.IsControl(r) }) {
		return fmt.Errorf("%w: LOCATE %q is not a URL in UTF-8", ErrMalformed, lan)
	}
	u, err := url.Parse(lan)
	if err != nil {
		if parse, ok := errors.AsType[*url.Error](err); ok {
			err = parse.Err // without the URL, which is quoted here
		}
		return fmt.Errorf("%w: LOCATE %q: %w", ErrMalformed, lan, err)
	}
	if !strings.HasPrefix(lan, "https://") && !strings.HasPrefix(lan, "http://") || u.Hostname() == "" || u.User != nil {
		return fmt.Errorf("%w: LOCATE %q, want https or http, a host, no user", ErrMalformed, lan)
	}
	return nil
}

// AppendGoAway appends g; Text is cut at maxText bytes, and an Alternate that is longer is
// left out: half a host name is another host.
func AppendGoAway(dst []byte, g *GoAway) []byte {
	start := len(dst)
	b := binary.BigEndian.AppendUint16(begin(dst, TypeGoAway, 0), uint16(g.Code))
	b = binary.BigEndian.AppendUint32(b, g.LastStream)
	b = binary.BigEndian.AppendUint32(b, g.RetryAfter)
	b = binary.BigEndian.AppendUint32(b, g.Spread)
	alternate := g.Alternate
	if len(alternate) > maxText {
		alternate = ""
	}
	b = appendStr8(b, alternate)
	return finish(appendStr8(b, g.Text[:min(len(g.Text), maxText)]), start)
}

// ParseGoAway reads the body of a GOAWAY.
func ParseGoAway(body []byte) (GoAway, error) {
	c := cursor{b: body}
	g := GoAway{Code: GoAwayCode(c.u16()), LastStream: c.u32(), RetryAfter: c.u32(), Spread: c.u32(), Alternate: c.str8(), Text: c.str8()}
	return g, c.end()
}

// maxText bounds the two texts of a GOAWAY, which together must stay under maxControl.
const maxText = 200

func appendStr8(dst []byte, s string) []byte { return append(append(dst, byte(len(s))), s...) }

func appendStr16(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// appendTLV appends type u8, length u16, value.
func appendTLV(dst []byte, t uint8, v []byte) []byte {
	return append(binary.BigEndian.AppendUint16(append(dst, t), uint16(len(v))), v...)
}

// cursor reads a body from front to back. After the first short read everything is
// zero and bad stays set, so a parser checks once, at its end.
type cursor struct {
	b   []byte
	bad bool
}

var errTruncated = fmt.Errorf("%w: the body ends too soon", ErrMalformed)

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() uint8 {
	if v := c.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if v := c.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (c *cursor) str8() string  { return string(c.take(int(c.u8()))) }
func (c *cursor) str16() string { return string(c.take(int(c.u16()))) }

// method8 is str8 without an allocation for the usual methods.
func (c *cursor) method8() string {
	switch v := c.take(int(c.u8())); string(v) {
	case "GET":
		return "GET"
	case "PUT":
		return "PUT"
	case "POST":
		return "POST"
	default:
		return string(v)
	}
}

// tlvs reads the rest of the body as TLVs; f may be nil.
func (c *cursor) tlvs(f func(t uint8, v []byte)) {
	for len(c.b) > 0 && !c.bad {
		t := c.u8()
		if v := c.take(int(c.u16())); !c.bad && f != nil {
			f(t, v)
		}
	}
}

func (c *cursor) err() error {
	if c.bad {
		return errTruncated
	}
	return nil
}

// end is err for a body that must be used up.
func (c *cursor) end() error {
	if !c.bad && len(c.b) > 0 {
		return fmt.Errorf("%w: %d bytes after the last part", ErrMalformed, len(c.b))
	}
	return c.err()
}
