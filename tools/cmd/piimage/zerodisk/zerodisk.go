// Package zerodisk is the layout of the SD card of a Raspberry Pi Zero W or 1: a boot
// partition (FAT16, as the firmware wants it) and one for state (ext4). The boot partition
// has two slots, each a kernel and an initial RAM file system that holds the whole system.
// All its files are made once, with room, and rewritten in place: the FAT and its folder
// never change, so a power cut cannot harm what is not being written.
//
// Which slot boots is in config.txt, which is one sector.
package zerodisk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
)

// Where the partitions are on the card, in bytes.
const (
	BootStart = 4 << 20
	BootSize  = 128 << 20
	PermStart = BootStart + BootSize
)

// Room for the parts of a version, in bytes.
const (
	KernelRoom = 8 << 20
	InitrdRoom = 32 << 20
)

// The parts of a version.
const (
	Kernel = "kernel"
	Initrd = "initrd"
)

// ConfigFile tells the firmware what to boot. ConfigSize is what a card writes at once.
const (
	ConfigFile = "config.txt"
	ConfigSize = 512
)

// Slot is 'a' or 'b'.
type Slot byte

// Other returns the other slot.
func (s Slot) Other() Slot { return s ^ 'a' ^ 'b' }

// File names the file of a part, 8.3 as FAT has it.
func (s Slot) File(part string) string {
	if part == Kernel {
		return fmt.Sprintf("kernel_%c.img", s)
	}
	return fmt.Sprintf("initrd_%c.gz", s)
}

// CmdlineFile names the file with the kernel's command line.
func (s Slot) CmdlineFile(trial bool) string {
	if trial {
		return fmt.Sprintf("trial_%c.txt", s)
	}
	return fmt.Sprintf("normal_%c.txt", s)
}

// What the command line tells init.
const (
	SlotFlag  = "cloudrest.slot="
	TrialFlag = "cloudrest.trial"
	// NoWatchdog is for emulators, whose watchdog restarts them at once.
	NoWatchdog = "cloudrest.watchdog=off"
)

// Cmdline returns the kernel's command line. The kernel restarts after a panic.
func (s Slot) Cmdline(trial bool) string {
	line := fmt.Sprintf("console=tty1 panic=10 %s%c", SlotFlag, s)
	if trial {
		line += " " + TrialFlag
	}
	return line
}

// Boards are the device trees, by the filter of config.txt (Raspberry Pi documentation,
// "Conditional filters"; a later one wins).
var Boards = []struct{ Filter, DeviceTree string }{
	{"pi1", "bcm2835-rpi-b-plus.dtb"},
	{"pi0", "bcm2835-rpi-zero.dtb"},
	{"pi0w", "bcm2835-rpi-zero-w.dtb"},
}

// Config returns what config.txt is for a slot. On trial it names a command line that
// says so, by which init knows to name the other slot again before it does anything else.
func Config(s Slot, trial bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by the device: slot %c\nkernel=%s\ninitramfs %s followkernel\ncmdline=%s\ngpu_mem=16\n",
		s, s.File(Kernel), s.File(Initrd), s.CmdlineFile(trial))
	for _, d := range Boards {
		fmt.Fprintf(&b, "[%s]\ndevice_tree=%s\n", d.Filter, d.DeviceTree)
	}
	b.WriteString("[all]\n")
	b.Write(bytes.Repeat([]byte("\n"), ConfigSize-b.Len()))
	return b.Bytes()
}

// Partition is the boot partition.
type Partition interface {
	io.ReaderAt
	io.WriterAt
}

// ErrConfig means that config.txt is not one of ours.
var ErrConfig = errors.New("config.txt names no slot")

// Booted says what the firmware starts from this partition: the lines of config.txt.
func Booted(p io.ReaderAt) (kernel, initrd, cmdline string, err error) {
	offset, size, err := bootpart.File(p, ConfigFile)
	if err != nil {
		return "", "", "", err
	}
	if size != ConfigSize {
		return "", "", "", fmt.Errorf("%w: it has %d bytes, want %d", ErrConfig, size, ConfigSize)
	}
	text := make([]byte, size)
	if _, err := p.ReadAt(text, offset); err != nil {
		return "", "", "", fmt.Errorf("read %s: %w", ConfigFile, err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "kernel="); ok {
			kernel = v
		}
		if v, ok := strings.CutPrefix(line, "initramfs "); ok {
			initrd, _, _ = strings.Cut(v, " ")
		}
		if v, ok := strings.CutPrefix(line, "cmdline="); ok {
			cmdline = v
		}
	}
	if kernel == "" || initrd == "" || cmdline == "" {
		return "", "", "", ErrConfig
	}
	return kernel, initrd, cmdline, nil
}

// Boot makes the firmware start a slot from now on, or on trial: see Config.
func Boot(p Partition, s Slot, trial bool) error {
	offset, size, err := bootpart.File(p, ConfigFile)
	if err != nil {
		return err
	}
	if size != ConfigSize || offset%ConfigSize != 0 {
		return fmt.Errorf("%w: %d bytes at %d", ErrConfig, size, offset)
	}
	if _, err := p.WriteAt(Config(s, trial), offset); err != nil {
		return fmt.Errorf("write %s: %w", ConfigFile, err)
	}
	return nil
}

// Section returns where the file of a part is in the partition, in bytes.
func Section(p io.ReaderAt, s Slot, part string) (offset, room int64, err error) {
	return bootpart.File(p, s.File(part))
}

// Put writes a part of exactly size bytes into a slot, and zeros up to the end of its file,
// which both the kernel and its unpacker take for nothing.
func Put(p Partition, s Slot, part string, size int64, r io.Reader) error {
	offset, room, err := Section(p, s, part)
	if err != nil {
		return err
	}
	if size > room {
		return fmt.Errorf("%s has %d bytes, there is room for %d", part, size, room)
	}
	n, err := io.CopyN(io.NewOffsetWriter(p, offset), r, size)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	for n < room {
		k := min(room-n, int64(len(zeros)))
		if _, err := p.WriteAt(zeros[:k], offset+n); err != nil {
			return err
		}
		n += k
	}
	return nil
}
