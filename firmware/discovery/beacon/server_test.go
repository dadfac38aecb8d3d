package beacon

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

const patience = 20 * time.Second // for what happens at once on an idle machine

var loopback = netip.MustParseAddr("127.0.0.1")

func TestLimiter(t *testing.T) {
	t0 := time.Unix(1000, 0)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	l := newLimiter(DefaultInterval, 3)
	for i, step := range []struct {
		src  netip.Addr
		at   time.Duration
		want verdict
	}{
		{a, 0, answer},
		{a, DefaultInterval - 1, tooSoon},
		{b, DefaultInterval - 1, answer},
		{a, DefaultInterval, answer},
		{netip.MustParseAddr("10.0.0.3"), DefaultInterval, overRate}, // 3 at once, 0.6 filled since
		{a, DefaultInterval + time.Second, answer},
	} {
		if got := l.ask(step.src, t0.Add(step.at)); got != step.want {
			t.Errorf("step %d: ask(%s) at %v = %d, want %d", i, step.src, step.at, got, step.want)
		}
	}

	answered := 0 // one source, asking every millisecond for ten seconds
	l = newLimiter(DefaultInterval, DefaultRate)
	for ms := range 10_000 {
		if l.ask(a, t0.Add(time.Duration(ms)*time.Millisecond)) == answer {
			answered++
		}
	}
	if answered != 50 { // two datagrams each: 10 a second
		t.Errorf("one source got %d answers in 10 s, want 50", answered)
	}

	l = newLimiter(time.Hour, 1e6) // sources that stay in the table
	answered = 0
	for i := range 3 * maxSources {
		if l.ask(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), t0) == answer {
			answered++
		}
	}
	if answered != maxSources || len(l.last) != maxSources {
		t.Errorf("%d sources answered, %d remembered, want %d", answered, len(l.last), maxSources)
	}
	if got := l.ask(b, t0.Add(time.Hour)); got != answer || len(l.last) != 1 {
		t.Errorf("after the interval: %d with %d sources remembered, want an answer and 1", got, len(l.last))
	}
}

func TestChoose(t *testing.T) {
	const ether = net.FlagUp | net.FlagBroadcast
	iface := func(i int, name string, flags net.Flags, cidrs ...string) lan.Interface {
		in := lan.Interface{Index: i, Name: name, Flags: flags, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}}
		for _, c := range cidrs {
			in.Prefixes = append(in.Prefixes, netip.MustParsePrefix(c))
		}
		return in
	}
	all := []lan.Interface{
		iface(1, "lo", net.FlagUp|net.FlagLoopback, "127.0.0.1/8", "::1/128"),
		iface(2, "eth0", ether, "192.168.1.1/24", "10.0.0.1/8", "fe80::2/64", "2001:db8:1::2/64"),
		iface(3, "wlan0", ether, "169.254.7.7/16", "192.168.2.1/24", "fe80::3/64"),
		iface(4, "bare", ether),
	}
	tests := []struct {
		name     string
		src, dst string
		index    int
		in, own  string
	}{
		{"limited broadcast", "192.168.1.9", "255.255.255.255", 2, "eth0", "192.168.1.1"},
		{"directed broadcast, second subnet", "10.3.2.1", "10.255.255.255", 2, "eth0", "10.0.0.1"},
		{"same phone on the other interface", "192.168.2.9", "255.255.255.255", 3, "wlan0", "192.168.2.1"},
		{"asked directly", "192.168.1.9", "192.168.1.1", 2, "eth0", "192.168.1.1"},
		{"asked directly from behind a router", "192.168.9.9", "10.0.0.1", 2, "eth0", "10.0.0.1"},
		{"broadcast from a strange subnet", "192.168.9.9", "255.255.255.255", 3, "wlan0", "192.168.2.1"},
		{"another interface's address", "192.168.1.9", "192.168.2.1", 2, "eth0", "192.168.1.1"},
		{"loopback", "127.0.0.1", "127.0.0.1", 1, "lo", "127.0.0.1"},
		{"this machine to its LAN address", "192.168.2.1", "192.168.2.1", 1, "wlan0", "192.168.2.1"},
		{"no interface told", "192.168.2.9", "0.0.0.0", 0, "wlan0", "192.168.2.1"},
		{"no interface told, address told", "192.168.9.9", "10.0.0.1", 0, "eth0", "10.0.0.1"},
		{"nothing told", "192.168.9.9", "0.0.0.0", 0, "", ""},
		{"interface gone", "192.168.1.9", "192.168.1.1", 9, "", ""},
		{"interface without address", "192.168.1.9", "255.255.255.255", 4, "", ""},
		{"IPv6 link-local to all nodes", "fe80::99", "ff02::1", 3, "wlan0", "fe80::3"},
		{"IPv6 global asked directly", "2001:db8:1::99", "2001:db8:1::2", 2, "eth0", "2001:db8:1::2"},
		{"IPv6 ULA from behind a router", "fd00::9", "ff02::1", 2, "eth0", "2001:db8:1::2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := arrival{src: netip.AddrPortFrom(netip.MustParseAddr(tt.src), 5000), dst: netip.MustParseAddr(tt.dst), index: tt.index}
			in, own, ok := choose(all, q)
			if ok != (tt.in != "") || ok && (in.Name != tt.in || own.String() != tt.own) {
				t.Errorf("choose = %s, %s, %v, want %s, %s", in.Name, own, ok, tt.in, tt.own)
			}
		})
	}
}

