package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

const (
	defaultOrigin = "http://127.0.0.1:8080"

	// On the device. The FIFO is on tmpfs, what must survive is not.
	stateDir    = "/perm/cloudrest"
	notifyFIFO  = "/run/cloudrest/notify"
	originFile  = "/opt/origin"
	relayCAFile = "/etc/cloudrest/relay-ca.pem"

	// gokrazy's own page and update interface; 80 and 443 are the gateway's. The first only
	// redirects to the second. With --update-key our own server has the second.
	updateRedirect = "10080"
	updatePort     = device.Port
)

// The modules that an image is built from.
const (
	mainModule = "github.com/cloudrest/cloudrest"
	ownModule  = mainModule + "/tools/cmd/piimage"

	gatewayPackage = mainModule + "/firmware/cmd/cloudrestd"
	samplePackage  = mainModule + "/tools/cmd/irrigation"
	originPackage  = ownModule + "/onboard/origin"
	guardPackage   = ownModule + "/onboard/guard"
	wifiPackage    = ownModule + "/onboard/wifi"
	pairPackage    = ownModule + "/onboard/pair"
	adminPackage   = ownModule + "/onboard/admin"
	zeroPackage    = ownModule + "/onboard/zero"

	dhcpPackage = "github.com/gokrazy/gokrazy/cmd/dhcp"
	dhcpProgram = "/gokrazy/dhcp" // on the device
	ntpPackage  = "github.com/gokrazy/gokrazy/cmd/ntp"
	// gokrazy's, for a kernel that has too few random numbers at its start.
	randomPackage = "github.com/gokrazy/gokrazy/cmd/randomd"
)

// board is a kind of machine.
type board struct {
	name, says             string
	out, size              string // unless they are said
	network                string
	perm                   int64 // where the partition for state begins, in bytes
	machine                elf.Machine
	arch                   string // for people
	env                    []string
	kernel, firmware, prom string      // modules of gokrazy; none: the image is our own
	console                string      // where the kernel and init write; no login anywhere
	radio                  []radioFile // none: no Wi-Fi
}

const zeroName = "zero-w"

var arm64 = []string{"GOARCH=arm64", "GOARM64=v8.0"}

var boards = []board{
	{
		name: "pi", says: "Raspberry Pi 3, 4, 5, Zero 2 W, CM3, CM4, CM5",
		out: "images/cloudrest-pi.img", size: "2G", network: "eth0", perm: bootpart.PermStart, machine: elf.EM_AARCH64, arch: "linux/arm64", env: arm64,
		kernel: "github.com/gokrazy/kernel.rpi", firmware: "github.com/gokrazy/firmware", prom: "github.com/gokrazy/rpi-eeprom",
		console: "disabled", radio: piRadio,
	},
	{
		name: zeroName, says: "Raspberry Pi Zero W, Zero, 1 B+",
		out: "images/cloudrest-pi-zero-w.img", size: "512M", perm: zerodisk.PermStart, machine: elf.EM_ARM, arch: "linux/arm with GOARM=6", env: []string{"GOARCH=arm", "GOARM=6"},
		radio: zeroRadio,
	},
	{
		name: "vm", says: "qemu-system-aarch64 -machine virt",
		out: "images/cloudrest-vm.img", size: "2G", network: "eth0", perm: bootpart.PermStart, machine: elf.EM_AARCH64, arch: "linux/arm64", env: arm64,
		kernel: "github.com/gokrazy/kernel.arm64", console: "ttyAMA0,115200",
	},
}

// options say what goes into an image.
type options struct {
	board, hostname, out, secrets, source string
	size                                  string
	relay, relayCA                        string
	origin, originBinary                  string
	originArgs                            repeated
	uidSource, button, led                string
	network                               string
	trial                                 time.Duration
	noSecrets                             bool
	updateKey, signKey                    string
	kernelDeb, radioDeb                   string
	wifiSSID, wifiPSKFile, radioFiles     string
}

type repeated []string

