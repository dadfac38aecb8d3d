package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt's file format, version 2, in the machine's byte order (bbolt v1.5.0, internal/common). bbolt
// believes what it maps: a wrong count or page number makes it fault, loop over 2^32 pages, or ask for more memory
// than there is. So the file is looked through before bbolt sees it, with reads and bounds.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16 // id u64, flags u16, count u16, overflow u32
	elementSize = 16 // leaf: flags, pos, ksize, vsize, u32 each; branch: pos u32, ksize u32, page u64
	bucketSize  = 16 // root page u64 (0: inline), sequence u64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketFlag   = 0x01 // of a leaf element

	manyFree = 0xFFFF // the count of a freelist whose true count is its first element

	// Where a meta page, behind its header, has what.
	metaPageSize = 8  // u32
	metaRoot     = 16 // u64
	metaFreelist = 32 // u64
	metaPages    = 40 // u64, the high water mark
	metaTx       = 48 // u64
	metaSum      = 56 // u64, FNV-1a of what is before
	metaSize     = 64

	maxDepth = 32 // pages from a root to a leaf, and buckets in buckets
)

var order = binary.NativeEndian

// checkFile looks through the database at path and returns ErrDamaged with the reason if bbolt should not see it.
// A file that is absent or empty is fine.
func checkFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return err
	}
	if err := checkPages(f, fi.Size()); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

type checker struct {
	r        io.ReaderAt
	pageSize int64
	pages    uint64 // high water mark
	used     []bool // by page
}

func checkPages(r io.ReaderAt, size int64) error {
	c := checker{r: r}
	root, freelist, err := c.meta(size)
	if err != nil {
		return err
	}
	c.used = make([]bool, c.pages)
	if err := c.bucket(root, 0); err != nil {
		return err
	}
	return c.freelist(freelist)
}

// meta finds the newer valid one of the two meta pages, as bbolt does.
func (c *checker) meta(size int64) (root, freelist uint64, err error) {
	var newest []byte
	read := func(at int64) {
		b := make([]byte, metaSize)
		if _, err := c.r.ReadAt(b, at+pageHeader); err != nil {
			return
		}
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSum])
		if order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion || order.Uint64(b[metaSum:]) != sum.Sum64() {
			return
		}
		if newest == nil || order.Uint64(b[metaTx:]) > order.Uint64(newest[metaTx:]) {
			newest = b
		}
	}
	read(0)
	if newest != nil {
		read(int64(order.Uint32(newest[metaPageSize:])))
	} else {
		read(int64(os.Getpagesize()))
	}
	if newest == nil {
		return 0, 0, errors.New("no valid meta page")
	}
	c.pageSize = int64(order.Uint32(newest[metaPageSize:]))
	c.pages = order.Uint64(newest[metaPages:])
	if c.pageSize < 1<<10 || c.pageSize > 1<<16 || c.pages > uint64(size/c.pageSize) {
		return 0, 0, fmt.Errorf("file of %d bytes should have %d pages of %d", size, c.pages, c.pageSize)
	}
	return order.Uint64(newest[metaRoot:]), order.Uint64(newest[metaFreelist:]), nil
}

