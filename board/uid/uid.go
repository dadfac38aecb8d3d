// Package uid finds the UID of the board: it tries the sources that the board's maker put
// into an order and takes the first that has one. Each try leaves one log line that says why
// the source was taken or passed over; the UID itself is in none of them.
//
// The sources, as words of an order. DefaultOrder has those marked with *, in this order.
//
//	word                   what it reads                                         strength
//	machine_udid[=PATH] *  the flash's UID from a kernel that has the paper's    hardware
//	                       patch; default /sys/class/spi_master/spi0/spi0.0/machine_udid
//	device-tree *          /proc/device-tree/serial-number                       hardware on a
//	                       Raspberry Pi (OTP), else board (boot loader's memory)
//	nvmem[=PATH] *         a factory-otp area (hardware) or a unique-id,         board
//	                       serial-number or chip-id cell under /sys/bus/nvmem/devices
//	mtd-otp[=/dev/mtdN] *  factory OTP of a flash through its MTD device         hardware
//	emmc[=mmcN:MMMM] *     CID of a soldered eMMC; an SD card is refused,        hardware
//	                       because people move it from board to board
//	mac[=INTERFACE] *      lowest permanent, globally unique MAC address of the  board
//	                       board's own network interfaces (not USB)
//	random *               128 random bits; kept in the identity file only       software
//	spi=BUS.CS             the unique ID of a SPI flash (package flashuid); the  hardware
//	                       port must be named, chips are never searched for
//	file=PATH              a file that the maker puts on each board              software
//	machine-id             /etc/machine-id; not in the default order, because    software
//	                       whole series of boards boot from one image with one
//	                       machine ID
//
// Text that is hex digits (upper or lower case, with ':' '-' or spaces between bytes, with or
// without 0x) stands for those bytes, so that a flash has the same device ID whether the
// kernel's file or the SPI port tells its UID. Other text counts as it is, without spaces
// and NULs at its ends. Content longer than board.MaxUID counts by its SHA-256. A MAC address
// and a machine ID are in use elsewhere: machine-id(5) asks not to show the ID itself to
// others, and six bytes are quickly tried out. Their UID is the HMAC-SHA256, with the
// source's value as key, of "cloudrest-uid-mac-1" or "cloudrest-uid-machine-id-1".
//
// A UID must pass board.UID.Check: blank and patterned ones are passed over.
package uid

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/cloudrest/cloudrest/board"
)

const randomSize = 16 // bytes: 128 bits

// DefaultOrder is what Parse takes for an empty order. A program that runs several times on
// one machine (a test bench, containers) must not use it: all would have the same ID.
var DefaultOrder = []string{"machine_udid", "device-tree", "nvmem", "mtd-otp", "emmc", "mac", board.Random}

// ErrAbsent means that the board has no such thing; another source may do.
var ErrAbsent = board.ErrAbsent

// ErrNone means that no source of the order gave a UID. With "random" at the end it cannot
// happen.
var ErrNone = errors.New("no source gave a UID")

// Source reads the UID from one place.
type Source interface {
	// Name is the word of the order, such as "spi=0.0". It is stored with the identity.
	Name() string
	// Read returns the UID; it has passed no check yet. The error wraps ErrAbsent when
	// the board simply has none, and never contains a UID.
	Read(ctx context.Context) (board.UID, error)
}

// Env is where the sources look. The zero value is the running machine, without SPI.
type Env struct {
	// Root stands for "/" in all paths; empty: "/".
	Root string
	// Flash reads the unique ID of the flash on a SPI port; periph.FlashUID fits. Nil:
	// Parse refuses "spi".
	Flash func(ctx context.Context, port string) ([]byte, error)
}

// Parse is Env{}.Parse.
func Parse(order []string) ([]Source, error) { return Env{}.Parse(order) }

// Parse makes sources from the words of an order; the package comment has the list. It
// reports every mistake at once.
func (e Env) Parse(order []string) ([]Source, error) {
	if len(order) == 0 {
		order = DefaultOrder
	}
	var sources []Source
	var errs []error
	for i, word := range order {
		kind, arg, given := strings.Cut(word, "=")
		read, err := e.reader(kind, arg)
		switch {
		case err != nil:
		case given && arg == "":
			err = errors.New("nothing behind =")
		case kind == board.Random && i != len(order)-1:
			err = errors.New("must come last: nothing behind it is ever tried")
		default:
			sources = append(sources, &source{word, read})
			continue
		}
		errs = append(errs, fmt.Errorf("UID source %q: %w", word, err))
	}
	return sources, errors.Join(errs...)
}

type readFunc func(ctx context.Context) ([]byte, board.Strength, error)

type source struct {
	word string
	read readFunc
}

func (s *source) Name() string { return s.word }

