package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
)

// buildImage makes an image.
func buildImage(t *testing.T, version, out string, args ...string) {
	t.Helper()
	t.Setenv("VERSION", version)
	var text bytes.Buffer
	begin := time.Now()
	args = append([]string{"build", "--out", out, "--secrets", filepath.Join(filepath.Dir(out), "secrets.json"), "--trial", "45s"}, args...)
	if code := run(args, &text, &text); code != exitOK {
		t.Fatalf("piimage %s: exit %d\n%s", strings.Join(args, " "), code, &text)
	}
	t.Logf("%s built in %v\n%s", version, time.Since(begin).Round(time.Second), &text)
}

// status is the part of the gateway's that the test looks at.
type status struct {
	ID          string `json:"id"`
	Version     string `json:"version"`
	Certificate string `json:"certificate_sha256"`
	Origin      struct{ State string }
}

// phone is a client of the gateway. It trusts the pin that it was given.
type phone struct {
	vm    *vm
	http  *http.Client
	token string
}

func newPhone(t *testing.T, v *vm, pin func() string) *phone {
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			want := pin()
			if want == "" {
				return nil
			}
			if len(cs.PeerCertificates) != 2 || cs.PeerCertificates[0].CheckSignatureFrom(cs.PeerCertificates[1]) != nil {
				return errors.New("not a leaf and its CA")
			}
			sum := sha256.Sum256(cs.PeerCertificates[1].RawSubjectPublicKeyInfo)
			if got := fmt.Sprintf("%x", sum); got != want {
				return fmt.Errorf("pin %s, want %s", got, want)
			}
			return nil
		},
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &phone{vm: v, http: &http.Client{Transport: transport}}
}

func (p *phone) do(method, path, body string, v any) error {
	req, err := http.NewRequest(method, p.vm.url(path), strings.NewReader(body))
	if err != nil {
		return err
	}
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	client := *p.http
	// Not long: what is sent before the guest's network is there may be lost.
	client.Timeout = 10 * time.Second
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, text)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(text, v)
}

// up waits for the gateway and the service behind it.
func (p *phone) up(t *testing.T) (s status) {
	t.Helper()
	eventually(t, "the gateway and the service", func() error {
		if err := p.do("GET", "/.cloudrest/v1/status", "", &s); err != nil {
			return err
		}
		if s.Origin.State != "up" {
			return fmt.Errorf("the service is %s", s.Origin.State)
		}
		return nil
	})
	return s
}

type event struct{ id, data string }

// events reads notifications after the one with id, as they come, until the stream ends.
func (p *phone) events(ctx context.Context, id string, got func(event)) error {
	req, err := http.NewRequestWithContext(ctx, "GET", p.vm.url("/.cloudrest/v1/events"), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	if id != "" {
		req.Header.Set("Last-Event-ID", id)
	}
	res, err := p.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	var e event
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimPrefix(value, " "); key {
		case "id":
			e.id = value
		case "data":
			e.data += value
		case "":
			if e.data != "" && e.id != "" {
				got(e)
			}
			e = event{}
		}
	}
	return lines.Err()
}

var invitation = regexp.MustCompile(`https://\S+/\.cloudrest/#c=([a-z2-7]{52})\.([\w-]{43})\.([\w-]+)`)

