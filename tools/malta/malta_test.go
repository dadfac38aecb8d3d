//go:build linux

package malta

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	wanted = flag.Bool("malta", false, "run on the emulated board: minutes")
	debian = flag.String("debian", "../../bin/malta", "`directory` that debian.sh filled")
	ipk    = flag.String("ipk", "../../dist/cloudrest_mipsel_24kc.ipk", "the package, `file`")
	seed   = flag.Uint64("seed", 0, "chooses the moments of the power cuts; 0: others each time")
)

// cuts is how often the power is cut in the middle of writes.
const cuts = 6

// badLog is what the gateway, or the shell that stands in for procd, must never say.
var badLog = regexp.MustCompile(`damaged|panic|level=ERROR|fatal error|Out of memory|ended with [1-9].*`)

func parted(t *testing.T) parts {
	t.Helper()
	if !*wanted {
		t.Skip("not asked for, it takes minutes: make test-malta")
	}
	return build(t, *debian, *ipk)
}

// The life of a router: the first start, discovery, pairing, power cuts when all is quiet
// and in the middle of writes, a reboot in good order.
func TestRouter(t *testing.T) {
	b := newBoard(t, parted(t), 64*mib)
	b.on()
	b.note("the board has booted, %s of memory are left to it", strings.Fields(b.sh("grep MemTotal /proc/meminfo"))[1]+" kB")
	if mounts := b.sh("mount"); !strings.Contains(mounts, "overlayfs:/overlay on / type overlay") || !strings.Contains(mounts, "on /overlay type jffs2 (rw") {
		t.Fatalf("/ is not an overlay over JFFS2:\n%s", mounts)
	}

	stranger := newPhone(b, "")
	first := stranger.up()
	b.note("gateway, service and discovery answer; %s", first.Notifications.Durability)
	if want := "snapshot every 5m0s"; first.Notifications.Durability != want || !strings.Contains(b.said(), "state is kept in memory with snapshots on flash") {
		t.Errorf("durability %q, want %q, and the log telling so: bbolt cannot map a file on JFFS2", first.Notifications.Durability, want)
	}
	if files := b.sh("ls /etc/cloudrest"); strings.Contains(files, "state.db") {
		t.Errorf("a database was left behind on JFFS2: %s", files)
	}
	if first.Pairing.Paired || !first.Pairing.Open {
		t.Errorf("a new device tells %+v, want an open window and nobody paired", first.Pairing)
	}
	discovered(t, b, first)

	owner := newPhone(b, first.Pin)
	var refused *statusError
	if _, err := owner.do("GET", "/zones", nil, nil); !errors.As(err, &refused) || refused.code != 401 {
		t.Errorf("the service before pairing: %v, want 401", err)
	}
	if err := owner.pair("Anna's phone", ""); err != nil {
		t.Fatal(err)
	}
	// The power goes the moment after the answer.
	b.cut()
	b.note("paired, power cut")
	same := func(what string) {
		t.Helper()
		st := owner.up() // by the pin of the authority
		if st.ID != first.ID || st.Pin != first.Pin || !st.Pairing.Paired || st.Pairing.Open {
			t.Errorf("after %s: %+v, want the device %s with the pin %s, paired, closed", what, st, first.ID, first.Pin)
		}
		if st.Notifications.FIFOError != "" || st.Notifications.JournalError != "" {
			t.Errorf("after %s: %+v, want no errors", what, st.Notifications)
		}
		if _, err := owner.do("GET", "/zones", nil, nil); err != nil {
			t.Errorf("after %s, the token: %v", what, err)
		}
		if found := badLog.FindString(b.since()); found != "" {
			t.Errorf("after %s the log has %q", what, found)
		}
	}
	b.on()
	same("a power cut")
	b.note("the same device, and the token holds")

	b.notify("rain begins")
	b.notify("rain ends")
	b.shutDown()
	b.note("rebooted")
	b.on()
	same("a reboot")
	b.notify("sunshine")
	if got, err := owner.events("sunshine"); err != nil || !slices.Equal(got, []string{"rain begins", "rain ends", "sunshine"}) {
		t.Errorf("notifications after a reboot: %q, %v", got, err)
	}
	if got := b.sh("cat /sys/class/mtd/mtd1/name; id -u cloudrest; ls -ln /etc/cloudrest"); !strings.Contains(got, "rootfs_data") || strings.Contains(got, " 0 0 ") {
		t.Errorf("the state does not belong to the daemon's user alone:\n%s", got)
	}
	b.note("state on flash: %s KiB", strings.Fields(b.sh("du -sk /etc/cloudrest"))[0])
	powerCuts(t, b, owner, same)
}

