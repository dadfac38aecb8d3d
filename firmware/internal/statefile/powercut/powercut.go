// Package powercut is a disk for tests that loses its power in the middle of the work and
// tells everything that may be found on it afterwards. It promises no more than POSIX does:
// data that were not synced may be there, cut short, or be zeros; what was done in a
// directory since its last sync may have happened or not, each act by itself.
package powercut

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
)

// ErrPower is what every operation returns once the power is gone.
var ErrPower = errors.New("power is gone")

// Disk is one directory of files, held in memory. It implements statefile.Disk; operation
// number cut, counted from 1, and all later ones fail, and that one may have had its effect.
type Disk struct {
	cut, ops int
	lasting  map[string]*file // the directory at its last sync
	now      map[string]*file
	pending  []act // done in the directory since its last sync
}

type file struct{ lasting, now []byte }

// act is one change of the directory: name from goes, name to comes. Either may be empty.
type act struct {
	from, to string
	file     *file
}

func (a act) do(dir map[string]*file) {
	if a.from != "" {
		delete(dir, a.from)
	}
	if a.to != "" {
		dir[a.to] = a.file
	}
}

// New returns a disk with these files, lasting, that loses power at operation cut.
func New(cut int, files map[string][]byte) *Disk {
	d := &Disk{cut: cut, lasting: map[string]*file{}}
	for name, content := range files {
		d.lasting[name] = &file{bytes.Clone(content), bytes.Clone(content)}
	}
	d.now = maps.Clone(d.lasting)
	return d
}

// Lost reports whether the power was lost.
func (d *Disk) Lost() bool { return d.ops >= d.cut }

// step counts an operation. It may have its effect unless the power was gone before.
func (d *Disk) step() (effect bool, err error) {
	d.ops++
	if d.ops >= d.cut {
		err = ErrPower
	}
	return d.ops <= d.cut, err
}

func (d *Disk) change(a act) error {
	effect, err := d.step()
	if effect {
		a.do(d.now)
		d.pending = append(d.pending, a)
	}
	return err
}

// Remove is of statefile.Disk.
func (d *Disk) Remove(name string) error {
	if d.now[name] == nil && d.ops+1 < d.cut {
		d.ops++
		return fs.ErrNotExist
	}
	return d.change(act{from: name})
}

// Create is of statefile.Disk.
func (d *Disk) Create(name string) (statefile.File, error) {
	if d.now[name] != nil {
		return nil, fs.ErrExist
	}
	f := &file{}
	return &open{d, f}, d.change(act{to: name, file: f})
}

// Rename is of statefile.Disk.
func (d *Disk) Rename(from, to string) error {
	return d.change(act{from, to, d.now[from]})
}

// SyncDir is of statefile.Disk.
func (d *Disk) SyncDir(string) error {
	_, err := d.step()
	if err == nil {
		d.lasting, d.pending = maps.Clone(d.now), nil
	}
	return err
}

type open struct {
	d *Disk
	f *file
}

func (o *open) Write(b []byte) (int, error) {
	effect, err := o.d.step()
	if !effect {
		return 0, err
	}
	if err != nil {
		b = b[:len(b)/2] // torn
	}
	o.f.now = append(o.f.now, b...)
	return len(b), err
}

func (o *open) Sync() error {
	_, err := o.d.step()
	if err == nil {
		o.f.lasting = bytes.Clone(o.f.now)
	}
	return err
}

func (o *open) Close() error {
	_, err := o.d.step()
	return err
}

// After returns every content of the directory that may be found when the power is back.
func (d *Disk) After() (states []map[string][]byte) {
	data := []func(f *file) []byte{
		func(f *file) []byte { return f.lasting },
		func(f *file) []byte { return f.now },
		func(f *file) []byte { return f.now[:max(len(f.now)/2, len(f.lasting))] },
		func(f *file) []byte { // the length was written, the data were not
			return append(bytes.Clone(f.lasting), make([]byte, len(f.now)-len(f.lasting))...)
		},
	}
	for happened := range 1 << len(d.pending) {
		dir := maps.Clone(d.lasting)
		for i, a := range d.pending {
			if happened&(1<<i) != 0 {
				a.do(dir)
			}
		}
		for _, content := range data {
			state := map[string][]byte{}
			for name, f := range dir {
				state[name] = content(f)
			}
			states = append(states, state)
		}
	}
	return states
}
