package nodeclient

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/exchange"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
	"github.com/cloudrest/cloudrest/tether/ws"
)

// patient is for what takes milliseconds on a quiet machine.
const patient = 30 * time.Second

// install copies the client and adds its one dependency; the source tree stays clean.
func install(t *testing.T) string {
	t.Helper()
	npm, dir := tool(t, "npm"), t.TempDir()
	for _, pattern := range []string{"*.js", "package*.json", ".npmrc"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*patient)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err == nil {
		return dir
	}
	for _, sign := range []string{"ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "ECONNRESET"} {
		if bytes.Contains(out, []byte(sign)) {
			t.Skipf("npm reaches no registry: %s", sign)
		}
	}
	if ctx.Err() != nil {
		t.Skip("npm reaches no registry in time")
	}
	t.Fatalf("npm ci: %v\n%s", err, out)
	return ""
}

// relay is the relay's side on loopback, with TLS that ends there.
type relay struct {
	*httptest.Server
	sessions chan *mux.Session
	peers    chan *session.Peer
	notified chan frame.Notify
}

func newRelay(t *testing.T, maxTLS uint16) *relay {
	t.Helper()
	r := &relay{sessions: make(chan *mux.Session, 4), peers: make(chan *session.Peer, 4), notified: make(chan frame.Notify, 4)}
	accept := session.Relay{
		Names: []string{"127.0.0.1"}, TLSEnds: true,
		Verify: func(context.Context, *session.Peer) error { return nil },
	}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != tether.TetherPath {
			http.NotFound(w, req)
			return
		}
		accept.Accept(w, req, func(s *mux.Session, p *session.Peer) mux.Handlers {
			r.sessions <- s
			r.peers <- p
			return mux.Handlers{OnNotify: func(n frame.Notify) {
				n.Payload = bytes.Clone(n.Payload)
				r.notified <- n
			}}
		})
	}))
	r.TLS = &tls.Config{MaxVersion: maxTLS}
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

// device is the running client and what it has said.
type device struct {
	cmd  *exec.Cmd
	done chan error

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed at the next line
}

func startDevice(t *testing.T, dir string, srv *httptest.Server, args ...string) *device {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o644); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"client.js", "--relay", strings.Replace(srv.URL, "https", "wss", 1), "--ca", ca, "--seed", strings.Repeat("5a", 32)}, args...)
	d := &device{cmd: exec.Command(tool(t, "node"), args...), done: make(chan error, 1), more: make(chan struct{})}
	d.cmd.Dir = dir
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			d.mu.Lock()
			d.lines = append(d.lines, sc.Text())
			close(d.more)
			d.more = make(chan struct{})
			d.mu.Unlock()
		}
		d.done <- d.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		if t.Failed() {
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Logf("the client said:\n%s", strings.Join(d.lines, "\n"))
		}
	})
	return d
}

// says waits until the client has said text.
func (d *device) says(t *testing.T, text string) {
	t.Helper()
	end := time.After(patient)
	for {
		d.mu.Lock()
		found, more := strings.Contains(strings.Join(d.lines, "\n"), text), d.more
		d.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-end:
			t.Fatalf("the client never said %q", text)
		}
	}
}

// next takes from a channel, but does not wait for ever.
func next[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patient):
		t.Fatalf("no %s", what)
		panic("not reached")
	}
}

// front serves HTTP clients through a session.
func front(t *testing.T, s *mux.Session) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := exchange.Forward(w, r, s, exchange.Options{ID: "id-" + r.Header.Get("X-Number")}); err != nil {
			if e, ok := err.(*exchange.Error); ok {
				http.Error(w, e.Error(), e.Status)
			}
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func do(t *testing.T, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestClient(t *testing.T) {
	dir := install(t)
	t.Run("device.test.js", func(t *testing.T) { nodeTest(t, dir, "device.test.js") })
	t.Run("all", func(t *testing.T) { testAll(t, dir) })
	t.Run("TLS 1.2", func(t *testing.T) { testTLS12(t, dir) })
	t.Run("another relay's challenge", func(t *testing.T) { testForeignChallenge(t, dir) })
}

// The exporter of TLS 1.2 tells an empty context from none (SPEC.md §4.4).
func testTLS12(t *testing.T, dir string) {
	r := newRelay(t, tls.VersionTLS12)
	startDevice(t, dir, r.Server)
	if _, body := do(t, "GET", front(t, next(t, r.sessions, "session")).URL+"/hello", nil); body != "hello" {
		t.Errorf("GET /hello = %q", body)
	}
}

// A relay that passes on the challenge of another one gets no signature.
func testForeignChallenge(t *testing.T, dir string) {
	got := make(chan error, 1)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := ws.Upgrade(w, r)
		if err != nil {
			return
		}
		defer c.Close(0, "")
		if err = c.Write(frame.AppendChallenge(nil, &frame.Challenge{Relay: "relay.example"})); err == nil {
			err = c.Read(func([]byte) error { return nil })
		}
		select {
		case got <- err:
		default: // it comes back, and is refused again
		}
	}))
	defer srv.Close()
	d := startDevice(t, dir, srv)
	if err := next(t, got, "end of the connection"); err == nil {
		t.Error("the client answered")
	}
	d.says(t, "the challenge is that of relay.example")
}

