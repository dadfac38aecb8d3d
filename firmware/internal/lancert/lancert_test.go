package lancert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
)

var (
	id    = tether.NewDeviceID([]byte("lancert"))
	build = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
)

// clock is set by hand.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func open(t *testing.T, cfg Config) *Authority {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.ID = id
	a, _, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// verify checks the leaf as a client does in whose store the authority is installed.
func verify(a *Authority, name string, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(a.CA())
	_, err := a.Leaf().Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
	return err
}

func TestAuthorityIsKeptForLife(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, oldFile), []byte("of a version before"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &clock{build.AddDate(0, 1, 0)}
	cfg := Config{Dir: dir, ID: id, HostName: "cam-7", Floor: build, Now: c.now, Addrs: addrs("192.168.1.7", "fe80::1%eth0", "fd00::7", "203.0.113.9", "2001:db8::1", "::ffff:10.1.2.3")}
	first, made, err := Open(cfg)
	if err != nil || made != FirstStart {
		t.Fatalf("Open: %q, %v, want %q", made, err, FirstStart)
	}
	if st, err := os.Stat(filepath.Join(dir, File)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("file = %v, %v, want 0600", st, err)
	}
	if _, err := os.Stat(filepath.Join(dir, oldFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", oldFile, err)
	}
	ca := first.CA()
	if !ca.NotBefore.Equal(build.AddDate(0, 0, -1)) || !ca.NotAfter.Equal(build.AddDate(caYears, 0, 0)) {
		t.Errorf("the authority is valid %v to %v, want %d years from a day before %v", ca.NotBefore, ca.NotAfter, caYears, build)
	}
	if !ca.IsCA || !ca.MaxPathLenZero || ca.KeyUsage != x509.KeyUsageCertSign || !ca.PermittedDNSDomainsCritical || first.Pin() != trust.Pin(ca) {
		t.Errorf("the authority is %+v with pin %s", ca, first.Pin())
	}
	leaf := first.Leaf()
	if life := leaf.NotAfter.Sub(leaf.NotBefore); leaf.IsCA || life != leafLife || !leaf.NotBefore.Equal(c.AddDate(0, 0, -1)) {
		t.Errorf("the leaf is valid %v from %v, want %v from a day before %v", life, leaf.NotBefore, leafLife, c.Time)
	}
	for _, name := range []string{LocalName(id), "localhost", "cam-7", "cam-7.local", "cam-7.lan", "cam-7.home.arpa", "cam-7.internal",
		"192.168.1.7", "[fe80::1]", "[fd00::7]", "10.1.2.3", "127.0.0.1", "[::1]"} {
		if err := verify(first, name, c.Time); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"203.0.113.9", "[2001:db8::1]", "example.org", "cam-8.local"} {
		if err := verify(first, name, c.Time); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}

	before, err := os.ReadFile(filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	// Another start, years later, with another name and a newer build: the same authority.
	c.Time, cfg.HostName, cfg.Addrs, cfg.Floor = build.AddDate(20, 0, 0), "shed-1", addrs("192.168.9.9"), build.AddDate(8, 0, 0)
	second, made, err := Open(cfg)
	if err != nil || made != "" || second.Pin() != first.Pin() || !bytes.Equal(second.CA().Raw, ca.Raw) {
		t.Fatalf("second Open: %q, %v, pin %s, want the same as before, %s", made, err, second.Pin(), first.Pin())
	}
	if after, err := os.ReadFile(filepath.Join(dir, File)); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the file changed (%v)", err)
	}
	// "shed-1" alone was not the machine's name when the authority was made.
	if want := []string{LocalName(id), "localhost", "shed-1.home.arpa", "shed-1.internal", "shed-1.lan", "shed-1.local"}; !slices.Equal(second.Leaf().DNSNames, want) {
		t.Errorf("names = %v, want %v", second.Leaf().DNSNames, want)
	}
	if err := verify(second, "192.168.9.9", c.Time); err != nil {
		t.Error(err)
	}
}

// A thief of the authority's key cannot use it for the internet, wherever it is installed.
func TestConstraints(t *testing.T) {
	a := open(t, Config{HostName: "box.example.org", Floor: build})
	at := build.AddDate(0, 1, 0)
	for name, want := range map[string]bool{
		"printer.local": true, "box.example.org": true, "a.home.arpa": true, "x.internal": true, "x.lan": true, "localhost": true,
		"example.org": false, "www.example.org": false, "bank.example": false, "notlocal": false, "evillocal": false,
		"192.168.200.1": true, "10.0.0.1": true, "127.9.9.9": true, "169.254.1.1": true, "[fd12::1]": true, "[fe80::9]": true, "[::1]": true,
		"8.8.8.8": false, "172.32.0.1": false, "100.64.0.1": false, "[2001:db8::1]": false, "[::2]": false,
	} {
		var names []string
		var ips []netip.Addr
		if ip, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
			ips = append(ips, ip)
		} else {
			names = append(names, name)
		}
		leaf, err := a.issue(names, ips, build, build.AddDate(1, 0, 0)) // past the filter of names and addresses
		if err != nil {
			t.Fatal(err)
		}
		a.leaf.Store(leaf)
		if err := verify(a, name, at); (err == nil) != want {
			t.Errorf("a leaf for %s: %v, want good = %v", name, err, want)
		}
	}
}

