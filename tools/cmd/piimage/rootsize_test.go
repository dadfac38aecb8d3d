package main

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
)

// superblock is a disk on which only the superblock of the root file system can be read.
type superblock []byte

func (s superblock) ReadAt(p []byte, off int64) (int, error) {
	if off != bootpart.RootStart {
		return 0, errors.New("read elsewhere")
	}
	return copy(p, s), nil
}

func TestRootSize(t *testing.T) {
	for _, c := range []struct {
		name  string
		magic string
		used  uint64
		want  int64
	}{
		{"padded to a page", "hsqs", 4097, 8192},
		{"whole pages", "hsqs", 8192, 8192},
		{"the whole slot", "hsqs", bootpart.RootSize, bootpart.RootSize},
		{"more than the slot", "hsqs", bootpart.RootSize + 1, 0},
		{"an absurd size", "hsqs", 1 << 63, 0},
		{"no squashfs", "\x00\x00\x00\x00", 8192, 0},
	} {
		super := make(superblock, 48)
		copy(super, c.magic)
		binary.LittleEndian.PutUint64(super[40:], c.used)
		got, err := rootSize(super)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %d, %v, want %d", c.name, got, err, c.want)
		}
	}
}
