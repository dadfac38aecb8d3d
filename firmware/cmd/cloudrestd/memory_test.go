package main

import "testing"

func TestMemory(t *testing.T) {
	for _, tc := range []struct {
		meminfo string
		board   int64
		limit   int64
		gc      int
	}{
		{"MemTotal:          28100 kB\nMemFree: 3 kB\n", 28100 << 10, 16 * mib, 50},
		{"MemTotal:          59680 kB\n", 59680 << 10, 24 * mib, 50},
		{"MemTotal:         123456 kB\n", 123456 << 10, 48 * mib, 50},
		{"Foo: 1 kB\nMemTotal:         440000 kB\n", 440000 << 10, 128 * mib, 100},
		{"MemTotal:        8000000 kB\n", 8000000 << 10, 0, 0},
		{"", 0, 0, 0},
		{"MemTotal: -1 kB\n", 0, 0, 0},
		{"MemTotal: 99999999999999999999 kB\n", 0, 0, 0},
	} {
		board := totalMemory([]byte(tc.meminfo))
		limit, gc := memoryFor(board)
		if board != tc.board || limit != tc.limit || gc != tc.gc {
			t.Errorf("%q: board %d, limit %d, gc %d; want %d, %d, %d", tc.meminfo, board, limit, gc, tc.board, tc.limit, tc.gc)
		}
	}
}
