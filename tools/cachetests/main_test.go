package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"sync/atomic"
	"testing"
)

// counting is an origin that counts requests.
type counting struct {
	url   *url.URL
	asked atomic.Int64
}

func newCounting(t *testing.T) *counting {
	t.Helper()
	o := &counting{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/device" { // the gateway looks at it by itself
			http.NotFound(w, r)
			return
		}
		o.asked.Add(1)
		w.Header().Set("Cache-Control", "public, max-age=60")
		io.WriteString(w, "x")
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	o.url = u
	return o
}

// clientOf trusts a PEM file, and knows that names below localhost are this machine.
func clientOf(t *testing.T, ca string) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			t.Fatal(err)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(text)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// testLog logs what the daemons log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) { l.t.Logf("%s", b); return len(b), nil }

// The suite itself is not here; what is ours of the run is.
func TestServePutsACacheInFront(t *testing.T) {
	origin := newCounting(t)
	for policy, want := range map[string]int64{"gateway": 1, "relay": 1, "none": 2} {
		origin.asked.Store(0)
		target, stop, err := serve(policy, origin.url)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			resp, err := http.Get(target + "/x")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "x" {
				t.Errorf("%s: got %q, %v, want x", policy, b, err)
			}
			resp.Body.Close()
		}
		stop()
		if asked := origin.asked.Load(); asked != want {
			t.Errorf("%s: the origin was asked %d times, want %d", policy, asked, want)
		}
	}
	if _, _, err := serve("x", origin.url); err == nil {
		t.Error("an unknown policy is accepted")
	}
}
