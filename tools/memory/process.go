package memory

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is what a process has in memory, in bytes (proc_pid_status(5)).
type Usage struct {
	Resident int64 // VmRSS
	Own      int64 // RssAnon: heap, stacks, variables; what the kernel cannot drop
	Peak     int64 // VmHWM: the most that was ever resident since the program started
}

// Of reads the usage of a process from /proc.
func Of(pid int) (Usage, error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(name)
	if err != nil {
		return Usage{}, err
	}
	u, err := ParseStatus(string(text))
	if err != nil {
		return u, fmt.Errorf("%s: %w", name, err)
	}
	return u, nil
}

// ParseStatus reads the text of /proc/PID/status, also of a board's. A process that has
// ended and was not waited for has no memory: that is an error.
func ParseStatus(text string) (u Usage, err error) {
	found := 0
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &u.Resident
		case "RssAnon":
			to = &u.Own
		case "VmHWM":
			to = &u.Peak
		default:
			continue
		}
		f := strings.Fields(value)
		if len(f) != 2 || f[1] != "kB" {
			return u, fmt.Errorf("line %q: want a number and kB", line)
		}
		kb, err := strconv.ParseUint(f[0], 10, 40)
		if err != nil {
			return u, fmt.Errorf("line %q: %w", line, err)
		}
		*to = int64(kb) << 10
		found++
	}
	if found != 3 {
		return u, fmt.Errorf("%d of VmRSS, RssAnon and VmHWM are there, want all 3", found)
	}
	return u, nil
}
