package gateway

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/firmware/discovery/beacon"
	"github.com/cloudrest/cloudrest/firmware/discovery/dnssd"
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
		announcer := &dnssd.Announcer{Info: g.announcement, Changed: g.watcher.Changed, Interfaces: g.cfg.Interfaces, Logger: g.log}
		g.announcer.Store(announcer)
		start("mdns", announcer.Run)
	}
}

// announcement is what mDNS tells about the device now.
func (g *Gateway) announcement() dnssd.Info {
	d, _ := g.watcher.Current()
	bound := g.Addresses().HTTPS
	info := dnssd.Info{
		ID: g.id.ID, Name: g.Name(), API: d.API, Version: d.Version,
		Fingerprint: g.cert.Pin(), Path: "/", Port: int(bound.Port()),
	}
	if !bound.Addr().IsUnspecified() {
		info.URL = g.urlAt(bound.Addr()) // the host name would lead to the other addresses too
	}
	return info
}

// udpState is how discovery by UDP is; the beacon itself tries a port that is taken again.
func (g *Gateway) udpState() string {
	if b := g.beacon.Load(); b != nil && !b.Serving() {
		return "failing: no socket is open, the log says why"
	}
	return g.parts.get("udp")
}

// mdnsState is how discovery by mDNS is, and under which host name.
func (g *Gateway) mdnsState() (state, host string) {
	a := g.announcer.Load()
	if a == nil {
		return g.parts.get("mdns"), ""
	}
	switch st := a.State(); {
	case st.Announced:
		return "on", st.Host
	case st.Err != nil:
		return "failing: " + st.Err.Error(), ""
	}
	return "starting", ""
}
