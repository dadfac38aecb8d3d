package proxy

import (
	"crypto/rand"
	"sync"
)

// ids makes request ids: random UUIDs (RFC 9562 §5.4), the entropy drawn for many at
// once, since the system's generator costs more per call than per byte.
type ids struct {
	mu   sync.Mutex // guards all below
	pool [uuidBytes * 32]byte
	left int
}

const (
	uuidBytes = 16
	uuidText  = 36
)

func (g *ids) next() string {
	var u [uuidBytes]byte
	g.mu.Lock()
	if g.left == 0 {
		_, _ = rand.Read(g.pool[:]) // never fails (crypto/rand)
		g.left = len(g.pool)
	}
	part := g.pool[g.left-uuidBytes : g.left]
	copy(u[:], part)
	clear(part)
	g.left -= uuidBytes
	g.mu.Unlock()
	u[6] = u[6]&0x0f | 0x40 // version 4
	u[8] = u[8]&0x3f | 0x80 // variant
	const hex = "0123456789abcdef"
	var text [uuidText]byte
	at := 0
	for i, b := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		text[at], text[at+1] = hex[b>>4], hex[b&15]
		at += 2
	}
	return string(text[:])
}

// isUUID reports whether s has the text form of a UUID (RFC 9562 §4).
func isUUID(s string) bool {
	if len(s) != uuidText {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
