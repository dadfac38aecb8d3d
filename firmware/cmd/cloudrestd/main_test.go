package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// patience bounds waits for what must happen; it is no measure of speed.
const patience = 30 * time.Second

// build makes the program, once for all tests.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cloudrestd")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "cloudrestd")
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %w: %s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := build(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func binary(t *testing.T) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "cloudrestd")
}

// daemon is a cloudrestd that runs.
type daemon struct {
	cmd   *exec.Cmd
	url   string // https://127.0.0.1:port/
	print string // the pin of the device
	ended chan error

	mu  sync.Mutex
	log bytes.Buffer
}

var (
	readyLine = regexp.MustCompile(`msg="the gateway is ready".* https=(\S+)`)
	printLine = regexp.MustCompile(`pin=([0-9a-f]{64})`)
)

func runDaemon(t *testing.T, print string, args ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(binary(t), args...), ended: make(chan error, 1), print: print}
	d.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(stderr)
		once := sync.OnceFunc(func() { close(ready) })
		defer once()
		for lines.Scan() {
			d.mu.Lock()
			d.log.WriteString(lines.Text() + "\n")
			if m := printLine.FindStringSubmatch(lines.Text()); m != nil {
				d.print = m[1]
			}
			m := readyLine.FindStringSubmatch(lines.Text())
			if m != nil {
				d.url = "https://" + m[1] + "/"
			}
			d.mu.Unlock()
			if m != nil {
				once()
			}
		}
		d.ended <- d.cmd.Wait()
	}()
	t.Cleanup(func() {
		d.cmd.Process.Kill()
		<-d.ended
		if t.Failed() {
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Logf("log:\n%s", d.log.String())
		}
	})
	select {
	case <-ready:
	case <-time.After(patience):
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.url == "" {
		t.Fatalf("not ready; log:\n%s", d.log.String())
	}
	return d
}

// signal sends s and returns how the daemon ended.
func (d *daemon) signal(t *testing.T, s os.Signal) error {
	t.Helper()
	d.cmd.Process.Signal(s)
	select {
	case err := <-d.ended:
		d.ended <- err
		return err
	case <-time.After(patience):
		t.Fatalf("the daemon did not end after %v", s)
		return nil
	}
}

