package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/apk"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/ipk"
)

const (
	homepage = "https://github.com/cloudrest/cloudrest"
	// Package formats want an address. This is the code host's form of one that takes no
	// mail: reports go to the homepage, as SECURITY.md says. Who packages for others puts
	// their own here.
	maintainer = "CloudREST maintainers <cloudrest@users.noreply.github.com>"
	// openwrtUser is what OpenWrt's package scripts make the user from.
	openwrtUser = "cloudrest=15800:cloudrest=15800"
)

// descriptions of the packages: one line, for Debian without an article, and what follows
// it there.
var descriptions = map[string]string{
	"cloudrestd": "gateway that makes a device's REST service reachable",
	"cloudrelay": "relay that makes devices behind home routers reachable",
	"cloudrest":  "command line of CloudREST: find, watch and reach devices",
}

var moreOf = map[string]string{
	"cloudrestd": "It stands before a REST service on this machine: HTTPS on the LAN with a\n" +
		"certificate of its own, discovery by mDNS, pairing, a cache, notifications,\n" +
		"and one outgoing connection to a relay if one is configured.",
	"cloudrelay": "Devices with the gateway cloudrestd dial out to it; clients with a token\n" +
		"reach their REST services through it.",
	"cloudrest": "It finds devices on the LAN, pairs with them, asks their REST services,\n" +
		"directly or through a relay, and follows their notifications.",
}

func (r *release) info(name, arch string) *nfpm.Info {
	return &nfpm.Info{
		Name: name, Arch: arch, Platform: "linux", VersionSchema: "none",
		Maintainer: maintainer, Homepage: homepage, License: "Apache-2.0", Section: "net",
		Description: descriptions[name], MTime: r.time,
	}
}

// content is one file of a package. Its time is the release's, its owner root.
func (r *release) content(from, to, kind string, mode fs.FileMode) *files.Content {
	return &files.Content{
		Source: from, Destination: to, Type: kind,
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.time},
	}
}

// openwrtPackage is what both kinds of packages for OpenWrt are made from.
type openwrtPackage struct {
	info    *nfpm.Info
	user    string // for OpenWrt's scripts, which make it; may be empty
	keep    []string
	scripts string // the folder of the maintainer scripts
}

// luciApp is the page for OpenWrt's web interface: no program, for every architecture.
const luciApp = "luci-app-cloudrest"

func (r *release) openwrt(name, arch, program string) (p openwrtPackage, err error) {
	p = openwrtPackage{info: r.info(name, arch), scripts: "openwrt/package/"}
	p.info.Release = "1"
	if name == luciApp {
		p.scripts += "luci/"
		p.info.Description = "LuCI page for CloudREST"
		p.info.Depends = []string{"cloudrest", "luci-base"}
		if err = r.tree(p.info, "openwrt/"+luciApp+"/htdocs", "/www"); err == nil {
			err = r.tree(p.info, "openwrt/"+luciApp+"/root", "")
		}
		return p, err
	}
	p.user = openwrtUser
	p.keep = []string{"/etc/config/cloudrest", "/etc/cloudrest/"}
	p.info.Description = descriptions["cloudrestd"]
	p.info.Depends = []string{"ca-bundle"}
	p.info.Contents = files.Contents{r.content(program, "/usr/bin/cloudrestd", "", 0o755)}
	return p, r.tree(p.info, "openwrt/files", "")
}

// tree puts the files of a folder of the repository below to.
func (r *release) tree(info *nfpm.Info, dir, to string) error {
	dir = r.path(dir)
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		to := to + filepath.ToSlash(strings.TrimPrefix(name, dir))
		kind, mode := "", fs.FileMode(0o644)
		switch {
		case strings.HasPrefix(to, "/etc/config/"):
			kind, mode = files.TypeConfigNoReplace, 0o640
		case strings.HasPrefix(to, "/etc/init.d/"), strings.HasPrefix(to, "/etc/uci-defaults/"):
			mode = 0o755
		}
		info.Contents = append(info.Contents, r.content(name, to, kind, mode))
		return nil
	})
}

func (r *release) ipk(name, arch, program, out string) error {
	p, err := r.openwrt(name, arch, program)
	if err != nil {
		return err
	}
	info := p.info
	info.Version = r.name.deb
	if p.user != "" {
		info.IPK.Fields = map[string]string{"Require-User": p.user}
	}
	info.Scripts.PostInstall = r.path(p.scripts + "postinst")
	if name != luciApp {
		info.Scripts.PreRemove = r.path(p.scripts + "prerm")
	}
	if err := write(ipk.Default, info, out); err != nil || !r.best {
		return err
	}
	return squeeze(out)
}

