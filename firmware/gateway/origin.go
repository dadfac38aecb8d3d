package gateway

import (
	"fmt"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/describe"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy"
)

// openOrigin makes the way to the maker's service: its client, who may be in it at once,
// the proxy in front and the watcher of GET /device. Nothing is dialled yet.
func (g *Gateway) openOrigin() (err error) {
	c := origin.Config{URL: g.cfg.Origin, Handler: g.cfg.OriginHandler, Logger: g.log,
		MaxIdle: g.cfg.OriginConcurrency + 1} // so many are in use at once, and one asks for /device
	if c.Handler != nil {
		c.URL = nil
	}
	if g.client, err = origin.New(c); err != nil {
		return fmt.Errorf("prepare the origin: %w", err)
	}
	g.gate = admit.New(admit.Config{Concurrency: g.cfg.OriginConcurrency, Queue: g.cfg.OriginQueue})
	if g.proxy, err = proxy.New(proxy.Config{Origin: g.client, Gate: g.gate, Logger: g.log}); err != nil {
		return err
	}
	g.watcher, err = describe.New(describe.Config{Origin: g.client, Logger: g.log})
	return err
}