func (r *repeated) String() string     { return strings.Join(*r, " ") }
func (r *repeated) Set(s string) error { *r = append(*r, s); return nil }

func (o *options) declare(f *flag.FlagSet) {
	var names []string
	for _, b := range boards {
		names = append(names, b.name+" ("+b.says+")")
	}
	f.StringVar(&o.board, "board", "pi", "what the image is for: "+strings.Join(names, ", or "))
	f.StringVar(&o.hostname, "hostname", "cloudrest", "the `name` that the device tells the router; updates keep it")
	f.StringVar(&o.out, "out", "", "the image, `file` (default: images/cloudrest-pi.img, or with the board's name)")
	f.StringVar(&o.secrets, "secrets", "", "update password and certificate, `file`; made if it is not there, and the same for all images "+
		"that are to update each other (default: --out with .secrets.json)")
	f.BoolVar(&o.noSecrets, "no-secrets", false, "put no password into the image, so that it may be published: whoever is on the LAN may offer an update, "+
		"only a signed newer one is taken, and nobody can do more")
	f.StringVar(&o.updateKey, "update-key", "", "PEM `file` with an Ed25519 public key: the device takes only updates that piimage sign signed with its other half")
	f.StringVar(&o.signKey, "sign-key", "", "PEM `file` with the Ed25519 private key: build with its public half as --update-key, and make the signed update as piimage sign does")
	f.StringVar(&o.wifiSSID, "wifi-ssid", "", "for pi and zero-w, the `name` of the Wi-Fi network to join (WPA2 with a passphrase, or open); NOT tried on hardware")
	f.StringVar(&o.wifiPSKFile, "wifi-psk-file", "", "`file` with the passphrase of that network in one line, 8 to 63 characters, which is then in the image; without, the network is open")
	f.StringVar(&o.radioDeb, "radio-deb", "", "with Wi-Fi, Debian's firmware-brcm80211 as a `file`, instead of fetching it")
	f.StringVar(&o.radioFiles, "radio-files", "", "with Wi-Fi, a `folder` with further firmware for the radio, under the names that its driver asks for; README.md tells when")
	f.StringVar(&o.kernelDeb, "kernel-deb", "", "for zero-w, Debian's kernel package as a `file`, instead of fetching it")
	f.StringVar(&o.size, "size", "", "of the image (default: 2G, at least 1300M; for zero-w 512M, at least 200M); what the system does not need is for the state of the gateway and of the service")
	f.StringVar(&o.relay, "relay", "", "relays, wss:// `URLs` with commas between; without, the device is on the LAN only")
	f.StringVar(&o.relayCA, "relay-ca", "", "PEM `file` of the authorities for the relays' certificates; without it, those of this machine")
	f.StringVar(&o.originBinary, "origin-binary", "", "the maker's service, a static program for linux/arm64 (zero-w: linux/arm, GOARM=6), `file`; without it, the sample irrigation service")
	f.Var(&o.originArgs, "origin-arg", "an `argument` for it; may be given several times")
	f.StringVar(&o.origin, "origin", defaultOrigin, "the `URL` where it listens")
	f.StringVar(&o.uidSource, "uid-source", "device-tree,mac,random", "where the UID of the board comes from, as in cloudrestd --help")
	f.StringVar(&o.network, "interface", "", "the network interface that gets an address by DHCP; some USB adapters are usb0 (default: eth0; for zero-w every one); with --wifi-ssid the radio gets one besides")
	f.StringVar(&o.button, "button", "", "the GPIO `line` of the pairing button, such as GPIO17")
	f.StringVar(&o.led, "led", "", "the LED that shows the pairing window, such as gpio=GPIO27")
	f.DurationVar(&o.trial, "trial", 3*time.Minute, "after an update, how long the gateway and the service may take until they answer; then the version before comes back")
	f.StringVar(&o.source, "source", "", "`folder` of CloudREST's source (default: found from here upwards)")
}

