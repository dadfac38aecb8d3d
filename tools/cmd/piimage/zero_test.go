package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

// keys makes a pair of keys for updates, as PEM files.
func keys(t *testing.T, dir, name string) (private, public string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	private, public = filepath.Join(dir, name+".key.pem"), filepath.Join(dir, name+".pub.pem")
	for file, block := range map[string]*pem.Block{private: {Type: "PRIVATE KEY", Bytes: pkcs8}, public: {Type: "PUBLIC KEY", Bytes: pkix}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return private, public
}

// sign makes a bundle of an image.
func sign(t *testing.T, key, image string, args ...string) string {
	t.Helper()
	if out, code := tool(append([]string{"sign", "--key", key, "--image", image}, args...)...); code != exitOK {
		t.Fatalf("piimage sign: exit %d\n%s", code, out)
	}
	return bundleBeside(image)
}

// cases of updates that no device may take, made of the bundle of a right one.
func wrongBundles(t *testing.T, good, older, strange string) map[string]struct{ file, want string } {
	t.Helper()
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	changed := bytes.Clone(b)
	changed[len(changed)-100_000] ^= 1
	return map[string]struct{ file, want string }{
		"signed by somebody else": {strange, update.ErrSignature.Error()},
		"another digest":          {write("changed", changed), update.ErrDigest.Error()},
		"cut off":                 {write("short", b[:len(b)/16]), update.ErrDigest.Error()},
		"older":                   {older, update.ErrOlder.Error()},
	}
}

// at builds an image whose sequence is a number of seconds after some day.
func at(t *testing.T, seconds, version, out string, args ...string) {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", seconds)
	buildImage(t, version, out, args...)
}

// The whole life of a Raspberry Pi Zero W, as TestImage has it of the larger ones; its
// updates are signed.
func TestZero(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	disk, secretsFile := filepath.Join(dir, "v1.img"), filepath.Join(dir, "secrets.json")
	key, public := keys(t, dir, "owner")
	stranger, _ := keys(t, dir, "stranger")
	zero := []string{"--board", zeroName, "--update-key", public}
	at(t, "1790000100", "v1.0.0", disk, zero...)

	// Nothing random, nothing of this moment: the same once more is the same.
	again := filepath.Join(dir, "again.img")
	time.Sleep(1100 * time.Millisecond)
	at(t, "1790000100", "v1.0.0", again, zero...)
	if !sameFile(t, disk, again) {
		t.Error("two builds of the same differ")
	}
	os.Remove(again)

	begin := time.Now()
	v := newVM(t, pi0, disk)
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
	pin = p.pair(t, secretsFile)
	seen := p.writeUntilPowerCut(t)
	v.on()
	second := p.up(t)
	if second.ID != first.ID || second.Certificate != first.Certificate || first.Certificate != pin {
		t.Errorf("after the power cut: %+v, before: %+v, paired with %s: want the same identity and pin", second, first, pin)
	}
	p.sameEvents(t, seen)

	// A right update, and wrong ones before it.
	next, old := filepath.Join(dir, "v2.img"), filepath.Join(dir, "v0.img")
	at(t, "1790000200", "v2.0.0", next, zero...)
	at(t, "1790000000", "v0.9.0", old, zero...)
	strange := filepath.Join(dir, "strange.update")
	sign(t, stranger, next, "--out", strange)
	good := sign(t, key, next)
	wrong := wrongBundles(t, good, sign(t, key, old), strange)
	delete(wrong, "another digest") // 18 MB over QEMU's USB take minutes; TestSigned does it
	for name, c := range wrong {
		if out, code := tool("update", v.updateAddress(), "--secrets", secretsFile, "--bundle", c.file); code != exitFailed || !strings.Contains(out, c.want) {
			t.Errorf("an update that is %s: exit %d, %s, want %q", name, code, out, c.want)
		}
	}
	update := func(bundle string, code int, want, version string) {
		t.Helper()
		begin := time.Now()
		out, got := tool("update", v.updateAddress(), "--secrets", secretsFile, "--bundle", bundle)
		t.Logf("update took %.0f s in emulation\n%s", time.Since(begin).Seconds(), out)
		if got != code || !strings.Contains(out, want) {
			t.Fatalf("piimage update: exit %d, want %d and %q", got, code, want)
		}
		if s := p.up(t); s.Version != version || s.ID != first.ID {
			t.Errorf("after the update: %+v, want %s of %s", s, version, first.ID)
		}
	}
	update(good, exitOK, "v2.0.0 stays", "v2.0.0")
	p.sameEvents(t, seen)

	// A service that ends at once: the version before comes back.
	bad := filepath.Join(dir, "v3.img")
	at(t, "1790000300", "v3.0.0", bad, append(zero, "--origin-binary", broken(t, "GOARCH=arm", "GOARM=6"), "--trial", "1m")...)
	update(sign(t, key, bad), exitFailed, errBack.Error(), "v2.0.0")

	// Once more the bad one, which is still in its slot, and a power cut before the verdict.
	c := &client{address: v.updateAddress(), secretsFile: secretsFile}
	waited := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); <-waited }()
	go func() { waited <- c.switchBack(ctx, io.Discard) }()
	eventually(t, "the trial", func() error {
		if !v.said("on trial: the next start is one of the other slot", "the gateway is ready") {
			return errors.New("not yet")
		}
		return nil
	})
	v.cut()
	v.on()
	if s := p.up(t); s.Version != "v2.0.0" {
		t.Errorf("after a power cut on trial: version %s, want v2.0.0", s.Version)
	}
	p.sameEvents(t, seen)
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	bx, by := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(bx)) {
		n, err := io.ReadFull(x, bx)
		m, _ := io.ReadFull(y, by)
		if !bytes.Equal(bx[:n], by[:m]) {
			for i := range min(n, m) {
				if bx[i] != by[i] {
					t.Logf("the first difference is at byte %d", at+int64(i))
					break
				}
			}
			return false
		}
		if err != nil {
			return true
		}
	}
}

