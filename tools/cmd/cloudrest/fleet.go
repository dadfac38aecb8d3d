package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tools/fleet"
)

func fleetCommand(env environment) *settings.Command {
	var (
		n, rate, answer    int
		relay              *url.URL
		relayCA, seed      string
		during, every      time.Duration
		asJSON, toldErrors bool
	)
	return &settings.Command{
		Name: "fleet", Summary: "simulate many devices that connect to a relay",
		Long: "Each device has its own key, ID and tether, and answers requests from memory: GET /device, and a small text for " +
			"everything else (?size=N bytes). The relay must let unknown devices in (--enroll trust-on-first-use).",
		Samples: []settings.Sample{
			{Says: "a thousand devices", Line: "cloudrest fleet -n 1000 --relay wss://relay.example"},
			{Says: "counters for a program, for a minute", Line: "cloudrest fleet -n 100 --relay wss://localhost:8443 --relay-ca ca.pem --json --for 1m"},
		},
		Declare: func(s *settings.Set) {
			n, rate, answer, seed = 100, 200, 256, "demo"
			relay, relayCA, during, every, asJSON, toldErrors = nil, "", 0, 0, false, false
			s.Int(&n, "devices", 1, fleet.MaxDevices, "how many devices", settings.Short('n'))
			s.URL(&relay, "relay", "wss,ws,https,http", "the relay", settings.Example("wss://relay.example"), settings.Required())
			s.File(&relayCA, "relay-ca", "certificate authority of the relay (PEM), when it is not a public one")
			s.String(&seed, "seed", "decides keys and IDs: the same seed gives the same devices")
			s.Int(&rate, "rate", 0, 1_000_000, "connections begun per second; 0: as fast as possible")
			s.Int(&answer, "answer", 1, 16<<20, "size of an answer in bytes")
			s.Duration(&during, "for", 0, 24*time.Hour, "how long; 0: until Ctrl-C")
			s.Duration(&every, "every", 0, time.Hour, "how often counters are shown; 0: each second on a terminal and with --json, else each 10 s")
			s.Switch(&asJSON, "json", "one JSON object per line")
			s.Switch(&toldErrors, "errors", "log each failed or lost tether")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			cfg := fleet.Config{Devices: n, Relay: tetherURL(relay), Seed: seed, Rate: float64(rate), Answer: answer}
			if rate == 0 {
				cfg.Rate = -1
			}
			if relayCA != "" {
				roots, err := readCA(relayCA)
				if err != nil {
					return err
				}
				cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
			}
			if toldErrors {
				cfg.Logger = slog.New(slog.NewTextHandler(env.stderr, nil))
			}
			f, err := fleet.New(cfg)
			if err != nil {
				return err
			}
			if during > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, during)
				defer cancel()
			}
			s := screenOf(out)
			if every == 0 {
				if every = time.Second; s.width == 0 && !asJSON {
					every = 10 * time.Second
				}
			}
			if !asJSON {
				fmt.Fprintf(out, "%d devices, the first is %s\n", n, fleet.ID(seed, 0))
			}
			ended := make(chan error, 1)
			go func() { ended <- f.Run(ctx) }()
			showFleet(ctx, f, s, every, asJSON)
			if err := <-ended; err != nil {
				return err
			}
			if f.Stats().Connects == 0 {
				return errors.New("no device could connect: is the relay there, and does it let unknown devices in? --errors tells more")
			}
			return nil
		},
	}
}

// tetherURL is u with the scheme that devices dial.
func tetherURL(u *url.URL) *url.URL {
	c := *u
	switch u.Scheme {
	case "https":
		c.Scheme = "wss"
	case "http":
		c.Scheme = "ws"
	}
	return &c
}

// showFleet shows the counters until ctx is done, and once more then.
func showFleet(ctx context.Context, f *fleet.Fleet, s *screen, every time.Duration, asJSON bool) {
	l := live{s: s}
	begin, before, at := time.Now(), f.Stats(), time.Now()
	t := time.NewTicker(every)
	defer t.Stop()
	for last := false; !last; {
		select {
		case <-t.C:
		case <-ctx.Done():
			last = true
		}
		now, since := f.Stats(), time.Since(at).Seconds()
		perSecond := float64(now.Requests-before.Requests) / max(since, 0.001)
		before, at = now, time.Now()
		if asJSON {
			json.NewEncoder(s).Encode(struct {
				Seconds float64 `json:"seconds"`
				fleet.Stats
				PerSecond float64 `json:"requests_per_second"`
			}{time.Since(begin).Round(time.Millisecond).Seconds(), now, float64(int64(perSecond*10)) / 10})
			continue
		}
		line := fmt.Sprintf("%6.0f s  %d of %d connected  %d requests (%.0f/s)  %d reconnects  %d lost  %d failed attempts",
			time.Since(begin).Seconds(), now.Connected, now.Devices, now.Requests, perSecond, now.Reconnects, now.Lost, now.Failures)
		if s.width > 0 {
			l.draw([]string{clip(line, s.width)})
		} else {
			fmt.Fprintln(s, line)
		}
	}
}
