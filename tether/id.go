package tether

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// DeviceID names a device for its whole life: 64 lower-case hex digits, the SHA-256
// of its hardware UID (paper, "Device Factory Provisioning"). It is a name, not a
// secret; knowing it proves nothing.
type DeviceID string

// ErrDeviceID means that a text is neither form of a device ID.
var ErrDeviceID = errors.New("not a device ID: want 64 lower-case hex digits, or the 52-character host label")

// labelEncoding is RFC 4648 base32 without padding, written in lower case.
var labelEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

const (
	idLength    = 2 * sha256.Size             // hex digits
	labelLength = (sha256.Size*8 + 5 - 1) / 5 // base32 digits: 52
)

// NewDeviceID derives the ID from a hardware UID.
func NewDeviceID(uid []byte) DeviceID {
	sum := sha256.Sum256(uid)
	return DeviceID(hex.EncodeToString(sum[:]))
}

// ParseDeviceID accepts the hex form in lower case, or the host label in any case,
// and returns the hex form. Anything else is ErrDeviceID.
func ParseDeviceID(s string) (DeviceID, error) {
	switch len(s) {
	case idLength:
		for i := range len(s) {
			if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return "", ErrDeviceID
			}
		}
		return DeviceID(s), nil
	case labelLength:
		sum, err := labelEncoding.DecodeString(strings.ToUpper(s))
		// 52 digits carry 260 bits: the 4 spare ones must be zero, or one ID had many names.
		if err != nil || len(sum) != sha256.Size || labelEncoding.EncodeToString(sum) != strings.ToUpper(s) {
			return "", ErrDeviceID
		}
		return DeviceID(hex.EncodeToString(sum)), nil
	}
	return "", ErrDeviceID
}

// Label is the ID as a host name label: 52 lower-case base32 digits. The hex form is
// 64 characters long and a DNS label holds at most 63 (RFC 1035 §2.3.4).
// A DeviceID that was not parsed gives "".
func (id DeviceID) Label() string {
	sum, err := hex.DecodeString(string(id))
	if err != nil || len(sum) != sha256.Size {
		return ""
	}
	return strings.ToLower(labelEncoding.EncodeToString(sum))
}

// Short is the first eight digits, for host names and human eyes; it is not unique.
func (id DeviceID) Short() string { return string(id[:min(8, len(id))]) }

// EventID names one notification for ever: the random epoch of the daemon start that
// took it, and its number in that epoch, from 1. The zero value means "none".
type EventID struct {
	Epoch uint64
	Seq   uint64
}

// ErrEventID means that a text is not an event id.
var ErrEventID = errors.New("not an event id: want 16 lower-case hex digits, a hyphen and a number from 1")

// IsZero reports whether e names no event.
func (e EventID) IsZero() bool { return e == EventID{} }

// String is the form used in SSE id fields: "<epoch, 16 hex digits>-<seq>".
func (e EventID) String() string { return fmt.Sprintf("%016x-%d", e.Epoch, e.Seq) }

// ParseEventID reads what String wrote, and nothing else.
func ParseEventID(s string) (EventID, error) {
	const hexDigits = 16
	if len(s) < hexDigits+2 || len(s) > hexDigits+1+20 || s[hexDigits] != '-' {
		return EventID{}, ErrEventID
	}
	epoch, err := strconv.ParseUint(s[:hexDigits], 16, 64)
	if err != nil {
		return EventID{}, ErrEventID
	}
	seq, err := strconv.ParseUint(s[hexDigits+1:], 10, 64)
	e := EventID{epoch, seq}
	if err != nil || epoch == 0 || seq == 0 || e.String() != s {
		return EventID{}, ErrEventID
	}
	return e, nil
}
