package beacon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
	"github.com/cloudrest/cloudrest/tether"
)

// AskConfig says whom to ask.
type AskConfig struct {
	// Interfaces are the ones to broadcast on; nil: the local networks (lan.Interfaces).
	Interfaces []string
	// NoBroadcast asks only Targets, and takes answers only from their addresses.
	NoBroadcast bool
	// Targets are asked directly, beside the broadcast: 127.0.0.1:15800, say. Port 0 means QuestionPort.
	Targets []netip.AddrPort
	// Listen is the address to bind; the zero value: all of IPv4, and IPv6 where Targets has any.
	Listen       netip.Addr
	QuestionPort uint16        // 0: 15800
	AnswerPort   uint16        // 0: 15900
	Every        time.Duration // between questions; 0: 2 s
	Logger       *slog.Logger  // nil: none
}

const (
	askEvery   = 2 * time.Second
	question   = "hello" // what the oldest phone apps send
	maxAnswers = 1024    // different answers of one Ask; what comes on top is dropped
)

// Ask asks, again and again until ctx is done, and sends each different answer once; a device
// answers for each of its interfaces that a question reached. The channel holds a few
// answers and then waits for the receiver; it is closed when ctx is done and all has ended.
// Interfaces and addresses may change meanwhile. The error is of a socket that cannot be
// opened; a taken AnswerPort is no error, since devices answer to the port of the
// question too.
func Ask(ctx context.Context, cfg AskConfig) (<-chan Answer, error) {
	a := asker{AskConfig: cfg, log: cfg.Logger, seen: map[Answer]bool{}, out: make(chan Answer, 16)}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.QuestionPort == 0 {
		a.QuestionPort = tether.DiscoveryPort
	}
	if a.AnswerPort == 0 {
		a.AnswerPort = tether.AnswerPort
	}
	if a.Every <= 0 {
		a.Every = askEvery
	}
	for i, t := range a.Targets {
		if i == 0 {
			a.Targets = slices.Clone(a.Targets)
		}
		if t.Port() == 0 {
			t = netip.AddrPortFrom(t.Addr(), a.QuestionPort)
		}
		a.Targets[i] = netip.AddrPortFrom(t.Addr().Unmap(), t.Port())
	}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("%s: ask: %w", partName, err)
	}
	go a.run(ctx)
	return a.out, nil
}

type asker struct {
	AskConfig
	log   *slog.Logger
	v4    *conn   // asks; nil without IPv4
	v6    *conn   // asks; nil without IPv6
	conns []*conn // all of them, those on AnswerPort too
	out   chan Answer

	mu   sync.Mutex // guards seen
	seen map[Answer]bool
}

func (a *asker) open() error {
	var errs []error
	for _, network := range []string{"udp4", "udp6"} {
		addr, is4 := a.Listen.Unmap(), network == "udp4"
		switch {
		case addr.IsValid() && addr.Is4() != is4:
			continue
		case addr.IsValid():
		case is4:
			addr = netip.IPv4Unspecified()
		case slices.ContainsFunc(a.Targets, func(t netip.AddrPort) bool { return t.Addr().Is6() }):
			addr = netip.IPv6Unspecified()
		default:
			continue
		}
		c, err := listen(network, netip.AddrPortFrom(addr, 0))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if is4 {
			a.v4 = c
		} else {
			a.v6 = c
		}
		a.conns = append(a.conns, c)
		if c, err = listen(network, netip.AddrPortFrom(addr, a.AnswerPort)); err != nil {
			a.log.Info("the answer port of discovery by UDP is taken, devices that answer only there stay unseen", "err", err)
			continue
		}
		a.conns = append(a.conns, c)
	}
	if len(a.conns) == 0 {
		return errors.Join(errs...)
	}
	return nil
}

func (a *asker) run(ctx context.Context) {
	defer close(a.out)
	var wg sync.WaitGroup
	for _, c := range a.conns {
		wg.Go(func() { a.receive(ctx, c) })
	}
	for {
		a.ask()
		select {
		case <-time.After(a.Every):
			continue
		case <-ctx.Done():
		}
		break
	}
	for _, c := range a.conns {
		c.Close()
	}
	wg.Wait()
}

// ask sends one round of questions.
func (a *asker) ask() {
	for _, t := range a.Targets {
		c := a.v4
		if t.Addr().Is6() {
			c = a.v6
		}
		if c == nil {
			continue
		}
		if err := c.write([]byte(question), t, netip.Addr{}, 0); err != nil {
			a.log.Debug("question not sent", "peer", t, "err", err)
		}
	}
	if a.NoBroadcast || a.v4 == nil {
		return
	}
	ins, err := lan.Interfaces(a.Interfaces)
	if err != nil {
		a.log.Debug("question not broadcast", "err", err)
		return
	}
	for _, b := range broadcasts(ins) {
		to := netip.AddrPortFrom(b.to, a.QuestionPort)
		if err := a.v4.write([]byte(question), to, b.from, b.index); err != nil {
			a.log.Debug("question not broadcast", "peer", to, "err", err)
		}
	}
}

type broadcast struct {
	from, to netip.Addr
	index    int
}

// broadcasts lists where to send on each interface: for each of its IPv4 subnets the directed
// broadcast, which some hosts prefer, and once the limited one (RFC 919), which
// reaches hosts whose subnet is another.
func broadcasts(ins []lan.Interface) (list []broadcast) {
	limited := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	for _, in := range ins {
		if in.Flags&net.FlagBroadcast == 0 {
			continue
		}
		first := true
		for _, p := range in.Prefixes {
			if !p.Addr().Is4() {
				continue
			}
			if first {
				first = false
				list = append(list, broadcast{p.Addr(), limited, in.Index})
			}
			if to, ok := directed(p); ok {
				list = append(list, broadcast{p.Addr(), to, in.Index})
			}
		}
	}
	return list
}

// directed is the broadcast address of a subnet; the two smallest have none (RFC 3021).
func directed(p netip.Prefix) (netip.Addr, bool) {
	if p.Bits() > 30 {
		return netip.Addr{}, false
	}
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b), true
}

func (a *asker) receive(ctx context.Context, c *conn) {
	buf := make([]byte, MaxAnswer+1) // one more tells what is too long
	for {
		n, q, err := c.read(buf)
		if err != nil {
			return // closed at the end
		}
		if !a.trusted(q.src.Addr()) {
			continue
		}
		ans, err := ParseAnswer(buf[:n])
		if err != nil {
			a.log.Debug("answer not understood", "peer", q.src, "err", err)
			continue
		}
		ans.From = q.src
		if !a.fresh(ans) {
			continue
		}
		select {
		case a.out <- ans:
		case <-ctx.Done():
			return
		}
	}
}

func (a *asker) trusted(src netip.Addr) bool {
	src = src.Unmap()
	if a.NoBroadcast {
		return slices.ContainsFunc(a.Targets, func(t netip.AddrPort) bool { return t.Addr() == src })
	}
	return lan.Local(src)
}

// fresh reports whether an answer is the first of its kind.
func (a *asker) fresh(ans Answer) bool {
	ans.From = netip.AddrPortFrom(ans.From.Addr(), 0) // a device may answer from two ports
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[ans] || len(a.seen) >= maxAnswers {
		return false
	}
	a.seen[ans] = true
	return true
}
