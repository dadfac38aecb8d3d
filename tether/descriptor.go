package tether

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of a descriptor. They keep a hostile or broken service from growing the
// gateway, the HELLO frame or the relay's store.
const (
	MaxDescriptor      = 16 << 10 // bytes of JSON
	MaxDescriptorField = 512      // bytes of one known field
	maxDescriptorDepth = 32       // nested arrays and objects
)

// Descriptor is what the maker's REST service says of itself at GET /device.
// Fields that are absent, or of a wrong type, are empty.
type Descriptor struct {
	Name              string // what people call the device
	Manufacturer      string
	Version           string // of the device's software
	Revision          string // of its hardware
	API               string // version or base path of the REST API
	APIAuthPath       string // where the service checks passwords itself
	APIFactoryConnect string // what provisioning calls to join the factory network
	Email             string // the owner's address, unconfirmed

	// Raw is the answer as the service wrote it, byte for byte: unknown fields travel
	// to the relay unmodified. It is shared, not to be written to.
	Raw []byte
	// Warnings says in words what was wrong with known fields, one sentence each.
	Warnings []string
}

// ErrDescriptor is wrapped by every refusal of ParseDescriptor.
var ErrDescriptor = errors.New("device descriptor")

// ParseDescriptor reads the body of GET /device. It fails when the body is not one
// JSON object within the limits; a known field of a wrong type, too long, or given
// twice is dropped with a warning instead, because a device with an odd revision
// number should still be reachable.
func ParseDescriptor(body []byte) (Descriptor, error) {
	if len(body) > MaxDescriptor {
		return Descriptor{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrDescriptor, len(body), MaxDescriptor)
	}
	if !utf8.Valid(body) {
		return Descriptor{}, fmt.Errorf("%w: not UTF-8 (RFC 8259 §8.1)", ErrDescriptor)
	}
	if d := depth(body); d > maxDescriptorDepth {
		return Descriptor{}, fmt.Errorf("%w: nested %d deep, at most %d is allowed", ErrDescriptor, d, maxDescriptorDepth)
	}
	if !json.Valid(body) {
		var v any
		err := json.Unmarshal(body, &v)
		return Descriptor{}, fmt.Errorf("%w: not JSON: %v", ErrDescriptor, err)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return Descriptor{}, fmt.Errorf("%w: the JSON is not an object", ErrDescriptor)
	}
	d := Descriptor{Raw: body}
	known := map[string]*string{
		"name": &d.Name, "manufacturer": &d.Manufacturer, "version": &d.Version, "revision": &d.Revision,
		"api": &d.API, "apiAuthPath": &d.APIAuthPath, "apiFactoryConnect": &d.APIFactoryConnect, "email": &d.Email,
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return Descriptor{}, fmt.Errorf("%w: %v", ErrDescriptor, err)
		}
		key, _ := t.(string)
		var value any
		if err := dec.Decode(&value); err != nil {
			return Descriptor{}, fmt.Errorf("%w: %v", ErrDescriptor, err)
		}
		field := known[key]
		if field == nil {
			continue
		}
		if seen[key] {
			d.warn("field %q is given twice, the first one counts", key)
			continue
		}
		seen[key] = true
		*field = d.text(key, value)
	}
	if d.Email != "" && !isAddress(d.Email) {
		d.warn("field \"email\" is not an e-mail address, it is ignored")
		d.Email = ""
	}
	if d.Name == "" {
		d.warn("field \"name\" is missing, phones will show the device ID instead")
	}
	return d, nil
}

// text turns one JSON value into a field. Numbers are kept as written ("1.10" stays
// "1.10"): many services send version and revision that way.
func (d *Descriptor) text(key string, value any) string {
	var s string
	switch v := value.(type) {
	case nil:
		return ""
	case string:
		s = v
	case json.Number:
		d.warn("field %q is a number, better a string", key)
		s = v.String()
	default:
		d.warn("field %q has a wrong type, want a string; it is ignored", key)
		return ""
	}
	if len(s) > MaxDescriptorField {
		d.warn("field %q is %d bytes long, at most %d are used; it is ignored", key, len(s), MaxDescriptorField)
		return ""
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		d.warn("field %q holds control characters, it is ignored", key)
		return ""
	}
	return s
}

// isAddress reports whether s is a plain e-mail address: dot-atom "@" dot-atom (RFC 5322
// §3.2.3, §3.4.1), other scripts allowed (RFC 6532 §3.2). Quotes, comments, names and IP
// addresses are not what an owner's mailbox looks like, and net/mail, which reads them all,
// is 40 KB on MIPS.
func isAddress(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	return ok && utf8.ValidString(s) && isDotAtom(local) && isDotAtom(domain)
}

func isDotAtom(s string) bool {
	return s != "" && s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..") &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`()<>[]:;@\,"`, r) })
}

func (d *Descriptor) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

// depth is how deep arrays and objects nest, counted outside strings. It runs before
// the decoder, which recurses.
func depth(b []byte) (deepest int) {
	level, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}
