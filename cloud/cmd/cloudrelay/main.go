// Command cloudrelay is the cloud side of CloudREST: devices keep one connection to it,
// clients reach them through it. Package cloud/relay does the work; this program reads
// the settings, handles signals and chooses the exit code. The commands token and devices
// change small files in the state directory, which a running relay notices.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/cloud/relay"
	"github.com/cloudrest/cloudrest/tether/settings"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// run is main with its surroundings handed in.
func run(args, environ []string, out, errOut io.Writer) int {
	return program(errOut).Main(context.Background(), args, environ, out, errOut)
}

func program(errOut io.Writer) *settings.App {
	var o options
	var state string // of token and devices
	var name string
	var replace bool // of devices
	stateDir := func(s *settings.Set) {
		state = relay.DefaultStateDir
		s.Path(&state, "state-dir", "the relay's directory for what it keeps")
	}
	runCommand := &settings.Command{
		Name:    "run",
		Summary: "run the relay",
		Long: "Devices and clients share one listener: a device opens its tether at /v1/tether, a client finds " +
			"devices at /v1/devices/list and reaches one at /d/<id>/<path> or <label>.<domain>/<path>, with " +
			"\"Authorization: Bearer <operator token>\" or \"X-CloudREST-Token: <operator token>\". " +
			"SIGTERM or SIGINT drains: devices are sent elsewhere, requests in flight finish; a second signal kills.",
		Samples: []settings.Sample{
			{Says: "a relay with its certificate; both files are read again when they change", Line: "cloudrelay --domain relay.example --tls-cert /etc/ssl/relay.pem --tls-key /etc/ssl/relay.key"},
			{Says: "behind a load balancer that ends TLS and adds X-Forwarded-For", Line: "cloudrelay --domain relay.example --listen :8080 --tls off --trusted-proxies 10.0.0.0/8"},
			{Says: "only devices that were listed before (see: cloudrelay devices)", Line: "cloudrelay --domain relay.example --tls-cert relay.pem --tls-key relay.key --enroll list"},
			{Says: "only devices that the maker's factory certified", Line: "cloudrelay --domain relay.example --tls-cert relay.pem --tls-key relay.key --enroll factory --factory-ca factory.pem"},
			{Says: "let a client in: make a token, then ask for the devices", Line: "cloudrelay token --name phone"},
		},
		Declare: func(s *settings.Set) { o.declare(s) },
	}
	runCommand.Run = func(ctx context.Context, in *settings.Parsed, _ io.Writer) error { return o.run(ctx, in.Set, errOut) }
	app := &settings.App{
		Name:    "cloudrelay",
		Summary: "makes devices behind home routers reachable: they dial out to it, clients come in through it",
	}
	app.Commands = []*settings.Command{
		runCommand,
		{
			Name: "token", Summary: "make, list and revoke operator tokens, which let clients in",
			Args: "[list | revoke NAME]", MaxArgs: 2,
			Long: "Without arguments a token is made and printed, once: only its SHA-256 is kept. A running relay " +
				"knows it at once, and forgets a revoked one within a second.",
			Samples: []settings.Sample{
				{Says: "make one", Line: "cloudrelay token --name phone"},
				{Says: "which there are", Line: "cloudrelay token list"},
				{Says: "a phone was lost", Line: "cloudrelay token revoke phone"},
			},
			Declare: func(s *settings.Set) {
				stateDir(s)
				name = ""
				s.String(&name, "name", "what to call the new token; without it, the next number", settings.Example("phone"))
			},
			Run: func(_ context.Context, in *settings.Parsed, out io.Writer) error {
				return token(state, name, in.Args, out)
			},
		},
		{
			Name: "devices", Summary: "list devices with their keys beforehand, revoke them, let one come with a new key",
			Args: "add ID KEY | import FILE | list | remove ID | revoke ID | unrevoke ID | revoked | rekey ID", MinArgs: 1, MaxArgs: 3,
			Long: "A listed device is let in with its listed key and no other, whatever --enroll says. With --enroll list " +
				"nobody else is let in, and a device that is taken off is disconnected. KEY is the public key as base64 (DER), " +
				"or a PEM file. import reads a factory's export, a JSON object with id and key in each line: all of it, or " +
				"nothing if a line is wrong, or has another key than the list has (see --replace). " +
				"revoke keeps a device out, whatever it can prove, and disconnects it. rekey is for one that is not " +
				"listed and lost its key: the next key it proves counts. All of it works whether the relay runs or not; " +
				"one that runs notices within a second, one that does not when it starts.",
			Samples: []settings.Sample{
				{Says: "let one in", Line: "cloudrelay devices add 8f43…e1 MCowBQYDK2VwAyEA…"},
				{Says: "with its key in a file", Line: "cloudrelay devices add 8f43…e1 device.pem"},
				{Says: "which there are", Line: "cloudrelay devices list"},
				{Says: "all that the factory made", Line: "cloudrelay devices import units.jsonl"},
				{Says: "one was stolen", Line: "cloudrelay devices revoke 8f43…e1"},
				{Says: "one came back from repair with a new key", Line: "cloudrelay devices rekey 8f43…e1"},
			},
			Declare: func(s *settings.Set) {
				stateDir(s)
				replace = false
				s.Switch(&replace, "replace", "import: replace the keys of devices that are listed with another one")
			},
			Run: func(_ context.Context, in *settings.Parsed, out io.Writer) error {
				return devices(state, in.Args, replace, out, errOut)
			},
		},
		settings.ExampleCommand(app, runCommand),
		settings.VersionCommand("cloudrelay"),
	}
	return app
}

