// Package board holds the few words that CloudREST needs of the hardware it runs on: the
// UID that names a device for its whole life, a button and an LED. It talks to no hardware
// and starts no goroutine. Package board/uid finds the UID, board/flashuid asks a flash
// chip for it, board/periph opens the real ports, and makers may bring their own.
package board

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Bounds of a UID in bytes. The shortest is the 64-bit unique ID of a Winbond flash.
const (
	MinUID = 8
	MaxUID = 64
)

// Random is the Source of a UID that software made up: it is nowhere on the board, so that
// it cannot be read a second time.
const Random = "random"

// longestPattern is how many bytes may repeat to fill a UID before it counts as a pattern
// and not as a name: 8 bytes and more may be a short UID that a chip sends twice.
const longestPattern = 4

var (
	// ErrAbsent means that the board has no such thing, or this program cannot reach
	// it; another source of the UID may do.
	ErrAbsent = errors.New("not on this board")

	// ErrBlank means that what was read has the form of a UID but names no device: all
	// bytes are alike, repeat or count up, as unprogrammed chips and placeholders do.
	// Many devices would get the same ID.
	ErrBlank = errors.New("blank or a pattern, not unique")
)

// Strength says what holds a UID in its place: the stronger, the more work it is to move
// it to another board. No strength makes a UID a secret or a proof of anything.
type Strength uint8

// The strengths, weakest first. The zero value means that it was not recorded.
const (
	Software Strength = iota + 1 // in a file that can be copied, or made up
	Board                        // set for the board by its maker, in memory that can be rewritten
	Hardware                     // burnt into a chip by the chip's maker
)

var strengths = [...]string{Software: "software", Board: "board", Hardware: "hardware"}

// String is "software", "board", "hardware", or "unknown".
func (s Strength) String() string {
	if s == 0 || int(s) >= len(strengths) {
		return "unknown"
	}
	return strengths[s]
}

// ParseStrength is the inverse of String; anything else is the zero Strength.
func ParseStrength(s string) Strength {
	for i, name := range strengths {
		if name == s && i > 0 {
			return Strength(i)
		}
	}
	return 0
}

// UID is what no other device has. The device ID is the SHA-256 of Bytes. It is no secret,
// but people print it on labels and it never changes: its bytes do not go into logs, and
// every way of printing a UID leaves them out.
type UID struct {
	Bytes    []byte // MinUID to MaxUID
	Source   string // word that finds it again, such as "spi=0.0" or "machine_udid"
	Strength Strength
}

// Check refuses a UID of a wrong length, and with ErrBlank one that names no device.
func (u UID) Check() error {
	if len(u.Bytes) < MinUID || len(u.Bytes) > MaxUID {
		return fmt.Errorf("UID of %d bytes, want %d to %d", len(u.Bytes), MinUID, MaxUID)
	}
	if pattern(u.Bytes) {
		return ErrBlank
	}
	// Text that stands for bytes is blank when the bytes are: "0123456789ABCDEF".
	if b, err := hex.DecodeString(strings.TrimPrefix(string(u.Bytes), "0x")); err == nil && pattern(b) {
		return ErrBlank
	}
	return nil
}

// pattern reports whether b repeats at most longestPattern bytes, or counts in equal steps.
func pattern(b []byte) bool {
	for n := 1; n <= longestPattern && n < len(b); n++ {
		if bytes.Equal(b[n:], b[:len(b)-n]) {
			return true
		}
	}
	for i := 2; i < len(b); i++ {
		if b[i]-b[i-1] != b[1]-b[0] {
			return false
		}
	}
	return true
}

// String tells length, source and strength, not the bytes.
func (u UID) String() string {
	return fmt.Sprintf("%d bytes from %s (%s)", len(u.Bytes), u.Source, u.Strength)
}

// GoString is String, for %#v.
func (u UID) GoString() string { return u.String() }

// LogValue is String, for handlers that would look inside.
func (u UID) LogValue() slog.Value { return slog.StringValue(u.String()) }