func TestOneWordIsNoConstraint(t *testing.T) {
	for host, want := range map[string]bool{
		"camera": false, "com": false, "xn--garden-1": false, "localhost": false, "garden.local": false, "": false,
		"cam7": true, "openwrt-3": true, "box.example.org": true,
	} {
		a := open(t, Config{HostName: host})
		if got := slices.Contains(a.CA().PermittedDNSDomains, host); got != want && host != "localhost" {
			t.Errorf("host %q is permitted: %v, want %v", host, got, want)
		}
		if got := slices.Contains(a.Leaf().DNSNames, host); host != "" && got != (want || host == "localhost" || host == "garden.local") {
			t.Errorf("host %q is in the leaf: %v", host, got)
		}
		if host == "camera" && !slices.Contains(a.Leaf().DNSNames, "camera.local") {
			t.Errorf("names = %v, want camera.local among them", a.Leaf().DNSNames)
		}
	}
}

func TestOddNamesAndAddresses(t *testing.T) {
	for _, h := range []string{"", "localhost", "a_b", "-a", "a..b", "ä", strings.Repeat("x", 64), "a b", "192.168.1.1", "fe80::1", strings.Repeat("a.", 127) + "a"} {
		a := open(t, Config{HostName: h})
		if got := a.Leaf().DNSNames; len(got) != 2 {
			t.Errorf("names with host %q = %v, want two", h, got)
		}
	}
	var many []netip.Addr
	for i := range 3 * maxAddrs {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	a := open(t, Config{Addrs: append(many, netip.Addr{}, netip.IPv6Unspecified())})
	if got := len(a.Leaf().IPAddresses); got != maxAddrs {
		t.Errorf("%d addresses, want %d", got, maxAddrs)
	}
	if why, err := a.Update("", many); why != "" || err != nil {
		t.Errorf("the same again: %q, %v", why, err)
	}
}

func TestDamaged(t *testing.T) {
	for name, content := range map[string]string{"half a file": "-----BEGIN", "not an authority": string(leafPEM(t))} {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, File), []byte(content), 0o600)
		a, made, err := Open(Config{Dir: dir, ID: id})
		if err != nil || !strings.Contains(made, "damaged") {
			t.Fatalf("%s: Open: %q, %v", name, made, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, File+".damaged")); err != nil || string(b) != content {
			t.Errorf("%s: set aside: %q, %v", name, b, err)
		}
		if again, made, err := Open(Config{Dir: dir, ID: id}); err != nil || made != "" || again.Pin() != a.Pin() {
			t.Errorf("%s: after that: %q, %v", name, made, err)
		}
		os.Chmod(filepath.Join(dir, File), 0o644)
		if _, _, err := Open(Config{Dir: dir, ID: id}); !errors.Is(err, statefile.ErrPermissions) {
			t.Errorf("%s: readable key: %v, want ErrPermissions", name, err)
		}
	}
	if _, _, err := Open(Config{Dir: filepath.Join(t.TempDir(), "none"), ID: id}); err == nil {
		t.Error("an authority that cannot be kept is used")
	}
}

func leafPEM(t *testing.T) []byte {
	pair, _ := open(t, Config{}).GetCertificate(nil)
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
}

