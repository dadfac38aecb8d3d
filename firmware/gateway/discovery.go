package gateway

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/firmware/discovery/beacon"
)

// discover starts the kinds of discovery that are on. Neither ends the group.
func (g *Gateway) discover(ctx context.Context, group *errgroup.Group) {
	start := func(name string, run func(context.Context) error) {
		group.Go(func() error {
			optional(ctx, g.log, &g.parts, name, run)
			return nil
		})
	}
	if g.cfg.UDPDiscovery {
		server := &beacon.Server{
			Name: g.Name, URL: g.urlAt, Interfaces: g.cfg.Interfaces,
			QuestionPort: uint16(g.cfg.UDPPort), AnswerPort: uint16(g.cfg.UDPAnswerPort), Logger: g.log,
		}
		g.beacon.Store(server)
		start("udp", server.Run)
	}
	if g.cfg.MDNS {
		start("mdns", g.announcer())
	}
}

// udpState is how discovery by UDP is; the beacon itself tries a port that is taken again.
func (g *Gateway) udpState() string {
	if b := g.beacon.Load(); b != nil && !b.Serving() {
		return "failing: no socket is open, the log says why"
	}
	return g.parts.get("udp")
}
