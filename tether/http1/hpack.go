//go:build !no_http2

package http1

import (
	"errors"
	"net/textproto"
	"strings"
	"sync"
)

// HPACK (RFC 7541). x/net's hpack would be 33 KB more on MIPS, and kilobytes for each
// connection: it keeps two maps for every table, which only an encoder needs. The test
// compares with it. Field names come out in http.Header's form, known to be good or bad,
// so a field that is repeated on every request costs no allocation and no second look.

// hpackTableSize bounds the dynamic table in the bytes of RFC 7541 §4.1: HTTP/2's default.
const hpackTableSize = 4096

const fieldOverhead = 32 // bytes that count for each field beside name and value (RFC 7541 §4.1)

var errHPACK = errors.New("malformed header block")

// hpackField is a field of a request. Names of pseudo-header fields keep their colon.
type hpackField struct {
	name, value string

	badName, badValue bool // by RFC 9113 §8.2.1
}

func (f *hpackField) size() int { return len(f.name) + len(f.value) + fieldOverhead }

// newField makes a field of a name as it was sent.
func newField(name string) hpackField {
	f := hpackField{name: name}
	if strings.HasPrefix(name, ":") {
		return f
	}
	f.badName = !isToken(name)
	for i := range len(name) {
		f.badName = f.badName || 'A' <= name[i] && name[i] <= 'Z'
	}
	if !f.badName {
		f.name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return f
}

// goodValue: no control characters, no blanks at the ends (RFC 9113 §8.2.1).
func goodValue(v string) bool {
	return isValue(v) && (v == "" || v[0] > ' ' && v[len(v)-1] > ' ')
}

// hpackDecoder is what one connection remembers. The zero value is ready.
type hpackDecoder struct {
	table []hpackField // oldest first
	size  int          // of table
	less  int          // hpackTableSize less what the client chose
}

// decode hands every field of a whole header block to emit. After an error the
// connection cannot go on (RFC 9113 §4.3).
func (d *hpackDecoder) decode(b []byte, emit func(*hpackField)) error {
	begun := false
	for len(b) > 0 {
		var f hpackField
		var i int
		var ok bool
		bits, indexed := uint(4), false
		switch c := b[0]; {
		case c >= 0x80: // §6.1
			if i, b, ok = hpackInt(b, 7); ok {
				f, ok = d.at(i)
			}
			if !ok {
				return errHPACK
			}
			begun = true
			emit(&f)
			continue
		case c >= 0x40: // §6.2.1
			bits, indexed = 6, true
		case c >= 0x20: // §6.3, only before the first field (§4.2)
			if i, b, ok = hpackInt(b, 5); !ok || i > hpackTableSize || begun {
				return errHPACK
			}
			d.less = hpackTableSize - i
			d.evict(0)
			continue
		}
		begun = true
		if i, b, ok = hpackInt(b, bits); !ok {
			return errHPACK
		}
		if i == 0 {
			var name string
			if name, b, ok = hpackString(b); ok {
				f = newField(name)
			}
		} else {
			f, ok = d.at(i)
		}
		if !ok {
			return errHPACK
		}
		if f.value, b, ok = hpackString(b); !ok {
			return errHPACK
		}
		f.badValue = !goodValue(f.value)
		if indexed {
			d.add(f)
		}
		emit(&f)
	}
	return nil
}

// at finds a field by its index (RFC 7541 §2.3.3).
func (d *hpackDecoder) at(i int) (f hpackField, ok bool) {
	switch {
	case i <= 0:
		return f, false
	case i < len(hpackStatic):
		return hpackField{name: hpackStatic[i][0], value: hpackStatic[i][1]}, true
	}
	if i -= len(hpackStatic); i >= len(d.table) {
		return f, false
	}
	return d.table[len(d.table)-1-i], true
}

func (d *hpackDecoder) add(f hpackField) {
	n := f.size()
	d.evict(n)
	if n <= hpackTableSize-d.less { // a larger one leaves the table empty (RFC 7541 §4.4)
		d.table = append(d.table, f)
		d.size += n
	}
}

// evict makes room for n bytes.
func (d *hpackDecoder) evict(n int) {
	out := 0
	for ; out < len(d.table) && d.size+n > hpackTableSize-d.less; out++ {
		d.size -= d.table[out].size()
		d.table[out] = hpackField{}
	}
	if d.table = d.table[out:]; len(d.table) == 0 {
		d.table = nil
	}
}

// hpackInt reads an integer of a prefix of n bits (RFC 7541 §5.1), at most 2^28.
func hpackInt(b []byte, n uint) (i int, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	most := 1<<n - 1
	if i = int(b[0]) & most; i < most {
		return i, b[1:], true
	}
	for k, c := range b[1:] {
		if k == 4 {
			break
		}
		if i += int(c&0x7f) << (7 * k); c < 0x80 {
			return i, b[k+2:], true
		}
	}
	return 0, nil, false
}

// hpackString reads a string literal (RFC 7541 §5.2). A Huffman code grows it by no more
// than 8/5.
func hpackString(b []byte) (s string, rest []byte, ok bool) {
	coded := len(b) > 0 && b[0] >= 0x80
	n, b, ok := hpackInt(b, 7)
	if !ok || n > len(b) {
		return "", nil, false
	}
	if !coded {
		return string(b[:n]), b[n:], true
	}
	s, ok = huffman(b[:n])
	return s, b[n:], ok
}

// huffman decodes RFC 7541 §5.2. The code is canonical: codes of one length follow each
// other in the order of huffmanOrder, so their number is all there is to know.
func huffman(b []byte) (string, bool) {
	out := make([]byte, 0, len(b)*8/5)
	code, first, index, n := 0, 0, 0, 0 // of the symbol that has begun; n bits of it
	for _, c := range b {
		for bit := 7; bit >= 0; bit-- {
			code = code<<1 | int(c>>bit)&1
			if n++; n == len(huffmanCount) {
				return "", false
			}
			count := int(huffmanCount[n])
			if code-first < count {
				out = append(out, huffmanOrder[index+code-first])
				code, first, index, n = 0, 0, 0, 0
				continue
			}
			index += count
			first = (first + count) << 1
		}
	}
	return string(out), n < 8 && code == 1<<n-1 // what is left over are bits of EOS
}

// huffmanCount is how many symbols have a code of so many bits (RFC 7541, Appendix B).
var huffmanCount = [31]byte{5: 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 3}

const huffmanOrder = "012aceiost %-./3456789=A_bdfghlmnpru" +
	":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;" +
	"XZ!\"()?'+|#>\x00$@[]~^}<`{\\\xc3\xd0\x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1" +
	"\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8" +
	"\xe9\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef\x09\x8e\x90\x91\x94\x9f" +
	"\xab\xce\xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5" +
	"\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f\xdc" +
	"\xf9\x0a\x0d\x16"

// Answers are encoded without a dynamic table: nothing to keep for a connection, no order
// to keep between answers, and secrets cannot be probed through it (RFC 7541 §7.1).

// hpackNoTable says so to the client, at the head of the first block (RFC 7541 §4.2).
const hpackNoTable = 0x20

// appendHPACKStatus writes :status.
func appendHPACKStatus(b []byte, status int) []byte {
	for i := hpackStatus; i < hpackStatus+7; i++ {
		if int(hpackStatic[i][1][0]-'0')*100+int(hpackStatic[i][1][1]-'0')*10+int(hpackStatic[i][1][2]-'0') == status {
			return append(b, 0x80|byte(i))
		}
	}
	return append(b, hpackStatus, 3, byte('0'+status/100), byte('0'+status/10%10), byte('0'+status%10))
}

// appendHPACK writes a field with a name in http.Header's form, or leaves it out if it
// could not be read back as it is.
func appendHPACK(b []byte, name, value string) []byte {
	if value = strings.Trim(value, " \t"); !isToken(name) || !isValue(value) {
		return b
	}
	hpackNamesOnce.Do(makeHPACKNames)
	if i, ok := hpackNames[name]; ok {
		b = appendHPACKInt(b, 0, 4, int(i))
	} else {
		b = appendHPACKInt(append(b, 0), 0, 7, len(name))
		for i := range len(name) {
			c := name[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			b = append(b, c)
		}
	}
	return append(appendHPACKInt(b, 0, 7, len(value)), value...)
}

func appendHPACKInt(b []byte, first byte, n uint, i int) []byte {
	most := 1<<n - 1
	if i < most {
		return append(b, first|byte(i))
	}
	b = append(b, first|byte(most))
	for i -= most; i >= 0x80; i >>= 7 {
		b = append(b, 0x80|byte(i))
	}
	return append(b, byte(i))
}

// hpackNames finds a name in the static table.
var (
	hpackNames     map[string]byte
	hpackNamesOnce sync.Once
)

func makeHPACKNames() {
	hpackNames = make(map[string]byte, len(hpackStatic))
	for i := len(hpackStatic) - 1; i > hpackStatus; i-- {
		hpackNames[hpackStatic[i][0]] = byte(i)
	}
}

const hpackStatus = 8 // the first :status in hpackStatic

// hpackStatic is the table of RFC 7541, Appendix A.
var hpackStatic = [62][2]string{
	{}, {":authority"}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"}, {":scheme", "http"}, {":scheme", "https"},
	{":status", "200"}, {":status", "204"}, {":status", "206"}, {":status", "304"}, {":status", "400"}, {":status", "404"}, {":status", "500"},
	{"Accept-Charset"}, {"Accept-Encoding", "gzip, deflate"}, {"Accept-Language"}, {"Accept-Ranges"}, {"Accept"}, {"Access-Control-Allow-Origin"},
	{"Age"}, {"Allow"}, {"Authorization"}, {"Cache-Control"}, {"Content-Disposition"}, {"Content-Encoding"}, {"Content-Language"}, {"Content-Length"},
	{"Content-Location"}, {"Content-Range"}, {"Content-Type"}, {"Cookie"}, {"Date"}, {"Etag"}, {"Expect"}, {"Expires"}, {"From"}, {"Host"}, {"If-Match"},
	{"If-Modified-Since"}, {"If-None-Match"}, {"If-Range"}, {"If-Unmodified-Since"}, {"Last-Modified"}, {"Link"}, {"Location"}, {"Max-Forwards"},
	{"Proxy-Authenticate"}, {"Proxy-Authorization"}, {"Range"}, {"Referer"}, {"Refresh"}, {"Retry-After"}, {"Server"}, {"Set-Cookie"},
	{"Strict-Transport-Security"}, {"Transfer-Encoding"}, {"User-Agent"}, {"Vary"}, {"Via"}, {"Www-Authenticate"},
}
