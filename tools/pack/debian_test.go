package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// "make test-packages" sets this: the test below fetches 70 MB of Debian.
const debianVar = "CLOUDREST_TEST_DEBIAN"

const (
	debianSuite = "bookworm"
	bootWait    = 3 * time.Minute
	fetchWait   = 15 * time.Minute
	settleWait  = time.Minute
)

// powerOff is SIGRTMIN+4, at which systemd powers off (systemd(1)).
const powerOff = syscall.Signal(34 + 4)

// maxExposure is what "systemd-analyze security" may rate our services at, in tenths: 0 is
// shut off from everything, 100 is unlimited.
const maxExposure = 20

// TestDebian is what a user of Debian does: apt-get installs the packages on a system that
// was booted by the real systemd, in a container, and the services run; an upgrade keeps
// what was configured and kept; a removal stops them, and purging leaves nothing.
func TestDebian(t *testing.T) {
	if os.Getenv(debianVar) == "" {
		t.Skip("runs with: make test-packages")
	}
	for _, tool := range []string{"mmdebstrap", "systemd-nspawn", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (tools/deps.sh packages)", tool)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("only root boots a container with systemd")
	}
	begin := time.Now()
	root := t.TempDir()
	fetchDebian(t, root)
	programs := map[string]string{"cloudrestd": "firmware/cmd/cloudrestd", "cloudrelay": "cloud/cmd/cloudrelay", "cloudrest": "tools/cmd/cloudrest"}
	for name, pkg := range programs {
		buildHost(t, filepath.Join(root, "root/v1.0.0", name), pkg)
		copyFile(t, filepath.Join(root, "root/v1.0.0", name), filepath.Join(root, "root/v1.1.0", name))
	}
	for i, version := range []string{"v1.0.0", "v1.1.0"} {
		makeDebs(t, filepath.Join(root, "root", version), version, i > 0)
	}
	c := boot(t, root)
	t.Logf("booted %.0f s after the start", time.Since(begin).Seconds())

	// Installed.
	c.run("apt-get install -y /root/v1.0.0/*_amd64.deb")
	c.run("systemctl is-enabled cloudrestd")
	c.eventually("systemctl is-active cloudrestd")
	c.eventually("cloudrestd status") // which needs the daemon's answer
	if got := c.run("ps -o user= -p $(systemctl show -P MainPID cloudrestd)"); strings.TrimSpace(got) != "cloudrest" {
		t.Errorf("the gateway runs as %q, want cloudrest", got)
	}
	status := ask("127.0.0.1:443", "/.cloudrest/v1/status")
	if got := c.eventually(status); !strings.Contains(got, "200 OK") || !strings.Contains(got, `"id"`) {
		t.Errorf("status at port 443: %s", got)
	}
	c.fails("systemctl is-enabled cloudrelay")
	c.fails("systemctl is-active cloudrelay")

	// The units, as systemd itself sees them.
	for _, unit := range []string{"cloudrestd.service", "cloudrelay.service"} {
		if out := c.run("systemd-analyze verify " + unit + " 2>&1"); strings.Contains(out, "cloudre") {
			t.Errorf("systemd-analyze verify: %s", out)
		}
		out := c.run("systemd-analyze security --no-pager " + unit)
		m := regexp.MustCompile(`Overall exposure level for ` + regexp.QuoteMeta(unit) + `: (\d+)\.(\d)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("systemd-analyze security says\n%s", out)
		}
		tenths, _ := strconv.Atoi(m[1] + m[2])
		t.Logf("systemd-analyze security %s: %s.%s of 10, at most %.1f", unit, m[1], m[2], maxExposure/10.)
		if tenths > maxExposure {
			t.Errorf("%s: exposure in tenths %d, at most %d:\n%s", unit, tenths, maxExposure, out)
		}
	}

	// Configured, as the package told.
	c.run("sed -i 's|^origin = .*|origin = http://127.0.0.1:8123|; $a name = Garden' /etc/cloudrest/cloudrestd.conf")
	c.run("systemctl restart cloudrestd")
	c.run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=relay.example -addext subjectAltName=DNS:relay.example " +
		"-keyout /etc/cloudrest/relay.key -out /etc/cloudrest/relay.pem 2>/dev/null; chown cloudrelay /etc/cloudrest/relay.key")
	c.run("printf 'domain = relay.example\\ntls-cert = /etc/cloudrest/relay.pem\\ntls-key = /etc/cloudrest/relay.key\\nlisten = 127.0.0.1:8444\\n' >>/etc/cloudrest/cloudrelay.conf")
	c.run("systemctl enable --now cloudrelay")
	if got := c.eventually(ask("127.0.0.1:8444", "/healthz")); !strings.Contains(got, "200 OK") {
		t.Errorf("the relay answers %s", got)
	}
	c.eventually(status + ` | grep '"name": *"Garden"'`)
	identity := c.run("sha256sum /var/lib/cloudrest/identity.json")
	config := c.run("sha256sum /etc/cloudrest/*")

	// Upgraded to packages that bring another configuration, with nobody to ask.
	c.run("apt-get install -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold /root/v1.1.0/*_amd64.deb")
	c.eventually("cloudrestd status")
	for _, name := range []string{"cloudrestd", "cloudrelay"} {
		c.eventually("systemctl is-active " + name)
		if got := c.run("readlink /proc/$(systemctl show -P MainPID " + name + ")/exe"); strings.TrimSpace(got) != "/usr/bin/"+name {
			t.Errorf("%s runs %q: want the new program, not the deleted old one", name, got)
		}
	}
	c.eventually(status + ` | grep '"name": *"Garden"'`)
	if got := c.run("sha256sum /var/lib/cloudrest/identity.json"); got != identity {
		t.Errorf("the upgrade has changed who the device is: %s, want %s", got, identity)
	}
	if got := c.run("sha256sum $(ls /etc/cloudrest/* | grep -v dpkg-dist)"); got != config {
		t.Errorf("the upgrade has changed the configuration:\n%swant\n%s", got, config)
	}
	c.run("grep 'another default' /etc/cloudrest/cloudrestd.conf.dpkg-dist")

	// Removed, and back: what was kept is there, what was on is on.
	c.run("apt-get remove -y cloudrestd cloudrelay")
	c.fails("systemctl is-active cloudrestd cloudrelay")
	c.run("test -s /var/lib/cloudrest/identity.json && grep Garden /etc/cloudrest/cloudrestd.conf")
	c.run("apt-get install -y -o Dpkg::Options::=--force-confold /root/v1.1.0/cloudrestd_amd64.deb /root/v1.1.0/cloudrelay_amd64.deb")
	c.eventually("systemctl is-active cloudrestd && systemctl is-active cloudrelay")
	// What the administrator has switched off stays off.
	c.run("systemctl disable --now cloudrestd && apt-get install -y --reinstall /root/v1.1.0/cloudrestd_amd64.deb")
	c.fails("systemctl is-active cloudrestd")

	// Purged.
	c.run("apt-get purge -y cloudrestd cloudrelay cloudrest")
	c.fails("pgrep ^cloudre")
	if got := c.run("find / -xdev '(' -path /proc -o -path /root ')' -prune -o -name '*cloudre*' -print"); strings.TrimSpace(got) != "/etc/cloudrest" {
		t.Errorf("left behind:\n%swant only /etc/cloudrest, where the relay's certificate is", got)
	}
	if got := c.run("ls /etc/cloudrest"); got != "relay.key\nrelay.pem\n" {
		t.Errorf("left behind in /etc/cloudrest:\n%swant only what the user put there", got)
	}
}

// ask is a command that makes an HTTPS request in the container.
func ask(addr, path string) string {
	return fmt.Sprintf(`printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' | timeout 20 openssl s_client -quiet -connect %s 2>/dev/null`, path, addr)
}

func fetchDebian(t *testing.T, root string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fetchWait)
	defer cancel()
	begin := time.Now()
	out, err := exec.CommandContext(ctx, "mmdebstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,ca-certificates,procps",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		debianSuite, root).CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Skipf("Debian cannot be fetched here: %v: %s", err, strings.Join(lines[max(0, len(lines)-5):], "\n"))
	}
	t.Logf("fetched Debian %s in %.0f s", debianSuite, time.Since(begin).Seconds())
}

