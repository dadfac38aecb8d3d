package dnssd

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	zone "github.com/miekg/dns"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// message reads records in the form of a zone file; "@" stands for the garden's full name.
func message(t testing.TB, lines ...string) *dns.Msg {
	t.Helper()
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}}
	for _, l := range lines {
		m.Answer = append(m.Answer, zoneRecord(t, strings.ReplaceAll(l, "@", `My\ Garden._cloudrest._tcp.local.`)))
	}
	return m
}

// zoneRecord reads a line of a zone file. Another implementation writes it, and ours reads that.
func zoneRecord(t testing.TB, line string) dns.RR {
	t.Helper()
	rr, err := zone.NewRR(line)
	if err != nil {
		t.Fatal(err)
	}
	b, err := (&zone.Msg{Answer: []zone.RR{rr}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		t.Fatalf("unpack %s: %v", line, err)
	}
	return m.Answer[0]
}

func flush(m *dns.Msg) *dns.Msg {
	for _, rr := range m.Answer {
		rr.Header().Class |= topBit
	}
	return m
}

const (
	ptrLine  = "_cloudrest._tcp.local. 4500 IN PTR @"
	srvLine  = "@ 120 IN SRV 0 0 8443 garden.local."
	txtLine  = `@ 4500 IN TXT "id=x" "Name=Garten \\ \195\164" "flag" "=nokey" "ID=second"`
	aLine    = "garden.local. 120 IN A 10.0.0.7"
	aaaaLine = "garden.local. 120 IN AAAA fe80::7"
)

func garden() Entry {
	return Entry{
		Instance: "My Garden", Service: Service, Host: "garden.local", Port: 8443,
		Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fe80::7%eth0")},
		TXT:   map[string]string{"id": "x", "name": `Garten \ ä`, "flag": ""},
	}
}

func wantChanges(t *testing.T, c *cache, at time.Duration, want ...Entry) {
	t.Helper()
	got := c.changes(t0.Add(at))
	if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
		t.Fatalf("at %v: changes = %+v, want %+v", at, got, want)
	}
}

func TestCacheLife(t *testing.T) {
	c := newCache(Service, 10)
	c.add(message(t, ptrLine), "eth0", t0)
	wantChanges(t, c, 0)
	const full = `My\ Garden._cloudrest._tcp.local.`
	if got, want := c.questions(t0), []dns.Question{{Name: full, Qtype: dns.TypeSRV, Qclass: 1}, {Name: full, Qtype: dns.TypeTXT, Qclass: 1}}; !reflect.DeepEqual(got, want) {
		t.Errorf("questions = %v, want %v", got, want)
	}
	c.add(message(t, aLine), "eth0", t0) // of a host that nobody names: forgotten
	c.add(message(t, srvLine, txtLine), "eth0", t0)
	wantChanges(t, c, 0)
	c.add(message(t, aaaaLine, aLine, "stranger.local. 120 IN A 10.0.0.8"), "eth0", t0)
	e := garden()
	wantChanges(t, c, 0, e)
	wantChanges(t, c, 0)
	c.add(message(t, ptrLine, srvLine, txtLine, aLine, aaaaLine), "eth0", t0.Add(60*time.Second))
	wantChanges(t, c, 60*time.Second)

	// §10.2: a cache-flush ends what is older than a second, a second later.
	c.add(flush(message(t, "garden.local. 120 IN A 10.0.0.9")), "eth0", t0.Add(70*time.Second))
	e.Addrs = []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fe80::7%eth0")}
	e.Update = true
	wantChanges(t, c, 70*time.Second, e)
	e.Addrs = e.Addrs[1:]
	wantChanges(t, c, 72*time.Second, e)

	c.add(message(t, `@ 4500 IN TXT "name=Other"`), "eth0", t0.Add(80*time.Second))
	e.TXT = map[string]string{"name": "Other"}
	wantChanges(t, c, 80*time.Second, e)

	// §10.1: a goodbye holds after a second, unless it is called back.
	bye := "_cloudrest._tcp.local. 0 IN PTR @"
	c.add(message(t, bye), "eth0", t0.Add(90*time.Second))
	wantChanges(t, c, 90*time.Second)
	c.add(message(t, ptrLine), "eth0", t0.Add(90500*time.Millisecond))
	wantChanges(t, c, 95*time.Second)
	c.add(message(t, bye), "eth0", t0.Add(100*time.Second))
	e.Update, e.Gone = false, true
	wantChanges(t, c, 102*time.Second, e)
	if len(c.instances) != 0 {
		t.Errorf("%d instances are kept after the goodbye", len(c.instances))
	}
	c.add(message(t, bye), "eth0", t0.Add(103*time.Second)) // of nobody
	if len(c.instances) != 0 {
		t.Error("a goodbye made an instance")
	}
}

// A device that lost its power goes when its addresses end, and is asked for before.
func TestCacheSilence(t *testing.T) {
	c := newCache(Service, 10)
	c.add(message(t, ptrLine, "@ 4500 IN SRV 0 0 8443 garden.local.", txtLine, aLine), "eth0", t0)
	if got := c.changes(t0); len(got) != 1 {
		t.Fatalf("changes = %+v", got)
	}
	asked := 0
	for s := range 120 {
		now := t0.Add(time.Duration(s) * time.Second)
		for _, q := range c.questions(now) {
			if q.Qtype != dns.TypeA || q.Name != "garden.local." || s < 96 {
				t.Errorf("at %d s: asked %v", s, q)
			}
			asked++
		}
		if got := c.changes(now); len(got) != 0 {
			t.Errorf("at %d s: %+v", s, got)
		}
	}
	if asked != lateAsks {
		t.Errorf("the address was asked for %d times, want %d (§5.2)", asked, lateAsks)
	}
	if got := c.changes(t0.Add(120 * time.Second)); len(got) != 1 || !got[0].Gone {
		t.Errorf("after the address ended: %+v, want gone", got)
	}
	c.add(message(t, aLine), "eth0", t0.Add(130*time.Second)) // back, before the pointer ends
	if got := c.changes(t0.Add(130 * time.Second)); len(got) != 1 || got[0].Gone || got[0].Update {
		t.Errorf("when the address is back: %+v, want found", got)
	}
}

