// Package gateway makes the REST service of a device reachable: on the LAN by HTTPS, with
// discovery and notifications, and through a relay over one outgoing connection. It builds
// the parts from a Config and runs them; each part lives in a package of its own.
//
// cloudrestd is this package with flags. A maker whose service is written in Go can use it
// inside the service instead, without a second process and without a hop over localhost:
//
//	g, err := gateway.New(gateway.Config{OriginHandler: mux, StateDir: "/var/lib/mydevice"})
//	...
//	err = g.Run(ctx)
//
// What the gateway serves itself lives below /.cloudrest/; every other path belongs to the
// service.
package gateway