// hostnames are single labels (RFC 1123 §2.1).
var hostnames = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

// validate reports every mistake at once.
func (o *options) validate() (board, int64, error) {
	var all []error
	bad := func(format string, args ...any) { all = append(all, mistake(format, args...)) }
	i := slices.IndexFunc(boards, func(b board) bool { return b.name == o.board })
	if i < 0 {
		bad("--board %q: want pi, zero-w or vm", o.board)
		i = 0
	}
	b := boards[i]
	o.out, o.size, o.network = cmpOr(o.out, b.out), cmpOr(o.size, b.size), cmpOr(o.network, b.network)
	if !hostnames.MatchString(o.hostname) {
		bad("--hostname %q: want letters, digits and hyphens, at most 63", o.hostname)
	}
	size, err := parseSize(o.size, b.perm)
	if err != nil {
		bad("--size %q: %v", o.size, err)
	}
	if u, err := url.Parse(o.origin); err != nil || u.Scheme != "http" && u.Scheme != "unix" {
		bad("--origin %q: want http://host:port or unix:///path", o.origin)
	}
	for r := range strings.SplitSeq(o.relay, ",") {
		if u, err := url.Parse(r); r != "" && (err != nil || u.Scheme != "wss" && u.Scheme != "ws" || u.Host == "") {
			bad("--relay %q: want wss://host", r)
		}
	}
	if o.originBinary == "" && len(o.originArgs) > 0 {
		bad("--origin-arg is for --origin-binary")
	}
	if o.originBinary == "" && o.origin != defaultOrigin {
		bad("--origin is for --origin-binary: the sample service listens on %s", defaultOrigin)
	}
	if o.originBinary != "" {
		if err := checkProgram(o.originBinary, b); err != nil {
			bad("--origin-binary %s: %v", o.originBinary, err)
		}
	}
	if o.relayCA != "" {
		if _, err := os.Stat(o.relayCA); err != nil {
			bad("--relay-ca: %v", err)
		}
	}
	if o.kernelDeb != "" && b.name != zeroName {
		bad("--kernel-deb is for --board " + zeroName)
	}
	if len(o.wifiSSID) > maxSSID {
		bad("--wifi-ssid %q: want at most %d bytes", o.wifiSSID, maxSSID)
	}
	if o.wifiSSID != "" && b.radio == nil {
		bad("--wifi-ssid: --board %s has no radio", b.name)
	}
	if o.wifiSSID == "" && (o.wifiPSKFile != "" || o.radioDeb != "" || o.radioFiles != "") {
		bad("--wifi-psk-file, --radio-deb and --radio-files are for --wifi-ssid")
	}
	if o.radioFiles != "" {
		if _, err := readRadioFiles(o.radioFiles); err != nil {
			bad("--radio-files: %v", err)
		}
	}
	if o.wifiPSKFile != "" {
		if o.noSecrets {
			bad("--wifi-psk-file: an image with --no-secrets may be published, a passphrase may not")
		}
		if _, err := o.passphrase(); err != nil {
			bad("--wifi-psk-file: %v", err)
		}
	}
	if o.updateKey != "" && o.signKey != "" {
		bad("--update-key and --sign-key exclude each other")
	}
	if o.noSecrets && o.secrets != "" {
		bad("--no-secrets and --secrets exclude each other")
	}
	return b, size, errors.Join(all...)
}

const maxSSID = 32 // bytes (IEEE 802.11 §9.4.2.2)

// passphrase reads that of the network (IEEE 802.11 §J.4.1).
func (o *options) passphrase() (string, error) {
	text, err := os.ReadFile(o.wifiPSKFile)
	if err != nil {
		return "", err
	}
	s := strings.TrimRight(string(text), "\r\n")
	if len(s) < 8 || len(s) > 63 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("want one line with 8 to 63 characters of ASCII")
	}
	return s, nil
}

// permMin is the least room for state, in bytes: a journal of ext4 and the gateway's.
const permMin = 64 << 20

