package origin

import (
	"bytes"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
)

var errBufferFull = errors.New("buffer full")

// head is what the head of one answer says.
type head struct {
	status   int
	minor    int // of HTTP/1.x
	fields   []Field
	length   int64 // Content-Length, -1 none
	chunked  bool
	close    bool // the connection ends with this answer
	upgrade  string
	idleSecs int // Keep-Alive: timeout=, -1 none
}

// Character classes of RFC 9110 §5.6.2 (tchar) and §5.5 (field-vchar, SP, HTAB).
const (
	isToken = 1 << iota
	isValue
	isTarget // may stand in a request target: no control byte and no space
)

var class = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c == '\t':
			t[c] = isValue
		case c == ' ':
			t[c] = isValue
		case c > ' ' && c != 0x7f:
			t[c] = isValue | isTarget
		}
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
			c < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 {
			t[c] |= isToken
		}
	}
	return t
}()

// allOf reports whether every byte of s is of the class. "" is.
func allOf(s string, want uint8) bool {
	for i := range len(s) {
		if class[s[i]]&want == 0 {
			return false
		}
	}
	return true
}

// ValidTarget reports whether a request target may be sent as it is: not empty and no
// control byte or space in it (RFC 9112 §3.2).
func ValidTarget(s string) bool { return s != "" && allOf(s, isTarget) }

// endOfHead returns the length of the head in b including the empty line, or 0. from is
// how much of b was searched before.
func endOfHead(b []byte, from int) int {
	from = max(from-3, 0)
	if i := bytes.Index(b[from:], []byte("\r\n\r\n")); i >= 0 {
		return from + i + 4
	}
	return 0
}

// parseHead reads the head of one answer, which ends with an empty line. It refuses
// whatever two readers could understand differently (RFC 9112 §2.2, §5, §6.3).
// The fields are appended to h.fields and do not alias b.
func (h *head) parseHead(b []byte) error {
	s := string(b)
	line, rest, ok := strings.Cut(s, "\r\n")
	if !ok || len(line) < len("HTTP/1.1 200") || line[:7] != "HTTP/1." || line[7] < '0' || line[7] > '9' || line[8] != ' ' {
		return fmt.Errorf("%w: status line %.40q", ErrBadAnswer, line)
	}
	h.minor = int(line[7] - '0')
	for _, c := range []byte(line[9:12]) {
		if c < '0' || c > '9' {
			return fmt.Errorf("%w: status line %.40q", ErrBadAnswer, line)
		}
		h.status = 10*h.status + int(c-'0')
	}
	if h.status < 100 || len(line) > 12 && line[12] != ' ' || !allOf(line[12:], isValue) {
		return fmt.Errorf("%w: status line %.40q", ErrBadAnswer, line)
	}
	h.length, h.idleSecs = -1, -1
	h.close = h.minor == 0
	var options []string // of Connection, beyond the usual three
	transferEncoding := false
	for {
		line, rest, ok = strings.Cut(rest, "\r\n")
		if !ok {
			return fmt.Errorf("%w: head without end", ErrBadAnswer)
		}
		if line == "" {
			break
		}
		f, err := parseField(line)
		if err != nil {
			return err
		}
		switch f.Name {
		case "Content-Length":
			n, err := parseLength(f.Value)
			if err != nil {
				return err
			}
			if h.length >= 0 {
				return fmt.Errorf("%w: repeated Content-Length (RFC 9112 §6.3)", ErrBadAnswer)
			}
			h.length = n
		case "Transfer-Encoding":
			if transferEncoding || !strings.EqualFold(f.Value, "chunked") {
				return fmt.Errorf("%w: Transfer-Encoding %.40q, only chunked is known (RFC 9112 §6.1)", ErrBadAnswer, f.Value)
			}
			transferEncoding = true
			continue
		case "Connection":
			options = h.connection(f.Value, options)
			continue
		case "Upgrade":
			h.upgrade = f.Value
			continue
		case "Keep-Alive":
			h.keepAlive(f.Value)
			continue
		case "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authentication-Info", "Te":
			continue
		}
		h.fields = append(h.fields, f)
	}
	if rest != "" {
		return fmt.Errorf("%w: bytes behind the head", ErrBadAnswer)
	}
	if transferEncoding {
		if h.length >= 0 {
			return fmt.Errorf("%w: both Transfer-Encoding and Content-Length (RFC 9112 §6.3)", ErrBadAnswer)
		}
		if h.minor == 0 {
			return fmt.Errorf("%w: Transfer-Encoding in HTTP/1.0 (RFC 9112 §6.1)", ErrBadAnswer)
		}
		h.chunked = true
	}
	for _, o := range options {
		h.fields = remove(h.fields, o)
	}
	return nil
}

// parseField reads one field line without its end (RFC 9112 §5).
func parseField(line string) (Field, error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" || !allOf(name, isToken) {
		// Covers a space before the colon (§5.1) and obsolete folding (§5.2) as well.
		return Field{}, fmt.Errorf("%w: field line %.40q", ErrBadAnswer, line)
	}
	if !allOf(value, isValue) {
		return Field{}, fmt.Errorf("%w: control byte in field %.40q", ErrBadAnswer, name)
	}
	return Field{textproto.CanonicalMIMEHeaderKey(name), trim(value)}, nil
}

// trim removes optional white space (RFC 9110 §5.6.3).
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// parseLength reads a Content-Length: digits only, no sign, no list (RFC 9110 §8.6).
func parseLength(s string) (int64, error) {
	const maxDigits = 18 // fits an int64
	if s == "" || len(s) > maxDigits {
		return 0, fmt.Errorf("%w: Content-Length %.40q", ErrBadAnswer, s)
	}
	n := int64(0)
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%w: Content-Length %.40q", ErrBadAnswer, s)
		}
		n = 10*n + int64(c-'0')
	}
	return n, nil
}

// connection reads a Connection field (RFC 9110 §7.6.1) and collects the names of
// fields that end here.
func (h *head) connection(value string, options []string) []string {
	for o := range strings.SplitSeq(value, ",") {
		switch o = trim(o); {
		case o == "":
		case strings.EqualFold(o, "close"):
			h.close = true
		case strings.EqualFold(o, "keep-alive"):
			if h.minor == 0 {
				h.close = false
			}
		case strings.EqualFold(o, "upgrade"):
		default:
			options = append(options, textproto.CanonicalMIMEHeaderKey(o))
		}
	}
	return options
}

// keepAlive reads how long the origin keeps idle connections ("timeout=5, max=100").
func (h *head) keepAlive(value string) {
	for p := range strings.SplitSeq(value, ",") {
		name, secs, _ := strings.Cut(trim(p), "=")
		if !strings.EqualFold(name, "timeout") || len(secs) == 0 || len(secs) > 6 {
			continue
		}
		n := 0
		for _, c := range []byte(secs) {
			if c < '0' || c > '9' {
				return
			}
			n = 10*n + int(c-'0')
		}
		h.idleSecs = n
	}
}

// remove takes all fields of a canonical name out, in place.
func remove(fields []Field, name string) []Field {
	kept := fields[:0]
	for _, f := range fields {
		if f.Name != name {
			kept = append(kept, f)
		}
	}
	return kept
}
