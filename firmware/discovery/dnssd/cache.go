package dnssd

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/tether"
)

// Entry is one service instance as it was found, has changed, or went.
type Entry struct {
	Instance string // "Garden 1a2b3c4d"; what cannot be shown is replaced by spaces
	Service  string // "_cloudrest._tcp"
	Host     string // without the last dot
	// Addrs are in order: IPv4, then IPv6, link-local ones last, with the zone they were heard in.
	Addrs []netip.Addr
	Port  int
	// TXT holds the strings of the record by lower-case key; a string without "=" has the
	// value "". What cannot be shown is replaced by spaces.
	TXT map[string]string

	Update bool // it was told before, and something is different now
	Gone   bool // it said goodbye, or its records ended; the rest is as last told
}

// ID is the device ID in the TXT record, or "" when there is none.
func (e Entry) ID() tether.DeviceID {
	id, err := tether.ParseDeviceID(e.TXT[KeyID])
	if err != nil {
		return ""
	}
	return id
}

// Bounds of a browser. What comes on top is dropped: who invents devices must not fill
// the memory of those who look for them.
const (
	defaultMax  = 256 // service instances
	maxAddrs    = 16  // addresses of a host
	maxKeys     = 64  // strings of a TXT record
	maxRecords  = 512 // records of a message that are looked at
	maxLifetime = 75 * time.Minute
)

// Times of a cache (RFC 6762).
const (
	goodbyeTime = time.Second // §10.1: what is taken back may return in this
	staleTime   = time.Second // §10.2: a cache-flush spares what is younger
)

// cache puts records of one service type together into entries. It does no I/O and is
// not safe for concurrent use.
type cache struct {
	service   string // "_cloudrest._tcp"
	max       int
	instances map[string]*instance // by full name in lower case
	hosts     map[string]*hostRecs // by name in lower case; only those that instances name
}

// record is the life of one record.
type record struct {
	born, dies time.Time
	asks       int // how often it was asked for again since born
}

func (r record) alive(now time.Time) bool { return now.Before(r.dies) }

type instance struct {
	full          string // as it was written
	name          string
	ptr, srv, txt record
	host          string // as it was written; "" until srv came
	port          int
	text          map[string]string
	asked         time.Time // last question for what is missing
	tries         int       // such questions since it was complete
	told          *Entry    // nil: never told, or gone since
}

type hostRecs struct {
	addrs map[netip.Addr]*record
}

func newCache(service string, max int) *cache {
	return &cache{service: service, max: max, instances: map[string]*instance{}, hosts: map[string]*hostRecs{}}
}

func (c *cache) fullService() string { return c.service + "." + domain + "." }

// life is the record's life from now on. TTL 0 is a goodbye, which holds in a second.
func life(ttl uint32, now time.Time) record {
	if ttl == 0 {
		return record{born: now, dies: now.Add(goodbyeTime)}
	}
	return record{born: now, dies: now.Add(min(time.Duration(ttl)*time.Second, maxLifetime))}
}

// renew gives a record that is said again its new life; a goodbye only shortens one.
func (r *record) renew(ttl uint32, now time.Time) {
	if n := life(ttl, now); ttl > 0 {
		*r = n
	} else if n.dies.Before(r.dies) {
		r.dies = n.dies
	}
}

// add takes in a response that was heard on an interface.
func (c *cache) add(m *dns.Msg, zone string, now time.Time) {
	if !m.Response || m.Rcode != dns.RcodeSuccess {
		return
	}
	rrs := slices.Concat(m.Answer, m.Extra)
	rrs = rrs[:min(len(rrs), maxRecords)]
	for _, rr := range rrs {
		if rr.Header().Class&^topBit != dns.ClassINET {
			continue
		}
		switch rr := rr.(type) {
		case *dns.PTR:
			if !strings.EqualFold(rr.Hdr.Name, c.fullService()) {
				continue
			}
			if in := c.instance(rr.Ptr, rr.Hdr.Ttl > 0); in != nil {
				in.ptr.renew(rr.Hdr.Ttl, now)
			}
		case *dns.SRV:
			if in := c.instance(rr.Hdr.Name, false); in != nil {
				in.srv.renew(rr.Hdr.Ttl, now)
				if rr.Hdr.Ttl > 0 && rr.Target != "" {
					in.host, in.port = rr.Target, int(rr.Port)
				}
			}
		case *dns.TXT:
			if in := c.instance(rr.Hdr.Name, false); in != nil {
				in.txt.renew(rr.Hdr.Ttl, now)
				if rr.Hdr.Ttl > 0 {
					in.text = parseText(rr.Txt)
				}
			}
		}
	}
	c.keepNamedHosts()
	for _, rr := range rrs {
		if rr.Header().Class&^topBit != dns.ClassINET {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			c.address(rr.Hdr, rr.A, "", now)
		case *dns.AAAA:
			c.address(rr.Hdr, rr.AAAA, zone, now)
		}
	}
}

