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
// never changes: a validation makes a new one with the same body. There may be very many, so
// all its strings are one.
type entry struct {
	next         *entry // of the same target
	newer, older *entry // by use
	site         *site
	vary         *variant

	text string // fields (see appendField), target, host and owner, one after the other
	body []byte

	born     time.Duration // on the cache's clock: age is now - born
	lifetime time.Duration
	swr, sie uint32 // RFC 5861, in seconds

	uris, hosts, owners uint16 // bytes of text

	status  int16
	fields  uint8 // in text
	flags   entryFlags
	unasked uint8  // so many requests are not asked to validate e, see recorder.unasked
	hits    uint32 // Cache.mu guards it, as the links
}

// maxPart bounds the target, the host and the owner, in bytes each.
const maxPart = 0xffff

// block are the fields.
func (e *entry) block() string { return e.text[:len(e.text)-int(e.uris)-int(e.hosts)-int(e.owners)] }

// uri is the target in origin-form. Like host and principal it is a part of text: who keeps it
// for longer than e makes a copy.
func (e *entry) uri() string {
	end := len(e.text) - int(e.hosts) - int(e.owners)
	return e.text[end-int(e.uris) : end]
}

func (e *entry) host() string {
	end := len(e.text) - int(e.owners)
	return e.text[end-int(e.hosts) : end]
}

// principal is whose it is; empty: everybody's.
func (e *entry) principal() string { return e.text[len(e.text)-int(e.owners):] }

// while is how long after its lifetime e may be used while it is validated (RFC 5861 §3), and
// failing when the origin fails (§4).
func (e *entry) while() time.Duration   { return time.Duration(e.swr) * time.Second }
func (e *entry) failing() time.Duration { return time.Duration(e.sie) * time.Second }

// seconds are those of d, as swr and sie hold them.
func seconds(d time.Duration) uint32 { return uint32(min(d/time.Second, httpcache.MaxDelta)) }

type entryFlags uint8

const (
	neverStale entryFlags = 1 << iota // must-revalidate and its kin
	askFirst                          // no-cache
	madeTag                           // the ETag is ours: the origin does not know it
	hasType                           // there is a Content-Type
	hasTag                            // there is an Etag
	hasDate                           // there is a Last-Modified that is a date
	told                              // its CDN-Cache-Control is ours
	asLines                           // there is a Date, and every field may go out as it stands
)

// variant is what an answer depends on in the request.
type variant struct {
	names    []string
	key      string
	language string // of the answer, lower case, if it depends on Accept-Language alone
}

// entryOverhead is what an entry costs besides its text and body: the struct, its place
// in the map of targets, and what the allocator rounds up.
const entryOverhead = int64(unsafe.Sizeof(entry{})) + 64

// cost is the memory of e in bytes.
func (e *entry) cost() int64 {
	n := entryOverhead + int64(len(e.text)+cap(e.body))
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
	return e.host() == host && (e.owners == 0 || e.principal() == principal) && (e.vary == nil || e.vary.fits(h))
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
	return validators(e.value("Etag"), e.value("Last-Modified"), e.value("Date"))
}

func validators(tag, modified, date string) httpcache.Validators {
	v, now := httpcache.Validators{ETag: tag}, time.Now()
	v.LastModified, _ = httpcache.ParseDate(modified, now)
	v.Date, _ = httpcache.ParseDate(date, now)
	return v
}

// A block is all fields one after the other: a byte, the length of the value in two, the name,
// the value. The byte is the length of the name, or, from knownField on, stands for a name that
// is left out. Names in canonical form, lines of one name together.
const (
	fieldHead  = 3
	knownField = 0x80
)

// knownFields are names that many answers have. What is kept on flash refers to them by their
// order: only add, at the end.
var knownFields = [...]string{
	"Cache-Control", "Content-Type", "Content-Length", "Date", "Etag", "Last-Modified", "Vary", "Via", "Cdn-Cache-Control", "Expires",
	"Content-Encoding", "Content-Language", "Content-Location", "Content-Disposition", "Location", "Server", "Link", "Allow", "Accept-Ranges",
	"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers", "X-Content-Type-Options",
	"X-Frame-Options", "Content-Security-Policy", "Referrer-Policy", "Strict-Transport-Security", "X-Powered-By",
}

func appendField(dst []byte, name, value string) ([]byte, bool) {
	if len(name) >= knownField || len(value) > 0xffff {
		return dst, false
	}
	code := byte(len(name))
	for i, k := range knownFields {
		if k == name {
			code, name = knownField+byte(i), ""
			break
		}
	}
	dst = append(dst, code, byte(len(value)>>8), byte(len(value)))
	return append(append(dst, name...), value...), true
}

// cutField takes the first field off a block.
func cutField(b string) (name, value, rest string) {
	n := fieldHead
	if i := int(b[0]) - knownField; i >= 0 {
		name = knownFields[i]
	} else {
		n += int(b[0])
		name = b[fieldHead:n]
	}
	m := n + int(b[1])<<8 + int(b[2])
	return name, b[n:m], b[m:]
}

// wholeField reports whether a block begins with a field.
func wholeField(b string) bool {
	if len(b) < fieldHead || b[0] == 0 || int(b[0]) >= knownField+len(knownFields) {
		return false
	}
	n := fieldHead + int(b[1])<<8 + int(b[2])
	if b[0] < knownField {
		n += int(b[0])
	}
	return len(b) >= n
}

// header makes a map of the block, without Content-Length.
func (e *entry) header() http.Header {
	h := make(http.Header, e.fields)
	for b := e.block(); b != ""; {
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

// pack makes the block of an answer's fields, to which seal adds the rest. ok is false if they
// are too many or too long.
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
	}
	e.fields = uint8(fields)
	return block, true
}

// maxFields bounds the lines of a stored answer's head.
const maxFields = 200

// seal completes e with its target, its host, its owner, its body and the length of that.
func (e *entry) seal(block []byte, uri, host, owner string, body []byte) {
	if !bodyless(int(e.status)) {
		block, _ = appendField(block, "Content-Length", strconv.Itoa(len(body)))
		e.fields++
	}
	e.uris, e.hosts, e.owners = uint16(len(uri)), uint16(len(host)), uint16(len(owner))
	text := make([]byte, 0, len(block)+len(uri)+len(host)+len(owner))
	text = append(append(append(append(text, block...), uri...), host...), owner...)
	e.text, e.body = string(text), body
	e.look()
}

// look notes what there is in the block.
func (e *entry) look() {
	e.flags &^= hasType | hasTag | hasDate | asLines
	plain, dated := true, false
	for b := e.block(); b != ""; {
		var name, value string
		name, value, b = cutField(b)
		plain = plain && plainField(name, value)
		switch name {
		case "Date":
			dated = true
		case "Content-Type":
			e.flags |= hasType
		case "Etag":
			e.flags |= hasTag
		case "Last-Modified":
			if _, ok := httpcache.ParseDate(value, time.Now()); ok {
				e.flags |= hasDate
			}
		}
	}
	if plain && dated {
		e.flags |= asLines
	}
}

// plainField reports whether a field reads back as it is written (RFC 9110 §5.1, §5.5): what an
// embedded service sets may not.
func plainField(name, value string) bool {
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return name != ""
}

// value returns the first line of a field, as part of the block.
func (e *entry) value(want string) string {
	for b := e.block(); b != ""; {
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
