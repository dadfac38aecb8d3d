package httpcache

import (
	"net/http"
	"strings"
)

// Safe reports whether a method changes nothing by its definition (RFC 9110 §9.2.1 and the
// registry). Unknown ones may change everything.
func Safe(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "REPORT", "SEARCH":
		return true
	}
	return false
}

// Plain reports whether a target in origin-form is written in the one way that RFC 3986
// §6.2.2 calls normal. Only such ones are stored: two spellings that a service may or may
// not take for the same resource can then neither serve each other nor escape a write.
func Plain(uri string) bool {
	if uri == "" || uri[0] != '/' {
		return false
	}
	for i := 0; i < len(uri); i++ {
		switch b := uri[i]; {
		case b == '?':
			return plainEscapes(uri[i:])
		case b == '%':
			if !plainEscape(uri[i:]) {
				return false
			}
		case b == '/':
			// Empty segments and dots.
			rest := uri[i+1:]
			if rest != "" && rest[0] == '/' || rest == "." || rest == ".." || strings.HasPrefix(rest, "./") ||
				strings.HasPrefix(rest, "../") || strings.HasPrefix(rest, ".?") || strings.HasPrefix(rest, "..?") {
				return false
			}
		case b <= ' ' || b >= 0x7f || b == '#' || b == '\\':
			return false
		}
	}
	return true
}

func plainEscapes(s string) bool {
	for i := range len(s) {
		if b := s[i]; b <= ' ' || b >= 0x7f || b == '#' || b == '%' && !plainEscape(s[i:]) {
			return false
		}
	}
	return true
}

// plainEscape reports whether s starts with an escape in capitals of something that must
// be escaped.
func plainEscape(s string) bool {
	if len(s) < 3 {
		return false
	}
	hi, lo := hexDigit(s[1]), hexDigit(s[2])
	if hi < 0 || lo < 0 {
		return false
	}
	c := byte(hi<<4 | lo)
	return !digit(c) && !lower(c|0x20) && c != '-' && c != '.' && c != '_' && c != '~'
}

func hexDigit(b byte) int {
	switch {
	case digit(b):
		return int(b - '0')
	case b >= 'A' && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// Path is a target without its query.
func Path(uri string) string {
	if i := strings.IndexByte(uri, '?'); i >= 0 {
		return uri[:i]
	}
	return uri
}

// Changes reports whether an answer to an unsafe method means that something may have
// changed (RFC 9111 §4.4): success, and the gateway errors that leave open whether the
// origin has acted.
func Changes(status int) bool {
	return status >= 200 && status < 400 || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

// Invalidates returns the targets in origin-form that a write to uri makes stale: itself,
// and Location and Content-Location of its answer where they are of the same origin
// (RFC 9111 §4.4). host is the request's Host.
func Invalidates(host, uri string, answer http.Header) []string {
	list := []string{uri}
	for _, name := range [...]string{"Location", "Content-Location"} {
		for _, v := range answer[name] {
			if t, ok := resolve(host, uri, v); ok && !contains(list, t) {
				list = append(list, t)
			}
		}
	}
	return list
}

// resolve returns a reference as a target in origin-form; ok is false when it is of
// another origin. As little as possible is refused: to invalidate too much costs nothing.
func resolve(host, base, ref string) (string, bool) {
	ref, _, _ = strings.Cut(ref, "#")
	if i := strings.Index(ref, "://"); i >= 0 && !strings.ContainsAny(ref[:i], "/?") {
		if s := ref[:i]; !strings.EqualFold(s, "http") && !strings.EqualFold(s, "https") {
			return "", false
		}
		ref = ref[i+1:]
	}
	if strings.HasPrefix(ref, "//") {
		authority, rest := ref[2:], ""
		if i := strings.IndexAny(authority, "/?"); i >= 0 {
			authority, rest = authority[:i], authority[i:]
		}
		if !strings.EqualFold(authority, host) {
			return "", false
		}
		if ref = rest; ref == "" || ref[0] == '?' {
			ref = "/" + ref
		}
	}
	switch {
	case ref == "":
		return base, true
	case ref[0] == '/':
	case ref[0] == '?':
		ref = Path(base) + ref
	default:
		path := Path(base)
		ref = path[:strings.LastIndexByte(path, '/')+1] + ref
	}
	path := Path(ref)
	return removeDots(path) + ref[len(path):], true
}

// removeDots is RFC 3986 §5.2.4 for a path that begins with a slash.
func removeDots(path string) string {
	if !strings.Contains(path, "/.") {
		return path
	}
	var out []string
	segments := strings.Split(path[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".", "..":
			if s == ".." && len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}
