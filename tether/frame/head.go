package frame

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Flags of REQUEST and RESPONSE.
const (
	FlagEnd     uint8 = 1 // no body follows
	FlagUpgrade uint8 = 2 // REQUEST only: the client asks for a byte tunnel (RFC 9110 §7.8)
)

// Request is the body of a REQUEST: the head of an HTTP request (SPEC.md §5.1).
type Request struct {
	Flags     uint8
	Target    string // device id on a link between relay nodes; empty on a device's tether
	Method    string // a token (RFC 9110 §9.1)
	Path      string // path and query as the device shall see them, byte for byte
	Authority string // host and port the client asked for (RFC 9110 §7.2)
	Client    string // the client's address as the relay knows it
	Timeout   uint32 // milliseconds to the response head; 0: the device's own limit
	Header    map[string][]string
}

// Response is the body of a RESPONSE: the head of an HTTP response (SPEC.md §5.2).
type Response struct {
	Flags  uint8
	Status uint16 // 100..999
	Header map[string][]string
}

// AppendRequest appends r on stream. It fails with ErrHead, and dst unchanged, when the
// head is over a limit or holds what must not travel.
func AppendRequest(dst []byte, stream uint32, r *Request) ([]byte, error) {
	start := len(dst)
	if len(r.Target) > 0xff || len(r.Method) > 0xff || len(r.Path) > 0xffff || len(r.Authority) > 0xffff || len(r.Client) > 0xffff {
		return dst, fmt.Errorf("%w: method, path or authority too long", ErrHead)
	}
	if err := r.check(); err != nil {
		return dst, err
	}
	b := append(begin(dst, TypeRequest, stream), r.Flags)
	b = appendStr8(b, r.Target)
	b = appendStr8(b, r.Method)
	b = appendStr16(b, r.Path)
	b = appendStr16(b, r.Authority)
	b = appendStr16(b, r.Client)
	b = binary.BigEndian.AppendUint32(b, r.Timeout)
	return endHead(dst, b, start, r.Header)
}

// AppendResponse appends r on stream; errors as AppendRequest.
func AppendResponse(dst []byte, stream uint32, r *Response) ([]byte, error) {
	start := len(dst)
	if err := r.check(); err != nil {
		return dst, err
	}
	b := append(begin(dst, TypeResponse, stream), r.Flags)
	b = binary.BigEndian.AppendUint16(b, r.Status)
	return endHead(dst, b, start, r.Header)
}

// AppendTrailers appends trailer fields, which end this direction; errors as AppendRequest.
func AppendTrailers(dst []byte, stream uint32, h map[string][]string) ([]byte, error) {
	return endHead(dst, begin(dst, TypeTrailers, stream), len(dst), h)
}

// endHead appends the fields and closes the frame that began at start; dst is the slice
// to give back on error.
func endHead(dst, b []byte, start int, h map[string][]string) ([]byte, error) {
	b, err := appendFields(b, h)
	if err != nil {
		return dst, err
	}
	if n := len(b) - start - HeaderSize; n > MaxHead {
		return dst, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrHead, n, MaxHead)
	}
	return finish(b, start), nil
}

// ParseRequest reads the body of a REQUEST.
func ParseRequest(body []byte) (Request, error) {
	c := cursor{b: body}
	r := Request{Flags: c.u8(), Target: c.str8(), Method: c.method8(), Path: c.str16(), Authority: c.str16(), Client: c.str16(), Timeout: c.u32()}
	h, err := c.fields()
	if err != nil {
		return Request{}, err
	}
	r.Header = h
	return r, r.check()
}

// ParseResponse reads the body of a RESPONSE.
func ParseResponse(body []byte) (Response, error) {
	c := cursor{b: body}
	r := Response{Flags: c.u8(), Status: c.u16()}
	h, err := c.fields()
	if err != nil {
		return Response{}, err
	}
	r.Header = h
	return r, r.check()
}

// ParseTrailers reads the body of a TRAILERS.
func ParseTrailers(body []byte) (map[string][]string, error) {
	c := cursor{b: body}
	return c.fields()
}

// check refuses what could be read differently by the next HTTP parser on the way.
func (r *Request) check() error {
	switch {
	case !isToken(r.Method):
		return fmt.Errorf("%w: method %.40q is not a token", ErrHead, r.Method)
	case r.Path == "" || (r.Path[0] != '/' && r.Path != "*"):
		return fmt.Errorf("%w: path %.40q does not begin with a slash", ErrHead, r.Path)
	case !isVisible(r.Path):
		return fmt.Errorf("%w: path %.40q holds a space or control character", ErrHead, r.Path)
	case !isVisible(r.Authority):
		return fmt.Errorf("%w: authority %.40q holds a space or control character", ErrHead, r.Authority)
	case !isVisible(r.Client):
		return fmt.Errorf("%w: client %.40q holds a space or control character", ErrHead, r.Client)
	}
	return nil
}

