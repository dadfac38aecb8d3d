package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/internal/lancert"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// A machine gets a new address while a client has a connection: that connection goes on,
// and the next one, to the new address, sees a certificate for it.
func TestNewAddress(t *testing.T) {
	m := garden()
	next, done := make(chan struct{}), make(chan struct{})
	m.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("one"))
		w.(http.Flusher).Flush()
		<-next
		w.Write([]byte("two"))
		close(done)
	})
	r := start(t, Config{OriginHandler: m, HTTPS: ":0"})
	port := strconv.Itoa(int(r.Addresses().HTTPS.Port()))
	host := "127.77.0.1" // loopback answers on all of 127/8, but the certificate holds only what the machine says
	roots := x509.NewCertPool()
	roots.AddCert(r.cert.CA())
	dial := func() error {
		c, err := tls.Dial("tcp", net.JoinHostPort(host, port), &tls.Config{RootCAs: roots})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := dial(); err == nil {
		t.Errorf("the certificate is good for %s already", host)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: lancert.LocalName(r.ID())}}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(request(t, "https://127.0.0.1:"+port+"/slow"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 3)
	if n, err := resp.Body.Read(b); string(b[:n]) != "one" {
		t.Fatalf("before: %q, %v", b[:n], err)
	}
	pin := r.Fingerprint()
	if why, err := r.cert.Update("", []netip.Addr{netip.MustParseAddr(host)}); err != nil || why == "" {
		t.Fatalf("Update: %q, %v", why, err)
	}
	if err := dial(); err != nil {
		t.Errorf("a new connection to %s: %v", host, err)
	}
	close(next)
	<-done
	if n, err := resp.Body.Read(b); string(b[:n]) != "two" {
		t.Errorf("after: %q, %v", b[:n], err)
	}
	if r.Fingerprint() != pin || r.announcedPin() != pin {
		t.Errorf("the pin is %s, announced %s, want %s as before", r.Fingerprint(), r.announcedPin(), pin)
	}
	pinned := &http.Transport{TLSClientConfig: trust.Client(pin)}
	defer pinned.CloseIdleConnections()
	if resp, err := pinned.RoundTrip(request(t, "https://"+net.JoinHostPort(host, port)+"/device")); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a pinned client: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func request(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// A damaged authority is told loudly, because every client will refuse the device.
func TestDamagedAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	r := start(t, Config{OriginHandler: garden(), StateDir: dir})
	pin := r.Fingerprint()
	if !strings.Contains(r.log.String(), "level=INFO msg=\"the LAN authority is new\" reason=\"first start\" pin="+pin) {
		t.Errorf("the log does not tell the pin %s:\n%s", pin, r.log)
	}
	r.stop()
	r.wait(t)
	if err := os.WriteFile(filepath.Join(dir, lancert.File), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{OriginHandler: garden(), StateDir: dir})
	if again.Fingerprint() == pin || !strings.Contains(again.log.String(), "level=ERROR msg=\"the LAN authority is new: clients that knew this device will refuse it") {
		t.Errorf("pin %s, before %s; log:\n%s", again.Fingerprint(), pin, again.log)
	}
}
