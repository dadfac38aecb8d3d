//go:build !cgo

package main

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"syscall"
)

const elfExec = 2 // ET_EXEC (elf(5)): a program at fixed addresses

// giveBack returns to the kernel what only the start has needed: garbage, and the pages of
// the program's file. The kernel maps what lies around each page that is used, and
// squashfs reads 256 KB at a time, so that nearly all of the file counts as ours until
// memory is short. What is used again is mapped again, mostly without being read.
func giveBack() (bytesMapped int64) {
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil || !fixed() {
		return 0
	}
	for line := range bytes.Lines(maps) {
		from, to := filePages(line)
		if to > from && madvise(from, to-from, syscall.MADV_DONTNEED) == nil {
			bytesMapped += int64(to - from)
		}
	}
	return bytesMapped
}

// fixed reports whether this program was linked by Go to fixed addresses, as all of ours
// are. Others have pages that a loader wrote to before it made them read-only.
func fixed() bool {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return false
	}
	defer f.Close()
	var head [18]byte // up to e_type
	_, err = f.ReadAt(head[:], 0)
	return err == nil && head[16]|head[17] == elfExec // in either byte order
}

// filePages reads a line of /proc/self/maps (proc_pid_maps(5)); to is 0 unless it is about
// pages of a file that nobody can have written to: read-only, and private.
func filePages(line []byte) (from, to uintptr) {
	f := bytes.Fields(line) // range, permissions, offset, device, inode, name
	if len(f) < 6 || len(f[1]) != 4 || f[1][0] != 'r' || f[1][1] != '-' || f[1][3] != 'p' || string(f[4]) == "0" {
		return 0, 0
	}
	a, b, _ := bytes.Cut(f[0], []byte("-"))
	low, err1 := strconv.ParseUint(string(a), 16, strconv.IntSize)
	high, err2 := strconv.ParseUint(string(b), 16, strconv.IntSize)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	return uintptr(low), uintptr(high)
}

// madvise is madvise(2) for memory that is not Go's.
func madvise(from, size uintptr, advice int) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, from, size, uintptr(advice)); errno != 0 {
		return errno
	}
	return nil
}
