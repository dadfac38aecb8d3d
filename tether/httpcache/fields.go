package httpcache

import (
	"net/http"
	"net/textproto"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

// Stored reports whether a field of an answer, its name in canonical form, is part of
// what is stored (RFC 9111 §3.1): not what concerns one connection, one proxy, one
// client or one request.
func Stored(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate",
		"Proxy-Authentication-Info", "Proxy-Authorization", "Set-Cookie", "Age", "Cache-Status", "Content-Length",
		tether.HeaderID, tether.HeaderSequenceID:
		return false
	}
	return true
}

// Omitted returns the canonical names of the fields of an answer that may not be stored
// because Connection lists them, or no-cache or private do. Usually there are none.
func (a *Answer) Omitted() (names []string) {
	for _, line := range a.Header["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.Trim(name, " \t"); name != "" {
				names = append(names, textproto.CanonicalMIMEHeaderKey(name))
			}
		}
	}
	for _, name := range a.Control.Omit {
		names = append(names, textproto.CanonicalMIMEHeaderKey(name))
	}
	return names
}

// Freshen updates the stored fields by those of a 304 answer, or of a HEAD's (RFC 9111
// §3.2, §4.3.4, §4.3.5). stored is changed. What describes the stored body stays.
func Freshen(stored http.Header, a *Answer) {
	omit := a.Omitted()
	for name, values := range a.Header {
		if !Stored(name) || contains(omit, name) {
			continue
		}
		switch name {
		case "Content-Encoding", "Content-Range":
			continue
		}
		stored[name] = values
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