func parseSize(s string, perm int64) (int64, error) {
	number, unit := strings.TrimRight(s, "kKMGi"), int64(1)
	switch strings.TrimSuffix(strings.TrimPrefix(s, number), "i") {
	case "":
	case "M":
		unit = 1 << 20
	case "G":
		unit = 1 << 30
	default:
		return 0, errors.New("want a number with M or G")
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<50/unit {
		return 0, errors.New("want a number with M or G")
	}
	n *= unit
	if least := perm + permMin; n < least {
		return 0, fmt.Errorf("want at least %dM", (least+1<<20-1)>>20)
	}
	return n &^ (1<<20 - 1), nil
}

// checkProgram refuses what the device could not run: there is no libc in the image.
func checkProgram(path string, b board) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Machine != b.machine {
		return fmt.Errorf("it is for %v, want %s", f.Machine, b.arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("it is linked dynamically, want a static program: the image has no libraries")
		}
	}
	return nil
}

// job is one image in the making.
type job struct {
	board       board
	size        int64
	source, own string // folders of the main module and of this one
	work        string // temporary, for the parts
	image       string // temporary, becomes the image
	info        device.Info
	commit      string
	secrets     *secrets // nil with --no-secrets
	parts       []update.Part
	others      []bomComponent // kernel and firmware
	step        func(format string, args ...any)
}

// part adds to what the manifest lists.
func (j *job) part(name string, content []byte) {
	j.parts = append(j.parts, update.Part{Name: name, Size: int64(len(content)), SHA256: fmt.Sprintf("%x", sha256.Sum256(content))})
}

// closed reports whether the device takes no unsigned updates.
func (j *job) closed() bool { return len(j.info.UpdateKey) > 0 || j.secrets == nil }

// gatewayFlags are for the linker.
func (j *job) gatewayFlags() string {
	return fmt.Sprintf("-s -w -buildid= -X %[1]s.version=%[2]s -X %[1]s.commit=%[3]s -X %[1]s.seconds=%[4]d",
		mainModule+"/tether/buildinfo", j.info.Version, j.commit, j.info.Sequence)
}

// packages are those of the image's programs, by the folder of their module.
func (j *job) packages(o *options) map[string][]string {
	main, own := []string{gatewayPackage}, []string{dhcpPackage, ntpPackage}
	if o.originBinary == "" {
		main = append(main, samplePackage)
	}
	if o.wifiSSID != "" {
		own = append(own, wifiPackage)
	}
	if j.board.kernel == "" {
		own = append(own, zeroPackage)
	} else {
		own = append(own, "github.com/gokrazy/gokrazy", randomPackage, guardPackage)
		if j.closed() {
			own = append(own, adminPackage)
		}
	}
	return map[string][]string{j.source: main, j.own: own}
}

