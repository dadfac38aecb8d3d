package bootpart

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// disk is a file system in memory.
type disk struct{ b []byte }

func (d *disk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d.b).ReadAt(p, off) }
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	return copy(d.b[off:], p), nil
}

// fat writes a FAT16 file system with one file in cluster 3, after an entry of a long name.
func fat(name, content string) []byte {
	const sector, reserved, fats, entries = 512, 1, 2, 16
	b := make([]byte, sector*(reserved+fats+1+8))
	le := binary.LittleEndian
	le.PutUint16(b[11:], sector)
	b[13] = 2 // sectors per cluster
	le.PutUint16(b[14:], reserved)
	b[16] = 2
	le.PutUint16(b[17:], entries)
	le.PutUint16(b[22:], 1)
	root := b[sector*(reserved+fats):]
	root[0], root[11] = 'x', 0x0f
	e := root[entrySize:]
	copy(e, name)
	le.PutUint16(e[26:], 3)
	le.PutUint32(e[28:], uint32(len(content)))
	copy(b[sector*(reserved+fats+1)+2*sector:], content)
	return b
}

func TestTidy(t *testing.T) {
	for _, c := range []struct{ name, line, want string }{
		{"new", "root=A ro\n" + strings.Repeat(" ", 64), ""},
		{"after a trial", "root=A ro " + TriedFlag + "\n" + strings.Repeat(" ", 39), "root=A ro"},
		{"cut off", "root=A ro " + TriedFlag + " " + TrialFlag, "root=A ro"},
		{"in the middle", "root=B " + TriedFlag + " ro\n   ", "root=B ro"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &disk{fat("cmdline txt", c.line)}
			size := len(d.b)
			did, err := Tidy(d)
			if err != nil || did != (c.want != "") {
				t.Fatalf("Tidy = %v, %v, want %v", did, err, c.want != "")
			}
			got, err := ReadCmdline(d)
			if want := cmp(c.want, strings.TrimSpace(c.line)); err != nil || got != want {
				t.Errorf("the line is %q, %v, want %q", got, err, want)
			}
			offset, n, _ := File(d, Cmdline)
			if text := string(d.b[offset : offset+n]); n != int64(len(c.line)) || len(d.b) != size || !strings.Contains(text, "\n") {
				t.Errorf("file %q, want %d bytes with a newline", text, len(c.line))
			}
		})
	}
}

func cmp(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func TestFileRefuses(t *testing.T) {
	if _, _, err := File(bytes.NewReader(make([]byte, 4096)), Cmdline); !errors.Is(err, ErrNotFAT) {
		t.Errorf("zeros: %v, want %v", err, ErrNotFAT)
	}
	if _, _, err := File(bytes.NewReader(fat("OTHER   TXT", "x")), Cmdline); err == nil {
		t.Error("no cmdline.txt: want an error")
	}
	long := fat("CMDLINE TXT", strings.Repeat("x", maxCmdline))
	binary.LittleEndian.PutUint32(long[512*3+entrySize+28:], 1<<31)
	if _, err := ReadCmdline(bytes.NewReader(long)); err == nil {
		t.Error("2 GB of command line: want an error")
	}
}

func FuzzTidy(f *testing.F) {
	f.Add(fat("CMDLINE TXT", "root=A "+TriedFlag+"\n"))
	f.Add(fat("CMDLINE TXT", TriedFlag))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &disk{bytes.Clone(b)}
		if did, err := Tidy(d); err != nil || !did {
			return
		}
		line, err := ReadCmdline(d)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(" "+line+" ", " "+TriedFlag+" ") || len(d.b) != len(b) {
			t.Errorf("after Tidy: %q in %d bytes, there were %d", line, len(d.b), len(b))
		}
	})
}
