package mux

import "sync/atomic"

// Budget bounds the bytes that all sessions of a process hold for slow readers. It is a
// soft bound: above it new streams get MinWindow and windows neither grow nor stay grown.
// The zero value and nil have no bound.
type Budget struct {
	Limit int64 // bytes
	used  atomic.Int64
}

// Used is how many bytes are queued now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

func (b *Budget) add(n int) {
	if b != nil {
		b.used.Add(int64(n))
	}
}

func (b *Budget) tight() bool { return b != nil && b.Limit > 0 && b.used.Load() > b.Limit }
