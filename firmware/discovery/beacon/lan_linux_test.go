package beacon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/netns"
)

// Roles: a device, a phone, and a phone of the oldest kind.
func TestMain(m *testing.M) {
	netns.Roles(map[string]netns.Role{
		"device": func(ctx context.Context, _ string, in <-chan string, out io.Writer) error {
			s := &Server{Name: func() string { return "Garden" }, URL: func(a netip.Addr) string { return "https://" + netip.AddrPortFrom(a, 8443).String() + "/" }}
			go func() {
				for range in {
					json.NewEncoder(out).Encode(s.Stats())
				}
			}()
			return s.Run(ctx)
		},
		"phone": func(ctx context.Context, _ string, _ <-chan string, out io.Writer) error {
			answers, err := Ask(ctx, AskConfig{Every: 300 * time.Millisecond})
			if err != nil {
				return err
			}
			for a := range answers {
				fmt.Fprintln(out, a.MAC, a.Name, a.URL, a.From)
			}
			return nil
		},
		"old phone": func(ctx context.Context, to string, _ <-chan string, out io.Writer) error {
			dst := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
			network := "udp4"
			if dst.IP.To4() == nil {
				network = "udp6"
			}
			answer, err := net.ListenUDP(network, &net.UDPAddr{Port: 15900})
			if err != nil {
				return err
			}
			ask, err := net.ListenUDP(network, nil)
			if err != nil {
				return err
			}
			for name, c := range map[string]*net.UDPConn{"answer port": answer, "source port": ask} {
				go func() {
					buf := make([]byte, 2048)
					for {
						n, from, err := c.ReadFrom(buf)
						if err != nil {
							return
						}
						fmt.Fprintln(out, name, from, string(buf[:n]))
					}
				}()
			}
			for ctx.Err() == nil {
				if _, err := ask.WriteTo([]byte("hello"), dst); err != nil {
					fmt.Fprintln(out, "not sent", err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(300 * time.Millisecond):
				}
			}
			return nil
		},
	})
	os.Exit(m.Run())
}

// A device with two interfaces, and a phone on each.
type network struct {
	t                  *testing.T
	device, one, other *netns.Space
	server             *netns.Actor
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	t.Parallel() // each network is its own
	lab := netns.Test(t)
	n := &network{t: t}
	for name, s := range map[string]**netns.Space{"device": &n.device, "one": &n.one, "other": &n.other} {
		var err error
		if *s, err = lab.Space(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range [][2]netns.Port{
		{{Space: n.device, Dev: "lan1", Addrs: []string{"10.93.1.1/24"}, MAC: "02:00:00:00:93:01"}, {Space: n.one, Dev: "eth0", Addrs: []string{"10.93.1.2/24"}}},
		{{Space: n.device, Dev: "lan2", Addrs: []string{"10.93.2.1/24"}, MAC: "02:00:00:00:93:0b"}, {Space: n.other, Dev: "eth0", Addrs: []string{"10.93.2.2/24"}}},
	} {
		if err := lab.Join(p[0], p[1]); err != nil {
			t.Fatal(err)
		}
	}
	n.server = n.actor(n.device, "device", "")
	return n
}

func (n *network) actor(s *netns.Space, role, arg string) *netns.Actor {
	n.t.Helper()
	a, err := s.Actor(role, arg)
	if err != nil {
		n.t.Fatal(err)
	}
	return a
}

func (n *network) expect(a *netns.Actor, want string) {
	n.t.Helper()
	if _, err := a.Expect(want, patience); err != nil {
		n.t.Error(err)
	}
}

func (n *network) stats() (s Stats) {
	n.t.Helper()
	if err := n.server.Say("stats"); err != nil {
		n.t.Fatal(err)
	}
	line, err := n.server.Next(patience)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(line), &s); err != nil {
		n.t.Fatal(err)
	}
	return s
}

func (n *network) stop(actors ...*netns.Actor) {
	n.t.Helper()
	for _, a := range append(actors, n.server) {
		if err := a.Stop(patience); err != nil {
			n.t.Errorf("%v: %s", err, a.Log())
		}
	}
}

// Each phone learns the MAC and the address of the interface that faces it, by broadcast.
func TestBroadcastOnTwoInterfaces(t *testing.T) {
	n := newNetwork(t)
	one, other := n.actor(n.one, "phone", ""), n.actor(n.other, "phone", "")
	n.expect(one, "02:00:00:00:93:01 Garden https://10.93.1.1:8443/ 10.93.1.1:15800")
	n.expect(other, "02:00:00:00:93:0B Garden https://10.93.2.1:8443/ 10.93.2.1:15800")
	// The interface gets another address while the device runs.
	if err := n.device.AddAddr("lan1", "10.93.7.1/24"); err != nil {
		t.Fatal(err)
	}
	if err := n.one.AddAddr("eth0", "10.93.7.2/24"); err != nil {
		t.Fatal(err)
	}
	if err := n.device.DelAddr("lan1", "10.93.1.1/24"); err != nil {
		t.Fatal(err)
	}
	if err := n.one.DelAddr("eth0", "10.93.1.2/24"); err != nil {
		t.Fatal(err)
	}
	n.expect(one, "02:00:00:00:93:01 Garden https://10.93.7.1:8443/ 10.93.7.1:15800")
	n.stop(one, other)
}

func TestOldPhone(t *testing.T) {
	n := newNetwork(t)
	// The limited broadcast takes the default route's interface, as on a phone.
	if err := n.one.Route("default", "10.93.1.1"); err != nil {
		t.Fatal(err)
	}
	const text = "10.93.1.1:15800 CloudREST || 02:00:00:00:93:01 || Garden || https://10.93.1.1:8443/"
	for _, to := range []string{"255.255.255.255:15800", "10.93.1.255:15800", "10.93.1.1:15800"} {
		phone := n.actor(n.one, "old phone", to)
		n.expect(phone, "answer port "+text)
		n.expect(phone, "source port "+text)
		if err := phone.Stop(patience); err != nil {
			t.Errorf("%v: %s", err, phone.Log())
		}
	}
	// IPv6 has no broadcast, but a group of all hosts on the link (RFC 4291 §2.7.1).
	phone := n.actor(n.one, "old phone", "[ff02::1%eth0]:15800")
	for _, port := range []string{"answer port", "source port"} {
		line, err := phone.Expect(port, patience)
		if err != nil || !strings.Contains(line, "CloudREST || 02:00:00:00:93:01 || Garden || https://[fe80::ff:fe00:9301]:8443/") {
			t.Errorf("over IPv6: %q, %v", line, err)
		}
	}
	if err := phone.Stop(patience); err != nil {
		t.Errorf("%v: %s", err, phone.Log())
	}
	if s := n.stats(); s.Answered == 0 || s.Foreign != 0 || s.SendErrors != 0 {
		t.Errorf("Stats = %+v", s)
	}
	n.stop()
}

// A public source is not answered, though it is on the link.
func TestPublicSource(t *testing.T) {
	n := newNetwork(t)
	for _, step := range []error{
		n.device.AddAddr("lan1", "203.0.113.1/24"), n.one.DelAddr("eth0", "10.93.1.2/24"), n.one.AddAddr("eth0", "203.0.113.2/24"),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	stranger := n.actor(n.one, "old phone", "203.0.113.1:15800")
	until(t, "the stranger's questions are dropped", func() bool { return n.stats().Foreign >= 3 })
	if s := n.stats(); s.Answered != 0 || s.SendErrors != 0 {
		t.Errorf("Stats = %+v, want no answer", s)
	}
	n.stop(stranger)
}
