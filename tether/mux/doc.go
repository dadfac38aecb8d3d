// Package mux runs many streams over one carrier (SPEC.md §5). The relay's side opens
// streams, the device's side answers them; each direction of a stream has its own credit,
// which the receiver returns only when the real reader has taken the bytes, so a stalled
// reader stops its own stream and nothing else.
//
// What a head means in HTTP is left to package exchange, how a session comes to be to
// package session, how bytes travel to a Carrier (package ws).
//
// A session that does nothing holds no buffer, no map, no timer and no goroutine besides
// the one that runs Session.Run: the writer exists only while there is output.
package mux
