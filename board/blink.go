package board

import (
	"context"
	"time"
)

// Pattern is what an LED shows: Times alternate, on first, beginning with on.
type Pattern struct {
	Times []time.Duration
	Loop  bool // again and again, until the context ends
}

const (
	tick  = 150 * time.Millisecond
	pause = 1200 * time.Millisecond // between digits, and after a group of flashes
	rest  = 3 * time.Second         // before the digits start again
	zero  = 900 * time.Millisecond  // one long flash is the digit 0
)

// The patterns of a gateway.
var (
	PairingOpen   = Pattern{[]time.Duration{500 * time.Millisecond, 500 * time.Millisecond}, true} // even, slow
	Success       = Pattern{[]time.Duration{2 * time.Second, 0}, false}                            // one long light
	Failure       = Pattern{[]time.Duration{tick, tick, tick, tick, tick, pause}, false}           // three quick flashes
	FactoryDone   = Pattern{[]time.Duration{2 * time.Second, tick}, true}                          // almost steadily on
	FactoryFailed = Pattern{[]time.Duration{tick, tick}, true}                                     // hectic
)

// Digits shows a number one digit after the other: as many flashes as the digit says, one
// long flash for 0, a pause between digits, a longer one before it starts again. What is
// not a digit is left out.
func Digits(number string) Pattern {
	p := Pattern{Loop: true}
	for _, r := range number {
		switch {
		case r == '0':
			p.Times = append(p.Times, zero, pause)
		case '1' <= r && r <= '9':
			for range r - '0' {
				p.Times = append(p.Times, tick, 2*tick)
			}
			p.Times[len(p.Times)-1] = pause
		}
	}
	if n := len(p.Times); n > 0 {
		p.Times[n-1] = rest
	}
	return p
}

// Blink shows p on l until the pattern is over or ctx is done, and leaves l off. An LED that
// fails is left alone: light is a courtesy, nothing depends on it.
func Blink(ctx context.Context, l LED, p Pattern) {
	defer l.Set(false)
	for len(p.Times) > 0 {
		for i, d := range p.Times {
			if err := l.Set(i%2 == 0); err != nil {
				return
			}
			timer := time.NewTimer(d)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		}
		if !p.Loop {
			return
		}
	}
}
