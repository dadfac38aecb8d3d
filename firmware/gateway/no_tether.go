//go:build no_tether

package gateway

func (g *Gateway) openUplink() error { return nil } // Validate refuses Config.Relays
