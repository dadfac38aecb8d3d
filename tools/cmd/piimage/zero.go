package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

// zeroModules are the kernel's modules that the image has besides what they need:
// the file system for state, and network adapters on USB.
var zeroModules = []string{
	"crc32c_generic", // ext4 asks for it by its algorithm's name
	"ext4", "bcm2835-rng",
	"smsc95xx", "lan78xx", "asix", "ax88179_178a", "r8152", "cdc_ether", "cdc_ncm", "rndis_host", "dm9601", "mcs7830",
}

// zeroFirmware is what the Raspberry Pi itself reads, from gokrazy/firmware: with
// gpu_mem=16 the cut-down one, which leaves 48 MB more to us.
var zeroFirmware = []string{"bootcode.bin", "start_cd.elf", "fixup_cd.dat", "LICENSE.broadcom"}

// zero makes the image for the Raspberry Pi Zero W.
func (o *options) zero(ctx context.Context, j *job) error {
	mformat, err := findTool("mformat", "mtools")
	if err != nil {
		return err
	}
	mcopy, err := findTool("mcopy", "mtools")
	if err != nil {
		return err
	}
	path, err := zeroKernel.fetch(ctx, j.work, o.kernelDeb, j.step)
	if err != nil {
		return err
	}
	kernel, err := zeroKernel.files(ctx, path, func(name string) bool {
		return strings.HasPrefix(name, "boot/vmlinuz-") || strings.HasSuffix(name, ".ko") || strings.HasSuffix(name, ".dtb")
	})
	if err != nil {
		return err
	}
	want, radio := zeroModules, map[string][]byte(nil)
	if o.wifiSSID != "" {
		want = append(slices.Clone(want), "brcmfmac")
		if radio, err = o.radio(ctx, j); err != nil {
			return err
		}
	}
	modules, order, err := pickModules(kernel, want)
	if err != nil {
		return err
	}
	j.step("compile for ARMv6 (minutes the first time)")
	programs, err := o.zeroPrograms(ctx, j)
	if err != nil {
		return err
	}
	initrd, err := o.initrd(j, programs, modules, radio, order)
	if err != nil {
		return err
	}
	vmlinuz := find(kernel, "boot/vmlinuz-")
	parts := map[string][]byte{zerodisk.Kernel: vmlinuz, zerodisk.Initrd: initrd}
	for name, room := range map[string]int{zerodisk.Kernel: zerodisk.KernelRoom, zerodisk.Initrd: zerodisk.InitrdRoom} {
		if n := len(parts[name]); n == 0 || n > room {
			return fmt.Errorf("the %s has %d bytes, want 1 to %d", name, n, room)
		}
	}

	j.step("write the boot partition: kernel %d, initial RAM file system %d bytes, twice", len(vmlinuz), len(initrd))
	var files []bootFile
	add := func(name string, content []byte, room int) {
		files = append(files, bootFile{name, append(content[:len(content):len(content)], make([]byte, room-len(content))...)})
	}
	add(zerodisk.ConfigFile, zerodisk.Config('a', false), zerodisk.ConfigSize)
	firmware, err := moduleDir(ctx, j.own, "github.com/gokrazy/firmware")
	if err != nil {
		return err
	}
	for _, name := range zeroFirmware {
		content, err := os.ReadFile(filepath.Join(firmware, name))
		if err != nil {
			return err
		}
		add(name, content, len(content))
	}
	for _, d := range zerodisk.Boards {
		content := find(kernel, "/"+d.DeviceTree)
		if content == nil {
			return fmt.Errorf("%s is not in %s", d.DeviceTree, path)
		}
		add(d.DeviceTree, content, len(content))
	}
	for _, s := range []zerodisk.Slot{'a', 'b'} { // at first, both are the same
		for _, trial := range []bool{false, true} {
			line := []byte(s.Cmdline(trial) + "\n")
			add(s.CmdlineFile(trial), line, len(line))
		}
		add(s.File(zerodisk.Kernel), vmlinuz, zerodisk.KernelRoom)
		add(s.File(zerodisk.Initrd), initrd, zerodisk.InitrdRoom)
	}
	if err := writeZero(ctx, j, mformat, mcopy, files); err != nil {
		return err
	}
	for _, name := range []string{zerodisk.Kernel, zerodisk.Initrd} {
		j.part(name, parts[name])
	}
	if j.others, err = moduleComponents(ctx, j.own, "github.com/gokrazy/firmware"); err != nil {
		return err
	}
	if radio != nil {
		components, err := o.radioComponents()
		if err != nil {
			return err
		}
		j.others = append(j.others, components...)
	}
	j.others = append(j.others, bomComponent{"operating-system", zeroKernel.name, zeroKernel.version,
		fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", zeroKernel.name, zeroKernel.version, zeroKernel.arch)})
	return nil
}

func find(files map[string][]byte, part string) []byte {
	for name, content := range files {
		if strings.Contains("/"+name, part) {
			return content
		}
	}
	return nil
}

// pickModules returns the modules that are wanted and those that they need, by the names
// of their files, and in which order they are to be loaded.
func pickModules(files map[string][]byte, want []string) (picked map[string][]byte, order []string, err error) {
	all := map[string][]byte{}
	for name, content := range files {
		if base, ok := strings.CutSuffix(path.Base(name), ".ko"); ok {
			all[strings.ReplaceAll(base, "-", "_")] = content
		}
	}
	picked = map[string][]byte{}
	var pick func(name string, depth int) error
	pick = func(name string, depth int) error {
		name = strings.ReplaceAll(name, "-", "_")
		content, ok := all[name]
		if !ok || depth > 16 {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		if picked[name+".ko"] != nil {
			return nil
		}
		needs, err := moduleNeeds(content)
		if err != nil {
			return fmt.Errorf("read module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := pick(n, depth+1); err != nil {
				return err
			}
		}
		picked[name+".ko"] = content
		order = append(order, name+".ko")
		return nil
	}
	for _, name := range want {
		if err := pick(name, 0); err != nil {
			return nil, nil, err
		}
	}
	return picked, order, nil
}

// moduleNeeds reads "depends=" of a module (Linux, include/linux/module.h).
func moduleNeeds(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	for line := range bytes.SplitSeq(text, []byte{0}) {
		if names, ok := strings.CutPrefix(string(line), "depends="); ok && names != "" {
			return strings.Split(names, ","), nil
		}
	}
	return nil, nil
}

// moduleDir returns where a pinned module is.
func moduleDir(ctx context.Context, own, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = own
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// zeroPrograms compiles everything that runs on the board.
func (o *options) zeroPrograms(ctx context.Context, j *job) (map[string][]byte, error) {
	small := "-s -w -buildid="
	list := []struct{ name, dir, pkg, ldflags string }{
		{"init", j.own, zeroPackage, small},
		{"dhcp", j.own, dhcpPackage, small},
		{"ntp", j.own, ntpPackage, small},
		{"cloudrestd", j.source, gatewayPackage, j.gatewayFlags()},
	}
	if o.originBinary == "" {
		list = append(list, struct{ name, dir, pkg, ldflags string }{"origin", j.source, samplePackage, small})
	}
	if o.wifiSSID != "" {
		list = append(list, struct{ name, dir, pkg, ldflags string }{"wifi", j.own, wifiPackage, small})
	}
	all := map[string][]byte{}
	env := []string{"GOOS=linux", "GOARCH=arm", "GOARM=6", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off"}
	for _, p := range list {
		out := filepath.Join(j.work, p.name)
		if err := command(ctx, p.dir, env, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", p.ldflags, "-o", out, p.pkg); err != nil {
			return nil, err
		}
		var err error
		if all[p.name], err = os.ReadFile(out); err != nil {
			return nil, err
		}
	}
	if o.originBinary != "" {
		var err error
		if all["origin"], err = os.ReadFile(o.originBinary); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// caBundles are where systems keep the authorities they trust.
var caBundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}

// initrd makes the whole system: a file system that the kernel unpacks into memory.
func (o *options) initrd(j *job, programs, modules, radio map[string][]byte, order []string) ([]byte, error) {
	info := j.info
	for _, m := range order {
		info.Modules = append(info.Modules, "/lib/modules/"+m)
	}
	info.Interface = o.network
	gateway := append([]string{"/bin/cloudrestd"}, o.gatewayArgs()...)
	origin := []string{"/bin/origin"}
	if o.originBinary == "" {
		origin = append(origin, "--fifo", notifyFIFO)
	} else {
		origin = append(origin, o.originArgs...)
	}
	info.Programs = []device.Program{
		{Name: "ntp", Args: []string{"/bin/ntp"}, Dir: "/perm/home/ntp"},
		{Name: "cloudrestd", Args: gateway, Dir: "/perm/home/cloudrestd"},
		{Name: "origin", Args: origin, Dir: "/perm/home/origin"},
	}
	if radio != nil {
		info.Programs = append(info.Programs, device.Program{Name: "wifi", Args: []string{"/bin/wifi"}, Dir: "/"})
	}
	info.Pair = []string{"/bin/cloudrestd", "pair", "--invite", "--role", "owner", "--state-dir", stateDir}
	text, err := json.MarshalIndent(info, "", "\t")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"etc/cloudrest/image.json": text,
		"etc/hosts":                []byte("127.0.0.1 localhost\n::1 localhost\n"),
		"etc/passwd":               []byte("root:x:0:0::/:/nonexistent\nnobody:x:65534:65534::/:/nonexistent\n"),
		"etc/group":                []byte("root:x:0:\nnogroup:x:65534:\n"),
	}
	for _, name := range caBundles {
		if content, err := os.ReadFile(name); err == nil {
			files["etc/ssl/certs/ca-certificates.crt"] = content
			break
		}
	}
	if o.relayCA != "" {
		if files[relayCAFile[1:]], err = os.ReadFile(o.relayCA); err != nil {
			return nil, err
		}
	}
	for name, content := range radio {
		files["lib/firmware/brcm/"+name] = content
	}
	for name, content := range modules {
		files["lib/modules/"+name] = content
	}
	for name, content := range programs {
		files["bin/"+name] = content
	}
	files["init"] = files["bin/init"]
	delete(files, "bin/init")

	var out bytes.Buffer
	packed, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	c := &cpio{w: packed}
	for _, dir := range []string{"bin", "dev", "etc", "etc/cloudrest", "etc/ssl", "etc/ssl/certs", "lib", "lib/firmware", "lib/firmware/brcm", "lib/modules", "perm", "proc", "run", "sys", "tmp"} {
		c.entry(dir, cpioFolder|0o755, 0, 0, nil)
	}
	// Before init mounts /dev, it needs somewhere to write.
	c.entry("dev/console", cpioDevice|0o600, 5, 1, nil)
	c.entry("dev/null", cpioDevice|0o666, 1, 3, nil)
	c.entry("etc/resolv.conf", cpioLink|0o777, 0, 0, []byte("/tmp/resolv.conf")) // the DHCP client writes there
	for _, name := range slices.Sorted(mapKeys(files)) {
		mode := 0o644
		switch {
		case name == "init" || strings.HasPrefix(name, "bin/"):
			mode = 0o755
		case strings.HasPrefix(name, "etc/cloudrest/"):
			mode = 0o600
		}
		c.entry(name, cpioFile|mode, 0, 0, files[name])
	}
	if err := c.close(); err != nil {
		return nil, err
	}
	if err := packed.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func mapKeys(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

type bootFile struct {
	name    string
	content []byte
}

const sectorSize = 512

// writeZero writes the card: the partition table, the boot partition, room for the rest.
// Nothing random is in it, so the same input gives the same bytes.
func writeZero(ctx context.Context, j *job, mformat, mcopy string, files []bootFile) error {
	f, err := os.OpenFile(j.image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(j.size); err != nil {
		return err
	}
	if _, err := f.WriteAt(partitionTable([2]partition{
		{start: zerodisk.BootStart, size: zerodisk.BootSize, kind: fat16LBA, active: true},
		{start: zerodisk.PermStart, size: j.size - zerodisk.PermStart, kind: linuxData},
	}), 0); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// Files one after the other into an empty FAT, so that each is contiguous.
	folder := filepath.Join(j.work, "boot")
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	at := fmt.Sprintf("%s@@%d", j.image, zerodisk.BootStart)
	// FAT16 has fewer than 65,525 clusters: 8 sectors each.
	env := []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(j.info.Sequence, 10), "TZ=UTC", "MTOOLSRC=" + os.DevNull, "MTOOLS_SKIP_CHECK=1", "LC_ALL=C"}
	if err := command(ctx, folder, env, mformat, "-i", at, "-T", strconv.Itoa(zerodisk.BootSize/sectorSize), "-h", "64", "-s", "32",
		"-c", "8", "-N", "c10d8e57", "-v", "CLOUDREST", "-H", strconv.Itoa(zerodisk.BootStart/sectorSize), "::"); err != nil {
		return err
	}
	for _, b := range files {
		name := filepath.Join(folder, b.name)
		if err := os.WriteFile(name, b.content, 0o600); err != nil {
			return err
		}
		if err := command(ctx, folder, env, mcopy, "-i", at, name, "::/"+b.name); err != nil {
			return err
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

type partition struct {
	start, size int64 // bytes
	kind        byte
	active      bool
}

const (
	fat16LBA  = 0x0e
	linuxData = 0x83
)

// partitionTable is a master boot record without code.
func partitionTable(list [2]partition) []byte {
	b := make([]byte, sectorSize)
	id := sha256.Sum256([]byte("cloudrest zero-w"))
	copy(b[440:], id[:4]) // the same for all: nothing looks a disk up by it
	for i, p := range list {
		e := b[446+16*i:]
		if p.active {
			e[0] = 0x80
		}
		copy(e[1:], "\xfe\xff\xff") // beyond what cylinders, heads and sectors can say
		e[4] = p.kind
		copy(e[5:], "\xfe\xff\xff")
		binary.LittleEndian.PutUint32(e[8:], uint32(p.start/sectorSize))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.size/sectorSize))
	}
	copy(b[510:], "\x55\xaa")
	return b
}
