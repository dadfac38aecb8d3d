package dnssd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tools/netns"
)

const patience = 30 * time.Second // for what takes two seconds on an idle machine

const testID = tether.DeviceID("1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809")

func testInfo() Info {
	return Info{
		ID: testID, Name: "Jardín de Ana", API: "2.1", Version: "1.4.0", Port: 8443, Path: "/api/",
		Fingerprint: strings.Repeat("ab", 32),
	}
}

// Roles: a device, and somebody who looks for devices.
func TestMain(m *testing.M) {
	netns.Roles(map[string]netns.Role{"device": deviceRole})
	os.Exit(m.Run())
}

// deviceRole announces the Info in arg; each line it is told is a new one. It writes down each state.
func deviceRole(ctx context.Context, arg string, in <-chan string, out io.Writer) error {
	var mu sync.Mutex
	var info Info
	if err := json.Unmarshal([]byte(arg), &info); err != nil {
		return err
	}
	a := &Announcer{
		Info: func() Info {
			mu.Lock()
			defer mu.Unlock()
			return info
		},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		last := ""
		for sleep(ctx, 10*time.Millisecond) {
			s := a.State()
			if text := fmt.Sprintf("%v %s %s %v %v", s.Announced, s.Host, s.Instance, s.Interfaces, s.Err); text != last {
				fmt.Fprintln(out, text)
				last = text
			}
		}
	})
	wg.Go(func() {
		for line := range in {
			mu.Lock()
			json.Unmarshal([]byte(line), &info)
			mu.Unlock()
			a.Refresh()
		}
	})
	return a.Run(ctx)
}

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
	h.until("the services are gone", func(out string) bool { return !strings.Contains(out, "1a2b3c4d") }, "avahi-browse", "-pt", "_cloudrest._tcp")
	h.until("the https service is gone", func(out string) bool { return !strings.Contains(out, "1a2b3c4d") }, "avahi-browse", "-pt", "_https._tcp")
	h.until("the host name is gone", func(out string) bool { return !strings.Contains(out, "10.94.0.1") }, "avahi-resolve", "-4", "-n", "cloudrest-1a2b3c4d.local")
}
