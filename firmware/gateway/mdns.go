//go:build !no_mdns

package gateway

import (
	"context"
	"sync/atomic"

	"github.com/cloudrest/cloudrest/firmware/discovery/dnssd"
)

// mdns is the announcer. It has a file of its own because importing the packages behind it
// is enough to link their tables.
type mdns struct {
	announcer atomic.Pointer[dnssd.Announcer] // nil: off or not started
}

// announcer makes it, and returns its Run.
func (g *Gateway) announcer() func(context.Context) error {
	a := &dnssd.Announcer{Info: g.announcement, Changed: g.watcher.Changed, Interfaces: g.cfg.Interfaces, Logger: g.log}
	g.mdns.announcer.Store(a)
	return a.Run
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

// mdnsState is how discovery by mDNS is, and under which host name.
func (g *Gateway) mdnsState() (state, host string) {
	a := g.mdns.announcer.Load()
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
