package main

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalWidth is the number of columns of the terminal that f is, 0 when f is none.
func terminalWidth(f *os.File) int {
	var size struct{ rows, columns, x, y uint16 } // struct winsize, ioctl_tty(2)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	switch {
	case errno != 0:
		return 0
	case size.columns == 0: // a terminal that does not know, such as a serial line
		return 80
	}
	return int(size.columns)
}
