// Package boardtest has a button, an LED and a board UID for tests of what uses them.
package boardtest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/board"
)

// Button is a board.Button that the test presses.
type Button struct {
	presses chan board.Press
}

// NewButton returns a button that nobody has pressed.
func NewButton() *Button { return &Button{make(chan board.Press)} }

// Press waits until Watch has taken the press, at most until ctx is done.
func (b *Button) Press(ctx context.Context, p board.Press) error {
	select {
	case b.presses <- p:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Watch is the method of board.Button.
func (b *Button) Watch(ctx context.Context, pressed func(board.Press)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-b.presses:
			pressed(p)
		}
	}
}

// Change is one change of an LED.
type Change struct {
	On bool
	At time.Duration // since the first change
}

// LED is a board.LED that remembers. It is safe for concurrent use.
type LED struct {
	Err error // what Set returns; set it before use

	mu      sync.Mutex // guards what follows
	changes []Change
	first   time.Time
	closed  bool
}

// Set notes the change; setting what is set already is none.
func (l *LED) Set(on bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Err != nil {
		return l.Err
	}
	now := time.Now()
	if len(l.changes) == 0 {
		l.first = now
	} else if l.changes[len(l.changes)-1].On == on {
		return nil
	}
	l.changes = append(l.changes, Change{on, now.Sub(l.first)})
	return nil
}

// Close turns the LED off.
func (l *LED) Close() error {
	err := l.Set(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return err
}

// Closed reports whether Close was called.
func (l *LED) Closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// Changes returns what happened so far.
func (l *LED) Changes() []Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Change(nil), l.changes...)
}

// Hardware is a board with one UID, or none: it has the methods of *uid.Reader. The test
// may change it with Set while it is in use.
type Hardware struct {
	mu  sync.Mutex // guards what follows
	uid board.UID
	err error
}

// NewHardware returns a board whose source ("test", hardware) has this UID.
func NewHardware(uid []byte) *Hardware {
	return &Hardware{uid: board.UID{Bytes: bytes.Clone(uid), Source: "test", Strength: board.Hardware}}
}

// Set exchanges the board: UID u from now on, or err when it is not nil.
func (h *Hardware) Set(u board.UID, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.uid, h.err = u, err
}

// First returns the UID or the error.
func (h *Hardware) First(context.Context) (board.UID, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uid, h.err
}

// Again is First for the source that First named, else board.ErrAbsent.
func (h *Hardware) Again(ctx context.Context, source string) (board.UID, error) {
	u, err := h.First(ctx)
	if err == nil && u.Source != source {
		return board.UID{}, fmt.Errorf("source %s: %w", source, board.ErrAbsent)
	}
	return u, err
}
