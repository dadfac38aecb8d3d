package main

import (
	"strings"
	"testing"
)

// TestFeed holds the feed packages, which are built on OpenWrt's side, together with ours:
// a router must not notice where its package came from.
func TestFeed(t *testing.T) {
	r := &release{root: "../.."}
	for _, tc := range []struct{ name, makefile, depends string }{
		{"cloudrest", "../../openwrt/Makefile", "DEPENDS:=$(GO_ARCH_DEPENDS)"},
		{luciApp, "../../openwrt/" + luciApp + "/Makefile", "LUCI_DEPENDS:="},
	} {
		p, err := r.openwrt(tc.name, "all", "program")
		if err != nil {
			t.Fatal(err)
		}
		feed := string(read(t, tc.makefile))
		want := []string{"PKG_NAME:=" + tc.name + "\n"}
		if p.user != "" {
			want = append(want, "USERID:="+p.user+"\n")
		}
		if len(p.keep) > 0 {
			want = append(want, "/conffiles\n"+strings.Join(p.keep, "\n")+"\nendef\n")
		}
		for _, w := range want {
			if !strings.Contains(feed, w) {
				t.Errorf("%s lacks %q", tc.makefile, w)
			}
		}
		_, depends, _ := strings.Cut(feed, tc.depends)
		depends, _, _ = strings.Cut(depends, "\n")
		for _, d := range p.info.Depends {
			if !strings.Contains(depends+" ", "+"+d+" ") {
				t.Errorf("%s depends on %q, want +%s among it", tc.makefile, depends, d)
			}
		}
		if got := len(strings.Fields(depends)); got != len(p.info.Depends) {
			t.Errorf("%s depends on %q, our package on %q", tc.makefile, depends, p.info.Depends)
		}
	}
}