// TestSign: what is signed is what is in the image.
func TestSign(t *testing.T) {
	dir := t.TempDir()
	key, _ := keys(t, dir, "owner")
	image := filepath.Join(dir, "x.img")
	if out, code := tool("sign", "--image", image); code != exitUsage {
		t.Errorf("without --key: exit %d, %s, want %d", code, out, exitUsage)
	}
	if out, code := tool("sign", "--key", key, "--image", image); code != exitFailed || !strings.Contains(out, "manifest.json") {
		t.Errorf("without a manifest: exit %d, %s", code, out)
	}
	root := make([]byte, 8192)
	copy(root, "hsqs")
	root[40], root[41] = 0, 32 // 8192 bytes
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	where := gokrazyParts(int64(len(root)))
	if _, err := f.WriteAt(root, where[0].start); err != nil {
		t.Fatal(err)
	}
	j := &job{}
	j.part(rootPart, root)
	write := func(p []update.Part) {
		text, _, err := update.Sign(&update.Manifest{Format: update.Format, Name: update.Name, Board: "pi", Files: p}, make(ed25519.PrivateKey, ed25519.PrivateKeySize))
		if err == nil {
			err = os.WriteFile(manifestBeside(image), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(j.parts)
	if out, code := tool("sign", "--key", key, "--image", image); code != exitOK {
		t.Fatalf("exit %d, %s", code, out)
	}
	b, err := os.Open(bundleBeside(image))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var names []string
	for in := tar.NewReader(b); ; {
		h, err := in.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	if got, want := strings.Join(names, " "), "manifest.json manifest.json.sig root"; got != want {
		t.Errorf("the bundle holds %s, want %s", got, want)
	}
	j.parts[0].SHA256 = strings.Repeat("0", 64)
	write(j.parts)
	if out, code := tool("sign", "--key", key, "--image", image); code != exitFailed || !strings.Contains(out, "do not belong together") {
		t.Errorf("a manifest of another image: exit %d, %s", code, out)
	}
}

func TestModuleOrder(t *testing.T) {
	if _, _, err := pickModules(map[string][]byte{"lib/x.ko": []byte("no ELF")}, []string{"x"}); err == nil {
		t.Error("not a module: want an error")
	}
	if _, _, err := pickModules(nil, []string{"ext4"}); err == nil || !strings.Contains(err.Error(), "ext4") {
		t.Errorf("a module that is not there: %v", err)
	}
}

func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	c := &cpio{w: &b}
	c.entry("bin", cpioFolder|0o755, 0, 0, nil)
	c.entry("bin/x", cpioFile|0o755, 0, 0, []byte("12345"))
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if n := len(text); n%4 != 0 || strings.Count(text, "070701") != 3 || !strings.Contains(text, "bin/x\x0012345\x00\x00\x00070701") && !strings.Contains(text, "12345\x00\x00\x00070701") {
		t.Errorf("%d bytes: %q", n, text)
	}
}

func TestPartitionTable(t *testing.T) {
	b := partitionTable([2]partition{{start: zerodisk.BootStart, size: zerodisk.BootSize, kind: fat16LBA, active: true}, {start: zerodisk.PermStart, size: 1 << 28, kind: linuxData}})
	if len(b) != sectorSize || b[510] != 0x55 || b[511] != 0xaa || b[446] != 0x80 || b[450] != fat16LBA || b[466] != linuxData {
		t.Errorf("%x", b[440:])
	}
	if got, want := b[454:462], []byte{0, 0x20, 0, 0, 0, 0, 4, 0}; !bytes.Equal(got, want) {
		t.Errorf("the first one is at % x, want % x", got, want)
	}
}
