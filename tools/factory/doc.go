// Package factory is the factory station: the server that gives devices their identity
// certificates on the production line (paper, "Device Factory Provisioning"; P5). The words
// on the wire are those of package tether/provisioning, the device's part is
// gateway.Provision.
//
// A Station serves the devices and the live page of the line over HTTPS, keeps everything
// in one bbolt file, and takes orders on a UNIX socket in its state directory, where Client
// finds it. Units are claimed with batch tokens: bounded in number and time, stored as
// SHA-256, shown once. What happens to a unit:
//
//	(nothing) --claim--> claimed --confirm--> confirmed
//	    ^                   |                     |
//	    +------release------+----------release----+   its certificate is revoked
//
// A claim of a claimed or confirmed unit with the same key is answered as before and does
// not count. With another key it is a conflict: refused, shown on the page, until an
// operator releases the unit. Nothing releases it by itself.
//
// Simulate runs a whole production line against a station, with the code of real devices
// and with faults, and judges the outcome.
package factory
