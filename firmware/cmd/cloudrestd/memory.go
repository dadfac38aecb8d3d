package main

import (
	"bufio"
	"bytes"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
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

// setMemory makes the garbage collector fit the board, unless the user has set GOMEMLIMIT
// or GOGC.
func setMemory(log *slog.Logger, getenv func(string) string) {
	limit, gc := memoryFor(memoryHere())
	if limit == 0 {
		return
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gc)
	}
	log.Debug("memory set for a small board", "limit_mib", limit/mib, "gc_percent", gc)
}

// memoryHere is the memory of this machine, in bytes; 0 if that is not known, as where there
// is no Linux: then it is no small board.
func memoryHere() int64 {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return totalMemory(meminfo)
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