// freePort returns a UDP port that was free a moment ago.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// start runs s on loopback, on ports of its own, until the end of the test.
func start(t *testing.T, s *Server) {
	t.Helper()
	s.Listen = loopback
	if s.QuestionPort == 0 {
		s.QuestionPort = freePort(t)
	}
	s.AnswerPort = freePort(t)
	s.URL = func(a netip.Addr) string { return "https://" + netip.AddrPortFrom(a, 8443).String() + "/" }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

func bind(t *testing.T, port uint16) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	return c
}

func receive(t *testing.T, c *net.UDPConn) string {
	t.Helper()
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return string(buf[:n])
}

func TestServerAnswersOnBothPorts(t *testing.T) {
	s := &Server{Name: func() string { return "Gar\nden || x" }, Interval: time.Nanosecond}
	start(t, s)
	until(t, "serving", s.Serving)
	old, own := bind(t, s.AnswerPort), bind(t, 0)
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, s.QuestionPort))
	want := "CloudREST || 00:00:00:00:00:00 || Gar den | x || https://127.0.0.1:8443/"
	for _, q := range []string{"hello", "", "\x00\xff", strings.Repeat("x", 1400)} {
		if _, err := own.WriteTo([]byte(q), to); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, old); got != want {
			t.Errorf("question %.9q: on the answer port = %q, want %q", q, got, want)
		}
		if got := receive(t, own); got != want {
			t.Errorf("question %.9q: on the source port = %q, want %q", q, got, want)
		}
	}
	// A question from the answer port is answered once, and an answer is no question.
	old.WriteTo([]byte(want), to)
	until(t, "the echo is counted", func() bool { return s.Stats().Echo == 1 })
	old.WriteTo([]byte("hello"), to)
	if got := receive(t, old); got != want {
		t.Errorf("answer = %q, want %q", got, want)
	}
	own.WriteTo([]byte("last"), to) // whatever came before it has arrived
	receive(t, own)
	if got := receive(t, old); got != want {
		t.Errorf("answer = %q, want %q", got, want)
	}
	old.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // on loopback it waits already, if it was sent
	if n, err := old.Read(make([]byte, 9)); err == nil {
		t.Errorf("a question from the answer port was answered twice (%d bytes)", n)
	}
	until(t, "the counts are right", func() bool { return s.Stats() == Stats{Questions: 7, Answered: 6, Echo: 1} })
}

// No answer goes to a port where another service, or another beacon, answers it.
func TestReplyTo(t *testing.T) {
	ports := netip.MustParseAddrPort
	for src, want := range map[string][]netip.AddrPort{
		"10.0.0.2:49152":      {ports("10.0.0.2:15900"), ports("10.0.0.2:49152")},
		"[fe80::2%eth0]:4000": {ports("[fe80::2%eth0]:15900"), ports("[fe80::2%eth0]:4000")},
		"10.0.0.2:15900":      {ports("10.0.0.2:15900")},
		"10.0.0.2:15800":      {ports("10.0.0.2:15900")},
		"10.0.0.2:53":         {ports("10.0.0.2:15900")},
		"10.0.0.2:7":          {ports("10.0.0.2:15900")},
	} {
		if got := (&Server{}).replyTo(ports(src)); !slices.Equal(got, want) {
			t.Errorf("replyTo(%s) = %v, want %v", src, got, want)
		}
	}
}

func TestServerLimits(t *testing.T) {
	s := &Server{Interval: time.Hour}
	start(t, s)
	until(t, "serving", s.Serving)
	c := bind(t, 0)
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, s.QuestionPort))
	for range 10 {
		c.WriteTo([]byte("hello"), to)
	}
	until(t, "one is answered", func() bool { return s.Stats() == Stats{Questions: 10, Answered: 1, TooSoon: 9} })
}

