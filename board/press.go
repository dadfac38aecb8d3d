package board

import (
	"context"
	"time"
)

// LongPress is how long a button must stay down to mean Long.
const LongPress = 10 * time.Second

// Press is what a person meant with the button.
type Press uint8

// What a button can say.
const (
	Short Press = iota + 1 // released before LongPress: opens pairing
	Long                   // still down after LongPress: factory reset
)

// String is "short" or "long".
func (p Press) String() string {
	switch p {
	case Short:
		return "short"
	case Long:
		return "long"
	}
	return "none"
}

// Button is one push button.
type Button interface {
	// Watch calls pressed from one goroutine, one call after the other: with Short when
	// the button is released in time, with Long the moment LongPress is reached. It
	// blocks until ctx is done and then returns nil; any other return is the error that
	// ended it. A button that is down from the start counts only after a release.
	Watch(ctx context.Context, pressed func(Press)) error
}

// LED is one light. Its methods are not for concurrent use.
type LED interface {
	Set(on bool) error
	// Close gives the LED back to whoever had it before, off.
	Close() error
}
