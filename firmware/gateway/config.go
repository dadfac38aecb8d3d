package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/internal/cache"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/identity"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/httpcache"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// Who decides what a client on the LAN may do.
const (
	// AccessPaired lets in who has paired with the device, and nobody else but for GET
	// /device.
	AccessPaired = "paired"
	// AccessOrigin leaves it to the maker's service: every request reaches it.
	AccessOrigin = "origin"
	// AccessOpen says that nobody needs to decide, for the bench. Requests are treated as
	// with AccessOrigin; the status and the log say that the device is open on purpose.
	AccessOpen = "open"
)

// Bounds of the configuration.
const (
	maxName        = 63 // bytes of a service instance name (RFC 6763 §4.1.1)
	maxConcurrency = 1024
	maxQueue       = 65536
	maxRelays      = 32
)

// Config is what a gateway is made of. Only Origin or OriginHandler, and StateDir, are
// needed; what else is left out is off or has the default that its comment names. Default
// gives what cloudrestd starts from.
type Config struct {
	// Origin is the maker's REST service: http://host:port, or unix:///path of a UNIX
	// socket. Paths pass unchanged.
	Origin *url.URL
	// OriginHandler is the maker's REST service in this process, instead of Origin.
	OriginHandler http.Handler

	// HTTPS is the host:port of the LAN's HTTPS listener. Default ":443". Port 0 takes a free
	// one: see Addresses.
	HTTPS string
	// HTTP is the host:port of the listener that redirects to HTTPS. Empty: none.
	HTTP string
	// Access is AccessPaired (default), AccessOrigin or AccessOpen.
	Access string

	// StateDir is where identity, certificates, pairings and journal are kept; it is made
	// with mode 0700.
	StateDir string
	// Hardware gives the UID that the device ID is made of (*uid.Reader fits). Nil: random.
	Hardware identity.Hardware
	// Button opens the pairing window with a short press and resets the device with a long
	// one. Nil: none.
	Button board.Button
	// LED shows the pairing window and its code. Nil: none. The gateway does not close it.
	LED board.LED
	// Relays are the wss:// URLs of relays (ws:// without TLS, for tests). Empty: no tether.
	Relays []*url.URL
	// RelayCA is a PEM file of the authorities that the relays' certificates are checked
	// against. Empty: those of the system.
	RelayCA string

	// Name is what people call the device. Empty: the name in the service's descriptor.
	Name string
	// UDPDiscovery answers the broadcasts of phone apps.
	UDPDiscovery bool
	// UDPPort is where questions arrive, default 15800; UDPAnswerPort is the port of the
	// asker that answers go to, default 15900. Other values are for tests.
	UDPPort, UDPAnswerPort int
	// MDNS announces the device by mDNS and DNS-SD.
	MDNS bool
	// Interfaces are the network interfaces that discovery uses. Empty: all.
	Interfaces []string

	// FIFO is the path of the named pipe that programs write notifications to; its directory
	// is made with mode 0750. Empty: none.
	FIFO string
	// NotifySocket is the path of the UNIX stream socket for the same. Empty: none.
	NotifySocket string

	// OriginConcurrency is how many requests may be in the service at once. Default 4.
	OriginConcurrency int
	// OriginQueue is how many may wait for that. Default 64; negative: none.
	OriginQueue int

	// Cache is the memory for stored answers, in bytes: 0 takes the default of 4 MiB, a
	// negative number is no cache. Answers are stored as HTTP allows it (RFC 9111).
	Cache int64
	// CacheRules say more about paths, such as "/zones/* ttl=5s": see firmware/CACHE.md.
	CacheRules []string
	// CacheFlash keeps answers for everybody that stay fresh for long over a restart.
	CacheFlash bool

	// StopWait is how long requests in flight may go on when Run is told to stop. Default 10 s.
	StopWait time.Duration

	// Logger takes the log. Default: none.
	Logger *slog.Logger
}

// Default is the configuration that cloudrestd starts from: a REST service on port 8080,
// both listeners, both kinds of discovery and the named pipe, no tether.
func Default() Config {
	return Config{
		Origin:       &url.URL{Scheme: "http", Host: "127.0.0.1:8080"},
		HTTPS:        ":443",
		HTTP:         ":80",
		Access:       AccessPaired,
		StateDir:     "/var/lib/cloudrest",
		UDPDiscovery: true, UDPPort: tether.DiscoveryPort, UDPAnswerPort: tether.AnswerPort,
		MDNS:              features.MDNS,
		FIFO:              "/run/cloudrest/notify",
		OriginConcurrency: 4,
		OriginQueue:       64,
		StopWait:          10 * time.Second,
	}
}

// ConfigError is one mistake in a Config. Key is the name of the setting as cloudrestd
// spells it.
type ConfigError struct {
	Key     string
	Problem string
}

func (e *ConfigError) Error() string { return e.Key + ": " + e.Problem }

// fill puts the defaults where c says nothing.
func (c *Config) fill() {
	d := Default()
	setDefault(&c.HTTPS, d.HTTPS)
	setDefault(&c.Access, d.Access)
	setDefault(&c.UDPPort, d.UDPPort)
	setDefault(&c.UDPAnswerPort, d.UDPAnswerPort)
	setDefault(&c.OriginConcurrency, d.OriginConcurrency)
	setDefault(&c.OriginQueue, d.OriginQueue)
	if !features.Cache {
		setDefault(&c.Cache, -1)
	}
	setDefault(&c.Cache, cache.DefaultMaxBytes)
	setDefault(&c.StopWait, d.StopWait)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](p *T, value T) {
	if *p == *new(T) {
		*p = value
	}
}

