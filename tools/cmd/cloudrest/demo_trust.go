package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

// The demo's part about who is who: the factory, the impostor, the first phone.

// uidBytes is the length of the UID that the demo's board has: that of a SPI flash.
const uidBytes = 8

// provisionDevice runs a factory station and takes the device through it, before the
// gateway is started for the first time.
func (d *demo) provisionDevice(ctx context.Context) (string, error) {
	uid := make([]byte, uidBytes)
	rand.Read(uid)
	if err := os.WriteFile(d.path("uid"), []byte(hex.EncodeToString(uid)+"\n"), 0o600); err != nil {
		return "", err
	}
	station, err := freeAddress("127.0.0.1")
	if err != nil {
		return "", err
	}
	state := d.path("factory")
	p, err := d.start("factory", "serve", "--listen", station, "--state-dir", state, "--name", "demo line")
	if err != nil {
		return "", err
	}
	err = eventually(ctx, p, func() error {
		c, err := net.Dial("tcp", station)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return "", err
	}
	out, err := d.command(ctx, "factory", "token", "new", "--count", "1", "--out", d.path("batch-token"), "--state-dir", state).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("factory token new: %w: %s", err, strings.TrimSpace(string(out)))
	}
	line, err := d.command(ctx, "cloudrestd", "provision", "--factory", "https://"+station, "--factory-ca", d.factoryCA(), "--batch-token-file", d.path("batch-token"),
		"--origin", d.origin, "--state-dir", d.path("gateway"), "--uid-source", "file="+d.path("uid"), "--wait", stepTime.String(), "--json").Output()
	if err != nil {
		return "", fmt.Errorf("cloudrestd provision: %w", withStderr(err))
	}
	var result struct {
		Device tether.DeviceID `json:"device"`
	}
	if err := json.Unmarshal(line, &result); err != nil || len(result.Device) < 2 {
		return "", fmt.Errorf("cloudrestd provision said %q (%v)", line, err)
	}
	if _, err := os.Stat(d.path("batch-token")); err == nil {
		return "", errors.New("the batch token is still there, and with it the right to claim")
	}
	return fmt.Sprintf("device %s has its certificate, the batch token is gone", result.Device.Short()), nil
}

func (d *demo) factoryCA() string { return d.path("factory/factory-ca.pem") }

// unpaired shows that the LAN alone opens nothing but the description of the device.
func (d *demo) unpaired(ctx context.Context) (string, error) {
	if err := d.lanPath.call(ctx, http.MethodGet, "/device", "", nil); err != nil {
		return "", err
	}
	err := d.lanPath.call(ctx, http.MethodGet, "/zones", "", nil)
	if se, ok := errors.AsType[*statusError](err); ok && se.code == http.StatusUnauthorized {
		return "/device answers, /zones is 401 Unauthorized", nil
	}
	return "", fmt.Errorf("GET /zones = %v, want 401 Unauthorized", err)
}

// asks is how cloudrestd pair --open tells of somebody who asks.
var (
	asks    = regexp.MustCompile(`asks\. Its code: (\d{3}) (\d{3})`)
	approve = regexp.MustCompile(`--approve ([0-9a-f]+)`)
)

// pairPhone is both people of a pairing: one at the device with cloudrestd pair --open, one
// with the phone, and both read the code aloud.
func (d *demo) pairPhone(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := d.command(ctx, "cloudrestd", "pair", "--open", "--state-dir", d.path("gateway"))
	said, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer cmd.Wait()
	defer cancel()
	lines := bufio.NewScanner(said)
	if !lines.Scan() {
		return "", errors.New("cloudrestd pair --open said nothing")
	}

	p, err := openPins(d.path("pins.json"))
	if err != nil {
		return "", err
	}
	found := p.find(string(d.id))
	if len(found) != 1 {
		return "", errors.New("the device is not remembered")
	}
	onPhone := make(chan string, 1)
	a := &asker{pin: found[0], name: "demo phone", say: func(text string) { onPhone <- text }}
	ended := make(chan error, 1)
	go func() { _, err := a.pair(ctx); ended <- err }()

	code := ""
	for lines.Scan() {
		if m := asks.FindStringSubmatch(lines.Text()); m != nil {
			code = m[1] + " " + m[2]
		}
		m := approve.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		select {
		case text := <-onPhone:
			if !strings.Contains(text, code) {
				return "", fmt.Errorf("the device shows %q, the phone %q", code, text)
			}
		case err := <-ended:
			return "", err
		}
		if out, err := d.command(ctx, "cloudrestd", "pair", "--approve", m[1], "--state-dir", d.path("gateway")).CombinedOutput(); err != nil {
			return "", fmt.Errorf("cloudrestd pair --approve: %w: %s", err, strings.TrimSpace(string(out)))
		}
		break
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return "", err
	}
	if err := p.put(a.pin); err != nil {
		return "", err
	}
	d.lanPath = lanRemote(d.lanPath.base, a.pin)
	return fmt.Sprintf("both show %s, the phone has a token", code), nil
}

// impostor is a second board whose maker read the UID off the first one: the same device
// ID, but another key and no certificate from the factory.
func (d *demo) impostor(ctx context.Context) (string, error) {
	address, err := freeAddress("127.0.0.1")
	if err != nil {
		return "", err
	}
	l, err := newLogFile(d.path("impostor.log"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	cmd := d.command(ctx, "cloudrestd", "run", "--origin", d.origin, "--https", address, "--http", "off", "--state-dir", d.path("impostor"),
		"--uid-source", "file="+d.path("uid"), "--relay", "wss://"+d.relay, "--relay-ca", d.path("ca.pem"), "--mdns", "off", "--udp-discovery", "off", "--fifo", "off")
	cmd.Stdout, cmd.Stderr = l, l
	if err := cmd.Start(); err != nil {
		cancel()
		return "", err
	}
	defer cmd.Wait()
	defer cancel()
	var s struct {
		ID     tether.DeviceID `json:"id"`
		Tether struct {
			State string `json:"state"`
			Error string `json:"error"`
		} `json:"tether"`
	}
	m := &remote{base: &url.URL{Scheme: "https", Host: address}, client: clientFor(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})}
	err = eventually(ctx, nil, func() error {
		if err := m.call(ctx, http.MethodGet, tether.OwnPrefix+"v1/status", "", &s); err != nil {
			return err
		}
		if s.Tether.State == "up" {
			return errors.New("THE RELAY LET IT IN")
		}
		if !strings.Contains(s.Tether.Error, "refused") {
			return fmt.Errorf("the relay has not refused it yet: %q", s.Tether.Error)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if s.ID != d.id {
		return "", fmt.Errorf("the impostor has the ID %s, want the same as the device's", s.ID.Short())
	}
	if err := d.viaRel.call(ctx, http.MethodGet, "/device", "", nil); err != nil {
		return "", fmt.Errorf("the real device beside it: %w", err)
	}
	why := s.Tether.Error
	if m := said.FindStringSubmatch(why); m != nil {
		why = m[1]
	}
	return fmt.Sprintf("same ID %s, but %s", s.ID.Short(), why), nil
}

// said is what the relay said when it refused.
var said = regexp.MustCompile(`\("(.*)"\)`)
