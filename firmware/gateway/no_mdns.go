//go:build no_mdns

package gateway

import "context"

type mdns struct{}

func (g *Gateway) announcer() func(context.Context) error { return nil } // Validate refuses Config.MDNS
func (g *Gateway) mdnsState() (state, host string)        { return "off", "" }