// build makes the image. Its parts are put together in a temporary folder beside it.
func (o *options) build(ctx context.Context, out io.Writer) error {
	begin := time.Now()
	b, size, err := o.validate()
	if err != nil {
		return err
	}
	j := &job{board: b, size: size, step: func(format string, args ...any) {
		fmt.Fprintf(out, "piimage: %3ds  %s\n", int(time.Since(begin).Seconds()), fmt.Sprintf(format, args...))
	}}
	if j.source, err = findSource(o.source); err != nil {
		return err
	}
	j.own = filepath.Join(j.source, "tools", "cmd", "piimage")
	mkfs, err := findTool("mkfs.ext4", "e2fsprogs")
	if err != nil {
		return err
	}
	image, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(image), 0o755); err != nil {
		return err
	}
	if j.work, err = os.MkdirTemp(filepath.Dir(image), ".piimage-"); err != nil {
		return err
	}
	defer os.RemoveAll(j.work)
	j.image = filepath.Join(j.work, "image")

	j.info = device.Info{Board: b.name, Hostname: o.hostname, Trial: o.trial}
	if err := o.describe(j); err != nil {
		return err
	}
	if o.updateKey != "" {
		key, err := readKey[ed25519.PublicKey](o.updateKey, x509.ParsePKIXPublicKey)
		if err != nil {
			return fmt.Errorf("read the update key: %w", err)
		}
		j.info.UpdateKey = key
	}
	if o.signKey != "" {
		key, err := readKey[ed25519.PrivateKey](o.signKey, x509.ParsePKCS8PrivateKey)
		if err != nil {
			return fmt.Errorf("read the key that signs: %w", err)
		}
		j.info.UpdateKey = key.Public().(ed25519.PublicKey)
	}
	secretsFile := ""
	if !o.noSecrets {
		secretsFile = cmpOr(o.secrets, secretsBeside(image))
		made := false
		if j.secrets, made, err = openSecrets(secretsFile, o.hostname); err != nil {
			return err
		}
		if made {
			j.step("made %s: the update password and certificate, keep it", secretsFile)
		}
	}
	if j.secrets != nil && (j.closed() || b.kernel == "") {
		j.info.Admin = &device.Admin{Password: j.secrets.Password, Certificate: j.secrets.Certificate, Key: j.secrets.Key}
	}
	switch {
	case len(j.info.UpdateKey) > 0:
		j.step("the device will take only updates that are signed with the key of %s", o.updateKey+o.signKey)
	case b.kernel == "" || o.noSecrets:
		j.step("NO --update-key: this device will take no updates over the network; new versions need the SD card to be written anew")
	default:
		j.step("NO --update-key: whoever has the password may install anything, also an older version")
	}

	make := o.gokrazy
	if b.kernel == "" {
		make = o.zero
	}
	if err := make(ctx, j); err != nil {
		return err
	}

	j.step("make the file system for state, %d MB", (size-b.perm)>>20)
	// The last 34 sectors may belong to the second partition table.
	const table = 1 << 20
	// Neither random numbers nor today's date are in it.
	env := []string{"E2FSPROGS_FAKE_TIME=" + strconv.FormatInt(j.info.Sequence, 10), "SOURCE_DATE_EPOCH=" + strconv.FormatInt(j.info.Sequence, 10), "MKE2FS_CONFIG=" + os.DevNull}
	if err := command(ctx, j.work, env, mkfs, "-q", "-F", "-t", "ext4", "-L", "perm", "-m", "1", "-b", "4096", "-U", permID, "-I", "256", "-O", permFeatures,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,root_owner=0:0", b.perm, permID),
		j.image, fmt.Sprintf("%dk", (size-b.perm-table)>>10)); err != nil {
		return err
	}
	manifest := update.Manifest{Format: update.Format, Name: update.Name, Board: b.name, Version: j.info.Version, Sequence: j.info.Sequence, Files: j.parts}
	text, err := json.MarshalIndent(manifest, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(manifestBeside(image), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := j.sbom(ctx, sbomBeside(image), j.packages(o), j.others); err != nil {
		return err
	}
	mode := fs.FileMode(0o600) // the update password is in it
	if o.noSecrets {
		mode = 0o644
	}
	if err := os.Chmod(j.image, mode); err != nil {
		return err
	}
	if err := os.Rename(j.image, image); err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(image, &st); err != nil {
		return err
	}
	const blockSize = 512 // of st_blocks, whatever the file system's is
	j.step("%s: %d bytes, of them %d on this disk", o.out, size, st.Blocks*blockSize)
	for _, p := range j.parts {
		j.step("an update sends %s: %d bytes", p.Name, p.Size)
	}
	if o.signKey != "" {
		if err := (&signer{key: o.signKey, image: image}).sign(out); err != nil {
			return err
		}
	}
	if b.console == "" || b.name == "pi" {
		fmt.Fprintf(out, "\nWrite it:       dd if=%s of=/dev/sdX bs=4M conv=fsync   (sdX: the SD card, all of it)\n", o.out)
		if !o.noSecrets {
			fmt.Fprintf(out, "Pair a phone:   piimage pair ADDRESS --secrets %s\n", secretsFile)
		}
		if !j.closed() && b.kernel != "" {
			fmt.Fprintf(out, "Its own page:   https://ADDRESS:%s, user gokrazy, password in %s\n", updatePort, secretsFile)
		}
		if o.updateKey != "" {
			fmt.Fprintf(out, "For an update:  piimage sign --key PRIVATE.pem --image %s\n", o.out)
		}
	}
	return nil
}

// The file system for state. What can be random in it is fixed; the features are named, so
// that it is the same whatever this machine's configuration of mke2fs.
const (
	permID       = "c10d8e57-0001-4000-8000-000000000001"
	permFeatures = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)

// describe names the version, as build.sh does.
func (o *options) describe(j *job) error {
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = j.source
		out, _ := cmd.Output()
		return strings.TrimSpace(string(out))
	}
	j.info.Version = cmpOr(cmpOr(os.Getenv("VERSION"), git("describe", "--tags", "--always", "--dirty", "--match", "v*")), "unversioned")
	j.commit = git("rev-parse", "HEAD")
	seconds := cmpOr(os.Getenv("SOURCE_DATE_EPOCH"), git("log", "-1", "--format=%ct"))
	if seconds == "" {
		seconds = strconv.FormatInt(time.Now().Unix(), 10)
	}
	var err error
	if j.info.Sequence, err = strconv.ParseInt(seconds, 10, 64); err != nil || j.info.Sequence < 0 {
		return mistake("SOURCE_DATE_EPOCH %q: want seconds since 1970", seconds)
	}
	return nil
}

