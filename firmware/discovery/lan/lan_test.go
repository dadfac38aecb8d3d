package lan

import (
	"net"
	"net/netip"
	"testing"
)

func prefixes(t *testing.T, cidrs ...string) (ps []netip.Prefix) {
	t.Helper()
	for _, c := range cidrs {
		ps = append(ps, netip.MustParsePrefix(c))
	}
	return ps
}

func TestChosen(t *testing.T) {
	const ether = net.FlagUp | net.FlagRunning | net.FlagBroadcast | net.FlagMulticast
	tests := []struct {
		name  string
		in    Interface
		names []string
		want  bool
	}{
		{"home network", Interface{Name: "br-lan", Flags: ether, Prefixes: prefixes(t, "192.168.1.1/24", "2001:db8::1/64")}, nil, true},
		{"RFC 3927 address", Interface{Name: "eth0", Flags: ether, Prefixes: prefixes(t, "169.254.3.4/16")}, nil, true},
		{"IPv6 only", Interface{Name: "eth0", Flags: ether, Prefixes: prefixes(t, "fe80::1/64", "2001:db8::1/64")}, nil, true},
		{"uplink with a public address", Interface{Name: "wan", Flags: ether, Prefixes: prefixes(t, "203.0.113.7/24", "fe80::1/64")}, nil, false},
		{"uplink behind RFC 6598", Interface{Name: "wan", Flags: ether, Prefixes: prefixes(t, "100.64.3.4/10")}, nil, false},
		{"a named uplink", Interface{Name: "wan", Flags: ether, Prefixes: prefixes(t, "203.0.113.7/24")}, []string{"wan"}, true},
		{"not among the named", Interface{Name: "eth0", Flags: ether, Prefixes: prefixes(t, "192.168.1.1/24")}, []string{"br-lan"}, false},
		{"no address", Interface{Name: "eth0", Flags: ether}, []string{"eth0"}, false},
		{"loopback", Interface{Name: "lo", Flags: net.FlagUp | net.FlagLoopback | net.FlagMulticast, Prefixes: prefixes(t, "127.0.0.1/8")}, nil, false},
		{"named loopback", Interface{Name: "lo", Flags: net.FlagUp | net.FlagLoopback, Prefixes: prefixes(t, "127.0.0.1/8")}, []string{"lo"}, true},
		{"point to point", Interface{Name: "ppp0", Flags: ether | net.FlagPointToPoint, Prefixes: prefixes(t, "10.0.0.1/32")}, nil, false},
		{"no multicast", Interface{Name: "wg0", Flags: net.FlagUp | net.FlagRunning, Prefixes: prefixes(t, "10.0.0.1/24")}, nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.in.chosen(tt.names); got != tt.want {
				t.Errorf("chosen(%q) = %v, want %v", tt.names, got, tt.want)
			}
		})
	}
}

func TestLocal(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "172.16.0.1": true, "172.32.0.1": false, "192.168.0.9": true, "::ffff:192.168.0.9": true,
		"169.254.1.1": true, "127.0.0.1": true, "::1": true, "fe80::1": true, "fd12::1": true,
		"100.64.0.1": false, "8.8.8.8": false, "2001:db8::1": false, "224.0.0.251": false, "0.0.0.0": false, "255.255.255.255": false,
	} {
		if got := Local(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Local(%s) = %v, want %v", addr, got, want)
		}
	}
}

func TestFacing(t *testing.T) {
	in := Interface{Prefixes: prefixes(t, "192.168.1.1/24", "10.0.0.1/8", "fe80::1/64")}
	for peer, want := range map[string]string{
		"10.9.9.9": "10.0.0.1", "192.168.1.77": "192.168.1.1", "::ffff:192.168.1.77": "192.168.1.1",
		"fe80::2%eth0": "fe80::1", "192.168.2.1": "", "fd00::1": "",
	} {
		got, ok := in.Facing(netip.MustParseAddr(peer))
		if ok != (want != "") || ok && got != netip.MustParseAddr(want) {
			t.Errorf("Facing(%s) = %v, %v, want %q", peer, got, ok, want)
		}
	}
	if !in.Has(netip.MustParseAddr("fe80::1%eth3")) || in.Has(netip.MustParseAddr("192.168.1.2")) {
		t.Error("Has is wrong about fe80::1 or 192.168.1.2")
	}
}

func TestAllReadsLoopback(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range all {
		if in.Flags&net.FlagLoopback != 0 {
			if !in.Has(netip.MustParseAddr("127.0.0.1")) {
				t.Errorf("%s has %v, want 127.0.0.1 among them", in.Name, in.Prefixes)
			}
			return
		}
	}
	t.Skip("skipped: no loopback interface is up here")
}
