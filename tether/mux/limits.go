package mux

import (
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Limits of SPEC.md §5 and §7.
const (
	// MinWindow is what every new stream is granted without asking how much memory there
	// is; both sides announce at least this.
	MinWindow = 16 << 10
	MaxWindow = 1 << 20
	// DeviceWindow is what a device usually grants for request bodies.
	DeviceWindow = 32 << 10
	// StartWindow, GrownWindow and MaxWindow are the steps of a relay's window: the
	// first at the start, the others once the reader drains quickly.
	StartWindow = 64 << 10
	GrownWindow = 256 << 10

	DefaultStreams = 16  // requests that a device takes at once
	MaxStreams     = 256 // most that it may announce

	growTime = 150 * time.Millisecond // half a window read in less: the window is what holds the peer back

	slotQueue = 32              // requests that wait for a stream of one device
	slotWait  = 5 * time.Second // how long they wait

	maxCredit = 1<<31 - 1 // more credit than this is an error of the peer

	chunkSize = 16<<10 - 64 // body bytes in a DATA frame we send: frame, WebSocket and TLS headers still fit one TLS record

	outLimit     = 64 << 10 // queued output; more waits
	controlLimit = 16 << 10 // what control frames may exceed it by; more ends the session
	shortBurst   = 16 << 10 // a stream that sent no more than this lately passes the long ones
	shortLeak    = 32       // bytes that fade from that each millisecond

	streamAt = 5 // offset of the stream id in a frame, SPEC.md §3.1

	maxHeads = 16 // heads that wait for their reader: fifteen 1xx and the final one

	floodLimit = 1000             // control frames
	floodSpan  = 10 * time.Second // in so long; payload earns more, see Session.earn
	floodEarn  = 4 << 10          // payload bytes that earn the peer one control frame; whatever we send that asks for one counts as so many

	// DefaultKeepalive is how long a device may be silent before it sends a PING.
	DefaultKeepalive = 25 * time.Second
	pongWait         = 10 * time.Second // silence after a PING, twice, means a dead connection

	silence   = 5 * time.Second // of a device that owes an answer, before the relay asks
	probeWait = 5 * time.Second // for the answer to that

	maxIdle    = 8                // workers that a device keeps for its next requests
	idleWorker = 10 * time.Second // for so long

	lastWords = time.Second     // for what the peer said before a write to it failed
	closeWait = 2 * time.Second // for the last frames to leave before the carrier closes
)

// WebSocket close codes that end a session (RFC 6455 §7.4.1).
const (
	closeNormal   = 1000
	closeProtocol = 1002
	closeGoing    = 1001
)

// cost of a frame against floodLimit: frames that carry payload are bounded by credit.
func isControl(t frame.Type, body int) bool {
	switch t {
	case frame.TypeData:
		return body == 0
	case frame.TypeDataEnd, frame.TypeTrailers, frame.TypeResponse, frame.TypeNotify, frame.TypeInvalidate, frame.TypeRequest:
		return false
	}
	return true
}