// client trusts the device by its pin only.
func (d *daemon) client(t *testing.T) *http.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	transport := &http.Transport{TLSClientConfig: trust.Client(d.print)}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func (d *daemon) status(t *testing.T) (s gateway.Status) {
	t.Helper()
	resp, err := d.client(t).Get(d.url + ".cloudrest/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// nextEvent reads the next event that came from a line.
func nextEvent(t *testing.T, in *sse.Reader) sse.Event {
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

// The whole of a device's day: start, requests, a line into the pipe, kill -9, start
// again, a good stop.
func TestBinary(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/device":
			io.WriteString(w, `{"name":"Garden","version":"1"}`)
		default:
			fmt.Fprintf(w, "%s %s", r.Method, r.RequestURI)
		}
	}))
	defer service.Close()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "run", "notify")
	conf := filepath.Join(dir, "cloudrestd.conf")
	text := fmt.Sprintf("# a device\naccess = origin\nuid-source = random\norigin = %s\nhttps = 127.0.0.1:0\nhttp = off\nstate-dir = %s\nfifo = %s\nmdns = off\nudp-discovery = off\n",
		service.URL, filepath.Join(dir, "state"), fifo)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d := runDaemon(t, "", "--config", conf)
	resp, err := d.client(t).Get(d.url + "zones?x=1")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "GET /zones?x=1" {
		t.Errorf("through the gateway: %d %q", resp.StatusCode, body)
	}
	before := d.status(t)
	if before.Certificate != d.print || before.Notifications.FIFO != fifo || before.LAN.HTTP != "off" {
		t.Errorf("status = %+v", before)
	}

	// A line into the pipe comes out as an event.
	events, err := (&http.Client{Transport: d.client(t).Transport}).Get(d.url + ".cloudrest/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	in := sse.NewReader(events.Body)
	pipe, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	io.WriteString(pipe, "zone 1 is dry\n")
	first := nextEvent(t, in)
	if string(first.Data) != "zone 1 is dry" || !strings.HasPrefix(first.ID, before.Notifications.Epoch+"-") {
		t.Errorf("event = %+v", first)
	}
	io.WriteString(pipe, "zone 2 is dry\n")
	second := nextEvent(t, in)

	// Killed and back: the same device, and what was seen is still there.
	d.signal(t, syscall.SIGKILL)
	d = runDaemon(t, d.print, "--config", conf)
	after := d.status(t)
	if after.ID != before.ID || after.Certificate != before.Certificate || after.Notifications.Epoch == before.Notifications.Epoch {
		t.Errorf("after kill -9: %+v, before: %+v: want the same identity and another epoch", after, before)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", d.url+".cloudrest/v1/events", nil)
	req.Header.Set("Last-Event-ID", first.ID)
	resumed, err := (&http.Client{Transport: d.client(t).Transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Body.Close()
	if e := nextEvent(t, sse.NewReader(resumed.Body)); e.ID != second.ID || string(e.Data) != "zone 2 is dry" {
		t.Errorf("resumed with %+v, want %+v", e, second)
	}

	if err := d.signal(t, syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v, want exit 0", err)
	}
	if _, err := os.Lstat(fifo); err == nil {
		t.Logf("the pipe stays for writers: %s", fifo)
	}
}

// A second signal does not wait for requests.
func TestSecondSignalKills(t *testing.T) {
	entered := make(chan struct{})
	hang := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			close(entered)
			<-hang
		}
	}))
	defer service.Close()
	defer close(hang)
	d := runDaemon(t, "", "--access", "origin", "--uid-source", "random", "--origin", service.URL, "--https", "127.0.0.1:0", "--http", "off", "--fifo", "off", "--mdns=off", "--udp-discovery", "off",
		"--state-dir", filepath.Join(t.TempDir(), "state"), "--stop-wait", "5m")
	go d.client(t).Get(d.url + "hang")
	<-entered
	d.cmd.Process.Signal(syscall.SIGTERM)
	deadline := time.Now().Add(patience)
	for {
		d.mu.Lock()
		stopping := strings.Contains(d.log.String(), "msg=stopping")
		d.mu.Unlock()
		if stopping {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first signal was not heard")
		}
		time.Sleep(10 * time.Millisecond)
	}
	err := d.signal(t, syscall.SIGTERM)
	if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("second SIGTERM: %v, want death by it", err)
	}
}

func TestMistakesAreToldAtOnce(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "c.conf")
	if err := os.WriteFile(conf, []byte("orign = http://x\naccess = everybody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code := run([]string{"--config", conf, "--https", "443", "--relay", "https://r.example", "--origin-concurrency", "0"},
		[]string{"CLOUDREST_MDNS=maybe", "CLOUDREST_UDP_PORTS=1"}, &out, &errOut)
	if code != settings.ExitUsage {
		t.Errorf("exit %d, want %d", code, settings.ExitUsage)
	}
	for _, want := range []string{`c.conf:1: unknown setting "orign", did you mean "origin"?`, `c.conf:2: access`, "--https", "--relay", "--origin-concurrency", "CLOUDREST_MDNS", "see cloudrestd --help"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("the errors lack %q:\n%s", want, errOut.String())
		}
	}

	// What only the gateway can judge names its source, too.
	errOut.Reset()
	code = run([]string{"--origin", "http://127.0.0.1:1/base", "--https", ":1", "--http", ":1", "--relay", "wss://a/path"}, []string{"CLOUDREST_NAME=a||b"}, &out, &errOut)
	for _, want := range []string{"--origin: origin", "--http: http", "--relay: relay", "CLOUDREST_NAME: name"} {
		if !strings.Contains(errOut.String(), want) {
			t.Errorf("the errors lack %q:\n%s", want, errOut.String())
		}
	}
	if code != settings.ExitUsage {
		t.Errorf("exit %d, want %d", code, settings.ExitUsage)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary(t), "--https", l.Addr().String(), "--http=off", "--fifo=off", "--mdns=off", "--udp-discovery=off",
		"--state-dir", filepath.Join(t.TempDir(), "state")).CombinedOutput()
	if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != settings.ExitFail || !strings.Contains(string(out), "choose another with --https") {
		t.Errorf("%v, want exit 1 with advice:\n%s", err, out)
	}
}

