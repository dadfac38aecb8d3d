//go:build no_mdns

package features

// MDNS: the device is announced by mDNS.
const MDNS = false
