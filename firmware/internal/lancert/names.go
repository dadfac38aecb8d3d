package lancert

import (
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cloudrest/cloudrest/tether"
)

// maxAddrs is how many addresses are in a leaf at most; the first ones count.
const maxAddrs = 32

// suffixes are the domains that home networks give their machines, of which none can be
// bought: mDNS (RFC 6762 §3), home routers (RFC 8375 §4; lan by custom), ICANN's for private use.
var suffixes = []string{"local", "lan", "home.arpa", "internal"}

// ranges are those of local networks: RFC 1918, RFC 3927, RFC 1122 §3.2.1.3; RFC 4193,
// RFC 4291 §2.5.3 and §2.5.6.
var ranges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::1/128"),
}

// LocalName is the mDNS host name that the leaf of a device holds.
func LocalName(id tether.DeviceID) string { return "cloudrest-" + id.Short() + ".local" }

// constrain limits what the authority may sign for (RFC 5280 §4.2.1.10): who installs it in
// a browser gives the device no power over names of the internet.
func constrain(template *x509.Certificate, host string) {
	template.PermittedDNSDomainsCritical = true
	template.PermittedDNSDomains = append([]string{"localhost"}, suffixes...)
	if host = cleanHost(host); host != "" && !mayBeTopLevel(host) && !within(host, template.PermittedDNSDomains) {
		template.PermittedDNSDomains = append(template.PermittedDNSDomains, host)
	}
	for _, p := range ranges {
		template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{
			IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		})
	}
}

// mayBeTopLevel reports whether a host name could also be a top-level domain: one word of
// letters (RFC 3696 §2), or an internationalized one. "camera" and "garden" are. To permit
// it would permit all names below it.
func mayBeTopLevel(host string) bool {
	return !strings.Contains(host, ".") && (strings.HasPrefix(host, "xn--") || !strings.ContainsAny(host, "0123456789-"))
}

// within reports whether a name is one of the domains or below one.
func within(name string, domains []string) bool {
	return slices.ContainsFunc(domains, func(d string) bool {
		return name == d || strings.HasSuffix(name, "."+d)
	})
}

// names are those of the leaf: what the authority may sign of the device's names.
func (a *Authority) names() []string {
	list := []string{LocalName(a.id), "localhost"}
	if h := cleanHost(a.host); h != "" {
		list = append(list, h)
		if !strings.Contains(h, ".") {
			for _, s := range suffixes {
				list = append(list, h+"."+s)
			}
		}
	}
	list = slices.DeleteFunc(list, func(n string) bool { return len(n) > 253 || !within(n, a.ca.PermittedDNSDomains) })
	slices.Sort(list)
	return slices.Compact(list)
}

// cleanHost is a host name as it can stand in a certificate, or "": machines have odd ones,
// and localhost is in it anyway.
func cleanHost(h string) string {
	h = strings.TrimSuffix(strings.ToLower(h), ".")
	if len(h) > 253 || h == "localhost" {
		return ""
	}
	if _, err := netip.ParseAddr(h); err == nil {
		return ""
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return ""
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return ""
			}
		}
	}
	return h
}

// addresses are those of the leaf: loopback, and what the authority may sign of the
// device's.
func (a *Authority) addresses() []netip.Addr {
	all := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, addr := range a.addrs {
		addr = addr.Unmap().WithZone("")
		ok := slices.ContainsFunc(a.ca.PermittedIPRanges, func(n *net.IPNet) bool { return n.Contains(addr.AsSlice()) })
		if ok && !slices.Contains(all, addr) && len(all) < maxAddrs {
			all = append(all, addr)
		}
	}
	return all
}

// missing is the first name or address that a leaf does not hold; empty if it holds all.
func missing(leaf *x509.Certificate, names []string, ips []netip.Addr) string {
	for _, n := range names {
		if !slices.Contains(leaf.DNSNames, n) {
			return n
		}
	}
	for _, ip := range ips {
		if !slices.ContainsFunc(leaf.IPAddresses, func(have net.IP) bool { return have.Equal(ip.AsSlice()) }) {
			return ip.String()
		}
	}
	return ""
}
