package periph

import (
	"context"
	"fmt"
	"time"

	"periph.io/x/conn/v3/gpio"

	"github.com/cloudrest/cloudrest/board"
)

const (
	sample   = 10 * time.Millisecond  // between two looks at the button
	settled  = 3                      // looks alike that make a change: contacts bounce for a few ms
	idleWait = 250 * time.Millisecond // longest wait for an edge; bounds how long Watch outlives its context
)

// Button is a push button on a GPIO line.
type Button struct {
	pin  gpio.PinIn
	down gpio.Level
	pull gpio.Pull
	edge gpio.Edge
}

// OpenButton opens the button on a GPIO line: "GPIO17" for one that connects the line to
// ground, "GPIO17,active-high" for one that connects it to the supply.
func OpenButton(spec string) (*Button, error) {
	name, high, err := option(spec, "active-high")
	if err != nil {
		return nil, fmt.Errorf("button %w", err)
	}
	pin, err := openPin(name)
	if err != nil {
		return nil, fmt.Errorf("open button: %w", err)
	}
	return NewButton(pin, high), nil
}

// NewButton returns the button on an input line.
func NewButton(pin gpio.PinIn, activeHigh bool) *Button {
	if activeHigh {
		return &Button{pin: pin, down: gpio.High, pull: gpio.PullDown}
	}
	return &Button{pin: pin, down: gpio.Low, pull: gpio.PullUp}
}

// setUp makes the line an input with what the driver can do of pull and edges.
func (b *Button) setUp() (err error) {
	for _, pull := range []gpio.Pull{b.pull, gpio.PullNoChange} {
		for _, edge := range []gpio.Edge{gpio.BothEdges, gpio.NoEdge} {
			if err = b.pin.In(pull, edge); err == nil {
				b.pull, b.edge = pull, edge
				return nil
			}
		}
	}
	return fmt.Errorf("set up button %s: %w", b.pin, err)
}

// Watch is the method of board.Button. It returns at most idleWait after the end of ctx, and
// pressed must not block for long: meanwhile nobody looks at the button.
func (b *Button) Watch(ctx context.Context, pressed func(board.Press)) error {
	if err := b.setUp(); err != nil {
		return err
	}
	// A line that reads as down from the start is a wrong setting or a stuck button, not
	// the wish to erase the device.
	down := b.pin.Read() == b.down
	armed := !down
	var since time.Time // first look that showed the change
	var told bool
	for looks := 0; ; {
		if !down && looks == 0 && b.edge != gpio.NoEdge {
			b.pin.WaitForEdge(idleWait)
		}
		select { // also bounds the rate when WaitForEdge returns at once
		case <-ctx.Done():
			return nil
		case <-time.After(sample):
		}
		switch now := b.pin.Read() == b.down; {
		case now == down:
			looks = 0
		default:
			if looks++; looks == 1 && !down {
				since = time.Now()
			}
			if looks < settled {
				continue
			}
			down, looks = now, 0
			if down {
				told = false
			} else {
				if armed && !told {
					pressed(board.Short)
				}
				armed = true
			}
		}
		if down && armed && !told && time.Since(since) >= board.LongPress {
			// periph reads Low from a line that has gone away: make sure that it is there.
			if err := b.pin.In(b.pull, b.edge); err != nil {
				return fmt.Errorf("look at button %s again: %w", b.pin, err)
			}
			if b.pin.Read() == b.down {
				told = true
				pressed(board.Long)
			}
		}
	}
}
