package lancert

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// A browser that was told to accept the leaf is not asked again after every restart; a leaf
// that no longer does, or is not this authority's, is replaced.
func TestLeafStays(t *testing.T) {
	dir := t.TempDir()
	home, other := netip.MustParseAddr("192.168.1.20"), netip.MustParseAddr("192.168.1.21")
	open := func(dir string, addrs ...netip.Addr) *Authority {
		t.Helper()
		a, _, err := Open(Config{Dir: dir, ID: tether.NewDeviceID([]byte("leaf test")), HostName: "box-1", Addrs: addrs, Now: func() time.Time { return floor.AddDate(1, 0, 0) }})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	serial := func(a *Authority) string { return a.Leaf().SerialNumber.String() }
	first := open(dir, home)
	if st, err := os.Stat(filepath.Join(dir, LeafFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("leaf file = %v, %v, want mode 0600", st, err)
	}
	again := open(dir, home)
	if serial(again) != serial(first) {
		t.Error("another leaf after a restart")
	}
	if c, _ := again.GetCertificate(nil); len(c.Certificate) != 2 || !bytes.Equal(c.Certificate[1], again.CA().Raw) {
		t.Error("the leaf of the last start comes without its authority")
	}
	moved := open(dir, other)
	if serial(moved) == serial(first) {
		t.Error("the old leaf, though the address is new")
	}

	// At most one write in an hour: a change right after the first stays in memory.
	before, err := os.ReadFile(filepath.Join(dir, LeafFile))
	if err != nil {
		t.Fatal(err)
	}
	if why, err := moved.Update("box-1", []netip.Addr{netip.MustParseAddr("192.168.1.22")}); why == "" || err != nil {
		t.Errorf("Update = %q, %v, want a new leaf", why, err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, LeafFile)); !bytes.Equal(after, before) {
		t.Error("a second write at once")
	}

	// Damaged, or another device's: made anew.
	strange := t.TempDir()
	open(strange, home)
	foreign, err := os.ReadFile(filepath.Join(strange, LeafFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"damaged": before[:len(before)/2], "empty": nil, "foreign": foreign} {
		if err := os.WriteFile(filepath.Join(dir, LeafFile), content, 0o600); err != nil {
			t.Fatal(err)
		}
		a := open(dir, other)
		if err := a.Leaf().CheckSignatureFrom(a.CA()); err != nil || serial(a) == serial(moved) {
			t.Errorf("%s: leaf %s, %v, want a new one of this authority", name, serial(a), err)
		}
	}
}
