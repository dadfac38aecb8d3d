package dnssd

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/netns"
)

const patience = 30 * time.Second // for what takes two seconds on an idle machine

// home is a device and a machine with avahi on one link.
type home struct {
	t            *testing.T
	lab          *netns.Lab
	device, peer *netns.Space
	actor        *netns.Actor
}

func newHome(t *testing.T) *home {
	t.Helper()
	if err := netns.AvahiAvailable(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	t.Parallel() // each home is its own
	h := &home{t: t, lab: netns.Test(t)}
	var err error
	if h.device, err = h.lab.Space("device"); err != nil {
		t.Fatal(err)
	}
	if h.peer, err = h.lab.Space("peer"); err != nil {
		t.Fatal(err)
	}
	if err := h.lab.Join(
		netns.Port{Space: h.device, Dev: "lan0", Addrs: []string{"10.94.0.1/24", "fd00:94::1/64"}},
		netns.Port{Space: h.peer, Dev: "eth0", Addrs: []string{"10.94.0.2/24", "fd00:94::2/64"}}); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *home) avahi() {
	h.t.Helper()
	if _, err := h.peer.Avahi("peer"); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) announce(info Info) {
	h.t.Helper()
	arg, _ := json.Marshal(info)
	var err error
	if h.actor, err = h.device.Actor("device", string(arg)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) tell(info Info) {
	h.t.Helper()
	line, _ := json.Marshal(info)
	if err := h.actor.Say(string(line)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) expect(want string) {
	h.t.Helper()
	if _, err := h.actor.Expect(want, patience); err != nil {
		h.t.Fatal(err)
	}
}

// play starts another role.
func (h *home) play(s *netns.Space, role, arg string) *netns.Actor {
	h.t.Helper()
	a, err := s.Actor(role, arg)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// hear waits for a line of another role.
func (h *home) hear(a *netns.Actor, want string) string {
	h.t.Helper()
	line, err := a.Expect(want, patience)
	if err != nil {
		h.t.Fatalf("%v\nthe device logged: %s", err, h.actor.Log())
	}
	return line
}

func (h *home) stop() {
	h.t.Helper()
	if err := h.actor.Stop(patience); err != nil {
		h.t.Errorf("%v: %s", err, h.actor.Log())
	}
}

// until asks avahi until the answer is right.
func (h *home) until(what string, right func(out string) bool, name string, arg ...string) string {
	h.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		out, err := h.peer.Run(name, arg...)
		if right(out) {
			return out
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("not in %v: %s\n%s %s = %s, %v\nthe device logged: %s", patience, what, name, strings.Join(arg, " "), out, err, h.actor.Log())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func holds(want ...string) func(string) bool {
	return func(out string) bool {
		for _, w := range want {
			if !strings.Contains(out, w) {
				return false
			}
		}
		return true
	}
}

// resolved finds the fields of a line of avahi-browse -rp for an instance and a protocol;
// it writes names with decimal escapes, as package dns does.
func resolved(out, instance, protocol string) []string {
	for line := range strings.Lines(out) {
		if f := strings.SplitN(strings.TrimSpace(line), ";", 10); len(f) == 10 && f[0] == "=" && f[2] == protocol && unescape(f[3]) == instance {
			return f
		}
	}
	return nil
}

func TestAvahiSeesTheDevice(t *testing.T) {
	h := newHome(t)
	h.avahi()
	h.announce(testInfo())
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d [lan0] <nil>")
	const instance = "Jardín de Ana 1a2b3c4d"
	local := h.play(h.device, "browser", Service) // somebody who looks on the device itself
	h.hear(local, `found "Jardín de Ana 1a2b3c4d" cloudrest-1a2b3c4d.local 8443 [10.94.0.1`)
	for _, service := range []string{"_cloudrest._tcp", "_https._tcp"} {
		out := h.until(service+" is resolved over both families", func(out string) bool {
			return resolved(out, instance, "IPv4") != nil && resolved(out, instance, "IPv6") != nil
		}, "avahi-browse", "-rpt", service)
		for protocol, addr := range map[string]string{"IPv4": "10.94.0.1", "IPv6": "fd00:94::1"} {
			f := resolved(out, instance, protocol)
			// Either family may be resolved to an address of the other.
			if f[6] != "cloudrest-1a2b3c4d.local" || f[8] != "8443" || f[7] != addr && f[7] != "10.94.0.1" && f[7] != "fd00:94::1" {
				t.Errorf("%s over %s: %q", service, protocol, f)
			}
			got := map[string]bool{}
			for _, s := range strings.Split(strings.Trim(f[9], `"`), `" "`) {
				got[unescape(s)] = true
			}
			want := []string{
				"id=" + string(testID), "name=Jardín de Ana", "api=2.1", "fp=" + strings.Repeat("ab", 32),
				"path=/api/", "url=https://cloudrest-1a2b3c4d.local:8443/api/", "v=1.4.0",
			}
			for _, w := range want {
				if !got[w] {
					t.Errorf("%s over %s: TXT %s lacks %q", service, protocol, f[9], w)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s over %s: TXT %s, want %d strings", service, protocol, f[9], len(want))
			}
		}
	}
	// The host name by itself, which zeroconf does not answer.
	h.until("the host name has an IPv4 address", holds("10.94.0.1"), "avahi-resolve", "-4", "-n", "cloudrest-1a2b3c4d.local")
	h.until("the host name has an IPv6 address", holds("fd00:94::1"), "avahi-resolve", "-6", "-n", "cloudrest-1a2b3c4d.local")
	h.stop()
	// The goodbye takes them away, long before their lives end.
	h.hear(local, `gone "Jardín de Ana 1a2b3c4d"`)
	h.until("the services are gone", func(out string) bool { return !strings.Contains(out, "1a2b3c4d") }, "avahi-browse", "-pt", "_cloudrest._tcp")
	h.until("the https service is gone", func(out string) bool { return !strings.Contains(out, "1a2b3c4d") }, "avahi-browse", "-pt", "_https._tcp")
	h.until("the host name is gone", func(out string) bool { return !strings.Contains(out, "10.94.0.1") }, "avahi-resolve", "-4", "-n", "cloudrest-1a2b3c4d.local")
}

func TestHardenFindsTheSockets(t *testing.T) {
	h := newHome(t)
	h.actor = h.play(h.device, "harden", "")
	h.expect("harden: <nil>")
}

// Somebody who probes before us has the name already.
func TestNamesTakenBefore(t *testing.T) {
	h := newHome(t)
	h.avahi()
	taken, err := h.peer.Daemon("avahi-publish", "-s", "Jardín de Ana 1a2b3c4d", "_cloudrest._tcp", "1234")
	if err != nil {
		t.Fatal(err)
	}
	host, err := h.peer.Daemon("avahi-publish", "-a", "-R", "cloudrest-1a2b3c4d.local", "10.94.0.2")
	if err != nil {
		t.Fatal(err)
	}
	h.until("avahi has published the service", func(string) bool { return strings.Contains(taken.Log(), "Established") }, "true")
	h.until("avahi has published the host", func(string) bool { return strings.Contains(host.Log(), "Established") }, "true")
	h.announce(testInfo())
	h.expect("true cloudrest-1a2b3c4d-2.local Jardín de Ana 1a2b3c4d (2) [lan0] <nil>")
	out := h.until("both are listed", func(out string) bool {
		return resolved(out, "Jardín de Ana 1a2b3c4d", "IPv4") != nil && resolved(out, "Jardín de Ana 1a2b3c4d (2)", "IPv4") != nil
	}, "avahi-browse", "-rpt", "_cloudrest._tcp")
	if f := resolved(out, "Jardín de Ana 1a2b3c4d (2)", "IPv4"); f[6] != "cloudrest-1a2b3c4d-2.local" || !strings.Contains(f[9], "url=https://cloudrest-1a2b3c4d-2.local:8443/api/") {
		t.Errorf("second instance = %q", f)
	}
	h.stop()
}

// Somebody who probes after us is told, and takes another name.
func TestNameIsDefended(t *testing.T) {
	h := newHome(t)
	h.avahi()
	h.announce(testInfo())
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d [lan0] <nil>")
	late, err := h.peer.Daemon("avahi-publish", "-s", "Jardín de Ana 1a2b3c4d", "_cloudrest._tcp", "1234")
	if err != nil {
		t.Fatal(err)
	}
	h.until("avahi takes another name", func(string) bool { return strings.Contains(late.Log(), "#2") }, "true")
	h.until("both are listed", func(out string) bool {
		f := resolved(out, "Jardín de Ana 1a2b3c4d", "IPv4")
		g := resolved(out, "Jardín de Ana 1a2b3c4d #2", "IPv4")
		return f != nil && f[8] == "8443" && g != nil && g[8] == "1234"
	}, "avahi-browse", "-rpt", "_cloudrest._tcp")
	if line, err := h.actor.Next(0); err == nil {
		t.Errorf("the device changed to %q", line)
	}
	h.stop()
}

// Somebody who does not ask makes us change.
func TestNameIsLostToOneWhoDoesNotAsk(t *testing.T) {
	h := newHome(t)
	h.announce(testInfo())
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d [lan0] <nil>")
	h.hear(h.play(h.peer, "naive", "Jardín de Ana 1a2b3c4d"), "registered")
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d (2) [lan0] <nil>")
	h.stop()
}

func TestChangesAreFollowed(t *testing.T) {
	h := newHome(t)
	h.avahi()
	if err := h.device.DelAddr("lan0", "10.94.0.1/24"); err != nil {
		t.Fatal(err)
	}
	if err := h.device.Down("lan0"); err != nil {
		t.Fatal(err)
	}
	// Started before there is an interface, as at boot.
	h.announce(testInfo())
	h.expect(ErrNoInterface.Error())
	if err := h.device.Up("lan0"); err != nil {
		t.Fatal(err)
	}
	if err := h.device.AddAddr("lan0", "10.94.0.7/24"); err != nil {
		t.Fatal(err)
	}
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d [lan0] <nil>")
	h.until("the host has its first address", holds("10.94.0.7"), "avahi-resolve", "-4", "-n", "cloudrest-1a2b3c4d.local")
	// Another address, as from a new DHCP lease; the cached one has two minutes to live. (Of
	// the same subnet, it would go together with the first one.)
	if err := h.device.AddAddr("lan0", "10.94.0.8/16"); err != nil {
		t.Fatal(err)
	}
	if err := h.device.DelAddr("lan0", "10.94.0.7/24"); err != nil {
		t.Fatal(err)
	}
	h.until("the first address is taken back", func(out string) bool { return !strings.Contains(out, "10.94.0.7") }, "avahi-resolve", "-4", "-n", "cloudrest-1a2b3c4d.local")
	h.until("the host has its new address", holds("10.94.0.8"), "avahi-resolve", "-4", "-n", "cloudrest-1a2b3c4d.local")
	h.until("the service has it too", func(out string) bool {
		f := resolved(out, "Jardín de Ana 1a2b3c4d", "IPv4")
		return f != nil && f[7] != "10.94.0.7"
	}, "avahi-browse", "-rpt", "_cloudrest._tcp")
	// Another name and version.
	info := testInfo()
	info.Name, info.Version = "Dach", "2.0.0"
	h.tell(info)
	h.expect("true cloudrest-1a2b3c4d.local Dach 1a2b3c4d [lan0] <nil>")
	h.until("the new name is there, the old one gone", func(out string) bool {
		f := resolved(out, "Dach 1a2b3c4d", "IPv4")
		return f != nil && strings.Contains(f[9], "v=2.0.0") && resolved(out, "Jardín de Ana 1a2b3c4d", "IPv4") == nil
	}, "avahi-browse", "-rpt", "_cloudrest._tcp")
	info.Name = "Dachboden"
	h.tell(info)
	h.expect("true cloudrest-1a2b3c4d.local Dachboden 1a2b3c4d [lan0] <nil>")
	// A second interface comes: everything is told there, with its address.
	second, err := h.lab.Space("second")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.lab.Join(netns.Port{Space: h.device, Dev: "lan1", Addrs: []string{"10.95.0.1/24"}}, netns.Port{Space: second, Dev: "eth0", Addrs: []string{"10.95.0.2/24"}}); err != nil {
		t.Fatal(err)
	}
	h.expect("true cloudrest-1a2b3c4d.local Dachboden 1a2b3c4d [lan0 lan1] <nil>")
	b := h.play(second, "browser", Service)
	h.hear(b, `found "Dachboden 1a2b3c4d" cloudrest-1a2b3c4d.local 8443 [10.95.0.1 `)
	h.stop()
	h.hear(b, `gone "Dachboden 1a2b3c4d"`)
}

// Where multicast does not work, that is said once, and tried again.
func TestNoMulticast(t *testing.T) {
	h := newHome(t)
	hog := h.play(h.device, "hog", "")
	h.actor = hog
	h.hear(hog, "held")
	h.announce(testInfo())
	h.expect(ErrNoMulticast.Error())
	h.until("it was tried again", func(string) bool { return strings.Contains(h.actor.Log(), "still nothing is announced") }, "true")
	if err := hog.Say("let go"); err != nil {
		t.Fatal(err)
	}
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d [lan0] <nil>")
	if n := strings.Count(h.actor.Log(), "level=WARN"); n != 1 {
		t.Errorf("the failure was logged %d times, want once: %s", n, h.actor.Log())
	}
	h.stop()
}

// Nothing is told on an uplink, though another program of the device has joined the groups
// there, and unicast questions get no answer anywhere. On the LAN all answers have TTL 255.
func TestUplinkHearsNothing(t *testing.T) {
	h := newHome(t)
	outside, err := h.lab.Space("outside")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.lab.Join(netns.Port{Space: h.device, Dev: "wan0", Addrs: []string{"203.0.113.1/24"}}, netns.Port{Space: outside, Dev: "eth0", Addrs: []string{"203.0.113.2/24"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.device.Avahi("router"); err != nil {
		t.Fatal(err)
	}
	h.announce(testInfo())
	h.expect("true cloudrest-1a2b3c4d.local Jardín de Ana 1a2b3c4d [lan0] <nil>")

	const names = " _cloudrest._tcp.local. router.local. cloudrest-1a2b3c4d.local."
	stranger := h.play(outside, "stranger", "203.0.113.1"+names)
	h.hear(stranger, " A:203.0.113.1") // avahi answers there
	guest := h.play(h.peer, "stranger", "10.94.0.1"+names)
	h.hear(guest, " A:10.94.0.1")
	for range 3 {
		for {
			line, err := stranger.Next(patience)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(line, "1a2b3c4d") {
				t.Fatalf("told on the uplink: %s", line)
			}
			if line == "asked" {
				break
			}
		}
	}
	seen := map[string]bool{}
	for !seen["PTR"] || !seen["SRV"] || !seen["A"] {
		line, err := guest.Next(patience)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(line, "1a2b3c4d") {
			continue
		}
		for _, kind := range []string{"PTR", "SRV", "A"} {
			seen[kind] = seen[kind] || strings.Contains(line, "*dns."+kind+" ")
		}
		if !strings.Contains(line, "ttl 255:") {
			t.Errorf("told on the LAN: %s, want ttl 255", line)
		}
	}
	h.stop()
}

func TestBrowseSeesAvahi(t *testing.T) {
	h := newHome(t)
	h.avahi()
	b := h.play(h.device, "browser", "_cloudrest._tcp")
	h.actor = b
	other := h.play(h.device, "browser", "_ipp._tcp")
	p, err := h.peer.Daemon("avahi-publish", "-s", "Ofen (Küche)", "_cloudrest._tcp", "1234", "id="+string(testID), "name=Ofen", `path=/a\b`)
	if err != nil {
		t.Fatal(err)
	}
	h.hear(b, `found "Ofen (Küche)" peer.local 1234 [`)
	if err := h.peer.AddAddr("eth0", "10.94.0.5/24"); err != nil {
		t.Fatal(err)
	}
	line := h.hear(b, `changed "Ofen (Küche)" peer.local 1234 [10.94.0.2 10.94.0.5 fd00:94::2]`)
	for _, want := range []string{"id:" + string(testID), "name:Ofen", `path:/a\b`} {
		if !strings.Contains(line, want) {
			t.Errorf("entry %q, want %q in it", line, want)
		}
	}
	p.Stop(patience)
	h.hear(b, `gone "Ofen (Küche)"`)
	if line, err := other.Next(0); err == nil {
		t.Errorf("a browser of another type told %q", line)
	}
	for _, a := range []*netns.Actor{b, other} {
		if err := a.Stop(patience); err != nil {
			t.Errorf("%v: %s", err, a.Log())
		}
	}
}
