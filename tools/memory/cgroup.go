package memory

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Cgroup is a memory cgroup that MakeCgroup made.
type Cgroup struct {
	// Dir is its folder; Procs, in it, takes the number of a process that is to enter.
	Dir, Procs string
	version    int
}

// ErrNoCgroup means that this machine does not let us make a memory cgroup: that needs
// root, or a part of the tree that was handed to this user (systemd's Delegate=).
var ErrNoCgroup = errors.New("no memory cgroup can be made here")

// Names that both versions of cgroups give to the same thing: the kernel's
// cgroup-v2.rst and cgroup-v1/memory.rst.
var cgroupFiles = map[int]struct{ limit, swap, events, peak string }{
	1: {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control", "memory.max_usage_in_bytes"},
	2: {"memory.max", "memory.swap.max", "memory.events", "memory.peak"},
}

// removeWait bounds how long the kernel may take to see that a cgroup is empty.
const removeWait = 10 * time.Second

// MakeCgroup makes a cgroup whose processes together may have so many bytes of memory: also
// the buffers of their connections and what they read of files counts, and none of it may
// go to swap. Anything but ErrNoCgroup is not expected.
func MakeCgroup(limit int64) (*Cgroup, error) {
	why := ErrNoCgroup
	for _, place := range cgroupPlaces() {
		c, err := makeCgroup(place.dir, place.version, limit)
		if err == nil {
			return c, nil
		}
		why = fmt.Errorf("%w; %w", why, err)
	}
	return nil, why
}

type place struct {
	dir     string
	version int
}

// cgroupPlaces are the folders where a cgroup may be made: beside ours, where systemd hands
// a part of the tree to a user, in ours, then at the root.
func cgroupPlaces() (out []place) {
	mine, _ := os.ReadFile("/proc/self/cgroup") // or there are none
	for line := range strings.Lines(string(mine)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path: cgroups(7)
		if len(f) != 3 {
			continue
		}
		at := func(root string, version int) {
			for _, dir := range []string{filepath.Dir(filepath.Clean("/" + f[2])), filepath.Clean("/" + f[2]), "/"} {
				out = append(out, place{filepath.Join(root, dir), version})
			}
		}
		switch {
		case f[1] == "":
			at("/sys/fs/cgroup", 2)
		case f[1] == "memory":
			at("/sys/fs/cgroup/memory", 1)
		}
	}
	return out
}

func makeCgroup(parent string, version int, limit int64) (*Cgroup, error) {
	if version == 2 {
		// Refused where it is on already and not ours, or where processes are in parent.
		_ = set(filepath.Join(parent, "cgroup.subtree_control"), "+memory")
	}
	dir, err := os.MkdirTemp(parent, "cloudrest-memory-")
	if err != nil {
		return nil, err
	}
	c := &Cgroup{Dir: dir, Procs: filepath.Join(dir, "cgroup.procs"), version: version}
	names := cgroupFiles[version]
	if err := set(filepath.Join(dir, names.limit), strconv.FormatInt(limit, 10)); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	// A kernel without swap, or without its accounting, has no such file.
	swap := "0"
	if version == 1 {
		swap = strconv.FormatInt(limit, 10) // memory and swap together
	}
	if err := set(filepath.Join(dir, names.swap), swap); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return c, nil
}

// set writes to a file of the kernel's, which it never makes.
func set(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Kills is how many of the cgroup's processes the kernel has killed for want of memory.
func (c *Cgroup) Kills() (int64, error) {
	text, err := os.ReadFile(filepath.Join(c.Dir, cgroupFiles[c.version].events))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if n, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			return strconv.ParseInt(string(bytes.TrimSpace(n)), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s tells no oom_kill: %q", cgroupFiles[c.version].events, text)
}

// Peak is the most that the cgroup ever held, in bytes, with what the kernel could have
// dropped; 0 where the kernel does not count it.
func (c *Cgroup) Peak() int64 {
	text, err := os.ReadFile(filepath.Join(c.Dir, cgroupFiles[c.version].peak))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n
}

// Remove removes the cgroup once its processes have gone.
func (c *Cgroup) Remove() error {
	for deadline := time.Now().Add(removeWait); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(c.Dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}