// apk also writes the lists that OpenWrt keeps in the package, where opkg kept its own.
func (r *release) apk(name, arch, program, out string) error {
	p, err := r.openwrt(name, arch, program)
	if err != nil {
		return err
	}
	info := p.info
	info.Version = r.name.apk
	var list []string
	var sums strings.Builder
	for _, c := range info.Contents {
		list = append(list, c.Destination)
		if c.Type == files.TypeConfigNoReplace {
			text, err := os.ReadFile(c.Source)
			if err != nil {
				return err
			}
			fmt.Fprintf(&sums, "%s %x\n", c.Destination, sha256.Sum256(text))
		}
	}
	slices.Sort(list)
	dir, err := os.MkdirTemp("", "pack")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	scripts := map[string]*string{"post-install": &info.Scripts.PostInstall, "pre-deinstall": &info.Scripts.PreRemove, "post-upgrade": &info.APK.Scripts.PostUpgrade}
	if name == luciApp {
		scripts = map[string]*string{"postinst": &info.Scripts.PostInstall}
	}
	for name, to := range scripts {
		if *to, err = r.script(dir, p.scripts+name); err != nil {
			return err
		}
	}
	if name == luciApp {
		info.APK.Scripts.PostUpgrade = info.Scripts.PostInstall
	}
	for suffix, lines := range map[string][]string{"list": list, "rusers": {p.user}, "conffiles": p.keep, "conffiles_static": {strings.TrimSuffix(sums.String(), "\n")}} {
		if len(lines) == 0 || lines[0] == "" {
			continue
		}
		from := filepath.Join(dir, suffix)
		if err := os.WriteFile(from, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			return err
		}
		info.Contents = append(info.Contents, r.content(from, "/lib/apk/packages/"+name+"."+suffix, "", 0o644))
	}
	return write(apk.Default, info, out)
}

func (r *release) deb(name, arch, program, out string) error {
	info := r.info(name, arch)
	info.Version = r.name.deb
	info.Priority = "optional"
	info.Recommends = []string{"ca-certificates"}
	info.Description += "\n" + moreOf[name]
	info.Deb.Compression = "xz"
	info.Contents = files.Contents{
		r.content(program, "/usr/bin/"+name, "", 0o755),
		r.content(r.path("tools/systemd/copyright"), "/usr/share/doc/"+name+"/copyright", "", 0o644),
	}
	if name != "cloudrest" { // a daemon
		units := r.path("tools/systemd")
		info.Contents = append(info.Contents,
			r.content(filepath.Join(units, name+".service"), "/usr/lib/systemd/system/"+name+".service", "", 0o644),
			r.content(filepath.Join(units, name+".sysusers"), "/usr/lib/sysusers.d/"+name+".conf", "", 0o644),
			r.content(filepath.Join(units, name+".conf"), "/etc/cloudrest/"+name+".conf", files.TypeConfigNoReplace, 0o644),
		)
		info.Depends = []string{"systemd", "init-system-helpers (>= 1.54~)"} // the version that debhelper asks for with such scripts
		script := func(kind string) string { return filepath.Join(units, name+"."+kind) }
		info.Scripts = nfpm.Scripts{PostInstall: script("postinst"), PreRemove: script("prerm"), PostRemove: script("postrm")}
	}
	return write(deb.Default, info, out)
}

func (r *release) path(name string) string { return filepath.Join(r.root, filepath.FromSlash(name)) }

// script copies a script into dir, with the time and mode that it has in the package: nfpm's
// apk takes them from the file, and a clone has other times than its origin.
func (r *release) script(dir, name string) (string, error) {
	text, err := os.ReadFile(r.path(name))
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, filepath.Base(name))
	if err := os.WriteFile(to, text, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(to, 0o755); err != nil { // whatever the umask
		return "", err
	}
	return to, os.Chtimes(to, r.time, r.time)
}

// write packs into memory first: a half-written package never has its name.
func write(p nfpm.Packager, info *nfpm.Info, out string) error {
	var b bytes.Buffer
	if err := p.Package(info, &b); err != nil {
		return err
	}
	return os.WriteFile(out, b.Bytes(), 0o644)
}