// gatewayArgs are the arguments of cloudrestd.
func (o *options) gatewayArgs() []string {
	args := []string{"--state-dir", stateDir, "--fifo", notifyFIFO, "--origin", o.origin, "--uid-source", o.uidSource}
	for _, f := range [][2]string{{"--relay", o.relay}, {"--button", o.button}, {"--led", o.led}} {
		if f[1] != "" {
			args = append(args, f[0], f[1])
		}
	}
	if o.relayCA != "" {
		args = append(args, "--relay-ca", relayCAFile)
	}
	return args
}

// gokrazy makes an image with gokrazy's builder.
func (o *options) gokrazy(ctx context.Context, j *job) error {
	j.step("fetch the pinned modules (about 190 MB the first time, then nothing)")
	for _, dir := range []string{j.source, j.own} {
		if err := command(ctx, dir, nil, "go", "mod", "download"); err != nil {
			return fmt.Errorf("%w\nthe modules of the image are not obtainable here: the gateway can still be built without them (./build.sh --no-images)", err)
		}
	}
	radio := ""
	if o.wifiSSID != "" {
		var err error
		if radio, err = o.gokrazyRadio(ctx, j); err != nil {
			return err
		}
	}
	if err := o.instance(j, radio); err != nil {
		return err
	}
	j.step("compile and write %s (minutes the first time)", filepath.Base(o.out))
	builder, err := gok(ctx, j)
	if err != nil {
		return err
	}
	// Offline from here on: what is not pinned is an error and not a newer version.
	env := []string{"GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off", arm64[1], "TMPDIR=" + j.work,
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(j.info.Sequence, 10), "PIIMAGE_WORK=" + j.work}
	if err := command(ctx, j.work, env, builder, "--parent_dir", j.work, "-i", instanceName, "overwrite",
		"--full", j.image, "--target_storage_bytes", strconv.FormatInt(j.size, 10)); err != nil {
		return err
	}
	f, err := os.Open(j.image)
	if err != nil {
		return fmt.Errorf("gokrazy's builder made no image: %w", err)
	}
	defer f.Close()
	if j.others, err = moduleComponents(ctx, j.own, j.board.kernel, j.board.firmware, j.board.prom); err != nil {
		return err
	}
	if radio != "" {
		components, err := o.radioComponents()
		if err != nil {
			return err
		}
		j.others = append(j.others, components...)
	}
	size, err := rootSize(f)
	if err != nil {
		return fmt.Errorf("look at the image that gokrazy's builder made: %w", err)
	}
	for _, p := range gokrazyParts(size) {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, p.start, p.size)); err != nil {
			return err
		}
		j.parts = append(j.parts, update.Part{Name: p.name, Size: p.size, SHA256: fmt.Sprintf("%x", h.Sum(nil))})
	}
	return nil
}

