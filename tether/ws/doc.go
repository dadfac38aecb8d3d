// Package ws carries tether messages over one WebSocket (RFC 6455): one binary message
// holds whole frames, and this package neither looks into them nor starts a goroutine.
// Package mux reads and writes the frames.
//
// It is the only importer of gorilla/websocket. What it adds is about memory and delay: a
// relay keeps tens of thousands of these connections idle, so a connection holds a small
// read buffer and nothing else while nothing happens (a message buffer is taken from a
// pool after the message has begun), and the kernel keeps little unsent, so that a short
// answer can still overtake a long one in our own queue.
package ws
