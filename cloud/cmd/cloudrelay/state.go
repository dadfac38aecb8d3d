package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/cloudrest/cloudrest/cloud/relay"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// usage is a mistake in the words after a command.
func usage(format string, a ...any) error {
	return &settings.ExitError{Code: settings.ExitUsage, Err: fmt.Errorf(format, a...)}
}

// token does the command of that name.
func token(state, name string, args []string, out io.Writer) error {
	switch {
	case len(args) == 0:
		text, err := relay.NewToken(state, name)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(out, text)
		return err
	case name != "":
		return usage("--name is for a new token: leave %q away", args[0])
	case args[0] == "list" && len(args) == 1:
		list, err := relay.Tokens(state)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, t := range list {
			fmt.Fprintf(w, "%s\t%s\n", t.Name, t.Created.Format(time.RFC3339))
		}
		return w.Flush()
	case args[0] == "revoke" && len(args) == 2:
		return relay.RevokeToken(state, args[1])
	}
	return usage("want: token, token list, or token revoke NAME")
}

// devices does the command of that name.
func devices(state string, args []string, out io.Writer) error {
	if args[0] == "list" && len(args) == 1 {
		list, err := relay.ListedDevices(state)
		if err != nil {
			return err
		}
		for _, d := range list {
			fmt.Fprintf(out, "%s %s\n", d.ID, base64.StdEncoding.EncodeToString(d.Key))
		}
		return nil
	}
	add := args[0] == "add" && len(args) == 3
	if !add && !(args[0] == "remove" && len(args) == 2) {
		return usage("want: devices add ID KEY, devices list, or devices remove ID")
	}
	id, err := tether.ParseDeviceID(args[1])
	if err != nil {
		return usage("%q: %w", args[1], err)
	}
	if !add {
		return relay.RemoveDevice(state, id)
	}
	text := []byte(args[2])
	if file, err := os.ReadFile(args[2]); err == nil {
		text = file
	}
	if err := relay.AddDevice(state, id, text); err != nil {
		return fmt.Errorf("%q: %w", args[2], err)
	}
	return nil
}
