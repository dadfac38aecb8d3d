// Package tether holds the words that device and relay share: the device ID, the
// descriptor a maker's service answers at GET /device, event ids, and the names that
// appear on the wire. It imports nothing of the project and does no I/O.
//
// SPEC.md beside this file is the authority on the wire format; the packages below
// implement it, from the ground up: frame (bytes), proof (who speaks), ws (one
// WebSocket), mux (streams), session (handshake), exchange (one HTTP exchange).
package tether

// Names on the wire (SPEC.md §1).
const (
	// Subprotocol is the WebSocket subprotocol of this version (RFC 6455 §1.9).
	Subprotocol = "cloudrest.1"
	// ALPN is what a device offers to the relay's TLS, before "http/1.1", when it can show a
	// client certificate; the relay chooses "http/1.1" (SPEC.md §4.11).
	ALPN = "cloudrest-tether"
	// TetherPath is where the relay takes the device's WebSocket.
	TetherPath = "/v1/tether"
	// HeaderID carries the UUID (RFC 9562) under which one request is traced from
	// the relay or gateway to the origin and back.
	HeaderID = "X-Cloudrest-Id"
	// HeaderSequenceID is the paper's older name for the same purpose; a client's
	// value travels to the origin and back unchanged.
	HeaderSequenceID = "X-Cloudrest-Sequence-Id"
	// OwnPrefix begins every path that the gateway serves itself; all other paths
	// belong to the origin.
	OwnPrefix = "/.cloudrest/"
)

// UDP discovery ports (paper, "Local Discovery Service").
const (
	DiscoveryPort = 15800 // questions arrive here
	AnswerPort    = 15900 // answers are sent to this port of the asker
)
