package shared

import "time"

// The gateway's policy, as far as it is the same for every device.
const (
	// BridgeTime is how long the gateway uses answers past their lifetime when the service
	// cannot be reached: a service that restarts is not seen from outside.
	BridgeTime = 30 * time.Second
	// TagMax is up to how many bytes the gateway gives answers an ETag.
	TagMax = 64 << 10
)

// Gateway is the policy of a device's gateway, to which the limits and the maker's rules are
// added.
func Gateway() Config {
	return Config{Name: "cloudrest-gateway", StaleOnError: BridgeTime, TagMax: TagMax, Preconditions: true, Announce: true}
}

// Relay is the policy of the relay: a device that is offline is answered for only if the
// origin or the maker's rule says so.
func Relay() Config {
	return Config{Name: "cloudrest-relay", Targeted: []string{"Cdn-Cache-Control"}, MaxBytes: 64 << 20, MaxEntries: 1 << 16, Background: 64}
}
