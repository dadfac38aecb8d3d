package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticks is USER_HZ, the unit of times in /proc; 100 on every Linux that Go runs on.
const ticks = 100

// cpu is the processor time of a process and its living children, user and system
// (proc(5): fields 14 and 15 of /proc/pid/stat).
func cpu(pid int) (time.Duration, error) {
	total, err := own(pid)
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue // that thread has ended
		}
		for child := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(child); err == nil {
				if t, err := own(n); err == nil {
					total += t
				}
			}
		}
	}
	return total, nil
}

func own(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold spaces; the fields behind it start with the 3rd.
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: times %q, %q", pid, fields[11], fields[12])
	}
	return time.Duration(user+system) * time.Second / ticks, nil
}

// rss is the resident memory of a process and its children in KB, 0 if unknown.
func rss(pid int) int {
	pids := []int{pid}
	if lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)); err == nil {
		for _, list := range lists {
			b, _ := os.ReadFile(list)
			for child := range strings.FieldsSeq(string(b)) {
				if n, err := strconv.Atoi(child); err == nil {
					pids = append(pids, n)
				}
			}
		}
	}
	total := 0
	for _, p := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if _, after, ok := strings.Cut(string(b), "VmRSS:"); ok {
			if f := strings.Fields(after); len(f) > 0 {
				n, _ := strconv.Atoi(f[0])
				total += n
			}
		}
	}
	return total
}

// deathSignal lets a server end with this program, whatever ends it.
func deathSignal() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
