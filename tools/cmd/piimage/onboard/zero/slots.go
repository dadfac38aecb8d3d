package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
	"golang.org/x/sys/unix"
)

// withBoot opens the boot partition. Nobody has mounted it.
func withBoot(do func(*os.File) error) error {
	f, err := os.OpenFile(bootDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = do(f)
	return errors.Join(err, f.Sync(), f.Close())
}

// choose says what the next start is.
func (s *system) choose(slot zerodisk.Slot, trial bool) error {
	return withBoot(func(f *os.File) error { return zerodisk.Boot(f, slot, trial) })
}

// Try implements device.Machine.
func (s *system) Try() error { return s.choose(s.slot.Other(), true) }

// Room implements update.Store.
func (s *system) Room(part string) int64 {
	switch part {
	case zerodisk.Kernel:
		return zerodisk.KernelRoom
	case zerodisk.Initrd:
		return zerodisk.InitrdRoom
	}
	return 0
}

// Complete implements update.Store: the kernel's modules are in the initial RAM file
// system, so neither goes without the other.
func (s *system) Complete(parts []string) bool {
	return slices.Contains(parts, zerodisk.Kernel) && slices.Contains(parts, zerodisk.Initrd)
}

// Put implements update.Store.
func (s *system) Put(part string, size int64, r io.Reader) error {
	return withBoot(func(f *os.File) error { return zerodisk.Put(f, s.slot.Other(), part, size, r) })
}

// Verify implements update.Store. It reads from the card and not from memory.
func (s *system) Verify(part string, size int64, sum [sha256.Size]byte) error {
	return withBoot(func(f *os.File) error {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		offset, _, err := zerodisk.Section(f, s.slot.Other(), part)
		if err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, offset, size)); err != nil {
			return err
		}
		if !bytes.Equal(h.Sum(nil), sum[:]) {
			return update.ErrDigest
		}
		return nil
	})
}
