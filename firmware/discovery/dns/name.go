package dns

import "encoding/binary"

const (
	maxLabel    = 63      // bytes (RFC 1035 §2.3.4)
	maxName     = 255     // bytes on the wire, with the empty label at the end
	maxText     = 255     // bytes of a character string
	maxPointer  = 1 << 14 // what a pointer can reach
	pointerBits = 0xC0
)

// writer appends to a message. The first error is kept; what is written after it is lost.
type writer struct {
	b    []byte
	seen map[string]int // where a name, or the end of one, is; nil: no pointers
	err  error
}

func (w *writer) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) uint16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }

// name writes a name, with a pointer to what stands in the message already if compress.
func (w *writer) name(s string, compress bool) {
	start := len(w.b)
	for s != "." {
		at, ok := w.seen[s]
		if ok && compress {
			w.uint16(pointerBits<<8 | uint16(at))
			return
		}
		if !ok && w.seen != nil && len(w.b) < maxPointer {
			w.seen[s] = len(w.b)
		}
		length := len(w.b)
		w.b = append(w.b, 0)
		i := 0
		for i < len(s) && s[i] != '.' {
			var c byte
			c, i = unescape(s, i)
			w.b = append(w.b, c)
		}
		n := len(w.b) - length - 1
		if i == len(s) || n == 0 || n > maxLabel || len(w.b)-start >= maxName {
			w.fail(ErrName) // no dot at the end, among others
			return
		}
		w.b[length] = byte(n)
		if s = s[i+1:]; s == "" {
			break
		}
	}
	w.b = append(w.b, 0)
}

// text writes a character string.
func (w *writer) text(s string) {
	length := len(w.b)
	w.b = append(w.b, 0)
	for i := 0; i < len(s); {
		var c byte
		c, i = unescape(s, i)
		w.b = append(w.b, c)
	}
	n := len(w.b) - length - 1
	if n > maxText {
		w.fail(ErrRecord)
	}
	w.b[length] = byte(n)
}

// unescape reads the byte at i of s and returns where the next one begins.
func unescape(s string, i int) (byte, int) {
	if s[i] != '\\' || i+1 == len(s) {
		return s[i], i + 1
	}
	if i+3 < len(s) && digit(s[i+1]) && digit(s[i+2]) && digit(s[i+3]) {
		return (s[i+1]-'0')*100 + (s[i+2]-'0')*10 + s[i+3] - '0', i + 4
	}
	return s[i+1], i + 2
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// reader reads msg from off to end. Only pointers of names lead out of this part, backwards.
// After the first error it gives zeros.
type reader struct {
	msg      []byte
	off, end int
	err      error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// bytes returns a copy of the next n bytes, or nil.
func (r *reader) bytes(n int) []byte {
	if r.err == nil && r.end-r.off < n {
		r.err = ErrShort
	}
	if r.err != nil {
		return nil
	}
	r.off += n
	return append([]byte(nil), r.msg[r.off-n:r.off]...)
}

func (r *reader) uint16() uint16 {
	if r.err == nil && r.end-r.off < 2 {
		r.err = ErrShort
	}
	if r.err != nil {
		return 0
	}
	r.off += 2
	return binary.BigEndian.Uint16(r.msg[r.off-2:])
}

func (r *reader) name() string {
	if r.err != nil {
		return ""
	}
	name, off, err := unpackName(r.msg[:r.end], r.off)
	r.off, r.err = off, err
	return name
}

func (r *reader) text() string {
	if r.off >= r.end {
		r.fail(ErrShort)
		return ""
	}
	r.off++
	s := r.bytes(int(r.msg[r.off-1]))
	out := make([]byte, 0, len(s))
	for _, c := range s {
		out = escape(out, c, false)
	}
	return string(out)
}

// UnpackDomainName reads the name at off, and returns where the next field begins.
func UnpackDomainName(msg []byte, off int) (string, int, error) { return unpackName(msg, off) }

// unpackName follows pointers only backwards, each further than the one before, so that it
// ends whatever msg is (RFC 1035 §4.1.4: a prior occurrence).
func unpackName(msg []byte, off int) (string, int, error) {
	var out []byte
	wire, next, limit := 1, -1, off
	for {
		if off >= len(msg) {
			return "", len(msg), ErrShort
		}
		n := int(msg[off])
		off++
		switch {
		case n == 0:
			if next < 0 {
				next = off
			}
			if out == nil {
				return ".", next, nil
			}
			return string(out), next, nil
		case n <= maxLabel:
			if len(msg)-off < n {
				return "", len(msg), ErrShort
			}
			if wire += 1 + n; wire > maxName {
				return "", len(msg), ErrName
			}
			for _, c := range msg[off : off+n] {
				out = escape(out, c, true)
			}
			out = append(out, '.')
			off += n
		case n&pointerBits == pointerBits:
			if off >= len(msg) {
				return "", len(msg), ErrShort
			}
			to := (n&^pointerBits)<<8 | int(msg[off])
			if next < 0 {
				next = off + 1
			}
			if to >= limit {
				return "", len(msg), ErrName
			}
			off, limit = to, to
		default: // reserved
			return "", len(msg), ErrName
		}
	}
}

// escape appends a byte in presentation format.
func escape(out []byte, c byte, inName bool) []byte {
	switch {
	case c < ' ' || c > '~':
		return append(out, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
	case c == '"' || c == '\\':
		return append(out, '\\', c)
	}
	if inName {
		switch c {
		case '.', ' ', '\'', '@', ';', '(', ')':
			return append(out, '\\', c)
		}
	}
	return append(out, c)
}