// The leaf follows what is new at once, and what is gone only with the next one: an address
// that comes and goes makes one leaf, and none of them touches the authority's file.
func TestUpdate(t *testing.T) {
	dir := t.TempDir()
	a := open(t, Config{Dir: dir, HostName: "cam7", Addrs: addrs("192.168.1.7")})
	st, err := os.Stat(filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		host  string
		addrs []netip.Addr
		why   string
	}{
		{"cam7", addrs("192.168.1.7"), ""},
		{"cam7", addrs("192.168.1.7", "fe80::5%wlan0"), "fe80::5 is new"},
		{"cam7", addrs("192.168.1.7"), ""},
		{"cam7", nil, ""},
		{"cam7", addrs("192.168.1.7", "fe80::5%eth0"), ""},
		{"cam7", addrs("203.0.113.5"), ""}, // not for the authority to sign
		{"cam8", addrs("192.168.1.7"), "cam8.home.arpa is new"},
		{"cam8", addrs("192.168.1.7", "fe80::5"), "fe80::5 is new"},
	}
	for i, s := range steps {
		before := a.Leaf()
		why, err := a.Update(s.host, s.addrs)
		if err != nil || why != s.why || (a.Leaf() == before) != (s.why == "") {
			t.Errorf("step %d: %q, %v, want %q", i, why, err, s.why)
		}
	}
	after, err := os.Stat(filepath.Join(dir, File))
	if err != nil || !after.ModTime().Equal(st.ModTime()) || !os.SameFile(st, after) {
		t.Errorf("the file was written anew (%v)", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 2 {
		t.Errorf("the directory holds %v, want the authority and a leaf", list)
	}
}

// The clock jumps while the device runs, and is wrong when it starts (TRUST.md §5, 11).
func TestClock(t *testing.T) {
	real := build.AddDate(0, 6, 0)
	c := &clock{time.Unix(1000, 0)}
	a := open(t, Config{Floor: build, Now: c.now})
	pin := a.Pin()
	check := func(what, why string, at ...time.Time) {
		t.Helper()
		got, err := a.Update("", nil)
		if err != nil || got != why {
			t.Errorf("%s: %q, %v, want %q", what, got, err, why)
		}
		for _, now := range at {
			if err := verify(a, "localhost", now); err != nil {
				t.Errorf("%s, client at %v: %v", what, now, err)
			}
		}
		if a.Pin() != pin {
			t.Errorf("%s: the pin changed", what)
		}
	}
	check("1970", "", build, real, real.AddDate(10, 0, 0), real.AddDate(40, 0, 0))
	if l := a.Leaf(); !l.NotBefore.Equal(build.AddDate(0, 0, -1)) || !l.NotAfter.Equal(a.CA().NotAfter) {
		t.Errorf("1970: valid %v to %v, want from a day before the build to the authority's end", l.NotBefore, l.NotAfter)
	}
	c.Time = real
	check("the clock is set", "the clock is right now", real, real.AddDate(1, 0, 0))
	c.Time = real.Add(time.Hour)
	check("one hour on", "", real)
	c.Time = real.Add(-time.Hour)
	check("one hour back", "", real)
	c.Time = real.AddDate(10, 0, 0)
	check("ten years on", "the old one ends soon", c.Time)
	c.Time = real
	check("and back", "the clock was set back", real)
	c.Time = real.AddDate(-10, 0, 0)
	check("ten years back", "the clock is wrong now", real, real.AddDate(10, 0, 0))
	c.Time = real
	check("and on", "the clock is right now", real)
	c.Time = real.AddDate(60, 0, 0)
	check("sixty years on", "the clock is wrong now", real)
	c.Time = time.Unix(0, 0)
	check("1970 again", "", real)
}

// A firmware of an earlier build than the one that made the authority.
func TestOlderBuild(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir, Floor: build})
	c := &clock{build.AddDate(0, 0, -10)}
	a := open(t, Config{Dir: dir, Floor: build.AddDate(0, -6, 0), Now: c.now})
	if err := verify(a, "localhost", build); err != nil {
		t.Error(err)
	}
	if l := a.Leaf(); !l.NotAfter.Equal(a.CA().NotAfter) { // a clock from before the authority cannot be right
		t.Errorf("the leaf ends %v, want with the authority, %v", l.NotAfter, a.CA().NotAfter)
	}
}

