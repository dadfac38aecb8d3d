package front

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/http1"
)

// served runs a server behind g on loopback.
func served(t *testing.T, g *Gate) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http1.Server{Handler: g.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(w, "HTTP/1.1 200")
			return
		}
		w.Header().Set("Upgrade", "x")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() { io.Copy(c, c); c.Close() }() // a tunnel that outlives its handler
	}))}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(g.Listener(ln)) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}

func connect(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// get sends one request and reports whether an answer came.
func get(c net.Conn) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	b := make([]byte, 12)
	_, err := io.ReadFull(c, b)
	return err
}

func TestSilentConnectionsCannotHoldTheDoor(t *testing.T) {
	g := NewGate(GateConfig{MaxYoung: 3})
	addr := served(t, g)
	var silent []net.Conn
	for range 6 {
		silent = append(silent, connect(t, addr))
	}
	for range 3 {
		if err := get(connect(t, addr)); err != nil {
			t.Fatalf("a client behind silent connections got no answer: %v", err)
		}
	}
	if _, err := silent[0].Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
		t.Errorf("the oldest silent connection was not closed: %v", err)
	}
	if g.Refused() == 0 {
		t.Error("nothing was counted as refused")
	}
}

// errTimeout returns err itself if it is a timeout, so that errors.Is tells.
func errTimeout(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return err
	}
	return errors.New("none")
}

// What became a tether or a tunnel takes no place at the gate.
func TestTakenOverConnectionsAreNotCounted(t *testing.T) {
	g := NewGate(GateConfig{MaxConns: 1, MaxYoung: 1})
	addr := served(t, g)
	for i := range 3 {
		c := connect(t, addr)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		head := bufio.NewReader(c)
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = head.ReadString('\n'); err != nil {
				t.Fatalf("tunnel %d: %v", i+1, err)
			}
		}
		io.WriteString(c, "x")
		if b, err := head.ReadByte(); b != 'x' || err != nil {
			t.Errorf("tunnel %d: %q, %v", i+1, b, err)
		}
		for end := time.Now().Add(20 * time.Second); g.Conns() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections are counted, want none", g.Conns())
			}
		}
	}
}

func TestConnectionsOfOneAddress(t *testing.T) {
	for _, exempt := range []bool{false, true} {
		cfg := GateConfig{MaxPerAddress: 2}
		if exempt {
			cfg.Exempt = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		g := NewGate(cfg)
		addr := served(t, g)
		for range 2 {
			if err := get(connect(t, addr)); err != nil {
				t.Fatal(err)
			}
		}
		if err := get(connect(t, addr)); (err == nil) != exempt {
			t.Errorf("exempt %v: third connection: %v", exempt, err)
		}
	}
}

func TestAllConnections(t *testing.T) {
	g := NewGate(GateConfig{MaxConns: 1})
	addr := served(t, g)
	first := connect(t, addr)
	if err := get(first); err != nil {
		t.Fatal(err)
	}
	if err := get(connect(t, addr)); err == nil {
		t.Error("a second connection was served, want it closed")
	}
	first.Close()
	for i := 0; get(connect(t, addr)) != nil; i++ { // its place is free once the server has noticed
		if i > 1000 {
			t.Fatal("the place of a closed connection is never free")
		}
	}
}
