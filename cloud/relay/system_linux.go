package relay

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// wantFiles is the number of open files that a relay of the largest size uses: one for
// each device and client, and some.
const wantFiles = 65536

// RaiseFiles raises the limit of open files of this process as far as it may be, and
// returns it. Go has raised the soft limit to the hard one already; with privileges the
// hard one goes up too.
func RaiseFiles() (uint64, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, err
	}
	if l.Cur >= wantFiles {
		return l.Cur, nil
	}
	more := syscall.Rlimit{Cur: wantFiles, Max: max(l.Max, wantFiles)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
		return more.Cur, nil
	}
	l.Cur = min(l.Max, wantFiles)
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
	return l.Cur, err
}

// memory is how many bytes this machine, or the container around the process, has.
func memory() int64 {
	total := int64(fallbackMemory)
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		total = int64(info.Totalram) * int64(info.Unit)
	}
	text, err := os.ReadFile("/sys/fs/cgroup/memory.max") // cgroup v2; "max": none
	if err == nil {
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil && n > 0 {
			total = min(total, n)
		}
	}
	return total
}