func TestExampleConfigParses(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := run([]string{"example-config"}, nil, &out, &errOut); code != 0 {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	var o options
	app := &settings.App{Name: "cloudrestd", Commands: []*settings.Command{{Name: "run", Declare: o.declare}}}
	// Every line that is commented out parses, too, except those without a value.
	open := regexp.MustCompile(`(?m)^# ([a-z-]+ = [^"].*)$`).ReplaceAllString(out.String(), "$1")
	for name, text := range map[string]string{"as printed": out.String(), "all in": strings.ReplaceAll(open, "relay-ca = /etc", "# relay-ca = /etc")} {
		file := filepath.Join(t.TempDir(), "c")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := app.Parse([]string{"--config", file}, nil); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
		if err := o.cfg.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !strings.Contains(out.String(), "# relay = wss://a.example,wss://b.example") {
		t.Errorf("no example of relay:\n%s", out.String())
	}
}

// The names that the documentation promises.
func TestFlagNames(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := run([]string{"--help"}, nil, &out, &errOut); code != 0 {
		t.Fatalf("exit %d: %s", code, errOut.String())
	}
	for _, name := range []string{"origin", "https", "http", "state-dir", "relay", "relay-ca", "access", "udp-discovery", "mdns", "name", "fifo",
		"notify-socket", "origin-concurrency", "origin-queue", "log-level", "log-format", "config"} {
		if !strings.Contains(out.String(), "--"+name+" ") {
			t.Errorf("help lacks --%s", name)
		}
	}
}

func TestVersion(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := run([]string{"version", "--json"}, nil, &out, &errOut); code != 0 || !json.Valid(out.Bytes()) {
		t.Errorf("exit %d, %s%s", code, out.String(), errOut.String())
	}
	out.Reset()
	if code := run([]string{"--version"}, nil, &out, &errOut); code != 0 || !strings.HasPrefix(out.String(), "cloudrestd ") {
		t.Errorf("exit %d, %s%s", code, out.String(), errOut.String())
	}
}

// STYLE §1. The test cache does not see what go list reads: run with -count=1.
func TestLinksNothingOfTheCloud(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list does not run here: %v", err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, no := range []string{"/cloud/", "/go-redis/", "go-sql-driver", "database/sql", "/prometheus/", "/cloudrest/tools"} {
			if strings.Contains(dep, no) {
				t.Errorf("the device links %s", dep)
			}
		}
	}
}

// The boards that the gateway is for.
func TestCrossBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("short: cross builds take minutes")
	}
	for _, env := range []string{"GOARCH=mipsle GOMIPS=softfloat", "GOARCH=mips GOMIPS=softfloat", "GOARCH=arm GOARM=6", "GOARCH=arm64"} {
		t.Run(env, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(t.TempDir(), "cloudrestd"), ".")
			cmd.Env = append(os.Environ(), append(strings.Fields(env), "GOOS=linux", "CGO_ENABLED=0")...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
				return
			}
			st, err := os.Stat(cmd.Args[len(cmd.Args)-2])
			if err != nil {
				t.Fatal(err)
			}
			const most = 16 << 20 // bytes; flash of the smallest board
			t.Logf("%.1f MiB", float64(st.Size())/(1<<20))
			if st.Size() > most {
				t.Errorf("%d bytes, at most %d fit", st.Size(), most)
			}
		})
	}
}