// page reads a page with its overflow pages; each may be used once.
func (c *checker) page(id uint64) ([]byte, error) {
	const metas = 2
	if id < metas || id >= c.pages {
		return nil, fmt.Errorf("page %d of %d", id, c.pages)
	}
	head := make([]byte, pageHeader)
	if _, err := c.r.ReadAt(head, int64(id)*c.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	more := uint64(order.Uint32(head[12:]))
	if got := order.Uint64(head); got != id || more >= c.pages-id {
		return nil, fmt.Errorf("page %d says it is %d with %d more, of %d", id, got, more, c.pages)
	}
	for i := id; i <= id+more; i++ {
		if c.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		c.used[i] = true
	}
	b := make([]byte, int64(more+1)*c.pageSize)
	if _, err := c.r.ReadAt(b, int64(id)*c.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return b, nil
}

func (c *checker) bucket(root uint64, depth int) error {
	if depth > maxDepth {
		return errors.New("buckets nested without end")
	}
	var last []byte // key
	return c.tree(root, &last, depth)
}

func (c *checker) tree(id uint64, last *[]byte, depth int) error {
	if depth > maxDepth {
		return errors.New("pages nested without end")
	}
	b, err := c.page(id)
	if err != nil {
		return err
	}
	if order.Uint16(b[8:]) == leafPage {
		return c.leaf(b, last, depth)
	}
	count := int(order.Uint16(b[10:]))
	if flags := order.Uint16(b[8:]); flags != branchPage || count == 0 {
		return fmt.Errorf("page %d has flags %#x and %d elements", id, flags, count)
	}
	if pageHeader+count*elementSize > len(b) {
		return fmt.Errorf("page %d of %d bytes has %d elements", id, len(b), count)
	}
	for i := range count {
		e := b[pageHeader+i*elementSize:]
		if _, err := part(e, order.Uint32(e), order.Uint32(e[4:])); err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		if err := c.tree(order.Uint64(e[8:]), last, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks a leaf page, or one that lies inline in a bucket's value.
func (c *checker) leaf(b []byte, last *[]byte, depth int) error {
	count := int(order.Uint16(b[10:]))
	if pageHeader+count*elementSize > len(b) {
		return fmt.Errorf("leaf of %d bytes has %d elements", len(b), count)
	}
	for i := range count {
		e := b[pageHeader+i*elementSize:]
		flags, pos, ksize, vsize := order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		k, err := part(e, pos, ksize)
		if err != nil {
			return err
		}
		v, err := part(e, pos, ksize, vsize)
		if err != nil {
			return err
		}
		if len(k) == 0 || *last != nil && bytes.Compare(*last, k) >= 0 {
			return errors.New("keys out of order")
		}
		*last = k
		switch {
		case flags == bucketFlag && len(v) >= bucketSize:
			if err := c.child(v, depth); err != nil {
				return err
			}
		case flags != 0:
			return fmt.Errorf("element with flags %#x and %d bytes", flags, len(v))
		}
	}
	return nil
}

// child checks the bucket that a value is.
func (c *checker) child(v []byte, depth int) error {
	if root := order.Uint64(v); root != 0 {
		return c.bucket(root, depth+1)
	}
	inline := v[bucketSize:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != leafPage || depth > maxDepth {
		return errors.New("inline bucket is no leaf")
	}
	var last []byte
	return c.leaf(inline, &last, depth+1)
}

// part returns the last of several neighbours of the given sizes that begin pos bytes behind an element.
func part(e []byte, pos uint32, sizes ...uint32) ([]byte, error) {
	begin, end := uint64(pos), uint64(pos)
	for _, n := range sizes {
		begin, end = end, end+uint64(n)
	}
	if end > uint64(len(e)) {
		return nil, fmt.Errorf("element reaches %d bytes, %d are left", end, len(e))
	}
	return e[begin:end], nil
}

// freelist checks that what is said to be free is in range, in order, and not used.
func (c *checker) freelist(id uint64) error {
	b, err := c.page(id)
	if err != nil {
		return fmt.Errorf("freelist: %w", err)
	}
	if flags := order.Uint16(b[8:]); flags != freelistPage {
		return fmt.Errorf("freelist has flags %#x", flags)
	}
	count, ids := uint64(order.Uint16(b[10:])), b[pageHeader:]
	if count == manyFree {
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return fmt.Errorf("freelist of %d bytes has %d elements", len(b), count)
	}
	for i, last := uint64(0), uint64(1); i < count; i++ {
		free := order.Uint64(ids[8*i:])
		if free <= last || free >= c.pages || c.used[free] {
			return fmt.Errorf("page %d is said to be free", free)
		}
		last = free
	}
	return nil
}
