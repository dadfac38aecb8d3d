// Package device is what the images of all boards have in common on the device: what the
// image says about itself, whether it works, which version was the newest, and the server
// that takes updates.
package device

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// InfoFile is where the image keeps its Info.
const InfoFile = "/etc/cloudrest/image.json"

// Info is what piimage build says to the device.
type Info struct {
	Board     string        `json:"board"`
	Version   string        `json:"version"`
	Sequence  int64         `json:"sequence"` // see update.Manifest
	Hostname  string        `json:"hostname"`
	Trial     time.Duration `json:"trial"`                // how long a new version may take until it works, in nanoseconds
	UpdateKey []byte        `json:"update_key,omitempty"` // Ed25519; none: no updates over the network
	Admin     *Admin        `json:"admin,omitempty"`
	Pair      []string      `json:"pair"` // the command that prints an invitation

	// Interface and Programs are only for boards where init is ours; it loads Modules, too.
	Modules   []string  `json:"modules,omitempty"`   // of the kernel, in the order of loading
	Interface string    `json:"interface,omitempty"` // that gets an address; none: every one
	Programs  []Program `json:"programs,omitempty"`
	WiFi      *WiFi     `json:"wifi,omitempty"`
}

// WiFi is the network of a board with a radio.
type WiFi struct {
	SSID string `json:"ssid"`
	PSK  string `json:"psk,omitempty"` // passphrase of WPA2; none: an open network
}

// Admin is who may do more than offer an update.
type Admin struct {
	Password    string `json:"password"`
	Certificate string `json:"certificate"` // PEM
	Key         string `json:"key"`         // PEM
}

// Program is what init starts, and starts again when it ends.
type Program struct {
	Name string   `json:"name"`
	Args []string `json:"args"` // with the program
	Dir  string   `json:"dir"`
}

// ReadInfo reads InfoFile.
func ReadInfo(path string) (*Info, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	i := new(Info)
	if err := json.Unmarshal(text, i); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if n := len(i.UpdateKey); n != 0 && n != ed25519.PublicKeySize {
		return nil, fmt.Errorf("read %s: an update key of %d bytes, want %d", path, n, ed25519.PublicKeySize)
	}
	return i, nil
}

// Memory is the folder that outlives updates. It remembers the newest version that proved
// good, and whether the slot that does not run holds a whole version.
type Memory string

// Folder is where it is on the device.
const Folder Memory = "/perm/cloudrest-image"

const (
	sequenceFile   = "sequence"
	incompleteFile = "incomplete" // the other slot is being written
	pendingFile    = "pending"    // sequence of the version that is to prove good
	failedFile     = "failed"     // why it did not
)

// Newest returns the sequence below which no update is taken: that of the image itself if
// there was no other.
func (m Memory) Newest(own int64) (int64, error) {
	n, err := m.number(sequenceFile)
	if errors.Is(err, os.ErrNotExist) {
		return own, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the sequence of the newest version: %w", err)
	}
	return n, nil
}

func (m Memory) number(name string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(string(m), name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// Begin is for before the other slot is written.
func (m Memory) Begin() error {
	return errors.Join(m.write(incompleteFile, ""), m.remove(pendingFile, failedFile))
}

// Complete is for when the other slot holds a whole version, which is to be tried.
func (m Memory) Complete(sequence int64) error {
	if err := m.write(pendingFile, strconv.FormatInt(sequence, 10)); err != nil {
		return err
	}
	return m.remove(incompleteFile)
}

// Incomplete reports whether the other slot holds no whole version.
func (m Memory) Incomplete() bool {
	_, err := os.Stat(filepath.Join(string(m), incompleteFile))
	return err == nil
}

// Settle is for when the version that runs proved good: it is the newest one now, even
// with a smaller sequence if it came by an update, which then bore a signature for that.
func (m Memory) Settle(own int64) error {
	newest, err := m.Newest(0)
	if err != nil {
		return err
	}
	pending, err := m.number(pendingFile)
	if updated := err == nil && pending == own; updated || own > newest {
		if err := m.write(sequenceFile, strconv.FormatInt(own, 10)+"\n"); err != nil {
			return err
		}
	}
	return m.remove(pendingFile, failedFile)
}

// GiveUp is for when the version that runs is on trial and proved bad.
func (m Memory) GiveUp(why error) error { return m.write(failedFile, why.Error()) }

// Started is for a start that is no trial.
func (m Memory) Started(own int64) error {
	newest, err := m.Newest(0)
	if err != nil || newest >= own {
		return err
	}
	return m.write(sequenceFile, strconv.FormatInt(own, 10)+"\n")
}

// Failed says why the last update did not stay; empty if it did. It is for a start that is
// no trial.
func (m Memory) Failed() string {
	if _, err := os.Stat(filepath.Join(string(m), pendingFile)); err != nil {
		return ""
	}
	why, err := os.ReadFile(filepath.Join(string(m), failedFile))
	if err != nil {
		return "it did not get to a verdict: a power cut, a crash or a hang"
	}
	return string(why)
}

// write survives a power cut: the file is the old one or the new one.
func (m Memory) write(name, text string) error {
	if err := os.MkdirAll(string(m), 0o700); err != nil {
		return err
	}
	path := filepath.Join(string(m), name)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return m.sync()
}

func (m Memory) remove(names ...string) error {
	for _, n := range names {
		if err := os.Remove(filepath.Join(string(m), n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return m.sync()
}

func (m Memory) sync() error {
	d, err := os.Open(string(m))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
