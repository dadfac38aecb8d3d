package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tools/netns"
)

// patience bounds every wait for something that should happen soon. It is long because
// a busy machine is slow, and nothing is measured by it.
const patience = 60 * time.Second

var bin string // folder of the built programs

func TestMain(m *testing.M) {
	netns.Roles(roles)
	dir, err := os.MkdirTemp("", "cloudrest-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	bin = dir
	code := 1
	if err := build(dir, nil, "./firmware/cmd/cloudrestd", "./cloud/cmd/cloudrelay", "./tools/cmd/cloudrest", "./tools/cmd/irrigation", "./tools/cmd/factory"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: build the programs:", err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// environ is the caller's environment without settings of ours: options come from the
// flags alone.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "CLOUDREST_") })
}

// build compiles packages, given from the module's root, into dir.
func build(dir string, env []string, pkgs ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, pkgs...)...)
	cmd.Dir = "../.."
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// process is one running program. Its output is kept and shown when the test fails.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	const most = 1 << 20 // a program that logs more than this in a test has a fault of its own
	if p.out.Len() < most {
		p.out.Write(b)
	}
	return len(b), nil
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start runs argv and ends it with the test.
func start(t *testing.T, name string, argv ...string) *process {
	t.Helper()
	return startOn(t, nil, name, argv...)
}

// startOn is start with a standard input.
func startOn(t *testing.T, in *os.File, name string, argv ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if in != nil {
		p.cmd.Stdin = in
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Env = environ()
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		if t.Failed() {
			out := p.output()
			if len(out) > 6000 {
				out = "...\n" + out[len(out)-6000:]
			}
			t.Logf("output of %s:\n%s", name, out)
		}
	})
	return p
}

// stop sends sig and waits for the end, with SIGKILL as the last word.
func (p *process) stop(sig syscall.Signal) {
	syscall.Kill(-p.cmd.Process.Pid, sig)
	select {
	case <-p.done:
		return
	case <-time.After(patience):
		p.t.Errorf("%s did not end within %v of %v", p.name, patience, sig)
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

// ended waits for the end and returns the exit code.
func (p *process) ended() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s does not end; it said:\n%s", p.name, p.output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// says waits until the output has a match of pattern, and returns it with its groups.
func (p *process) says(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	eventually(p.t, p.name+" says "+pattern, func() error {
		if found = re.FindStringSubmatch(p.output()); found != nil {
			return nil
		}
		if err := p.running(); err != nil {
			if found = re.FindStringSubmatch(p.output()); found != nil { // its last words
				return nil
			}
			return &fatalError{err}
		}
		return errNotYet
	})
	return found
}

// program runs one of ours to its end and returns its exit code and all that it said.
func program(t *testing.T, name string, args ...string) (code int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	cmd.Env = environ()
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil || ctx.Err() != nil {
		t.Fatalf("%s %q: %v, %v", name, args, err, ctx.Err())
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// mustRun is program for what has to go well.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	code, said := program(t, name, args...)
	if code != 0 {
		t.Fatalf("%s %q: exit %d:\n%s", name, args, code, said)
	}
	return said
}

// running fails the test at once when the program has ended by itself.
func (p *process) running() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended by itself: %v", p.name, p.cmd.ProcessState)
	default:
		return nil
	}
}

// peakMemory is the most resident memory the process had so far, in bytes.
func (p *process) peakMemory() int64 {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return kb << 10
		}
	}
	p.t.Fatalf("no VmHWM of %s", p.name)
	return 0
}

// eventually polls check until it returns nil, and fails the test with its last error.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
		var fatal *fatalError
		if errors.As(err, &fatal) {
			break
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// fatalError ends eventually early: waiting longer cannot help.
type fatalError struct{ error }

// freePort is a TCP port of loopback that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// authority makes a CA and a server certificate for the names; it returns the files.
func authority(t *testing.T, dir string, names []string, ips ...net.IP) (ca, cert, key string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	caCert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, caCert, caCert, caKey.Public(), caKey)
	must(err)
	ca = write("ca.pem", "CERTIFICATE", der)
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), DNSNames: names, IPAddresses: ips, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err = x509.CreateCertificate(rand.Reader, leaf, caCert, leafKey.Public(), caKey)
	must(err)
	cert = write("relay.pem", "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(leafKey)
	must(err)
	key = write("relay.key", "PRIVATE KEY", der)
	return ca, cert, key
}

// stack is the whole story on loopback: origin, gateway, relay.
type stack struct {
	t   *testing.T
	dir string

	originPort, lanPort, relayPort int
	caFile, certFile, keyFile      string
	fifo                           string

	origin, gateway, relay *process
	token                  string
	device                 string       // its id
	client                 *http.Client // trusts the relay's CA; does not check the gateway's own certificate
}

