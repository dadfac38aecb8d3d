package exchange

import (
	"iter"
	"net/http"
	"net/textproto"
	"strings"
)

// fieldNames yields the canonical names in a list-valued field such as Connection or Trailer.
func fieldNames(list string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); name != "" && !yield(http.CanonicalHeaderKey(name)) {
				return
			}
		}
	}
}

// hasToken reports whether a list-valued field holds a token, in any case.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(textproto.TrimString(part), token) {
				return true
			}
		}
	}
	return false
}

// isEvents reports whether an answer is an event stream (HTML, server-sent events).
func isEvents(header map[string][]string) bool {
	v := header["Content-Type"]
	return len(v) > 0 && strings.HasPrefix(v[0], "text/event-stream")
}

// bodyAllowed follows RFC 9110 §6.4.1.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
