package notify

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// split gives b to a Lines in chunks of step bytes.
func split(b []byte, step int) (lines []string, l Lines) {
	emit := func(line []byte) { lines = append(lines, string(line)) }
	for chunk := range slices.Chunk(b, step) {
		l.Add(chunk, emit)
	}
	l.Flush(emit)
	return lines, l
}

func TestLines(t *testing.T) {
	full := strings.Repeat("x", MaxLine)
	for name, c := range map[string]struct {
		in            string
		want          []string
		cut, repaired uint64
	}{
		"two":                              {in: "a\nb\n", want: []string{"a", "b"}},
		"the last without LF":              {in: "a\nb", want: []string{"a", "b"}},
		"empty ones mean nothing":          {in: "\n\na\n\r\n\x00\n", want: []string{"a"}},
		"CR and NUL are removed":           {in: "a\r\nb\x00c\rd\n", want: []string{"a", "bcd"}},
		"4096 bytes are whole":             {in: full + "\nb\n", want: []string{full, "b"}},
		"4097 are cut":                     {in: full + "y\nb\n", want: []string{full, "b"}, cut: 1},
		"1 MiB is one cut line":            {in: strings.Repeat("x", 1<<20) + "\nb\n", want: []string{full, "b"}, cut: 1},
		"CR and NUL do not count":          {in: full[1:] + "\r\x00\r\x00y\r\n", want: []string{full[1:] + "y"}},
		"invalid UTF-8 is repaired":        {in: "a\xff\xfeb\n", want: []string{"a\ufffdb"}, repaired: 1},
		"a rune is never cut in two":       {in: full[1:] + "ü\nb\n", want: []string{full[1:], "b"}, cut: 1},
		"binary without LF stays in bound": {in: strings.Repeat("a\xff", MaxLine), want: []string{strings.Repeat("a\ufffd", MaxLine/4)}, cut: 1, repaired: 1},
		"one MiB of NUL":                   {in: strings.Repeat("\x00", 1<<20)},
	} {
		for _, step := range []int{1, 3, 4096, 1 << 21} {
			got, l := split([]byte(c.in), step)
			if !slices.Equal(got, c.want) || l.Cut != c.cut || l.Repaired != c.repaired {
				t.Errorf("%s (by %d): %d lines %.40q, cut %d, repaired %d, want %d lines %.40q, %d, %d", name, step, len(got), got, l.Cut, l.Repaired, len(c.want), c.want, c.cut, c.repaired)
			}
		}
	}
}

// A writer that stops in the middle gets its line out; what comes then is a new one, except behind a
// line that was too long.
func TestLinesFlush(t *testing.T) {
	var l Lines
	var got []string
	emit := func(line []byte) { got = append(got, string(line)) }
	l.Add([]byte("a\nbe"), emit)
	if !l.Partial() {
		t.Error("Partial = false with a line begun")
	}
	l.Flush(emit)
	l.Flush(emit)
	if l.Partial() {
		t.Error("Partial = true after Flush")
	}
	l.Add([]byte("gun\n"), emit)
	long := strings.Repeat("x", MaxLine)
	l.Add([]byte(long+"y"), emit)
	l.Flush(emit)
	l.Add([]byte("the rest"), emit)
	l.Flush(emit)
	l.Add([]byte(" of it\nnext\n"), emit)
	if want := []string{"a", "be", "gun", long, "next"}; !slices.Equal(got, want) || l.Cut != 1 {
		t.Errorf("lines = %.40q, cut %d, want %.40q, 1", got, l.Cut, want)
	}
}

// Any chunking gives the same lines, and none of them is what it must not be.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\r\n\x00c\xff\n"), 1)
	f.Add(bytes.Repeat([]byte("\xf0\x9f\x98"), 2000), 7)
	f.Add([]byte(strings.Repeat("x", 5000)+"\ny"), 4096)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		whole, l := split(b, len(b)+1)
		parts, l2 := split(b, 1+max(0, step)%(len(b)+1))
		if !slices.Equal(whole, parts) || l.Cut != l2.Cut || l.Repaired != l2.Repaired {
			t.Fatalf("in one piece %q, cut %d, repaired %d; by %d: %q, %d, %d", whole, l.Cut, l.Repaired, step, parts, l2.Cut, l2.Repaired)
		}
		for _, line := range whole {
			if line == "" || len(line) > MaxLine || strings.ContainsAny(line, "\r\n\x00") || !utf8.ValidString(line) {
				t.Fatalf("line %q", line)
			}
		}
		if n := bytes.Count(b, []byte("\n")) + 1; len(whole) > n {
			t.Fatalf("%d lines from %d", len(whole), n)
		}
	})
}
