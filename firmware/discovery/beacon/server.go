package beacon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
	"github.com/cloudrest/cloudrest/tether"
)

// Server answers questions. It answers only what can be a person's phone on the same
// network: the source address is private (RFC 1918, RFC 4193), link-local or loopback, the
// datagram does not itself begin like an answer, and the source port that also gets the answer is
// neither a system port (RFC 6335 §6) nor the question port, where another service
// would answer the answer. All else is dropped in silence and counted.
//
// The socket is bound without SO_REUSEADDR: no other program can take questions away
// or answer under our port while it runs.
type Server struct {
	// Name returns the device's name; nil or "": FallbackName. It goes through CleanName.
	Name func() string
	// URL returns the URL of the REST API for an asker who reaches the device at addr, one of
	// its own addresses without a zone; required. See Format for what it may hold.
	URL func(addr netip.Addr) string
	// Interfaces are the only ones to take questions on; nil: all.
	Interfaces []string
	// Listen is the only address to take questions on, without broadcasts unless it is a
	// wildcard; the zero value: every address, IPv4 and IPv6.
	Listen       netip.Addr
	QuestionPort uint16        // 0: 15800
	AnswerPort   uint16        // 0: 15900
	Interval     time.Duration // between two answers to one source; 0: DefaultInterval
	Rate         int           // answers a second in all; 0: DefaultRate
	Logger       *slog.Logger  // nil: none

	stats   counters
	unfit   atomic.Bool // the answer could not be written; said once
	serving atomic.Int32

	mu     sync.Mutex // guards ins and readAt
	ins    []lan.Interface
	readAt time.Time
}

// Stats counts datagrams since the start.
type Stats struct {
	Questions  uint64 // taken in
	Answered   uint64 // answers, each of one or two datagrams
	Foreign    uint64 // dropped: the source is not local, or came in on none of Interfaces
	Echo       uint64 // dropped: an answer, not a question
	TooSoon    uint64 // dropped: the source had an answer within Interval
	OverRate   uint64 // dropped: over Rate, or too many sources
	SendErrors uint64 // answers that could not be written or sent
}

type counters struct {
	questions, answered, foreign, echo, tooSoon, overRate, sendErrors atomic.Uint64
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	c := &s.stats
	return Stats{c.questions.Load(), c.answered.Load(), c.foreign.Load(), c.echo.Load(), c.tooSoon.Load(), c.overRate.Load(), c.sendErrors.Load()}
}

// Serving reports whether a socket is open.
func (s *Server) Serving() bool { return s.serving.Load() > 0 }

// Times of Run.
const (
	retryFirst = time.Second // after a bind that failed, doubled up to
	retryLast  = time.Minute
	writeTime  = time.Second // a datagram that cannot be sent by then is dropped
	freshFor   = 250 * time.Millisecond
)

// maxQuestion is how much of a question is read; no more of it matters.
const maxQuestion = 512

// Name of the part in logs.
const partName = "beacon"

// Run answers until ctx is done and then returns nil. A port that is taken is tried again
// for ever. The only other end is a Server that is not set up right.
func (s *Server) Run(ctx context.Context) error {
	if s.URL == nil {
		return errors.New(partName + ": Server.URL is required")
	}
	log := s.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	limit := newLimiter(s.interval(), s.rate())
	var wg sync.WaitGroup
	for _, network := range []string{"udp4", "udp6"} {
		addr := s.Listen
		switch {
		case !addr.IsValid() && network == "udp4":
			addr = netip.IPv4Unspecified()
		case !addr.IsValid():
			addr = netip.IPv6Unspecified()
		case addr.Unmap().Is4() != (network == "udp4"):
			continue
		}
		wg.Go(func() { s.family(ctx, network, netip.AddrPortFrom(addr.Unmap(), s.questionPort()), limit, log) })
	}
	wg.Wait()
	return nil
}

