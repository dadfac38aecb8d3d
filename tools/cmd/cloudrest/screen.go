package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// screen is where results go, and what may be done there.
type screen struct {
	io.Writer
	width int  // columns; 0: no terminal
	color bool // only on a terminal, and not when NO_COLOR is set (no-color.org)
}

func screenOf(w io.Writer) *screen {
	s := &screen{Writer: w}
	if f, ok := w.(*os.File); ok {
		s.width = terminalWidth(f)
	}
	s.color = s.width > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return s
}

const (
	red   = "31"
	green = "32"
	dim   = "2"
	bold  = "1"
)

func (s *screen) paint(code, text string) string {
	if !s.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// printable makes text from the network fit for a terminal: no control characters, so
// no escape sequences, and nothing that is not UTF-8.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}

// clip shortens s to at most n characters, n > 0.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// pad fills s up with blanks to n characters.
func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}

// columns lays rows out as a table with the first row as its head. The last column is
// not filled up. Lines end at the width of the terminal, when there is one.
func (s *screen) columns(rows [][]string) []string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	lines := make([]string, 0, len(rows))
	for n, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			if i < len(row)-1 {
				cell = pad(cell, widths[i]+2)
			}
			b.WriteString(cell)
		}
		line := strings.TrimRight(b.String(), " ")
		if s.width > 0 {
			line = clip(line, s.width)
		}
		if n == 0 {
			line = s.paint(bold, line)
		}
		lines = append(lines, line)
	}
	return lines
}

// live redraws a block of lines in place. It is for a terminal only.
type live struct {
	s     *screen
	drawn int
}

func (l *live) draw(lines []string) {
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", l.drawn) // to the first line
	}
	b.WriteString("\r\x1b[J") // clear from there
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	io.WriteString(l.s, b.String())
	l.drawn = len(lines)
}