// Left alone, the leaf is renewed with a third of its life left, without a pause.
func TestRunRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		began := time.Now()
		const speed = 60 // of this clock: a look per hour is enough for the test
		now := func() time.Time { return build.Add(speed * time.Since(began)) }
		a := open(t, Config{Floor: build, Now: now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		first := a.Leaf()
		for range 3 * 365 {
			time.Sleep(day / speed)
			synctest.Wait()
			if err := verify(a, "localhost", now()); err != nil {
				t.Fatal(err)
			}
			if left := a.Leaf().NotAfter.Sub(now()); left < renewLeft-day {
				t.Fatalf("%v left, want a new leaf at %v", left, renewLeft)
			}
		}
		if a.Leaf() == first {
			t.Error("the leaf was never renewed")
		}
		if got := strings.Count(log.String(), "the old one ends soon"); got != 4 { // 3 years / (2/3 of 397 days - 1 day of slack)
			t.Errorf("renewed %d times in three years, want 4", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// A pinned client and one with the authority installed reach the device by TLS; a connection
// goes on while the leaf changes, and the next one sees the new leaf.
func TestHandshake(t *testing.T) {
	a := open(t, Config{})
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: a.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // echo
				b := make([]byte, 1)
				for {
					if _, err := c.Read(b); err != nil {
						c.Close()
						return
					}
					c.Write(b)
				}
			}()
		}
	}()
	echo := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := []byte{7}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(b); err != nil || b[0] != 7 {
			t.Fatalf("echo = %v, %v", b, err)
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.CA())
	dial := func(conf *tls.Config) *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", l.Addr().String(), conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	old := dial(&tls.Config{RootCAs: roots, ServerName: LocalName(id)})
	echo(old)
	if _, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "192.168.77.1"}); err == nil {
		t.Error("an address that the device does not have is accepted")
	}
	if why, err := a.Update("", addrs("192.168.77.1")); err != nil || why == "" {
		t.Fatalf("Update: %q, %v", why, err)
	}
	echo(dial(&tls.Config{RootCAs: roots, ServerName: "192.168.77.1"}))
	pinned := dial(trust.Client(a.Pin()))
	if cs := pinned.ConnectionState(); len(cs.PeerCertificates) != 2 || !cs.PeerCertificates[0].Equal(a.Leaf()) {
		t.Errorf("a new connection shows %d certificates, want the new leaf and the authority", len(cs.PeerCertificates))
	}
	echo(old)
}

// OpenSSL agrees on the chain, the names and the constraints.
func TestOpenSSL(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("skipped: openssl is not installed")
	}
	dir := t.TempDir()
	a := open(t, Config{HostName: "cam7", Addrs: addrs("192.168.1.7", "fd00::7")})
	write := func(name string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca.pem", a.CA().Raw)
	foreign, err := a.issue([]string{"www.example.org"}, addrs("8.8.8.8"), a.Leaf().NotBefore, a.Leaf().NotAfter)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		leaf  []byte
		check []string
		want  bool
	}{
		{a.Leaf().Raw, nil, true},
		{a.Leaf().Raw, []string{"-verify_hostname", "cam7.local"}, true},
		{a.Leaf().Raw, []string{"-verify_ip", "192.168.1.7"}, true},
		{a.Leaf().Raw, []string{"-verify_ip", "fd00::7"}, true},
		{a.Leaf().Raw, []string{"-verify_ip", "192.168.1.8"}, false},
		{foreign.Certificate[0], nil, false},
	} {
		args := append([]string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", ca}, tt.check...)
		out, err := exec.CommandContext(t.Context(), tool, append(args, write("leaf.pem", tt.leaf))...).CombinedOutput()
		if (err == nil) != tt.want {
			t.Errorf("openssl %v: %v, want good = %v\n%s", args, err, tt.want, out)
		}
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "lancert")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	a, made, err := Open(Config{Dir: dir, ID: tether.NewDeviceID([]byte("example unique id")), HostName: "garden"})
	fmt.Println(made, err)
	fmt.Println(a.Leaf().DNSNames)
	// Output:
	// first start <nil>
	// [cloudrest-96091f9b.local garden.home.arpa garden.internal garden.lan garden.local localhost]
}
