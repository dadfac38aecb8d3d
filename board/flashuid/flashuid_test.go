package flashuid

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"periph.io/x/conn/v3"
	"periph.io/x/conn/v3/conntest"
	"periph.io/x/conn/v3/physic"
	"periph.io/x/conn/v3/spi"
	"periph.io/x/conn/v3/spi/spitest"

	"github.com/cloudrest/cloudrest/board"
)

// talk is one transaction: what goes out, then what comes back behind it.
func talk(out []byte, in ...byte) conntest.IO {
	return conntest.IO{
		W: append(bytes.Clone(out), make([]byte, len(in))...),
		R: append(make([]byte, len(out)), in...),
	}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var (
	uid8  = []byte{0xD1, 0x62, 0x3C, 0x94, 0x0F, 0x2A, 0x51, 0x2D}
	uid14 = []byte{0x23, 0x10, 0x51, 0x10, 0x00, 0x25, 0x00, 0x33, 0x11, 0x10, 0x08, 0x16, 0x7A, 0x43}
	uid16 = []byte{0x47, 0x44, 0x30, 0xC3, 0x07, 0x11, 0x28, 0x39, 0x00, 0x10, 0x52, 0x0E, 0x83, 0x0B, 0x74, 0xA1}

	jedec   = []byte{0x9F}
	cmd4    = []byte{0x4B, 0, 0, 0, 0}
	cmd5    = []byte{0x4B, 0, 0, 0, 0, 0}
	status3 = []byte{0x15}
	n25q    = join([]byte{0x20, 0xBA, 0x18, 0x10, 0x00, 0x00}, uid14)
)

func TestFamilies(t *testing.T) {
	both := func(io conntest.IO) []conntest.IO { return []conntest.IO{io, io} }
	first := func(id ...byte) conntest.IO { return talk(jedec, append(id, make([]byte, idSize-len(id))...)...) }
	with := func(first conntest.IO, more ...conntest.IO) []conntest.IO {
		return append([]conntest.IO{first}, more...)
	}
	cases := []struct {
		name string
		ops  []conntest.IO
		uid  []byte
		err  error
	}{
		{"Winbond W25Q128JV", with(first(0xEF, 0x40, 0x18), both(talk(cmd4, uid8...))...), uid8, nil},
		{"Winbond W25X20CL", with(first(0xEF, 0x30, 0x12), both(talk(cmd4, uid8...))...), uid8, nil},
		{"Winbond W25Q256JV, 3-byte mode", with(first(0xEF, 0x40, 0x19), talk(status3, 0x60), talk(cmd4, uid8...), talk(cmd4, uid8...)), uid8, nil},
		{"Winbond W25Q256JV, 4-byte mode", with(first(0xEF, 0x40, 0x19), talk(status3, 0x61), talk(cmd5, uid8...), talk(cmd5, uid8...)), uid8, nil},
		{"Winbond W25Q512JV, 4-byte mode", with(first(0xEF, 0x40, 0x20), talk(status3, 0x01), talk(cmd5, uid8...), talk(cmd5, uid8...)), uid8, nil},
		{"GigaDevice GD25Q64C", with(first(0xC8, 0x40, 0x17), both(talk(cmd4, uid16...))...), uid16, nil},
		{"ISSI IS25LP128", with(first(0x9D, 0x60, 0x18), both(talk(cmd4, uid16...))...), uid16, nil},
		{"Micron N25Q128", with(talk(jedec, n25q[:6]...), both(talk(jedec, n25q...))...), uid14, nil},
		{"Infineon S25FL128S", with(first(0x01, 0x20, 0x18, 0x4D, 0x01, 0x80), both(talk(cmd4, uid16...))...), uid16, nil},

		{"no flash, line high", with(talk(jedec, bytes.Repeat([]byte{0xFF}, 6)...)), nil, ErrNoFlash},
		{"no flash, line low", with(first()), nil, ErrNoFlash},
		{"Macronix MX25L128", with(first(0xC2, 0x20, 0x18)), nil, ErrNoUID},
		{"EON EN25Q64", with(first(0x1C, 0x30, 0x17)), nil, ErrNoUID},
		{"XMC XM25QH128", with(first(0x20, 0x70, 0x18)), nil, ErrNoUID},
		{"Micron M25P80: CFI data, not a UID", with(first(0x20, 0x20, 0x14, 0x10)), nil, ErrNoUID},
		{"Infineon S25FL129P", with(first(0x01, 0x20, 0x18, 0x4D, 0x01)), nil, ErrNoUID},
		{"Infineon S25FS128S", with(first(0x01, 0x20, 0x18, 0x4D, 0x00, 0x81)), nil, ErrNoUID},
		{"GigaDevice GD25Q256", with(first(0xC8, 0x40, 0x19)), nil, ErrNoUID},
		{"Winbond W25N SPI NAND", with(first(0xEF, 0xAA, 0x21)), nil, ErrNoUID},
		{"unknown", with(first(0x42, 0x40, 0x18)), nil, ErrNoUID},

		{"Winbond blank", with(first(0xEF, 0x40, 0x18), both(talk(cmd4, bytes.Repeat([]byte{0xFF}, 8)...))...), nil, board.ErrBlank},
		{"ISSI without the option", with(first(0x9D, 0x60, 0x18), both(talk(cmd4, make([]byte, 16)...))...), nil, board.ErrBlank},
		{"Micron without the option", with(talk(jedec, n25q[:6]...), both(talk(jedec, join(n25q[:6], make([]byte, 14))...))...), nil, board.ErrBlank},
		{"Micron, no length byte", with(talk(jedec, n25q[:6]...), both(talk(jedec, join(n25q[:3], make([]byte, 17))...))...), nil, ErrNoUID},
		{"two reads differ", with(first(0xEF, 0x40, 0x18), talk(cmd4, uid8...), talk(cmd4, append(uid8[:7:7], 0)...)), nil, ErrUnstable},
		{"Micron changes its ID", with(talk(jedec, n25q[:6]...), both(talk(jedec, join([]byte{0}, n25q[1:])...))...), nil, ErrUnstable},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			// A missing, an extra or a different transaction fails.
			port := &spitest.Playback{Playback: conntest.Playback{Ops: c.ops, D: conn.Full, DontPanic: true}}
			bus, err := port.Connect(physic.MegaHertz, spi.Mode0, 8)
			if err != nil {
				t.Fatal(err)
			}
			uid, id, err := Read(bus)
			if !bytes.Equal(uid, c.uid) || !errors.Is(err, c.err) {
				t.Errorf("Read = %x, %s, %v, want %x, %v", uid, id, err, c.uid, c.err)
			}
			if err != nil && strings.Contains(err.Error(), "conntest") {
				t.Errorf("the conversation went wrong: %v", err)
			}
			if err := port.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBusErrors(t *testing.T) {
	for n := range 4 {
		ops := []conntest.IO{talk(jedec, 0xEF, 0x40, 0x19, 0, 0, 0), talk(status3, 0), talk(cmd4, uid8...), talk(cmd4, uid8...)}
		port := &conntest.Playback{Ops: ops[:n], DontPanic: true} // the next one fails
		if _, _, err := Read(port); err == nil {
			t.Errorf("transaction %d fails: no error", n+1)
		}
		if err := port.Close(); err != nil {
			t.Error(err)
		}
	}
}

// chip answers every command with the same ID and notes the codes it was sent.
type chip struct {
	id    []byte
	codes []byte
	sent  [][]byte
}

func (c *chip) String() string      { return "chip" }
func (c *chip) Duplex() conn.Duplex { return conn.Full }
func (c *chip) Tx(w, r []byte) error { // id also answers 4Bh and 15h: it is no blank
	c.codes = append(c.codes, w[0])
	c.sent = append(c.sent, bytes.Clone(w))
	for i := range r[1:] {
		r[1+i] = byte(i*i*7) ^ 0x5A
	}
	if w[0] == readID {
		copy(r[1:], c.id)
	}
	return nil
}

// Whatever a chip says it is, it gets no command that its maker did not give that meaning.
func TestNoForeignCommand(t *testing.T) {
	for maker := range 256 {
		for kind := range 256 {
			for _, capacity := range []byte{0x18, 0x19} {
				for _, family := range []byte{0, 0x80} {
					c := &chip{id: []byte{byte(maker), byte(kind), capacity, 0x10, 0, family}}
					Read(c)
					for i, code := range c.codes {
						ok := code == 0x9F ||
							code == 0x4B && (maker == 0xEF || maker == 0xC8 || maker == 0x9D || maker == 0x01 && family == 0x80) ||
							code == 0x15 && maker == 0xEF && capacity >= 0x19
						if !ok {
							t.Fatalf("sent %02X to % X", code, c.id)
						}
						if bytes.Count(c.sent[i][1:], []byte{0}) != len(c.sent[i])-1 {
							t.Fatalf("sent % X to % X, want zeros behind the code", c.sent[i], c.id)
						}
					}
				}
			}
		}
	}
}

// garbage is a chip that answers with the fuzzer's bytes.
type garbage struct {
	b     []byte
	codes []byte
}

func (g *garbage) String() string      { return "garbage" }
func (g *garbage) Duplex() conn.Duplex { return conn.Full }
func (g *garbage) Tx(w, r []byte) error {
	g.codes = append(g.codes, w[0])
	if len(g.b) < len(r)-1 {
		return errors.New("bus error")
	}
	g.b = g.b[copy(r[1:], g.b):]
	return nil
}

func FuzzRead(f *testing.F) {
	f.Add(join([]byte{0xEF, 0x40, 0x18, 0, 0, 0}, make([]byte, 4), uid8, make([]byte, 4), uid8))
	f.Add(join([]byte{0xEF, 0x40, 0x19, 0, 0, 0}, []byte{1}, make([]byte, 5), uid8, make([]byte, 5), uid8))
	f.Add(join([]byte{0xC8, 0x40, 0x17, 0, 0, 0}, make([]byte, 4), uid16, make([]byte, 4), uid16))
	f.Add(join(n25q[:6], n25q, n25q))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &garbage{b: b}
		uid, id, err := Read(g)
		if (err == nil) != (uid != nil) {
			t.Fatalf("Read = %x, %v", uid, err)
		}
		if err == nil && (board.UID{Bytes: uid}).Check() != nil {
			t.Errorf("took % X from %s", uid, id)
		}
		if len(g.codes) > 4 {
			t.Errorf("sent % X, want at most 4 commands", g.codes)
		}
		for _, code := range g.codes {
			if code != readID && code != readUID && code != readStatus3 {
				t.Errorf("sent % X", g.codes)
			}
		}
	})
}
