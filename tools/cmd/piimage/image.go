package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
)

// errNoRoot means that a file is not an image with a root file system in its first slot.
var errNoRoot = errors.New("not an image that piimage made")

// rootSize returns how many bytes the root file system in the first slot has: squashfs
// says so in its superblock.
func rootSize(image io.ReaderAt) (int64, error) {
	var super [48]byte
	if _, err := image.ReadAt(super[:], bootpart.RootStart); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoRoot, err)
	}
	const magic, bytesUsed = "hsqs", 40 // where the field is
	n := binary.LittleEndian.Uint64(super[bytesUsed:])
	if string(super[:4]) != magic || n < uint64(len(super)) || n > bootpart.RootSize {
		return 0, errNoRoot
	}
	const page = 4096 // squashfs is padded to it
	return int64((n + page - 1) &^ (page - 1)), nil
}
