package main

import (
	"cmp"
	"context"
	"net/netip"
	"net/url"
	"sync"

	"github.com/cloudrest/cloudrest/firmware/discovery/beacon"
	"github.com/cloudrest/cloudrest/firmware/discovery/dnssd"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// discoverLAN looks by both ways at once until ctx is done; then the channel is closed.
// One way that does not work here does not stop the other.
func discoverLAN(ctx context.Context, interfaces []string) <-chan sighting {
	heard := make(chan sighting, 16)
	tell := func(s sighting) {
		select {
		case heard <- s:
		case <-ctx.Done():
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { byMDNS(ctx, interfaces, tell) })
	wg.Go(func() { byUDP(ctx, interfaces, tell) })
	go func() {
		wg.Wait()
		<-ctx.Done()
		close(heard)
	}()
	return heard
}

func byUDP(ctx context.Context, interfaces []string, tell func(sighting)) {
	answers, err := beacon.Ask(ctx, beacon.AskConfig{Interfaces: interfaces})
	if err != nil {
		tell(sighting{way: "udp", trouble: err})
		return
	}
	for a := range answers {
		tell(sighting{way: "udp", name: a.Name, mac: a.MAC, url: a.URL})
	}
}

func byMDNS(ctx context.Context, interfaces []string, tell func(sighting)) {
	entries, err := dnssd.Browse(ctx, dnssd.BrowseConfig{Interfaces: interfaces})
	if err != nil {
		tell(sighting{way: "mdns", trouble: err})
		return
	}
	for e := range entries {
		tell(fromEntry(e))
	}
}

// fromEntry takes what is needed out of an announcement; a TXT record may say anything.
func fromEntry(e dnssd.Entry) sighting {
	s := sighting{
		way: "mdns", gone: e.Gone, instance: e.Instance, id: e.ID(), name: cmp.Or(e.TXT[dnssd.KeyName], e.Instance),
		addrs: e.Addrs, port: uint16(e.Port), api: e.TXT[dnssd.KeyAPI], version: e.TXT[dnssd.KeyVersion],
	}
	if fp := e.TXT[dnssd.KeyFingerprint]; trust.ValidPin(fp) {
		s.fingerprint = fp
	}
	if u, err := settings.ParseURL(e.TXT[dnssd.KeyURL], "https"); err == nil {
		s.url = u.String()
	} else if len(e.Addrs) > 0 {
		s.url = (&url.URL{Scheme: "https", Host: netip.AddrPortFrom(e.Addrs[0], s.port).String(), Path: e.TXT[dnssd.KeyPath]}).String()
	}
	return s
}
