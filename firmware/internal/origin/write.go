package origin

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ownField reports whether a field is about framing or the connection, which this
// package writes itself from the other members of Request.
func ownField(name string) bool {
	is := func(lower string) bool { return strings.EqualFold(name, lower) }
	switch len(name) {
	case len("te"):
		return is("te")
	case len("host"):
		return is("host")
	case len("expect"):
		return is("expect")
	case len("trailer"): // and upgrade
		return is("trailer") || is("upgrade")
	case len("connection"): // and keep-alive
		return is("connection") || is("keep-alive")
	case len("content-length"):
		return is("content-length")
	case len("proxy-connection"):
		return is("proxy-connection")
	case len("transfer-encoding"):
		return is("transfer-encoding")
	}
	return false
}

// appendHead writes the head of q (RFC 9112 §3, §5). It refuses what could be read
// differently by another server.
func (q *Request) appendHead(b []byte, authority string) ([]byte, error) {
	if q.Method == "" || !allOf(q.Method, isToken) {
		return b, fmt.Errorf("%w: method %.20q", ErrBadRequest, q.Method)
	}
	if !ValidTarget(q.Target) || q.Target[0] != '/' {
		return b, fmt.Errorf("%w: target %.60q", ErrBadRequest, q.Target)
	}
	if q.Host != "" {
		if !allOf(q.Host, isTarget) {
			return b, fmt.Errorf("%w: host %.60q", ErrBadRequest, q.Host)
		}
		authority = q.Host
	}
	b = append(b, q.Method...)
	b = append(b, ' ')
	b = append(b, q.Target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, authority...)
	b = append(b, "\r\n"...)
	for i := range q.Fields {
		f := &q.Fields[i]
		if f.Name == "" || !allOf(f.Name, isToken) || ownField(f.Name) {
			return b, fmt.Errorf("%w: field name %.40q", ErrBadRequest, f.Name)
		}
		if !allOf(f.Value, isValue) {
			return b, fmt.Errorf("%w: control byte in field %.40q", ErrBadRequest, f.Name)
		}
		b = append(b, f.Name...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	switch {
	case q.Upgrade != "":
		if !allOf(q.Upgrade, isValue) {
			return b, fmt.Errorf("%w: upgrade %.40q", ErrBadRequest, q.Upgrade)
		}
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		b = append(b, q.Upgrade...)
		b = append(b, "\r\n"...)
	case q.TETrailers:
		b = append(b, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	switch {
	case q.chunked():
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if names := q.trailerNames(); len(names) > 0 {
			b = append(b, "Trailer: "...)
			for i, name := range names {
				if name == "" || !allOf(name, isToken) || ownField(name) {
					return b, fmt.Errorf("%w: trailer field %.40q", ErrBadRequest, name)
				}
				if i > 0 {
					b = append(b, ", "...)
				}
				b = append(b, name...)
			}
			b = append(b, "\r\n"...)
		}
	case q.Body != nil:
		b = appendLength(b, q.Length)
	case len(q.Payload) > 0:
		b = appendLength(b, int64(len(q.Payload)))
	case q.Method == "POST" || q.Method == "PUT" || q.Method == "PATCH":
		b = appendLength(b, 0) // RFC 9110 §8.6
	}
	if q.Expect && q.Body != nil {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

func appendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

// chunked reports whether the body goes out in chunks: its length is unknown, or there
// are trailer fields, which only fit behind chunks (RFC 9112 §7.1.2).
func (q *Request) chunked() bool {
	return q.Body != nil && (q.Length < 0 || q.Trailer != nil && len(q.Trailer()) > 0)
}

func (q *Request) trailerNames() []string {
	if q.Trailer == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(q.Trailer()))
}

// appendTrailer ends a chunked body.
func (q *Request) appendTrailer(b []byte) ([]byte, error) {
	b = append(b, "0\r\n"...)
	for _, name := range q.trailerNames() {
		if name == "" || !allOf(name, isToken) || ownField(name) {
			return b, fmt.Errorf("%w: trailer field %.40q", ErrBadRequest, name)
		}
		for _, v := range q.Trailer()[name] {
			if !allOf(v, isValue) {
				return b, fmt.Errorf("%w: control byte in trailer field %.40q", ErrBadRequest, name)
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}
