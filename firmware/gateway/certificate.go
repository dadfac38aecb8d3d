package gateway

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/cloudrest/cloudrest/firmware/discovery/lan"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/lancert"
	"github.com/cloudrest/cloudrest/firmware/internal/provision"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
)

func (g *Gateway) openCertificate() error {
	host, _ := os.Hostname() // without one the other names do
	cert, made, err := lancert.Open(lancert.Config{
		Dir: g.cfg.StateDir, ID: g.id.ID, HostName: host, Addrs: localAddrs(), Floor: buildinfo.BuildTime(), Logger: g.log,
	})
	if err != nil {
		return err
	}
	level, msg := slog.LevelInfo, "the LAN authority is new"
	switch made {
	case "":
		msg = "the LAN authority is known"
	case lancert.FirstStart:
	default:
		level, msg = slog.LevelError, "the LAN authority is new: clients that knew this device will refuse it until they forget it"
	}
	g.log.Log(context.Background(), level, msg, "reason", made, "pin", cert.Pin())
	g.cert = cert
	return nil
}

// keepCertificate lets the LAN certificate follow addresses, host name and clock until ctx
// is done. Connections in use go on with the one they began with.
func (g *Gateway) keepCertificate(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { g.cert.Run(ctx) })
	// All interfaces, not only those of discovery: the listener is on all of them.
	lan.Watch(ctx, lan.All, func(ins []lan.Interface) {
		host, _ := os.Hostname() // it usually changes with the addresses, by DHCP
		if _, err := g.cert.Update(host, addrsOf(ins)); err != nil {
			g.log.Error("the LAN certificate does not follow the addresses", "err", err)
		}
	})
}

func addrsOf(ins []lan.Interface) (list []netip.Addr) {
	for _, in := range ins {
		for _, p := range in.Prefixes {
			list = append(list, p.Addr())
		}
	}
	return list
}

// localAddrs are the present addresses of the machine.
func localAddrs() []netip.Addr {
	ins, _ := lan.All() // without addresses the names are enough
	return addrsOf(ins)
}

// Fingerprint is the pin of the device's LAN authority in lower-case hex: what clients know
// it by (SPEC.md §11.1). It stays the same when addresses and certificates change.
func (g *Gateway) Fingerprint() string { return g.cert.Pin() }

// openFactory reads what the factory gave the device: a certificate for relays that want
// one, and the secret on its label. A device that was never in a factory has neither.
func (g *Gateway) openFactory() {
	var err error
	if g.label, err = provision.Label(g.cfg.StateDir); err != nil {
		g.log.Error("the label does not pair", "err", err)
	}
	g.certs, err = provision.Open(g.cfg.StateDir, g.id.ID, g.id.Key(), buildinfo.BuildTime(), func() {
		g.log.Info("the factory certificate was renewed", "until", g.certs.Leaf().NotAfter)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		g.certs = nil
	case err != nil: // the LAN works without
		g.log.Error("the factory certificate is of no use: relays that want one will refuse the device", "err", err)
		g.certs = nil
	}
}

// chain is the factory certificate for the tether's HELLO; nil: none.
func (g *Gateway) chain() [][]byte {
	if !features.Provision || g.certs == nil {
		return nil
	}
	return g.certs.Chain()
}
