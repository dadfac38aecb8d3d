// Command factory is the factory station and what belongs to it: it gives devices their
// identity certificates on the production line, makes batch tokens, shows the line, settles
// conflicts, exports the units for relays and label printers, and simulates a line. Package
// tools/factory does the work.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tools/factory"
)

// Bounds and defaults of the settings.
const (
	defaultDir    = "/var/lib/cloudrest-factory"
	defaultCount  = 500
	defaultLife   = 24 * time.Hour
	maxLife       = 366 * 24 * time.Hour
	minPassword   = 8 // characters of the page's password
	maxSecretFile = 4 << 10
	maxYears      = 50
	hoursPerYear  = 8766 * time.Hour
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// run is main with its surroundings handed in.
func run(args, environ []string, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return program(errOut).Main(ctx, args, environ, out, errOut)
}

func program(errOut io.Writer) *settings.App {
	app := &settings.App{
		Name:      "factory",
		Summary:   "gives devices their identity on the production line",
		NoDefault: true,
	}
	serve := serveCommand(errOut)
	app.Commands = []*settings.Command{
		serve, tokenCommand(), statusCommand(), conflictsCommand(), releaseCommand(), exportCommand(), simulateCommand(errOut),
		settings.ExampleCommand(app, serve), settings.VersionCommand("factory"),
	}
	return app
}

// usage is a mistake in the words after a command.
func usage(format string, a ...any) error {
	return &settings.ExitError{Code: settings.ExitUsage, Err: fmt.Errorf(format, a...)}
}

func declareDir(s *settings.Set, dir *string) {
	*dir = defaultDir
	s.Path(dir, "state-dir", "the station's directory: its units, its authority with the key, its control socket")
}

func serveCommand(errOut io.Writer) *settings.Command {
	var cfg factory.Config
	var years int
	var phraseFile, passwordFile string
	var log settings.Log
	c := &settings.Command{
		Name:    "serve",
		Summary: "run the station: HTTPS for devices and the page of the line",
		Long: "At first start the station makes an authority of its own, unless it is given one; the file " + factory.AuthorityFile +
			" in its directory is what devices (cloudrestd provision --factory-ca) and relays (cloudrelay --factory-ca) need. Keep its key: " +
			"back up the state directory. The page is at the station's address, read-only. All other commands work while the station runs, and without it.",
		Samples: []settings.Sample{
			{Says: "a station for a line", Line: "factory serve --state-dir ./factory --name 'Line 2' --host station.local"},
			{Says: "devices join this Wi-Fi; the page asks for a password", Line: "factory serve --wifi-ssid 'Line 2' --wifi-passphrase-file wifi.txt --page-password-file page.txt"},
			{Says: "an authority that already exists, the issuing certificate first", Line: "factory serve --ca-cert issuing.pem --ca-key issuing.key"},
			{Says: "then, the right to claim 500 units today", Line: "factory token new --count 500 --expires 24h --name 'batch 7'"},
		},
	}
	c.Declare = func(s *settings.Set) {
		cfg = factory.Config{Listen: fmt.Sprintf(":%d", provisioning.DefaultPort), Name: factory.DefaultName, Rate: factory.DefaultRate}
		years = int(factory.DefaultLife / (365 * 24 * time.Hour))
		phraseFile, passwordFile = "", ""
		s.Group("The station")
		s.Address(&cfg.Listen, "listen", "where devices and browsers come in, by HTTPS")
		declareDir(s, &cfg.Dir)
		s.String(&cfg.Name, "name", "what people call the station")
		s.Strings(&cfg.Hosts, "host", "further names and addresses for the station's TLS certificate; this machine's are in it anyway",
			settings.What("NAME"), settings.Example("station.local"))
		s.Int(&cfg.Rate, "rate", 1, 100_000, "requests a second that one address may send")
		s.File(&passwordFile, "page-password-file", "a file with the password of the page (any user name); without it, who reaches the station sees the page", settings.Example("page.txt"))
		s.Group("The authority")
		s.File(&cfg.CACert, "ca-cert", "PEM file of the authority that issues device certificates, instead of the station's own", settings.Example("issuing.pem"))
		s.File(&cfg.CAKey, "ca-key", "PEM file of its key", settings.Example("issuing.key"))
		s.File(&cfg.TLSCert, "tls-cert", "PEM file of the station's TLS certificate, instead of one from the authority", settings.Example("station.pem"))
		s.File(&cfg.TLSKey, "tls-key", "PEM file of its key", settings.Example("station.key"))
		s.Int(&years, "years", 1, maxYears, "how long device certificates are valid")
		s.Group("The factory's Wi-Fi, told to devices with a batch token")
		s.String(&cfg.Network.SSID, "wifi-ssid", "its name", settings.Example("Line 2"))
		s.File(&phraseFile, "wifi-passphrase-file", "a file with its passphrase", settings.Example("wifi.txt"))
		s.String(&cfg.Network.Security, "wifi-security", "its kind, as the devices' service calls it", settings.Example("wpa2-psk"))
		s.Group("The program")
		log.Declare(s)
	}
	c.Run = func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
		cfg.Life = time.Duration(years) * hoursPerYear
		cfg.Logger = log.Logger(errOut)
		var err error
		if cfg.Network.Passphrase, err = secret(phraseFile); err != nil {
			return err
		}
		if cfg.PagePassword, err = secret(passwordFile); err != nil {
			return err
		}
		if passwordFile != "" && len(cfg.PagePassword) < minPassword {
			return usage("--page-password-file %s: want at least %d characters", passwordFile, minPassword)
		}
		s, err := factory.Open(cfg)
		if err != nil {
			return err
		}
		file, made := s.Authority()
		if abs, err := filepath.Abs(file); err == nil {
			file = abs
		}
		what := "authority"
		if made {
			what = "new authority"
		}
		fmt.Fprintf(out, "%s: for devices and relays: %s\npage: https://%s/\n", what, file, s.Addr())
		return s.Run(ctx)
	}
	return c
}