const instanceName = "instance"

// gokrazyConfig is the part of gokrazy's config.json that we use (package
// github.com/gokrazy/internal/config, which may not be imported).
type gokrazyConfig struct {
	Hostname        string
	Update          gokrazyUpdate
	Environment     []string
	Packages        []string
	PackageConfig   map[string]packageConfig
	SerialConsole   string
	GokrazyPackages []string
	KernelPackage   string
	FirmwarePackage string
	EEPROMPackage   string
	KernelExtraArgs []string
}

type gokrazyUpdate struct {
	UseTLS, HTTPPort, HTTPSPort, HTTPPassword string
	NoPassword                                bool `json:",omitempty"` // then only on a UNIX socket
}

type packageConfig struct {
	GoBuildFlags     []string          `json:",omitempty"`
	ExtraFilePaths   map[string]string `json:",omitempty"`
	CommandLineFlags []string          `json:",omitempty"`
	DontStart        bool              `json:",omitempty"`
}

// instance writes what gok reads: a folder with config.json, and one Go module for each of
// the modules that programs come from, with exactly our pins. radio is the folder with the
// radio's firmware; none: no Wi-Fi.
func (o *options) instance(j *job, radio string) error {
	dir := filepath.Join(j.work, instanceName)
	cert, key, info := filepath.Join(j.work, "cert.pem"), filepath.Join(j.work, "key.pem"), filepath.Join(j.work, "image.json")
	small := []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="}
	j.info.Pair = []string{"/user/cloudrestd", "pair", "--invite", "--role", "owner", "--state-dir", stateDir}
	programs := map[string]packageConfig{
		dhcpPackage:  {GoBuildFlags: small, CommandLineFlags: []string{"-interface=" + o.network}},
		guardPackage: {GoBuildFlags: small, ExtraFilePaths: map[string]string{device.InfoFile: info}},
	}
	files := map[string][]byte{}
	// Without its heartbeat, which reports to a service of gokrazy's.
	cfg := gokrazyConfig{
		Hostname:        o.hostname,
		Environment:     []string{"GOOS=linux", "GOARCH=arm64"},
		PackageConfig:   programs,
		SerialConsole:   j.board.console,
		GokrazyPackages: []string{dhcpPackage, ntpPackage, randomPackage},
		KernelPackage:   j.board.kernel, FirmwarePackage: j.board.firmware, EEPROMPackage: j.board.prom,
		// gokrazy's testboot puts its flag in front of the newline, which this version of gok
		// leaves out.
		KernelExtraArgs: []string{"\n"},
	}
	if j.closed() {
		// gokrazy itself then listens on a UNIX socket only, and our server on the network.
		cfg.Update = gokrazyUpdate{NoPassword: true}
		programs[adminPackage] = packageConfig{GoBuildFlags: small}
	} else {
		cfg.Update = gokrazyUpdate{UseTLS: cert + "," + key, HTTPPort: updateRedirect, HTTPSPort: updatePort, HTTPPassword: j.secrets.Password}
		files[cert], files[key] = []byte(j.secrets.Certificate), []byte(j.secrets.Key)
		programs[pairPackage] = packageConfig{GoBuildFlags: small, CommandLineFlags: []string{"--role", "owner", "--state-dir", stateDir}, DontStart: true}
	}
	if o.originBinary != "" {
		path, err := filepath.Abs(o.originBinary)
		if err != nil {
			return err
		}
		programs[originPackage] = packageConfig{GoBuildFlags: small, CommandLineFlags: o.originArgs, ExtraFilePaths: map[string]string{originFile: path}}
	} else {
		programs[samplePackage] = packageConfig{GoBuildFlags: small, CommandLineFlags: []string{"--fifo", notifyFIFO}}
	}
	gateway := packageConfig{GoBuildFlags: []string{"-trimpath", "-buildvcs=false", "-ldflags=" + j.gatewayFlags()}, CommandLineFlags: o.gatewayArgs()}
	if o.relayCA != "" {
		path, err := filepath.Abs(o.relayCA)
		if err != nil {
			return err
		}
		gateway.ExtraFilePaths = map[string]string{relayCAFile: path}
	}
	programs[gatewayPackage] = gateway
	if radio != "" {
		wifi := packageConfig{GoBuildFlags: small, CommandLineFlags: []string{"-load"}, ExtraFilePaths: map[string]string{radioFolder: radio}}
		if o.network != radioInterface {
			// gokrazy starts a program once: with the one for the cable, the radio's is ours to start.
			wifi.CommandLineFlags = append(wifi.CommandLineFlags, "-dhcp="+dhcpProgram)
		}
		programs[wifiPackage] = wifi
	}
	for name := range programs {
		if name != dhcpPackage { // is one of gokrazy's own
			cfg.Packages = append(cfg.Packages, name)
		}
	}
	slices.Sort(cfg.Packages)
	text, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return err
	}
	files[filepath.Join(dir, "config.json")] = text
	if files[info], err = json.Marshal(j.info); err != nil {
		return err
	}
	for _, m := range []struct{ path, dir, module string }{
		{"", j.own, ""},
		{mainModule, j.source, mainModule},
		{ownModule, j.own, ownModule},
	} {
		mod, sum, err := pins(m.dir, m.module)
		if err != nil {
			return err
		}
		folder := filepath.Join(dir, "builddir", m.path)
		files[filepath.Join(folder, "go.mod")], files[filepath.Join(folder, "go.sum")] = mod, sum
	}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// pins returns go.mod and go.sum of a module to build in: with the requirements of the
