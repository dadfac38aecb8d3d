package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

const patience = 60 * time.Second

// call runs the program inside the test.
func call(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(args, nil, &o, &e)
	return code, o.String(), e.String()
}

func TestHelpAndMistakes(t *testing.T) {
	code, out, _ := call("--help")
	for _, want := range []string{"cloudrelay token", "--domain", "--tls-cert", "--enroll", "trust-on-first-use", "/v1/tether", "CLOUDREST_STATE_DIR"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("help (exit %d) lacks %q", code, want)
		}
	}
	code, _, errOut := call("--listen", "nowhere", "--enroll", "anybody", "--trusted-proxies", "10.0.0.0/40", "--frob", "x")
	if code != 2 {
		t.Errorf("exit %d, want 2", code)
	}
	for _, want := range []string{"--listen", "--enroll", "--trusted-proxies", "--frob", "--domain"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("the mistakes lack %q:\n%s", want, errOut)
		}
	}
	code, _, errOut = call("--domain", "https://x", "--keepalive", "20s")
	if code != 2 || !strings.Contains(errOut, "--domain: domain") || !strings.Contains(errOut, "tls-cert") {
		t.Errorf("exit %d:\n%s\nwant both mistakes with their source", code, errOut)
	}
	if code, out, _ := call("version"); code != 0 || !strings.HasPrefix(out, "cloudrelay ") {
		t.Errorf("version: %d %q", code, out)
	}
}

