//go:build !cgo

package main

import "testing"

func TestFilePages(t *testing.T) {
	for _, tc := range []struct {
		line     string
		from, to uintptr
	}{
		{"00010000-00418000 r-xp 00000000 00:11 1234       /usr/bin/cloudrestd\n", 0x10000, 0x418000},
		{"00418000-008a4000 r--p 00408000 00:11 1234       /usr/bin/cloudrestd\n", 0x418000, 0x8a4000},
		{"00418000-008a4000 r--p 00408000 00:11 1234       /a folder/cloudrestd (deleted)\n", 0x418000, 0x8a4000},
		{"008a4000-008c8000 rw-p 00894000 00:11 1234       /usr/bin/cloudrestd\n", 0, 0},
		{"71000000-71010000 r--s 00000000 00:11 99         /etc/cloudrest/journal.db\n", 0, 0},
		{"0c000000-0c400000 rw-p 00000000 00:00 0 \n", 0, 0},
		{"7ffe1000-7ffe3000 r-xp 00000000 00:00 0          [vdso]\n", 0, 0},
		{"zz-008a4000 r--p 00408000 00:11 1234             /x\n", 0, 0},
		{"00418000 r--p 00408000 00:11 1234                /x\n", 0, 0},
		{"", 0, 0},
	} {
		if from, to := filePages([]byte(tc.line)); from != tc.from || to != tc.to {
			t.Errorf("%q: %x to %x, want %x to %x", tc.line, from, to, tc.from, tc.to)
		}
	}
}

// TestGiveBack: the program goes on after its own pages were taken from it.
func TestGiveBack(t *testing.T) {
	if n := giveBack(); n < 1<<20 {
		t.Errorf("%d bytes given back, want most of this program", n)
	}
	if !fixed() {
		t.Error("this test is not linked to fixed addresses")
	}
}
