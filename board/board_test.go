package board_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/board/boardtest"
)

func TestCheck(t *testing.T) {
	cases := []struct {
		name, uid string
		ok, blank bool
	}{
		{"Winbond", "\xd1\x62\x3c\x94\x0f\x2a\x51\x2d", true, false},
		{"Raspberry Pi serial", "10000000a1b2c3d4", true, false},
		{"eight bytes sent twice", "\xd1\x62\x3c\x94\x0f\x2a\x51\x2d\xd1\x62\x3c\x94\x0f\x2a\x51\x2d", true, false},
		{"longest", strings.Repeat("\x00\x01\x02\x04\x08\x10\x20\x41", 8), true, false},
		{"short", "\xd1\x62\x3c\x94\x0f\x2a\x51", false, false},
		{"long", strings.Repeat("\x00\x01\x02\x04\x08\x10\x20\x41", 8) + "x", false, false},
		{"zeros", strings.Repeat("\x00", 8), false, true},
		{"FF", strings.Repeat("\xff", 16), false, true},
		{"pair", strings.Repeat("\xaa\x55", 4), false, true},
		{"three, cut", "abcabcabca", false, true},
		{"four", strings.Repeat("\xde\xad\xbe\xef", 2), false, true},
		{"counting", "\x00\x01\x02\x03\x04\x05\x06\x07", false, true},
		{"counting over FF", "\xfc\xfd\xfe\xff\x00\x01\x02\x03", false, true},
		{"counting down", "87654321", false, true},
		{"text of zeros", strings.Repeat("0", 16), false, true},
		{"text of FF", strings.Repeat("f", 16), false, true},
		{"adb's default serial", "0123456789ABCDEF", false, true},
		{"deadbeef", "0xdeadbeefdeadbeef", false, true},
	}
	for _, c := range cases {
		err := board.UID{Bytes: []byte(c.uid)}.Check()
		if (err == nil) != c.ok || errors.Is(err, board.ErrBlank) != c.blank {
			t.Errorf("%s: Check = %v, want ok=%v blank=%v", c.name, err, c.ok, c.blank)
		}
	}
}

// No careless print shows the bytes.
func TestUIDIsNotPrinted(t *testing.T) {
	u := board.UID{Bytes: []byte("secretly"), Source: "spi=0.0", Strength: board.Hardware}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "uid", u)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "uid", u)
	b64, _ := json.Marshal(u.Bytes)
	all := log.String() + fmt.Sprintf("%v %+v %#v %s %v", u, u, u, u, []board.UID{u})
	for _, bad := range []string{"secretly", "115 101", "73656372", strings.Trim(string(b64), `"`)} {
		if strings.Contains(all, bad) {
			t.Errorf("printed %q in %s", bad, all)
		}
	}
	if want := "8 bytes from spi=0.0 (hardware)"; !strings.Contains(log.String(), want) {
		t.Errorf("log = %s, want %q in it", log.String(), want)
	}
}

func TestStrength(t *testing.T) {
	if board.Software >= board.Board || board.Board >= board.Hardware {
		t.Error("want software < board < hardware")
	}
	for s := range board.Strength(9) {
		want := s
		if s > board.Hardware {
			want = 0
		}
		if got := board.ParseStrength(s.String()); got != want {
			t.Errorf("ParseStrength(%q) = %d, want %d", s.String(), got, want)
		}
	}
}

// count returns how many flashes lie between pauses, over one round of the pattern.
func count(changes []boardtest.Change, gap time.Duration) (groups []int) {
	n := 0
	for i, c := range changes {
		if c.On {
			n++
		} else if i == len(changes)-1 || changes[i+1].At-c.At >= gap {
			groups = append(groups, n)
			n = 0
		}
	}
	return groups
}

func TestBlinkDigits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var led boardtest.LED
		p := board.Digits("48-2913")
		p.Loop = false
		board.Blink(t.Context(), &led, p)
		if got, want := count(led.Changes(), time.Second), []int{4, 8, 2, 9, 1, 3}; !reflect.DeepEqual(got, want) {
			t.Errorf("flashes = %v, want %v", got, want)
		}
		led = boardtest.LED{}
		p = board.Digits("0")
		p.Loop = false
		board.Blink(t.Context(), &led, p)
		if c := led.Changes(); len(c) != 2 || c[1].At < 500*time.Millisecond {
			t.Errorf("0 = %v, want one long flash", c)
		}
	})
}

func TestBlinkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2250*time.Millisecond)
		defer cancel()
		var led boardtest.LED
		board.Blink(ctx, &led, board.PairingOpen)
		var want []boardtest.Change
		for i := range 5 { // on at 0, 1, 2 s; the last flash is cut short
			want = append(want, boardtest.Change{On: i%2 == 0, At: time.Duration(i) * 500 * time.Millisecond})
		}
		want = append(want, boardtest.Change{On: false, At: 2250 * time.Millisecond})
		if got := led.Changes(); !reflect.DeepEqual(got, want) {
			t.Errorf("changes = %v, want %v", got, want)
		}
		for name, p := range map[string]board.Pattern{"success": board.Success, "failure": board.Failure, "nothing": board.Digits("x")} {
			led := &boardtest.LED{}
			board.Blink(t.Context(), led, p) // ends by itself
			if c := led.Changes(); c[len(c)-1].On {
				t.Errorf("%s: left the LED on", name)
			}
		}
		board.Blink(t.Context(), &boardtest.LED{Err: errors.New("unplugged")}, board.FactoryFailed)
	})
}
