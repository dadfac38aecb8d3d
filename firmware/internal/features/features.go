// Package features tells what this build of the gateway can do. A build tag leaves each of
// them out, for small flash: no_board, no_cache, no_http2, no_mdns, no_page, no_provision,
// no_tether (openwrt/README.md has their sizes). The constants are what the compiler needs to
// drop the code behind them.
package features

import "fmt"

// List names what is included, in alphabetical order.
func List() []string {
	list := []string{}
	for _, f := range []struct {
		name string
		here bool
	}{{"board", Board}, {"cache", Cache}, {"http2", HTTP2}, {"mdns", MDNS}, {"page", Page}, {"provision", Provision}, {"tether", Tether}} {
		if f.here {
			list = append(list, f.name)
		}
	}
	return list
}

// Missing says that a feature was asked for which is not there.
func Missing(name string) error {
	return fmt.Errorf("this build has no %s (build tag no_%s)", name, name)
}
