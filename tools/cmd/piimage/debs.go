package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// deb is a pinned Debian package.
type deb struct {
	suite, component, arch, name, version string
	source                                string // package, as the snapshot archive has it
	sha256                                string // of the file
	option                                string // of piimage that names a copy
}

// zeroKernel is Debian's kernel for the processor of the first Raspberry Pis (ARMv6).
// Debian keeps only the newest of a point release on its mirrors: when this one is gone, a
// new version and its SHA-256 go here, from "apt-cache show", and the test boots it.
var zeroKernel = deb{suite: "bookworm", component: "main", arch: "armel", name: "linux-image-6.1.0-50-rpi", version: "6.1.176-1", source: "linux",
	sha256: "b6646f99eb5809a17d5781054e009d5d4f2f532d5d03d9d30d7c6f87077b746b", option: "--kernel-deb"}

// radioFirmware is what the radio of a Zero W runs. It may be redistributed, but not changed.
var radioFirmware = deb{suite: "bookworm", component: "non-free-firmware", arch: "armel", name: "firmware-brcm80211", version: "20230210-5", source: "firmware-nonfree",
	sha256: "602b8c2dd176edbb187fe8d0d2ad8fadbfb7885e5fc3425b579c2d36ec72aa19", option: "--radio-deb"}

const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

// fetch returns the package's file: given, from the cache, or by apt, which has a state of
// its own for it in the folder work and changes nothing of this machine's.
func (d deb) fetch(ctx context.Context, work, given string, step func(string, ...any)) (string, error) {
	if given != "" {
		return given, d.check(given)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = work
	}
	cache = filepath.Join(cache, "cloudrest-piimage")
	kept := filepath.Join(cache, d.sha256+".deb")
	if d.check(kept) == nil {
		return kept, nil
	}
	unobtainable := func(err error) error {
		return fmt.Errorf("fetch %s %s (%s) from Debian: %w\nwith a copy of the file from elsewhere, such as Debian's snapshot archive (source package %s %s): %s FILE (SHA-256 %s)",
			d.name, d.version, d.arch, err, d.source, d.version, d.option, d.sha256)
	}
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", unobtainable(fmt.Errorf("%s is missing: this needs Debian or Ubuntu", tool))
		}
	}
	if _, err := os.Stat(debianKeys); err != nil {
		return "", unobtainable(fmt.Errorf("%w (apt install debian-archive-keyring)", err))
	}
	step("fetch %s %s and the list of Debian's packages", d.name, d.version)
	mirror, security := debianMirrors(ctx)
	if mirror == "" {
		return "", unobtainable(errors.New("apt names no mirror here; set MIRROR to the address of one"))
	}
	apt := filepath.Join(work, "apt-"+d.name)
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "etc", "got"} {
		if err := os.MkdirAll(filepath.Join(apt, dir), 0o755); err != nil {
			return "", err
		}
	}
	source := func(uri, suites string) string {
		return fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nArchitectures: %s\nSigned-By: %s\n\n", uri, suites, d.component, d.arch, debianKeys)
	}
	files := map[string]string{
		"debian.sources": source(mirror, d.suite+" "+d.suite+"-updates") + source(security, d.suite+"-security"),
		"status":         "",
		"apt.conf": fmt.Sprintf(`APT::Architecture %[2]q; APT::Architectures { %[2]q; };
Dir::State "%[1]s/state"; Dir::State::status "%[1]s/status"; Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/debian.sources"; Dir::Etc::sourceparts "%[1]s/etc"; Dir::Etc::parts "%[1]s/etc"; Dir::Etc::main "%[1]s/none";
APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::Retries "2"; Acquire::http::Timeout "30";
`, apt, d.arch),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	env := []string{"APT_CONFIG=" + filepath.Join(apt, "apt.conf")}
	got := filepath.Join(apt, "got")
	if err := command(ctx, got, env, "apt-get", "update"); err != nil {
		return "", unobtainable(err)
	}
	if err := command(ctx, got, env, "apt-get", "download", d.name+"="+d.version); err != nil {
		return "", unobtainable(err)
	}
	list, err := filepath.Glob(filepath.Join(got, "*.deb"))
	if err != nil || len(list) != 1 {
		return "", unobtainable(fmt.Errorf("apt fetched %d files, want 1", len(list)))
	}
	if err := d.check(list[0]); err != nil {
		return "", unobtainable(err)
	}
	if os.MkdirAll(cache, 0o755) == nil && command(ctx, work, nil, "cp", list[0], kept+".new") == nil && os.Rename(kept+".new", kept) == nil {
		return kept, nil
	}
	return list[0], nil // without a cache, next time again
}

// debianMirrors are the addresses of Debian and of its security updates: MIRROR, else what
// apt uses on this machine. Empty if that says nothing.
func debianMirrors(ctx context.Context) (mirror, security string) {
	if mirror = os.Getenv("MIRROR"); mirror == "" {
		out, _ := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
		for uri := range strings.FieldsSeq(string(out)) {
			if strings.Contains(uri, "security") {
				security = cmpOr(security, uri)
			} else {
				mirror = cmpOr(mirror, uri)
			}
		}
	}
	if mirror != "" && security == "" {
		security = strings.TrimSuffix(mirror, "/") + "-security"
	}
	return mirror, security
}

func (d deb) check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.sha256 {
		return fmt.Errorf("%s has SHA-256 %s, want %s", path, got, d.sha256)
	}
	return nil
}

// files reads the files of a package that want asks for, by their paths without the first
// slash.
func (d deb) files(ctx context.Context, path string, want func(string) bool) (map[string][]byte, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", path)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	read := func() error {
		in := tar.NewReader(pipe)
		for {
			h, err := in.Next()
			if err == io.EOF {
				_, err = io.Copy(io.Discard, pipe)
				return err
			}
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(h.Name, "./")
			if h.Typeflag != tar.TypeReg || !want(name) {
				continue
			}
			if all[name], err = io.ReadAll(in); err != nil {
				return err
			}
		}
	}
	err = read()
	if err != nil {
		cmd.Process.Kill()
	}
	if ended := cmd.Wait(); err == nil && ended != nil {
		err = fmt.Errorf("%w: %s", ended, bytes.TrimSpace(problem.Bytes()))
	}
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	return all, nil
}