// makeDebs makes packages of the programs in dist; those of the later
// version bring another configuration.
func makeDebs(t *testing.T, dist, version string, later bool) {
	t.Helper()
	root := "../.."
	if later {
		root = t.TempDir()
		for _, dir := range []string{"openwrt", "tools/systemd"} {
			if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(filepath.Join("../..", dir))); err != nil {
				t.Fatal(err)
			}
		}
		conf := filepath.Join(root, "tools/systemd/cloudrestd.conf")
		if err := os.WriteFile(conf, append(read(t, conf), "# another default\n"...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-root", root, "-dist", dist, "-version", version, "-time", fmt.Sprint(testTime)}
	for _, name := range []string{"cloudrestd", "cloudrelay", "cloudrest"} {
		args = append(args, name+"_amd64.deb:"+name)
	}
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
}

// buildHost builds a program of the main module as build.sh does.
func buildHost(t *testing.T, out, pkg string) {
	t.Helper()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./"+pkg)
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, read(t, from), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// container is a booted system.
type container struct {
	t    *testing.T
	init int // its process 1, as this machine numbers it
}

// boot has systemd boot the system, with a network of its own that leads nowhere.
func boot(t *testing.T, root string) *container {
	t.Helper()
	args := []string{"--quiet", "--directory=" + root, "--private-network", "--console=read-only", "--boot"}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		args = append([]string{"--register=no", "--keep-unit"}, args...) // no systemd here that could know of it
	}
	cmd := exec.Command("systemd-nspawn", args...)
	log := new(logBuffer)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var result error
	go func() { defer close(ended); result = cmd.Wait() }()
	c := &container{t: t}
	t.Cleanup(func() {
		if c.init != 0 {
			_ = syscall.Kill(c.init, powerOff)
		} else {
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-ended:
		case <-time.After(settleWait):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	var why error
	for deadline := time.Now().Add(bootWait); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		select {
		case <-ended:
			if c.init == 0 {
				t.Skipf("systemd does not boot in a container here: %v\n%s", result, log)
			}
			t.Fatalf("the container ended: %v\n%s", result, log)
		default:
		}
		if c.init == 0 {
			c.init = firstOf(cmd.Process.Pid)
			continue
		}
		var out string
		if out, why = c.try("systemctl is-system-running"); strings.TrimSpace(out) == "running" || strings.TrimSpace(out) == "degraded" {
			return c
		}
	}
	t.Fatalf("not booted: %v\n%s", why, log)
	return nil
}

// firstOf finds the process 1 of the namespace below a process; 0: none yet.
func firstOf(pid int) int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(text)) {
			n, err := strconv.Atoi(child)
			if err != nil {
				continue
			}
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", n))
			if m := regexp.MustCompile(`(?m)^NSpid:\s+\d+\s+1$`).Find(status); m != nil {
				if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n)); strings.TrimSpace(string(name)) == "systemd" {
					return n
				}
			}
			if found := firstOf(n); found != 0 {
				return found
			}
		}
	}
	return 0
}

// try runs a line of shell in the container.
func (c *container) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), bootWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(c.init), "-a", "-r", "-w", "/bin/sh", "-c", line)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", line, err, out.Bytes(), errOut.Bytes())
	}
	return out.String(), nil
}

func (c *container) run(line string) string {
	c.t.Helper()
	out, err := c.try(line)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *container) fails(line string) {
	c.t.Helper()
	if out, err := c.try(line); err == nil {
		c.t.Errorf("%s: %s; want that it fails", line, out)
	}
}

// eventually runs a line until it succeeds: services start in the background.
func (c *container) eventually(line string) string {
	c.t.Helper()
	for deadline := time.Now().Add(settleWait); ; time.Sleep(200 * time.Millisecond) {
		out, err := c.try(line)
		if err == nil {
			return out
		}
		if time.Now().After(deadline) {
			log, _ := c.try("journalctl --no-pager -n 60 -u cloudrestd -u cloudrelay")
			c.t.Fatalf("%v\n%s", err, log)
		}
	}
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
