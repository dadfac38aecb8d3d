package gateway

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"testing"
)

func TestRedirect(t *testing.T) {
	for _, tc := range []struct{ port, host, target, want string }{
		{"443", "device.local", "/a?b=c", "https://device.local/a?b=c"},
		{"443", "device.local:80", "/", "https://device.local/"},
		{"8443", "192.0.2.1:8080", "/%2e%2e/x%20y", "https://192.0.2.1:8443/%2e%2e/x%20y"},
		{"443", "[fe80::1]:80", "/", "https://[fe80::1]/"},
		{"8443", "[fe80::1]", "/", "https://[fe80::1]:8443/"},
		{"443", "d", "//evil.example/x", "https://d//evil.example/x"},
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "http://x/", strings.NewReader("body"))
		r.Host = tc.host
		u, err := r.URL.Parse("http://x" + tc.target)
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		redirect(tc.port).ServeHTTP(w, r)
		if got := w.Header().Get("Location"); w.Code != http.StatusPermanentRedirect || got != tc.want {
			t.Errorf("%s%s: %d to %q, want 308 to %q", tc.host, tc.target, w.Code, got, tc.want)
		}
	}
	for _, host := range []string{"", "a/b", "user@host", "a#b"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		redirect("443").ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest {
			t.Errorf("host %q: %d, want 400", host, w.Code)
		}
	}
}

func TestListenSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	_, err = listen(t.Context(), "https", taken.Addr().String())
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "sport = :"+port) || !strings.Contains(err.Error(), "--https") {
		t.Errorf("port in use: %v", err)
	}
	_, err = listen(t.Context(), "http", "192.0.2.77:0") // TEST-NET-1: nobody has it
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "--http") {
		t.Errorf("foreign address: %v", err)
	}
}

func TestBaseURL(t *testing.T) {
	for _, tc := range []struct {
		addr string
		port uint16
		want string
	}{
		{"192.0.2.1", 443, "https://192.0.2.1/"}, {"::ffff:192.0.2.1", 8443, "https://192.0.2.1:8443/"}, {"fe80::1%eth0", 443, "https://[fe80::1]/"},
		{"2001:db8::1", 1, "https://[2001:db8::1]:1/"},
	} {
		if got := baseURL(netip.MustParseAddr(tc.addr), tc.port); got != tc.want {
			t.Errorf("baseURL(%s, %d) = %s, want %s", tc.addr, tc.port, got, tc.want)
		}
	}
}

func TestDispatch(t *testing.T) {
	name := func(s string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s+" "+r.URL.EscapedPath()) })
	}
	h := dispatch(name("own"), name("origin"))
	for target, want := range map[string]string{
		"/.cloudrest/v1/status": "own /.cloudrest/v1/status", "/.cloudrest/": "own /.cloudrest/", "/.cloudrest": "own /.cloudrest",
		"/%2ecloudrest/v1/status": "own /%2ecloudrest/v1/status", "/.cloudrestful": "origin /.cloudrestful", "/": "origin /",
		"/a//b/../.cloudrest/": "origin /a//b/../.cloudrest/", "//.cloudrest/": "origin //.cloudrest/",
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "http://x/", nil)
		u, err := url.Parse("http://x" + target)
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		h.ServeHTTP(w, r)
		if got := w.Body.String(); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}
