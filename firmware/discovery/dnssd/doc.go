// Package dnssd announces and finds devices by DNS-based Service Discovery (RFC 6763) over
// multicast DNS (RFC 6762), so that a phone finds the device by name and
// https://cloudrest-1a2b3c4d.local/ opens in a browser.
//
// Announcer registers the service types _cloudrest._tcp and _https._tcp with
// grandcat/zeroconf v1.0.0, and does around it what that library leaves out:
//
//   - it has no conflict handling (RFC 6762 §8, §9): names are probed before they are
//     registered, defended against later probes, and changed when they are lost;
//   - it publishes the system's host name: every device has its own here, cloudrest-<id>.local;
//   - it does not answer for that host name: we do, A, AAAA and NSEC;
//   - its interfaces are fixed for life: they are watched, and registered anew when they
//     change. Addresses it is not told at all, then it takes those of the interface it speaks on;
//   - its datagrams leave with TTL 1 (RFC 6762 §11 says 255), and it answers on interfaces
//     that were never named, and to unicast questions from anywhere: its sockets get the
//     right TTL and a filter.
//
// What stays of it: SRV, TXT and PTR records live 3200 s, and it writes a line to the
// log package's standard logger when a family has no usable interface.
//
// Browse finds what others announce, and tells when it changes and goes.
package dnssd
