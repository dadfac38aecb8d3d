package dnssd

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// Lifetimes of records, in seconds.
const (
	hostTTL   = 120 // records that name a host (RFC 6762 §10)
	legacyTTL = 10  // at most, to those who do not speak multicast DNS (§6.7)
)

// topBit of a class is cache-flush in a record (RFC 6762 §10.2), and "unicast answer
// preferred" in a question (§5.4).
const topBit = 1 << 15

// maxQuestions of one message are looked at.
const maxQuestions = 32

// own is what this device claims: its host name, and one instance of each service type.
// It is not changed once it is in use.
type own struct {
	host     string // "cloudrest-1a2b3c4d.local."
	instance string // "Garden 1a2b3c4d"
	port     uint16
	text     []string
}

var services = []string{Service, ServiceHTTPS}

// name is the full, escaped name of the instance of a service type.
func (o *own) name(service string) string {
	return escape(o.instance) + "." + service + "." + domain + "."
}

// service returns which of our instances a full name is.
func (o *own) service(name string) (string, bool) {
	for _, s := range services {
		if strings.EqualFold(name, o.name(s)) {
			return s, true
		}
	}
	return "", false
}

func (o *own) srv(service string) *dns.SRV {
	return &dns.SRV{Hdr: header(o.name(service), dns.TypeSRV, hostTTL), Port: o.port, Target: o.host}
}

func (o *own) txt(service string) *dns.TXT {
	return &dns.TXT{Hdr: header(o.name(service), dns.TypeTXT, hostTTL), Txt: escapeText(o.text)}
}

