package main

import (
	"fmt"
	"io"
)

// cpio writes the archive that the kernel unpacks as its first file system (format newc,
// Documentation/driver-api/early-userspace/buffer-format.rst in Linux). It knows no times
// and no owners but root, so the same content gives the same bytes.
type cpio struct {
	w     io.Writer
	inode int
	err   error
}

// The kinds of entries (inode(7)).
const (
	cpioFile   = 0o100000
	cpioFolder = 0o040000
	cpioLink   = 0o120000
	cpioDevice = 0o020000
)

func (c *cpio) entry(name string, mode, major, minor int, content []byte) {
	if c.err != nil {
		return
	}
	c.inode++
	links := 1
	if mode&^0o7777 == cpioFolder {
		links = 2
	}
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
	c.pad([]byte(head))
	c.pad(content)
}

func (c *cpio) pad(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
	if n := len(b) % 4; n != 0 && c.err == nil {
		_, c.err = c.w.Write(make([]byte, 4-n))
	}
}

func (c *cpio) close() error {
	c.inode = -1
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	return c.err
}