// The whole life of a device: the first start, pairing, a power cut in the middle of
// writes, an update that stays, one that does not, and the way back.
func TestImage(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	disk, secretsFile := filepath.Join(dir, "v1.img"), filepath.Join(dir, "secrets.json")
	buildImage(t, "v1.0.0", disk, "--board", "vm")

	begin := time.Now()
	v := newVM(t, virt, disk)
	pin := ""
	p := newPhone(t, v, func() string { return pin })
	first := p.up(t)
	t.Logf("in emulation, gateway and service answer %.1f s after the start", time.Since(begin).Seconds())
	if first.Version != "v1.0.0" {
		t.Errorf("version %q, want v1.0.0", first.Version)
	}
	if err := p.do("GET", "/zones", "", nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("the service before pairing: %v, want 401", err)
	}

	// Nobody without the password gets to gokrazy's own page.
	res, err := newPhone(t, v, func() string { return "" }).http.Get("https://" + v.updateAddress() + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the update page without a password: %s, want 401", res.Status)
	}
	// And the owner's tools talk only to the device that the image became.
	if _, _, err := openSecrets(filepath.Join(dir, "other.json"), "cloudrest"); err != nil {
		t.Fatal(err)
	}
	if out, code := tool("pair", v.updateAddress(), "--secrets", filepath.Join(dir, "other.json")); code == exitOK || !strings.Contains(out, errOther.Error()) {
		t.Errorf("with secrets of another image: exit %d, %s, want %q", code, out, errOther)
	}

	pin = p.pair(t, secretsFile)
	seen := p.writeUntilPowerCut(t)
	v.on()
	again := p.up(t)
	if again.ID != first.ID || again.Certificate != first.Certificate || first.Certificate != pin {
		t.Errorf("after the power cut: %+v, before: %+v, paired with %s: want the same identity and pin", again, first, pin)
	}
	if err := p.do("GET", "/zones", "", nil); err != nil {
		t.Errorf("the token after the power cut: %v", err)
	}
	p.sameEvents(t, seen)

	next := filepath.Join(dir, "v2.img")
	buildImage(t, "v2.0.0", next, "--board", "vm")
	begin = time.Now()
	out, code := tool("update", v.updateAddress(), "--secrets", secretsFile, "--image", next)
	t.Logf("update took %.0f s in emulation\n%s", time.Since(begin).Seconds(), out)
	if code != exitOK {
		t.Fatalf("piimage update: exit %d", code)
	}
	if s := p.up(t); s.Version != "v2.0.0" || s.ID != first.ID {
		t.Errorf("after the update: %+v, want v2.0.0 of %s", s, first.ID)
	}
	p.sameEvents(t, seen)

	// A service that ends at once: the new version does not stay, without anybody's help.
	bad := filepath.Join(dir, "v3.img")
	buildImage(t, "v3.0.0", bad, "--board", "vm", "--origin-binary", broken(t))
	out, code = tool("update", v.updateAddress(), "--secrets", secretsFile, "--image", bad)
	t.Logf("the bad update:\n%s", out)
	if code != exitFailed || !strings.Contains(out, errBack.Error()) {
		t.Errorf("piimage update to a broken version: exit %d, want %d and %q", code, exitFailed, errBack)
	}
	if s := p.up(t); s.Version != "v2.0.0" {
		t.Errorf("after the bad update: version %s, want v2.0.0", s.Version)
	}

	// An update once more over the bad slot, and a power cut while it is on trial, which it is
	// for long: its service does not answer either.
	c := &client{address: v.updateAddress(), secretsFile: secretsFile}
	buildImage(t, "v3.0.1", bad, "--board", "vm", "--origin-binary", broken(t), "--trial", "1h")
	cutOnTrial(t, v, c, bad)
	if s := p.up(t); s.Version != "v2.0.0" {
		t.Errorf("after a power cut on trial: version %s, want v2.0.0", s.Version)
	}

	buildImage(t, "v4.0.0", next, "--board", "vm")
	out, code = tool("update", v.updateAddress(), "--secrets", secretsFile, "--image", next, "--with-kernel")
	if code != exitOK {
		t.Fatalf("piimage update --with-kernel: exit %d\n%s", code, out)
	}
	if s := p.up(t); s.Version != "v4.0.0" {
		t.Errorf("after the update with kernel: version %s, want v4.0.0", s.Version)
	}
	out, code = tool("switch-back", v.updateAddress(), "--secrets", secretsFile)
	t.Logf("switch-back:\n%s", out)
	if s := p.up(t); code != exitOK || s.Version != "v2.0.0" || s.ID != first.ID {
		t.Errorf("piimage switch-back: exit %d, then %+v, want v2.0.0 of %s", code, s, first.ID)
	}
	p.sameEvents(t, seen)
}

// pair has the owner's tool print an invitation and uses it. It returns the pin in it.
func (p *phone) pair(t *testing.T, secretsFile string) (pin string) {
	t.Helper()
	out, code := tool("pair", p.vm.updateAddress(), "--secrets", secretsFile)
	m := invitation.FindStringSubmatch(out)
	if code != exitOK || m == nil {
		t.Fatalf("piimage pair: exit %d, no invitation in:\n%s", code, out)
	}
	raw, err := base64.RawURLEncoding.DecodeString(m[2])
	if err != nil {
		t.Fatal(err)
	}
	var paired struct{ Token string }
	body, _ := json.Marshal(map[string]string{"name": "test", "secret": m[3]})
	if err := p.do("POST", "/.cloudrest/v1/pair", string(body), &paired); err != nil || paired.Token == "" {
		t.Fatalf("pair: %v, token %q", err, paired.Token)
	}
	p.http.CloseIdleConnections() // the next one is to meet the pin
	p.token = paired.Token
	if err := p.do("GET", "/zones", "", nil); err != nil {
		t.Fatalf("the service after pairing: %v", err)
	}
	return fmt.Sprintf("%x", raw)
}

