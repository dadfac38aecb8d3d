//go:build linux

package malta

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The modules that the board needs besides what is in Debian's kernel.
var modules = []string{"phram", "jffs2", "squashfs", "overlay", "mii", "pcnet32"}

// parts is what the board is made of.
type parts struct {
	kernel, initramfs, rootfs string // files
}

// build makes the parts: debian is what debian.sh fetched, ipk the package of the gateway.
func build(t *testing.T, debian, ipk string) (p parts) {
	t.Helper()
	for _, tool := range []string{"qemu-system-mipsel", "mksquashfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: run tools/deps.sh malta", err)
		}
	}
	kernel, err := filepath.Glob(filepath.Join(debian, "root/boot/vmlinuz-*"))
	if err != nil || len(kernel) != 1 {
		t.Fatalf("%d kernels in %s, %v; want one: run make test-malta", len(kernel), debian, err)
	}
	dir := t.TempDir()
	p = parts{kernel[0], filepath.Join(dir, "initramfs"), filepath.Join(dir, "rootfs")}
	busybox := readFile(t, filepath.Join(debian, "root/bin/busybox"))

	var ram archive
	for _, d := range []string{"bin", "lib", "proc", "sys", "dev", "rom", "overlay", "new"} {
		ram.add(d, fs.ModeDir|0o755, nil)
	}
	ram.add("init", 0o755, readFile(t, "testdata/preinit.sh"))
	ram.add("bin/busybox", 0o755, busybox)
	for _, a := range []string{"sh", "mount", "mkdir", "insmod", "echo", "switch_root"} {
		ram.add("bin/"+a, fs.ModeSymlink|0o777, []byte("busybox"))
	}
	found := map[string]string{}
	filepath.WalkDir(filepath.Join(debian, "root/lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			found[d.Name()] = path
		}
		return err
	})
	for _, m := range modules {
		if found[m+".ko"] == "" {
			t.Fatalf("the kernel in %s has no module %s", debian, m)
		}
		ram.add("lib/"+m+".ko", 0o644, readFile(t, found[m+".ko"]))
	}
	writeFile(t, p.initramfs, ram.bytes(), 0o644)

	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "tmp", "rom", "overlay"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unpack(root, readFile(t, ipk)); err != nil {
		t.Fatalf("unpack %s: %v", ipk, err)
	}
	writeFile(t, filepath.Join(root, "bin/busybox"), busybox, 0o755)
	// All applets but the loader of modules, which no applet of ours needs.
	for _, a := range strings.Fields(`[ cat chgrp chmod chown cp cut date dd df dmesg echo env find free grep head hostname id ip kill ls
		mkdir mount mv ps pwd reboot rm sed setpriv sh sleep stty su sync tail test touch umount usleep wc`) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("tmp", filepath.Join(root, "var")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "sbin/init"), readFile(t, "testdata/init.sh"), 0o755)
	writeFile(t, filepath.Join(root, "etc/rc.common"), readFile(t, "testdata/rc.common.sh"), 0o755)
	writeFile(t, filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/tmp:/bin/sh\ncloudrest:x:2021:2021:cloudrest:/var/run:/bin/false\n"), 0o644)
	writeFile(t, filepath.Join(root, "etc/group"), []byte("root:x:0:\ncloudrest:x:2021:\n"), 0o644)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, "usr/bin/irrigation"), "../cmd/irrigation")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=mipsle", "GOMIPS=softfloat")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the maker's service: %v\n%s", err, out)
	}
	// As OpenWrt packs its root file system.
	if out, err := exec.CommandContext(t.Context(), "mksquashfs", root, p.rootfs, "-all-root", "-noappend", "-no-progress", "-quiet",
		"-no-xattrs", "-comp", "xz", "-b", "256K").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return p
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, name string, content []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, content, mode); err != nil {
		t.Fatal(err)
	}
}

// unpack puts the files of an .ipk into root, as opkg does: a gzipped tar with a gzipped tar in it.
func unpack(root string, ipk []byte) error {
	var data []byte
	if err := untar(ipk, func(h *tar.Header, r io.Reader) (err error) {
		if filepath.Clean(h.Name) == "data.tar.gz" {
			data, err = io.ReadAll(r)
		}
		return err
	}); err != nil {
		return err
	}
	if data == nil {
		return errors.New("no data.tar.gz in it")
	}
	return untar(data, func(h *tar.Header, r io.Reader) error {
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("a file outside: %q", h.Name)
		}
		name := filepath.Join(root, h.Name)
		if h.Typeflag == tar.TypeDir {
			return os.MkdirAll(name, 0o755)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		return os.WriteFile(name, b, h.FileInfo().Mode().Perm())
	})
}

func untar(packed []byte, file func(*tar.Header, io.Reader) error) error {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = file(h, r)
		}
		if err != nil {
			return err
		}
	}
}

// archive is an initial RAM file system in the making: a cpio archive in the format "newc"
// (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
type archive struct {
	b     bytes.Buffer
	files int
}

func (a *archive) add(name string, mode fs.FileMode, content []byte) {
	bits := uint32(mode.Perm())
	switch mode.Type() {
	case fs.ModeDir:
		bits |= 0o040000
	case fs.ModeSymlink:
		bits |= 0o120000
	default:
		bits |= 0o100000
	}
	a.files++
	fmt.Fprintf(&a.b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.files, bits, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.b.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.b.Len()%4 != 0 {
		a.b.WriteByte(0)
	}
}

func (a *archive) bytes() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.b.Bytes()
}
