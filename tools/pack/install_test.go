package main

import (
	"crypto/tls"
	"encoding/json"
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
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long an emulated daemon may take to answer.
const startTimeout = 90 * time.Second

// TestInstalled installs both packages for OpenWrt into an empty root, edits the
// configuration as a user would, asks the installed init script what procd is to run, and
// runs that, emulated, with this root as its whole file system: it must proxy a request.
func TestInstalled(t *testing.T) {
	qemu, err := exec.LookPath("qemu-mipsel-static")
	if err != nil {
		t.Skip("qemu-mipsel-static is not installed (make deps)")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed (make deps)")
	}
	dist := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dist, "cloudrestd"), "./firmware/cmd/cloudrestd")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=mipsle", "GOMIPS=softfloat", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v\n%s", err, out)
	}
	if err := run([]string{"-dist", dist, "-time", fmt.Sprint(testTime), "cloudrest_mipsel_24kc.ipk:cloudrestd", "cloudrest_mipsel_24kc.apk:cloudrestd"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []struct {
		name string
		open func([]byte) (*opened, error)
	}{{"ipk", readIPK}, {"apk", readAPK}} {
		t.Run(kind.name, func(t *testing.T) {
			p, err := kind.open(read(t, dist, "cloudrest_mipsel_24kc."+kind.name))
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			p.install(t, root)
			runInstalled(t, root, qemu)
		})
	}
}

func runInstalled(t *testing.T, root, qemu string) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "zone 3 is wet") }))
	defer origin.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()

	// What the user does: uci set ...; here with an editor.
	config := filepath.Join(root, "etc/config/cloudrest")
	text := string(read(t, config))
	access := regexp.MustCompile(`#?option access '.*'`).FindString(text) // whatever the default is
	for _, edit := range [][2]string{
		{"#option origin 'http://127.0.0.1:8080'", "option origin '" + origin.URL + "'"},
		{"option https ':8443'", "option https '" + addr + "'"},
		{"#option mdns 'on'", "option mdns '0'"},
		{"#option udp_discovery 'on'", "option udp_discovery '0'"},
		{access, "option access \"open\" # everybody"},
		{"#option gogc '50'", "option gogc '40'"},
		{"#option name 'Garden'", "option name 'Garden \"3\"'"},
	} {
		if edit[0] == "" || !strings.Contains(text, edit[0]) {
			t.Fatalf("the installed configuration has no %s", edit[0])
		}
		text = strings.Replace(text, edit[0], edit[1], 1)
	}
	if err := os.WriteFile(config, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}

	// The installed init script, with procd's functions printing what they got.
	script := filepath.Join(root, "etc/init.d/cloudrest")
	local := strings.ReplaceAll(text, "'/etc/cloudrest'", "'"+root+"/etc/cloudrest'")
	local = strings.ReplaceAll(local, "'/var/run/", "'"+root+"/var/run/")
	asSeen := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(asSeen, []byte(local), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "busybox", "ash", "../../openwrt/testdata/procd.sh", script, asSeen, root+"/var/run/cloudrest").CombinedOutput()
	if err != nil {
		t.Fatalf("run the init script: %v\n%s", err, out)
	}
	var command, environ []string
	for line := range strings.Lines(string(out)) {
		line = strings.ReplaceAll(strings.TrimSpace(line), asSeen, "/etc/config/cloudrest")
		if rest, ok := strings.CutPrefix(line, "set_param command "); ok {
			command = strings.Fields(rest)
		}
		if rest, ok := strings.CutPrefix(line, "append_param env "); ok {
			environ = append(environ, rest)
		}
	}
	if len(command) == 0 || len(environ) != 1 || environ[0] != "GOGC=40" {
		t.Fatalf("the init script gives command %q and environment %q:\n%s", command, environ, out)
	}

	// The emulator is static: the root needs nothing else.
	emulator := read(t, qemu)
	if err := os.WriteFile(filepath.Join(root, "qemu"), emulator, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	log := new(strings.Builder)
	daemon := exec.CommandContext(ctx, "/qemu", append([]string{"-cpu", "24Kc"}, command...)...)
	daemon.Dir = "/"
	daemon.Env = environ
	daemon.Stdout, daemon.Stderr = log, log
	daemon.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if os.Getuid() != 0 {
		daemon.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		daemon.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		daemon.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if err := daemon.Start(); err != nil {
		t.Skipf("this machine allows no root of its own: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()

	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	get := func(path string) (string, error) {
		resp, err := client.Get("https://" + addr + path)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		return string(body), err
	}
	var status struct{ Name, ID string }
	body, err := get("/.cloudrest/v1/status")
	for deadline := time.Now().Add(startTimeout); err != nil && time.Now().Before(deadline); body, err = get("/.cloudrest/v1/status") {
		select {
		case err := <-ended:
			t.Fatalf("the daemon ended: %v\n%s", err, log)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil || status.Name != `Garden "3"` || len(status.ID) != 64 {
		t.Errorf("status = %s, %v; want the name from the configuration and an id", body, err)
	}
	if got, err := get("/zones/3"); err != nil || got != "zone 3 is wet" {
		t.Errorf("through the gateway: %q, %v; want the answer of the service", got, err)
	}

	// procd stops it with SIGTERM; what must survive is in /etc/cloudrest by then.
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("exit after SIGTERM: %v\n%s", err, log)
		}
	case <-time.After(startTimeout):
		t.Error("the daemon does not end after SIGTERM")
	}
	if _, err := os.Stat(filepath.Join(root, "etc/cloudrest/identity.json")); err != nil {
		t.Errorf("identity: %v", err)
	}
}
