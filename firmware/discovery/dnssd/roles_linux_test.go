package dnssd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grandcat/zeroconf"
	"golang.org/x/net/ipv4"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/tools/netns"
)

// TestMain plays the roles of those who live in a namespace of their own.
func TestMain(m *testing.M) {
	netns.Roles(map[string]netns.Role{
		"device": deviceRole, "browser": browserRole, "naive": naiveRole, "stranger": strangerRole, "harden": hardenRole,
		"hog": hogRole,
	})
	os.Exit(m.Run())
}

// deviceRole announces the Info in arg; each line it is told is a new one, made known by
// turns through Refresh and through Changed. It writes down each state.
func deviceRole(ctx context.Context, arg string, in <-chan string, out io.Writer) error {
	var mu sync.Mutex // guards info and changed
	var info Info
	changed := make(chan struct{})
	if err := json.Unmarshal([]byte(arg), &info); err != nil {
		return err
	}
	a := &Announcer{
		Info: func() Info {
			mu.Lock()
			defer mu.Unlock()
			return info
		},
		Changed: func() <-chan struct{} {
			mu.Lock()
			defer mu.Unlock()
			return changed
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
		refresh := false
		for line := range in {
			mu.Lock()
			json.Unmarshal([]byte(line), &info)
			if refresh = !refresh; !refresh {
				close(changed)
				changed = make(chan struct{})
			}
			mu.Unlock()
			if refresh {
				a.Refresh()
			}
		}
	})
	return a.Run(ctx)
}

// browserRole writes down each entry.
func browserRole(ctx context.Context, service string, _ <-chan string, out io.Writer) error {
	entries, err := Browse(ctx, BrowseConfig{Service: service})
	if err != nil {
		return err
	}
	for e := range entries {
		what := "found"
		if e.Update {
			what = "changed"
		}
		if e.Gone {
			what = "gone"
		}
		fmt.Fprintf(out, "%s %q %s %d %v %v\n", what, e.Instance, e.Host, e.Port, e.Addrs, e.TXT)
	}
	return nil
}

// naiveRole announces without asking anybody, as zeroconf alone does.
func naiveRole(ctx context.Context, instance string, _ <-chan string, out io.Writer) error {
	s, err := zeroconf.RegisterProxy(escape(instance), Service, domain, 99, "naive.local.", []string{"10.94.0.2"}, []string{"a=b"}, nil)
	if err != nil {
		return err
	}
	defer s.Shutdown()
	fmt.Fprintln(out, "registered")
	<-ctx.Done()
	return nil
}

// strangerRole asks, by multicast on eth0 and by unicast to each address in arg, for the
// names in arg, and writes down who answers, how far the answer may travel, and each record.
func strangerRole(ctx context.Context, arg string, _ <-chan string, out io.Writer) error {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	udp, err := net.ListenMulticastUDP("udp4", ifi, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group4, port)))
	if err != nil {
		return err
	}
	plain, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, c := range []*net.UDPConn{udp, plain} {
		pc := ipv4.NewPacketConn(c)
		pc.SetControlMessage(ipv4.FlagTTL, true)
		pc.SetMulticastInterface(ifi)
		wg.Go(func() {
			buf := make([]byte, maxPacket)
			for {
				n, cm, from, err := pc.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				var m dns.Msg
				if err != nil || m.Unpack(buf[:n]) != nil || !m.Response {
					continue
				}
				for _, rr := range append(m.Answer, m.Extra...) {
					fmt.Fprintf(out, "%v ttl %d: %T %+v\n", from, cm.TTL, rr, rr)
				}
			}
		})
	}
	for {
		for _, kind := range []uint16{dns.TypePTR, dns.TypeA} {
			for _, name := range strings.Fields(arg) {
				to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(group4, port))
				q := question("_cloudrest._tcp.local.", kind)
				if a, err := netip.ParseAddr(name); err == nil {
					to = net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port))
				} else {
					q.Question[0].Name = name
				}
				q.Question[0].Qclass |= topBit // an answer straight to us, please
				b, err := q.Pack()
				if err != nil {
					return err
				}
				udp.WriteTo(b, to)
				plain.WriteTo(b, to)
			}
		}
		fmt.Fprintln(out, "asked")
		if !sleep(ctx, 1100*time.Millisecond) {
			break
		}
	}
	udp.Close()
	plain.Close()
	wg.Wait()
	return nil
}

// hardenRole reports whether the sockets of zeroconf can be reached.
func hardenRole(_ context.Context, _ string, _ <-chan string, out io.Writer) error {
	ifi, err := net.InterfaceByName("lan0")
	if err != nil {
		return err
	}
	s, err := zeroconf.RegisterProxy("x", Service, domain, 99, "x.local.", nil, nil, []net.Interface{*ifi})
	if err != nil {
		return err
	}
	defer s.Shutdown()
	fmt.Fprintln(out, "harden:", harden(s, []int{ifi.Index}))
	return nil
}

// hogRole holds the port of multicast DNS for itself until it is told to let go.
func hogRole(_ context.Context, _ string, in <-chan string, out io.Writer) error {
	v4, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	defer v4.Close()
	v6, err := net.ListenUDP("udp6", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	defer v6.Close()
	fmt.Fprintln(out, "held")
	<-in
	return nil
}