// The example is a file that the program takes.
func TestExampleConfig(t *testing.T) {
	_, text, _ := call("example-config")
	file := filepath.Join(t.TempDir(), "relay.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var e bytes.Buffer
	p, err := program(&e).Parse([]string{"--config", file, "--domain", "relay.example"}, nil)
	if err != nil || p.Help != "" {
		t.Errorf("the example is not taken: %v\n%s", err, text)
	}
}

func TestTokenCommand(t *testing.T) {
	dir := t.TempDir()
	code, out, errOut := call("token", "--state-dir", dir, "--name", "phone")
	if code != 0 || !regexp.MustCompile(`^crt_[A-Za-z0-9_-]{43}\n$`).MatchString(out) {
		t.Fatalf("token: %d %q %s", code, out, errOut)
	}
	if code, _, _ := call("token", "--state-dir", dir, "--name", "phone"); code != 1 {
		t.Errorf("a second token of that name: exit %d, want 1", code)
	}
	if code, out, _ := call("token", "list", "--state-dir", dir); code != 0 || !strings.HasPrefix(out, "phone ") || strings.Contains(out, "crt_") {
		t.Errorf("list: %d %q", code, out)
	}
	if code, _, errOut := call("token", "revoke", "phone", "--state-dir", dir); code != 0 {
		t.Errorf("revoke: %d %s", code, errOut)
	}
	if code, _, _ := call("token", "revoke", "phone", "--state-dir", dir); code != 1 {
		t.Errorf("revoke again: exit %d, want 1", code)
	}
	if code, _, _ := call("token", "frob", "--state-dir", dir); code != 2 {
		t.Errorf("token frob: exit %d, want 2", code)
	}
}

func TestDevicesCommand(t *testing.T) {
	dir := t.TempDir()
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString(der)
	id := tether.NewDeviceID([]byte("x"))
	if code, _, errOut := call("devices", "add", string(id), key, "--state-dir", dir); code != 0 {
		t.Fatalf("add: %d %s", code, errOut)
	}
	if code, out, _ := call("devices", "list", "--state-dir", dir); code != 0 || out != string(id)+" "+key+"\n" {
		t.Errorf("list: %d %q", code, out)
	}
	for name, args := range map[string][]string{"bad id": {"add", "x", key}, "no key": {"add", string(id)}, "frob": {"frob"}} {
		if code, _, _ := call(append(append([]string{"devices"}, args...), "--state-dir", dir)...); code != 2 {
			t.Errorf("%s: exit %d, want 2", name, code)
		}
	}
	if code, _, errOut := call("devices", "add", string(id), "nonsense", "--state-dir", dir); code != 1 || !strings.Contains(errOut, "Ed25519") {
		t.Errorf("bad key: %d %s", code, errOut)
	}
	if code, _, errOut := call("devices", "rekey", string(id), "--state-dir", dir); code != 1 || !strings.Contains(errOut, "on the list") {
		t.Errorf("rekey of a listed device: %d %s", code, errOut)
	}
	if code, _, _ := call("devices", "remove", id.Label(), "--state-dir", dir); code != 0 {
		t.Errorf("remove: exit %d", code)
	}
	if code, _, errOut := call("devices", "rekey", string(id), "--state-dir", dir); code != 0 {
		t.Errorf("rekey: %d %s", code, errOut)
	}
}

func TestDevicesRevokeAndImport(t *testing.T) {
	dir := t.TempDir()
	id := string(tether.NewDeviceID([]byte("x")))
	line := func() string {
		pub, _, _ := ed25519.GenerateKey(rand.Reader)
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"id":%q,"key":%q,"model":"a"}`, id, base64.StdEncoding.EncodeToString(der))
	}
	file := filepath.Join(t.TempDir(), "units.jsonl")
	first, second := line(), line()
	for _, c := range []struct {
		what string // in the file, if the command reads it
		args []string
		code int
		out  string // in either output
	}{
		{"", []string{"revoke", id}, 0, ""},
		{"", []string{"revoke", id}, 0, "already"},
		{"", []string{"revoked"}, 0, id + " 20"},
		{"", []string{"unrevoke", id}, 0, ""},
		{"", []string{"unrevoke", id}, 1, "not revoked"},
		{"", []string{"revoke"}, 2, "want:"},
		{first, []string{"import", file}, 0, "added 1, changed 0, unchanged 0"},
		{first, []string{"import", file}, 0, "added 0, changed 0, unchanged 1"},
		{second, []string{"import", file}, 1, "another key"},
		{second, []string{"import", file, "--replace"}, 0, "added 0, changed 1, unchanged 0"},
		{"nonsense", []string{"import", file}, 1, "line 1"},
		{"", []string{"list", "--replace"}, 2, "--replace"},
		{"", []string{"import", file + ".not"}, 1, "no such file"},
	} {
		if err := os.WriteFile(file, []byte(c.what+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, out, errOut := call(append(append([]string{"devices"}, c.args...), "--state-dir", dir)...)
		if code != c.code || !strings.Contains(out+errOut, c.out) {
			t.Errorf("devices %v: exit %d, %q %q, want %d and %q", c.args, code, out, errOut, c.code, c.out)
		}
	}
}

// Mistakes about the factory are told with the setting that they are in.
func TestFactorySettings(t *testing.T) {
	ok := []string{"--domain", "relay.example", "--tls", "off"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--enroll", "factory"}, "factory-ca: enroll factory needs"},
		{[]string{"--enroll", "factory", "--factory-ca", "/nowhere.pem"}, "/nowhere.pem"},
		{[]string{"--factory-ca", "/nowhere.pem"}, "only with enroll factory"},
	} {
		code, _, errOut := call(append(c.args, ok...)...)
		if code != 2 || !strings.Contains(errOut, c.want) {
			t.Errorf("%v: exit %d, %q, want 2 and %q", c.args, code, errOut, c.want)
		}
	}
}

// binary builds the program once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cloudrelay-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "cloudrelay")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// process is the built program on a free port.
type process struct {
	*exec.Cmd
	addr   string
	exited chan struct{}
	log    *bytes.Buffer // complete once exited is closed
}

var listens = regexp.MustCompile(`msg="relay listens" listen=(\S+)`)

func launch(t *testing.T, dir string, more ...string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--listen", "127.0.0.1:0", "--tls", "off", "--domain", "127.0.0.1", "--state-dir", dir, "--metrics", "off"}, more...)
	p := &process{Cmd: exec.Command(path, args...), exited: make(chan struct{}), log: &bytes.Buffer{}}
	p.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	go func() {
		defer close(p.exited)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			p.log.WriteString(lines.Text() + "\n")
			if m := listens.FindStringSubmatch(lines.Text()); m != nil {
				addr <- m[1]
			}
		}
		p.Wait()
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("the relay's log:\n%s", p.log)
		}
	})
	select {
	case p.addr = <-addr:
	case <-p.exited:
		t.Fatalf("the relay ended: %s", p.log)
	case <-time.After(patience):
		t.Fatal("the relay does not listen")
	}
	return p
}

// thing is a device with numbered notifications.
type thing struct {
	session.Device
	mu    sync.Mutex
	acked tether.EventID // guarded by mu
	moved chan struct{}  // capacity 1
	away  chan frame.GoAway
}

func newThing(t *testing.T) *thing {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := &thing{moved: make(chan struct{}, 1), away: make(chan frame.GoAway, 10)}
	d.Device = session.Device{
		ID: tether.NewDeviceID([]byte(t.Name())), Key: key, Epoch: 7,
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }),
		OnGoAway: func(g frame.GoAway) { d.away <- g },
		OnAck: func(id tether.EventID) {
			d.mu.Lock()
			d.acked = id
			d.mu.Unlock()
			select {
			case d.moved <- struct{}{}:
			default:
			}
		},
	}
	return d
}

func (d *thing) last() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acked.Seq
}

func (d *thing) dial(t *testing.T, p *process) (*mux.Session, frame.Accept) {
	t.Helper()
	s, accept, err := d.Connect(t.Context(), &url.URL{Scheme: "ws", Host: p.addr}, "")
	if err != nil {
		t.Fatal(err)
	}
	return s, accept
}

// A relay that is killed at any moment keeps every notification that it acknowledged, and
// stores none twice.
func TestKilledRelayKeepsWhatItAcknowledged(t *testing.T) {
	dir := t.TempDir()
	_, token, _ := call("token", "--state-dir", dir)
	token = strings.TrimSpace(token)
	d := newThing(t)
	const trials, perTrial = 5, 40 // together fewer than the ring keeps
	seq := uint64(0)
	for trial := range trials {
		p := launch(t, dir)
		s, accept := d.dial(t, p)
		if last := d.last(); accept.AckSeq < last {
			t.Fatalf("trial %d: the relay knows events up to %d, it had acknowledged %d", trial, accept.AckSeq, last)
		}
		d.mu.Lock()
		d.acked = tether.EventID{Epoch: accept.AckEpoch, Seq: accept.AckSeq}
		d.mu.Unlock()
		// As a gateway does: from the first that is not acknowledged, at most 32 in flight.
		seq = accept.AckSeq
		goal := uint64(perTrial * (trial + 1))
		killAt := goal - mathrand.Uint64N(perTrial/2)
		for killed := false; !killed; {
			last := d.last()
			if seq < goal && seq-last < 32 {
				seq++
				if err := s.Notify(frame.Notify{Epoch: 7, Seq: seq, Topic: "n", Payload: fmt.Appendf(nil, "event %d", seq)}); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if last >= killAt {
				p.Process.Signal(syscall.SIGKILL)
				<-p.exited
				killed = true
				continue
			}
			select {
			case <-d.moved:
			case <-time.After(patience):
				t.Fatalf("trial %d: acknowledged %d of %d and no further", trial, last, seq)
			}
		}
		<-s.Done()
	}

	acked := d.last()
	p := launch(t, dir)
	got := events(t, p, d.ID, token, acked)
	for want := uint64(1); want <= acked; want++ {
		if n := got[fmt.Sprintf("event %d", want)]; n != 1 {
			t.Errorf("event %d is kept %d times, want once (acknowledged up to %d)", want, n, acked)
		}
	}
}

// events reads everything the relay has of a device, up to the event with that number.
func events(t *testing.T, p *process, id tether.DeviceID, token string, last uint64) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+p.addr+"/v1/devices/"+string(id)+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-CloudREST-Token", token)
	req.Header.Set("Last-Event-ID", "unknown") // everything that is kept
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got := map[string]int{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: event ")
		if !ok {
			continue
		}
		got["event "+data]++
		if data == fmt.Sprint(last) {
			return got
		}
	}
	t.Fatalf("the stream ended before event %d: %v, got %d events", last, lines.Err(), len(got))
	return nil
}

func TestSignalDrains(t *testing.T) {
	p := launch(t, t.TempDir())
	d := newThing(t)
	s, _ := d.dial(t, p)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case g := <-d.away:
		if g.Code != frame.GoAwayDrain {
			t.Errorf("told %+v, want drain", g)
		}
	case <-time.After(patience):
		t.Fatal("the device was not told")
	}
	<-s.Done()
	select {
	case <-p.exited:
	case <-time.After(patience):
		t.Fatal("the relay does not end")
	}
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
}

func TestRelayLinksNothingOfTheDevice(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if strings.Contains(dep, "cloudrest/firmware") || strings.Contains(dep, "cloudrest/board") {
			t.Errorf("the relay links %s", dep)
		}
	}
}
