//go:build !no_http2

package http1

import (
	"net/http"
	"strings"
)

// h2head collects the fields of one header block, and what is wrong with them. It is as
// strict as parse is: requests go on as HTTP/1.1, where a field of two meanings is a
// second request (RFC 9113 §10.3).
type h2head struct {
	max      int  // bytes, as RFC 9113 §6.5.2 counts them
	trailers bool // no pseudo-header fields

	pseudo [4]string // :method, :scheme, :path, :authority
	seen   [4]bool
	fields http.Header
	values []string // backing of one-value slices
	size   int
	count  int
	err    error // the first thing wrong
}

const (
	pseudoMethod = iota
	pseudoScheme
	pseudoPath
	pseudoAuthority
)

var pseudoNames = [4]string{":method", ":scheme", ":path", ":authority"}

func (d *h2head) field(f *hpackField) {
	if d.err != nil {
		return
	}
	if d.size += f.size(); d.size > d.max {
		d.err = &statusError{http.StatusRequestHeaderFieldsTooLarge, "the header is too large"}
		return
	}
	d.err = d.add(f.name, f.value, f.badName, f.badValue)
}

func (d *h2head) add(name, value string, badName, badValue bool) error {
	switch {
	case badName:
		return badRequest("malformed field name")
	case badValue:
		return badRequest("malformed field value")
	case name[0] == ':':
		for i := range pseudoNames {
			if name == pseudoNames[i] && !d.seen[i] && d.count == 0 && !d.trailers {
				d.pseudo[i], d.seen[i] = value, true
				return nil
			}
		}
		return badRequest("unknown, repeated or misplaced pseudo-header field") // RFC 9113 §8.3
	}
	d.count++
	if d.fields == nil {
		d.fields, d.values = make(http.Header, 16), make([]string, 0, 16)
	}
	old, repeated := d.fields[name]
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade": // RFC 9113 §8.2.2
		return badRequest("a field of HTTP/1.1 connections")
	case "Te":
		if !strings.EqualFold(value, "trailers") {
			return badRequest("TE other than trailers")
		}
	case "Host", "Content-Length":
		if repeated {
			return badRequest("more than one " + name)
		}
	case "Cookie": // RFC 9113 §8.2.3
		if repeated {
			old[0] += "; " + value
			d.count--
			return nil
		}
	}
	if d.count > maxFields {
		return &statusError{http.StatusRequestHeaderFieldsTooLarge, "too many header fields"}
	}
	if repeated {
		d.fields[name] = append(old, value)
		return nil
	}
	if len(d.values) == cap(d.values) {
		d.values = make([]string, 0, 16)
	}
	n := len(d.values)
	d.values = append(d.values, value)
	d.fields[name] = d.values[n : n+1 : n+1]
	return nil
}

// build makes the request, or says with a *statusError why it is refused: status 400
// stands for a malformed one (RFC 9113 §8.1.1).
func (st *h2stream) build(d *h2head) error {
	c := st.h.c
	h := d.fields
	if h == nil {
		h = http.Header{}
	}
	r := http.Request{Method: d.pseudo[pseudoMethod], RequestURI: d.pseudo[pseudoPath], Host: d.pseudo[pseudoAuthority], Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: h, RemoteAddr: c.remote, TLS: c.tls, URL: &st.url, Body: http.NoBody}
	st.ctx.conn = c
	st.w.init(st, r.Method == http.MethodHead)
	err := d.err
	if err == nil {
		err = st.check(d, &r)
	}
	st.req = *r.WithContext(&st.ctx) // inlined, the copy in between costs no allocation
	return err
}

func (st *h2stream) check(d *h2head, r *http.Request) error {
	target, h := r.RequestURI, r.Header
	switch {
	case !isToken(r.Method):
		return badRequest("malformed method")
	case r.Method == http.MethodConnect:
		return &statusError{http.StatusMethodNotAllowed, "CONNECT is not served here"}
	case !strings.EqualFold(d.pseudo[pseudoScheme], "https") && !strings.EqualFold(d.pseudo[pseudoScheme], "http"):
		return badRequest("malformed scheme")
	case !isVisible(target) || target[0] != '/' && (target != "*" || r.Method != http.MethodOptions):
		return badRequest("malformed request target")
	case len(target) > maxTarget:
		return &statusError{http.StatusRequestURITooLong, "the request target is too long"}
	}
	if host, ok := h["Host"]; ok { // RFC 9113 §8.3.1
		if d.seen[pseudoAuthority] && !strings.EqualFold(host[0], r.Host) {
			return badRequest(":authority and the Host field differ")
		}
		r.Host = host[0]
		delete(h, "Host")
	}
	if !isHost(r.Host) {
		return badRequest("malformed host")
	}
	if target == "*" {
		st.url.Path = "*"
	} else if err := setPath(&st.url, target); err != nil {
		return err
	}
	if length, ok := h["Content-Length"]; ok {
		n, ok := parseLength(length[0])
		if !ok || st.recvEnd && n != 0 {
			return badRequest("malformed Content-Length")
		}
		st.declared, r.ContentLength = n, n
	}
	if st.recvEnd {
		return nil
	}
	if r.Body = (*h2body)(st); st.declared < 0 {
		r.ContentLength = -1
	}
	trailerNames(r)
	if expect, ok := h["Expect"]; ok {
		if len(expect) != 1 || !strings.EqualFold(expect[0], "100-continue") {
			return &statusError{http.StatusExpectationFailed, "unknown expectation"}
		}
		st.expect.Store(true)
	}
	return nil
}