// escapeText writes strings of a TXT record the way package dns packs them.
func escapeText(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ReplaceAll(s, `\`, `\\`)
	}
	return out
}

// header is that of a record that is ours alone: with the cache-flush bit.
func header(name string, kind uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET | topBit, Ttl: ttl}
}

// addresses are those of an interface that are told there: all of IPv4; of IPv6 the
// global and unique local ones, or else the link-local. zeroconf tells the same
// ones, or the two would flush each other from the caches.
func addresses(in lan.Interface) []netip.Addr {
	var v4, v6, link []netip.Addr
	for _, p := range in.Prefixes {
		switch a := p.Addr(); {
		case a.IsLoopback():
		case a.Is4():
			v4 = append(v4, a)
		case a.IsGlobalUnicast():
			v6 = append(v6, a)
		case a.IsLinkLocalUnicast():
			link = append(link, a)
		}
	}
	if len(v6) == 0 {
		v6 = link
	}
	return append(v4, v6...)
}

// hosts are address records of the host; ttl 0 takes them back.
func (o *own) hosts(addrs []netip.Addr, ttl uint32) (rrs []dns.RR) {
	for _, a := range addrs {
		if a.Is4() {
			rrs = append(rrs, &dns.A{Hdr: header(o.host, dns.TypeA, ttl), A: a.AsSlice()})
		} else {
			rrs = append(rrs, &dns.AAAA{Hdr: header(o.host, dns.TypeAAAA, ttl), AAAA: a.AsSlice()})
		}
	}
	return rrs
}

// nsec says that the host has no records but those of its addresses (RFC 6762 §6.1), so
// that nobody waits for an IPv6 address that will not come.
func (o *own) nsec(addrs []netip.Addr) dns.RR {
	rr := &dns.NSEC{Hdr: header(o.host, dns.TypeNSEC, hostTTL), NextDomain: o.host}
	if slices.ContainsFunc(addrs, netip.Addr.Is4) {
		rr.TypeBitMap = append(rr.TypeBitMap, dns.TypeA)
	}
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		rr.TypeBitMap = append(rr.TypeBitMap, dns.TypeAAAA)
	}
	return rr
}

// reply answers what zeroconf leaves: questions for the host name, and probes for our
// instances, which it takes for something else and passes over. addrs are those of the
// interface. It returns nil when there is nothing to say.
func (o *own) reply(q *dns.Msg, addrs []netip.Addr) *dns.Msg {
	if q.Response || q.Opcode != dns.OpcodeQuery || len(addrs) == 0 {
		return nil
	}
	probe := len(q.Ns) > 0 // RFC 6762 §8.1
	r := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true}
	for i, question := range q.Question {
		if i == maxQuestions {
			break
		}
		if class := question.Qclass &^ topBit; class != dns.ClassINET && class != dns.ClassANY {
			continue
		}
		asks := func(kind uint16) bool { return question.Qtype == kind || question.Qtype == dns.TypeANY }
		if strings.EqualFold(question.Name, o.host) {
			found := false
			for _, rr := range o.hosts(addrs, hostTTL) {
				if asks(rr.Header().Rrtype) {
					found = true
					r.Answer = addNew(r.Answer, rr, q.Answer)
				}
			}
			if !found {
				r.Answer = addNew(r.Answer, o.nsec(addrs), q.Answer)
			}
		}
		if service, ok := o.service(question.Name); ok && probe {
			if asks(dns.TypeSRV) {
				r.Answer = addNew(r.Answer, o.srv(service), nil)
			}
			if asks(dns.TypeTXT) {
				r.Answer = addNew(r.Answer, o.txt(service), nil)
			}
		}
	}
	if len(r.Answer) == 0 {
		return nil
	}
	for _, rr := range append(o.hosts(addrs, hostTTL), o.nsec(addrs)) { // RFC 6762 §7.2, §6.1
		if !slices.ContainsFunc(r.Answer, func(have dns.RR) bool { return same(have, rr) }) {
			r.Extra = append(r.Extra, rr)
		}
	}
	return r
}

// addNew appends rr unless it is there, or the asker knows it and will for at least half of
// its life (RFC 6762 §7.1).
func addNew(list []dns.RR, rr dns.RR, known []dns.RR) []dns.RR {
	if slices.ContainsFunc(list, func(have dns.RR) bool { return same(have, rr) }) {
		return list
	}
	for _, k := range known {
		if same(k, rr) && k.Header().Ttl >= rr.Header().Ttl/2 {
			return list
		}
	}
	return append(list, rr)
}

// same reports whether two records are equal but for lifetime and cache-flush bit.
func same(a, b dns.RR) bool {
	x, y := a.Header(), b.Header()
	if x.Rrtype != y.Rrtype || !strings.EqualFold(x.Name, y.Name) || x.Class&^topBit != y.Class&^topBit {
		return false
	}
	switch a := a.(type) {
	case *dns.A:
		b, ok := b.(*dns.A)
		return ok && a.A.Equal(b.A)
	case *dns.AAAA:
		b, ok := b.(*dns.AAAA)
		return ok && a.AAAA.Equal(b.AAAA)
	}
	return dns.IsDuplicate(a, b)
}

// legacy turns a reply into one for an asker that does not speak multicast DNS, a plain
// resolver that asked from another port (RFC 6762 §6.7).
func legacy(r, q *dns.Msg) *dns.Msg {
	r.Id, r.Question = q.Id, q.Question[:min(len(q.Question), maxQuestions)]
	for _, rr := range slices.Concat(r.Answer, r.Extra) {
		h := rr.Header()
		h.Class &^= topBit
		h.Ttl = min(h.Ttl, legacyTTL)
	}
	return r
}

// conflict reports which of our names somebody else claims in a response. mine reports
// whether an address is of this machine, or was until a moment ago; former is the host name
// that we leave, or "".
func (o *own) conflict(m *dns.Msg, former string, mine func(netip.Addr) bool) (host, instance bool) {
	if !m.Response {
		return false, false
	}
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		if rr.Header().Ttl == 0 || rr.Header().Class&^topBit != dns.ClassINET {
			continue // a goodbye takes nothing from us
		}
		switch rr := rr.(type) {
		case *dns.A:
			host = host || o.foreign(rr.Hdr.Name, rr.A, mine)
		case *dns.AAAA:
			host = host || o.foreign(rr.Hdr.Name, rr.AAAA, mine)
		case *dns.SRV:
			// Our own record, told by ourselves, a repeater, or our other interface, names our host.
			if _, ok := o.service(rr.Hdr.Name); ok && !strings.EqualFold(rr.Target, o.host) && !strings.EqualFold(rr.Target, former) {
				instance = true
			}
		}
	}
	return host, instance
}

func (o *own) foreign(name string, ip net.IP, mine func(netip.Addr) bool) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && strings.EqualFold(name, o.host) && !mine(a.Unmap())
}

// probe asks whether somebody has our names, and tells those who would take them what we are
// going to say (RFC 6762 §8.1). The first one asks only: responders built on zeroconf pass
// over a question with records.
func (o *own) probe(addrs []netip.Addr, first bool) *dns.Msg {
	m := new(dns.Msg)
	for _, name := range []string{o.host, o.name(Service), o.name(ServiceHTTPS)} {
		m.Question = append(m.Question, dns.Question{Name: name, Qtype: dns.TypeANY, Qclass: dns.ClassINET})
	}
	if !first {
		m.Ns = o.hosts(addrs, hostTTL)
		for _, s := range services {
			m.Ns = append(m.Ns, o.srv(s), o.txt(s))
		}
		for _, rr := range m.Ns {
			rr.Header().Class &^= topBit // RFC 6762 §10.2: not in proposed records
		}
	}
	m.Compress = true
	return m
}

// announcement tells the host's addresses, and takes back those in gone.
func (o *own) announcement(addrs, gone []netip.Addr) *dns.Msg {
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true}
	m.Answer = append(o.hosts(addrs, hostTTL), o.hosts(gone, 0)...)
	if len(addrs) > 0 {
		m.Extra = []dns.RR{o.nsec(addrs)}
	}
	return m
}
