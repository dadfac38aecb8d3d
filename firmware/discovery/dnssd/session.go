package dnssd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grandcat/zeroconf"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
)

// Times of a session.
const (
	probes     = 3                      // RFC 6762 §8.1
	probeEvery = 250 * time.Millisecond // §8.1
	secondTime = time.Second            // of an announcement (§8.3)
	mayRepeat  = time.Second            // one interface hears the host's records once in this (§6)
	// An address that was ours is not somebody else's while echoes of it may be about.
	echoTime = 10 * time.Second
)

// maxRenames bounds a search for a free name. After it the last name is used: who answers
// to every name that we try makes it ugly, but does not keep us from being found.
const maxRenames = 10

// session is one registration: one Info on one set of interfaces.
type session struct {
	info  Info
	nhost int // suffix number of the host name, from 1
	ninst int // and of the instance name
	log   *slog.Logger
	lost  func() // told when somebody else claims one of our names, not while probing

	group   *group
	servers []*zeroconf.Server
	wg      sync.WaitGroup
	done    chan struct{} // closed at the end

	mu          sync.Mutex // guards what follows
	own         *own
	probing     bool
	lostHost    bool
	lostInst    bool
	told        map[int]time.Time // interface index: when it last heard the host's records
	legacyFrom  time.Time         // the second that legacySent counts in
	legacySent  int
	retired     []netip.Addr // addresses until a moment ago
	retiredTill time.Time
	former      string // host name of the session before, which still speaks; "": none
}

// maxLegacy bounds answers to plain resolvers, a second; the rest is dropped.
const maxLegacy = 10

// open joins the groups and answers for nothing yet. nhost and ninst are the suffixes to
// begin with; old is the session before, whose echoes are no conflict, or nil.
func open(info Info, ins []lan.Interface, nhost, ninst int, old *session, log *slog.Logger, lost func()) (*session, error) {
	if err := info.check(); err != nil {
		return nil, err
	}
	g, err := join(ins)
	if err != nil {
		return nil, err
	}
	s := &session{info: info, nhost: nhost, ninst: ninst, log: log, lost: lost, group: g, done: make(chan struct{}), told: map[int]time.Time{}}
	s.own = s.names()
	s.probing = true
	if old != nil {
		s.former = old.own.host
		s.retire(old.group.interfaces())
		s.retired = append(s.retired, old.retired...)
	}
	g.receive(&s.wg, s.handle)
	return s, nil
}

// names are the claims under the present suffixes.
func (s *session) names() *own {
	host := hostName(s.info.ID, s.nhost)
	return &own{
		host: host + ".", instance: instanceName(s.info.Name, s.info.ID, s.ninst),
		port: uint16(s.info.Port), text: s.info.text(host),
	}
}

// claim finds names that nobody has. It returns early when ctx is done.
func (s *session) claim(ctx context.Context) {
	for try := range maxRenames {
		s.mu.Lock()
		s.lostHost, s.lostInst = false, false
		o := s.own
		s.mu.Unlock()
		for i := range probes {
			for _, in := range s.group.interfaces() {
				s.send(o.probe(addresses(in), i == 0), in)
			}
			if !sleep(ctx, probeEvery) {
				return
			}
		}
		s.mu.Lock()
		if s.lostHost {
			s.nhost++
			s.former = "" // not ours any more, and what names it is not either
		}
		if s.lostInst {
			s.ninst++
		}
		again := s.lostHost || s.lostInst
		if again {
			s.own = s.names()
		}
		s.mu.Unlock()
		if !again {
			return
		}
		s.log.Info("somebody else has our mDNS name, taking another", "host", strings.TrimSuffix(o.host, "."), "instance", o.instance, "try", try+1)
	}
}

// announce registers the services and tells the host's addresses; before is what was told
// of the same host before.
func (s *session) announce(before []lan.Interface) error {
	s.mu.Lock()
	s.probing, s.lostHost, s.lostInst = false, false, false
	o := s.own
	s.mu.Unlock()
	ins := s.group.interfaces()
	ifaces := make([]net.Interface, 0, len(ins))
	indexes := make([]int, 0, len(ins))
	for _, in := range ins {
		// By name: zeroconf looks at flags and MTU too.
		ifi, err := net.InterfaceByIndex(in.Index)
		if err != nil {
			continue // gone; the watcher will tell
		}
		ifaces, indexes = append(ifaces, *ifi), append(indexes, in.Index)
	}
	if len(ifaces) == 0 {
		return ErrNoMulticast // an empty list would mean "all" to zeroconf
	}
	for _, service := range services {
		// Without addresses, zeroconf tells those of the interface that it speaks on.
		server, err := zeroconf.RegisterProxy(escape(o.instance), service, domain, s.info.Port, o.host, nil, escapeText(o.text), ifaces)
		if err != nil {
			return fmt.Errorf("register %s: %w", service, err)
		}
		s.servers = append(s.servers, server)
		if err := harden(server, indexes); err != nil {
			s.log.Debug("the sockets of zeroconf stay as they are", "err", err)
		}
	}
	s.tell(ins, before)
	return nil
}

// harden gives the sockets of a server the TTL and the filter of our own. They are in
// fields that zeroconf does not export; should another version have none of these names,
// its sockets stay as they are, and TestHardenFindsTheSockets fails.
func harden(server *zeroconf.Server, indexes []int) error {
	v := reflect.ValueOf(server).Elem()
	f4, f6 := v.FieldByName("ipv4conn"), v.FieldByName("ipv6conn")
	if !f4.IsValid() || f4.Type() != reflect.TypeFor[*ipv4.PacketConn]() || !f6.IsValid() || f6.Type() != reflect.TypeFor[*ipv6.PacketConn]() {
		return fmt.Errorf("%s has other fields than in v1.0.0", v.Type())
	}
	if c := (*ipv4.PacketConn)(f4.UnsafePointer()); c != nil {
		if err := harden4(c, indexes); err != nil {
			return err
		}
	}
	if c := (*ipv6.PacketConn)(f6.UnsafePointer()); c != nil {
		return harden6(c, indexes)
	}
	return nil
}

