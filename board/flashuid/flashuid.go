// Package flashuid asks a SPI NOR flash for the unique ID that its maker burnt into it
// (paper, "Device Factory Provisioning"). It works over any periph connection in SPI mode 0
// with 8 bits a word; package board/periph opens the real ones.
//
// One code byte means different things to different chips: B1h enters the one-time
// programmable area of a Macronix and writes the configuration of a Micron, 4Bh reads the
// unique ID of a Winbond and nothing at all elsewhere. So the chip is asked for its JEDEC
// ID (9Fh) first, and only a chip in the table below is sent the command of its data sheet.
// All commands used here read; none of them can change a chip.
//
//	maker            JEDEC ID               command                                UID
//	Winbond          EF 30 40 50 60 70 80   4B, 4 dummy bytes (5 in 4-byte mode)    8 bytes
//	GigaDevice       C8 40 42 60 63 64 65   4B, address 000000, 1 dummy byte       16
//	ISSI             9D 40 60 70            4B, address 000000, 1 dummy byte       16, to order
//	Micron           20 BA BB               9F, behind the ID, 2 bytes further     14, to order
//	Infineon FL-S    01 .. .. .. .. 80      4B (OTP read), address 000000, 1 dummy 16
//
// Sources. Winbond: data sheets W25Q80BV §7.2.34, W25Q80DV and W25X05CL §8.2.23 ("Read
// Unique ID Number (4Bh)": four dummy bytes, 64 bits); a chip of 256 Mbit and more tells
// its address mode in ADS, bit 0 of status register 3 (15h). Micron: N25Q 256Mb Rev. W,
// table 21: after the ID a length byte 10h, two bytes of configuration, 14 bytes of
// customized factory data. Its ancestors M25P and M25PX answer 9Fh the same way, with CFI
// data that are alike on all chips, and are therefore not in the table. Infineon:
// S25FL128S/256S §7.4 and §8.1.3: 128 random bits from the factory at OTP address 0; the
// sixth ID byte 80h is the family FL-S. ISSI: IS25LP016D, IS25LP256D ("128 bit Unique ID for
// Each Device (Call Factory)"). GigaDevice's and ISSI's commands and the fifth dummy byte of
// Winbond are those of the SPI NOR tables in hackpascal/ufprog (flash/spi-nor/vendor-*.c);
// no data sheet page of these was at hand.
//
// Not in the table, on purpose: Macronix (C2; needs B1h), EON, XMC, Puya and others (in the
// SFDP tables of some chips only), GigaDevice of 256 Mbit and more (the C version has 8
// bytes, and the address mode cannot be told), SPI NAND.
package flashuid

import (
	"bytes"
	"errors"
	"fmt"

	"periph.io/x/conn/v3"

	"github.com/cloudrest/cloudrest/board"
)

var (
	// ErrNoFlash means that nothing answers on this port: all lines stay high or low.
	ErrNoFlash = fmt.Errorf("no flash answers: %w", board.ErrAbsent)

	// ErrNoUID means that this flash has no unique ID that could be read safely.
	ErrNoUID = fmt.Errorf("this flash has no unique ID that is safe to read: %w", board.ErrAbsent)

	// ErrUnstable means that two reads differ: look at wiring and clock.
	ErrUnstable = errors.New("two reads of the flash differ")
)

// The only codes that this package sends.
const (
	readID      = 0x9F // JEDEC ID
	readUID     = 0x4B // unique ID; OTP read on Infineon FL-S
	readStatus3 = 0x15 // status register 3, Winbond of 256 Mbit and more
)

const (
	idSize  = 6    // bytes of the JEDEC ID that tell the families apart
	ads     = 0x01 // status register 3: the chip is in 4-byte address mode
	mbit256 = 0x19 // capacity code of 256 Mbit; larger ones have larger codes

	// Micron: what follows the three bytes of the ID.
	micronLength = 0x10 // first byte: length of the rest
	micronSkip   = 3    // that byte, and two of configuration, alike on all chips
	micronUID    = 14
)

// Makers by the first byte of the JEDEC ID.
const (
	infineon   = 0x01
	micron     = 0x20
	issi       = 0x9D
	macronix   = 0xC2
	gigaDevice = 0xC8
	winbond    = 0xEF
)