// secret reads a secret from a file; no file, no secret.
func secret(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return "", err
	}
	b, _, _ = bytes.Cut(b, []byte("\n"))
	return string(bytes.TrimRight(b, "\r")), nil
}

// connected runs f with a client for the state directory.
func connected(ctx context.Context, dir string, f func(*factory.Client) error) error {
	c, err := factory.Connect(ctx, dir)
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.Close())
}

func tokenCommand() *settings.Command {
	var dir, name, file string
	var count int
	var life time.Duration
	c := &settings.Command{
		Name: "token", Summary: "make, list and revoke batch tokens, the right to claim units",
		Args: "new | list | revoke NAME", MinArgs: 1, MaxArgs: 2,
		Long: "A token is shown once; only its SHA-256 is kept. It is good for a number of units, each of which counts once, and for some time.",
		Samples: []settings.Sample{
			{Says: "for the batch of today", Line: "factory token new --count 500 --expires 24h --name 'batch 7'"},
			{Says: "into the file that goes on the devices", Line: "factory token new --count 500 --out batch-token"},
			{Says: "it was lost", Line: "factory token revoke 'batch 7'"},
		},
	}
	c.Declare = func(s *settings.Set) {
		declareDir(s, &dir)
		name, file, count, life = "", "", defaultCount, defaultLife
		s.String(&name, "name", "of the new batch; without it, the next number", settings.Example("batch 7"))
		s.Int(&count, "count", 1, factory.MaxCount, "units that the new token may claim")
		s.Duration(&life, "expires", time.Second, maxLife, "how long the new token is good")
		s.Path(&file, "out", "write the new token to this file (0600), which must not exist, instead of showing it", settings.Example("batch-token"))
	}
	c.Run = func(ctx context.Context, in *settings.Parsed, out io.Writer) error {
		return connected(ctx, dir, func(c *factory.Client) error {
			switch {
			case in.Args[0] == "new" && len(in.Args) == 1:
				w := out
				if file != "" {
					f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
					if err != nil {
						return err
					}
					defer f.Close()
					w = f
				}
				_, token, err := c.NewBatch(ctx, name, count, life)
				if err != nil {
					if file != "" {
						os.Remove(file)
					}
					return err
				}
				_, err = fmt.Fprintln(w, token)
				return err
			case in.Args[0] == "list" && len(in.Args) == 1:
				list, err := c.Batches(ctx)
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "BATCH\tUNITS\tCLAIMED\tCONFIRMED\tEXPIRES\tSTATE")
				for _, b := range list {
					fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", b.Name, b.Count, b.Claimed, b.Confirmed, b.Expires.Local().Format(time.DateTime), batchState(b))
				}
				return w.Flush()
			case in.Args[0] == "revoke" && len(in.Args) == 2:
				return c.RevokeBatch(ctx, in.Args[1])
			}
			return usage("want: token new, token list, or token revoke NAME")
		})
	}
	return c
}

