//go:build !no_mdns

package gateway

func (g *Gateway) announcedPin() string { return g.announcement().Fingerprint }
