//go:build no_tether

package features

// Tether: the device is reachable through a relay.
const Tether = false