func batchState(b factory.Batch) string {
	switch {
	case !b.Revoked.IsZero():
		return "revoked"
	case time.Now().After(b.Expires):
		return "expired"
	case b.Confirmed >= b.Count:
		return "complete"
	}
	return "open"
}

func statusCommand() *settings.Command {
	var dir string
	var asJSON bool
	return &settings.Command{
		Name: "status", Summary: "tell how the line is doing: the numbers of the page, and the units that fail",
		Declare: func(s *settings.Set) {
			declareDir(s, &dir)
			asJSON = false
			s.Switch(&asJSON, "json", "for programs")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			return connected(ctx, dir, func(c *factory.Client) error {
				st, err := c.State(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(out).Encode(st)
				}
				fmt.Fprintf(out, "%s: %d units today, %d in the last hour, %d per hour now, %d in progress, %d failing, %d conflicts\n",
					st.Station, st.Today, st.LastHour, st.PerHour, st.Waiting, st.Failing, len(st.Conflicts))
				for _, b := range st.Batches {
					fmt.Fprintf(out, "  %s: %d of %d\n", b.Name, b.Confirmed, b.Count)
				}
				for _, t := range st.Troubles {
					fmt.Fprintf(out, "  %s %s: %s (%d times)\n", t.ID.Short(), t.Reason, t.Message, t.Count)
				}
				return nil
			})
		},
	}
}

func conflictsCommand() *settings.Command {
	var dir string
	return &settings.Command{
		Name: "conflicts", Summary: "list the units that were claimed twice",
		Declare: func(s *settings.Set) { declareDir(s, &dir) },
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			return connected(ctx, dir, func(c *factory.Client) error {
				list, err := c.Conflicts(ctx)
				for _, x := range list {
					fmt.Fprintf(out, "%s\n  %s\n  %d times, last %s from %s\n", x.ID, x.Why, x.Count, x.Last.Local().Format(time.DateTime), x.From)
				}
				return err
			})
		},
	}
}

func releaseCommand() *settings.Command {
	var dir, reason string
	return &settings.Command{
		Name: "release", Summary: "let a unit be claimed anew, with another key",
		Args: "ID", MinArgs: 1, MaxArgs: 1,
		Long: "The unit's certificate is revoked: see factory export --revoked, and tell the relays. The unit does not count for its batch again. " +
			"The first eight digits of the ID will do. Do this when the unit in hand is the only one with this UID and its flash was erased.",
		Samples: []settings.Sample{{Says: "its flash was erased in repair", Line: "factory release 8f43a0e1 --reason 'flash erased in repair'"}},
		Declare: func(s *settings.Set) {
			declareDir(s, &dir)
			reason = ""
			s.String(&reason, "reason", "why, for the list of revoked certificates", settings.Example("flash erased in repair"))
		},
		Run: func(ctx context.Context, in *settings.Parsed, _ io.Writer) error {
			return connected(ctx, dir, func(c *factory.Client) error {
				id, err := c.Find(ctx, in.Args[0])
				if err != nil {
					return err
				}
				return c.Release(ctx, id, reason)
			})
		},
	}
}

func exportCommand() *settings.Command {
	var dir, file string
	var o factory.ExportOptions
	var revoked bool
	return &settings.Command{
		Name: "export", Summary: "write the units, for relays, label printers and records",
		Long: "Confirmed units only, unless --all is given. cloudrelay devices import reads the format jsonl. With --labels each unit comes " +
			"with its one-time secret and the URL for the QR code on its label: keep that file as you keep the labels.",
		Samples: []settings.Sample{
			{Says: "for the relay", Line: "factory export --out units.jsonl"},
			{Says: "for the label printer", Line: "factory export --format csv --labels --batch 'batch 7' --out labels.csv"},
			{Says: "what relays must refuse", Line: "factory export --revoked"},
		},
		Declare: func(s *settings.Set) {
			declareDir(s, &dir)
			file, revoked = "", false
			o = factory.ExportOptions{Format: factory.FormatJSONL, Port: 443}
			s.Enum(&o.Format, "format", []string{factory.FormatJSONL, factory.FormatCSV}, "JSON Lines or CSV")
			s.String(&o.Batch, "batch", "only the units of this batch", settings.Example("batch 7"))
			s.Switch(&o.All, "all", "units that have not confirmed, too")
			s.Switch(&o.UID, "uid", "with the UID of the hardware")
			s.Switch(&o.Labels, "labels", "with what goes on the labels: one-time secret and URL for the QR code")
			s.Int(&o.Port, "device-port", 1, 65535, "the devices' HTTPS port, for that URL")
			s.Switch(&revoked, "revoked", "the revoked certificates instead, as JSON Lines")
			s.Path(&file, "out", "write to this file (0600) instead of standard output", settings.Example("units.jsonl"))
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			return connected(ctx, dir, func(c *factory.Client) error {
				if file == "" {
					return export(ctx, c, o, revoked, out)
				}
				f, err := os.CreateTemp(filepath.Dir(file), ".export-*") // 0600
				if err != nil {
					return err
				}
				defer os.Remove(f.Name())
				if err := errors.Join(export(ctx, c, o, revoked, f), f.Close()); err != nil {
					return err
				}
				return os.Rename(f.Name(), file)
			})
		},
	}
}

