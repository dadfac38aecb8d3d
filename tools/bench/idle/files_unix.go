//go:build unix

package main

import "syscall"

// openFiles is how many files a process may open; Go has raised that as far as it may be.
func openFiles() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 1 << 20
	}
	return uint64(l.Cur)
}