// discovered asks as phones do: by broadcast (the paper's own way), and by multicast DNS.
func discovered(t *testing.T, b *board, st status) {
	t.Helper()
	answer := netip.AddrPortFrom(stationIP, 15900)
	got, err := b.lan.ask(broadcastMAC, datagram{netip.AddrPortFrom(stationIP, 40000), netip.AddrPortFrom(broadcast, 15800), []byte("hello")},
		func(d datagram) bool { return d.from.Addr() == routerIP && d.to == answer })
	if want := "CloudREST || 52:54:00:12:34:56 || Garden irrigation || https://10.0.2.15:8443/"; err != nil || string(got.data) != want {
		t.Errorf("the answer on UDP port 15900 is %q, %v; want %q", got.data, err, want)
	}
	// Who has a service of the type _cloudrest._tcp (RFC 6763 §4; type PTR, class IN)?
	question := []byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x0a_cloudrest\x04_tcp\x05local\x00\x00\x0c\x00\x01")
	mdns := netip.AddrPortFrom(mdnsGroup, 5353)
	if _, err := b.lan.ask(mdnsMAC, datagram{netip.AddrPortFrom(stationIP, 5353), mdns, question}, func(d datagram) bool {
		return d.from == netip.AddrPortFrom(routerIP, 5353) && strings.Contains(string(d.data), "_cloudrest") && strings.Contains(string(d.data), "id="+st.ID)
	}); err != nil {
		t.Errorf("mDNS: %v", err)
	}
	b.note("found by UDP broadcast and by mDNS, as %s", st.Discovery.Host)
}

// notify is what programs on the router do.
func (b *board) notify(text string) {
	b.t.Helper()
	b.sh("echo '" + text + "' >/var/run/cloudrest/notify")
}

// guest is a client that the power cuts may hit while it is paired or revoked.
type guest struct {
	*phone
	acked   bool // the device said that it is paired
	going   bool // it was told to forget it
	revoked bool // and said that it has
}

// powerCuts cuts the power at moments of chance while clients are paired and revoked and
// while the daemon writes everything down at its end. What the device has confirmed must hold.
func powerCuts(t *testing.T, b *board, owner *phone, same func(string)) {
	t.Helper()
	chosen := *seed
	if chosen == 0 {
		chosen = uint64(time.Now().UnixNano())
	}
	chance := rand.New(rand.NewPCG(chosen, 0))
	t.Logf("the moments of the cuts: -seed %d", chosen)
	var guests []*guest
	kept := 3 // notifications that a snapshot has
	for n := range cuts {
		var wait sync.WaitGroup
		stop := make(chan struct{})
		changes := 0
		if n%2 == 0 {
			wait.Go(func() { guests, changes = pairAndRevoke(b, owner, guests, stop) })
		} else {
			for i := range 20 {
				b.notify(fmt.Sprintf("before cut %d: %d", n, i))
			}
			b.send("/etc/init.d/cloudrest restart")
		}
		at := time.Duration(chance.IntN(4000)) * time.Millisecond
		if n%2 == 0 {
			at += time.Second
		}
		time.Sleep(at)
		b.cut()
		close(stop)
		wait.Wait()
		what := fmt.Sprintf("cut %d, after %v and %d changes", n+1, at, changes)
		b.note("power %s", what)
		b.on()
		same(what)
		hold := 0
		for i, g := range guests {
			_, err := g.do("GET", "/zones", nil, nil)
			var refused *statusError
			switch {
			case err == nil && g.revoked:
				t.Errorf("after %s guest %d is let in, who was revoked", what, i)
			case err != nil && !errors.As(err, &refused):
				t.Errorf("after %s guest %d: %v", what, i, err)
			case err != nil && g.acked && !g.going:
				t.Errorf("after %s guest %d is not let in, who was paired: %v", what, i, err)
			}
			if err == nil {
				hold++
			}
		}
		// As many as there were, in their order, and never less than a snapshot had.
		end := fmt.Sprintf("after cut %d", n+1)
		b.notify(end)
		texts, err := owner.events(end)
		if err != nil || len(texts) <= kept || texts[0] != "rain begins" {
			t.Errorf("after %s: notifications %q, %v; want at least the %d of the last snapshot", what, texts, err, kept)
		}
		b.sh("/etc/init.d/cloudrest restart") // in good order: a snapshot
		same("a restart")
		kept = len(texts)
		b.note("%d guests are let in, %d notifications are kept", hold, kept)
		// They have been looked at; there is room for 64.
		guests = nil
		forget(t, owner)
	}
	if _, err := owner.do("GET", own+"clients", nil, nil); err != nil {
		t.Error(err)
	}
}

// pairAndRevoke pairs guests and revokes every other of them until the power is cut. It
// returns all of them and how many changes were confirmed.
func pairAndRevoke(b *board, owner *phone, guests []*guest, stop <-chan struct{}) ([]*guest, int) {
	changes := 0
	for i := 0; ; i++ {
		select {
		case <-stop:
			return guests, changes
		default:
		}
		secret, err := owner.invite()
		if err != nil {
			return guests, changes
		}
		g := &guest{phone: &phone{b: b, http: owner.http}} // over the same connection: TLS takes long here
		if err := g.pair(fmt.Sprintf("guest %d", i), secret); err != nil {
			return guests, changes
		}
		g.acked = true
		changes++
		guests = append(guests, g)
		if i%2 == 1 {
			g.going = true
			if _, err := owner.do("DELETE", own+"clients/"+g.id, nil, nil); err != nil {
				return guests, changes
			}
			g.revoked = true
			changes++
		}
	}
}

// forget revokes everybody but the owner.
func forget(t *testing.T, owner *phone) {
	t.Helper()
	var list struct{ Clients []struct{ ID string } }
	if _, err := owner.do("GET", own+"clients", nil, &list); err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Clients {
		if c.ID != owner.id {
			if _, err := owner.do("DELETE", own+"clients/"+c.ID, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}
