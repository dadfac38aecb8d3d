package tethertest

import (
	"testing"
	"time"
)

func TestOlder(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	write := Op{true, 2, at(1), at(3), ""}
	for _, tc := range []struct {
		name string
		read Op
		want bool
	}{
		{"old, begun before the write's answer", Op{false, 1, at(2), at(9), ""}, false},
		{"old, begun after it", Op{false, 1, at(4), at(5), ""}, true},
		{"new", Op{false, 2, at(4), at(5), ""}, false},
		{"newer", Op{false, 3, at(4), at(5), ""}, false},
	} {
		if _, _, got := Older([]Op{{true, 1, at(0), at(9), ""}, tc.read, write}); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
