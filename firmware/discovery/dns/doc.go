// Package dns reads and writes the messages of multicast DNS: the format of RFC 1035 §4 with
// the five kinds of records that service discovery is made of, and NSEC (RFC 6762 §6.1).
// Records of other kinds are carried as bytes. It does no I/O.
//
// Its names and types are those of github.com/miekg/dns, so that github.com/grandcat/zeroconf
// can be built on it (folder zeroconf): that package knows 80 kinds of records, all of which
// its tables keep in the program, 10 % of a gateway for MIPS routers.
//
// Names and character strings are in presentation format (RFC 1035 §5.1): absolute, with a
// dot at the end; '\' before a character that has a meaning, \DDD for a byte that cannot be
// shown.
package dns
