package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// provisionCodes are the exit codes of provision beside 0, 1 and 2, for test fixtures.
var provisionCodes = []struct {
	code   int
	reason provisioning.Reason
	says   string
}{
	{3, provisioning.ReasonUnreachable, "no station answers"},
	{4, provisioning.ReasonToken, "the batch token is missing, unknown, run out, used up or revoked"},
	{5, provisioning.ReasonConflict, "this unit was claimed before with another key; the operator must release it"},
	{6, provisioning.ReasonService, "the REST service did not come up"},
	{7, provisioning.ReasonNetwork, "the REST service could not join the factory's network"},
	{8, provisioning.ReasonClone, "the identity on this board belongs to another board"},
	{9, provisioning.ReasonStation, "what answers is no station of this factory, or its answer is wrong"},
	{10, provisioning.ReasonLocked, "another process works in the state directory"},
	{11, provisioning.ReasonState, "the state directory or a file cannot be used"},
	{12, provisioning.ReasonBusy, "the station had no time"},
	{13, provisioning.ReasonUnknown, "the station does not know what this unit was granted, and there is no token to claim anew"},
	{14, provisioning.ReasonMalformed, "the station does not understand this unit"},
}

const (
	maxProvisionWait = 24 * time.Hour
	showResult       = 10 * time.Second // on the LED, before the program ends
	maxPhraseFile    = 256              // bytes
)

func provisionCommand(errOut io.Writer) *settings.Command {
	if !features.Provision {
		return &settings.Command{
			Name: "provision", Summary: features.Missing("provision").Error(),
			Run: func(context.Context, *settings.Parsed, io.Writer) error {
				return usage("%w", features.Missing("provision"))
			},
		}
	}
	var cfg gateway.ProvisionConfig
	var hw boardOptions
	var led, phraseFile string
	var asJSON bool
	var log settings.Log
	codes := &strings.Builder{}
	for _, c := range provisionCodes {
		fmt.Fprintf(codes, "; %d: %s", c.code, c.says)
	}
	return &settings.Command{
		Name: "provision", Summary: "in the factory: give this device its identity certificate",
		Long: "Waits for the REST service, has it join the factory's network (apiFactoryConnect), claims the identity at the station and keeps it, " +
			"then removes the batch token. May be run again after any failure, and does nothing on a device that has been provisioned. " +
			"The gateway must not be running. Exit codes: 0: done, or done before; 1: interrupted; 2: wrong settings" + codes.String() + ".",
		Samples: []settings.Sample{
			{Says: "a station on the line's network", Line: "cloudrestd provision --factory https://station:15850 --factory-ca /etc/cloudrest/factory-ca.pem --batch-token-file /etc/cloudrest/batch-token"},
			{Says: "by Wi-Fi, for a test fixture that reads JSON", Line: "cloudrestd provision --factory https://10.1.0.1:15850 --factory-ca ca.pem --batch-token-file token --wifi-ssid 'Line 2' --wifi-passphrase-file wifi.txt --json"},
		},
		Declare: func(s *settings.Set) {
			d := gateway.Default()
			cfg = gateway.ProvisionConfig{Origin: d.Origin, StateDir: d.StateDir, Wait: gateway.DefaultProvisionWait}
			led, phraseFile, asJSON = "", "", false
			s.Group("The station")
			s.URL(&cfg.Station, "factory", "https", "the factory's station", settings.Required(), settings.Example("https://station:15850"))
			s.File(&cfg.StationCA, "factory-ca", "a PEM file of the factory's authority", settings.Required(), settings.Example("/etc/cloudrest/factory-ca.pem"))
			s.Path(&cfg.TokenFile, "batch-token-file", "the file with the batch token; it is removed at the end", settings.Required(), settings.Example("/etc/cloudrest/batch-token"))
			s.Duration(&cfg.Wait, "wait", time.Second, maxProvisionWait, "how long to wait for everything together")
			s.Group("The REST service")
			s.URL(&cfg.Origin, "origin", "http,unix", "where the maker's REST service listens", settings.Example("unix:///run/service.sock"))
			s.String(&cfg.Network.SSID, "wifi-ssid", "the factory's Wi-Fi, told to the service; without it the station is asked, if it can be reached", settings.Example("Line 2"))
			s.File(&phraseFile, "wifi-passphrase-file", "a file with its passphrase", settings.Example("wifi.txt"))
			s.String(&cfg.Network.Security, "wifi-security", "its kind, as the service calls it", settings.Example("wpa2-psk"))
			s.Group("The board")
			hw.declareUID(s)
			s.String(&led, "led", "the LED that shows how it goes: one of the kernel's, or gpio=LINE", settings.Example("green:status"), settings.What("LED"))
			s.Group("The program")
			s.Path(&cfg.StateDir, "state-dir", "the directory for identity and certificates")
			s.Switch(&asJSON, "json", "one line of JSON on standard output, for programs")
			log.Declare(s)
		},
		Run: func(ctx context.Context, in *settings.Parsed, out io.Writer) error {
			ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			cfg.Logger = log.Logger(errOut)
			reader, err := hw.hardware(cfg.Logger)
			if err != nil {
				return usage("%w", err)
			}
			cfg.Hardware = reader
			if phraseFile != "" {
				if cfg.Network.Passphrase, err = firstLine(phraseFile); err != nil {
					return usage("--wifi-passphrase-file: %w", err)
				}
			}
			if err := cfg.Validate(); err != nil {
				return usage("%w", in.Set.WithSources(err, about))
			}
			light := newLight(led, cfg)
			cfg.Progress = func(s gateway.ProvisionStep) {
				light.show(s)
				if !asJSON {
					tellStep(out, s)
				}
			}
			result, err := gateway.Provision(ctx, cfg)
			if werr := tellProvision(out, asJSON, result, err); err == nil {
				err = werr
			}
			light.end(ctx)
			return provisionExit(err)
		},
	}
}

