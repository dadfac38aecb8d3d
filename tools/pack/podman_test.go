package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const containerWait = 60 * time.Second // for one call of podman, and until a program answers

// limits: a machine that is a container itself may not raise them, as podman would.
var limits = []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}

// forbidden is what podman says where it is not allowed to run containers.
var forbidden = regexp.MustCompile(`(?i)not permitted|permission denied|cgroup|namespace`)

// podman is the real one, with images and containers in a folder of the test.
type podman struct {
	t    *testing.T
	base []string
}

func newPodman(t *testing.T) *podman {
	t.Helper()
	for _, tool := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (make deps)", tool)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("podman without root needs a user with sub-ids: not tested")
	}
	dir := t.TempDir()
	// The plain drivers work on any kernel; runc also where both versions of cgroups are.
	p := &podman{t, []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs",
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"}}
	t.Cleanup(func() { // mounts would keep the folder
		if out, err := p.call(context.Background(), "rm", "--all", "--force"); err != nil {
			t.Error(err, out)
		}
	})
	return p
}

func (p *podman) call(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, containerWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, "podman", append(p.base, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("podman %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (p *podman) run(args ...string) string {
	p.t.Helper()
	out, err := p.call(p.t.Context(), args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// start runs an image with nothing but what it needs, and the network of this machine,
// where it listens on loopback; it returns the address that the log tells.
func (p *podman) start(name string, address *regexp.Regexp, args ...string) string {
	p.t.Helper()
	p.run(slices.Concat([]string{"run", "--detach", "--name", name, "--network", "host", "--cap-drop", "all", "--security-opt", "no-new-privileges"}, limits, args)...)
	for deadline := time.Now().Add(containerWait); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if m := address.FindStringSubmatch(p.run("logs", name)); m != nil {
			return m[1]
		}
	}
	p.t.Fatalf("%s does not listen:\n%s", name, p.run("logs", name))
	return ""
}

// stop ends a container as podman stop does, and wants that it ends in good order.
func (p *podman) stop(name string) {
	p.t.Helper()
	p.run("stop", "--time", "30", name)
	if got := strings.TrimSpace(p.run("inspect", "--format", "{{.State.ExitCode}}", name)); got != "0" {
		p.t.Errorf("%s: exit status %s after SIGTERM, want 0:\n%s", name, got, p.run("logs", name))
	}
	p.run("rm", name)
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: containerWait, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestContainers loads both images into the real podman and runs them as operators would:
// no root, no capabilities, and state in a volume, which outlives the container; the relay
// needs nothing else that it can write to.
func TestContainers(t *testing.T) {
	p := newPodman(t)
	dist := t.TempDir()
	args := []string{"-dist", dist, "-version", "v1.2.3", "-time", fmt.Sprint(testTime)}
	for name, pkg := range map[string]string{"cloudrelay": "cloud/cmd/cloudrelay", "cloudrestd": "firmware/cmd/cloudrestd"} {
		buildHost(t, filepath.Join(dist, name), pkg)
		args = append(args, name+"_amd64.oci.tar:"+name)
	}
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cloudrelay", "cloudrestd"} {
		if out := p.run("load", "--input", filepath.Join(dist, name+"_amd64.oci.tar")); !strings.Contains(out, "localhost/"+name+":latest") {
			t.Errorf("podman load says %q, want the name of the image", out)
		}
		if got, want := strings.TrimSpace(p.run("inspect", "--format", `{{index .Labels "org.opencontainers.image.version"}} {{.Architecture}} {{.User}}`, "localhost/"+name)), "v1.2.3 amd64 65532:65532"; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := p.call(t.Context(), slices.Concat([]string{"run", "--rm", "--network", "none"}, limits, []string{"localhost/cloudrelay", "version"})...); err != nil {
		if forbidden.MatchString(err.Error()) {
			t.Skipf("this machine runs no containers; the images were only loaded: %v", err)
		}
		t.Fatal(err)
	}

	t.Run("relay", func(t *testing.T) {
		p := &podman{t, p.base}
		keys := t.TempDir()
		certify(t, keys)
		options := []string{"--read-only", "--volume", "relay-state:/var/lib/cloudrelay", "--volume", keys + ":/keys:ro"}
		token := p.run(slices.Concat([]string{"run", "--rm", "--network", "none"}, limits, options, []string{"localhost/cloudrelay", "token", "--name", "phone"})...)
		if !strings.Contains(token, "crt_") {
			t.Errorf("cloudrelay token says %q, want a token", token)
		}
		addr := p.start("cloudrelay", regexp.MustCompile(`relay listens.* listen=(\S+)`), append(options, "localhost/cloudrelay",
			"--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--domain", "relay.example", "--tls-cert", "/keys/cert.pem", "--tls-key", "/keys/key.pem")...)
		if status, text := get(t, "https://"+addr+"/healthz"); status != http.StatusOK {
			t.Errorf("healthz: %d %s, want 200", status, text)
		}
		if status, text := get(t, "https://"+addr+"/v1/devices/list"); status != http.StatusUnauthorized {
			t.Errorf("without a token: %d %s, want 401", status, text)
		}
		p.stop("cloudrelay")
	})

	t.Run("gateway", func(t *testing.T) {
		p := &podman{t, p.base}
		ready := regexp.MustCompile(`the gateway is ready.* device=([0-9a-f]{64}) https=(\S+)`)
		device := ""
		for range 2 { // the second container is another one, with the state of the first
			addr := p.start("cloudrestd", regexp.MustCompile(`the gateway is ready.* https=(\S+)`), "--volume", "gateway-state:/var/lib/cloudrest",
				"localhost/cloudrestd", "--https", "127.0.0.1:0", "--mdns", "off", "--udp-discovery", "off")
			id := ready.FindStringSubmatch(p.run("logs", "cloudrestd"))[1]
			if device != "" && id != device {
				t.Errorf("with the same state it is device %s, before it was %s", id, device)
			}
			device = id
			if status, text := get(t, "https://"+addr+"/.cloudrest/v1/status"); status != http.StatusOK || !strings.Contains(text, id) {
				t.Errorf("status: %d %s, want 200 and the device's id", status, text)
			}
			p.stop("cloudrestd")
		}
	})
}

// certify writes a certificate for relay.example and its key, which the image's user reads.
func certify(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay.example"}, DNSNames: []string{"relay.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
		os.Chown(keyFile, ociID, ociID), os.Chmod(dir, 0o755),
	); err != nil {
		t.Fatal(err)
	}
}
