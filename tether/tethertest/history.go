package tethertest

import (
	"slices"
	"time"
)

// Op is one finished request for a register, whose version rises with each write.
type Op struct {
	Write      bool
	Version    int // written, or seen
	Begin, End time.Time
	By         string // what is known of who answered, for messages
}

// Older returns the first read that was answered with something older than a write whose answer
// had come before the read began; ok is false when there is none.
func Older(history []Op) (read, write Op, ok bool) {
	var writes, reads []Op
	for _, o := range history {
		if o.Write {
			writes = append(writes, o)
		} else {
			reads = append(reads, o)
		}
	}
	slices.SortFunc(writes, func(a, b Op) int { return a.End.Compare(b.End) })
	slices.SortFunc(reads, func(a, b Op) int { return a.Begin.Compare(b.Begin) })
	newest, i := Op{}, 0
	for _, r := range reads {
		for ; i < len(writes) && writes[i].End.Before(r.Begin); i++ {
			if writes[i].Version > newest.Version {
				newest = writes[i]
			}
		}
		if r.Version < newest.Version {
			return r, newest, true
		}
	}
	return Op{}, Op{}, false
}