// instance returns the instance of a full name, which it makes where it may and there is
// room. The oldest one that never became complete gives way.
func (c *cache) instance(full string, make bool) *instance {
	key := strings.ToLower(full)
	if in := c.instances[key]; in != nil || !make {
		return in
	}
	name, ok := instanceOf(full, c.service)
	if !ok {
		return nil
	}
	if len(c.instances) >= c.max {
		oldest := ""
		for k, in := range c.instances {
			if in.told == nil && (oldest == "" || in.ptr.born.Before(c.instances[oldest].ptr.born)) {
				oldest = k
			}
		}
		if oldest == "" {
			return nil
		}
		delete(c.instances, oldest)
	}
	in := &instance{full: full, name: clean(name)}
	c.instances[key] = in
	return in
}

// keepNamedHosts makes room for the hosts that instances name, and forgets the others.
func (c *cache) keepNamedHosts() {
	named := map[string]*hostRecs{}
	for _, in := range c.instances {
		key := strings.ToLower(in.host)
		if key == "" || named[key] != nil {
			continue
		}
		if named[key] = c.hosts[key]; named[key] == nil {
			named[key] = &hostRecs{addrs: map[netip.Addr]*record{}}
		}
	}
	c.hosts = named
}

func (c *cache) address(h dns.RR_Header, ip net.IP, zone string, now time.Time) {
	host := c.hosts[strings.ToLower(h.Name)]
	a, ok := netip.AddrFromSlice(ip)
	if host == nil || !ok {
		return
	}
	a = a.Unmap()
	if a.IsLinkLocalUnicast() && a.Is6() {
		a = a.WithZone(zone) // means nothing without
	}
	if h.Class&topBit != 0 && h.Ttl > 0 {
		// The sender has told all its addresses of this family just now: those of before end.
		for old, r := range host.addrs {
			if old.Is4() == a.Is4() && now.Sub(r.born) > staleTime {
				r.renew(0, now)
			}
		}
	}
	r := host.addrs[a]
	if r == nil {
		if h.Ttl == 0 || len(host.addrs) >= maxAddrs {
			return
		}
		r = &record{}
		host.addrs[a] = r
	}
	r.renew(h.Ttl, now)
}

// parseText reads the strings of a TXT record (RFC 6763 §6.4): the first of a key counts.
func parseText(list []string) map[string]string {
	m := map[string]string{}
	for _, s := range list[:min(len(list), maxKeys)] {
		key, value, _ := strings.Cut(clean(unescape(s)), "=")
		key = strings.ToLower(key)
		if _, twice := m[key]; key != "" && !twice {
			m[key] = value
		}
	}
	return m
}

// changes returns what is new since it was called last, at the time now.
func (c *cache) changes(now time.Time) (list []Entry) {
	for _, host := range c.hosts {
		maps.DeleteFunc(host.addrs, func(_ netip.Addr, r *record) bool { return !r.alive(now) })
	}
	for key, in := range c.instances {
		e, ok := c.entry(in, now)
		switch {
		case ok && in.told == nil:
			in.told = &e
			list = append(list, e)
		case ok && !equal(e, *in.told):
			told := e
			in.told = &told
			e.Update = true
			list = append(list, e)
		case !ok && in.told != nil && !c.alive(in, now):
			e = *in.told
			e.Gone = true
			list = append(list, e)
			in.told = nil
		}
		if !in.ptr.alive(now) && in.told == nil {
			delete(c.instances, key)
		}
	}
	// What went first: it may be what comes, under another name.
	slices.SortFunc(list, func(a, b Entry) int {
		if a.Gone != b.Gone {
			return map[bool]int{true: -1, false: 1}[a.Gone]
		}
		return cmp.Compare(a.Instance, b.Instance)
	})
	return list
}

