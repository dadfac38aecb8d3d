// Package page serves the device's own web page at /.cloudrest/: its state, pairing with a code
// or an invitation, who is paired, events and the security log. The page is three small files without a
// framework or a build step, made for a phone beside the device; it knows nothing but the HTTP
// API below /.cloudrest/v1/, which is package pairing's and the gateway's matter, and it works below
// any host because all its addresses are relative.
//
// Texts that come from outside never become markup: the script makes text nodes only, and the
// Content-Security-Policy would not run anything else.
package page

import (
	"crypto/sha256"
	_ "embed" // the files
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

//go:embed index.html
var index string

//go:embed page.css
var style string

//go:embed page.js
var script string

// policy lets the page use its own files and API and nothing else; a QR code is an image
// of its own ("data:"). Nobody may frame it, so nobody can have buttons clicked unseen.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// file is one file of the page.
type file struct {
	kind, body, tag string
}

func newFile(kind, body string) file {
	sum := sha256.Sum256([]byte(body))
	return file{kind, body, `"` + hex.EncodeToString(sum[:8]) + `"`}
}

// Handler serves the page: /.cloudrest/ and its two other files, and 404 for all else. Browsers
// keep the files but ask each time whether they are still good (ETag), so that an update of the
// device is seen at once. It is open to all: it holds no secrets.
func Handler() http.Handler {
	files := map[string]file{
		"":         newFile("text/html; charset=utf-8", index),
		"page.css": newFile("text/css; charset=utf-8", style),
		"page.js":  newFile("text/javascript; charset=utf-8", script),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", policy)
		if r.URL.Path+"/" == tether.OwnPrefix {
			// Relative, because the path may lie deeper for the browser. The query is of no use here.
			h.Set("Location", strings.TrimPrefix(tether.OwnPrefix, "/"))
			w.WriteHeader(http.StatusPermanentRedirect)
			return
		}
		name, ok := strings.CutPrefix(r.URL.Path, tether.OwnPrefix)
		f, known := files[name]
		switch {
		case !ok || !known:
			refuse(w, http.StatusNotFound, "there is no such page")
			return
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed, "the page is read with GET")
			return
		}
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", f.tag)
		if match(r.Header.Values("If-None-Match"), f.tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", f.kind)
		h.Set("Content-Length", strconv.Itoa(len(f.body)))
		if r.Method == http.MethodGet {
			w.Write([]byte(f.body))
		}
	})
}

// match reports whether If-None-Match names the tag; weak comparison (RFC 9110 §13.1.2).
func match(fields []string, tag string) bool {
	for _, field := range fields {
		for t := range strings.SplitSeq(field, ",") {
			t = strings.TrimSpace(t)
			if t == "*" || strings.TrimPrefix(t, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// refuse answers as all errors below /.cloudrest/ look.
func refuse(w http.ResponseWriter, status int, message string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintf(w, "{\"error\":%d,\"message\":%q}\n", status, message)
}
