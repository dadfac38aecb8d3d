package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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
)

const (
	defaultOut    = "images/cloudrest-pi.img"
	defaultOrigin = "http://127.0.0.1:8080"

	// On the device. The FIFO is on tmpfs, what must survive is not.
	stateDir   = "/perm/cloudrest"
	notifyFIFO = "/run/cloudrest/notify"
	originFile = "/opt/origin"

	// gokrazy's own page and update interface; 80 and 443 are the gateway's. The first only
	// redirects to the second.
	updateRedirect = "10080"
	updatePort     = "10443"
)

// The modules that an image is built from.
const (
	mainModule = "github.com/cloudrest/cloudrest"
	ownModule  = mainModule + "/tools/cmd/piimage"

	gatewayPackage = mainModule + "/firmware/cmd/cloudrestd"
	samplePackage  = mainModule + "/tools/cmd/irrigation"
	originPackage  = ownModule + "/onboard/origin"
	guardPackage   = ownModule + "/onboard/guard"
	pairPackage    = ownModule + "/onboard/pair"

	dhcpPackage = "github.com/gokrazy/gokrazy/cmd/dhcp"
)

// board is a kind of machine.
type board struct {
	name, says             string
	kernel, firmware, prom string // modules
	console                string // where the kernel and init write; no login anywhere
}

var boards = []board{
	{
		name: "pi", says: "Raspberry Pi 3, 4, 5, Zero 2 W, CM3, CM4, CM5",
		kernel: "github.com/gokrazy/kernel.rpi", firmware: "github.com/gokrazy/firmware", prom: "github.com/gokrazy/rpi-eeprom",
		console: "disabled",
	},
	{name: "vm", says: "qemu-system-aarch64 -machine virt", kernel: "github.com/gokrazy/kernel.arm64", console: "ttyAMA0,115200"},
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
	f.StringVar(&o.out, "out", defaultOut, "the image, `file`")
	f.StringVar(&o.secrets, "secrets", "", "update password and certificate, `file`; made if it is not there, and the same for all images "+
		"that are to update each other (default: --out with .secrets.json)")
	f.StringVar(&o.size, "size", "2G", "of the image, at least 1300M; what the system does not need is for the state of the gateway and of the service")
	f.StringVar(&o.relay, "relay", "", "relays, wss:// `URLs` with commas between; without, the device is on the LAN only")
	f.StringVar(&o.relayCA, "relay-ca", "", "PEM `file` of the authorities for the relays' certificates; without it, those of this machine")
	f.StringVar(&o.originBinary, "origin-binary", "", "the maker's service, a static program for linux/arm64, `file`; without it, the sample irrigation service")
	f.Var(&o.originArgs, "origin-arg", "an `argument` for it; may be given several times")
	f.StringVar(&o.origin, "origin", defaultOrigin, "the `URL` where it listens")
	f.StringVar(&o.uidSource, "uid-source", "device-tree,mac,random", "where the UID of the board comes from, as in cloudrestd --help")
	f.StringVar(&o.network, "interface", "eth0", "the network interface that gets an address by DHCP; some USB adapters are usb0")
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
		bad("--board %q: want pi or vm", o.board)
		i = 0
	}
	if !hostnames.MatchString(o.hostname) {
		bad("--hostname %q: want letters, digits and hyphens, at most 63", o.hostname)
	}
	size, err := parseSize(o.size)
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
		if err := checkProgram(o.originBinary); err != nil {
			bad("--origin-binary %s: %v", o.originBinary, err)
		}
	}
	if o.relayCA != "" {
		if _, err := os.Stat(o.relayCA); err != nil {
			bad("--relay-ca: %v", err)
		}
	}
	return boards[i], size, errors.Join(all...)
}

// permMin is the least room for state, in bytes: a journal of ext4 and the gateway's.
const permMin = 64 << 20

