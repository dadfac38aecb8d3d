package http1

import (
	"math"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
)

// usualFields is how many fields most requests of browsers and apps do not exceed.
const usualFields = 12

// exchange is one request and its answer. One is allocated for each request and never
// used again, so a handler may keep what it got.
type exchange struct {
	c    *conn
	req  http.Request
	url  url.URL
	ctx  reqCtx
	body body
	w    response

	values [usualFields]string // of the fields of the head, if they are not more

	readDeadline, writeDeadline bool // a handler set one, it must be taken back
}

// parse reads a whole head into x. What it accepts has one meaning only.
func (c *conn) parse(head []byte, x *exchange) error {
	text := string(head) // every string of the request is a piece of it
	line, rest, _ := strings.Cut(text, "\r\n")
	method, line, ok1 := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(line, " ")
	if !ok1 || !ok2 || !isToken(method) || !isVisible(target) {
		return badRequest("malformed request line")
	}
	r := http.Request{Method: method, RequestURI: target, RemoteAddr: c.remote, TLS: c.tls, ProtoMajor: 1}
	switch version {
	case "HTTP/1.1":
		r.Proto, r.ProtoMinor = version, 1
	case "HTTP/1.0":
		r.Proto = version
	default:
		if strings.HasPrefix(version, "HTTP/") && !strings.HasPrefix(version, "HTTP/1.") {
			return &statusError{http.StatusHTTPVersionNotSupported, "only HTTP/1.1 and HTTP/1.0 are spoken here"}
		}
		return badRequest("malformed protocol version")
	}
	if len(target) > maxTarget {
		return &statusError{http.StatusRequestURITooLong, "the request target is too long"}
	}
	header, err := parseFields(rest, x.values[:])
	if err != nil {
		return err
	}
	r.Header = header
	if err := x.target(&r, method, target); err != nil {
		return err
	}
	if err := x.framing(&r, header); err != nil {
		return err
	}
	x.w.init(x, &r, header)
	x.ctx.conn = c
	x.req = *r.WithContext(&x.ctx) // inlined, the copy in between costs no allocation
	return nil
}

// parseFields reads header or trailer fields up to the empty line that ends them
// (RFC 9112 §5). Names become canonical, values lose the blanks around them. The values are kept
// in room, if that is enough.
func parseFields(text string, room []string) (http.Header, error) {
	n := strings.Count(text, "\n") - 1
	if n > maxFields {
		return nil, &statusError{http.StatusRequestHeaderFieldsTooLarge, "too many header fields"}
	}
	h := make(http.Header, n)
	values := room // backing of the one-value slices
	if n > len(values) {
		values = make([]string, n)
	}
	for i := 0; ; i++ {
		line, rest, ok := strings.Cut(text, "\r\n")
		if !ok || line == "" {
			return h, nil
		}
		text = rest
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) { // obs-fold and blanks before the colon are no tokens (§5.1, §5.2)
			return nil, badRequest("malformed header field")
		}
		value = strings.Trim(value, " \t")
		if !isValue(value) {
			return nil, badRequest("control character in a header field")
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if old, ok := h[name]; ok {
			h[name] = append(old, value)
			continue
		}
		values[i] = value
		h[name] = values[i : i+1 : i+1]
	}
}

// target sets URL and Host from the request target and the Host field (RFC 9112 §3.2, §3.3).
func (x *exchange) target(r *http.Request, method, target string) error {
	hosts := r.Header["Host"]
	if len(hosts) > 1 || len(hosts) == 0 && r.ProtoMinor == 1 {
		return badRequest("want exactly one Host field")
	}
	if len(hosts) == 1 {
		if r.Host = hosts[0]; !isHost(r.Host) {
			return badRequest("malformed Host field")
		}
		delete(r.Header, "Host")
	}
	r.URL = &x.url
	switch {
	case target[0] == '/':
		return setPath(&x.url, target)
	case target == "*" && method == http.MethodOptions:
		x.url.Path = "*"
		return nil
	case method == http.MethodConnect:
		return &statusError{http.StatusMethodNotAllowed, "CONNECT is not served here"}
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return badRequest("malformed request target")
	}
	at := strings.IndexAny(rest, "/?")
	if at < 0 {
		at, rest = len(rest), rest+"/"
	}
	authority, path := rest[:at], rest[at:]
	if path[0] == '?' {
		path = "/" + path
	}
	// Two names for the host would let two parsers route differently: one is required to be the other.
	if authority == "" || !isHost(authority) || r.Host != "" && !strings.EqualFold(r.Host, authority) {
		return badRequest("the target's host and the Host field differ")
	}
	r.Host, r.RequestURI = authority, path
	return setPath(&x.url, path)
}

