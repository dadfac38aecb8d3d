package zerodisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// card is a boot partition in memory.
type card struct {
	b      []byte
	writes int
}

func (c *card) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(c.b).ReadAt(p, off) }
func (c *card) WriteAt(p []byte, off int64) (int, error) {
	c.writes++
	return copy(c.b[off:], p), nil
}

const room = 4096 // bytes of each file here

// newCard is FAT16 with config.txt and both slots, each file in clusters of 512 bytes.
func newCard() *card {
	const sector, fats, entries = 512, 1, 16
	c := &card{b: make([]byte, sector*(2+fats)+8*sector+6*room)}
	le := binary.LittleEndian
	le.PutUint16(c.b[11:], sector)
	c.b[13] = 1
	le.PutUint16(c.b[14:], 1)
	c.b[16] = 1
	le.PutUint16(c.b[17:], entries)
	le.PutUint16(c.b[22:], fats)
	at := 2
	folder := c.b[sector*(1+fats):]
	add := func(name string, size int) {
		base, ext, _ := strings.Cut(name, ".")
		copy(folder, fmt.Sprintf("%-8s%-3s", base, ext))
		le.PutUint16(folder[26:], uint16(at))
		le.PutUint32(folder[28:], uint32(size))
		folder = folder[32:]
		at += size / sector
	}
	add(ConfigFile, ConfigSize)
	for _, s := range []Slot{'a', 'b'} {
		add(s.File(Kernel), room)
		add(s.File(Initrd), room)
	}
	return c
}

func TestBoot(t *testing.T) {
	c := newCard()
	for _, s := range []Slot{'a', 'b'} {
		for _, trial := range []bool{false, true} {
			c.writes = 0
			if err := Boot(c, s, trial); err != nil {
				t.Fatal(err)
			}
			if c.writes != 1 {
				t.Errorf("%d writes, want 1: a power cut between two leaves half a choice", c.writes)
			}
			kernel, initrd, cmdline, err := Booted(c)
			want := [3]string{s.File(Kernel), s.File(Initrd), s.CmdlineFile(trial)}
			if got := [3]string{kernel, initrd, cmdline}; err != nil || got != want {
				t.Errorf("slot %c, trial %v: %v, %v, want %v", s, trial, got, err, want)
			}
			if has := strings.Contains(s.Cmdline(trial), TrialFlag); has != trial || !strings.Contains(s.Cmdline(trial), SlotFlag+string(rune(s))) {
				t.Errorf("slot %c, trial %v: command line %q", s, trial, s.Cmdline(trial))
			}
		}
	}
	if got, want := Slot('a').Other(), Slot('b'); got != want || want.Other() != 'a' {
		t.Errorf("the other of a is %c, and of that %c", got, got.Other())
	}
}

func TestConfig(t *testing.T) {
	for _, s := range []Slot{'a', 'b'} {
		b := Config(s, true)
		if len(b) != ConfigSize {
			t.Errorf("%d bytes, want %d", len(b), ConfigSize)
		}
		for line := range strings.Lines(string(b)) {
			if len(line) > 80 { // the firmware's limit is 98
				t.Errorf("line %q is too long", line)
			}
		}
	}
}

func TestPut(t *testing.T) {
	c := newCard()
	before := bytes.Clone(c.b)
	long := strings.Repeat("K", 3000)
	for _, content := range []string{long, "short"} {
		if err := Put(c, 'b', Kernel, int64(len(content)), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		offset, size, err := Section(c, 'b', Kernel)
		if err != nil || size != room {
			t.Fatalf("%d bytes, %v, want %d", size, err, room)
		}
		want := append([]byte(content), make([]byte, room-len(content))...)
		if got := c.b[offset : offset+size]; !bytes.Equal(got, want) {
			t.Errorf("the slot does not hold the part and zeros: %q", got[:10])
		}
		copy(c.b[offset:offset+size], before[offset:])
		if !bytes.Equal(c.b, before) {
			t.Error("something else was written, too")
		}
	}
	if err := Put(c, 'a', Initrd, room+1, strings.NewReader(strings.Repeat("x", room+1))); err == nil || !bytes.Equal(c.b, before) {
		t.Errorf("more than there is room for: %v", err)
	}
	if err := Put(c, 'a', Initrd, 100, strings.NewReader("cut off")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("less than it says: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

func FuzzBooted(f *testing.F) {
	c := newCard()
	Boot(c, 'b', true)
	f.Add(c.b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if kernel, initrd, cmdline, err := Booted(bytes.NewReader(b)); err == nil && (kernel == "" || initrd == "" || cmdline == "") {
			t.Errorf("%q, %q, %q without an error", kernel, initrd, cmdline)
		}
	})
}
