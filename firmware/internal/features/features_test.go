package features

import (
	"slices"
	"testing"
)

func TestList(t *testing.T) {
	want := map[string]bool{"board": Board, "cache": Cache, "http2": HTTP2, "mdns": MDNS, "page": Page, "provision": Provision, "tether": Tether}
	got := List()
	if !slices.IsSorted(got) {
		t.Errorf("features = %q, want them sorted", got)
	}
	for name, here := range want {
		if slices.Contains(got, name) != here {
			t.Errorf("features = %q, want %s: %v", got, name, here)
		}
	}
}
