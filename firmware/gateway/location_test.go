package gateway

import (
	"net/netip"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

func TestLANURL(t *testing.T) {
	for _, c := range []struct {
		name, bound string
		addrs       []string
		want        string
	}{
		{"IPv4 before IPv6", "[::]:8443", []string{"fe80::1/64", "fd00::7/64", "192.168.1.20/24"}, "https://192.168.1.20:8443/"},
		{"private before public", "0.0.0.0:443", []string{"203.0.113.5/24", "10.0.0.7/8"}, "https://10.0.0.7/"},
		{"the first of equals", "[::]:443", []string{"10.0.0.7/8", "10.0.0.8/8"}, "https://10.0.0.7/"},
		{"IPv6 private before public", "[::]:443", []string{"2001:db8::7/64", "fd00::7/64"}, "https://[fd00::7]/"},
		{"a link-local address where there is no other", "[::]:443", []string{"169.254.7.7/16"}, "https://169.254.7.7/"},
		{"any other before a link-local one", "[::]:443", []string{"169.254.7.7/16", "2001:db8::7/64"}, "https://[2001:db8::7]/"},
		{"IPv6 link-local needs a zone", "[::]:443", []string{"fe80::1/64"}, ""},
		{"an IPv4 listener has no IPv6 address", "0.0.0.0:443", []string{"fd00::7/64"}, ""},
		{"never loopback of an open listener", "[::]:443", []string{"127.0.0.1/8", "::1/128"}, ""},
		{"no interface", "[::]:443", nil, ""},
		{"bound to one address", "10.0.0.8:443", []string{"10.0.0.7/8", "10.0.0.8/8"}, "https://10.0.0.8/"},
		{"bound to loopback", "127.0.0.1:8443", []string{"10.0.0.7/8"}, "https://127.0.0.1:8443/"},
		{"bound to IPv6 link-local", "[fe80::1%eth0]:443", nil, ""},
	} {
		g := &Gateway{}
		g.addr.HTTPS = netip.MustParseAddrPort(c.bound)
		var in lan.Interface
		for _, a := range c.addrs {
			in.Prefixes = append(in.Prefixes, netip.MustParsePrefix(a))
		}
		if got := g.lanURL([]lan.Interface{in}); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLocationTellsChanges(t *testing.T) {
	var l location
	told := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	first := l.Changed()
	l.set("")
	if told(first) {
		t.Error("the same URL counts as a change")
	}
	l.set("https://10.0.0.7/")
	if !told(first) || l.URL() != "https://10.0.0.7/" || told(l.Changed()) {
		t.Errorf("after a change: told %v, URL %q, told again %v, want true once", told(first), l.URL(), told(l.Changed()))
	}
}
