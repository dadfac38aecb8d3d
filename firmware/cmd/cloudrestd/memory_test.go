package main

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemory(t *testing.T) {
	for _, tc := range []struct {
		meminfo string
		board   int64
		limit   int64
		gc      int
		cache   int64
	}{
		{"MemTotal:          28100 kB\nMemFree: 3 kB\n", 28100 << 10, 16 * mib, 50, mib / 2},
		{"MemTotal:          59680 kB\n", 59680 << 10, 24 * mib, 50, mib},
		{"MemTotal:         123456 kB\n", 123456 << 10, 48 * mib, 50, 4 * mib},
		{"Foo: 1 kB\nMemTotal:         440000 kB\n", 440000 << 10, 128 * mib, 100, 8 * mib},
		{"MemTotal:        8000000 kB\n", 8000000 << 10, 0, 0, 16 * mib},
		{"", 0, 0, 0, 16 * mib},
		{"MemTotal: -1 kB\n", 0, 0, 0, 16 * mib},
		{"MemTotal: 99999999999999999999 kB\n", 0, 0, 0, 16 * mib},
	} {
		board := totalMemory([]byte(tc.meminfo))
		limit, gc := memoryFor(board)
		if c := cacheFor(board); board != tc.board || limit != tc.limit || gc != tc.gc || c != tc.cache {
			t.Errorf("%q: board %d, limit %d, gc %d, cache %d; want %d, %d, %d, %d", tc.meminfo, board, limit, gc, c, tc.board, tc.limit, tc.gc, tc.cache)
		}
	}
}

func TestCgroupLimit(t *testing.T) {
	const none1 = "cache 0\nhierarchical_memory_limit 9223372036854771712\n"
	for name, tc := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no cgroups":                          {nil, 0},
		"version 2":                           {map[string]string{"/proc/self/cgroup": "0::/a.slice/b\n", "/sys/fs/cgroup/a.slice/b/memory.max": "33554432\n"}, 32 * mib},
		"version 2, no limit":                 {map[string]string{"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "max\n"}, 0},
		"version 2, the one above is smaller": {map[string]string{"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "67108864\n", "/sys/fs/cgroup/a/memory.max": "33554432\n"}, 32 * mib},
		"version 2, a container that sees its host's path": {map[string]string{"/proc/self/cgroup": "0::/host/box\n", "/sys/fs/cgroup/memory.max": "33554432\n"}, 32 * mib},
		"version 2, above its namespace's root":            {map[string]string{"/proc/self/cgroup": "0::/../x\n", "/sys/fs/cgroup/x/memory.max": "33554432\n"}, 32 * mib},
		"version 1": {map[string]string{"/proc/self/cgroup": "9:cpu,cpuacct:/c\n4:rdma,memory:/a\n0::/\n",
			"/sys/fs/cgroup/memory/a/memory.stat": "cache 7\nhierarchical_memory_limit 67108864\nhierarchical_memsw_limit 1\n"}, 64 * mib},
		"version 1, no limit":                              {map[string]string{"/proc/self/cgroup": "4:memory:/a\n", "/sys/fs/cgroup/memory/a/memory.stat": none1}, 0},
		"version 1, a container that sees its host's path": {map[string]string{"/proc/self/cgroup": "4:memory:/docker/a\n", "/sys/fs/cgroup/memory/memory.stat": "hierarchical_memory_limit 33554432\n"}, 32 * mib},
		"another controller":                               {map[string]string{"/proc/self/cgroup": "4:memoryless:/a\n", "/sys/fs/cgroup/memory/a/memory.stat": "hierarchical_memory_limit 1\n"}, 0},
		"nonsense":                                         {map[string]string{"/proc/self/cgroup": "::\n\nx\n0::/a\n", "/sys/fs/cgroup/a/memory.max": "-1\n", "/sys/fs/cgroup/memory.max": ""}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := cgroupLimit(func(file string) ([]byte, error) {
				text, ok := tc.files[file]
				if !ok {
					return nil, os.ErrNotExist
				}
				return []byte(text), nil
			})
			if got != tc.want {
				t.Errorf("limit = %d, want %d", got, tc.want)
			}
		})
	}
}

func TestGiveBackOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		log := slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
		ready := make(chan struct{})
		giveBackOnce(ready, log)() // called off before it is ready
		stop := giveBackOnce(ready, log)
		close(ready)
		time.Sleep(settleTime - 1)
		stop() // called off before it has settled
		if said.Len() > 0 {
			t.Errorf("called off, and yet: %s", said.Bytes())
		}
		stop = giveBackOnce(ready, log)
		time.Sleep(settleTime)
		synctest.Wait()
		stop()
		if got := strings.Count(said.String(), "given back"); got != 1 {
			t.Errorf("given back %d times, want once: %s", got, said.Bytes())
		}
	})
}
