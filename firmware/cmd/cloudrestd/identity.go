package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/settings"
)

func identityCommand(errOut io.Writer) *settings.Command {
	var o boardOptions
	var dir string
	var show, asJSON, probe bool
	return &settings.Command{
		Name: "identity", Summary: "show who this device is: UID source, device ID, key, certificates",
		Long: "Reads the state directory and changes nothing. The UID names the board and is no secret, but it is shown only when asked for.",
		Samples: []settings.Sample{
			{Says: "what is printed on the label", Line: "cloudrestd identity"},
			{Says: "which source of a UID this board has, and why not the others", Line: "cloudrestd identity --probe"},
		},
		Declare: func(s *settings.Set) {
			dir, show, asJSON, probe = gateway.Default().StateDir, false, false, false
			s.Switch(&show, "show-uid", "show the UID too")
			s.Switch(&asJSON, "json", "one JSON object, for programs")
			s.Switch(&probe, "probe", "try the sources of a UID and say what each one gives")
			s.Path(&dir, "state-dir", "the directory of the gateway")
			o.declareUID(s)
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			log := slog.New(slog.DiscardHandler)
			if probe {
				log = slog.New(slog.NewTextHandler(errOut, nil))
			}
			hw, err := o.hardware(log)
			if err != nil {
				return usage("%w", err)
			}
			if probe {
				u, err := hw.First(ctx)
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "a new identity would be made of %v\n", u)
				return nil
			}
			info, err := gateway.ReadIdentity(ctx, dir, hw)
			if errors.Is(err, fs.ErrNotExist) {
				return errNoIdentity
			}
			if err != nil {
				return err
			}
			if !show {
				info.UID = nil
			}
			if asJSON {
				return json.NewEncoder(out).Encode(info)
			}
			line := func(name, format string, args ...any) {
				fmt.Fprintf(out, "%-14s"+format+"\n", append([]any{name}, args...)...)
			}
			line("device ID", "%s", info.Device)
			line("label form", "%s", info.Device.Label())
			verified := "the board gave the same UID now"
			if !info.Verified {
				verified = "not compared now: " + info.Reason
			}
			line("UID source", "%s (%s); %s", info.Source, info.Strength, verified)
			if show {
				line("UID", "%s", hex.EncodeToString(info.UID))
			}
			line("device key", "%s, key id %s", info.Key, info.KeyID)
			line("LAN pin", "%s", orNone(info.Pin, "made at the first start"))
			until := ""
			if info.Until != nil {
				until = "good until " + info.Until.Format("2006-01-02")
			}
			line("factory", "%s", orNone(until, "no certificate; relays with trust on first use take the device"))
			line("generation", "%d", info.Generation)
			return nil
		},
	}
}

func orNone(s, none string) string {
	if s == "" {
		return none
	}
	return s
}
