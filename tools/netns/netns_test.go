//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Roles(map[string]Role{"sink": sink, "source": source, "echo": func(ctx context.Context, arg string, in <-chan string, out io.Writer) error {
		links, err := net.Interfaces()
		fmt.Fprintln(out, arg, len(links), err)
		for line := range in {
			fmt.Fprintln(out, line)
		}
		return errors.New("no more input")
	}})
	os.Exit(m.Run())
}

func TestActor(t *testing.T) {
	_, a, _ := pair(t)
	act, err := a.Actor("echo", "links:")
	if err != nil {
		t.Fatal(err)
	}
	if line, err := act.Next(20 * time.Second); err != nil || line != "links: 2 <nil>" {
		t.Errorf("first line = %q, %v, want the two links of the namespace", line, err)
	}
	if err := act.Say("one\ntwo"); err != nil {
		t.Fatal(err)
	}
	if _, err := act.Expect("two", 20*time.Second); err != nil {
		t.Error(err)
	}
	if err := act.Stop(20 * time.Second); err == nil || err.Error() != "exit status 1" || !strings.Contains(act.Log(), "no more input") {
		t.Errorf("Stop = %v, log %q, want the role's error", err, act.Log())
	}
	if _, err := act.Next(20 * time.Second); !errors.Is(err, io.EOF) {
		t.Errorf("line after the end: %v, want %v", err, io.EOF)
	}
}

func pair(t *testing.T) (l *Lab, a, b *Space) {
	t.Helper()
	l = Test(t)
	var err error
	if a, err = l.Space("a"); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Space("b"); err != nil {
		t.Fatal(err)
	}
	err = l.Join(Port{Space: a, Dev: "a0", Addrs: []string{"10.91.0.1/24", "fd00:91::1/64"}, MAC: "02:00:00:00:00:01"},
		Port{Space: b, Dev: "b0", Addrs: []string{"10.91.0.2/24", "fd00:91::2/64"}})
	if err != nil {
		t.Fatal(err)
	}
	return l, a, b
}

func TestJoin(t *testing.T) {
	_, a, b := pair(t)
	out, err := a.Run("ip", "-br", "link", "show", "a0")
	if err != nil || !strings.Contains(out, "02:00:00:00:00:01") {
		t.Errorf("link a0 = %q, %v", out, err)
	}
	if out, err := b.Run("ip", "-br", "addr", "show", "b0"); err != nil || !strings.Contains(out, "10.91.0.2/24") || !strings.Contains(out, "fd00:91::2/64") {
		t.Errorf("addresses of b0 = %q, %v", out, err)
	}
	if err := b.Down("b0"); err != nil {
		t.Fatal(err)
	}
	if out, err := a.Run("ip", "-br", "link", "show", "a0"); err != nil || !strings.Contains(out, "DOWN") {
		t.Errorf("a0 after the other end went down = %q, %v, want DOWN", out, err)
	}
}

// A burst over a slow wire: what the queue holds arrives, not before its turn, and the
// rest is dropped.
func TestWire(t *testing.T) {
	l := Test(t)
	a, err := l.Space("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Space("b")
	if err != nil {
		t.Fatal(err)
	}
	const (
		packets = 200
		size    = 1000 + 28 // bytes on the wire: payload, UDP, IPv4
		queue   = 50 * size
	)
	slow := Slow{Delay: 30 * time.Millisecond, Rate: 8_000_000, Queue: queue} // 1 ms for 1000 bytes
	if err := l.Wire(Port{Space: a, Dev: "a0", Addrs: []string{"10.92.0.1/24"}}, Port{Space: b, Dev: "b0", Addrs: []string{"10.92.0.2/24"}}, slow); err != nil {
		t.Fatal(err)
	}
	sink, err := b.Actor("sink", "10.92.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Expect("listening", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	source, err := a.Actor("source", "10.92.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := source.Say(fmt.Sprint(packets)); err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Expect("got 1", 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < slow.Delay {
		t.Errorf("the first packet took %v, want at least %v", took, slow.Delay)
	}
	last := 1
	for {
		line, err := sink.Next(2 * time.Second)
		if err != nil {
			break // silence
		}
		if _, err := fmt.Sscanf(line, "got %d", &last); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	if last < queue/size || last >= packets {
		t.Errorf("%d of %d packets arrived, want at least the %d of the queue, and not all", last, packets, queue/size)
	}
	if err := l.Wire(Port{Space: a, Dev: "a1"}, Port{Space: b, Dev: "b1"}, Slow{}); err == nil {
		t.Error("a wire without a rate was made")
	}
}

// sink tells the number of datagrams after each that comes.
func sink(ctx context.Context, addr string, _ <-chan string, out io.Writer) error {
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	fmt.Fprintln(out, "listening")
	buf := make([]byte, 2000)
	for n := 1; ; n++ {
		if _, _, err := c.ReadFrom(buf); err != nil {
			return nil
		}
		fmt.Fprintln(out, "got", n)
	}
}

// source sends as many datagrams of 1000 bytes as it is told, at once.
func source(ctx context.Context, addr string, in <-chan string, out io.Writer) error {
	c, err := net.Dial("udp4", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for line := range in {
		n, err := strconv.Atoi(line)
		if err != nil {
			return err
		}
		for range n {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestRunSaysWhatFailed(t *testing.T) {
	_, a, _ := pair(t)
	_, err := a.Run("sh", "-c", "echo broken >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "broken") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.RunContext(ctx, "sleep", "60"); err == nil {
		t.Error("a command outlived its deadline")
	}
}

func TestCloseKillsEverythingInside(t *testing.T) {
	l, a, _ := pair(t)
	d, err := a.Daemon("sh", "-c", "setsid sleep 300 & echo $!; wait")
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for !strings.HasSuffix(d.Log(), "\n") {
		if time.Now().After(deadline) {
			t.Fatal("the daemon did not start")
		}
		time.Sleep(5 * time.Millisecond)
	}
	holder := a.PID()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	default:
		t.Error("the daemon runs on after Close")
	}
	// The grandchild has left our process tree; only the namespace gave it away.
	pid := strings.TrimSpace(d.Log())
	if b, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("grandchild %s runs on after Close: %s", pid, b)
	}
	if err := syscall.Kill(holder, 0); err != syscall.ESRCH {
		t.Errorf("holder after Close: %v, want %v", err, syscall.ESRCH)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestDaemonStop(t *testing.T) {
	_, a, _ := pair(t)
	d, err := a.Daemon("sleep", "300")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(20 * time.Second); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("Stop = %v, want the signal as the result", err)
	}
}

func TestAvahi(t *testing.T) {
	if err := AvahiAvailable(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	_, a, b := pair(t)
	for _, s := range []*Space{a, b} {
		if _, err := s.Avahi("host-" + s.Name); err != nil {
			t.Fatal(err)
		}
	}
	out, err := a.Run("avahi-resolve", "-4", "-n", "host-b.local")
	if err != nil || !strings.Contains(out, "10.91.0.2") {
		t.Errorf("avahi-resolve = %q, %v", out, err)
	}
}
