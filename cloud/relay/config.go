// Package relay is the cloud side of CloudREST: it takes the tethers of devices and hands
// the requests of clients to them. This is role "all": one process with an embedded
// store, for a single machine. New builds the parts from a Config, Run runs them until
// its context ends, and then lets go gently: devices are sent elsewhere, requests in
// flight finish.
//
// What a large relay asks of the system: one open file for each device and client (the
// program raises its own limit as far as it may; in a systemd unit LimitNOFILE=65536, above
// a million also fs.nr_open), net.core.somaxconn of 4096 or more for a storm of reconnects,
// and about 9 KB of memory for an idle device, 17 KB where TLS ends here.
package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/devnode"
	"github.com/cloudrest/cloudrest/cloud/internal/front"
)

// RoleAll is the one role of this version.
const RoleAll = "all"

// Ways by which devices become known.
const (
	EnrollFirstUse = "trust-on-first-use" // the first key that an ID proves is its key
	EnrollList     = "list"               // only devices that the operator has listed
	// EnrollFactory: only devices with a certificate of the maker's factory; the first key
	// that such an ID proves is its key (SPEC.md §4.11).
	EnrollFactory = "factory"
)

// Defaults of Config.
const (
	DefaultListen   = ":443"
	DefaultMetrics  = "127.0.0.1:9090"
	DefaultStateDir = "/var/lib/cloudrelay"
	DefaultGrace    = 30 * time.Second // SPEC.md §4.9
	DefaultGoAway   = 2 * time.Second
	DefaultCache    = 64 << 20 // bytes
	MinCache        = 1 << 20  // bytes; less holds too little to be worth it

	DefaultMaxDevices  = devnode.DefaultMaxDevices
	DefaultKeepalive   = devnode.DefaultKeepalive
	DefaultMaxInFlight = front.DefaultMaxInFlight
	DefaultHeadTimeout = front.DefaultHeadTimeout
)

// Config of a relay. The zero value of a field means its default, where one is named.
type Config struct {
	Role     string   // "all"
	Listen   string   // host:port for devices and clients alike; default ":443"
	TLSCert  string   // PEM file of the certificate with its chain; read again when it changes
	TLSKey   string   // PEM file of its key
	TLSOff   bool     // a load balancer in front ends TLS
	Domains  []string // names under which devices dial and clients call; the first is shown to people. Required
	StateDir string   // default /var/lib/cloudrelay; made if it does not exist
	Metrics  string   // host:port for Prometheus; "": no such listener
	Enroll   string   // default trust-on-first-use
	// FactoryCA are PEM files with the factories' authorities, read again when they change.
	// Required with, and only with, EnrollFactory.
	FactoryCA []string
	// RenewCA and RenewKey are PEM files of an authority below one of FactoryCA that renews
	// the certificates of connected devices; "": they are not renewed.
	RenewCA, RenewKey string
	// TrustedProxies are balancers whose X-Forwarded-For and X-Forwarded-Proto are believed.
	TrustedProxies []netip.Prefix

	MaxDevices  int           // connected at once; default 20000
	MaxInFlight int           // requests to devices at once; default 4096
	HeadTimeout time.Duration // for the head of a device's answer; default 30 s
	// Cache is the memory for answers that may be given out again, in bytes; default 64 MiB,
	// negative: none are stored.
	Cache      int64
	Keepalive  time.Duration // of idle tethers, 15 s to 240 s; default 25 s. Keep it under the balancer's idle limit
	DrainDelay time.Duration // after the signal, serve on for so long while /readyz says no; default 0
	GoAway     time.Duration // time over which devices are sent away; default 2 s
	Grace      time.Duration // for requests in flight after that; default 30 s

	Logger *slog.Logger // nil: silent

	coherence coherence // tests take it away to see what it is good for
}

// FieldError is a field of Config that is not right.
type FieldError struct {
	Field string // the option's name: "tls-cert"
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *FieldError) Unwrap() error { return e.Err }

