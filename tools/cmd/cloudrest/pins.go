package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// pin is a device whose LAN certificate was seen before and is expected again.
type pin struct {
	ID          tether.DeviceID `json:"id"`
	Name        string          `json:"name"`
	Fingerprint string          `json:"fingerprint"` // SHA-256 of the certificate, 64 hex digits
	URL         string          `json:"url"`         // where it was reached last
	Since       time.Time       `json:"since"`
}

// pins is the file that remembers them. Two commands at once: the last one to write wins,
// which loses at most a pin that is made anew at the next use.
type pins struct {
	path string
	list []pin
}

const maxPinsFile = 4 << 20 // bytes

// openPins reads the file; one that is not there yet is empty.
func openPins(path string) (*pins, error) {
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return nil, fmt.Errorf("find a place to remember devices: %w: give one with --pins FILE", err)
		}
		path = filepath.Join(dir, "cloudrest", "pins.json")
	}
	p := &pins{path: path}
	i, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	if i.Size() > maxPinsFile {
		return nil, fmt.Errorf("read pins: %s is %d bytes, at most %d are read", path, i.Size(), maxPinsFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	if err := json.Unmarshal(b, &p.list); err != nil {
		return nil, fmt.Errorf("read pins: %s: %w: repair it, or remove it to begin anew", path, err)
	}
	for i, e := range p.list {
		if _, err := tether.ParseDeviceID(string(e.ID)); err != nil || !isFingerprint(e.Fingerprint) {
			return nil, fmt.Errorf("read pins: %s: entry %d has no good id or fingerprint: repair it, or remove it", path, i+1)
		}
	}
	return p, nil
}

func isFingerprint(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// find is all pins that a word may mean: a whole ID or label, a name, or the beginning
// of an ID. Exact matches hide the others.
func (p *pins) find(word string) []pin {
	return match(p.list, word, func(e pin) (tether.DeviceID, string) { return e.ID, e.Name })
}

// minPrefix is how many digits of an ID are needed at least.
const minPrefix = 4

// match picks what word may mean out of list.
func match[T any](list []T, word string, who func(T) (tether.DeviceID, string)) []T {
	id, notID := tether.ParseDeviceID(word)
	var exact, begins []T
	for _, e := range list {
		eid, name := who(e)
		switch {
		case notID == nil && eid == id, strings.EqualFold(name, word):
			exact = append(exact, e)
		case len(word) >= minPrefix && strings.HasPrefix(string(eid), strings.ToLower(word)):
			begins = append(begins, e)
		}
	}
	if len(exact) > 0 {
		return exact
	}
	return begins
}

// put remembers e in place of what was known of its ID, and writes the file.
func (p *pins) put(e pin) error {
	i := slices.IndexFunc(p.list, func(o pin) bool { return o.ID == e.ID })
	switch {
	case i < 0:
		p.list = append(p.list, e)
	case p.list[i] == e:
		return nil
	default:
		p.list[i] = e
	}
	return p.write()
}

// remove forgets a device.
func (p *pins) remove(id tether.DeviceID) error {
	p.list = slices.DeleteFunc(p.list, func(o pin) bool { return o.ID == id })
	return p.write()
}

func (p *pins) write() error {
	b, err := json.MarshalIndent(p.list, "", "  ")
	if err != nil {
		return fmt.Errorf("write pins: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
		return fmt.Errorf("write pins: %w", err)
	}
	if err := writeWhole(p.path, append(b, '\n')); err != nil {
		return fmt.Errorf("write pins: %w", err)
	}
	return nil
}

// writeWhole puts a file in place in one step: beside, sync, rename.
func writeWhole(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
