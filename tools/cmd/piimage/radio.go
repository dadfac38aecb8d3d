package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
)

// radioFolder is where the kernel looks for the firmware of a Broadcom radio, modulesFolder
// where gokrazy's builder puts its kernel's modules.
const (
	radioFolder   = "/lib/firmware/brcm"
	modulesFolder = "/lib/modules"

	radioInterface = "wlan0"
)

// radioModules are the kernel's driver of the Raspberry Pis' radios: after the driver itself
// the parts for the two makers of these chips. It asks for the right one as soon as its
// firmware runs; nothing in an image of gokrazy answers, so both are there by then.
var radioModules = []string{"brcmfmac", "brcmfmac-wcc", "brcmfmac-cyw"}

// A file of the radio's firmware: where radioFirmware has it (below lib/firmware; some names
// that the driver asks for are links there, or are not in this version yet), and what the
// driver asks for. The .txt files are by the board, after its device tree's "compatible".
type radioFile struct{ from, to string }

var (
	zeroRadio = []radioFile{
		{"cypress/cyfmac43430-sdio.bin", "brcmfmac43430-sdio.bin"},
		{"cypress/cyfmac43430-sdio.clm_blob", "brcmfmac43430-sdio.clm_blob"},
		{"brcm/brcmfmac43430-sdio.raspberrypi,3-model-b.txt", "brcmfmac43430-sdio.raspberrypi,model-zero-w.txt"},
	}
	piRadio = []radioFile{
		{"cypress/cyfmac43430-sdio.bin", "brcmfmac43430-sdio.bin"},
		{"cypress/cyfmac43430-sdio.clm_blob", "brcmfmac43430-sdio.clm_blob"},
		{"brcm/brcmfmac43430-sdio.raspberrypi,3-model-b.txt", "brcmfmac43430-sdio.raspberrypi,3-model-b.txt"},
		{"brcm/brcmfmac43430-sdio.raspberrypi,3-model-b.txt", "brcmfmac43430-sdio.raspberrypi,model-zero-2-w.txt"},
		{"cypress/cyfmac43455-sdio.bin", "brcmfmac43455-sdio.bin"},
		{"cypress/cyfmac43455-sdio.clm_blob", "brcmfmac43455-sdio.clm_blob"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,3-model-b-plus.txt", "brcmfmac43455-sdio.raspberrypi,3-model-a-plus.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,3-model-b-plus.txt", "brcmfmac43455-sdio.raspberrypi,3-model-b-plus.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt", "brcmfmac43455-sdio.raspberrypi,4-model-b.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt", "brcmfmac43455-sdio.raspberrypi,400.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt", "brcmfmac43455-sdio.raspberrypi,4-compute-module.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt", "brcmfmac43455-sdio.raspberrypi,5-model-b.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt", "brcmfmac43455-sdio.raspberrypi,500.txt"},
		{"brcm/brcmfmac43455-sdio.raspberrypi,4-model-b.txt", "brcmfmac43455-sdio.raspberrypi,5-compute-module.txt"},
	}
)

// radio fetches the firmware of the board's radio, under the names that its driver asks for,
// and notes the network.
func (o *options) radio(ctx context.Context, j *job) (map[string][]byte, error) {
	j.info.WiFi = &device.WiFi{SSID: o.wifiSSID}
	if o.wifiPSKFile != "" {
		var err error
		if j.info.WiFi.PSK, err = o.passphrase(); err != nil {
			return nil, err
		}
	}
	path, err := radioFirmware.fetch(ctx, j.work, o.radioDeb, j.step)
	if err != nil {
		return nil, err
	}
	const folder = "lib/firmware/"
	wanted := map[string]bool{}
	for _, f := range j.board.radio {
		wanted[folder+f.from] = true
	}
	found, err := radioFirmware.files(ctx, path, func(name string) bool { return wanted[name] })
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for _, f := range j.board.radio {
		if found[folder+f.from] == nil {
			return nil, fmt.Errorf("%s is not in %s", f.from, path)
		}
		all[f.to] = found[folder+f.from]
	}
	if o.radioFiles != "" {
		more, err := readRadioFiles(o.radioFiles)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, more)
	}
	return all, nil
}

// readRadioFiles reads a folder with nothing but firmware for the driver in radioModules.
func readRadioFiles(dir string) (map[string][]byte, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s is empty", dir)
	}
	all := map[string][]byte{}
	for _, f := range list {
		if !strings.HasPrefix(f.Name(), radioModules[0]) {
			return nil, fmt.Errorf("%s: want files whose names begin with %s", filepath.Join(dir, f.Name()), radioModules[0])
		}
		if all[f.Name()], err = os.ReadFile(filepath.Join(dir, f.Name())); err != nil { // a link too
			return nil, err
		}
	}
	return all, nil
}

// radioComponents is the firmware of the radio in a bill of materials. Of what --radio-files
// gave, nobody told a version.
func (o *options) radioComponents() ([]bomComponent, error) {
	all := []bomComponent{{"firmware", radioFirmware.name, radioFirmware.version, "pkg:deb/debian/" + radioFirmware.name + "@" + radioFirmware.version}}
	if o.radioFiles == "" {
		return all, nil
	}
	more, err := readRadioFiles(o.radioFiles)
	for _, name := range slices.Sorted(maps.Keys(more)) {
		all = append(all, bomComponent{Type: "firmware", Name: name, Version: fmt.Sprintf("sha256-%x", sha256.Sum256(more[name]))})
	}
	return all, err
}

// gokrazyRadio prepares what an image of gokrazy needs for Wi-Fi: the files for radioFolder,
// in a folder that it returns, and the modules that our program loads.
func (o *options) gokrazyRadio(ctx context.Context, j *job) (string, error) {
	files, err := o.radio(ctx, j)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(j.work, "radio")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return "", err
		}
	}
	kernel, err := moduleDir(ctx, j.own, j.board.kernel)
	if err != nil {
		return "", err
	}
	j.info.Modules, err = kernelModules(filepath.Join(kernel, modulesFolder), radioModules)
	return dir, err
}

// kernelModules returns where the device has these modules and those that they need, in the
// order of loading. dir is what becomes modulesFolder: one folder, named after the kernel's
// release. What is built into the kernel is no module, and nothing depends on it by name.
func kernelModules(dir string, want []string) ([]string, error) {
	content, where := map[string][]byte{}, map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != ".ko" {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(filepath.Base(path), "-", "_")
		if where[name] != "" {
			return errors.New("twice there: " + name)
		}
		where[name] = filepath.Join(modulesFolder, rel)
		content[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the kernel's modules: %w", err)
	}
	_, order, err := pickModules(content, want)
	for i, name := range order {
		order[i] = where[name]
	}
	return order, err
}