func parseSize(s string) (int64, error) {
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
	if least := int64(bootpart.PermStart + permMin); n < least {
		return 0, fmt.Errorf("want at least %dM", (least+1<<20-1)>>20)
	}
	return n &^ (1<<20 - 1), nil
}

// checkProgram refuses what the device could not run: there is no libc in the image.
func checkProgram(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Machine != elf.EM_AARCH64 {
		return fmt.Errorf("it is for %v, want arm64", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("it is linked dynamically, want a static program: the image has no libraries")
		}
	}
	return nil
}

// build makes the image. Its parts are put together in a temporary folder beside it.
func (o *options) build(ctx context.Context, out io.Writer) error {
	begin := time.Now()
	b, size, err := o.validate()
	if err != nil {
		return err
	}
	step := func(format string, args ...any) {
		fmt.Fprintf(out, "piimage: %3ds  %s\n", int(time.Since(begin).Seconds()), fmt.Sprintf(format, args...))
	}
	source, err := findSource(o.source)
	if err != nil {
		return err
	}
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
	work, err := os.MkdirTemp(filepath.Dir(image), ".piimage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	secretsFile := cmpOr(o.secrets, secretsBeside(image))
	s, made, err := openSecrets(secretsFile, o.hostname)
	if err != nil {
		return err
	}
	if made {
		step("made %s: the update password and certificate, keep it", secretsFile)
	}

	step("fetch the pinned modules (about 190 MB the first time, then nothing)")
	own := filepath.Join(source, "tools", "cmd", "piimage")
	for _, dir := range []string{source, own} {
		if err := command(ctx, dir, nil, "go", "mod", "download"); err != nil {
			return err
		}
	}

	if err := o.instance(work, source, b, s); err != nil {
		return err
	}
	step("compile and write %s (minutes the first time)", filepath.Base(image))
	self, err := os.Executable()
	if err != nil {
		return err
	}
	temporary := filepath.Join(work, "image")
	// Offline from here on: what is not pinned is an error and not a newer version.
	env := []string{"GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off", "GOARM64=v8.0", "TMPDIR=" + work}
	if err := command(ctx, work, env, self, gokCommand, "--parent_dir", work, "-i", instanceName, "overwrite",
		"--full", temporary, "--target_storage_bytes", strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	f, err := os.Open(temporary)
	if err != nil {
		return fmt.Errorf("gokrazy's builder made no image: %w", err)
	}
	root, err := rootSize(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("look at the image that gokrazy's builder made: %w", err)
	}

	step("make the file system for state, %d MB", (size-bootpart.PermStart)>>20)
	// The last 34 sectors belong to the second partition table.
	const table = 1 << 20
	if err := command(ctx, work, nil, mkfs, "-q", "-F", "-L", "perm", "-m", "1", "-E", fmt.Sprintf("offset=%d", bootpart.PermStart),
		temporary, fmt.Sprintf("%dk", (size-bootpart.PermStart-table)>>10)); err != nil {
		return err
	}
	if err := os.Chmod(temporary, 0o600); err != nil { // the update password is in it
		return err
	}
	if err := os.Rename(temporary, image); err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(image, &st); err != nil {
		return err
	}
	const blockSize = 512 // of st_blocks, whatever the file system's is
	step("%s: %d bytes, of them %d on this disk; the read-only root has %d", o.out, size, st.Blocks*blockSize, root)
	if b.name == "pi" {
		fmt.Fprintf(out, "\nWrite it:       dd if=%s of=/dev/sdX bs=4M conv=fsync   (sdX: the SD card, all of it)\n", o.out)
		fmt.Fprintf(out, "Pair a phone:   piimage pair ADDRESS --secrets %s\n", secretsFile)
		fmt.Fprintf(out, "Its own page:   https://ADDRESS:%s, user gokrazy, password in %s\n", updatePort, secretsFile)
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
}

type packageConfig struct {
	GoBuildFlags     []string          `json:",omitempty"`
	ExtraFilePaths   map[string]string `json:",omitempty"`
	CommandLineFlags []string          `json:",omitempty"`
	DontStart        bool              `json:",omitempty"`
}

// instance writes what gok reads: a folder with config.json, and one Go module for each of
// the modules that programs come from, with exactly our pins.
func (o *options) instance(work, source string, b board, s *secrets) error {
	dir := filepath.Join(work, instanceName)
	own := filepath.Join(source, "tools", "cmd", "piimage")
	cert, key := filepath.Join(work, "cert.pem"), filepath.Join(work, "key.pem")
	small := []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="}
	gateway := []string{"--state-dir", stateDir, "--fifo", notifyFIFO, "--origin", o.origin, "--uid-source", o.uidSource}
	for _, f := range [][2]string{{"--relay", o.relay}, {"--button", o.button}, {"--led", o.led}} {
		if f[1] != "" {
			gateway = append(gateway, f[0], f[1])
		}
	}
	programs := map[string]packageConfig{
		dhcpPackage:  {GoBuildFlags: small, CommandLineFlags: []string{"-interface=" + o.network}},
		guardPackage: {GoBuildFlags: small, CommandLineFlags: []string{"--patience", o.trial.String()}},
		pairPackage:  {GoBuildFlags: small, CommandLineFlags: []string{"--role", "owner", "--state-dir", stateDir}, DontStart: true},
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
	info := mainModule + "/tether/buildinfo"
	version, commit, seconds := describe(source)
	gatewayConfig := packageConfig{
		GoBuildFlags: []string{"-trimpath", "-buildvcs=false",
			fmt.Sprintf("-ldflags=-s -w -buildid= -X %[1]s.version=%[2]s -X %[1]s.commit=%[3]s -X %[1]s.seconds=%[4]s", info, version, commit, seconds)},
	}
	if o.relayCA != "" {
		path, err := filepath.Abs(o.relayCA)
		if err != nil {
			return err
		}
		const onDevice = "/etc/cloudrest/relay-ca.pem"
		gatewayConfig.ExtraFilePaths = map[string]string{onDevice: path}
		gateway = append(gateway, "--relay-ca", onDevice)
	}
	gatewayConfig.CommandLineFlags = gateway
	programs[gatewayPackage] = gatewayConfig

	cfg := gokrazyConfig{
		Hostname:      o.hostname,
		Update:        gokrazyUpdate{UseTLS: cert + "," + key, HTTPPort: updateRedirect, HTTPSPort: updatePort, HTTPPassword: s.Password},
		Environment:   []string{"GOOS=linux", "GOARCH=arm64"},
		PackageConfig: programs,
		SerialConsole: b.console,
		// Without gokrazy's heartbeat, which reports to a service of its own.
		GokrazyPackages: []string{dhcpPackage, "github.com/gokrazy/gokrazy/cmd/ntp", "github.com/gokrazy/gokrazy/cmd/randomd"},
		KernelPackage:   b.kernel, FirmwarePackage: b.firmware, EEPROMPackage: b.prom,
		// gokrazy's testboot puts its flag in front of the newline, which this version of gok
		// leaves out.
		KernelExtraArgs: []string{"\n"},
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
	files := map[string][]byte{filepath.Join(dir, "config.json"): text, cert: []byte(s.Certificate), key: []byte(s.Key)}
	for _, m := range []struct{ path, dir, module string }{
		{"", own, ""},
		{mainModule, source, mainModule},
		{ownModule, own, ownModule},
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

// describe names the version, as build.sh does.
func describe(source string) (version, commit, seconds string) {
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = source
		out, _ := cmd.Output()
		return strings.TrimSpace(string(out))
	}
	version = cmpOr(os.Getenv("VERSION"), git("describe", "--tags", "--always", "--dirty", "--match", "v*"))
	return cmpOr(version, "unversioned"), git("rev-parse", "HEAD"), cmpOr(os.Getenv("SOURCE_DATE_EPOCH"), git("log", "-1", "--format=%ct"))
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