// options is what the settings of run fill in.
type options struct {
	cfg relay.Config
	tls bool
	log settings.Log
}

// declare names every setting of run.
func (o *options) declare(s *settings.Set) {
	*o = options{
		cfg: relay.Config{Role: relay.RoleAll, Listen: relay.DefaultListen, StateDir: relay.DefaultStateDir, Metrics: relay.DefaultMetrics,
			Enroll: relay.EnrollFirstUse, Cache: relay.DefaultCache, MaxDevices: relay.DefaultMaxDevices, MaxInFlight: relay.DefaultMaxInFlight,
			HeadTimeout: relay.DefaultHeadTimeout, Keepalive: relay.DefaultKeepalive, GoAway: relay.DefaultGoAway, Grace: relay.DefaultGrace},
		tls: true,
	}
	c := &o.cfg
	s.Group("The relay")
	s.Enum(&c.Role, "role", []string{relay.RoleAll}, "what this process does: everything, on one machine (all)")
	s.Strings(&c.Domains, "domain", "names under which devices dial and clients call, the first is shown to people",
		settings.Required(), settings.Example("relay.example"), settings.What("NAME"))
	s.Address(&c.Listen, "listen", "where devices and clients come in")
	s.Path(&c.StateDir, "state-dir", "the directory for what is kept: devices, notifications, hashes of tokens")

	s.Group("TLS")
	s.File(&c.TLSCert, "tls-cert", "a PEM file with the certificate and its chain", settings.Example("/etc/ssl/relay.pem"))
	s.File(&c.TLSKey, "tls-key", "a PEM file with the certificate's key", settings.Example("/etc/ssl/relay.key"))
	s.OnOff(&o.tls, "tls", "off: a load balancer in front ends TLS, this process speaks plain HTTP")
	settings.List(s, &c.TrustedProxies, "trusted-proxies", "CIDR", "an address or a range of addresses",
		"load balancers whose X-Forwarded-For and X-Forwarded-Proto are believed", parsePrefix, netip.Prefix.String, settings.Example("10.0.0.0/8"))

	s.Group("Devices")
	s.Enum(&c.Enroll, "enroll", []string{relay.EnrollFirstUse, relay.EnrollList, relay.EnrollFactory},
		"who may come: any device, bound to the key it proves first; or only those listed by: cloudrelay devices; or only those with a certificate of the factory")
	s.Strings(&c.FactoryCA, "factory-ca", "with --enroll factory: PEM files with the certificates of the factories' authorities", settings.What("FILE"), settings.Example("/etc/cloudrelay/factory.pem"))
	s.File(&c.RenewCA, "renew-ca", "with --enroll factory: a PEM file with the certificate of an authority below the factory's, which renews those of connected devices", settings.Example("/etc/cloudrelay/renew.pem"))
	s.File(&c.RenewKey, "renew-key", "a PEM file with that authority's key", settings.Example("/etc/cloudrelay/renew.key"))
	s.Int(&c.MaxDevices, "max-devices", 1, 1_000_000, "how many may be connected at once")
	s.Duration(&c.Keepalive, "keepalive", 15*time.Second, 240*time.Second, "after how much silence a device says that it is there; keep it under the load balancer's idle limit")

	s.Group("Requests")
	s.Int(&c.MaxInFlight, "max-in-flight", 1, 1_000_000, "how many may be at devices at once; the rest are answered 503 with Retry-After")
	settings.Value(s, &c.Cache, "cache", "SIZE", fmt.Sprintf("off, or a size of %s or more", settings.FormatSize(relay.MinCache)),
		"memory for answers of devices that may be given out again (RFC 9111)", parseCache, showCache)
	s.Duration(&c.HeadTimeout, "head-timeout", time.Second, 10*time.Minute, "how long to wait for the head of a device's answer before 504")

	s.Group("The program")
	s.Address(&c.Metrics, "metrics", "where to listen for Prometheus (/metrics)", settings.OrOff())
	s.Duration(&c.DrainDelay, "drain-delay", 0, 10*time.Minute, "after SIGTERM, serve on for so long while /readyz says no, until load balancers have noticed")
	s.Duration(&c.GoAway, "goaway", time.Millisecond, 10*time.Minute, "the time over which devices are then sent away")
	s.Duration(&c.Grace, "grace", time.Second, 10*time.Minute, "how long requests in flight may go on after that")
	o.log.Declare(s)
}