func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{qemu, qemuARM, "mkfs.ext4", "mformat"} {
		if _, err := findTool(tool, ""); err != nil {
			t.Skipf("%s is not installed (tools/deps.sh image)", tool)
		}
	}
}

// The image for the Raspberry Pi itself, with its kernel.
func TestPi3(t *testing.T) {
	needTools(t)
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/gokrazy/kernel.rpi").Output()
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "pi.img")
	// QEMU's network adapter is another one than the board's.
	buildImage(t, "v1.0.0", disk, "--interface", "usb0")
	begin := time.Now()
	v := newVM(t, pi3(filepath.Join(strings.TrimSpace(string(out)), "bcm2710-rpi-3-b.dtb")), disk)
	s := newPhone(t, v, func() string { return "" }).up(t)
	t.Logf("in emulation, gateway and service answer %.0f s after the start", time.Since(begin).Seconds())
	if s.Version != "v1.0.0" {
		t.Errorf("version %q, want v1.0.0", s.Version)
	}
	c := &client{address: v.updateAddress(), secretsFile: filepath.Join(filepath.Dir(disk), "secrets.json")}
	now, _, err := c.target(t.Context(), io.Discard)
	if want := "Raspberry Pi 3 Model B"; err != nil || now.Model != want {
		t.Errorf("model %q, %v, want %q", now.Model, err, want)
	}
}

// tool runs piimage.
func tool(args ...string) (string, int) {
	var out bytes.Buffer
	code := run(args, &out, &out)
	return out.String(), code
}

// writeUntilPowerCut has the service send notifications as fast as it can, and cuts the
// power in the middle. It returns what a phone had seen.
func (p *phone) writeUntilPowerCut(t *testing.T) []event {
	t.Helper()
	const enough = 40
	var mu sync.Mutex
	var seen []event
	cut := make(chan struct{})
	listened := make(chan error, 1)
	go func() {
		listened <- p.events(t.Context(), "", func(e event) {
			mu.Lock()
			defer mu.Unlock()
			if seen = append(seen, e); len(seen) == enough {
				close(cut)
			}
		})
	}()
	stop := make(chan struct{})
	var writers sync.WaitGroup
	writers.Go(func() {
		for {
			for _, act := range []string{"start", "stop"} {
				select {
				case <-stop:
					return
				default:
					p.do("POST", "/zones/2/"+act, "", nil) // the last ones meet the power cut
				}
			}
		}
	})
	select {
	case <-cut:
	case err := <-listened:
		t.Errorf("events ended: %v", err)
	case <-time.After(patience):
		t.Errorf("less than %d events", enough)
	}
	p.vm.cut()
	close(stop)
	p.http.CloseIdleConnections()
	writers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	<-listened
	t.Logf("the power was cut after %d notifications had been seen", len(seen))
	return seen
}

// sameEvents asks for everything after the first event of want.
func (p *phone) sameEvents(t *testing.T, want []event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got []event
	err := p.events(ctx, want[0].id, func(e event) {
		if got = append(got, e); len(got) == len(want)-1 {
			cancel() // the stream does not end by itself
		}
	})
	if len(got) < len(want)-1 || !slices.Equal(got[:len(want)-1], want[1:]) {
		t.Errorf("after restart: %d events (%v), want the %d that were seen:\n%v\n%v", len(got), err, len(want)-1, got, want[1:])
	}
}