// setPath fills a URL in from a target that begins with a slash. The common case, with
// nothing to unescape, costs no allocation.
func setPath(u *url.URL, target string) error {
	path, query, hasQuery := strings.Cut(target, "?")
	u.RawQuery, u.ForceQuery = query, hasQuery && query == ""
	if strings.IndexByte(target, '#') >= 0 {
		return badRequest("a fragment in the request target")
	}
	if strings.IndexByte(path, '%') < 0 && plain(path) {
		u.Path = path
		return nil
	}
	parsed, err := url.ParseRequestURI(path)
	if err != nil || parsed.Host != "" {
		if strings.HasPrefix(path, "//") { // url takes it for an authority
			un, uerr := url.PathUnescape(path)
			if uerr != nil {
				return badRequest("malformed request target")
			}
			u.Path, u.RawPath = un, path
			return nil
		}
		return badRequest("malformed request target")
	}
	u.Path, u.RawPath = parsed.Path, parsed.RawPath
	return nil
}

// plain reports whether a path is its own escaped form.
func plain(path string) bool {
	if strings.HasPrefix(path, "//") {
		return false
	}
	for i := range len(path) {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("/-_.~$&+,:=@;", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// framing decides how long the body is (RFC 9112 §6). A request with two answers to
// that question is refused.
func (x *exchange) framing(r *http.Request, h http.Header) error {
	te, hasTE := h["Transfer-Encoding"]
	cl, hasCL := h["Content-Length"]
	x.body.c, x.body.x = x.c, x
	switch {
	case hasTE && hasCL:
		return badRequest("both Transfer-Encoding and Content-Length")
	case hasTE && r.ProtoMinor == 0:
		return badRequest("Transfer-Encoding in HTTP/1.0")
	case hasTE:
		if len(te) != 1 || !strings.EqualFold(te[0], "chunked") {
			return &statusError{http.StatusNotImplemented, "only the chunked transfer coding is served here"}
		}
		delete(h, "Transfer-Encoding")
		r.TransferEncoding, r.ContentLength = []string{"chunked"}, -1
		x.body.chunked = true
		trailerNames(r)
	case hasCL:
		if len(cl) != 1 {
			return badRequest("more than one Content-Length")
		}
		n, ok := parseLength(cl[0])
		if !ok {
			return badRequest("malformed Content-Length")
		}
		r.ContentLength = n
		x.body.left.Store(n)
	}
	if x.body.chunked || x.body.left.Load() > 0 {
		r.Body = &x.body
		if expect, ok := h["Expect"]; ok {
			if len(expect) != 1 || !strings.EqualFold(expect[0], "100-continue") {
				return &statusError{http.StatusExpectationFailed, "unknown expectation"}
			}
			x.body.expect.Store(r.ProtoMinor == 1)
		}
	} else {
		x.body.ended.Store(true)
		r.Body = http.NoBody
	}
	return nil
}

// parseLength reads 1*DIGIT (RFC 9110 §8.6).
func parseLength(s string) (n int64, ok bool) {
	for i := range len(s) {
		d := s[i] - '0'
		if d > 9 || n > (math.MaxInt64-9)/10 {
			return 0, false
		}
		n = n*10 + int64(d)
	}
	return n, s != ""
}

// hasToken reports whether a list field holds a token, whatever its case (RFC 9110 §5.6.1).
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.Trim(part, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// isHost accepts the characters of a host and port (RFC 3986 §3.2.2, §3.2.3), no user.
func isHost(s string) bool {
	for i := range len(s) {
		if !hostChar[s[i]] {
			return false
		}
	}
	return s != ""
}

func isToken(s string) bool {
	for i := range len(s) {
		if !tokenChar[s[i]] {
			return false
		}
	}
	return s != ""
}

// isValue refuses control characters but tab (RFC 9110 §5.5).
func isValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isVisible refuses blanks, control characters and bytes that no URI has (RFC 3986 §2).
func isVisible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

func table(more string) (t [256]bool) {
	for c := range t {
		t[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c < 0x80 && strings.IndexByte(more, byte(c)) >= 0
	}
	return t
}

var (
	tokenChar = table("!#$%&'*+-.^_`|~")
	hostChar  = table("-._~!$&'()*+,;=:[]%")
)
