package main

import "testing"

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
