// Package sse writes, serves and reads server-sent events (WHATWG HTML §9.2, "text/event-stream").
//
// Serve answers one HTTP request from a Log: an ordered, bounded log that gateway and relay
// keep in their own way (Ring is the one in memory). A listener is only a cursor into that
// log, so a thousand slow listeners cost no queue; one that lags until its events were
// dropped is told so by a "reset" event. Reader is the other end of the line.
//
// What a program must know about the stream:
//
//   - Without Last-Event-ID only new events come. With it, those after the named one.
//   - "event: reset" with data {"reason":"gone"} comes first when the named event is not
//     known (any more), {"reason":"lagged"} when the log dropped events that this listener had
//     not been sent. In both cases everything that is still kept follows, oldest first, so the
//     listener may see again what it has seen: ids tell. The reset event has no id of its own.
//   - A comment line comes at least every Options.Heartbeat; nothing for three times that long
//     means the connection is dead.
package sse

// Event is one server-sent event.
type Event struct {
	// ID is what a listener gives back in Last-Event-ID; "" leaves the listener's id as it is.
	// One that holds NUL, CR or LF cannot be carried and is left out.
	ID string
	// Name is the event type; "" means "message". One with CR or LF is left out.
	Name string
	// Data is any text. CRLF, CR and LF all end a line (§9.2.6), so CR and CRLF arrive as LF. It
	// should be UTF-8: browsers replace what is not.
	Data []byte
}

// ResetName is the type of the event by which Serve says that the listener missed something.
const ResetName = "reset"

// Reasons in the data of a reset event: {"reason":"gone"}.
const (
	ReasonGone   = "gone"   // the event named by Last-Event-ID is unknown or was dropped
	ReasonLagged = "lagged" // the listener read so slowly that the log dropped its next events
)

// Log is an ordered, bounded log of events, safe for concurrent use. A position is a number
// that only grows: 0 lies before the first event the log ever held, and reading an event
// gives the position after it.
type Log interface {
	// Seek returns the position after the event with that id. ok is false when the id is
	// unknown or when events after it were dropped. Seek("") is the present end: only what is
	// appended from now on, ok is true.
	Seek(id string) (pos uint64, ok bool)
	// Read appends the events from pos on to dst, at most max of them and at least one when
	// there is one, and returns the position after the last. lost means that events at pos were dropped
	// already: reading went on at the oldest kept one. The data is the caller's to read, not to write to.
	Read(dst []Event, pos uint64, max int) (evs []Event, next uint64, lost bool)
	// Changed returns a channel that is closed at the next append after this call.
	Changed() <-chan struct{}
}

// Ender is what a Log may also be. A listener that came without Last-Event-ID is then told at
// once where it stands, so that it misses nothing even when the connection breaks before the
// first event.
type Ender interface {
	// End returns the present end of the log and an id that Seek would find it by, "" when there is none.
	End() (id string, pos uint64)
}
