package notify

import (
	"bytes"
	"unicode/utf8"
)

// Lines cuts what one writer, or one pipe, gives into lines. It is pure: the same bytes give the same lines
// however they are chunked, as long as Flush is not called in between. The zero value is ready.
type Lines struct {
	line []byte // what has come of the present line, without CR and NUL
	long bool   // it was longer than MaxLine
	rest bool   // it was given out by Flush: what comes up to the next LF belongs to it and is dropped

	Cut      uint64 // lines that were longer than MaxLine
	Repaired uint64 // lines that were not UTF-8
}

// Add takes what was read and calls emit for each line that it ends. The line is emit's.
func (l *Lines) Add(chunk []byte, emit func(line []byte)) {
	for len(chunk) > 0 {
		part, after, ended := bytes.Cut(chunk, []byte{'\n'})
		l.add(part)
		if ended {
			l.end(emit)
			l.rest = false
		}
		chunk = after
	}
}

// Flush gives out what has come of a line whose writer is gone or silent.
func (l *Lines) Flush(emit func(line []byte)) {
	long := l.long
	l.end(emit)
	l.rest = l.rest || long
}

// Partial reports whether Flush would give out a line.
func (l *Lines) Partial() bool { return len(l.line) > 0 }

// add takes part of a line.
func (l *Lines) add(part []byte) {
	if l.rest {
		return
	}
	for len(part) > 0 {
		n := bytes.IndexAny(part, "\r\x00")
		if n < 0 {
			n = len(part)
		}
		room := MaxLine - len(l.line)
		l.line = append(l.line, part[:min(n, room)]...)
		l.long = l.long || n > room
		part = part[min(n+1, len(part)):]
	}
}

func (l *Lines) end(emit func([]byte)) {
	line, cut := l.line, l.long
	l.line, l.long = nil, false
	if cut {
		line = wholeRunes(line) // the last one is not invalid because we cut it
	}
	if !utf8.Valid(line) {
		l.Repaired++
		// Each replacement is longer than what it replaces.
		if line = bytes.ToValidUTF8(line, []byte("\ufffd")); len(line) > MaxLine {
			line, cut = wholeRunes(line[:MaxLine]), true
		}
	}
	if cut {
		l.Cut++
	}
	if len(line) > 0 {
		emit(line)
	}
}

// wholeRunes removes the beginning of a rune from the end of b.
func wholeRunes(b []byte) []byte {
	for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return b[:i]
			}
			break
		}
	}
	return b
}
