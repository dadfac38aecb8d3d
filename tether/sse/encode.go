package sse

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// Append appends e in wire form to dst (WHATWG HTML §9.2.5). Every line of the data gets a
// "data:" of its own, so no data can open another field or end the event.
func Append(dst []byte, e Event) []byte {
	if e.Name != "" && !strings.ContainsAny(e.Name, "\r\n") {
		dst = append(dst, "event: "...)
		dst = append(dst, e.Name...)
		dst = append(dst, '\n')
	}
	dst = appendID(dst, e.ID)
	for data := e.Data; ; {
		line, rest, more := cutLine(data)
		dst = append(dst, "data: "...)
		dst = append(dst, line...)
		dst = append(dst, '\n')
		if !more {
			return append(dst, '\n')
		}
		data = rest
	}
}

// appendID appends an id field. An empty one would make the listener forget the id it has, and
// one with NUL would be ignored by it (§9.2.6).
func appendID(dst []byte, id string) []byte {
	if id == "" || strings.ContainsAny(id, "\x00\r\n") {
		return dst
	}
	dst = append(dst, "id: "...)
	dst = append(dst, id...)
	return append(dst, '\n')
}

// appendMark appends an event without data: the listener takes over the id and dispatches
// nothing (§9.2.6, "if the data buffer is an empty string").
func appendMark(dst []byte, id string) []byte {
	before := len(dst)
	if dst = appendID(dst, id); len(dst) > before {
		dst = append(dst, '\n')
	}
	return dst
}

// appendRetry appends how long the listener should wait before it reconnects.
func appendRetry(dst []byte, wait time.Duration) []byte {
	dst = append(dst, "retry: "...)
	dst = strconv.AppendInt(dst, wait.Milliseconds(), 10)
	return append(dst, "\n\n"...)
}

// heartbeat is a comment line, as §9.2.7 advises against proxies that cut silent connections.
const heartbeat = ": alive\n\n"

// cutLine cuts data at the first line end of any of the three kinds.
func cutLine(data []byte) (line, rest []byte, more bool) {
	i := bytes.IndexAny(data, "\r\n")
	if i < 0 {
		return data, nil, false
	}
	if data[i] == '\r' && i+1 < len(data) && data[i+1] == '\n' {
		return data[:i], data[i+2:], true
	}
	return data[:i], data[i+1:], true
}
