package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether/sse"
)

// patience bounds waits for what must happen; it is no measure of speed.
const patience = 30 * time.Second

// running is a gateway that runs, with a client that trusts its certificate.
type running struct {
	*Gateway
	client *http.Client
	stop   context.CancelFunc
	ended  chan error
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	if cfg.HTTPS == "" {
		cfg.HTTPS = "127.0.0.1:0"
	}
	if cfg.StateDir == "" {
		cfg.StateDir = filepath.Join(t.TempDir(), "state")
	}
	if cfg.Access == "" {
		cfg.Access = AccessOrigin // most tests are about something else than who may come in
	}
	log := &lockedBuffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Gateway: g, stop: cancel, ended: make(chan error, 1), log: log}
	go func() { r.ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := r.wait(t); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	select {
	case <-g.Ready():
	case err := <-r.ended:
		r.ended <- err
		t.Fatalf("Run ended at once: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	roots := x509.NewCertPool()
	roots.AddCert(g.cert.CA())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	r.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r
}

// wait returns what Run returned; it may be called again.
func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(patience):
		t.Fatalf("Run did not end; log:\n%s", r.log)
		return nil
	}
}

func (r *running) get(t *testing.T, path string) (*http.Response, string) {
	t.Helper()
	resp, err := r.client.Get(strings.TrimSuffix(r.URL(), "/") + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// garden is a maker's service.
func garden() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("GET /device", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"name":"Garden","manufacturer":"ACME","version":"1","api":"v1","color":"green"}`)
	})
	m.HandleFunc("/echo/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s proto=%s for=%s ", r.Method, r.RequestURI, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-For"))
		io.Copy(w, r.Body)
	})
	return m
}

// until waits for a condition on the gateway's status.
func (r *running) until(t *testing.T, what string, ok func(Status) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok(r.Status()) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s; status %+v", what, r.Status())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestLAN(t *testing.T) {
	r := start(t, Config{OriginHandler: garden(), HTTP: "127.0.0.1:0"})
	resp, body := r.get(t, "/echo/a%2Fb?x=1")
	if resp.StatusCode != 200 || body != "GET /echo/a%2Fb?x=1 proto=https for=127.0.0.1 " || resp.ProtoMajor != 2 {
		t.Errorf("origin: %s %d %q", resp.Proto, resp.StatusCode, body)
	}
	resp, body = r.get(t, "/.cloudrest/nothing")
	var e errorBody
	if err := json.Unmarshal([]byte(body), &e); err != nil || resp.StatusCode != 404 || e.Error != 404 || e.Message == "" {
		t.Errorf("own 404: %d %s", resp.StatusCode, body)
	}
	resp, err := r.client.Post(r.URL()+".cloudrest/v1/status", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST of the status: %d, Allow %q", resp.StatusCode, resp.Header.Get("Allow"))
	}

	resp, err = r.client.Get("http://" + r.Addresses().HTTP.String() + "/echo/?q")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got, want := resp.Header.Get("Location"), r.URL()+"echo/?q"; resp.StatusCode != 308 || got != want {
		t.Errorf("redirect: %d to %q, want 308 to %q", resp.StatusCode, got, want)
	}

	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}
	if c, err := tls.Dial("tcp", r.Addresses().HTTPS.String(), old); err == nil {
		c.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

func TestStatus(t *testing.T) {
	r := start(t, Config{OriginHandler: garden()})
	r.until(t, "descriptor known", func(s Status) bool { return s.Device.State == "known" })
	resp, body := r.get(t, StatusPath)
	var s Status
	if err := json.Unmarshal([]byte(body), &s); err != nil || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%v in %s", err, body)
	}
	if s.ID != r.ID() || s.Name != "Garden" || s.Device.Maker != "ACME" || s.Certificate != r.Fingerprint() || s.URL != r.URL() ||
		s.Access != AccessOrigin || s.Tether.State != "off" || s.Discovery.UDP != "off" || s.Discovery.MDNS != "off" ||
		s.LAN.HTTPS != r.Addresses().HTTPS.String() || s.LAN.Connections < 1 || s.Notifications.Durability == "" {
		t.Errorf("status = %s", body)
	}
	if resp, _ := r.client.Head(r.URL() + ".cloudrest/v1/status"); resp == nil || resp.StatusCode != 200 {
		t.Errorf("HEAD: %v", resp)
	}
}

// The service may start after the gateway, and go again.
func TestOriginComesAndGoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	r := start(t, Config{Origin: &url.URL{Scheme: "unix", Path: socket}})
	r.until(t, "origin down", func(s Status) bool {
		return s.Origin.State == "down" && s.Device.State == "waiting" && s.Device.Error != ""
	})
	if resp, _ := r.get(t, "/"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("without the service: %d, want 502", resp.StatusCode)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	service := &http.Server{Handler: garden()}
	go service.Serve(l)
	defer service.Close()
	r.until(t, "origin up", func(s Status) bool {
		return s.Origin.State == "up" && s.Device.State == "known" && s.Device.Error == "" && s.Name == "Garden"
	})
	if resp, _ := r.get(t, "/echo/"); resp.StatusCode != http.StatusOK {
		t.Errorf("with the service: %d, want 200", resp.StatusCode)
	}
}

func TestEvents(t *testing.T) {
	r := start(t, Config{OriginHandler: garden()})
	first, err := r.Notify(t.Context(), "", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.Notify(t.Context(), "water", []byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", r.URL()+".cloudrest/v1/events", nil)
	req.Header.Set("Last-Event-ID", first.String())
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := sse.NewReader(resp.Body)
	e := next(t, in)
	if e.ID != second.String() || e.Name != "water" || string(e.Data) != "two" {
		t.Errorf("resumed with %+v, want the second event", e)
	}
	third, err := r.Notify(t.Context(), "water", []byte("three"))
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, in); e.ID != third.String() || string(e.Data) != "three" {
		t.Errorf("live event %+v, want the third", e)
	}
	if n := r.Status().Notifications; n.Listeners != 1 || n.Appended != 3 {
		t.Errorf("notifications = %+v, want 1 listener, 3 appended", n)
	}
}

// next reads the next event that has data.
func next(t *testing.T, in *sse.Reader) sse.Event {
	t.Helper()
	for {
		e, err := in.Next()
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Data) > 0 {
			return e
		}
	}
}

// At the end event streams end at once, whoever makes them, and other requests finish.
func TestStop(t *testing.T) {
	entered, finish := make(chan struct{}), make(chan struct{})
	m := garden()
	m.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-finish
		io.WriteString(w, "done")
	})
	m.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: x\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	r := start(t, Config{OriginHandler: m, StopWait: patience})
	open := func(path string) *bufio.Reader {
		resp, err := r.client.Get(r.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	streams := []*bufio.Reader{open(".cloudrest/v1/events"), open("stream")}
	slow := make(chan string, 1)
	go func() {
		resp, err := r.client.Get(r.URL() + "slow")
		if err != nil {
			slow <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		slow <- fmt.Sprint(string(body), err)
	}()
	<-entered
	r.stop()
	for _, s := range streams {
		if _, err := io.ReadAll(s); err != nil {
			t.Logf("stream ended with %v", err) // how it ends is the proxy's
		}
	}
	select {
	case err := <-r.ended:
		r.ended <- err
		t.Fatal("Run ended before the slow request")
	default:
	}
	close(finish)
	if got := <-slow; got != "done<nil>" {
		t.Errorf("slow request: %s, want done", got)
	}
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, ErrRan) {
		t.Errorf("second Run = %v, want ErrRan", err)
	}
}

func TestStopCutsOff(t *testing.T) {
	entered := make(chan struct{})
	m := http.NewServeMux()
	m.HandleFunc("/hangs", func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	r := start(t, Config{OriginHandler: m, StopWait: 50 * time.Millisecond})
	go r.client.Get(r.URL() + "hangs")
	<-entered
	r.stop()
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestIdentityStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	r := start(t, Config{OriginHandler: garden(), StateDir: dir})
	id, fp := r.ID(), r.Fingerprint()
	if _, err := New(Config{OriginHandler: garden(), StateDir: dir}); !errors.Is(err, statefile.ErrLocked) {
		t.Errorf("a second gateway on the same state: %v, want ErrLocked", err)
	}
	r.stop()
	r.wait(t)
	again, err := New(Config{OriginHandler: garden(), StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.ID() != id || again.Fingerprint() != fp {
		t.Error("identity or certificate changed over a restart")
	}
}

func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := filepath.Join(t.TempDir(), "state")
	g, err := New(Config{OriginHandler: garden(), HTTPS: taken.Addr().String(), StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "--https") {
		t.Errorf("Run = %v, want words about --https", err)
	}
	// The redirect is optional.
	r := start(t, Config{OriginHandler: garden(), HTTP: taken.Addr().String(), StateDir: dir})
	r.until(t, "the redirect fails", func(s Status) bool { return strings.HasPrefix(s.LAN.HTTP, "failing: ") })
	taken.Close()
	// It is tried again, after retryFirst.
	r.until(t, "the redirect is back", func(s Status) bool { return s.LAN.HTTP == taken.Addr().String() })
}

// What is optional and fails takes nothing else with it.
func TestOptionalPartsFail(t *testing.T) {
	taken, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if six, err := net.ListenPacket("udp6", fmt.Sprintf("[::]:%d", taken.LocalAddr().(*net.UDPAddr).Port)); err == nil {
		defer six.Close() // without IPv6 there is nothing to take
	}
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, fifo); err != nil {
		t.Fatal(err)
	}
	r := start(t, Config{OriginHandler: garden(), UDPDiscovery: true, UDPPort: taken.LocalAddr().(*net.UDPAddr).Port, FIFO: fifo})
	r.until(t, "UDP fails", func(s Status) bool { return strings.HasPrefix(s.Discovery.UDP, "failing") })
	if resp, body := r.get(t, "/echo/"); resp.StatusCode != 200 {
		t.Errorf("the LAN: %d %s", resp.StatusCode, body)
	}
	if _, err := r.Notify(t.Context(), "", []byte("x")); err != nil {
		t.Errorf("Notify: %v", err)
	}
	r.until(t, "the pipe fails", func(s Status) bool { return s.Notifications.FIFOError != "" })
	if b, err := os.ReadFile(victim); err != nil || string(b) != "not ours" {
		t.Errorf("where the link in the way leads: %q, %v", b, err)
	}
}

func TestURLFollowsTheListener(t *testing.T) {
	g := &Gateway{}
	for _, tc := range []struct{ bound, asked, want string }{
		{"0.0.0.0:443", "192.0.2.1", "https://192.0.2.1/"},
		{"[::]:8443", "192.0.2.1", "https://192.0.2.1:8443/"},
		{"192.0.2.9:443", "192.0.2.1", "https://192.0.2.9/"},
	} {
		g.addr.HTTPS = netip.MustParseAddrPort(tc.bound)
		if got := g.urlAt(netip.MustParseAddr(tc.asked)); got != tc.want {
			t.Errorf("bound to %s, asked at %s: %s, want %s", tc.bound, tc.asked, got, tc.want)
		}
	}
}

// STYLE §1. The test cache does not see what go list reads: run with -count=1.
func TestLinksNothingOfTheCloud(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list does not run here: %v", err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, no := range []string{"/cloud/", "/go-redis/", "go-sql-driver", "database/sql", "/prometheus/"} {
			if strings.Contains(dep, no) {
				t.Errorf("the device links %s", dep)
			}
		}
	}
}