func export(ctx context.Context, c *factory.Client, o factory.ExportOptions, revoked bool, w io.Writer) error {
	if revoked {
		list, err := c.Revocations(ctx)
		for _, r := range list {
			if err := json.NewEncoder(w).Encode(r); err != nil {
				return err
			}
		}
		return err
	}
	x, err := factory.NewExporter(w, o)
	if err != nil {
		return err
	}
	err = c.Units(ctx, x.Write)
	_, end := x.Close()
	return errors.Join(err, end)
}

func simulateCommand(errOut io.Writer) *settings.Command {
	var o factory.SimConfig
	var faults, tokenFile string
	var asJSON bool
	return &settings.Command{
		Name: "simulate", Summary: "run a simulated line with the code of real devices, and judge it",
		Long: "Without --station, a station of its own is started, killed and restarted on loopback, connections are cut, devices lose power, " +
			"run twice at once, and are cloned. The exit code is 0 only if every unit has an identity of its own that the station has as confirmed. " +
			"With --station, the units are claimed at that station: take a batch token for it.",
		Samples: []settings.Sample{
			{Says: "500 units, one fifth of everything fails", Line: "factory simulate -n 500 --faults 0.2"},
			{Says: "how fast is the station over there?", Line: "factory simulate -n 100 --faults 0 --station https://station:15850 --factory-ca factory-ca.pem --batch-token-file token"},
		},
		Declare: func(s *settings.Set) {
			o = factory.SimConfig{Units: 500, Parallel: 8}
			faults, tokenFile, asJSON = "0.2", "", false
			s.Int(&o.Units, "units", 1, factory.MaxUnits, "how many units", settings.Short('n'))
			s.Int(&o.Parallel, "parallel", 1, factory.MaxParallel, "units at work at once")
			s.String(&faults, "faults", "part of the connections and runs that fail, 0 to 1", settings.What("PART"))
			s.URL(&o.URL, "station", "https", "a station that runs, instead of one of its own", settings.Example("https://station:15850"))
			s.File(&o.CA, "factory-ca", "with --station: PEM file of its authority", settings.Example("factory-ca.pem"))
			s.File(&tokenFile, "batch-token-file", "with --station: a file with a batch token", settings.Example("token"))
			s.Path(&o.Dir, "work-dir", "keep the state of station and devices here", settings.Example("/tmp/line"))
			s.Switch(&asJSON, "json", "the result for programs")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			if _, err := fmt.Sscanf(faults, "%g", &o.Faults); err != nil || o.Faults < 0 || o.Faults > 1 {
				return usage("--faults %q: want a number from 0 to 1", faults)
			}
			var err error
			if o.URL == nil {
				exe, err := os.Executable()
				if err != nil {
					return err
				}
				o.Station = []string{exe, "serve", "--log-level", "error"}
			} else if o.Token, err = secret(tokenFile); err != nil {
				return err
			}
			o.Progress = progress(errOut)
			r, err := factory.Simulate(ctx, o)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(out).Encode(r)
			} else {
				_, err = io.WriteString(out, r.Text())
			}
			if err == nil && len(r.Problems) > 0 {
				err = &settings.ExitError{Code: settings.ExitFail}
			}
			return err
		},
	}
}

// progress tells how far the line is, at most once a second and at its end.
func progress(w io.Writer) func(done, units int) {
	began := time.Now()
	told := make(chan time.Time, 1)
	told <- began
	return func(done, units int) {
		last := <-told
		if now := time.Now(); now.Sub(last) >= time.Second || done == units {
			last = now
			fmt.Fprintf(w, "%d of %d units, %.1f a second\n", done, units, float64(done)/now.Sub(began).Seconds())
		}
		told <- last
	}
}
