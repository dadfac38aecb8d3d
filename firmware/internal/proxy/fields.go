package proxy

import (
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

const allowedMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, QUERY, PROPFIND, REPORT, SEARCH"

// allowed reports whether a method may reach the origin: those that transfer
// representations, not those that speak to proxies themselves (CONNECT, TRACE).
func allowed(method string) bool {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "PROPFIND", "REPORT", "SEARCH":
		return true
	}
	return false
}

func isTokenByte(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' ||
		b < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}

// identify finds out who asks and under which id.
func (x *exchange) identify() {
	x.client = address(x.r.RemoteAddr)
	if x.class == admit.Tether {
		if v := x.r.Header[tether.HeaderID]; len(v) == 1 && isUUID(v[0]) {
			x.id = v[0]
		}
	}
	if x.id == "" {
		x.id = x.p.ids.next()
	}
	x.w.Header()[tether.HeaderID] = []string{x.id}
}

// Stamp gives the field with the exchange's ID for an answer that a cache in front makes: the
// request's ID, if that is valid, else a new one. On a way in where clients are not believed, the field must be
// taken out of the request before.
func (p *Proxy) Stamp(r *http.Request) (name, value string) {
	if v := r.Header[tether.HeaderID]; len(v) == 1 && isUUID(v[0]) {
		return tether.HeaderID, v[0]
	}
	return tether.HeaderID, p.ids.next()
}

// address takes the port and the brackets of IPv6 off.
func address(a string) string {
	if strings.HasPrefix(a, "[") {
		host, _, _ := strings.Cut(a[1:], "]")
		return host
	}
	if i := strings.IndexByte(a, ':'); i >= 0 && i == strings.LastIndexByte(a, ':') {
		return a[:i]
	}
	return a
}

// endsHere reports whether a request field of a canonical name stops at this gateway:
// it concerns one hop (RFC 9110 §7.6.1), or it says who the client is, which only we
// know.
func endsHere(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authorization", "Host", "Content-Length", "Expect", "Http2-Settings",
		"Forwarded", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip",
		tether.HeaderID:
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded")
}

// requestFields fills x.req with what the origin is to see.
func (x *exchange) requestFields() {
	r := x.r
	fields := x.req.Fields[:0]
	var options string
	if v := r.Header["Connection"]; len(v) > 0 {
		options = strings.Join(v, ",")
	}
	for name, values := range r.Header {
		if x.class == admit.Tether {
			name = textproto.CanonicalMIMEHeaderKey(name) // a carrier may have set the map directly
		}
		if endsHere(name) {
			continue
		}
		if strings.IndexByte(name, '_') >= 0 && endsHere(textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))) {
			continue // CGI-like services cannot tell X_Forwarded_For from X-Forwarded-For
		}
		if options != "" && hasToken(options, name) {
			continue
		}
		for _, v := range values {
			fields = append(fields, origin.Field{Name: name, Value: v})
		}
	}
	x.req.Upgrade = upgrade(r, options)
	if te := r.Header["Te"]; len(te) > 0 {
		x.req.TETrailers = hasToken(strings.Join(te, ","), "trailers")
	}

	proto := "https"
	if x.class == admit.LAN && r.TLS == nil {
		proto = "http"
	}
	fields = append(fields,
		origin.Field{Name: "Via", Value: x.p.viaOf(r.ProtoMajor, r.ProtoMinor)},
		origin.Field{Name: tether.HeaderID, Value: x.id},
		origin.Field{Name: "X-Forwarded-Proto", Value: proto},
	)
	who, ip := x.client, "unknown"
	if a, err := netip.ParseAddr(who); err == nil {
		switch {
		case a.Is4():
			ip = who
		default:
			a = a.WithZone("").Unmap() // a zone means nothing to others
			who = a.String()
			if ip = who; a.Is6() {
				ip = `"[` + who + `]"`
			}
		}
		fields = append(fields, origin.Field{Name: "X-Forwarded-For", Value: who})
	}
	forwarded := "for=" + ip + ";proto=" + proto
	if r.Host != "" {
		fields = append(fields, origin.Field{Name: "X-Forwarded-Host", Value: r.Host})
		forwarded = "for=" + ip + ";host=" + quoted(r.Host) + ";proto=" + proto
	}
	x.req.Fields = append(fields, origin.Field{Name: "Forwarded", Value: forwarded})
}

// quoted is s as a token or quoted-string (RFC 7239 §4, RFC 9110 §5.6.4).
func quoted(s string) string {
	token, plain := s != "", true
	for i := range len(s) {
		token = token && isTokenByte(s[i])
		plain = plain && s[i] != '"' && s[i] != '\\'
	}
	switch {
	case token:
		return s
	case plain:
		return `"` + s + `"`
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// viaOf is what we write into Via about a message received with this protocol version.
func (p *Proxy) viaOf(major, minor int) string {
	switch {
	case major == 2:
		return p.via[2]
	case major == 3:
		return p.via[3]
	case minor == 0:
		return p.via[0]
	}
	return p.via[1]
}

// hasToken reports whether a comma-separated list holds a token, in any case.
func hasToken(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		t, _, _ = strings.Cut(t, ";")
		if strings.EqualFold(strings.Trim(t, " \t"), token) {
			return true
		}
	}
	return false
}

// upgrade returns the protocol that a client asks to switch to (RFC 9110 §7.8), or "".
// Protocols that would carry further HTTP requests past this gateway are not offered
// to the origin, so it answers as if not asked.
func upgrade(r *http.Request, options string) string {
	v := r.Header["Upgrade"]
	if len(v) == 0 || r.ProtoMajor != 1 || r.ProtoMinor == 0 || r.ContentLength != 0 || !hasToken(options, "upgrade") {
		return ""
	}
	all := strings.Join(v, ", ")
	for t := range strings.SplitSeq(all, ",") {
		name, _, _ := strings.Cut(strings.ToLower(strings.Trim(t, " \t")), "/")
		if name == "" || name == "h2c" || name == "http" || name == "tls" {
			return ""
		}
	}
	return all
}

// responseFields copies the fields of an answer for the client. One allocation holds
// all values.
func (x *exchange) responseFields(fields []origin.Field) {
	h := x.w.Header()
	values := make([]string, len(fields))
	var via string
	for i := range fields {
		name := fields[i].Name
		switch name {
		case tether.HeaderID:
			continue // the origin's is the same, or wrong
		case "Via":
			via += fields[i].Value + ", "
			continue
		}
		values[i] = fields[i].Value
		if had := h[name]; had == nil {
			h[name] = values[i : i+1 : i+1]
		} else {
			h[name] = append(had, values[i])
		}
	}
	h["Via"] = []string{via + x.p.via[1]}
}
