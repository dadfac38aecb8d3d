package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Wipe removes all that a store with this Config holds or has held: the database on flash
// or in memory, its snapshot, and what was moved aside as damaged. It is done again after
// a power cut in the middle. Nothing may have the store open: ErrInUse.
func Wipe(c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	c.fill()
	lock, err := lockDir(c.Dir, c.LockWait)
	if err != nil {
		return err
	}
	defer lock.Close()
	volatile, err := c.volatilePath()
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range []string{filepath.Join(c.Dir, fileName), filepath.Join(c.Dir, snapshotName), volatile} {
		for _, name := range []string{path, path + asideSuffix} {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("wipe the state: %w", err))
			}
		}
	}
	if err := syncDir(c.Dir); err != nil {
		errs = append(errs, fmt.Errorf("wipe the state: %w", err))
	}
	return errors.Join(errs...)
}

// volatilePath is the file in memory. Two daemons with two state directories must not
// share a database.
func (c *Config) volatilePath() (string, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return "", fmt.Errorf("find state directory: %w", err)
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(c.VolatileDir, "state-"+hex.EncodeToString(sum[:4])+".db"), nil
}
