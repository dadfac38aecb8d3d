package qrcode

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"rsc.io/qr/coding"
)

// bitmap is what a camera sees: true is dark.
type bitmap [][]bool

// fromSVG reads back what SVG drew: its only shapes are bars of height 1.
func fromSVG(t *testing.T, svg []byte) bitmap {
	t.Helper()
	box := regexp.MustCompile(`viewBox="0 0 (\d+) (\d+)"`).FindSubmatch(svg)
	if box == nil || !bytes.Equal(box[1], box[2]) {
		t.Fatalf("no square viewBox in %.120q", svg)
	}
	side, _ := strconv.Atoi(string(box[1]))
	m := make(bitmap, side)
	for y := range m {
		m[y] = make([]bool, side)
	}
	for _, bar := range regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`).FindAllSubmatch(svg, -1) {
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(string(bar[i+1]))
		}
		if n[2] != n[3] {
			t.Fatalf("bar %s does not close", bar[0])
		}
		for x := range n[2] {
			m[n[1]][n[0]+x] = true
		}
	}
	return m
}

// fromTerminal reads back what Terminal wrote.
func fromTerminal(t *testing.T, out string) bitmap {
	t.Helper()
	var m bitmap
	for line := range strings.Lines(out) {
		line, ok := strings.CutPrefix(line, blackOnWhite)
		line, ok2 := strings.CutSuffix(line, plain+"\n")
		if !ok || !ok2 {
			t.Fatalf("line %q does not set and reset the colours", line)
		}
		var upper, lower []bool
		for _, r := range line {
			i := strings.IndexRune(" ▀▄█", r)
			if i < 0 {
				t.Fatalf("character %q is no half block", r)
			}
			upper, lower = append(upper, r == '▀' || r == '█'), append(lower, r == '▄' || r == '█')
		}
		m = append(m, upper, lower)
	}
	return m
}

// decode has zbar, a decoder of its own making, read the picture.
func (m bitmap) decode(t *testing.T) string {
	t.Helper()
	zbar, err := exec.LookPath("zbarimg")
	if err != nil {
		t.Skip("zbarimg is not installed (Debian: zbar-tools)")
	}
	const scale = 5
	img := image.NewGray(image.Rect(0, 0, len(m[0])*scale, len(m)*scale))
	for y := range len(m) * scale {
		for x := range len(m[0]) * scale {
			if !m[y/scale][x/scale] {
				img.SetGray(x, y, color.Gray{255})
			}
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "code.png")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd := exec.CommandContext(t.Context(), zbar, "--quiet", "--raw", "--oneshot", "-Sdisable", "-Sqrcode.enable", file)
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zbarimg: %v\n%s", err, complaints.Bytes())
	}
	return strings.TrimSuffix(string(out), "\n")
}

// checkQuiet checks that nothing is drawn in the quiet zone.
func (m bitmap) checkQuiet(t *testing.T) {
	t.Helper()
	side := len(m[0])
	for y := range side {
		for x := range side {
			if edge := min(x, y, side-1-x, side-1-y); edge < quiet && m[y][x] {
				t.Fatalf("module %d,%d is dark, %d from the edge: want %d light ones", x, y, edge, quiet)
			}
		}
	}
	if !m[quiet][quiet] {
		t.Errorf("the corner of the position pattern is light")
	}
}

const invitation = "https://cloudrest-4fzq2k.local/.cloudrest/#c=" +
	"mzxw6ytboi5dqmrqgezdgnbvgy3tqojqmfrggzdfmztwq2lknnwg.2jmj7l5rSw0yVb_vlWAYkK_YBwkqfN1NlPq8wM3dE9o.V2hhdCBhIHdvbmRlcmZ1bCBzZWNyZXQh"

func TestDecoded(t *testing.T) {
	for name, text := range map[string]string{
		"invitation":                    invitation,
		"one byte":                      "x",
		"digits":                        "482913",
		"longest":                       strings.Repeat("cloudrest/", MaxText/10),
		"looks like a position pattern": strings.Repeat("]", 200), // 0x5d, 1:1:3:1:1
	} {
		t.Run(name, func(t *testing.T) {
			svg, err := SVG(text)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			if err := Terminal(&b, text); err != nil {
				t.Fatal(err)
			}
			for way, m := range map[string]bitmap{"SVG": fromSVG(t, svg), "terminal": fromTerminal(t, b.String())} {
				m.checkQuiet(t)
				if got := m.decode(t); got != text {
					t.Errorf("%s decodes to %q, want %q", way, got, text)
				}
			}
		})
	}
}

// Every version that texts can need is placed rightly: the fullest code of each is read.
func TestVersions(t *testing.T) {
	for v := coding.Version(coding.MinVersion); ; v++ {
		n := v.DataBytes(level)
		for coding.String(strings.Repeat("a", n)).Bits(v) > 8*v.DataBytes(level) {
			n-- // the header
		}
		text := strings.Repeat("a", min(n, MaxText))
		svg, err := SVG(text)
		if err != nil {
			t.Fatal(err)
		}
		m := fromSVG(t, svg)
		if got, want := len(m)-2*quiet, int(17+4*v); got != want {
			t.Errorf("%d bytes take %d modules, want %d: version %d", len(text), got, want, v)
		}
		if got := m.decode(t); got != text {
			t.Errorf("version %d decodes to %q, want %d times a", v, got, len(text))
		}
		if n >= MaxText {
			break
		}
	}
}

func TestRefused(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "too long": strings.Repeat("x", MaxText+1), "not ASCII": "Küche", "byte": "\x80"} {
		if svg, err := SVG(text); err == nil {
			t.Errorf("%s: got %d bytes of SVG, want an error", name, len(svg))
		}
	}
	broken := errors.New("pulled out")
	if err := Terminal(writer{broken}, "x"); !errors.Is(err, broken) {
		t.Errorf("Terminal on a broken writer = %v, want %v", err, broken)
	}
}

type writer struct{ err error }

func (w writer) Write([]byte) (int, error) { return 0, w.err }

// A code is shown on a page of 40 KB and in a terminal of 80 columns.
func TestSize(t *testing.T) {
	svg, err := SVG(invitation)
	if err != nil {
		t.Fatal(err)
	}
	if len(svg) > 24<<10 {
		t.Errorf("SVG of an invitation has %d bytes, want at most 24 KiB", len(svg))
	}
	if side := len(fromSVG(t, svg)); side > 80 {
		t.Errorf("an invitation takes %d columns, want at most 80", side)
	}
	t.Logf("%d bytes of text: %d modules, %d bytes of SVG", len(invitation), len(fromSVG(t, svg))-2*quiet, len(svg))
}

func FuzzEncode(f *testing.F) {
	f.Add(invitation)
	f.Add("\x00\xff")
	f.Add(strings.Repeat("x", MaxText+1))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := encode(text)
		ascii := strings.IndexFunc(text, func(r rune) bool { return r >= 0x80 }) < 0
		if ok := text != "" && len(text) <= MaxText && ascii; (err == nil) != ok {
			t.Fatalf("encode(%d bytes) = %v", len(text), err)
		}
		if err == nil && (c.Size < 21 || c.Size%4 != 1) {
			t.Fatalf("code has %d modules", c.Size)
		}
	})
}
