package uid

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cloudrest/cloudrest/board"
)

const (
	udidPath = "/sys/class/spi_master/spi0/spi0.0/machine_udid" // paper, "Device Factory Provisioning"

	maxFile = 4096 // bytes taken from one file
	maxText = 256  // longest text UID before it is condensed
	cidSize = 16   // bytes of an eMMC's CID (JESD84-B51 §7.2)
	macSize = 6

	addrPermanent  = "0" // NET_ADDR_PERM of linux/netdevice.h
	groupBit       = 0x01
	localBit       = 0x02 // not from the IEEE: made up by software, often the same on all machines
	machineIDBytes = 16
)

func (e Env) path(parts ...string) string {
	root := e.Root
	if root == "" {
		root = "/"
	}
	return filepath.Join(append([]string{root}, parts...)...)
}

// read returns the start of a file. A missing one is ErrAbsent.
func (e Env) read(path string) ([]byte, error) {
	f, err := os.OpenFile(e.path(path), os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold up the start
	if err != nil {
		return nil, absent(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a plain file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, absent(err)
	}
	return b, nil
}

func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return err
}

// text reads a UID that is written down as text.
func (e Env) text(path string) ([]byte, error) {
	b, err := e.read(path)
	if err != nil {
		return nil, err
	}
	if b = parseText(b); len(b) == 0 {
		return nil, fmt.Errorf("%s is empty: %w", path, ErrAbsent)
	}
	return b, nil
}

func (e Env) udid(path string) ([]byte, board.Strength, error) {
	if path == "" {
		path = udidPath
	}
	b, err := e.text(path)
	return b, board.Hardware, err
}

func (e Env) file(path string) ([]byte, board.Strength, error) {
	b, err := e.text(path)
	return b, board.Software, err
}

// deviceTree reads the serial number that firmware or boot loader put into the device tree:
// a NUL-terminated string (Devicetree Specification v0.4 §2.3, §3.2). The Raspberry Pi has it
// from its OTP.
func (e Env) deviceTree() ([]byte, board.Strength, error) {
	b, err := e.read("/proc/device-tree/serial-number")
	if err != nil {
		return nil, 0, err
	}
	if b, err = parseSerial(b); err != nil {
		return nil, 0, err
	}
	strength := board.Board
	if compatible, err := e.read("/proc/device-tree/compatible"); err == nil && bytes.HasPrefix(compatible, []byte("raspberrypi,")) {
		strength = board.Hardware
	}
	return b, strength, nil
}

func parseSerial(b []byte) ([]byte, error) {
	b, _, _ = bytes.Cut(b, []byte{0})
	if len(b) > maxText {
		return nil, fmt.Errorf("serial number of %d bytes, want at most %d", len(b), maxText)
	}
	for _, c := range b {
		if c < ' ' || c > '~' {
			return nil, errors.New("serial number is not text")
		}
	}
	if b = parseText(b); len(b) == 0 {
		return nil, fmt.Errorf("serial number is empty: %w", ErrAbsent)
	}
	return b, nil
}

// nvmem reads one-time programmable memory that the kernel shows as a file: the factory area
// of a flash (drivers/mtd/mtdcore.c names it "...factory-otp"), or a cell whose name in the
// device tree says that it is an ID (Linux 6.9 and later show cells).
func (e Env) nvmem(path string) ([]byte, board.Strength, error) {
	if path != "" {
		b, err := e.read(path)
		return trimErased(b), board.Board, err
	}
	const dir = "/sys/bus/nvmem/devices"
	why := fmt.Errorf("no factory OTP and no ID cell: %w", ErrAbsent)
	devices, _ := os.ReadDir(e.path(dir)) // sorted by name
	for _, d := range devices {
		var found []string
		strength := board.Board
		if strings.Contains(d.Name(), "factory-otp") {
			found = append(found, filepath.Join(dir, d.Name(), "nvmem"))
			strength = board.Hardware
		}
		cells, _ := os.ReadDir(e.path(dir, d.Name(), "cells"))
		for _, c := range cells {
			switch name, _, _ := strings.Cut(c.Name(), "@"); name {
			case "unique-id", "unique_id", "uid", "serial-number", "chip-id", "chipid":
				found = append(found, filepath.Join(dir, d.Name(), "cells", c.Name()))
			}
		}
		for _, path := range found {
			b, err := e.read(path)
			if b = trimErased(b); err == nil {
				if err = (board.UID{Bytes: b}).Check(); err == nil {
					return b, strength, nil
				}
			}
			why = fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil, 0, why
}

// trimErased cuts off the part of a one-time programmable area that was never written, and
// condenses the rest. A wholly erased area stays a blank UID.
func trimErased(b []byte) []byte {
	end := len(b)
	for _, erased := range []byte{0xFF, 0} {
		n := len(bytes.TrimRight(b, string([]byte{erased})))
		end = min(end, (n+7)&^7) // an ID may end with such a byte, but comes in whole words
	}
	end = min(max(end, board.MinUID), len(b))
	return condense(b[:end])
}

// emmc reads the CID register of an eMMC: 16 bytes with a serial number from its maker.
func (e Env) emmc(only string) ([]byte, board.Strength, error) {
	const dir = "/sys/bus/mmc/devices"
	cards, _ := os.ReadDir(e.path(dir))
	why := fmt.Errorf("no eMMC: %w", ErrAbsent)
	for _, c := range cards {
		if only != "" && only != c.Name() {
			continue
		}
		kind, err := e.read(filepath.Join(dir, c.Name(), "type"))
		if kind := string(bytes.TrimSpace(kind)); err != nil || kind != "MMC" {
			why = fmt.Errorf("%s is of type %q, not MMC: people move SD cards from board to board: %w", c.Name(), kind, ErrAbsent)
			continue
		}
		text, err := e.read(filepath.Join(dir, c.Name(), "cid"))
		if err != nil {
			why = err
			continue
		}
		cid, err := parseHex(text, cidSize)
		if err != nil {
			why = fmt.Errorf("%s: CID: %w", c.Name(), err)
			continue
		}
		return cid, board.Hardware, nil
	}
	return nil, 0, why
}

// mac finds the lowest MAC address that a maker gave to an interface of this board.
func (e Env) mac(only string) ([]byte, board.Strength, error) {
	const dir = "/sys/class/net"
	interfaces, _ := os.ReadDir(e.path(dir))
	var lowest []byte
	for _, i := range interfaces {
		if only != "" && only != i.Name() {
			continue
		}
		if a := e.permanentMAC(filepath.Join(dir, i.Name())); a != nil && (lowest == nil || bytes.Compare(a, lowest) < 0) {
			lowest = a
		}
	}
	if lowest == nil {
		return nil, 0, fmt.Errorf("no interface has a permanent MAC address of its own: %w", ErrAbsent)
	}
	return separate("cloudrest-uid-mac-1", lowest), board.Board, nil
}

// permanentMAC returns the address of an interface, or nil when it is virtual, can be
// unplugged, or has an address that software made up.
func (e Env) permanentMAC(dir string) []byte {
	device, err := os.Readlink(e.path(dir, "device"))
	if err != nil {
		return nil
	}
	if real, err := filepath.EvalSymlinks(e.path(dir, "device")); err == nil {
		device = real
	}
	if strings.Contains(device, "/usb") {
		return nil
	}
	kind, err := e.read(filepath.Join(dir, "addr_assign_type"))
	if err != nil || string(bytes.TrimSpace(kind)) != addrPermanent {
		return nil
	}
	text, err := e.read(filepath.Join(dir, "address"))
	if err != nil {
		return nil
	}
	a, err := parseHex(bytes.ReplaceAll(text, []byte(":"), nil), macSize)
	if err != nil || a[0]&(groupBit|localBit) != 0 || bytes.Count(a, []byte{0}) == macSize {
		return nil
	}
	return a
}

// machineID reads machine-id(5).
func (e Env) machineID() ([]byte, board.Strength, error) {
	text, err := e.read("/etc/machine-id")
	if err != nil {
		return nil, 0, err
	}
	id, err := parseHex(text, machineIDBytes)
	if err != nil {
		return nil, 0, fmt.Errorf("machine ID: %w", err)
	}
	if err := (board.UID{Bytes: id}).Check(); err != nil {
		return nil, 0, err
	}
	return separate("cloudrest-uid-machine-id-1", id), board.Software, nil
}

// parseHex reads size bytes in hex. Its error does not tell what it read.
func parseHex(text []byte, size int) ([]byte, error) {
	b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(b) != size {
		return nil, fmt.Errorf("not %d bytes in hex", size)
	}
	return b, nil
}
