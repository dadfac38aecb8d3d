// Package notify turns lines that programs on the device write into notifications, keeps them in a
// journal and hands them out: to listeners on the LAN through Log, and to the tether through Pending and Ack.
//
// Lines come through a named pipe, a UNIX stream socket beside it, or Post. A line ends with LF, or when its writer
// is silent for IdleFlush; it is at most MaxLine bytes long (what exceeds that is cut off and counted), CR
// and NUL are removed, invalid UTF-8 is replaced by U+FFFD and counted, empty lines mean nothing. Several programs
// may write to the pipe at once: a line of at most 4095 bytes and its LF written by one write(2) is never mixed with others
// (PIPE_BUF, pipe(7)). The socket has a line of its own for each connection.
//
// A line becomes visible, to anybody, only once it is in the journal, under an id that is never given to another
// one: a random number drawn at each start (the epoch) and a count. So after kill -9 at any moment, what was
// seen is still there. Lines that a writer has written and the daemon has not read yet lie in the
// kernel; they are lost with the daemon's death, and kept at an orderly end.
//
// What is full, and what then happens:
//
//   - The journal: the oldest entries go, counted, and counted apart if they were not acknowledged.
//   - The queue before it (a few reads per writer): its readers wait, then the pipe fills up (64 KiB), then
//     writers wait or get EAGAIN. Nothing else in the daemon waits: listeners, tether and proxy go on.
//   - The disk: the lines wait in the queue and are tried again. A program that controls a valve must not hang
//     because of a full disk, so after StallLimit reading goes on, and the oldest of the waiting lines go, counted as shed.
package notify

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/store"
	"github.com/cloudrest/cloudrest/tether"
)

// Limits and times.
const (
	MaxLine    = 4096             // bytes of a line that are kept
	MaxData    = 32 << 10         // bytes of an event given to Post (SPEC.md §6.1)
	MaxTopic   = 255              // bytes (SPEC.md §6.1, str8)
	IdleFlush  = 2 * time.Second  // after it, what a silent writer began is a line
	StallLimit = 10 * time.Second // for how long the disk may make writers wait

	DefaultEntries     = 4096
	DefaultBytes       = 2 << 20
	DefaultConnections = 16
	DefaultFIFOMode    = 0o620 // read by the daemon only
	DefaultSocketMode  = 0o660 // connect(2) asks for write permission
)

// Config of a Notifier.
type Config struct {
	Store *store.Store // required

	FIFO     string      // path of the named pipe; "": none. Its directory is made with mode 0750 when absent
	FIFOMode fs.FileMode // default DefaultFIFOMode
	Socket   string      // path of the UNIX stream socket; "": none
	SockMode fs.FileMode // default DefaultSocketMode
	Group    int         // group ID of pipe and socket; 0: the one they are made with

	Entries     int   // bound of the journal; default DefaultEntries
	Bytes       int64 // bound of the journal; default DefaultBytes
	Connections int   // of the socket at once; more wait to be accepted; default DefaultConnections

	Logger *slog.Logger // nil: silence
}

func (c *Config) fill() error {
	if c.Store == nil {
		return errors.New("notify: no store given")
	}
	if c.Entries < 0 || c.Bytes < 0 || c.Connections < 0 || c.Group < 0 {
		return fmt.Errorf("notify: a bound is negative: entries %d, bytes %d, connections %d, group %d", c.Entries, c.Bytes, c.Connections, c.Group)
	}
	if c.FIFOMode == 0 {
		c.FIFOMode = DefaultFIFOMode
	}
	if c.SockMode == 0 {
		c.SockMode = DefaultSocketMode
	}
	if c.Entries == 0 {
		c.Entries = DefaultEntries
	}
	if c.Bytes == 0 {
		c.Bytes = DefaultBytes
	}
	if c.Connections == 0 {
		c.Connections = DefaultConnections
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Event is one notification.
type Event struct {
	ID    tether.EventID
	Time  time.Time // when the line was read, by the device's clock, in milliseconds
	Topic string    // "" for lines
	Data  []byte
}

var (
	// ErrInvalid means that Post was given a topic or data that no notification can have.
	ErrInvalid = errors.New("not a notification")
	// ErrShed means that the journal could not be written for so long that the event had to go.
	ErrShed = errors.New("notification given up: the journal cannot be written")
	// ErrUnknownEvent means that an id was never given out.
	ErrUnknownEvent = errors.New("no such event was sent")
	// ErrUnsafe means that a path is not what the notifier may use: somebody else's, or a link.
	ErrUnsafe = errors.New("unsafe path")
)

// Stats is the state of a Notifier at one moment. Counts are since the start unless they say "ever".
type Stats struct {
	Durability     store.Durability
	Epoch          uint64
	Appended       uint64 // notifications taken into the journal; the sequence number of the last one
	Entries        int    // in the journal
	Bytes          int64  // in the journal
	Unacked        uint64 // of the entries
	Dropped        uint64 // ever: entries that went because the journal was full
	DroppedUnacked uint64 // ever: those of them that the relay had not acknowledged
	Shed           uint64 // lines given up before the journal, because it could not be written for StallLimit
	CutLines       uint64 // longer than MaxLine
	RepairedLines  uint64 // not UTF-8
	WriteErrors    uint64 // of the journal
	Unreadable     uint64 // entries of the journal that are not ours
	Connections    int    // open on the socket
	FIFO           string // what is wrong with the pipe now; "" nothing
	Socket         string // what is wrong with the socket now; "" nothing
	Journal        string // what is wrong with the journal now; "" nothing
}