// provisionExit gives err its exit code.
func provisionExit(err error) error {
	if e, ok := errors.AsType[*gateway.ProvisionError](err); ok {
		for _, c := range provisionCodes {
			if c.reason == e.Reason {
				return &settings.ExitError{Code: c.code, Err: err}
			}
		}
	}
	return err
}

func tellStep(out io.Writer, s gateway.ProvisionStep) {
	if says := map[gateway.ProvisionStep]string{
		gateway.ProvisionService: "waiting for the REST service",
		gateway.ProvisionNetwork: "the REST service joins the factory's network",
		gateway.ProvisionStation: "waiting for the station",
		gateway.ProvisionClaim:   "claiming the identity",
		gateway.ProvisionStore:   "keeping the certificate",
		gateway.ProvisionConfirm: "confirming to the station",
	}[s]; says != "" {
		fmt.Fprintln(out, says)
	}
}

// tellProvision prints the outcome: for programs one line of JSON, whatever happened.
func tellProvision(out io.Writer, asJSON bool, r gateway.ProvisionResult, err error) error {
	if asJSON {
		if err == nil {
			return json.NewEncoder(out).Encode(struct {
				OK bool `json:"ok"`
				gateway.ProvisionResult
			}{true, r})
		}
		var reason provisioning.Reason
		if e, ok := errors.AsType[*gateway.ProvisionError](err); ok {
			reason = e.Reason
		}
		return json.NewEncoder(out).Encode(struct {
			OK     bool                `json:"ok"`
			Reason provisioning.Reason `json:"reason,omitempty"`
			Error  string              `json:"error"`
		}{false, reason, err.Error()})
	}
	if err != nil {
		return nil // main prints it
	}
	done := "done"
	if r.Already {
		done = "done before, nothing to do"
	}
	_, err = fmt.Fprintf(out, "%s: device %s, batch %s, certificate %s until %s\n", done, r.Device, r.Batch, r.Serial, r.Expires.Format(time.DateOnly))
	return err
}

// light shows on the board's LED how it goes; without one it does nothing.
type light struct {
	led    board.LED
	cancel context.CancelFunc
	shown  sync.WaitGroup
}

func newLight(spec string, cfg gateway.ProvisionConfig) *light {
	l := &light{cancel: func() {}}
	if spec == "" {
		return l
	}
	led, err := openLED(spec)
	if err != nil {
		cfg.Logger.Error("the LED does not work", "led", spec, "err", err)
		return l
	}
	l.led = led
	return l
}

func (l *light) show(s gateway.ProvisionStep) {
	if l.led == nil {
		return
	}
	pattern := board.PairingOpen // even and slow: at work
	switch s {
	case gateway.ProvisionDone:
		pattern = board.FactoryDone
	case gateway.ProvisionFailed:
		pattern = board.FactoryFailed
	}
	l.cancel()
	l.shown.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.shown.Go(func() { board.Blink(ctx, l.led, pattern) })
}

// end leaves the result on the LED for a while.
func (l *light) end(ctx context.Context) {
	if l.led == nil {
		return
	}
	t := time.NewTimer(showResult)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	l.cancel()
	l.shown.Wait()
	_ = l.led.Close()
}

// firstLine reads a secret from a file.
func firstLine(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPhraseFile))
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), err
}
