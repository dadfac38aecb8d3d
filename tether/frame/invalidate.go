package frame

import (
	"encoding/binary"
	"fmt"
)

// FlagAll in an INVALIDATE means whatever is stored of the device.
const FlagAll uint8 = 1

// Invalidate says what a write on the device made stale (SPEC.md §4.12). With neither FlagAll
// nor URIs it only says how far the count has come.
type Invalidate struct {
	Epoch uint64 // of the count, not 0: drawn at each start of the device's daemon
	Seq   uint64 // how many writes, this one included
	Flags uint8
	URIs  []string
}

// Invalidated says that this invalidation, and all before it, hold (SPEC.md §4.12).
type Invalidated struct{ Epoch, Seq uint64 }

// AppendInvalidate appends v. It fails when it is over MaxTargets, or holds what
// ParseInvalidate would refuse: then send FlagAll.
func AppendInvalidate(dst []byte, v *Invalidate) ([]byte, error) {
	start := len(dst)
	b := binary.BigEndian.AppendUint64(begin(dst, TypeInvalidate, 0), v.Epoch)
	b = binary.BigEndian.AppendUint64(b, v.Seq)
	b = binary.BigEndian.AppendUint16(append(b, v.Flags), uint16(len(v.URIs)))
	for _, u := range v.URIs {
		if len(b)-start-HeaderSize+2+len(u) > MaxTargets {
			return dst, fmt.Errorf("%w: INVALIDATE over %d bytes", ErrMalformed, MaxTargets)
		}
		if !isTarget(u) {
			return dst, fmt.Errorf("%w: INVALIDATE of %.40q, which is no path", ErrMalformed, u)
		}
		b = appendStr16(b, u)
	}
	return finish(b, start), nil
}

// ParseInvalidate reads the body of an INVALIDATE.
func ParseInvalidate(body []byte) (Invalidate, error) {
	c := cursor{b: body}
	v := Invalidate{Epoch: c.u64(), Seq: c.u64(), Flags: c.u8()}
	for n := c.u16(); n > 0 && !c.bad; n-- {
		u := c.str16()
		if !c.bad && !isTarget(u) {
			return Invalidate{}, fmt.Errorf("%w: INVALIDATE of %.40q, which is no path", ErrMalformed, u)
		}
		v.URIs = append(v.URIs, u)
	}
	if err := c.end(); err != nil {
		return Invalidate{}, err
	}
	return v, nil
}

// All reports whether everything is meant.
func (v *Invalidate) All() bool { return v.Flags&FlagAll != 0 }

func isTarget(u string) bool { return u != "" && u[0] == '/' && isVisible(u) }

// AppendInvalidated appends v.
func AppendInvalidated(dst []byte, v Invalidated) []byte {
	start := len(dst)
	b := binary.BigEndian.AppendUint64(begin(dst, TypeInvalidated, 0), v.Epoch)
	return finish(binary.BigEndian.AppendUint64(b, v.Seq), start)
}

// ParseInvalidated reads the body of an INVALIDATED.
func ParseInvalidated(body []byte) (Invalidated, error) {
	c := cursor{b: body}
	v := Invalidated{c.u64(), c.u64()}
	return v, c.end()
}