func parseCache(text string) (int64, error) {
	if text == "off" {
		return -1, nil
	}
	n, err := settings.ParseSize(text)
	if err == nil && n < relay.MinCache {
		err = errors.New("too small")
	}
	return n, err
}

func showCache(n int64) string {
	if n < 0 {
		return "off"
	}
	return settings.FormatSize(n)
}

func parsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, errors.New("neither an address nor a range")
	}
	return netip.PrefixFrom(ip, ip.BitLen()), nil
}

// run runs the relay until a signal. The first SIGTERM or SIGINT drains, a second kills.
func (o *options) run(ctx context.Context, set *settings.Set, errOut io.Writer) error {
	cfg := o.cfg
	cfg.TLSOff = !o.tls
	cfg.Logger = o.log.Logger(errOut)
	if err := cfg.Validate(); err != nil {
		return &settings.ExitError{Code: settings.ExitUsage, Err: set.WithSources(err, about)}
	}
	files, err := relay.RaiseFiles()
	if want := uint64(cfg.MaxDevices); files > 0 && files < want+1024 {
		cfg.Logger.Warn("fewer files may be open than devices may come: raise LimitNOFILE", "files", files, "max_devices", cfg.MaxDevices, "err", err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	r, err := relay.New(cfg)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, stop)() // from then on a signal has its usual effect: it kills
	return r.Run(ctx)
}

// about tells which setting a mistake of the relay's configuration is about.
func about(err error) (key string, ok bool) {
	e, ok := errors.AsType[*relay.FieldError](err)
	if ok {
		key = e.Field
	}
	return key, ok
}
