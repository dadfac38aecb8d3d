// Command cloudrestd is the gateway daemon: it makes the REST service of a device
// reachable on the LAN by HTTPS and from anywhere through a relay. Package
// firmware/gateway does the work; this program reads the settings, handles signals and
// chooses the exit code.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/firmware/internal/uci"
	"github.com/cloudrest/cloudrest/tether/settings"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// run is main with its surroundings handed in.
func run(args, environ []string, out, errOut io.Writer) int {
	return program(errOut).Main(context.Background(), args, environ, out, errOut)
}

// options is what the settings of run fill in.
type options struct {
	cfg   gateway.Config
	board boardOptions
	queue int
	log   settings.Log
}

func program(errOut io.Writer) *settings.App {
	var o options
	runCommand := &settings.Command{
		Name:    "run",
		Summary: "run the gateway",
		Samples: []settings.Sample{
			{Says: "the REST service listens on port 8080 of this machine; no relay, only the LAN", Line: "cloudrestd"},
			{Says: "another port, a relay, and nothing that needs root", Line: "cloudrestd --origin http://127.0.0.1:3000 --https :8443 --http off --state-dir ./state --fifo ./notify --relay wss://relay.example"},
			{Says: "the service listens on a UNIX socket; all else from a file", Line: "cloudrestd --origin unix:///run/irrigation.sock --config /etc/cloudrest/cloudrestd.conf"},
			{Says: "a file to start from", Line: "cloudrestd example-config > cloudrestd.conf"},
		},
		Declare: func(s *settings.Set) { o.declare(s) },
	}
	runCommand.Run = func(_ context.Context, in *settings.Parsed, _ io.Writer) error { return o.run(in.Set, errOut) }
	app := &settings.App{
		Name:    "cloudrestd",
		Summary: "makes a device's REST service reachable, on the LAN first and through a relay second",

		ReadConfig: uci.Entries, // either format
	}
	app.Commands = []*settings.Command{
		runCommand,
		statusCommand(),
		pairCommand(os.Stdin),
		identityCommand(errOut),
		resetCommand(),
		provisionCommand(errOut),
		settings.ExampleCommand(app, runCommand),
		settings.VersionCommand("cloudrestd", features.List()...),
	}
	return app
}

// declare names every setting of run.
func (o *options) declare(s *settings.Set) {
	*o = options{cfg: gateway.Default()}
	o.queue = o.cfg.OriginQueue
	c := &o.cfg

	s.Group("The REST service")
	s.URL(&c.Origin, "origin", "http,unix", "where the maker's REST service listens", settings.Example("unix:///run/service.sock"))
	s.Int(&c.OriginConcurrency, "origin-concurrency", 1, 1024, "how many requests may be in the service at once; the rest wait")
	s.Int(&o.queue, "origin-queue", 0, 65536, "how many requests may wait; the rest are answered 503 with Retry-After")

	declareCache(s, c)

	s.Group("The LAN")
	s.Address(&c.HTTPS, "https", "where to listen for HTTPS", settings.Example(":8443"))
	s.Address(&c.HTTP, "http", "where to listen for HTTP, which is only redirected to HTTPS", settings.OrOff())
	s.Enum(&c.Access, "access", []string{gateway.AccessPaired, gateway.AccessOrigin, gateway.AccessOpen},
		"who may use the service: clients that have paired (paired), whom the REST service itself lets in (origin), or everybody, on purpose and for the bench only (open)")

	s.Group("Discovery")
	s.String(&c.Name, "name", "what people call the device; without it, the name that the REST service gives at GET /device", settings.Example("Garden"))
	s.OnOff(&c.MDNS, "mdns", "announce the device by mDNS and DNS-SD")
	s.OnOff(&c.UDPDiscovery, "udp-discovery", "answer the UDP broadcasts of phone apps")
	s.Int(&c.UDPPort, "udp-port", 1, 65535, "the UDP port where questions arrive; apps know only the default")
	s.Int(&c.UDPAnswerPort, "udp-answer-port", 1, 65535, "the UDP port of the asker where answers go; apps know only the default")
	s.Strings(&c.Interfaces, "interfaces", "the network interfaces that discovery uses; without it, all", settings.Example("br-lan"), settings.What("NAME"))

	s.Group("The relay")
	s.URLs(&c.Relays, "relay", "wss,ws", "relays that make the device reachable from anywhere; one of them is used at a time; without any there is no tether",
		settings.Example("wss://a.example,wss://b.example"))
	s.File(&c.RelayCA, "relay-ca", "a PEM file of the authorities for the relays' certificates; without it, those of the system", settings.Example("/etc/cloudrest/relay-ca.pem"))

	s.Group("Notifications")
	s.Path(&c.FIFO, "fifo", "the named pipe that programs write lines to; each line becomes a notification", settings.OrOff())
	s.Path(&c.NotifySocket, "notify-socket", "a UNIX stream socket for the same", settings.OrOff(), settings.Example("/run/cloudrest/notify.sock"))

	o.board.declare(s)

	s.Group("The program")
	s.Path(&c.StateDir, "state-dir", "the directory for identity, certificate and journal")
	s.Duration(&c.StopWait, "stop-wait", 0, maxStopWait, "how long requests in flight may go on after SIGTERM")
	o.log.Declare(s)
}

// run runs the gateway until a signal. The first SIGTERM or SIGINT stops it in good order,
// a second one at once.
func (o *options) run(set *settings.Set, errOut io.Writer) error {
	cfg := o.cfg
	cfg.Logger = o.log.Logger(errOut)
	cfg.OriginQueue = o.queue
	if cfg.Cache == 0 && features.Cache {
		cfg.Cache = cacheFor(memoryHere())
	}
	if o.queue == 0 {
		cfg.OriginQueue = -1 // 0 would be the default
	}
	if cfg.StopWait == 0 {
		cfg.StopWait = 1 // likewise: as good as none
	}
	if err := cfg.Validate(); err != nil {
		return &settings.ExitError{Code: settings.ExitUsage, Err: set.WithSources(err, about)}
	}
	small := setMemory(cfg.Logger, os.Getenv)

	if cfg.Access == gateway.AccessOpen {
		cfg.Logger.Warn("EVERYBODY on the LAN controls this device: --access open is for the bench only")
	}
	release, err := o.board.open(&cfg)
	if err != nil {
		return &settings.ExitError{Code: settings.ExitUsage, Err: set.WithSources(err, about)}
	}
	defer release()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	quiet := context.AfterFunc(ctx, func() {
		stop() // from here on a signal has its usual effect: it kills
		cfg.Logger.Info("stopping", "reason", context.Cause(ctx))
	})
	defer quiet()
	for {
		g, err := gateway.New(cfg)
		if err != nil {
			return err
		}
		settled := func() {}
		if small {
			settled = giveBackOnce(g.Ready(), cfg.Logger)
		}
		err = g.Run(ctx)
		settled()
		if !errors.Is(err, gateway.ErrFactoryReset) {
			return err
		}
	}
}

// about tells which setting a mistake of the gateway's configuration is about.
func about(err error) (key string, ok bool) {
	e, ok := errors.AsType[*gateway.ConfigError](err)
	if ok {
		key = e.Key
	}
	return key, ok
}
