//go:build no_provision

package features

// Provision: identity certificates from the factory.
const Provision = false