// tell announces the host's addresses twice, a second apart (RFC 6762 §8.3), and takes back
// those of before that are gone from an interface.
func (s *session) tell(ins, before []lan.Interface) {
	gone := map[int][]netip.Addr{}
	for _, in := range before {
		gone[in.Index] = addresses(in)
	}
	round := func() {
		s.mu.Lock()
		o := s.own
		s.mu.Unlock()
		for _, in := range ins {
			addrs := addresses(in)
			taken := slices.DeleteFunc(slices.Clone(gone[in.Index]), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
			if len(addrs)+len(taken) > 0 {
				s.send(o.announcement(addrs, taken), in)
			}
		}
	}
	round()
	s.wg.Go(func() {
		select {
		case <-s.done:
		case <-time.After(secondTime):
			if lan.Equal(ins, s.group.interfaces()) { // else a newer round is due
				round()
			}
		}
	})
}

// readdress takes new addresses of the same interfaces: zeroconf looks them up itself.
func (s *session) readdress(ins []lan.Interface) {
	before := s.group.interfaces()
	s.retire(before)
	s.group.update(ins)
	s.tell(ins, before)
}

// retire remembers the addresses of a reading that is past.
func (s *session) retire(ins []lan.Interface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired, s.retiredTill = nil, time.Now().Add(echoTime)
	for _, in := range ins {
		s.retired = append(s.retired, addresses(in)...)
	}
}

// end says goodbye, for the host name too unless the next session keeps it, and waits for
// what open started.
func (s *session) end(goodbyeHost bool) {
	for _, server := range s.servers {
		server.Shutdown()
	}
	s.mu.Lock()
	o, probing := s.own, s.probing
	s.mu.Unlock()
	if goodbyeHost && !probing {
		for _, in := range s.group.interfaces() {
			if addrs := addresses(in); len(addrs) > 0 {
				s.send(o.announcement(nil, addrs), in)
			}
		}
	}
	close(s.done)
	s.group.close()
	s.wg.Wait()
}

func (s *session) send(m *dns.Msg, in lan.Interface) {
	b, err := m.Pack()
	if err == nil {
		err = s.group.multicast(b, in)
	}
	if err != nil {
		s.log.Debug("mDNS message not sent", "interface", in.Name, "err", err)
	}
}

// handle looks at one datagram.
func (s *session) handle(p packet) {
	var m dns.Msg
	if err := m.Unpack(p.b); err != nil {
		return
	}
	s.mu.Lock()
	o, probing := s.own, s.probing
	s.mu.Unlock()
	if m.Response {
		if p.from.Port() == port { // RFC 6762 §6
			s.response(&m, o)
		}
		return
	}
	if probing {
		return // nothing is ours yet
	}
	r := o.reply(&m, addresses(p.in))
	if r == nil {
		return
	}
	if p.from.Port() != port {
		s.answerLegacy(legacy(r, &m), p)
		return
	}
	if s.mayTell(p.in, len(m.Ns) > 0) {
		s.send(r, p.in)
	}
}

// mayTell keeps repetitions apart (RFC 6762 §6); the answer to a probe cannot wait as long.
func (s *session) mayTell(in lan.Interface, probe bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	apart := mayRepeat
	if probe {
		apart = probeEvery
	}
	now := time.Now()
	if t, ok := s.told[in.Index]; ok && now.Sub(t) < apart {
		return false
	}
	s.told[in.Index] = now
	return true
}

// answerLegacy answers a plain resolver on the same link, and no other: an answer to a stranger
// is what attackers look for (RFC 6762 §11).
func (s *session) answerLegacy(r *dns.Msg, p packet) {
	if _, ok := p.in.Facing(p.from.Addr()); !ok {
		return
	}
	s.mu.Lock()
	now := time.Now()
	if now.Sub(s.legacyFrom) >= time.Second {
		s.legacyFrom, s.legacySent = now, 0
	}
	s.legacySent++
	over := s.legacySent > maxLegacy
	s.mu.Unlock()
	if over {
		return
	}
	b, err := r.Pack()
	if err == nil {
		err = s.group.unicast(b, p.from, p.in)
	}
	if err != nil {
		s.log.Debug("mDNS answer not sent", "peer", p.from, "err", err)
	}
}

// response looks for claims of others to our names.
func (s *session) response(m *dns.Msg, o *own) {
	var all []lan.Interface // read at most once, and only when an address of our host is told
	s.mu.Lock()
	former := s.former
	s.mu.Unlock()
	host, inst := o.conflict(m, former, func(a netip.Addr) bool {
		if slices.ContainsFunc(s.group.interfaces(), func(in lan.Interface) bool { return in.Has(a) }) || s.wasOurs(a) {
			return true
		}
		if all == nil {
			all, _ = lan.All()
		}
		return slices.ContainsFunc(all, func(in lan.Interface) bool { return in.Has(a) })
	})
	if !host && !inst {
		return
	}
	s.mu.Lock()
	first := !s.lostHost && !s.lostInst
	s.lostHost, s.lostInst = s.lostHost || host, s.lostInst || inst
	tell := first && !s.probing
	s.mu.Unlock()
	if tell {
		s.lost()
	}
}

func (s *session) wasOurs(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.retiredTill) && slices.Contains(s.retired, a)
}
