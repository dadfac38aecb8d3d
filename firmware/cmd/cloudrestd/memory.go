package main

import (
	"bufio"
	"bytes"
	"log/slog"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxStopWait bounds --stop-wait.
const maxStopWait = 5 * 60 * 1e9 // 5 min

const mib = 1 << 20

// The Go heap may grow to this on a board with so much memory, and the cache in it; measured
// on the 24Kc board: 15 MB resident under load with either. Boards above the last step need
// no limit.
var memorySteps = []struct {
	board int64 // at most so many bytes of RAM
	limit int64 // for GOMEMLIMIT
	gc    int   // for GOGC, percent
	cache int64 // bytes
}{
	{48 * mib, 16 * mib, 50, mib / 2},
	{96 * mib, 24 * mib, 50, 1 * mib},
	{192 * mib, 48 * mib, 50, 4 * mib},
	{512 * mib, 128 * mib, 100, 8 * mib},
}

// largestCache is the cache of boards above the last step, in bytes.
const largestCache = 16 * mib

// setMemory makes the garbage collector fit the memory there is, unless the user has set GOMEMLIMIT
// or GOGC. It reports whether the board is a small one.
func setMemory(log *slog.Logger, getenv func(string) string) bool {
	limit, gc := memoryFor(memoryHere())
	if limit == 0 {
		return false
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gc)
	}
	log.Debug("memory set for a small board", "limit_mib", limit/mib, "gc_percent", gc)
	return true
}

// settleTime is how long after it is ready the gateway has done what it does only once:
// made its keys, met the service, announced itself.
const settleTime = 5 * time.Second

// giveBackOnce gives back what only the start has needed, once that is over; stop calls
// it off or waits for its end.
func giveBackOnce(ready <-chan struct{}, log *slog.Logger) (stop func()) {
	off, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ready:
		case <-off:
			return
		}
		t := time.NewTimer(settleTime)
		defer t.Stop()
		select {
		case <-t.C:
			log.Debug("memory of the start given back", "mapped_bytes", giveBack())
		case <-off:
		}
	}()
	return func() { close(off); <-done }
}

// memoryHere is the memory that this process may use, in bytes: that of the machine, or
// less where a cgroup limits it (a container, MemoryMax= of systemd). 0 if that is not
// known, as where there is no Linux: then it is no small board.
func memoryHere() int64 {
	board := int64(0)
	if meminfo, err := os.ReadFile("/proc/meminfo"); err == nil {
		board = totalMemory(meminfo)
	}
	if limit := cgroupLimit(os.ReadFile); limit > 0 && (board == 0 || limit < board) {
		return limit
	}
	return board
}

// Where cgroups are mounted: version 2 alone, or the memory controller of version 1.
const (
	cgroup2 = "/sys/fs/cgroup"
	cgroup1 = "/sys/fs/cgroup/memory"
)

// cgroupLimit is the smallest limit of memory on this process's cgroup and those above
// it, in bytes; 0: none. Sources: cgroups(7); the kernel's cgroup-v2.rst (memory.max) and
// cgroup-v1/memory.rst (hierarchical_memory_limit). A container may see the path of its
// host and yet only its own part of the tree: what is not there does not limit.
func cgroupLimit(read func(string) ([]byte, error)) (limit int64) {
	found := func(text []byte) {
		// What does not fit ("max", and no limit in version 1, which is near 2^63) is none.
		n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
		if err == nil && n > 0 && n < 1<<60 && (limit == 0 || n < limit) {
			limit = n
		}
	}
	mine, err := read("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(mine) {
		f := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), 3) // number, controllers, path
		if len(f) != 3 {
			continue
		}
		version2 := len(f[1]) == 0
		if !version2 && !slices.Contains(strings.Split(string(f[1]), ","), "memory") {
			continue
		}
		for dir := path.Clean("/" + string(f[2])); ; dir = path.Dir(dir) {
			if version2 {
				if text, err := read(path.Join(cgroup2, dir, "memory.max")); err == nil {
					found(text)
				}
			} else if text, err := read(path.Join(cgroup1, dir, "memory.stat")); err == nil {
				for line := range bytes.Lines(text) {
					if n, ok := bytes.CutPrefix(line, []byte("hierarchical_memory_limit ")); ok {
						found(n)
					}
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit
}

// cacheFor chooses the memory for the cache on a board, in bytes.
func cacheFor(board int64) int64 {
	for _, s := range memorySteps {
		if board > 0 && board <= s.board {
			return s.cache
		}
	}
	return largestCache
}

// memoryFor chooses the limits for a board; 0 means to leave Go's defaults.
func memoryFor(board int64) (limit int64, gc int) {
	for _, s := range memorySteps {
		if board > 0 && board <= s.board {
			return s.limit, s.gc
		}
	}
	return 0, 0
}

// totalMemory reads MemTotal, in bytes; 0 if it is not there.
func totalMemory(meminfo []byte) int64 {
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		f := bytes.Fields(lines.Bytes())
		if len(f) == 3 && string(f[0]) == "MemTotal:" && string(f[2]) == "kB" {
			kb, err := strconv.ParseInt(string(f[1]), 10, 64)
			if err != nil || kb < 0 || kb > 1<<40 {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
