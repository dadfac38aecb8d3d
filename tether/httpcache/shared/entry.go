package shared

import (
	"net/http"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// entry is one stored answer. Except for its links and hits, which Cache.mu guards, it
// never changes: a validation makes a new one with the same body.
type entry struct {
	next         *entry // of the same target
	newer, older *entry // by use
	site         *site

	uri       string
	host      string
	principal string // whose it is; empty: everybody's
	vary      *variant
	block     string // fields, see appendField
	body      []byte
	etag      string // part of block

	born     time.Duration // on the cache's clock: age is now - born
	lifetime time.Duration
	swr, sie time.Duration // RFC 5861
	changed  int64         // Last-Modified, seconds since 1970; 0: none
	date     int64

	status int16
	fields uint8 // in block
	flags  entryFlags
	hits   uint32 // Cache.mu guards it, as the links
}

type entryFlags uint8

const (
	neverStale entryFlags = 1 << iota // must-revalidate and its kin
	askFirst                          // no-cache
	madeTag                           // the ETag is ours: the origin does not know it
	hasType                           // there is a Content-Type
)

// variant is what an answer depends on in the request.
type variant struct {
	names    []string
	key      string
	language string // of the answer, lower case, if it depends on Accept-Language alone
}

// entryOverhead is what an entry costs besides its strings and body: the struct, its place
// in the map of targets, and what the allocator rounds up.
const entryOverhead = int64(unsafe.Sizeof(entry{})) + 64

// cost is the memory of e in bytes.
func (e *entry) cost() int64 {
	n := entryOverhead + int64(len(e.uri)+len(e.host)+len(e.principal)+len(e.block)+cap(e.body))
	if v := e.vary; v != nil {
		n += int64(unsafe.Sizeof(*v)) + int64(len(v.key)+len(v.language))
		for _, name := range v.names {
			n += int64(unsafe.Sizeof(name)) + int64(len(name))
		}
	}
	return n
}

// fits reports whether e may answer a request, its target aside.
func (e *entry) fits(host, principal string, h http.Header) bool {
	return e.host == host && (e.principal == "" || e.principal == principal) && (e.vary == nil || e.vary.fits(h))
}

func (v *variant) fits(h http.Header) bool {
	var buf [256]byte
	key := httpcache.AppendVaryKey(buf[:0], v.names, h)
	if string(key) == v.key {
		return true
	}
	return v.language != "" && httpcache.BestLanguage(h) == v.language
}

func (e *entry) validators() httpcache.Validators {
	v := httpcache.Validators{ETag: e.etag, Date: time.Unix(e.date, 0)}
	if e.changed != 0 {
		v.LastModified = time.Unix(e.changed, 0)
	}
	return v
}

// A block is all fields one after the other: length of the name in one byte, length of the
// value in two, name, value. Names in canonical form, lines of one name together.
const fieldHead = 3

func appendField(dst []byte, name, value string) ([]byte, bool) {
	if len(name) > 0xff || len(value) > 0xffff {
		return dst, false
	}
	dst = append(dst, byte(len(name)), byte(len(value)>>8), byte(len(value)))
	return append(append(dst, name...), value...), true
}

// cutField takes the first field off a block.
func cutField(b string) (name, value, rest string) {
	n := fieldHead + int(b[0])
	m := n + int(b[1])<<8 + int(b[2])
	return b[fieldHead:n], b[n:m], b[m:]
}

// header makes a map of the block, without Content-Length.
func (e *entry) header() http.Header {
	h := make(http.Header, e.fields)
	for b := e.block; b != ""; {
		var name, value string
		name, value, b = cutField(b)
		if name != "Content-Length" {
			h[name] = append(h[name], value)
		}
	}
	return h
}

// bodyless reports whether answers with this status have no body and no length.
func bodyless(status int) bool {
	return status == http.StatusNoContent || status == http.StatusNotModified
}

// pack makes the block of an answer's fields, to which seal adds the length. ok is false if
// they are too many or too long.
func (e *entry) pack(h http.Header, omit []string) (block []byte, ok bool) {
	size := 40 // for the length
	for name, values := range h {
		for _, v := range values {
			size += fieldHead + len(name) + len(v)
		}
	}
	block, ok = make([]byte, 0, size), true
	fields := 0
	for name, values := range h {
		if !httpcache.Stored(name) || has(omit, name) {
			continue
		}
		for _, v := range values {
			block, ok = appendField(block, name, v)
			if fields++; !ok || fields > maxFields {
				return nil, false
			}
		}
		if name == "Content-Type" && len(values) > 0 {
			e.flags |= hasType
		}
	}
	e.fields = uint8(fields)
	return block, true
}

// maxFields bounds the lines of a stored answer's head.
const maxFields = 200

// seal completes e with its body and the length of that.
func (e *entry) seal(block, body []byte) {
	if !bodyless(int(e.status)) {
		block, _ = appendField(block, "Content-Length", strconv.Itoa(len(body)))
		e.fields++
	}
	e.block, e.body = string(block), body
	e.etag = e.value("Etag")
}

// value returns the first line of a field, as part of the block.
func (e *entry) value(want string) string {
	for b := e.block; b != ""; {
		var name, value string
		name, value, b = cutField(b)
		if name == want {
			return value
		}
	}
	return ""
}

func has(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// newVariant notes what an answer depends on; nil: on nothing. ok is false when it fits no
// other request.
func newVariant(answer, request http.Header) (v *variant, ok bool) {
	names, ok := httpcache.VaryNames(answer)
	if !ok || len(names) == 0 {
		return nil, ok
	}
	for i := range names {
		names[i] = strings.Clone(names[i]) // not a part of the answer's whole head
	}
	v = &variant{names: names, key: string(httpcache.AppendVaryKey(nil, names, request))}
	if l := answer["Content-Language"]; len(l) == 1 && len(names) == 1 && names[0] == "Accept-Language" && !strings.Contains(l[0], ",") {
		v.language = strings.ToLower(strings.TrimSpace(l[0]))
	}
	return v, true
}
