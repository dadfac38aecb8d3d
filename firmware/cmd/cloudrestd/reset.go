package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/settings"
)

func resetCommand() *settings.Command {
	var dir string
	var yes bool
	return &settings.Command{
		Name: "reset", Summary: "factory reset: forget the owner and everything of theirs",
		Long: "Pairings, cache, journal and owner data go; the device keeps its identity, its key and its certificates. The same as " +
			"holding the button for 10 seconds. Works whether the gateway runs or not.",
		Samples: []settings.Sample{{Says: "for a device that gets a new owner", Line: "cloudrestd reset --yes"}},
		Declare: func(s *settings.Set) {
			dir, yes = gateway.Default().StateDir, false
			s.Switch(&yes, "yes", "do it: there is no way back")
			s.Path(&dir, "state-dir", "the directory of the gateway")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			if !yes {
				return usage("this removes all pairings and notifications for good: say --yes")
			}
			c := control(dir)
			err := c.call(ctx, http.MethodPost, "reset", nil, nil)
			if errors.Is(err, gateway.ErrNotRunning) {
				err = gateway.FactoryReset(dir)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(out, "The device has no owner any more. Pair anew: press the button, or cloudrestd pair --open")
			return nil
		},
	}
}