var makers = map[byte]string{
	infineon: "Infineon (Spansion)", micron: "Micron or XMC", issi: "ISSI", macronix: "Macronix",
	gigaDevice: "GigaDevice", winbond: "Winbond", 0x1C: "EON", 0x1F: "Adesto (Atmel)", 0xBF: "Microchip (SST)",
	0x85: "Puya", 0x0B: "XTX", 0x5E: "Zbit", 0x68: "Boya", 0xA1: "Fudan",
}

// ID is the answer to the JEDEC ID command: maker, memory type, capacity, extension.
type ID [idSize]byte

// String is such as "Winbond EF4018".
func (id ID) String() string {
	maker := makers[id[0]]
	if maker == "" {
		maker = "unknown maker"
	}
	return fmt.Sprintf("%s %X", maker, id[:3])
}

// Read returns the unique ID of the flash behind c, and its JEDEC ID if one answered.
// Errors are ErrNoFlash and ErrNoUID (both are board.ErrAbsent), ErrUnstable,
// board.ErrBlank for a chip that was sold without a unique ID, or those of c.
func Read(c conn.Conn) (uid []byte, id ID, err error) {
	b, err := tx(c, []byte{readID}, idSize)
	if err != nil {
		return nil, id, fmt.Errorf("read JEDEC ID: %w", err)
	}
	copy(id[:], b)
	if id[0] == id[1] && id[1] == id[2] && (id[0] == 0 || id[0] == 0xFF) {
		return nil, id, ErrNoFlash
	}
	command, size, err := plan(c, id)
	if err != nil {
		return nil, id, fmt.Errorf("%s: %w", id, err)
	}
	if uid, err = tx(c, command, size); err != nil {
		return nil, id, fmt.Errorf("%s: read unique ID: %w", id, err)
	}
	again, err := tx(c, command, size)
	if err != nil {
		return nil, id, fmt.Errorf("%s: read unique ID again: %w", id, err)
	}
	if !bytes.Equal(uid, again) {
		return nil, id, fmt.Errorf("%s: %w", id, ErrUnstable)
	}
	if id[0] == micron {
		if !bytes.Equal(uid[:3], id[:3]) {
			return nil, id, fmt.Errorf("%s: %w", id, ErrUnstable)
		}
		if uid[3] != micronLength {
			return nil, id, fmt.Errorf("%s: %w", id, ErrNoUID)
		}
		uid = uid[3+micronSkip:]
	}
	if err := (board.UID{Bytes: uid}).Check(); err != nil {
		return nil, id, fmt.Errorf("%s: unique ID: %w", id, err)
	}
	return uid, id, nil
}

// plan returns what to send to this chip, code and dummy bytes, and how many bytes answer.
func plan(c conn.Conn, id ID) (command []byte, size int, err error) {
	switch kind, capacity := id[1], id[2]; {
	case id[0] == winbond && in(kind, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80):
		dummy := 4
		if capacity >= mbit256 {
			status, err := tx(c, []byte{readStatus3}, 1)
			if err != nil {
				return nil, 0, fmt.Errorf("read address mode: %w", err)
			}
			if status[0]&ads != 0 {
				dummy = 5
			}
		}
		return append([]byte{readUID}, make([]byte, dummy)...), 8, nil
	case id[0] == gigaDevice && in(kind, 0x40, 0x42, 0x60, 0x63, 0x64, 0x65) && capacity < mbit256,
		id[0] == issi && in(kind, 0x40, 0x60, 0x70),
		id[0] == infineon && id[5] == 0x80 && (kind == 0x20 && capacity == 0x18 || kind == 0x02 && in(capacity, 0x19, 0x20)):
		return []byte{readUID, 0, 0, 0, 0}, 16, nil
	case id[0] == micron && in(kind, 0xBA, 0xBB):
		return []byte{readID}, 3 + micronSkip + micronUID, nil
	}
	return nil, 0, ErrNoUID
}

func in(b byte, list ...byte) bool { return bytes.IndexByte(list, b) >= 0 }

// tx sends command and returns the n bytes that follow it. Data go both ways at once on
// SPI, so that the answer lies behind as many bytes as were sent.
func tx(c conn.Conn, command []byte, n int) ([]byte, error) {
	w := make([]byte, len(command)+n)
	copy(w, command)
	r := make([]byte, len(w))
	if err := c.Tx(w, r); err != nil {
		return nil, err
	}
	return r[len(command):], nil
}