// module in dir if module is empty, else with that module itself.
func pins(dir, module string) (mod, sum []byte, err error) {
	mod, err = os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return nil, nil, err
	}
	sum, err = os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil {
		return nil, nil, err
	}
	_, rest, ok := bytes.Cut(mod, []byte("\n"))
	if !ok {
		return nil, nil, fmt.Errorf("%s: go.mod has one line only", dir)
	}
	text := "module gokrazy/build/cloudrest\n"
	if module != "" {
		const none = "v0.0.0-00010101000000-000000000000"
		text += fmt.Sprintf("\nrequire %s %s\n\nreplace %s => %s\n", module, none, module, strconv.Quote(dir))
	}
	return append([]byte(text), rest...), sum, nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// findSource goes up from the working directory to the main module.
func findSource(dir string) (string, error) {
	found := func(dir string) bool {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		first, _, _ := strings.Cut(string(text), "\n")
		return err == nil && strings.TrimSpace(first) == "module "+mainModule
	}
	if dir != "" {
		dir, err := filepath.Abs(dir)
		if err != nil || !found(dir) {
			return "", mistake("--source %s is not a folder with CloudREST's go.mod", dir)
		}
		return dir, nil
	}
	for dir, err := os.Getwd(); err == nil; dir = filepath.Dir(dir) {
		if found(dir) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return "", mistake("run piimage in CloudREST's source, or name it with --source")
}

func findTool(name, debian string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing: install it (Debian: apt install %s)", name, debian)
}

// command runs a program; what it prints is shown only when it does not work.
func command(ctx context.Context, dir string, env []string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	// Ended with all it started, the Go compiler among it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	const tail = 4000 // bytes: the end tells what is wrong
	if len(out) > tail {
		out = append([]byte("...\n"), out[len(out)-tail:]...)
	}
	return fmt.Errorf("%s %s: %w\n%s", filepath.Base(argv[0]), argv[1], err, bytes.TrimSpace(out))
}