// family keeps one socket open.
func (s *Server) family(ctx context.Context, network string, addr netip.AddrPort, limit *limiter, log *slog.Logger) {
	wait, failed := retryFirst, ""
	for ctx.Err() == nil {
		c, err := listen(network, addr)
		if err == nil {
			if failed != "" {
				log.Info("discovery by UDP works again", "listen", addr)
			}
			wait, failed = retryFirst, ""
			s.serving.Add(1)
			stop := context.AfterFunc(ctx, func() { c.Close() })
			err = s.serve(c, limit, log)
			stop()
			c.Close()
			s.serving.Add(-1)
		}
		if ctx.Err() != nil {
			return
		}
		if err.Error() != failed {
			level := slog.LevelWarn
			if network == "udp6" && errors.Is(err, errNoFamily) {
				level = slog.LevelDebug // a kernel without IPv6 is nothing to warn of
			}
			log.Log(ctx, level, "discovery by UDP does not work, trying on", "listen", addr, "err", err, "retry_in", wait)
			failed = err.Error()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, retryLast)
	}
}

// serve answers what one socket takes in, until it fails.
func (s *Server) serve(c *conn, limit *limiter, log *slog.Logger) error {
	buf := make([]byte, maxQuestion)
	for {
		n, q, err := c.read(buf)
		if err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		s.stats.questions.Add(1)
		s.question(c, buf[:n], q, limit, log)
	}
}

func (s *Server) question(c *conn, b []byte, q arrival, limit *limiter, log *slog.Logger) {
	if !lan.Local(q.src.Addr()) || q.src.Port() == 0 {
		s.stats.foreign.Add(1)
		return
	}
	if bytes.HasPrefix(b, []byte(magic+" "+separator)) {
		s.stats.echo.Add(1)
		return
	}
	in, own, ok := choose(s.interfaces(), q)
	if !ok || len(s.Interfaces) > 0 && !slices.Contains(s.Interfaces, in.Name) {
		s.stats.foreign.Add(1)
		return
	}
	switch limit.ask(q.src.Addr(), time.Now()) {
	case tooSoon:
		s.stats.tooSoon.Add(1)
		return
	case overRate:
		s.stats.overRate.Add(1)
		return
	}
	name := ""
	if s.Name != nil {
		name = s.Name()
	}
	text, err := Format(in.MAC, name, s.URL(own))
	if err != nil {
		s.stats.sendErrors.Add(1)
		if !s.unfit.Swap(true) {
			log.Warn("the answer to discovery by UDP cannot be written", "err", err)
		}
		return
	}
	sent := false
	for _, t := range s.replyTo(q.src) {
		if err := c.write(text, t, own, q.index); err != nil {
			s.stats.sendErrors.Add(1)
			log.Debug("answer to discovery by UDP not sent", "peer", t, "err", err)
			continue
		}
		sent = true
	}
	if sent {
		s.stats.answered.Add(1)
	}
}

const lastSystemPort = 1023 // RFC 6335 §6

// replyTo lists where the answer to a question from src goes.
func (s *Server) replyTo(src netip.AddrPort) []netip.AddrPort {
	to := []netip.AddrPort{netip.AddrPortFrom(src.Addr(), s.answerPort())}
	if p := src.Port(); p != s.answerPort() && p != s.questionPort() && p > lastSystemPort {
		to = append(to, src)
	}
	return to
}

// interfaces is a reading of the machine's interfaces, at most freshFor old: a flood of
// questions must not become a flood of system calls. It is nil when they cannot be read.
func (s *Server) interfaces() []lan.Interface {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.readAt.IsZero() || now.Sub(s.readAt) >= freshFor {
		s.readAt = now
		s.ins, _ = lan.All()
	}
	return s.ins
}

func (s *Server) questionPort() uint16 {
	if s.QuestionPort != 0 {
		return s.QuestionPort
	}
	return tether.DiscoveryPort
}

func (s *Server) answerPort() uint16 {
	if s.AnswerPort != 0 {
		return s.AnswerPort
	}
	return tether.AnswerPort
}

func (s *Server) interval() time.Duration {
	if s.Interval > 0 {
		return s.Interval
	}
	return DefaultInterval
}

func (s *Server) rate() int {
	if s.Rate > 0 {
		return s.Rate
	}
	return DefaultRate
}
