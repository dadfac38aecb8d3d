package main

import (
	"bufio"
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
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// Ways through the built daemons.
const (
	pathGateway = "gateway"
	pathRelay   = "relay"
)

const (
	module   = "github.com/cloudrest/cloudrest/"
	host     = "localhost"     // the relay's name
	caFile   = "lan-ca.pem"    // where the gateway keeps its LAN authority, below its state directory
	stopTime = 5 * time.Second // for a daemon to end after SIGTERM
	againIn  = 50 * time.Millisecond
)

// daemons are the programs of one path while they run. All that they keep is in dir.
type daemons struct {
	dir     string    // removed by close
	bin     string    // where the programs are, built when they are missing
	logs    io.Writer // what they log
	options []string  // more of them for the gateway
	ends    []func()  // in the order of starting
}

// newDaemons makes the directory; close ends what start started.
func newDaemons(bin string, logs io.Writer, options []string) (*daemons, error) {
	dir, err := os.MkdirTemp("", "cloudrest-cachetests-")
	return &daemons{dir: dir, bin: bin, logs: logs, options: options}, err
}

func (d *daemons) close() {
	for i := len(d.ends) - 1; i >= 0; i-- {
		d.ends[i]()
	}
	_ = os.RemoveAll(d.dir)
}

// start puts the daemons of a path in front of the origin. It returns the URL that leads to
// the origin through them, and the PEM file of who certified the server there, or "".
func (d *daemons) start(ctx context.Context, path string, origin *url.URL) (target, ca string, err error) {
	switch path {
	case pathGateway:
		addr, _, err := d.gateway(ctx, origin)
		return "https://" + addr, filepath.Join(d.dir, "gateway", caFile), err
	case pathRelay:
	default:
		return "", "", fmt.Errorf("path %q, want %s or %s", path, pathGateway, pathRelay)
	}
	addr, token, roots, err := d.relay(ctx)
	if err != nil {
		return "", "", err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", err
	}
	_, id, err := d.gateway(ctx, origin, "--relay", "wss://"+net.JoinHostPort(host, port), "--relay-ca", filepath.Join(d.dir, "cert.pem"))
	if err != nil {
		return "", "", err
	}
	f, err := forward(addr, &tls.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"http/1.1"}}, token)
	if err != nil {
		return "", "", err
	}
	d.ends = append(d.ends, f.close)
	_, port, err = net.SplitHostPort(f.addr())
	if err != nil {
		return "", "", err
	}
	// The device as an origin of its own: below /d/<id> the relay has to change Location.
	name := id.Label() + "." + host
	return "http://" + net.JoinHostPort(name, port), "", reach(ctx, f.addr(), name)
}

// reach waits until the device behind the relay answers.
func reach(ctx context.Context, addr, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/index.html", nil)
		if err != nil {
			return err
		}
		r.Host = name
		resp, err := http.DefaultClient.Do(r)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach the suite's server through the relay: %w", err)
		case <-time.After(againIn):
		}
	}
}

// gateway starts cloudrestd.
func (d *daemons) gateway(ctx context.Context, origin *url.URL, options ...string) (addr string, id tether.DeviceID, err error) {
	program, err := d.build(ctx, "firmware/cmd/cloudrestd")
	if err != nil {
		return "", "", err
	}
	args := []string{"--origin", origin.String(), "--https", "127.0.0.1:0", "--http", "off", "--state-dir", filepath.Join(d.dir, "gateway"),
		"--fifo", "off", "--notify-socket", "off", "--mdns", "off", "--udp-discovery", "off", "--access", "open", "--uid-source", "random", "--log-format", "json"}
	var ready struct {
		HTTPS  string
		Device tether.DeviceID
	}
	err = d.run(exec.Command(program, slices.Concat(args, options, d.options)...), "the gateway is ready", &ready)
	return ready.HTTPS, ready.Device, err
}

// relay starts cloudrelay, and lets one client in.
func (d *daemons) relay(ctx context.Context) (addr, token string, roots *x509.CertPool, err error) {
	program, err := d.build(ctx, "cloud/cmd/cloudrelay")
	if err != nil {
		return "", "", nil, err
	}
	if roots, err = d.certify(); err != nil {
		return "", "", nil, fmt.Errorf("make a certificate: %w", err)
	}
	state := filepath.Join(d.dir, "relay")
	out, err := exec.CommandContext(ctx, program, "token", "--state-dir", state).Output()
	if err != nil {
		return "", "", nil, fmt.Errorf("make a token: %w", err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "crt_") {
			token = word
		}
	}
	var ready struct{ Listen string }
	err = d.run(exec.Command(program, "--domain", host, "--listen", "127.0.0.1:0", "--metrics", "off", "--state-dir", state, "--log-format", "json",
		"--tls-cert", filepath.Join(d.dir, "cert.pem"), "--tls-key", filepath.Join(d.dir, "key.pem")), "relay listens", &ready)
	return ready.Listen, token, roots, err
}

// build returns the path of a program; pkg is its package below the module's root.
func (d *daemons) build(ctx context.Context, pkg string) (string, error) {
	path := filepath.Join(d.bin, filepath.Base(pkg))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, module+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s (run this inside the module): %w\n%s", pkg, err, bytes.TrimSpace(out))
	}
	return path, nil
}

// run starts a daemon that logs JSON, and decodes its record with that message into ready.
func (d *daemons) run(cmd *exec.Cmd, message string, ready any) error {
	log, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	up, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(log)
		var last string
		for waiting := true; lines.Scan(); {
			last = lines.Text()
			fmt.Fprintln(d.logs, last)
			var record struct{ Msg string }
			if waiting && json.Unmarshal(lines.Bytes(), &record) == nil && record.Msg == message {
				waiting = false
				up <- json.Unmarshal(lines.Bytes(), ready)
			}
		}
		_, _ = io.Copy(io.Discard, log) // after a line that is too long
		_ = cmd.Wait()
		up <- fmt.Errorf("it ended: %s", last) // for nobody if it was up
	}()
	d.ends = append(d.ends, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(stopTime):
			_ = cmd.Process.Kill()
			<-done
		}
	})
	select {
	case err = <-up:
	case <-time.After(startTime):
		err = errors.New("it does not get ready")
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return nil
}

// certify writes cert.pem and key.pem for the relay.
func (d *daemons) certify() (*x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cachetests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return roots, errors.Join(
		os.WriteFile(filepath.Join(d.dir, "cert.pem"), cert, 0o600),
		os.WriteFile(filepath.Join(d.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}
