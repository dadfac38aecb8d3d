// Package bootpart reads what a boot needs from a gokrazy disk: the layout that gokrazy
// gives every disk, and files in the root folder of the boot partition, which is FAT16 as
// the Raspberry Pi's firmware wants it. Files there are contiguous: gokrazy writes them
// once and rewrites them in place.
package bootpart

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Where the partitions are on the disk, in bytes (gokrazy's own layout: boot, root A, root
// B, then /perm up to the end).
const (
	BootStart = 8192 * 512
	BootSize  = 100 << 20
	RootStart = BootStart + BootSize
	RootSize  = 500 << 20
	PermStart = RootStart + 2*RootSize
)

// TrialFlag on the kernel's command line makes gokrazy's init start the other root file
// system for this boot only. Init replaces it by TriedFlag, so that the next boot is an
// ordinary one whatever happens in this one.
const (
	TrialFlag = "gokrazy.try_boot_inactive=1"
	TriedFlag = "gokrazy.switch_on_boot=1"
)

// Cmdline is the kernel's command line.
const Cmdline = "cmdline.txt"

// ErrNotFAT means that there is no FAT16 file system as gokrazy writes it.
var ErrNotFAT = errors.New("not a FAT16 boot partition")

const entrySize = 32 // bytes of an entry in a FAT folder

// File returns where in the file system r the file is that the root folder calls name
// (8.3, such as "cmdline.txt"), in bytes.
func File(r io.ReaderAt, name string) (offset, size int64, err error) {
	var boot [36]byte
	if _, err := r.ReadAt(boot[:], 0); err != nil {
		return 0, 0, fmt.Errorf("read boot sector: %w", err)
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(boot[11:]))
	cluster := int64(boot[13]) * sector
	reserved := int64(le.Uint16(boot[14:])) * sector
	entries := int64(le.Uint16(boot[17:]))
	fats := int64(boot[16]) * int64(le.Uint16(boot[22:])) * sector
	if sector != 512 || cluster == 0 || reserved == 0 || fats == 0 || entries == 0 {
		return 0, 0, ErrNotFAT
	}
	base, ext, _ := strings.Cut(name, ".")
	want := fmt.Sprintf("%-8s%-3s", base, ext)
	folder := make([]byte, entries*entrySize)
	if _, err := r.ReadAt(folder, reserved+fats); err != nil {
		return 0, 0, fmt.Errorf("read root folder: %w", err)
	}
	const longName = 0x0f // attribute of an entry that is part of a long name
	for e := folder; len(e) >= entrySize && e[0] != 0; e = e[entrySize:] {
		if e[11]&longName == longName || !strings.EqualFold(string(e[:11]), want) { // gokrazy writes small letters
			continue
		}
		first := int64(le.Uint16(e[26:]))
		if first < 2 { // clusters 0 and 1 do not exist
			return 0, 0, fmt.Errorf("%s: cluster %d: %w", name, first, ErrNotFAT)
		}
		return reserved + fats + int64(len(folder)) + (first-2)*cluster, int64(le.Uint32(e[28:])), nil
	}
	return 0, 0, fmt.Errorf("%s is not in the boot partition", name)
}

// maxCmdline is the longest command line that the kernel takes (COMMAND_LINE_SIZE), and so
// the largest file that can be right.
const maxCmdline = 2048

// ReadCmdline returns the command line of the next boot.
func ReadCmdline(r io.ReaderAt) (string, error) {
	_, line, err := readCmdline(r)
	return strings.TrimSpace(string(line)), err
}

func readCmdline(r io.ReaderAt) (offset int64, line []byte, err error) {
	offset, size, err := File(r, Cmdline)
	if err != nil {
		return 0, nil, err
	}
	if size > maxCmdline {
		return 0, nil, fmt.Errorf("%s has %d bytes, more than %d", Cmdline, size, maxCmdline)
	}
	line = make([]byte, size)
	if _, err := r.ReadAt(line, offset); err != nil {
		return 0, nil, fmt.Errorf("read %s: %w", Cmdline, err)
	}
	return offset, line, nil
}

// Tidy takes the traces of earlier trials off the command line. gokrazy adds a flag for
// each trial and has room for two. It reports whether there was anything to do.
func Tidy(f interface {
	io.ReaderAt
	io.WriterAt
}) (bool, error) {
	offset, line, err := readCmdline(f)
	if err != nil {
		return false, err
	}
	var keep []string
	words := strings.Fields(string(line))
	for _, w := range words {
		if w != TrialFlag && w != TriedFlag {
			keep = append(keep, w)
		}
	}
	if len(keep) == len(words) {
		return false, nil
	}
	// The newline is what gokrazy puts the next flag in front of; the size stays.
	tidy := strings.Join(keep, " ") + "\n"
	tidy += strings.Repeat(" ", len(line)-len(tidy)) // a flag is longer than the newline
	if _, err := f.WriteAt([]byte(tidy), offset); err != nil {
		return false, fmt.Errorf("write %s: %w", Cmdline, err)
	}
	return true, nil
}
