package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

func TestRing(t *testing.T) {
	var r ring
	var all []byte
	for i := range 3000 {
		line := []byte(strings.Repeat(string(rune('a'+i%26)), i%97) + "\n")
		all = append(all, line...)
		if n, err := r.Write(line); n != len(line) || err != nil {
			t.Fatalf("Write = %d, %v, want %d", n, err, len(line))
		}
		if got, want := r.bytes(), all[max(0, len(all)-ringSize):]; i%100 == 0 && !bytes.Equal(got, want) {
			t.Fatalf("after %d bytes the ring holds %d, want the last %d", len(all), len(got), len(want))
		}
	}
	huge := bytes.Repeat([]byte("0123456789"), ringSize)
	r.Write(huge)
	if got, want := r.bytes(), huge[len(huge)-ringSize:]; !bytes.Equal(got, want) {
		t.Errorf("after one huge write: %d bytes, want the last %d", len(got), len(want))
	}
}

// TestScreen: a console that takes nothing stops nobody.
func TestScreen(t *testing.T) {
	s := make(screen, 2)
	for range 5 {
		if n, err := s.Write([]byte("x")); n != 1 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got, want := len(s), 2; got != want {
		t.Errorf("%d are waiting, want %d", got, want)
	}
}

func TestSlotOf(t *testing.T) {
	for _, s := range []zerodisk.Slot{'a', 'b'} {
		words := map[string]bool{}
		for _, w := range strings.Fields(s.Cmdline(true)) {
			words[w] = true
		}
		if got, err := slotOf(words); err != nil || got != s || !words[zerodisk.TrialFlag] {
			t.Errorf("%q: slot %c, %v, want %c on trial", s.Cmdline(true), got, err, s)
		}
	}
	if _, err := slotOf(nil); err == nil {
		t.Error("no slot on the command line: want an error")
	}
}