// newStack starts everything and returns when the device answers on both paths.
func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, dir: t.TempDir(), originPort: freePort(t), lanPort: freePort(t), relayPort: freePort(t)}
	s.fifo = filepath.Join(s.dir, "run", "notify")
	if err := os.Mkdir(filepath.Dir(s.fifo), 0o750); err != nil {
		t.Fatal(err)
	}
	s.caFile, s.certFile, s.keyFile = authority(t, s.dir, []string{"localhost"}, net.IPv4(127, 0, 0, 1))
	s.token = s.newToken()
	s.client = newClient(t, s.caFile)
	s.startOrigin()
	s.startRelay()
	s.startGateway()
	eventually(t, "LAN path", func() error { return s.alive(s.lan("/.cloudrest/v1/status"), s.gateway) })
	var status struct{ ID string }
	s.getJSON(s.lan("/.cloudrest/v1/status"), &status)
	if s.device = status.ID; len(s.device) != 64 {
		t.Fatalf("status has id %q, want 64 hex digits", s.device)
	}
	eventually(t, "remote path", func() error { return s.alive(s.remote("/device"), s.gateway, s.relay) })
	return s
}

// newClient trusts the relay's CA for names, and takes any certificate of an address.
func newClient(t *testing.T, caFile string) *http.Client {
	t.Helper()
	c, err := dialer(caFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func dialer(caFile string) (*http.Client, error) {
	b, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(b)
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 300,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(addr)
			// A gateway is dialled by address and shows a certificate of its own; the relay has a name.
			d := tls.Dialer{Config: &tls.Config{RootCAs: pool, InsecureSkipVerify: net.ParseIP(host) != nil}}
			return d.DialContext(ctx, network, addr)
		},
	}}, nil
}

func (s *stack) relayState() string { return filepath.Join(s.dir, "relay") }

func (s *stack) newToken() string {
	s.t.Helper()
	out, err := exec.Command(filepath.Join(bin, "cloudrelay"), "token", "--state-dir", s.relayState()).Output()
	if err != nil {
		s.t.Fatalf("cloudrelay token: %v", err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "crt_") {
			return word
		}
	}
	s.t.Fatalf("cloudrelay token printed no token: %q", out)
	return ""
}

func (s *stack) startOrigin() {
	s.t.Helper()
	s.origin = start(s.t, "irrigation", filepath.Join(bin, "irrigation"), "--listen", fmt.Sprintf("127.0.0.1:%d", s.originPort))
}

func (s *stack) startRelay(more ...string) {
	s.t.Helper()
	s.relay = start(s.t, "cloudrelay", append([]string{filepath.Join(bin, "cloudrelay"), "--role", "all", "--listen", fmt.Sprintf("127.0.0.1:%d", s.relayPort),
		"--tls-cert", s.certFile, "--tls-key", s.keyFile, "--domain", "localhost", "--state-dir", s.relayState(), "--metrics", "off", "--log-level", "debug"}, more...)...)
}

func (s *stack) startGateway(more ...string) {
	s.t.Helper()
	s.gateway = start(s.t, "cloudrestd", append([]string{filepath.Join(bin, "cloudrestd"), "--origin", fmt.Sprintf("http://127.0.0.1:%d", s.originPort),
		"--access", "origin", "--uid-source", "random", "--https", fmt.Sprintf("127.0.0.1:%d", s.lanPort), "--http", "off", "--state-dir", filepath.Join(s.dir, "gateway"),
		"--relay", fmt.Sprintf("wss://localhost:%d", s.relayPort), "--relay-ca", s.caFile, "--udp-discovery", "off", "--mdns", "off",
		"--fifo", s.fifo, "--notify-socket", s.fifo + ".sock", "--log-level", "debug"}, more...)...)
}

func (s *stack) lan(path string) string {
	return fmt.Sprintf("https://127.0.0.1:%d%s", s.lanPort, path)
}
func (s *stack) remote(path string) string {
	return fmt.Sprintf("https://localhost:%d/d/%s%s", s.relayPort, s.device, path)
}
func (s *stack) relayURL(path string) string {
	return fmt.Sprintf("https://localhost:%d%s", s.relayPort, path)
}

// request makes a request that carries the operator token when it goes to the relay.
func (s *stack) request(ctx context.Context, method, url string, body io.Reader) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		s.t.Fatal(err)
	}
	if r.URL.Hostname() == "localhost" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	return r
}

// get returns the answer with its whole body read.
func (s *stack) get(url string) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	resp, err := s.client.Do(s.request(ctx, "GET", url, nil))
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp, body, err
}

// alive is nil when url answers 200; a program that has ended is a reason to give up.
func (s *stack) alive(url string, needed ...*process) error {
	for _, p := range needed {
		if err := p.running(); err != nil {
			return &fatalError{err}
		}
	}
	resp, body, err := s.get(url)
	if err != nil {
		return err
	}
	if resp.StatusCode != 200 {
		return fmt.Errorf("GET %s = %s %.300q", url, resp.Status, body)
	}
	return nil
}

func (s *stack) getJSON(url string, v any) {
	s.t.Helper()
	resp, body, err := s.get(url)
	if err != nil || resp.StatusCode != 200 {
		s.t.Fatalf("GET %s = %v, %v", url, resp, err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		s.t.Fatalf("GET %s: %v in %.300q", url, err, body)
	}
}

// certificates reads a PEM file.
func certificates(t *testing.T, file string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := devcert.ParsePEM(text)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return chain
}
