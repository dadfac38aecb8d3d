package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const testTime = 1790000000 // seconds

// makeAll packs one small program in every way and returns the folder.
func makeAll(t *testing.T, extra ...string) string {
	t.Helper()
	dist := t.TempDir()
	program := filepath.Join(dist, "program")
	if err := os.WriteFile(program, bytes.Repeat([]byte("not a real program\n"), 9999), 0o755); err != nil {
		t.Fatal(err)
	}
	now := time.Now() // each build finds other times on its files
	if err := os.Chtimes(program, now, now); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-dist", dist, "-version", "v1.2.3-4-gabcdef0", "-commit", "abcdef0", "-time", fmt.Sprint(testTime)}, extra...)
	for _, name := range []string{"cloudrest_mipsel_24kc.ipk", "cloudrest_mipsel_24kc.apk", "cloudrestd_amd64.deb", "cloudrelay_arm64.deb", "cloudrest_armhf.deb", "cloudrelay_amd64.oci.tar", "cloudrestd_amd64.oci.tar"} {
		args = append(args, name+":program")
	}
	if err := run(args, io.Discard); err != nil {
		t.Fatal(err)
	}
	return dist
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestReproducible builds everything twice: here, and in a copy with other times and modes
// on its files, as another clone under another umask has them.
func TestReproducible(t *testing.T) {
	first := makeAll(t)
	root := t.TempDir()
	for _, dir := range []string{"openwrt", "tools/systemd"} {
		if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(filepath.Join("../..", dir))); err != nil {
			t.Fatal(err)
		}
	}
	other := time.Now().Add(-time.Hour)
	if err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = errors.Join(os.Chmod(name, 0o600), os.Chtimes(name, other, other))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // tar and gzip know whole seconds
	second := makeAll(t, "-root", root)
	list, err := os.ReadDir(first)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 11 { // 7 packages, the program, the bill, the manifest, the sums
		t.Errorf("%d files, want 11", len(list))
	}
	for _, d := range list {
		if !bytes.Equal(read(t, first, d.Name()), read(t, second, d.Name())) {
			t.Errorf("%s differs between two builds", d.Name())
		}
	}
}

func TestVersions(t *testing.T) {
	for _, tc := range []struct{ text, deb, apk string }{
		{"v1.2.3", "1.2.3", "1.2.3"},
		{"v1.2.3-dirty", "1.2.3", "1.2.3"},
		{"v1.2.3-4-gabcdef0", "1.2.3+4.gabcdef0", "1.2.3_p4"},
		{"abcdef0", "0~git20260921141320", "0_git20260921141320"},
	} {
		if got := parseVersion(tc.text, testTime); got.deb != tc.deb || got.apk != tc.apk {
			t.Errorf("%s: deb %q apk %q, want %q and %q", tc.text, got.deb, got.apk, tc.deb, tc.apk)
		}
	}
}

// wantFiles are in both packages for OpenWrt, with their modes.
var wantFiles = map[string]os.FileMode{
	"usr/bin/cloudrestd":              0o755,
	"etc/config/cloudrest":            0o640,
	"etc/init.d/cloudrest":            0o755,
	"etc/uci-defaults/60-cloudrest":   0o755,
	"etc/capabilities/cloudrest.json": 0o644,
	"lib/upgrade/keep.d/cloudrest":    0o644,
}