// The client, which knows only SPEC.md, works as a device of the real relay.
func testAll(t *testing.T, dir string) {
	r := newRelay(t, tls.VersionTLS13)
	d := startDevice(t, dir, r.Server, "--uid", "node unit", "--notify", "zone 1 dry")
	s, peer := next(t, r.sessions, "session"), next(t, r.peers, "peer")
	if want := tether.NewDeviceID([]byte("node unit")); peer.ID != want || !bytes.Contains(peer.Info, []byte(`"Node client"`)) {
		t.Errorf("peer %s with %s, want %s", peer.ID, peer.Info, want)
	}
	srv := front(t, s)

	t.Run("one request", func(t *testing.T) {
		resp, body := do(t, "GET", srv.URL+"/hello?x=1", nil, "X-Number", "1", tether.HeaderSequenceID, "77")
		if resp.StatusCode != 200 || body != "hello" || resp.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("GET /hello = %d %q %v", resp.StatusCode, body, resp.Header)
		}
		if resp.Header.Get(tether.HeaderID) != "id-1" || resp.Header.Get(tether.HeaderSequenceID) != "77" {
			t.Errorf("ids came back as %v", resp.Header)
		}
		if _, body := do(t, "GET", srv.URL+"/device", nil); body != string(peer.Info) {
			t.Errorf("GET /device = %q, want what HELLO said: %q", body, peer.Info)
		}
		if resp, body := do(t, "HEAD", srv.URL+"/hello", nil); resp.StatusCode != 200 || resp.ContentLength != 5 || body != "" {
			t.Errorf("HEAD /hello = %d, length %d, %q", resp.StatusCode, resp.ContentLength, body)
		}
		if resp, _ := do(t, "DELETE", srv.URL+"/none", nil); resp.StatusCode != 404 {
			t.Errorf("DELETE /none = %d, want 404", resp.StatusCode)
		}
	})

	t.Run("many at once", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				want := strings.Repeat(fmt.Sprint(i), 1000)
				resp, body := do(t, "POST", srv.URL+"/echo", strings.NewReader(want), "X-Number", fmt.Sprint(i))
				if body != want || resp.Header.Get(tether.HeaderID) != fmt.Sprintf("id-%d", i) {
					t.Errorf("request %d: %d bytes, want %d; id %s", i, len(body), len(want), resp.Header.Get(tether.HeaderID))
				}
			})
		}
		all.Wait()
	})

	t.Run("more than any window", func(t *testing.T) {
		want := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
		_, body := do(t, "POST", srv.URL+"/echo", io.MultiReader(bytes.NewReader(want)))
		if !bytes.Equal([]byte(body), want) {
			t.Errorf("echo of %d bytes = %d bytes, or others", len(want), len(body))
		}
	})

	t.Run("piece by piece", func(t *testing.T) {
		in, out := io.Pipe()
		resp, err := http.Post(srv.URL+"/echo", "text/x", in)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for i := range 20 {
			piece := fmt.Sprintf("piece %2d\n", i)
			io.WriteString(out, piece)
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
				t.Fatalf("piece %d = %q, %v", i, got, err)
			}
		}
		out.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("after the end: %q, %v", rest, err)
		}
	})

	t.Run("a client that goes away", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in, out := io.Pipe()
		req, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/echo", in)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		out.CloseWithError(context.Canceled)
		resp.Body.Close()
		for end := time.Now().Add(patient); s.Streams() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d streams left", s.Streams())
			}
		}
		if _, body := do(t, "GET", srv.URL+"/hello", nil); body != "hello" {
			t.Errorf("the connection is damaged: %q", body)
		}
	})

	t.Run("notification", func(t *testing.T) {
		n := next(t, r.notified, "notification")
		if string(n.Payload) != "zone 1 dry" || n.Topic != "text" || n.Seq != 1 || n.Epoch == 0 || n.Epoch != peer.Epoch {
			t.Errorf("notification = %+v, epoch in HELLO %d", n, peer.Epoch)
		}
		if err := s.Ack(tether.EventID{Epoch: n.Epoch, Seq: n.Seq}); err != nil {
			t.Fatal(err)
		}
		d.says(t, "notification acknowledged")
	})

	t.Run("ping", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		defer cancel()
		if _, err := s.Ping(ctx); err != nil {
			t.Error(err)
		}
	})

	t.Run("drain", func(t *testing.T) {
		s.GoAway(frame.GoAway{Code: frame.GoAwayDrain, Text: "restart"})
		again := next(t, r.sessions, "second session")
		if s.Err() != nil {
			t.Errorf("the first session ended before the second one was there: %v", s.Err())
		}
		s.Close(1001, "drained")
		if _, body := do(t, "GET", front(t, again).URL+"/hello", nil); body != "hello" {
			t.Errorf("through the second session: %q", body)
		}
		if second := next(t, r.peers, "peer"); second.ID != peer.ID || second.Epoch != peer.Epoch || !second.Next.IsZero() {
			t.Errorf("second HELLO: %+v, want the same device and epoch, and nothing to acknowledge", second)
		}
		s = again
	})

	t.Run("goodbye", func(t *testing.T) {
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		next(t, s.Done(), "end of the session")
		if err := next(t, d.done, "end of the process"); err != nil {
			t.Errorf("node ended with %v", err)
		}
	})
}
