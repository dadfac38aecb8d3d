package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// CPU is the processor time of a process and its living children, user and system.
func CPU(pid int) (time.Duration, error) {
	var total time.Duration
	for _, p := range family(pid) {
		t, err := clock(p)
		if err != nil {
			if p == pid {
				return 0, fmt.Errorf("read processor time: %w", err)
			}
			continue // that child has ended
		}
		total += t
	}
	return total, nil
}

// clock reads the process's CPU clock (clock_getcpuclockid(3)): nanoseconds, where the
// times in /proc/pid/stat count hundredths of a second.
func clock(pid int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED
	id := int32(^pid)<<3 | scheduler
	var ts syscall.Timespec
	if _, _, e := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		return 0, e
	}
	return time.Duration(ts.Nano()), nil
}

// family is a process and its living children.
func family(pid int) []int {
	pids := []int{pid}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return pids
	}
	for _, list := range lists {
		b, _ := os.ReadFile(list) // or that thread has ended
		for child := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(child); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// Resident reads the resident memory of a process and its living children.
func Resident(pid int) Memory {
	var m Memory
	for _, p := range family(pid) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			f := strings.Fields(value)
			if len(f) != 2 || f[1] != "kB" {
				continue
			}
			kb, _ := strconv.ParseInt(f[0], 10, 64)
			switch name {
			case "VmRSS":
				m.RSS += kb << 10
			case "RssAnon":
				m.Anon += kb << 10
			}
		}
	}
	return m
}

// deathSignal lets a server end with this program, whatever ends it.
func deathSignal() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