func TestCacheBounds(t *testing.T) {
	const max = 5
	c := newCache(Service, max)
	for i := range 50 {
		c.add(message(t, fmt.Sprintf("_cloudrest._tcp.local. 4500 IN PTR x%d._cloudrest._tcp.local.", i)), "eth0", t0.Add(time.Duration(i)))
	}
	c.add(message(t, ptrLine, srvLine, txtLine, aLine), "eth0", t0.Add(time.Minute))
	if len(c.instances) != max {
		t.Errorf("%d instances, want %d", len(c.instances), max)
	}
	if got := c.changes(t0.Add(time.Minute)); len(got) != 1 || got[0].Instance != "My Garden" {
		t.Errorf("a real device does not get past the invented ones: %+v", got)
	}
	for i := range 50 {
		c.add(message(t, fmt.Sprintf("garden.local. 120 IN A 10.0.1.%d", i)), "eth0", t0.Add(time.Minute))
	}
	if got := c.changes(t0.Add(time.Minute)); len(got) != 1 || len(got[0].Addrs) != maxAddrs {
		t.Errorf("a host with 51 addresses: %+v, want %d kept", got, maxAddrs)
	}
	if n := len(c.hosts); n != 1 {
		t.Errorf("%d hosts, want 1", n)
	}
	tries := 0
	for s := range 300 {
		tries += len(c.questions(t0.Add(time.Minute + time.Duration(s)*time.Second)))
	}
	if limit := (max-1)*2*maxTries + 100; tries > limit {
		t.Errorf("%d questions for instances that never answer, want at most %d", tries, limit)
	}
}

func TestCacheIgnores(t *testing.T) {
	for name, m := range map[string]*dns.Msg{
		"query":         {Answer: message(t, ptrLine, srvLine, txtLine, aLine).Answer},
		"error":         {MsgHdr: dns.MsgHdr{Response: true, Rcode: zone.RcodeRefused}, Answer: message(t, ptrLine, srvLine, txtLine, aLine).Answer},
		"other class":   message(t, "_cloudrest._tcp.local. 4500 CH PTR @"),
		"other service": message(t, "_ipp._tcp.local. 4500 IN PTR x._ipp._tcp.local.", "x._ipp._tcp.local. 120 IN SRV 0 0 1 garden.local."),
		"astray":        message(t, "_cloudrest._tcp.local. 4500 IN PTR x._ipp._tcp.local.", "_cloudrest._tcp.local. 4500 IN PTR _cloudrest._tcp.local."),
		"empty data":    {MsgHdr: dns.MsgHdr{Response: true}, Answer: []dns.RR{&dns.PTR{Hdr: dns.RR_Header{Name: "_cloudrest._tcp.local.", Class: 1, Rrtype: dns.TypePTR, Ttl: 9}}}},
	} {
		c := newCache(Service, 10)
		c.add(m, "eth0", t0)
		if len(c.instances) != 0 {
			t.Errorf("%s: made %v", name, c.instances)
		}
	}
}

func TestCacheKnownAnswers(t *testing.T) {
	c := newCache(Service, 10)
	c.add(message(t, ptrLine, srvLine, txtLine, aLine), "eth0", t0)
	c.changes(t0)
	if got := c.known(t0.Add(time.Minute)); len(got) != 1 || got[0].(*dns.PTR).Ptr != `My\ Garden._cloudrest._tcp.local.` || got[0].Header().Ttl != 4440 {
		t.Errorf("known = %v", got)
	}
	if got := c.known(t0.Add(40 * time.Minute)); len(got) != 0 {
		t.Errorf("known after half the life = %v (§7.1)", got)
	}
}

// What the network sends is read without harm and within the bounds.
func FuzzCache(f *testing.F) {
	for _, lines := range [][]string{
		{ptrLine, srvLine, txtLine, aLine, aaaaLine},
		{"_cloudrest._tcp.local. 0 IN PTR @", `@ 0 IN TXT "\000\255"`},
		{`_cloudrest._tcp.local. 4294967295 IN PTR a\.b\\._cloudrest._tcp.local.`},
	} {
		b, err := message(f, lines...).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-3])
	}
	f.Add([]byte{0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xc0, 0x0c}) // a name that points to itself
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newCache(Service, 4)
		for i := range 3 {
			var m dns.Msg
			if len(b) > maxPacket || m.Unpack(b) != nil {
				return
			}
			now := t0.Add(time.Duration(i) * time.Minute)
			c.add(&m, "eth0", now)
			for _, e := range c.changes(now) {
				if len(e.Addrs) > maxAddrs || len(e.TXT) > maxKeys || e.Instance != clean(e.Instance) {
					t.Fatalf("entry %+v", e)
				}
			}
			if len(c.instances) > 4 || len(c.hosts) > 4 {
				t.Fatalf("%d instances, %d hosts", len(c.instances), len(c.hosts))
			}
			q := dns.Msg{Question: c.questions(now), Answer: c.known(now)}
			if _, err := q.Pack(); err != nil {
				t.Fatalf("questions cannot be sent: %v: %v", err, &q)
			}
		}
	})
}
