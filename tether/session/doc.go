// Package session makes a tether: it runs the handshake CHALLENGE, HELLO, ACCEPT
// (SPEC.md §4) over a WebSocket and gives a mux.Session. Device.Connect is one attempt;
// when to try again is the caller's decision. Relay.Accept is an http.HandlerFunc with
// two more arguments; who is enrolled is decided by Relay.Verify.
package session
