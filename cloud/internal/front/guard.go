package front

import (
	"net/http"
	"strings"
	"time"
)

// The fields that may carry the relay's token. Authorization is the client's to use for
// the device itself, so the relay takes it only when it holds a token of its own kind.
const (
	headerToken = "X-Cloudrest-Token"
	bearer      = "bearer "
	tokenPrefix = "crt_"
)

// admit lets a request with a good token pass, without the token, whose name is a.user then. A bad one is answered
// 401, and 429 once its address has tried too often. A good token is heard even from
// such an address: 256 random bits cannot be guessed, and a neighbour behind the same
// router has done nothing wrong; what the throttle saves is work and log lines.
func (f *Front) admit(a *answer, r *http.Request) bool {
	token, given := takeToken(r.Header)
	if given {
		if name, ok := f.cfg.Guard.Check(token); ok {
			a.user = name
			return true
		}
	}
	h := a.Header()
	h.Set("Www-Authenticate", `Bearer realm="cloudrest"`)
	if !given {
		refuse(a, http.StatusUnauthorized, "an operator token is needed: Authorization: Bearer crt_... or X-CloudREST-Token")
		return false
	}
	f.badAuth.Add(1)
	client := f.client(r)
	if wait := f.throttle.Fail(client, time.Now()); wait > 0 {
		delete(h, "Www-Authenticate")
		retryAfter(a, wait)
		refuse(a, http.StatusTooManyRequests, "too many wrong tokens from this address")
		return false
	}
	f.log.Warn("token refused", "security", "auth_failed", "peer", client)
	h.Set("Www-Authenticate", `Bearer realm="cloudrest", error="invalid_token"`) // RFC 6750 §3.1
	refuse(a, http.StatusUnauthorized, "the token is not known, or was revoked")
	return false
}

// takeToken removes every token of the relay from h and returns the one to check.
func takeToken(h http.Header) (token string, given bool) {
	if v, ok := h[headerToken]; ok {
		delete(h, headerToken)
		if len(v) > 0 {
			token, given = v[0], true
		}
	}
	auth := h["Authorization"]
	kept := auth[:0]
	for _, v := range auth {
		text, ok := cutPrefixFold(v, bearer)
		if text = strings.TrimSpace(text); !ok || !strings.HasPrefix(text, tokenPrefix) {
			kept = append(kept, v)
			continue
		}
		if !given {
			token, given = text, true
		}
	}
	if len(auth) > 0 && len(kept) == 0 {
		delete(h, "Authorization")
	} else if len(kept) < len(auth) {
		h["Authorization"] = kept
	}
	return token, given
}

// cutPrefixFold is strings.CutPrefix for ASCII whatever the case (RFC 9110 §11.1).
func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