// fill puts defaults in.
func (c *Config) fill() {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&c.Role, RoleAll)
	def(&c.Listen, DefaultListen)
	def(&c.StateDir, DefaultStateDir)
	def(&c.Enroll, EnrollFirstUse)
	if c.Grace == 0 {
		c.Grace = DefaultGrace
	}
	if c.Cache == 0 {
		c.Cache = DefaultCache
	}
	if c.GoAway == 0 {
		c.GoAway = DefaultGoAway
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	domains := make([]string, len(c.Domains)) // the caller's stays as it is
	for i, d := range c.Domains {
		domains[i] = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(d), "."))
	}
	c.Domains = domains
}

// Validate reports every mistake at once, each a *FieldError, joined; nil: none.
func (c Config) Validate() error {
	c.fill()
	var errs []error
	bad := func(field, format string, a ...any) {
		errs = append(errs, &FieldError{field, fmt.Errorf(format, a...)})
	}
	if c.Role != RoleAll {
		bad("role", "there is only %q, not %q", RoleAll, c.Role)
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen", "want host:port or :port, not %q", c.Listen)
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			bad("metrics", "want host:port or off, not %q", c.Metrics)
		}
	}
	switch {
	case c.TLSOff && (c.TLSCert != "" || c.TLSKey != ""):
		bad("tls", "off contradicts a certificate: leave one of them away")
	case c.TLSOff:
	case c.TLSCert == "" || c.TLSKey == "":
		bad("tls-cert", "a certificate and its key are needed (tls-cert, tls-key), or tls off behind a load balancer that ends TLS")
	default:
		if _, err := loadCertificate(c.TLSCert, c.TLSKey); err != nil {
			bad("tls-cert", "%w", err)
		}
	}
	if len(c.Domains) == 0 {
		bad("domain", "at least one name is needed under which devices and clients reach this relay")
	}
	for _, d := range c.Domains {
		if !validHost(d) {
			bad("domain", "%q is not a host name or IP address (without scheme and port)", d)
		}
	}
	switch c.Enroll {
	case EnrollFirstUse, EnrollList:
		for name, set := range map[string]bool{"factory-ca": len(c.FactoryCA) > 0, "renew-ca": c.RenewCA != "", "renew-key": c.RenewKey != ""} {
			if set {
				bad(name, "%w", errFactory)
			}
		}
	case EnrollFactory:
		c.validateFactory(bad)
	default:
		bad("enroll", "want %s, %s or %s, not %q", EnrollFirstUse, EnrollList, EnrollFactory, c.Enroll)
	}
	for _, p := range c.TrustedProxies {
		if !p.IsValid() {
			bad("trusted-proxies", "not an address range")
		}
	}
	if c.Cache >= 0 && c.Cache < MinCache {
		bad("cache", "want off, or %d bytes or more, not %d", MinCache, c.Cache)
	}
	if c.Keepalive != 0 && (c.Keepalive < 15*time.Second || c.Keepalive > 240*time.Second) {
		bad("keepalive", "want 15s to 4m, not %v", c.Keepalive)
	}
	for name, d := range map[string]time.Duration{"head-timeout": c.HeadTimeout, "drain-delay": c.DrainDelay, "goaway": c.GoAway, "grace": c.Grace} {
		if d < 0 {
			bad(name, "%v is less than nothing", d)
		}
	}
	for name, n := range map[string]int{"max-devices": c.MaxDevices, "max-in-flight": c.MaxInFlight} {
		if n < 0 {
			bad(name, "%d is less than nothing", n)
		}
	}
	return errors.Join(errs...)
}

// validateFactory reports mistakes about the authorities.
func (c *Config) validateFactory(bad func(field, format string, a ...any)) {
	if len(c.FactoryCA) == 0 {
		bad("factory-ca", "enroll %s needs the certificate of the factory's authority", EnrollFactory)
		return
	}
	roots, err := loadRoots(c.FactoryCA)
	switch {
	case err != nil:
		bad("factory-ca", "%w", err)
	case (c.RenewCA == "") != (c.RenewKey == ""):
		bad("renew-ca", "an authority and its key belong together (renew-ca, renew-key)")
	case c.RenewCA != "":
		if _, err := loadIssuer(c.RenewCA, c.RenewKey, roots); err != nil {
			bad("renew-ca", "%w", err)
		}
	}
}

// validHost takes IP addresses and names of letters, digits, hyphens and dots, whose
// labels fit DNS (RFC 1035 §2.3.4) and leave room for a device's label before them.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	const deviceLabel = 52 + 1
	if s == "" || len(s)+deviceLabel > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}
