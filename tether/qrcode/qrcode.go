// Package qrcode draws QR codes (ISO/IEC 18004) for a page and for a terminal, so that a
// phone's camera can take over what nobody wants to type: an invitation, or the label of a
// device. It draws ASCII text as bytes, with error correction level M, in the smallest version
// that holds it, with the quiet zone that cameras need. Beyond ASCII decoders guess the character
// set, and guess differently, so there is nothing beyond ASCII. Error correction and the placing of the modules are
// rsc.io/qr/coding's work; this package chooses version and mask and draws.
package qrcode

import (
	"fmt"
	"io"
	"strconv"

	"rsc.io/qr/coding"
)

const (
	// MaxText is how long a text may be, in bytes. An invitation has about 200. Longer codes are
	// so fine that phones do not read them from a small screen.
	MaxText = 600

	quiet = 4 // light modules around the code (ISO/IEC 18004 §5.3.8)
	level = coding.M
)

// SVG returns the code as an SVG image, dark on light whatever the page around it looks like.
// It has a viewBox and no size: the page gives it one. The text is not in it in plain. The error
// says that the text is empty, too long or not ASCII.
func SVG(text string) ([]byte, error) {
	c, err := encode(text)
	if err != nil {
		return nil, err
	}
	side := strconv.Itoa(c.Size + 2*quiet)
	b := make([]byte, 0, 16<<10)
	b = append(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 `+side+" "+side+`" shape-rendering="crispEdges">`...)
	b = append(b, `<path fill="#fff" d="M0 0h`+side+"v"+side+`H0z"/><path fill="#000" d="`...)
	for y := range c.Size {
		for x := 0; x < c.Size; {
			run := x
			for c.Black(run, y) { // false beyond the last column
				run++
			}
			if run == x {
				x++
				continue
			}
			b = append(b, 'M')
			b = strconv.AppendInt(b, int64(x+quiet), 10)
			b = append(b, ' ')
			b = strconv.AppendInt(b, int64(y+quiet), 10)
			b = append(b, 'h')
			b = strconv.AppendInt(b, int64(run-x), 10)
			b = append(b, "v1h-"...)
			b = strconv.AppendInt(b, int64(run-x), 10)
			b = append(b, 'z')
			x = run
		}
	}
	return append(b, `"/></svg>`...), nil
}

// Colours of a terminal that are black on white in every theme; without them the code would be
// inverted on dark terminals, which not every camera reads.
const (
	blackOnWhite = "\x1b[30;107m"
	plain        = "\x1b[0m"
)

// halves are the characters for an upper and a lower module, by (lower dark)<<1 | (upper dark).
var halves = [...]string{" ", "▀", "▄", "█"}

// Terminal writes the code in half blocks, two modules to a character: an invitation takes
// about 65 columns and 33 lines. It sets black on white with escape sequences and resets that at
// the end of every line, so w should be a terminal that shows UTF-8. Errors are those of SVG and of w.
func Terminal(w io.Writer, text string) error {
	c, err := encode(text)
	if err != nil {
		return err
	}
	side := c.Size + 2*quiet
	b := make([]byte, 0, 3*side*side)
	for y := 0; y < side; y += 2 {
		b = append(b, blackOnWhite...)
		for x := range side {
			i := 0
			if c.Black(x-quiet, y-quiet) {
				i |= 1
			}
			if c.Black(x-quiet, y+1-quiet) {
				i |= 2
			}
			b = append(b, halves[i]...)
		}
		b = append(b, plain+"\n"...)
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write QR code: %w", err)
	}
	return nil
}

// encode makes the code of a text.
func encode(text string) (*coding.Code, error) {
	if text == "" || len(text) > MaxText {
		return nil, fmt.Errorf("encode QR code: text of %d bytes: want 1 to %d", len(text), MaxText)
	}
	for i := range len(text) {
		if text[i] >= 0x80 {
			return nil, fmt.Errorf("encode QR code: byte %#x at %d is not ASCII", text[i], i)
		}
	}
	enc := coding.String(text)
	v := coding.Version(coding.MinVersion)
	for enc.Bits(v) > v.DataBytes(level)*8 { // ends: version 40 holds more than MaxText
		v++
	}
	var best *coding.Code
	least := 0
	for mask := range coding.Mask(8) {
		plan, err := coding.NewPlan(v, level, mask)
		if err != nil {
			return nil, fmt.Errorf("encode QR code: %w", err)
		}
		c, err := plan.Encode(enc)
		if err != nil {
			return nil, fmt.Errorf("encode QR code: %w", err)
		}
		if p := penalty(c); best == nil || p < least {
			best, least = c, p
		}
	}
	return best, nil
}

// penalty tells how hard a code is to read: the rules that choose the mask (ISO/IEC 18004 §7.8.3).
func penalty(c *coding.Code) int {
	p, dark := 0, 0
	for i := range c.Size {
		p += line(c.Size, func(j int) bool { return c.Black(j, i) })
		p += line(c.Size, func(j int) bool { return c.Black(i, j) })
		for j := range c.Size {
			b := c.Black(j, i)
			if b {
				dark++
			}
			if i > 0 && j > 0 && b == c.Black(j-1, i) && b == c.Black(j, i-1) && b == c.Black(j-1, i-1) {
				p += 3 // a block of four
			}
		}
	}
	percent := dark * 100 / (c.Size * c.Size)
	return p + max(percent-50, 50-percent)/5*10
}

// line is the penalty of one row or column: runs of five and more, and what looks like the
// middle of a position pattern with light beside it.
func line(n int, dark func(int) bool) (p int) {
	const (
		window = 1<<11 - 1
		left   = 0b00001011101
		right  = 0b10111010000
	)
	run, bits := 0, 0
	for j := range n {
		b := 0
		if dark(j) {
			b = 1
		}
		if j > 0 && b == bits&1 {
			run++
		} else {
			run = 1
		}
		if run == 5 {
			p += 3
		} else if run > 5 {
			p++
		}
		bits = (bits<<1 | b) & window
		if j >= 10 && (bits == left || bits == right) {
			p += 40
		}
	}
	return p
}
