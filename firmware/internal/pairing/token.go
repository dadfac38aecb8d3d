package pairing

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// Where a token stands in a request.
const (
	HeaderToken = "X-Cloudrest-Token" // canonical form of X-CloudREST-Token
	CookieName  = "__Secure-cloudrest"

	authorization = "Authorization"
	cookieHeader  = "Cookie"

	// cookieAge is the longest that browsers keep a cookie (RFC 6265bis §5.5).
	cookieAge = 400 * 24 * time.Hour
)

// place is where a token was found.
type place uint8

const (
	nowhere place = iota
	inField       // X-CloudREST-Token or Authorization
	inCookie
)

// tokenOf finds the token of a request: X-CloudREST-Token first, then Authorization: Bearer crp_..., then, below
// /.cloudrest/ only, the page's cookie. An Authorization that is not ours is the origin's.
func tokenOf(r *http.Request) (string, place) {
	if v := r.Header[HeaderToken]; len(v) > 0 {
		if len(v) > 1 {
			return "", inField // two tokens are none
		}
		return v[0], inField
	}
	for _, v := range r.Header[authorization] {
		if t, ok := bearer(v); ok {
			return t, inField
		}
	}
	if !strings.HasPrefix(r.URL.Path, tether.OwnPrefix) {
		return "", nowhere
	}
	for _, line := range r.Header[cookieHeader] {
		for part := range strings.SplitSeq(line, ";") {
			if v, ok := cookieValue(part); ok {
				return v, inCookie
			}
		}
	}
	return "", nowhere
}

// bearer returns the token of an Authorization value of ours.
func bearer(v string) (string, bool) {
	const scheme = "Bearer"
	if len(v) <= len(scheme) || !strings.EqualFold(v[:len(scheme)], scheme) || v[len(scheme)] != ' ' {
		return "", false
	}
	t := strings.Trim(v[len(scheme):], " \t")
	return t, strings.HasPrefix(t, tokenPrefix)
}

// cookieValue returns the value of one part of a Cookie field (RFC 6265 §4.2.1) if it is ours.
func cookieValue(part string) (string, bool) {
	name, value, ok := strings.Cut(part, "=")
	if !ok || strings.Trim(name, " \t") != CookieName {
		return "", false
	}
	return strings.Trim(value, " \t\""), true
}

// strip takes out of the fields what is between client and gateway only: the origin never sees a token of ours.
func strip(h http.Header) {
	delete(h, HeaderToken)
	filter(h, authorization, func(v string) (string, bool) {
		_, ours := bearer(v)
		return v, !ours
	})
	filter(h, cookieHeader, func(v string) (string, bool) {
		if !strings.Contains(v, CookieName) {
			return v, true
		}
		var kept []string
		for part := range strings.SplitSeq(v, ";") {
			if _, ours := cookieValue(part); !ours {
				kept = append(kept, part)
			}
		}
		v = strings.TrimLeft(strings.Join(kept, ";"), " \t")
		return v, v != ""
	})
}

// filter replaces the values of a field; the map may be shared with nobody, the slice may.
func filter(h http.Header, name string, keep func(string) (string, bool)) {
	values := h[name]
	if len(values) == 0 {
		return
	}
	var kept []string
	for _, v := range values {
		if v, ok := keep(v); ok {
			kept = append(kept, v)
		}
	}
	if kept == nil {
		delete(h, name)
	} else {
		h[name] = kept
	}
}

// setCookie gives the page its token; a script of the page cannot read it.
func setCookie(w http.ResponseWriter, token string, age time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: CookieName, Value: token, Path: tether.OwnPrefix, MaxAge: int(age / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}

// sameOrigin reports whether a page of the device itself made this request. Browsers say so in Sec-Fetch-Site; those
// that do not yet know it send Origin with every unsafe request. Whoever says neither is no browser: said is false.
func sameOrigin(r *http.Request) (same, said bool) {
	site, origin := r.Header["Sec-Fetch-Site"], r.Header["Origin"]
	if len(site) == 0 && len(origin) == 0 {
		return false, false
	}
	if len(site) > 0 && (len(site) > 1 || site[0] != "same-origin") {
		return false, true
	}
	if len(origin) > 0 {
		u, err := url.Parse(origin[0])
		if len(origin) > 1 || err != nil || u.Scheme != "https" || !strings.EqualFold(hostPort(u.Host), hostPort(r.Host)) {
			return false, true
		}
	}
	return true, true
}

// hostPort leaves the port of https out.
func hostPort(host string) string { return strings.TrimSuffix(host, ":443") }

// reads reports whether a request only reads: what is safe beside GET and HEAD (RFC 9110 §9.2.1) is not for everybody,
// and an upgraded connection is no reading at all.
func reads(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && len(r.Header["Upgrade"]) == 0
}