// alive reports whether an instance may still be there: its pointer and service records
// live, and an address. Addresses live for two minutes, so that a device that
// lost its power without a goodbye goes in that time.
func (c *cache) alive(in *instance, now time.Time) bool {
	if !in.ptr.alive(now) || !in.srv.alive(now) {
		return false
	}
	host := c.hosts[strings.ToLower(in.host)]
	return host != nil && len(host.addrs) > 0
}

// entry is what an instance is now, if all of it is known.
func (c *cache) entry(in *instance, now time.Time) (Entry, bool) {
	if !c.alive(in, now) || !in.txt.alive(now) {
		return Entry{}, false
	}
	host := c.hosts[strings.ToLower(in.host)]
	e := Entry{
		Instance: in.name, Service: c.service, Host: clean(strings.TrimSuffix(unescape(in.host), ".")),
		Port: in.port, TXT: maps.Clone(in.text),
	}
	for a := range host.addrs {
		e.Addrs = append(e.Addrs, a)
	}
	slices.SortFunc(e.Addrs, func(a, b netip.Addr) int {
		rank := func(a netip.Addr) int {
			switch {
			case a.IsLinkLocalUnicast():
				return 2
			case a.Is6():
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b))
	})
	return e, true
}

func equal(a, b Entry) bool {
	return a.Instance == b.Instance && a.Host == b.Host && a.Port == b.Port && slices.Equal(a.Addrs, b.Addrs) && maps.Equal(a.TXT, b.TXT)
}

// known lists the pointers that need not be told again for at least half their lives
// (RFC 6762 §7.1).
func (c *cache) known(now time.Time) (rrs []dns.RR) {
	for _, in := range c.instances {
		left := in.ptr.dies.Sub(now)
		if left <= in.ptr.dies.Sub(in.ptr.born)/2 || in.told == nil || len(rrs) >= maxKnown {
			continue
		}
		rrs = append(rrs, &dns.PTR{
			Hdr: dns.RR_Header{Name: c.fullService(), Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: uint32(left.Seconds())},
			Ptr: in.full,
		})
	}
	return rrs
}

// Asking again.
const (
	maxKnown  = 12 // known answers in one question, so that it fits an Ethernet frame
	maxAsks   = 16 // questions in one message
	missing   = time.Second
	lateAsks  = 4  // a record is asked for again this often before it ends (RFC 6762 §5.2),
	lateFrom  = 80 // from this part of its life on, in percent,
	lateApart = 5  // and this far apart
	maxTries  = 20 // questions for what is missing; then it waits for the next announcement
)

// questions returns what should be asked now because it is missing or ends soon.
func (c *cache) questions(now time.Time) (qs []dns.Question) {
	ask := func(name string, kind uint16) {
		q := dns.Question{Name: name, Qtype: kind, Qclass: dns.ClassINET}
		if len(qs) < maxAsks && !slices.Contains(qs, q) {
			qs = append(qs, q)
		}
	}
	late := func(r *record) bool {
		whole := r.dies.Sub(r.born)
		due := r.born.Add(whole * time.Duration(lateFrom+lateApart*r.asks) / 100)
		if r.asks >= lateAsks || !r.alive(now) || whole <= goodbyeTime || now.Before(due) {
			return false
		}
		r.asks++
		return true
	}
	for _, in := range c.instances {
		if !in.ptr.alive(now) {
			continue
		}
		if late(&in.ptr) {
			ask(c.fullService(), dns.TypePTR)
		}
		host := c.hosts[strings.ToLower(in.host)]
		bare := in.srv.alive(now) && (host == nil || len(host.addrs) == 0)
		switch lacks := !in.srv.alive(now) || !in.txt.alive(now) || bare; {
		case !lacks:
			in.tries = 0
		case in.tries < maxTries && now.Sub(in.asked) >= missing:
			in.asked = now
			in.tries++
			if !in.srv.alive(now) {
				ask(in.full, dns.TypeSRV)
			}
			if !in.txt.alive(now) {
				ask(in.full, dns.TypeTXT)
			}
			if bare {
				ask(in.host, dns.TypeA)
				ask(in.host, dns.TypeAAAA)
			}
		}
		if late(&in.srv) {
			ask(in.full, dns.TypeSRV)
		}
		if late(&in.txt) {
			ask(in.full, dns.TypeTXT)
		}
		if host != nil {
			for a, r := range host.addrs {
				switch {
				case !late(r):
				case a.Is4():
					ask(in.host, dns.TypeA)
				default:
					ask(in.host, dns.TypeAAAA)
				}
			}
		}
	}
	return qs
}