// broken is a service that ends at once.
func broken(t *testing.T, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "broken")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() { panic(\"broken\") }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", program, source)
	cmd.Env = append(append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// cutOnTrial updates the device and cuts the power before the new version is accepted.
func cutOnTrial(t *testing.T, v *vm, c *client, image string) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := rootSize(f)
	if err != nil {
		t.Fatal(err)
	}
	before, target, err := c.target(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.send(t.Context(), target, io.Discard, "root", "root", io.NewSectionReader(f, bootpart.RootStart, n), n); err != nil {
		t.Fatal(err)
	}
	if err := target.Testboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.restart(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the trial", func() error {
		now, _, err := c.both(t.Context())
		if err == nil && now.same(before) {
			err = errors.New("not yet")
		}
		return err
	})
	v.cut()
	v.on()
}

// Two builds of one commit have one time stamp: the slot tells them apart.
func TestSameVersion(t *testing.T) {
	for _, c := range []struct {
		now, before overview
		want        bool
	}{
		{overview{BuildTimestamp: "1", slot: "A"}, overview{BuildTimestamp: "1", slot: "A"}, true},
		{overview{BuildTimestamp: "1", slot: "B"}, overview{BuildTimestamp: "1", slot: "A"}, false},
		{overview{BuildTimestamp: "2", slot: "B"}, overview{BuildTimestamp: "1"}, false},
		{overview{BuildTimestamp: "1"}, overview{BuildTimestamp: "1", slot: "A"}, true},
	} {
		if got := c.now.same(c.before); got != c.want {
			t.Errorf("%+v after %+v: same = %v, want %v", c.now, c.before, got, c.want)
		}
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"build", "--board", "zx81"}, "--board"},
		{[]string{"build", "--hostname", "a_b"}, "--hostname"},
		{[]string{"build", "--size", "1G"}, "want at least"},
		{[]string{"build", "--size", "big"}, "want a number"},
		{[]string{"build", "--relay", "https://relay.example"}, "want wss://"},
		{[]string{"build", "--origin-binary", "main.go"}, "--origin-binary"},
		{[]string{"build", "--origin-arg", "x"}, "--origin-arg"},
		{[]string{"build", "--board", "vm", "--wifi-ssid", "Garden"}, "no radio"},
		{[]string{"build", "--wifi-ssid", strings.Repeat("x", maxSSID+1)}, "at most 32 bytes"},
		{[]string{"build", "--wifi-psk-file", "x"}, "are for --wifi-ssid"},
		{[]string{"build", "--radio-deb", "x"}, "are for --wifi-ssid"},
		{[]string{"build", "--radio-files", "onboard"}, "are for --wifi-ssid"},
		{[]string{"build", "--wifi-ssid", "Garden", "--radio-files", "onboard"}, "names begin with brcmfmac"},
		{[]string{"build", "--wifi-ssid", "Garden", "--radio-files", "no such folder"}, "--radio-files"},
		{[]string{"build", "--wifi-ssid", "Garden", "--wifi-psk-file", "no such file"}, "--wifi-psk-file"},
		{[]string{"build", "--no-secrets", "--wifi-ssid", "Garden", "--wifi-psk-file", "x"}, "a passphrase may not"},
		{[]string{"build", "--board", "zero-w", "--wifi-psk-file", "x"}, "--wifi-psk-file"},
		{[]string{"build", "--board", "zero-w", "--wifi-ssid", "Garden", "--wifi-psk-file", "/dev/null"}, "8 to 63"},
		{[]string{"build", "--kernel-deb", "x.deb"}, "--kernel-deb"},
		{[]string{"build", "--no-secrets", "--secrets", "x"}, "--no-secrets"},
		{[]string{"build", "--update-key", "a", "--sign-key", "b"}, "--sign-key"},
		{[]string{"build", "--board", "zero-w", "--size", "100M"}, "want at least"},
		{[]string{"build", "--origin", "http://127.0.0.1:9"}, "--origin"},
		{[]string{"update"}, "name the device"},
		{[]string{"update", "a", "b"}, "unexpected argument"},
		{[]string{"fly"}, "unknown command"},
	} {
		if out, code := tool(c.args...); code != exitUsage || !strings.Contains(out, c.want) {
			t.Errorf("piimage %v: exit %d, %q, want %d and %q", c.args, code, out, exitUsage, c.want)
		}
	}
}

func TestSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.json")
	s, made, err := openSecrets(path, "garden")
	if err != nil || !made {
		t.Fatalf("made %v, %v", made, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", st.Mode(), err)
	}
	again, made, err := openSecrets(path, "garden")
	if err != nil || made || *again != *s {
		t.Errorf("read back: made %v, %v; the same: %v", made, err, again != nil && *again == *s)
	}
	if _, _, err := openSecrets(path, "kitchen"); err == nil {
		t.Error("for another host name: want an error")
	}
	other, _ := newSecrets("garden")
	if other.Password == s.Password || len(s.Password) < 26 {
		t.Errorf("passwords %q and %q: want random ones", s.Password, other.Password)
	}
	if err := other.write(path); err == nil {
		t.Error("written over other secrets")
	}
	c := &client{address: "[fe80::1]", secretsFile: path}
	if err := c.open(); err != nil || c.base != "https://[fe80::1]:10443/" {
		t.Errorf("address %q, %v", c.base, err)
	}
	if u, err := url.Parse(c.base); err != nil || u.User != nil {
		t.Errorf("%q: want no password in the URL", c.base)
	}
}
