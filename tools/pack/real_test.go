package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The package managers of OpenWrt are no Debian packages. Where somebody has built them,
// these tests install our packages with the real ones; elsewhere readIPK and readAPK say
// what is in them, and TestInstalled runs it.

// packageManager finds one by an environment variable or in the PATH.
func packageManager(t *testing.T, variable string, names ...string) string {
	t.Helper()
	if name := os.Getenv(variable); name != "" {
		if _, err := os.Stat(name); err != nil {
			t.Fatalf("%s: %v", variable, err)
		}
		return name
	}
	for _, name := range names {
		if file, err := exec.LookPath(name); err == nil {
			return file
		}
	}
	t.Skipf("%s is not installed: name a build of it in %s; only our own unpacking has checked this package", names[0], variable)
	return ""
}

// openwrtRoot is an empty root where the scripts of packages find the functions that
// OpenWrt's would call; these write down who called them.
func openwrtRoot(t *testing.T) (root string, calls func() []string) {
	t.Helper()
	root = t.TempDir()
	put(t, root, "lib/functions.sh", `note() { echo "$*" >>"${IPKG_INSTROOT:-}/calls"; }
default_postinst() { note "postinst $(basename "${pkgname:-${1%.*}}") upgrade=${PKG_UPGRADE:-0}"; }
default_prerm() { note "prerm $(basename "${pkgname:-${1%.*}}")"; }
add_group_and_user() { note "user for $pkgname"; }
`)
	return root, func() []string {
		text, _ := os.ReadFile(filepath.Join(root, "calls"))
		os.Remove(filepath.Join(root, "calls"))
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
}

func put(t *testing.T, root, name, text string) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// twoReleases packs v1.2.3 and v1.2.4 of the gateway and the page. The configuration of the
// newer one has another line.
func twoReleases(t *testing.T, gateway, page string) (older, newer string) {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "openwrt"), os.DirFS("../../openwrt")); err != nil {
		t.Fatal(err)
	}
	make := func(version string) string {
		dist := t.TempDir()
		put(t, dist, "program", "the gateway of "+version+"\n")
		if err := run([]string{"-root", root, "-dist", dist, "-version", version, "-time", fmt.Sprint(testTime), gateway + ":program", page + ":-"}, io.Discard); err != nil {
			t.Fatal(err)
		}
		return dist
	}
	older = make("v1.2.3")
	const config = "openwrt/files/etc/config/cloudrest"
	put(t, root, config, string(read(t, root, config))+"\n\t# a new option\n\t#option later '1'\n")
	return older, make("v1.2.4")
}

func exists(root, name string) bool {
	_, err := os.Lstat(filepath.Join(root, name))
	return err == nil
}

// manage runs a package manager, which must succeed.
func manage(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, out)
	}
	return string(out)
}

// edited is what a user does to the configuration before an upgrade.
const edited = "config cloudrest 'main'\n\toption origin 'http://127.0.0.1:3000'\n"

var (
	gatewayFiles = sortedNames(wantFiles)
	pageFiles    = []string{
		"usr/share/luci/menu.d/luci-app-cloudrest.json", "usr/share/rpcd/acl.d/luci-app-cloudrest.json",
		"www/luci-static/resources/view/cloudrest.js",
	}
)