func (r *Response) check() error {
	if r.Status < 100 || r.Status > 999 {
		return fmt.Errorf("%w: status %d is not of three digits", ErrHead, r.Status)
	}
	if r.Flags&FlagEnd != 0 && r.Status < 200 {
		return fmt.Errorf("%w: status %d cannot end the answer", ErrHead, r.Status)
	}
	return nil
}

// hopByHop are the names that never cross the tether (RFC 9110 §7.6.1), and Host, which
// is Request.Authority: two of them could be read differently by two servers. TE travels
// only as "trailers"; Upgrade travels because a 101 needs it.
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Transfer-Encoding": true,
	"Proxy-Authenticate": true, "Proxy-Authorization": true, "Host": true,
}

// IsHopByHop reports whether a canonical field name must not cross the tether.
func IsHopByHop(name string) bool { return hopByHop[name] }

// appendFields writes the count, then each name and value. Hop-by-hop names are left out.
func appendFields(dst []byte, h map[string][]string) ([]byte, error) {
	at := len(dst)
	dst = append(dst, 0, 0)
	n := 0
	for name, values := range h {
		if hopByHop[name] {
			continue
		}
		if !isCanonical(name) {
			return dst, fmt.Errorf("%w: field name %.40q", ErrHead, name)
		}
		for _, v := range values {
			if len(v) > 0xffff {
				return dst, fmt.Errorf("%w: field %s of %d bytes", ErrHead, name, len(v))
			}
			if !isValue(v) {
				return dst, fmt.Errorf("%w: field %s holds a control character", ErrHead, name)
			}
			dst = appendStr8(dst, name)
			dst = appendStr16(dst, v)
			n++
		}
	}
	if n > MaxFields {
		return dst, fmt.Errorf("%w: %d fields, at most %d are allowed", ErrHead, n, MaxFields)
	}
	binary.BigEndian.PutUint16(dst[at:], uint16(n))
	return dst, nil
}

// fields reads the rest of a head.
func (c *cursor) fields() (map[string][]string, error) {
	n := int(c.u16())
	if c.bad {
		return nil, c.err()
	}
	if n > MaxFields {
		return nil, fmt.Errorf("%w: %d fields, at most %d are allowed", ErrHead, n, MaxFields)
	}
	text := string(c.b) // values are slices of it: a head costs a handful of allocations
	h := make(map[string][]string, n)
	values := make([]string, n) // backing of the one-value slices
	pos := 0
	next := func(size int) (string, bool) {
		if size > len(text)-pos {
			return "", false
		}
		s := text[pos : pos+size]
		pos += size
		return s, true
	}
	for i := range n {
		l, ok := next(1)
		if !ok {
			return nil, errTruncated
		}
		name, ok := next(int(l[0]))
		if !ok {
			return nil, errTruncated
		}
		l, ok = next(2)
		if !ok {
			return nil, errTruncated
		}
		value, ok := next(int(l[0])<<8 | int(l[1]))
		if !ok {
			return nil, errTruncated
		}
		if !isCanonical(name) || hopByHop[name] {
			return nil, fmt.Errorf("%w: field name %.40q", ErrHead, name)
		}
		if !isValue(value) {
			return nil, fmt.Errorf("%w: field %s holds a control character", ErrHead, name)
		}
		if old, ok := h[name]; ok {
			h[name] = append(old, value)
			continue
		}
		values[i] = value
		h[name] = values[i : i+1 : i+1]
	}
	if pos != len(text) {
		return nil, fmt.Errorf("%w: %d bytes after the last field", ErrMalformed, len(text)-pos)
	}
	return h, nil
}

// isToken follows RFC 9110 §5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenChar[s[i]] {
			return false
		}
	}
	return s != ""
}

// isCanonical accepts tokens written the way net/http writes field names: a capital at
// the start and after each hyphen, small letters elsewhere. One spelling means that no
// two fields differ by case alone.
func isCanonical(s string) bool {
	upper := true
	for i := range len(s) {
		c := s[i]
		if !tokenChar[c] || upper && 'a' <= c && c <= 'z' || !upper && 'A' <= c && c <= 'Z' {
			return false
		}
		upper = c == '-'
	}
	return s != ""
}

// isValue follows RFC 9110 §5.5: no CR, LF, NUL or other control character but tab, and
// no white space at either end.
func isValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return s == "" || !isBlank(s[0]) && !isBlank(s[len(s)-1])
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// isVisible accepts no space and no control character; bytes from 0x80 on pass.
func isVisible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

var tokenChar = func() (t [256]bool) {
	for c := range t {
		t[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()
