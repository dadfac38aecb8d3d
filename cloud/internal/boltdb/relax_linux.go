package boltdb

import (
	"syscall"

	bolt "go.etcd.io/bbolt"
)

// Relax takes the pages of the file that have been read out of this process's memory. They
// stay in the kernel's cache, and come back when they are read again. It is for the time
// after many devices came at once, which reads nearly all of the file.
func (db *DB) Relax() error {
	// An open transaction keeps bbolt from mapping the file anew, elsewhere, meanwhile.
	return db.bolt.View(func(tx *bolt.Tx) error {
		info := db.bolt.Info()
		if info == nil || info.Data == 0 {
			return nil
		}
		// On a shared mapping of a file this changes no data (madvise(2), MADV_DONTNEED).
		_, _, errno := syscall.Syscall(syscall.SYS_MADVISE, info.Data, uintptr(tx.Size()), syscall.MADV_DONTNEED)
		if errno != 0 {
			return errno
		}
		return nil
	})
}