func (p *opened) check(t *testing.T) {
	t.Helper()
	for name, mode := range wantFiles {
		found := false
		for _, h := range p.data {
			if strings.TrimPrefix(strings.TrimPrefix(h.Name, "./"), "/") == name {
				found = true
				if got := h.FileInfo().Mode().Perm(); got != mode {
					t.Errorf("%s has mode %o, want %o", name, got, mode)
				}
				if got := h.ModTime.Unix(); got != testTime {
					t.Errorf("%s has time %d, want %d", name, got, testTime)
				}
			}
		}
		if !found {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestIPK(t *testing.T) {
	p, err := readIPK(read(t, makeAll(t), "cloudrest_mipsel_24kc.ipk"))
	if err != nil {
		t.Fatal(err)
	}
	p.check(t)
	for _, want := range []string{"Package: cloudrest\n", "Version: 1.2.3+4.gabcdef0-1\n", "Architecture: mipsel_24kc\n", "Depends: ca-bundle\n", "Require-User: cloudrest=15800:cloudrest=15800\n"} {
		if !strings.Contains(p.control["control"], want) {
			t.Errorf("control is\n%s\nwant %q in it", p.control["control"], want)
		}
	}
	if got, want := strings.TrimSpace(p.control["conffiles"]), "/etc/config/cloudrest"; got != want {
		t.Errorf("conffiles = %q, want %q", got, want)
	}
	checkScripts(t, p.control["postinst"], p.control["prerm"])
}

// TestSqueezed checks that what zopfli packed is smaller and holds the same.
func TestSqueezed(t *testing.T) {
	if _, err := exec.LookPath("zopfli"); err != nil {
		t.Skip("zopfli is not installed (make deps)")
	}
	const name = "cloudrest_mipsel_24kc.ipk"
	plain, small := read(t, makeAll(t), name), read(t, makeAll(t, "-best"), name)
	if len(small) >= len(plain) {
		t.Errorf("%d bytes, want fewer than %d", len(small), len(plain))
	}
	want, err := readIPK(plain)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readIPK(small)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Error("the two packages hold different things")
	}
}

func TestAPK(t *testing.T) {
	p, err := readAPK(read(t, makeAll(t), "cloudrest_mipsel_24kc.apk"))
	if err != nil {
		t.Fatal(err)
	}
	p.check(t)
	for _, want := range []string{"pkgname = cloudrest\n", "pkgver = 1.2.3_p4-r1\n", "arch = mipsel_24kc\n", "depend = ca-bundle\n"} {
		if !strings.Contains(p.control[".PKGINFO"], want) {
			t.Errorf(".PKGINFO is\n%s\nwant %q in it", p.control[".PKGINFO"], want)
		}
	}
	const lists = "lib/apk/packages/cloudrest."
	if got := string(p.body[lists+"rusers"]); got != openwrtUser+"\n" {
		t.Errorf("rusers = %q, want %q", got, openwrtUser)
	}
	listed := strings.Fields(string(p.body[lists+"list"]))
	for name := range wantFiles {
		if !slices.Contains(listed, "/"+name) {
			t.Errorf("%slist lacks /%s", lists, name)
		}
	}
	if got, want := string(p.body[lists+"conffiles_static"]), fmt.Sprintf("/etc/config/cloudrest %x\n", sha256.Sum256(p.body["etc/config/cloudrest"])); got != want {
		t.Errorf("conffiles_static = %q, want %q", got, want)
	}
	checkScripts(t, p.control[".post-install"], p.control[".post-upgrade"], p.control[".pre-deinstall"])
}

// checkScripts has a shell read the scripts without running them.
func checkScripts(t *testing.T, scripts ...string) {
	t.Helper()
	for i, s := range scripts {
		cmd := exec.CommandContext(t.Context(), "sh", "-n")
		cmd.Stdin = strings.NewReader(s)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(s, "#!/bin/sh\n") {
			t.Errorf("script %d: %v\n%s\n%s", i, err, out, s)
		}
	}
}

// TestDeb has dpkg read and unpack the packages.
func TestDeb(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not there: this is no Debian system")
	}
	dist := makeAll(t)
	for name, files := range map[string][]string{
		"cloudrestd_amd64.deb": {"/usr/bin/cloudrestd", "/usr/lib/systemd/system/cloudrestd.service", "/usr/lib/sysusers.d/cloudrestd.conf", "/etc/cloudrest/cloudrestd.conf"},
		"cloudrelay_arm64.deb": {"/usr/bin/cloudrelay", "/usr/lib/systemd/system/cloudrelay.service", "/usr/lib/sysusers.d/cloudrelay.conf", "/etc/cloudrest/cloudrelay.conf"},
		"cloudrest_armhf.deb":  {"/usr/bin/cloudrest"},
	} {
		deb := filepath.Join(dist, name)
		tool := func(args ...string) string {
			out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
			if err != nil {
				t.Errorf("%q: %v\n%s", args, err, out)
			}
			return string(out)
		}
		pkg, arch, _ := strings.Cut(strings.TrimSuffix(name, ".deb"), "_")
		if got, want := tool("dpkg-deb", "--show", "--showformat", "${Package} ${Version} ${Architecture}", deb), pkg+" 1.2.3+4.gabcdef0 "+arch; got != want {
			t.Errorf("package = %q, want %q", got, want)
		}
		if len(files) > 3 {
			if got := tool("dpkg-deb", "--info", deb, "conffiles"); !strings.Contains(got, files[3]) {
				t.Errorf("conffiles = %q, want %q in it", got, files[3])
			}
		}
		contents := tool("dpkg-deb", "--contents", deb)
		for _, f := range files {
			if !strings.Contains(contents, "."+f+"\n") {
				t.Errorf("%s lacks %s:\n%s", name, f, contents)
			}
		}
		if os.Getuid() != 0 {
			continue // dpkg wants root
		}
		root := t.TempDir()
		for _, d := range []string{"info", "updates"} {
			if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		tool("dpkg", "--root", root, "--force-architecture", "--unpack", deb)
		for _, f := range files {
			if len(files) > 3 && f == files[3] {
				f += ".dpkg-new" // until it is configured
			}
			if _, err := os.Stat(filepath.Join(root, f)); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not there")
	}
	dir := t.TempDir()
	for _, name := range []string{"cloudrestd", "cloudrelay"} {
		text := strings.Replace(string(read(t, "../systemd", name+".service")), "/usr/bin/"+name, "/bin/true", 1)
		unit := filepath.Join(dir, name+".service")
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestOCI follows the digests from the index to the program.
func TestOCI(t *testing.T) {
	_, files, err := readTar(bytes.NewReader(read(t, makeAll(t), "cloudrelay_amd64.oci.tar")))
	if err != nil {
		t.Fatal(err)
	}
	blob := func(d descriptor) []byte {
		b := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); got != d.Digest || len(b) != d.Size {
			t.Fatalf("blob of %s: digest %s, %d bytes; want %s, %d", d.MediaType, got, len(b), d.Digest, d.Size)
		}
		return b
	}
	var index struct{ Manifests []descriptor }
	var m struct {
		Config descriptor
		Layers []descriptor
	}
	var c struct {
		Architecture, OS string
		Config           struct {
			User       string
			Entrypoint []string
		}
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	unmarshal := func(text []byte, into any) {
		t.Helper()
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
	}
	unmarshal(files["index.json"], &index)
	unmarshal(blob(index.Manifests[0]), &m)
	unmarshal(blob(m.Config), &c)
	if c.Architecture != "amd64" || c.OS != "linux" || c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/usr/bin/cloudrelay"}) {
		t.Errorf("configuration = %+v", c)
	}
	layer, err := gunzip(blob(m.Layers[0]))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(layer)); got != c.RootFS.DiffIDs[0] {
		t.Errorf("layer is %s, want %s", got, c.RootFS.DiffIDs[0])
	}
	_, in, err := readTar(bytes.NewReader(layer))
	if err != nil || len(in["usr/bin/cloudrelay"]) == 0 {
		t.Errorf("the layer has no program, %v", err)
	}
}

// TestSignature signs, then tampers with each thing that is checked.
func TestSignature(t *testing.T) {
	dir := t.TempDir()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	save := func(name, kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	key := save("key.pem", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(public)
	pub := save("pub.pem", "PUBLIC KEY", der, err)

	dist := makeAll(t, "-key", key)
	m, err := verifyManifest(dist, pub, testTime)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if m.Sequence != testTime || len(m.Files) != 9 {
		t.Errorf("sequence %d with %d files, want %d with 9", m.Sequence, len(m.Files), testTime)
	}
	if _, err := verifyManifest(dist, pub, testTime+1); !errors.Is(err, errOlder) {
		t.Errorf("an older release: %v, want %v", err, errOlder)
	}
	if openssl, err := exec.LookPath("openssl"); err == nil { // as openwrt/README.md says
		out, err := exec.CommandContext(t.Context(), openssl, "pkeyutl", "-verify", "-pubin", "-inkey", pub, "-rawin",
			"-in", filepath.Join(dist, manifestFile), "-sigfile", filepath.Join(dist, signatureFile)).CombinedOutput()
		if err != nil {
			t.Errorf("openssl: %v\n%s", err, out)
		}
	}
	for _, name := range []string{"cloudrest_mipsel_24kc.ipk", manifestFile, signatureFile} {
		text := read(t, dist, name)
		bad := slices.Clone(text)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(filepath.Join(dist, name), bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := verifyManifest(dist, pub, 0); err == nil {
			t.Errorf("verify took a changed %s", name)
		}
		if err := os.WriteFile(filepath.Join(dist, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBill checks the bill of materials, of this program, as far as the schema of CycloneDX
// 1.6 says what must be there and what must be unique.
func TestBill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dist := t.TempDir()
	copyFile(t, self, filepath.Join(dist, "tool"))
	if err := run([]string{"-dist", dist, "-version", "v1.2.3", "-time", fmt.Sprint(testTime)}, io.Discard); err != nil {
		t.Fatal(err)
	}
	var bill struct {
		BOMFormat, SpecVersion string
		Version                int
		Metadata               struct {
			Timestamp time.Time
			Component component
		}
		Components   []component
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(read(t, dist, sbomFile), &bill); err != nil {
		t.Fatal(err)
	}
	if bill.BOMFormat != "CycloneDX" || bill.SpecVersion != "1.6" || bill.Version != 1 || bill.Metadata.Timestamp.Unix() != testTime || bill.Metadata.Component.Name != "cloudrest" {
		t.Errorf("head of the bill: %s %s %d %+v", bill.BOMFormat, bill.SpecVersion, bill.Version, bill.Metadata)
	}
	url := regexp.MustCompile(`^pkg:golang/[a-z0-9./_~-]+@(v[0-9a-zA-Z.%-]+|1\.[0-9.]+[a-z0-9.-]*)$`)
	known := map[string]bool{}
	for _, c := range bill.Components {
		if c.Ref == "" || c.Name == "" || c.Version == "" || known[c.Ref] {
			t.Errorf("component %+v: want a name, a version, and a reference of its own", c)
		}
		known[c.Ref] = true
		switch c.Type {
		case "library":
			if !url.MatchString(c.PURL) {
				t.Errorf("%q is no package URL of a Go module", c.PURL)
			}
		case "application":
			if want := fmt.Sprintf("%x", sha256.Sum256(read(t, dist, "tool"))); len(c.Hashes) != 1 || c.Hashes[0]["alg"] != "SHA-256" || c.Hashes[0]["content"] != want {
				t.Errorf("hashes of %s: %v, want SHA-256 %s", c.Name, c.Hashes, want)
			}
		default:
			t.Errorf("type %q", c.Type)
		}
	}
	if !known["tool"] || !slices.ContainsFunc(bill.Components, func(c component) bool { return c.Name == "github.com/goreleaser/nfpm/v2" }) {
		t.Errorf("components %v, want the program and nfpm, which it is made of", slices.Sorted(maps.Keys(known)))
	}
	for _, d := range bill.Dependencies {
		for _, ref := range append([]string{d.Ref}, d.DependsOn...) {
			if !known[ref] {
				t.Errorf("%s depends on %q, which is no component", d.Ref, ref)
			}
		}
	}
}
