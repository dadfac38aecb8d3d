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
	homepage   = "https://github.com/cloudrest/cloudrest"
	maintainer = "CloudREST maintainers <maintainers@cloudrest.invalid>"
	// openwrtUser is what OpenWrt's package scripts make the user from.
	openwrtUser = "cloudrest=15800:cloudrest=15800"
)

// descriptions of the packages: one line, and for Debian no article.
var descriptions = map[string]string{
	"cloudrestd": "gateway that makes a device's REST service reachable",
	"cloudrelay": "relay that makes devices behind home routers reachable",
	"cloudrest":  "command line of CloudREST: find, watch and reach devices",
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

// openwrtFiles are the program and what openwrt/files holds.
func (r *release) openwrtFiles(program string) (files.Contents, error) {
	out := files.Contents{r.content(program, "/usr/bin/cloudrestd", "", 0o755)}
	tree := filepath.Join(r.root, "openwrt", "files")
	err := filepath.WalkDir(tree, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		to := filepath.ToSlash(strings.TrimPrefix(name, tree))
		kind, mode := "", fs.FileMode(0o644)
		switch {
		case strings.HasPrefix(to, "/etc/config/"):
			kind, mode = files.TypeConfigNoReplace, 0o640
		case strings.HasPrefix(to, "/etc/init.d/"), strings.HasPrefix(to, "/etc/uci-defaults/"):
			mode = 0o755
		}
		out = append(out, r.content(name, to, kind, mode))
		return nil
	})
	return out, err
}

func (r *release) ipk(name, arch, program, out string) (err error) {
	info := r.info(name, arch)
	info.Description = descriptions["cloudrestd"]
	info.Version, info.Release = r.name.deb, "1"
	info.Depends = []string{"ca-bundle"}
	info.IPK.Fields = map[string]string{"Require-User": openwrtUser}
	info.Scripts = nfpm.Scripts{PostInstall: r.path("openwrt/package/postinst"), PreRemove: r.path("openwrt/package/prerm")}
	if info.Contents, err = r.openwrtFiles(program); err != nil {
		return err
	}
	if err := write(ipk.Default, info, out); err != nil || !r.best {
		return err
	}
	return squeeze(out)
}

// apk also writes the lists that OpenWrt keeps in the package, where opkg kept its own.
func (r *release) apk(name, arch, program, out string) (err error) {
	info := r.info(name, arch)
	info.Description = descriptions["cloudrestd"]
	info.Version, info.Release = r.name.apk, "1"
	info.Depends = []string{"ca-bundle"}
	if info.Contents, err = r.openwrtFiles(program); err != nil {
		return err
	}
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
	for name, to := range map[string]*string{
		"post-install": &info.Scripts.PostInstall, "pre-deinstall": &info.Scripts.PreRemove, "post-upgrade": &info.APK.Scripts.PostUpgrade,
	} {
		if *to, err = r.script(dir, "openwrt/package/"+name); err != nil {
			return err
		}
	}
	for suffix, text := range map[string]string{
		"list":             strings.Join(list, "\n") + "\n",
		"rusers":           openwrtUser + "\n",
		"conffiles":        "/etc/config/cloudrest\n/etc/cloudrest/\n",
		"conffiles_static": sums.String(),
	} {
		from := filepath.Join(dir, suffix)
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
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
	info.Deb.Compression = "xz"
	info.Contents = files.Contents{
		r.content(program, "/usr/bin/"+name, "", 0o755),
		r.content(r.path("LICENSE"), "/usr/share/doc/"+name+"/copyright", "", 0o644),
	}
	if name != "cloudrest" { // a daemon
		units := r.path("tools/systemd")
		info.Contents = append(info.Contents,
			r.content(filepath.Join(units, name+".service"), "/usr/lib/systemd/system/"+name+".service", "", 0o644),
			r.content(filepath.Join(units, name+".sysusers"), "/usr/lib/sysusers.d/"+name+".conf", "", 0o644),
			r.content(filepath.Join(units, name+".conf"), "/etc/cloudrest/"+name+".conf", files.TypeConfigNoReplace, 0o644),
		)
		info.Depends = []string{"systemd"}
		info.Scripts = nfpm.Scripts{PostInstall: filepath.Join(units, name+".postinst"), PreRemove: filepath.Join(units, name+".prerm")}
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