func sortedNames(m map[string]os.FileMode) (list []string) {
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func checkInstalled(t *testing.T, root, version string) {
	t.Helper()
	for _, name := range slices.Concat(gatewayFiles, pageFiles) {
		if !exists(root, name) {
			t.Errorf("%s is not installed", name)
		}
	}
	if got, want := string(read(t, root, "usr/bin/cloudrestd")), "the gateway of "+version+"\n"; got != want {
		t.Errorf("the program is %q, want %q", got, want)
	}
}

// checkRemoved checks that all is gone but the configuration that somebody edited.
func checkRemoved(t *testing.T, root string) {
	t.Helper()
	for _, name := range slices.Concat(gatewayFiles, pageFiles) {
		if name != "etc/config/cloudrest" && exists(root, name) {
			t.Errorf("%s is still there", name)
		}
	}
	if got := string(read(t, root, "etc/config/cloudrest")); got != edited {
		t.Errorf("the edited configuration is %q after the removal", got)
	}
}

func TestRealOPKG(t *testing.T) {
	opkg := packageManager(t, "CLOUDREST_TEST_OPKG", "opkg", "opkg-cl")
	const gateway, page = "cloudrest_mipsel_24kc.ipk", "luci-app-cloudrest_all.ipk"
	older, newer := twoReleases(t, gateway, page)
	root, calls := openwrtRoot(t)
	put(t, root, "etc/opkg.conf", "dest root /\nlists_dir ext /var/opkg-lists\narch all 1\narch mipsel_24kc 10\n")
	status := ""
	for _, name := range []string{"ca-bundle", "luci-base"} {
		status += "Package: " + name + "\nVersion: 1\nStatus: install ok installed\nArchitecture: all\n\n"
		put(t, root, "usr/lib/opkg/info/"+name+".list", "")
	}
	put(t, root, "usr/lib/opkg/status", status)
	put(t, root, "var/lock/keep", "")
	tool := func(args ...string) string {
		t.Helper()
		return manage(t, []string{"IPKG_INSTROOT=" + root}, opkg, append([]string{"-o", root, "-f", filepath.Join(root, "etc/opkg.conf"), "--force-postinstall"}, args...)...)
	}

	tool("install", filepath.Join(older, gateway), filepath.Join(older, page))
	checkInstalled(t, root, "v1.2.3")
	if got, want := calls(), []string{"postinst cloudrest upgrade=0"}; !slices.Equal(got, want) {
		t.Errorf("scripts called %q, want %q", got, want)
	}
	listed := tool("files", "cloudrest")
	for _, name := range gatewayFiles {
		if !strings.Contains(listed, "/"+name+"\n") {
			t.Errorf("opkg files lacks %s:\n%s", name, listed)
		}
	}

	put(t, root, "etc/config/cloudrest", edited)
	tool("install", filepath.Join(newer, gateway), filepath.Join(newer, page))
	checkInstalled(t, root, "v1.2.4")
	if got := string(read(t, root, "etc/config/cloudrest")); got != edited {
		t.Errorf("after the upgrade the configuration is %q, want the user's", got)
	}
	if got := string(read(t, root, "etc/config/cloudrest-opkg")); !strings.Contains(got, "later") {
		t.Errorf("the new configuration beside it is %q", got)
	}
	if got, want := calls(), []string{"prerm cloudrest", "postinst cloudrest upgrade=1"}; !slices.Equal(got, want) {
		t.Errorf("scripts called %q, want %q", got, want)
	}

	// Older ones are refused.
	if out := tool("install", filepath.Join(older, gateway)); !strings.Contains(out, "Not downgrading package cloudrest") {
		t.Errorf("installing the older one says %q", out)
	}
	checkInstalled(t, root, "v1.2.4")

	tool("remove", "luci-app-cloudrest", "cloudrest")
	checkRemoved(t, root)
	if got, want := calls(), []string{"prerm cloudrest"}; !slices.Equal(got, want) {
		t.Errorf("scripts called %q, want %q", got, want)
	}
}

func TestRealAPK(t *testing.T) {
	apk := packageManager(t, "CLOUDREST_TEST_APK", "apk")
	if out, err := exec.CommandContext(t.Context(), apk, "--version").Output(); err != nil || !bytes.HasPrefix(out, []byte("apk-tools 3")) {
		t.Skipf("%s is not apk-tools 3: %s, %v", apk, out, err)
	}
	const gateway, page = "cloudrest_mipsel_24kc.apk", "luci-app-cloudrest_noarch.apk"
	older, newer := twoReleases(t, gateway, page)
	root, calls := openwrtRoot(t)
	others, empty := t.TempDir(), t.TempDir()
	install := []string{"--initdb"}
	for _, name := range []string{"ca-bundle", "luci-base"} {
		file := filepath.Join(others, name+".apk")
		manage(t, nil, apk, "mkpkg", "--files", empty, "--output", file, "--info", "name:"+name, "--info", "version:1-r1",
			"--info", "arch:noarch", "--info", "license:none", "--info", "description:a stand-in")
		install = append(install, file)
	}
	// The scripts are to find our functions: their root is not the root directory.
	tool := func(verb string, args ...string) string {
		t.Helper()
		return manage(t, []string{"IPKG_INSTROOT=" + root}, apk, append([]string{verb, "--root", root, "--arch", "mipsel_24kc", "--allow-untrusted", "--no-network",
			"--no-logfile", "--force-no-chroot", "--preserve-env"}, args...)...)
	}

	tool("add", append(install, filepath.Join(older, gateway), filepath.Join(older, page))...)
	checkInstalled(t, root, "v1.2.3")
	if got, want := calls(), []string{"user for cloudrest", "postinst cloudrest upgrade=0"}; !slices.Equal(got, want) {
		t.Errorf("scripts called %q, want %q", got, want)
	}
	listed := tool("info", "-L", "cloudrest")
	for _, name := range append(gatewayFiles, "lib/apk/packages/cloudrest.rusers", "lib/apk/packages/cloudrest.list") {
		if !strings.Contains(listed, name+"\n") {
			t.Errorf("apk info -L lacks %s:\n%s", name, listed)
		}
	}

	put(t, root, "etc/config/cloudrest", edited)
	tool("add", filepath.Join(newer, gateway), filepath.Join(newer, page))
	checkInstalled(t, root, "v1.2.4")
	if got := string(read(t, root, "etc/config/cloudrest")); got != edited {
		t.Errorf("after the upgrade the configuration is %q, want the user's", got)
	}
	if got := string(read(t, root, "etc/config/cloudrest.apk-new")); !strings.Contains(got, "later") {
		t.Errorf("the new configuration beside it is %q", got)
	}
	if got, want := calls(), []string{"user for cloudrest", "postinst cloudrest upgrade=1"}; !slices.Equal(got, want) {
		t.Errorf("scripts called %q, want %q", got, want)
	}

	tool("del", "luci-app-cloudrest", "cloudrest")
	checkRemoved(t, root)
	if got, want := calls(), []string{"prerm cloudrest"}; !slices.Equal(got, want) {
		t.Errorf("scripts called %q, want %q", got, want)
	}
}

// TestPagePackages opens the packages of the page, as TestIPK and TestAPK do the gateway's.
func TestPagePackages(t *testing.T) {
	dist := t.TempDir()
	if err := run([]string{"-dist", dist, "-version", "v1.2.3", "-time", fmt.Sprint(testTime), "luci-app-cloudrest_all.ipk:-", "luci-app-cloudrest_noarch.apk:-"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	ipk, err := readIPK(read(t, dist, "luci-app-cloudrest_all.ipk"))
	if err != nil {
		t.Fatal(err)
	}
	apk, err := readAPK(read(t, dist, "luci-app-cloudrest_noarch.apk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range pageFiles {
		if len(ipk.body[name]) == 0 || !bytes.Equal(ipk.body[name], apk.body[name]) {
			t.Errorf("%s: %d bytes in the .ipk, %d in the .apk; want the same, and some", name, len(ipk.body[name]), len(apk.body[name]))
		}
	}
	for _, want := range []string{"Architecture: all\n", "Depends: cloudrest, luci-base\n"} {
		if !strings.Contains(ipk.control["control"], want) {
			t.Errorf("control is\n%s\nwant %q in it", ipk.control["control"], want)
		}
	}
	for _, want := range []string{"arch = noarch\n", "depend = cloudrest\n", "depend = luci-base\n"} {
		if !strings.Contains(apk.control[".PKGINFO"], want) {
			t.Errorf(".PKGINFO is\n%s\nwant %q in it", apk.control[".PKGINFO"], want)
		}
	}
	if ipk.control["prerm"] != "" || strings.TrimSpace(ipk.control["conffiles"]) != "" || strings.Contains(fmt.Sprint(apk.body), "rusers") {
		t.Errorf("the page has prerm %q and conffiles %q, want neither, and no user", ipk.control["prerm"], ipk.control["conffiles"])
	}
	checkScripts(t, ipk.control["postinst"], apk.control[".post-install"], apk.control[".post-upgrade"])
}
