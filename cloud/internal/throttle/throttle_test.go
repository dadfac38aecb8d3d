package throttle

import (
	"fmt"
	"testing"
	"time"
)

func TestAllowance(t *testing.T) {
	tab, now := New(3, 10*time.Second), time.Now()
	for i := range 3 {
		if wait := tab.Fail("192.0.2.1:1000", now); wait != 0 {
			t.Errorf("failure %d: wait %v, want none", i+1, wait)
		}
	}
	for range 5 { // being told so does not make it worse
		if got, want := tab.Fail("192.0.2.1:2000", now), 10*time.Second; got != want {
			t.Errorf("over the allowance: wait %v, want %v", got, want)
		}
	}
	if got := tab.Wait("192.0.2.1", now); got != 10*time.Second {
		t.Errorf("Wait = %v, want 10 s", got)
	}
	if got := tab.Wait("192.0.2.2", now); got != 0 {
		t.Errorf("another address waits %v", got)
	}
	now = now.Add(10*time.Second + 1)
	if got := tab.Fail("192.0.2.1", now); got != 0 {
		t.Errorf("after one interval: wait %v, want none", got)
	}
	if got := tab.Fail("192.0.2.1", now); got == 0 {
		t.Error("one interval gave more than one failure back")
	}
}

func TestKey(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1:1", "192.0.2.1", true},
		{"[::ffff:192.0.2.1]:5", "192.0.2.1", true},
		{"[2001:db8::1]:1", "2001:db8::ffff", true}, // one /64
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::2", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"pipe", "unknown", true},
	} {
		if got := Key(c.a) == Key(c.b); got != c.same {
			t.Errorf("%s and %s count as one: %v, want %v", c.a, c.b, got, c.same)
		}
	}
}

func TestBounded(t *testing.T) {
	tab, now := New(2, time.Minute), time.Now()
	for i := range 3 * maxAddresses {
		tab.Fail(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), now)
	}
	if n := len(tab.seen); n > maxAddresses {
		t.Errorf("%d addresses are remembered, want at most %d", n, maxAddresses)
	}
}
