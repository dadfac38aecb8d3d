package dnssd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	zone "github.com/miekg/dns"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

var testOwn = &own{host: "cloudrest-1a2b3c4d.local.", instance: "My Garden 1a2b3c4d", port: 8443, text: []string{"id=x"}}

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// show writes records briefly: type, data, and "!" for the cache-flush bit.
func show(rrs []dns.RR) string {
	var list []string
	b, err := (&dns.Msg{Answer: rrs}).Pack()
	if err != nil {
		return err.Error()
	}
	var read zone.Msg // another implementation reads what ours wrote
	if err := read.Unpack(b); err != nil {
		return err.Error()
	}
	for _, rr := range read.Answer {
		s := zone.TypeToString[rr.Header().Rrtype] + " " + strings.TrimPrefix(rr.String(), rr.Header().String())
		if rr.Header().Class&topBit != 0 {
			s += "!"
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

func TestReply(t *testing.T) {
	const host = "cloudrest-1a2b3c4d.local."
	both := addrs("10.0.0.1", "fd00::1")
	const nsec = "NSEC cloudrest-1a2b3c4d.local. A AAAA!"
	known := func(q *dns.Msg, line string) *dns.Msg {
		q.Answer = append(q.Answer, zoneRecord(t, line))
		return q
	}
	probe := func(name string, kind uint16) *dns.Msg {
		q := question(name, kind)
		q.Ns = testOwn.hosts(both, 120)
		return q
	}
	unicast := question(host, dns.TypeA)
	unicast.Question[0].Qclass |= topBit
	chaos := question(host, dns.TypeA)
	chaos.Question[0].Qclass = zone.ClassCHAOS
	two := question(host, dns.TypeA)
	two.Question = append(two.Question, two.Question[0], dns.Question{Name: host, Qtype: dns.TypeAAAA, Qclass: dns.ClassANY})
	many := new(dns.Msg)
	for range maxQuestions {
		many.Question = append(many.Question, dns.Question{Name: "other.local.", Qtype: dns.TypeA, Qclass: 1})
	}
	many.Question = append(many.Question, dns.Question{Name: host, Qtype: dns.TypeA, Qclass: 1})
	tests := []struct {
		name  string
		q     *dns.Msg
		addrs []netip.Addr
		want  string // answers | additional
	}{
		{"A", question(host, dns.TypeA), both, "A 10.0.0.1! | AAAA fd00::1!, " + nsec},
		{"AAAA in capitals", question("CloudREST-1A2B3C4D.LOCAL.", dns.TypeAAAA), both, "AAAA fd00::1! | A 10.0.0.1!, " + nsec},
		{"ANY", question(host, dns.TypeANY), both, "A 10.0.0.1!, AAAA fd00::1! | " + nsec},
		{"§5.4 unicast preferred", unicast, both, "A 10.0.0.1! | AAAA fd00::1!, " + nsec},
		{"two addresses", question(host, dns.TypeA), addrs("10.0.0.1", "10.0.0.2"), "A 10.0.0.1!, A 10.0.0.2! | NSEC cloudrest-1a2b3c4d.local. A!"},
		{"two questions, one twice", two, both, "A 10.0.0.1!, AAAA fd00::1! | " + nsec},
		{"§6.1 no IPv6", question(host, dns.TypeAAAA), addrs("10.0.0.1"), "NSEC cloudrest-1a2b3c4d.local. A! | A 10.0.0.1!"},
		{"§6.1 another type", question(host, zone.TypeHINFO), both, nsec + " | A 10.0.0.1!, AAAA fd00::1!"},
		{"§7.1 known", known(question(host, dns.TypeA), host+" 60 IN A 10.0.0.1"), both, ""},
		{"§7.1 known, but for less than half", known(question(host, dns.TypeA), host+" 59 IN A 10.0.0.1"), both, "A 10.0.0.1! | AAAA fd00::1!, " + nsec},
		{"§7.1 another known", known(question(host, dns.TypeA), host+" 120 IN A 10.0.0.9"), both, "A 10.0.0.1! | AAAA fd00::1!, " + nsec},
		{"another host", question("garden.local.", dns.TypeA), both, ""},
		{"another class", chaos, both, ""},
		{"no address here", question(host, dns.TypeA), nil, ""},
		{"a response", &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Question: question(host, dns.TypeA).Question}, both, ""},
		{"an update", &dns.Msg{MsgHdr: dns.MsgHdr{Opcode: zone.OpcodeUpdate}, Question: question(host, dns.TypeA).Question}, both, ""},
		{"too many questions", many, both, ""},
		{"zeroconf answers for the instance", question(testOwn.name(Service), dns.TypeSRV), both, ""},
		{"§8.1 but not probes", probe(testOwn.name(Service), dns.TypeANY), both,
			"SRV 0 0 8443 cloudrest-1a2b3c4d.local.!, TXT \"id=x\"! | A 10.0.0.1!, AAAA fd00::1!, " + nsec},
		{"§8.1 probe for the other type", probe(testOwn.name(ServiceHTTPS), dns.TypeSRV), both, "SRV 0 0 8443 cloudrest-1a2b3c4d.local.! | A 10.0.0.1!, AAAA fd00::1!, " + nsec},
		{"§8.1 probe for the host", probe(host, dns.TypeANY), both, "A 10.0.0.1!, AAAA fd00::1! | " + nsec},
		{"probe for another", probe("x._cloudrest._tcp.local.", dns.TypeANY), both, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if r := testOwn.reply(tt.q, tt.addrs); r != nil {
				got = show(r.Answer) + " | " + show(r.Extra)
				if !r.Response || !r.Authoritative || len(r.Question) != 0 {
					t.Errorf("header %+v, questions %v", r.MsgHdr, r.Question)
				}
				for _, rr := range slices.Concat(r.Answer, r.Extra) {
					if rr.Header().Ttl != hostTTL {
						t.Errorf("lifetime of %v, want %d", rr, hostTTL)
					}
				}
			}
			if got != tt.want {
				t.Errorf("reply = %s\nwant    %s", got, tt.want)
			}
		})
	}
}

func TestLegacy(t *testing.T) {
	q := question(testOwn.host, dns.TypeA)
	q.Id = 77
	r := legacy(testOwn.reply(q, addrs("10.0.0.1")), q)
	if r.Id != 77 || len(r.Question) != 1 || show(r.Answer) != "A 10.0.0.1" || r.Answer[0].Header().Ttl != legacyTTL {
		t.Errorf("§6.7: reply = %v", r)
	}
}

func TestConflict(t *testing.T) {
	mine := func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") }
	full := testOwn.name(Service)
	for _, tt := range []struct {
		name           string
		line           string
		host, instance bool
	}{
		{"our address", "cloudrest-1a2b3c4d.local. 120 IN A 10.0.0.1", false, false},
		{"another's address", "CLOUDREST-1a2b3c4d.local. 120 IN A 10.0.0.2", true, false},
		{"another's IPv6 address", "cloudrest-1a2b3c4d.local. 120 IN AAAA fe80::2", true, false},
		{"another's goodbye", "cloudrest-1a2b3c4d.local. 0 IN A 10.0.0.2", false, false},
		{"another host", "garden.local. 120 IN A 10.0.0.2", false, false},
		{"our service", full + " 120 IN SRV 0 0 1 cloudrest-1A2B3C4D.local.", false, false},
		{"our service under our former host name", full + " 120 IN SRV 0 0 1 former.local.", false, false},
		{"another's service", full + " 120 IN SRV 0 0 8443 garden.local.", false, true},
		{"another's service of the other type", testOwn.name(ServiceHTTPS) + " 120 IN SRV 0 0 8443 garden.local.", false, true},
		{"another instance", "x._cloudrest._tcp.local. 120 IN SRV 0 0 8443 garden.local.", false, false},
		{"another class", full + " 120 CH SRV 0 0 8443 garden.local.", false, false},
	} {
		if h, i := testOwn.conflict(message(t, tt.line), "former.local.", mine); h != tt.host || i != tt.instance {
			t.Errorf("%s: conflict = %v, %v, want %v, %v", tt.name, h, i, tt.host, tt.instance)
		}
	}
	q := message(t, full+" 120 IN SRV 0 0 8443 garden.local.")
	q.Response = false
	if h, i := testOwn.conflict(q, "", mine); h || i {
		t.Error("a known answer in a question counts as a claim")
	}
}

func TestAddresses(t *testing.T) {
	in := lan.Interface{}
	for _, s := range []string{"10.0.0.1/24", "169.254.1.1/16", "127.0.0.1/8", "::1/128", "fe80::1/64"} {
		in.Prefixes = append(in.Prefixes, netip.MustParsePrefix(s))
	}
	if got, want := addresses(in), addrs("10.0.0.1", "169.254.1.1", "fe80::1"); !slices.Equal(got, want) {
		t.Errorf("addresses = %v, want %v", got, want)
	}
	in.Prefixes = append(in.Prefixes, netip.MustParsePrefix("fd00::1/64"))
	if got, want := addresses(in), addrs("10.0.0.1", "169.254.1.1", "fd00::1"); !slices.Equal(got, want) {
		t.Errorf("addresses with a unique local one = %v, want %v", got, want)
	}
}

// Whatever is asked, the answer can be sent and is bounded.
func FuzzReply(f *testing.F) {
	add := func(m *dns.Msg) {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(question(testOwn.host, dns.TypeA))
	add(testOwn.probe(addrs("10.0.0.9", "fe80::9"), false))
	add(testOwn.probe(nil, true))
	add(testOwn.announcement(addrs("10.0.0.9"), addrs("10.0.0.8")))
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1}) // a name that points to itself
	own := addrs("10.0.0.1", "10.0.0.2", "fd00::1")
	f.Fuzz(func(t *testing.T, b []byte) {
		var q dns.Msg
		if len(b) > maxPacket || q.Unpack(b) != nil {
			return
		}
		testOwn.conflict(&q, "", func(netip.Addr) bool { return false })
		r := testOwn.reply(&q, own)
		if r == nil {
			return
		}
		if len(r.Answer)+len(r.Extra) > len(own)+1+2*len(services) {
			t.Fatalf("%d records: %v", len(r.Answer)+len(r.Extra), r)
		}
		out, err := r.Pack()
		if err != nil || len(out) > 1232 {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		if _, err := legacy(r, &q).Pack(); err != nil {
			t.Fatalf("answer to a plain resolver cannot be sent: %v", err)
		}
	})
}
