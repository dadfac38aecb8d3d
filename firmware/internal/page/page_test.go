package page

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func get(method, path string, header ...string) *http.Response {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func TestHandler(t *testing.T) {
	total := 0
	for path, kind := range map[string]string{
		"/.cloudrest/": "text/html; charset=utf-8", "/.cloudrest/page.css": "text/css; charset=utf-8", "/.cloudrest/page.js": "text/javascript; charset=utf-8",
	} {
		a := get("GET", path)
		total += int(a.ContentLength)
		h := a.Header
		want := map[string]string{"Content-Type": kind, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
		for k, v := range want {
			if h.Get(k) != v {
				t.Errorf("%s: %s = %q, want %q", path, k, h.Get(k), v)
			}
		}
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
			if !strings.Contains(h.Get("Content-Security-Policy"), part) {
				t.Errorf("%s: policy %q lacks %q", path, h.Get("Content-Security-Policy"), part)
			}
		}
		if strings.Contains(h.Get("Content-Security-Policy"), "unsafe") {
			t.Errorf("%s: policy %q allows what is unsafe", path, h.Get("Content-Security-Policy"))
		}
		tag := h.Get("ETag")
		for _, again := range []string{tag, `"other", W/` + tag, "*"} {
			if b := get("GET", path, "If-None-Match", again); b.StatusCode != http.StatusNotModified || b.Header.Get("ETag") != tag {
				t.Errorf("%s with If-None-Match %s = %s, want 304 with its tag", path, again, b.Status)
			}
		}
		if b := get("GET", path, "If-None-Match", `"other"`); b.StatusCode != http.StatusOK {
			t.Errorf("%s with another tag = %s, want 200", path, b.Status)
		}
		if b := get("HEAD", path); b.StatusCode != http.StatusOK || b.Header.Get("Content-Length") != h.Get("Content-Length") {
			t.Errorf("HEAD %s = %s, %s bytes, want those of GET", path, b.Status, b.Header.Get("Content-Length"))
		}
		if b := get("POST", path); b.StatusCode != http.StatusMethodNotAllowed || b.Header.Get("Allow") == "" {
			t.Errorf("POST %s = %s, want 405 with Allow", path, b.Status)
		}
	}
	// Routers have little flash; compressed it is a third of this.
	const most = 49 << 10
	if total > most {
		t.Errorf("the page has %d bytes, want at most %d", total, most)
	}
	if a := get("GET", "/.cloudrest"); a.StatusCode != http.StatusPermanentRedirect || a.Header.Get("Location") != ".cloudrest/" {
		t.Errorf("without the slash: %s to %q, want 308 to .cloudrest/", a.Status, a.Header.Get("Location"))
	}
	for _, path := range []string{"/.cloudrest/page.go", "/.cloudrest/../page.js", "/.cloudrest//", "/"} {
		if a := get("GET", path); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s = %s, want 404", path, a.Status)
		}
	}
}

// What would make texts from outside into markup or code is not in the script at all.
func TestScriptWritesNoMarkup(t *testing.T) {
	for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "srcdoc", "localStorage", "sessionStorage"} {
		if strings.Contains(script, word) {
			t.Errorf("the script has %q", word)
		}
	}
	for _, word := range []string{" style=", " onclick=", "<style", "http://", "https://"} {
		if strings.Contains(strings.ReplaceAll(index, "http://www.w3.org/", ""), word) {
			t.Errorf("the page has %q", word)
		}
	}
}
