package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
)

// piKernel is the folder of the kernel for the Raspberry Pi, if it is on this machine.
func piKernel(t *testing.T) string {
	t.Helper()
	own, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := moduleDir(t.Context(), own, boards[0].kernel)
	if err != nil || dir == "" {
		t.Skipf("%s is not in the module cache (go mod download)", boards[0].kernel)
	}
	return dir
}

// What a module needs is loaded before it.
func TestRadioModules(t *testing.T) {
	order, err := kernelModules(filepath.Join(piKernel(t), modulesFolder), radioModules)
	if err != nil {
		t.Fatal(err)
	}
	release, _, _ := strings.Cut(strings.TrimPrefix(order[0], modulesFolder+"/"), "/")
	brcm := modulesFolder + "/" + release + "/kernel/drivers/net/wireless/broadcom/brcm80211/"
	want := []string{brcm + "brcmutil/brcmutil.ko", brcm + "brcmfmac/brcmfmac.ko", brcm + "brcmfmac/wcc/brcmfmac-wcc.ko", brcm + "brcmfmac/cyw/brcmfmac-cyw.ko"}
	if !slices.Equal(order, want) {
		t.Errorf("got  %q\nwant %q", order, want)
	}
}

func TestNoModules(t *testing.T) {
	if _, err := kernelModules(filepath.Join(t.TempDir(), "none"), radioModules); err == nil {
		t.Error("without a folder: want an error")
	}
	dir := t.TempDir()
	if _, err := kernelModules(dir, radioModules); err == nil || !strings.Contains(err.Error(), "brcmfmac") {
		t.Errorf("without the module: got %v, want an error that names it", err)
	}
	for _, release := range []string{"1", "2"} { // which of them runs?
		if err := os.Mkdir(filepath.Join(dir, release), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, release, "x-y.ko"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kernelModules(dir, []string{"x-y"}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a module of two kernels: got %v, want an error", err)
	}
}

// radioless are device trees that may name a radio, but ours do not have firmware for it, or
// the board has none.
var radioless = []string{"raspberrypi,0-compute-module", "raspberrypi,4-compute-module-s"}

// Every board of the kernel with a radio has the file that its driver asks for by the
// board's name, and nothing is there for a board that is not.
func TestRadioBoards(t *testing.T) {
	trees, err := filepath.Glob(filepath.Join(piKernel(t), "*.dtb"))
	if err != nil || len(trees) == 0 {
		t.Fatalf("%d device trees, %v", len(trees), err)
	}
	root := regexp.MustCompile(`(raspberrypi,[a-z0-9-]+)\x00brcm,bcm2`)
	want := map[string]bool{}
	for _, name := range trees {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		m := root.FindSubmatch(text)
		if m == nil {
			t.Errorf("%s does not name its board", filepath.Base(name))
			continue
		}
		if strings.Contains(string(text), "brcm,bcm4329-fmac") && !slices.Contains(radioless, string(m[1])) {
			want[string(m[1])] = true
		}
	}
	got, chips := map[string]bool{}, map[string]bool{}
	nvram := regexp.MustCompile(`^(brcmfmac\d+-sdio)\.(.+)\.txt$`)
	var names []string
	for _, f := range piRadio {
		names = append(names, f.to)
		if m := nvram.FindStringSubmatch(f.to); m != nil {
			chips[m[1]], got[m[2]] = true, true
			if !strings.Contains(f.from, m[1]) {
				t.Errorf("%s comes from %s: of another chip", f.to, f.from)
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("files for %q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for chip := range chips {
		if !slices.Contains(names, chip+".bin") || !slices.Contains(names, chip+".clm_blob") {
			t.Errorf("%s: no firmware or no list of channels", chip)
		}
	}
}

// written is what instance gives gok to read.
func written(t *testing.T, o *options, radio string) (gokrazyConfig, device.Info, string) {
	t.Helper()
	b, _, err := o.validate()
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	j := &job{board: b, own: own, source: filepath.Join(own, "..", "..", ".."), work: t.TempDir(), secrets: &secrets{}}
	if radio != "" {
		j.info.WiFi = &device.WiFi{SSID: o.wifiSSID, PSK: "correct horse"}
	}
	if err := o.instance(j, radio); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(j.work, instanceName, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cfg gokrazyConfig
	if err := json.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	about, err := os.ReadFile(filepath.Join(j.work, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	var info device.Info
	if err := json.Unmarshal(about, &info); err != nil {
		t.Fatal(err)
	}
	return cfg, info, string(text)
}

func TestWiFiInstance(t *testing.T) {
	base := options{board: "pi", hostname: "garden", origin: defaultOrigin, uidSource: "random"}
	o := base
	cfg, info, text := written(t, &o, "")
	if slices.Contains(cfg.Packages, wifiPackage) || strings.Contains(text, "wifi") || info.WiFi != nil || info.Modules != nil {
		t.Errorf("without Wi-Fi: packages %q, about itself %+v, want nothing of it\n%s", cfg.Packages, info, text)
	}

	o = base
	o.wifiSSID = "Garden"
	cfg, info, text = written(t, &o, "/files")
	program := cfg.PackageConfig[wifiPackage]
	if !slices.Contains(cfg.Packages, wifiPackage) || program.DontStart || !slices.Equal(program.CommandLineFlags, []string{"-load", "-dhcp=/gokrazy/dhcp"}) ||
		!maps.Equal(program.ExtraFilePaths, map[string]string{"/lib/firmware/brcm": "/files"}) {
		t.Errorf("packages %q, the joiner %+v", cfg.Packages, program)
	}
	if got, want := cfg.PackageConfig[dhcpPackage].CommandLineFlags, []string{"-interface=eth0"}; !slices.Equal(got, want) {
		t.Errorf("DHCP with %q, want %q as without Wi-Fi", got, want)
	}
	if info.WiFi == nil || info.WiFi.SSID != "Garden" {
		t.Errorf("the image names %+v, want Garden", info.WiFi)
	}
	if strings.Contains(text, "horse") {
		t.Error("the passphrase is among what gokrazy shows")
	}

	// Who has gokrazy's DHCP client on the radio needs no second one.
	o = base
	o.wifiSSID, o.network = "Garden", radioInterface
	cfg, _, _ = written(t, &o, "/files")
	if got, want := cfg.PackageConfig[wifiPackage].CommandLineFlags, []string{"-load"}; !slices.Equal(got, want) {
		t.Errorf("with --interface wlan0: %q, want %q", got, want)
	}
}

// keptFirmware is the package with the radio's firmware, if this machine has it.
func keptFirmware(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache: ", err)
	}
	deb := filepath.Join(cache, "cloudrest-piimage", radioFirmware.sha256+".deb")
	if radioFirmware.check(deb) != nil {
		t.Skip("the radio's firmware was not fetched yet (piimage build --wifi-ssid)")
	}
	return deb
}

// An image with Wi-Fi on a Raspberry Pi whose radio is not there (QEMU has none): the driver
// loads, the joiner says it once, and everything else works.
func TestPi3Radio(t *testing.T) {
	needTools(t)
	deb := keptFirmware(t)
	dir := t.TempDir()
	disk, passphrase := filepath.Join(dir, "pi.img"), filepath.Join(dir, "psk")
	if err := os.WriteFile(passphrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, public := keys(t, dir, "owner") // for the log
	buildImage(t, "v1.0.0", disk, "--interface", "usb0", "--update-key", public, "--wifi-ssid", "Garden", "--wifi-psk-file", passphrase, "--radio-deb", deb)
	v := newVM(t, pi3(filepath.Join(piKernel(t), "bcm2710-rpi-3-b.dtb")), disk)
	newPhone(t, v, func() string { return "" }).up(t)
	var out string
	eventually(t, "the joiner", func() error {
		var code int
		if out, code = tool("log", v.updateAddress(), "--secrets", filepath.Join(dir, "secrets.json"), "--program", "wifi"); code != exitOK || !strings.Contains(out, "no radio yet") {
			return fmt.Errorf("exit %d, its log %q, want that there is no radio", code, out)
		}
		return nil
	})
	if strings.Count(out, "wifi: ") != 1 || strings.Contains(out, "horse") {
		t.Errorf("its log is %q, want one line", out)
	}
}

// The firmware of the radio, if this machine has it: every file is there.
func TestRadioFirmware(t *testing.T) {
	deb := keptFirmware(t)
	const extra = "brcmfmac43430b0-sdio.bin"
	more := t.TempDir()
	if err := os.WriteFile(filepath.Join(more, extra), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, b := range boards {
		if b.radio == nil {
			continue
		}
		j := &job{board: b, work: t.TempDir(), step: t.Logf}
		o := &options{wifiSSID: "Garden", radioDeb: deb, radioFiles: more}
		files, err := o.radio(context.Background(), j)
		if err != nil {
			t.Errorf("%s: %v", b.name, err)
			continue
		}
		if parts, err := o.radioComponents(); err != nil || len(parts) != 2 || parts[1].Name != extra {
			t.Errorf("%s: the bill of materials has %+v, %v, want the package and %s", b.name, parts, err, extra)
		}
		if len(files) != len(b.radio)+1 || files[extra] == nil || j.info.WiFi.SSID != "Garden" {
			t.Errorf("%s: %d files, want %d with %s; network %+v", b.name, len(files), len(b.radio)+1, extra, j.info.WiFi)
		}
		for name, content := range files {
			if len(content) < 500 {
				t.Errorf("%s: %s has %d bytes only", b.name, name, len(content))
			}
		}
	}
}
