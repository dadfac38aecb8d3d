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
	"github.com/cloudrest/cloudrest/tether/trust"
)

// pin is a device whose key was seen before and is expected again (SPEC.md §11.1).
type pin struct {
	ID    tether.DeviceID `json:"id"`
	Name  string          `json:"name"`
	Pin   string          `json:"pin"` // trust.Pin of its authority; empty: see Old
	URL   string          `json:"url"` // where it was reached last
	Since time.Time       `json:"since"`
	Token string          `json:"token,omitempty"` // of this client, from pairing; never shown
	// Old is what versions before the device's own authority remembered: the SHA-256 of a
	// certificate that no device shows any more. Nothing leads from it to the present key,
	// and to take that unseen would be what a pin is against. So the device is refused
	// until a person forgets it.
	Old string `json:"fingerprint,omitempty"`
}

// pins is the file (0600) that remembers them. Each change is made to what the file holds at
// that moment, so that two commands at once lose nothing, but for the instant of the write.
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
	return p, p.read()
}

func (p *pins) read() error {
	p.list = nil
	i, err := os.Stat(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	if i.Size() > maxPinsFile {
		return fmt.Errorf("read pins: %s is %d bytes, at most %d are read", p.path, i.Size(), maxPinsFile)
	}
	b, err := os.ReadFile(p.path)
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	if err := json.Unmarshal(b, &p.list); err != nil {
		return fmt.Errorf("read pins: %s: %w: repair it, or remove it to begin anew", p.path, err)
	}
	for i, e := range p.list {
		if _, err := tether.ParseDeviceID(string(e.ID)); err != nil || !trust.ValidPin(e.Pin) && (e.Pin != "" || !trust.ValidPin(e.Old)) {
			return fmt.Errorf("read pins: %s: entry %d has no good id or pin: repair it, or remove it", p.path, i+1)
		}
	}
	return nil
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

// put remembers e in place of what was known of its ID, and writes the file. A token
// stays as long as the key does.
func (p *pins) put(e pin) error {
	if err := p.read(); err != nil {
		return err
	}
	i := slices.IndexFunc(p.list, func(o pin) bool { return o.ID == e.ID })
	if i < 0 {
		p.list = append(p.list, e)
		return p.write()
	}
	if old := p.list[i]; e.Token == "" && e.Pin == old.Pin {
		e.Token = old.Token
	}
	if p.list[i] == e {
		return nil
	}
	p.list[i] = e
	return p.write()
}

// remove forgets a device.
func (p *pins) remove(id tether.DeviceID) error {
	if err := p.read(); err != nil {
		return err
	}
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
