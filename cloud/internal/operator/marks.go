package operator

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// Files with a line for each device that something holds for: its ID, and since when (RFC
// 3339). Empty lines and lines that begin with # are skipped.
const (
	RevokedFile = "revoked" // never let in
	RekeyFile   = "rekey"   // the relay is to forget the key it enrolled with; then it removes the line
)

// ErrListed means that a device's key stands on the list, so that forgetting the one it
// enrolled with would change nothing.
var ErrListed = errors.New("the device is on the list with its key: list it with the new one instead")

// Mark is one line of such a file.
type Mark struct {
	ID tether.DeviceID
	At time.Time
}

// marks is a whole file.
type marks map[id32]time.Time

func parseMarks(text []byte) (*marks, error) {
	m := marks{}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		fields := bytes.Fields(line)
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		if len(fields) > 2 {
			return nil, fmt.Errorf("line %d: want a device ID and a time", n)
		}
		id, err := tether.ParseDeviceID(string(fields[0]))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		k, err := idOf(id)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		at := time.Time{} // written by hand
		if len(fields) == 2 {
			if at, err = time.Parse(time.RFC3339, string(fields[1])); err != nil {
				return nil, fmt.Errorf("line %d: want a time like 2026-01-02T15:04:05Z, not %.40q", n, fields[1])
			}
		}
		m[k] = at
	}
	return &m, nil
}

// readMarks returns a file's lines in the order of the IDs.
func readMarks(dir, name string) ([]Mark, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseMarks(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	list := make([]Mark, 0, len(*m))
	for _, k := range slices.SortedFunc(maps.Keys(*m), func(a, b id32) int { return bytes.Compare(a[:], b[:]) }) {
		list = append(list, Mark{tether.DeviceID(hex.EncodeToString(k[:])), (*m)[k]})
	}
	return list, nil
}

// mark adds a line, if there is none for the device yet.
func mark(dir, name string, id tether.DeviceID) (added bool, err error) {
	err = edit(dir, name, func(text []byte) ([]byte, error) {
		m, err := parseMarks(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		k, err := idOf(id)
		if err != nil {
			return nil, err
		}
		if _, ok := (*m)[k]; ok {
			return nil, nil
		}
		added = true
		return fmt.Appendf(endLine(text), "%s %s\n", id, time.Now().UTC().Format(time.RFC3339)), nil
	})
	return added && err == nil, err
}

// unmark removes the line of each of the devices that has one.
func unmark(dir, name string, ids ...tether.DeviceID) (removed int, err error) {
	gone := map[tether.DeviceID]bool{}
	for _, id := range ids {
		gone[id] = true
	}
	err = edit(dir, name, func(text []byte) ([]byte, error) {
		var out []byte
		out, removed = dropLines(text, func(f []string) bool {
			if len(f) == 0 {
				return false
			}
			id, err := tether.ParseDeviceID(f[0])
			return err == nil && gone[id]
		})
		if removed == 0 {
			return nil, nil
		}
		return out, nil
	})
	return removed, err
}

// Revoke keeps a device out from now on, whatever it can prove; added is false if it is
// revoked already.
func Revoke(dir string, id tether.DeviceID) (added bool, err error) {
	return mark(dir, RevokedFile, id)
}

// Unrevoke lets it come again.
func Unrevoke(dir string, id tether.DeviceID) error {
	n, err := unmark(dir, RevokedFile, id)
	if err == nil && n == 0 {
		err = fmt.Errorf("device %s is not revoked", id)
	}
	return err
}

// ListRevoked returns the devices that are revoked in dir, in the order of the IDs.
func ListRevoked(dir string) ([]Mark, error) { return readMarks(dir, RevokedFile) }

// Rekey asks the relay, running or when it starts, to forget the key that a device
// enrolled with. ErrListed: that key does not count.
func Rekey(dir string, id tether.DeviceID) error {
	list, err := ListDevices(dir)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(l Listed) bool { return l.ID == id }) {
		return ErrListed
	}
	_, err = mark(dir, RekeyFile, id)
	return err
}

// Rekeys returns the devices whose key is still to be forgotten.
func Rekeys(dir string) ([]Mark, error) { return readMarks(dir, RekeyFile) }

// Rekeyed removes them, once their keys are forgotten for good.
func Rekeyed(dir string, ids ...tether.DeviceID) error {
	_, err := unmark(dir, RekeyFile, ids...)
	return err
}

// short joins the first few of many for a message.
func short(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(list[:most], "; "), len(list)-most)
}
