//go:build linux

package malta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The numbers of Ethernet, ARP (RFC 826), IPv4 (RFC 791) and UDP (RFC 768) that a station needs.
const (
	etherHeader = 14
	etherIPv4   = 0x0800
	etherARP    = 0x0806
	arpSize     = 28
	ipv4Header  = 20
	udpHeader   = 8
	protocolUDP = 17
	maxFrame    = 1514 // bytes
)

var (
	routerIP  = netip.MustParseAddr("10.0.2.15")
	stationIP = netip.MustParseAddr("10.0.2.77")
	broadcast = netip.MustParseAddr("10.0.2.255")
	mdnsGroup = netip.MustParseAddr("224.0.0.251")

	stationMAC   = [6]byte{2, 0, 0, 0, 0, 0x77}
	broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	mdnsMAC      = [6]byte{0x01, 0x00, 0x5e, 0, 0, 0xfb} // RFC 1112 §6.4
)

// datagram is one UDP datagram on the network of the board.
type datagram struct {
	from, to netip.AddrPort
	data     []byte
}

// lan is a station on the board's network, besides the host that QEMU's user network shows
// there: that one passes no UDP and no broadcasts. QEMU hands over every frame (-netdev stream).
type lan struct {
	t *testing.T
	l net.Listener

	mu   sync.Mutex
	conn net.Conn // of the QEMU that runs now; nil: none
	got  chan datagram
}

const keptDatagrams = 256 // the oldest go first

func newLAN(t *testing.T) *lan {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "lan"))
	if err != nil {
		t.Fatal(err)
	}
	s := &lan{t: t, l: l, got: make(chan datagram, keptDatagrams)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.attach(c)
			s.run(c)
			s.attach(nil)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		if s.conn != nil {
			s.conn.Close()
		}
		s.mu.Unlock()
		<-done
	})
	return s
}

func (s *lan) attach(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = c
}

func (s *lan) netdev(id string) string {
	return fmt.Sprintf("stream,id=%s,server=off,addr.type=unix,addr.path=%s", id, s.l.Addr())
}

// run reads frames until the connection ends, and answers ARP.
func (s *lan) run(c net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := io.ReadFull(c, buf[:4]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(buf)
		if n > uint32(len(buf)) {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		if who, mac, ok := parseARP(buf[:n]); ok {
			s.send(arpReply(who, mac))
		} else if d, ok := parseUDP(buf[:n]); ok {
			d.data = append([]byte{}, d.data...)
			for {
				select {
				case s.got <- d:
				default:
					select {
					case <-s.got:
					default:
					}
					continue
				}
				break
			}
		}
	}
}

// send puts a frame on the network.
func (s *lan) send(frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return errors.New("the board is off")
	}
	s.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := s.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

// ask sends a datagram again and again until one comes that pleases.
func (s *lan) ask(mac [6]byte, d datagram, pleases func(datagram) bool) (datagram, error) {
	again := time.NewTicker(3 * time.Second) // slower than the answers are rationed
	defer again.Stop()
	end := time.After(patience)
	for {
		if err := s.send(udpFrame(mac, d)); err != nil {
			return datagram{}, err
		}
		for waiting := true; waiting; {
			select {
			case a := <-s.got:
				if pleases(a) {
					return a, nil
				}
			case <-again.C:
				waiting = false
			case <-end:
				return datagram{}, errors.New("no answer")
			}
		}
	}
}

// parseARP reads a question for the station's address.
func parseARP(f []byte) (who netip.Addr, mac [6]byte, ok bool) {
	if len(f) < etherHeader+arpSize || binary.BigEndian.Uint16(f[12:]) != etherARP {
		return who, mac, false
	}
	a := f[etherHeader:]
	if binary.BigEndian.Uint16(a[6:]) != 1 || netip.AddrFrom4([4]byte(a[24:28])) != stationIP {
		return who, mac, false
	}
	return netip.AddrFrom4([4]byte(a[14:18])), [6]byte(a[8:14]), true
}

func arpReply(to netip.Addr, mac [6]byte) []byte {
	f := ether(mac, etherARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 2) // Ethernet, IPv4, their sizes, reply
	f = append(append(f, stationMAC[:]...), stationIP.AsSlice()...)
	return append(append(f, mac[:]...), to.AsSlice()...)
}

func ether(to [6]byte, kind uint16) []byte {
	f := make([]byte, 0, maxFrame)
	f = append(append(f, to[:]...), stationMAC[:]...)
	return binary.BigEndian.AppendUint16(f, kind)
}

// parseUDP reads a datagram that is not in fragments; data is part of f.
func parseUDP(f []byte) (d datagram, ok bool) {
	if len(f) < etherHeader+ipv4Header || binary.BigEndian.Uint16(f[12:]) != etherIPv4 {
		return d, false
	}
	p := f[etherHeader:]
	header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 != 4 || p[9] != protocolUDP || header < ipv4Header || total > len(p) || total < header+udpHeader || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return d, false
	}
	u := p[header:total]
	size := int(binary.BigEndian.Uint16(u[4:]))
	if size < udpHeader || size > len(u) {
		return d, false
	}
	d.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(u))
	d.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), binary.BigEndian.Uint16(u[2:]))
	d.data = u[udpHeader:size]
	return d, true
}

// udpFrame writes a datagram, without the optional checksum of UDP.
func udpFrame(mac [6]byte, d datagram) []byte {
	f := ether(mac, etherIPv4)
	f = append(f, 0x45, 0)
	f = binary.BigEndian.AppendUint16(f, uint16(ipv4Header+udpHeader+len(d.data)))
	f = append(f, 0, 0, 0, 0, 255, protocolUDP, 0, 0) // TTL as RFC 6762 §11 asks
	f = append(append(f, d.from.Addr().AsSlice()...), d.to.Addr().AsSlice()...)
	var sum uint32
	for p := f[etherHeader:]; len(p) > 0; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	binary.BigEndian.PutUint16(f[etherHeader+10:], ^uint16(sum+sum>>16))
	f = binary.BigEndian.AppendUint16(f, d.from.Port())
	f = binary.BigEndian.AppendUint16(f, d.to.Port())
	f = binary.BigEndian.AppendUint16(f, uint16(udpHeader+len(d.data)))
	return append(append(f, 0, 0), d.data...)
}

func TestFrames(t *testing.T) {
	want := datagram{netip.AddrPortFrom(stationIP, 40000), netip.AddrPortFrom(broadcast, 15800), []byte("hello")}
	f := udpFrame(broadcastMAC, want)
	got, ok := parseUDP(f)
	if !ok || got.from != want.from || got.to != want.to || string(got.data) != string(want.data) {
		t.Errorf("read back %v %v, want %v", got, ok, want)
	}
	var sum uint32
	for i := 0; i < ipv4Header; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[etherHeader+i:]))
	}
	if got := uint16(sum + sum>>16); got != 0xffff {
		t.Errorf("checksum of the header %#x, want 0xffff (RFC 791 §3.1)", got)
	}
	for n := range f {
		if d, ok := parseUDP(f[:n]); ok {
			t.Errorf("the first %d bytes are a datagram %v, want none", n, d)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(udpFrame(broadcastMAC, datagram{netip.AddrPortFrom(stationIP, 40000), netip.AddrPortFrom(broadcast, 15800), []byte("hello")}))
	f.Add(arpReply(routerIP, broadcastMAC))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parseUDP(b); ok && len(d.data) > len(b) {
			t.Errorf("%d bytes of data in a frame of %d", len(d.data), len(b))
		}
		parseARP(b)
	})
}