func TestServerOtherInterface(t *testing.T) {
	s := &Server{Interfaces: []string{"br-lan"}}
	start(t, s)
	until(t, "serving", s.Serving)
	bind(t, 0).WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, s.QuestionPort)))
	until(t, "dropped", func() bool { return s.Stats() == Stats{Questions: 1, Foreign: 1} })
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestServerWaitsForItsPort(t *testing.T) {
	taken := bind(t, 0)
	var log syncBuffer
	s := &Server{QuestionPort: taken.LocalAddr().(*net.UDPAddr).AddrPort().Port(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	start(t, s)
	until(t, "the failure is logged", func() bool { return strings.Contains(log.String(), "does not work") })
	if s.Serving() {
		t.Error("Serving on a port that is taken")
	}
	taken.Close()
	until(t, "serving", s.Serving)
	until(t, "the end of the failure is logged", func() bool { return strings.Contains(log.String(), "works again") })
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d log lines, want start and end: %s", n, &log.b)
	}
	// And nobody can take it away: neither kind of sharing is on.
	if c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, s.QuestionPort))); err == nil {
		c.Close()
		t.Error("a second socket took the port")
	}
}

func TestServerNeedsURL(t *testing.T) {
	if err := (&Server{}).Run(t.Context()); err == nil {
		t.Error("Run without URL = nil")
	}
}

func TestAskTargets(t *testing.T) {
	s := &Server{Name: func() string { return "Garden" }, Interval: time.Nanosecond}
	start(t, s)
	for _, answerPort := range []uint16{s.AnswerPort, freePort(t)} { // the second: only the source port gets answers
		ctx, cancel := context.WithCancel(t.Context())
		answers, err := Ask(ctx, AskConfig{
			NoBroadcast: true, Listen: loopback, AnswerPort: answerPort, Every: 5 * time.Millisecond,
			Targets: []netip.AddrPort{netip.AddrPortFrom(loopback, s.QuestionPort)},
		})
		if err != nil {
			t.Fatal(err)
		}
		want := Answer{MAC: "00:00:00:00:00:00", Name: "Garden", URL: "https://127.0.0.1:8443/", From: netip.AddrPortFrom(loopback, s.QuestionPort)}
		select {
		case got := <-answers:
			if got != want {
				t.Errorf("answer = %+v, want %+v", got, want)
			}
		case <-time.After(patience):
			t.Fatal("no answer")
		}
		n := s.Stats().Answered
		until(t, "three more answers are sent", func() bool { return s.Stats().Answered > n+2 })
		cancel()
		for a := range answers {
			t.Errorf("the same answer again: %+v", a)
		}
	}
}

// What strangers send to an asker reaches nobody.
func TestAskIgnoresStrangers(t *testing.T) {
	a := asker{AskConfig: AskConfig{}, seen: map[Answer]bool{}}
	for addr, want := range map[string]bool{"192.168.1.2": true, "::ffff:10.0.0.1": true, "203.0.113.9": false} {
		if got := a.trusted(netip.MustParseAddr(addr)); got != want {
			t.Errorf("trusted(%s) = %v, want %v", addr, got, want)
		}
	}
	a.NoBroadcast, a.Targets = true, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:15800")}
	if a.trusted(netip.MustParseAddr("127.0.0.2")) || !a.trusted(loopback) {
		t.Error("asking only 127.0.0.1, answers are taken from others")
	}
	for i := range 2 * maxAnswers {
		a.fresh(Answer{From: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)})
	}
	if len(a.seen) != maxAnswers {
		t.Errorf("%d answers remembered, want %d", len(a.seen), maxAnswers)
	}
}

func TestBroadcasts(t *testing.T) {
	prefix := netip.MustParsePrefix
	ins := []lan.Interface{
		{Index: 2, Name: "eth0", Flags: net.FlagBroadcast, Prefixes: []netip.Prefix{prefix("192.168.1.7/24"), prefix("fe80::1/64"), prefix("10.1.2.3/22"), prefix("10.9.9.9/31")}},
		{Index: 3, Name: "wg0", Prefixes: []netip.Prefix{prefix("10.5.0.1/24")}},
	}
	addr := netip.MustParseAddr
	want := []broadcast{
		{addr("192.168.1.7"), addr("255.255.255.255"), 2},
		{addr("192.168.1.7"), addr("192.168.1.255"), 2},
		{addr("10.1.2.3"), addr("10.1.3.255"), 2},
	}
	if got := broadcasts(ins); !slices.Equal(got, want) {
		t.Errorf("broadcasts = %v, want %v", got, want)
	}
}