func (s *source) Read(ctx context.Context) (board.UID, error) {
	b, strength, err := s.read(ctx)
	if err != nil {
		return board.UID{}, err
	}
	return board.UID{Bytes: b, Source: s.word, Strength: strength}, nil
}

func (e Env) reader(kind, arg string) (readFunc, error) {
	plain := func(read func() ([]byte, board.Strength, error)) (readFunc, error) {
		return func(context.Context) ([]byte, board.Strength, error) { return read() }, nil
	}
	switch kind {
	case "machine_udid":
		return plain(func() ([]byte, board.Strength, error) { return e.udid(arg) })
	case "nvmem":
		return plain(func() ([]byte, board.Strength, error) { return e.nvmem(arg) })
	case "mtd-otp":
		return plain(func() ([]byte, board.Strength, error) { return e.mtdOTP(arg) })
	case "emmc":
		return plain(func() ([]byte, board.Strength, error) { return e.emmc(arg) })
	case "mac":
		return plain(func() ([]byte, board.Strength, error) { return e.mac(arg) })
	case "spi":
		if e.Flash == nil {
			return nil, errors.New("this program has no SPI driver")
		}
		if arg == "" {
			return nil, errors.New("want a port, such as spi=0.0")
		}
		return func(ctx context.Context) ([]byte, board.Strength, error) {
			b, err := e.Flash(ctx, arg)
			return b, board.Hardware, err
		}, nil
	case "file":
		if arg == "" {
			return nil, errors.New("want a path, such as file=/etc/uid")
		}
		return plain(func() ([]byte, board.Strength, error) { return e.file(arg) })
	}
	if arg != "" {
		return nil, errors.New("takes no argument, or is not known")
	}
	switch kind {
	case "device-tree":
		return plain(e.deviceTree)
	case "machine-id":
		return plain(e.machineID)
	case board.Random:
		return plain(func() ([]byte, board.Strength, error) {
			b := make([]byte, randomSize)
			_, err := rand.Read(b)
			return b, board.Software, err
		})
	}
	return nil, errors.New("not known; there are machine_udid, device-tree, nvmem, mtd-otp, emmc, mac, random, spi=BUS.CS, file=PATH, machine-id")
}

// Reader tries sources in their order.
type Reader struct {
	sources []Source
	log     *slog.Logger
}

// New returns a Reader; log may be nil.
func New(sources []Source, log *slog.Logger) *Reader {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Reader{sources, log}
}

// First returns the UID of the first source that has a good one, or ErrNone.
func (r *Reader) First(ctx context.Context) (board.UID, error) {
	for _, s := range r.sources {
		u, err := read(ctx, s)
		if err := ctx.Err(); err != nil {
			return board.UID{}, fmt.Errorf("find the UID: %w", context.Cause(ctx))
		}
		if err != nil {
			r.log.Info("uid source passed over", "source", s.Name(), "err", err)
			continue
		}
		r.log.Info("uid source taken", "source", s.Name(), "bytes", len(u.Bytes), "strength", u.Strength.String())
		return u, nil
	}
	return board.UID{}, ErrNone
}

// Again reads the UID from the source that First named in UID.Source, to see whether this is
// still the same board. ErrAbsent when the source is no longer in the order, and for random.
func (r *Reader) Again(ctx context.Context, name string) (board.UID, error) {
	if name == board.Random {
		return board.UID{}, fmt.Errorf("a random UID has no place on the board to read it again: %w", ErrAbsent)
	}
	for _, s := range r.sources {
		if s.Name() == name {
			return read(ctx, s)
		}
	}
	return board.UID{}, fmt.Errorf("source %s is not among the configured ones: %w", name, ErrAbsent)
}

func read(ctx context.Context, s Source) (board.UID, error) {
	u, err := s.Read(ctx)
	if err != nil {
		return board.UID{}, err
	}
	if err := u.Check(); err != nil {
		return board.UID{}, err
	}
	u.Source = s.Name()
	return u, nil
}

// parseText turns the text of a file into a UID, as the package comment says. It returns
// nothing for empty text.
func parseText(b []byte) []byte {
	b = bytes.Trim(b, "\x00 \t\r\n")
	digits := bytes.Map(func(r rune) rune {
		if strings.ContainsRune(": -", r) {
			return -1
		}
		return r
	}, bytes.TrimPrefix(b, []byte("0x")))
	if raw, err := hex.DecodeString(string(digits)); err == nil && len(raw) >= board.MinUID {
		b = raw
	}
	return condense(b)
}

// condense makes a UID out of long content.
func condense(b []byte) []byte {
	if len(b) <= board.MaxUID {
		return b
	}
	if bytes.Count(b, b[:1]) == len(b) {
		return b[:board.MaxUID] // blank stays blank
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// separate makes a UID from a value that has other uses.
func separate(label string, value []byte) []byte {
	mac := hmac.New(sha256.New, value)
	mac.Write([]byte(label))
	return mac.Sum(nil)
}