// Validate reports every mistake at once, each as a *ConfigError. It looks at the values
// only, not at the machine.
func (c Config) Validate() error {
	c.fill()
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, &ConfigError{key, fmt.Sprintf(format, args...)})
	}
	missing := func(asked, here bool, key, feature string) {
		if asked && !here {
			bad(key, "%v", features.Missing(feature))
		}
	}
	missing(c.Cache > 0, features.Cache, "cache", "cache")
	missing(len(c.CacheRules) > 0, features.Cache, "cache-rules", "cache")
	missing(c.CacheFlash, features.Cache, "cache-flash", "cache")
	missing(c.MDNS, features.MDNS, "mdns", "mdns")
	missing(len(c.Relays) > 0, features.Tether, "relay", "tether")
	switch {
	case c.Origin == nil && c.OriginHandler == nil:
		bad("origin", "is missing: want the URL of the REST service, such as http://127.0.0.1:8080")
	case c.OriginHandler == nil:
		if _, err := settings.ParseURL(c.Origin.String(), "http,unix"); err != nil {
			bad("origin", "%q: want http://host:port or unix:///path (%v)", c.Origin.Redacted(), err)
		} else if c.Origin.Scheme != "unix" && strings.Trim(c.Origin.Path, "/") != "" || c.Origin.RawQuery != "" {
			bad("origin", "%q: a path or query does not belong here: requests pass unchanged", c.Origin.Redacted())
		}
	}
	if _, err := settings.ParseAddress(c.HTTPS); err != nil {
		bad("https", "%q: want host:port (%v)", c.HTTPS, err)
	}
	if c.HTTP != "" {
		if _, err := settings.ParseAddress(c.HTTP); err != nil {
			bad("http", "%q: want host:port, or nothing (%v)", c.HTTP, err)
		} else if _, port, _ := net.SplitHostPort(c.HTTP); port != "0" && c.HTTP == c.HTTPS {
			bad("http", "%q is the address of https too: want another port", c.HTTP)
		}
	}
	switch c.Access {
	case AccessPaired, AccessOrigin, AccessOpen:
	default:
		bad("access", "%q: want paired, origin or open", c.Access)
	}
	if c.StateDir == "" {
		bad("state-dir", "is missing: want a directory that survives restarts")
	}
	if len(c.Relays) > maxRelays {
		bad("relay", "%d relays, at most %d are used", len(c.Relays), maxRelays)
	}
	for _, u := range c.Relays {
		if u == nil {
			bad("relay", "one is nil")
		} else if _, err := settings.ParseURL(u.String(), "wss,ws"); err != nil {
			bad("relay", "%q: want wss://host (%v)", u.Redacted(), err)
		} else if u.Path != "" && u.Path != "/" && u.Path != tether.TetherPath || u.RawQuery != "" {
			bad("relay", "%q: want wss://host without a path: the tether's is always %s", u.Redacted(), tether.TetherPath)
		}
	}
	if c.RelayCA != "" {
		if _, err := os.Stat(c.RelayCA); err != nil {
			bad("relay-ca", "%q: want a readable PEM file (%v)", c.RelayCA, errors.Unwrap(err))
		}
	}
	if len(c.Name) > maxName || !utf8.ValidString(c.Name) || strings.ContainsFunc(c.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		bad("name", "%q: want at most %d bytes without control characters", c.Name, maxName)
	}
	if strings.Contains(c.Name, "||") {
		bad("name", "%q: || is what separates the parts of a discovery answer", c.Name)
	}
	for key, port := range map[string]int{"udp-port": c.UDPPort, "udp-answer-port": c.UDPAnswerPort} {
		if port < 1 || port > 65535 {
			bad(key, "%d: want a port from 1 to 65535", port)
		}
	}
	for key, path := range map[string]string{"fifo": c.FIFO, "notify-socket": c.NotifySocket} {
		if path != "" && !strings.HasPrefix(path, "/") && !strings.Contains(path, "/") {
			bad(key, "%q: want a path with its directory", path)
		}
	}
	if c.FIFO != "" && c.FIFO == c.NotifySocket {
		bad("notify-socket", "%q is the path of fifo too", c.NotifySocket)
	}
	if c.OriginConcurrency < 1 || c.OriginConcurrency > maxConcurrency {
		bad("origin-concurrency", "%d: want 1 to %d", c.OriginConcurrency, maxConcurrency)
	}
	if c.OriginQueue > maxQueue {
		bad("origin-queue", "%d: want at most %d", c.OriginQueue, maxQueue)
	}
	if c.Cache > 0 && (c.Cache < MinCache || c.Cache > MaxCache) {
		bad("cache", "%d bytes: want %d to %d, or off", c.Cache, MinCache, MaxCache)
	}
	for _, text := range c.CacheRules {
		if _, err := httpcache.ParseRule(text); err != nil {
			bad("cache-rules", "%v", err)
		}
	}
	if len(c.CacheRules) > cache.MaxRules {
		bad("cache-rules", "%d rules, at most %d", len(c.CacheRules), cache.MaxRules)
	}
	if c.CacheFlash && c.Cache < 0 && features.Cache {
		bad("cache-flash", "is on while cache is off")
	}
	if c.StopWait < 0 {
		bad("stop-wait", "%v: want no time or more", c.StopWait)
	}
	return errors.Join(errs...)
}
