package main

import (
	"bufio"
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
func devices(state string, args []string, replace bool, out, errOut io.Writer) error {
	verb := args[0]
	if replace && verb != "import" {
		return usage("--replace is for import")
	}
	want := map[string]int{"add": 3, "import": 2, "list": 1, "remove": 2, "revoke": 2, "unrevoke": 2, "revoked": 1, "rekey": 2}[verb]
	if want != len(args) {
		return usage("want: devices add ID KEY, import FILE, list, remove ID, revoke ID, unrevoke ID, revoked, or rekey ID")
	}
	switch verb {
	case "list":
		list, err := relay.ListedDevices(state)
		if err != nil {
			return err
		}
		w := bufio.NewWriter(out)
		for _, d := range list {
			fmt.Fprintf(w, "%s %s\n", d.ID, base64.StdEncoding.EncodeToString(d.Key))
		}
		return w.Flush()
	case "revoked":
		list, err := relay.RevokedDevices(state)
		if err != nil {
			return err
		}
		for _, d := range list {
			fmt.Fprintf(out, "%s %s\n", d.ID, d.At.Format(time.RFC3339))
		}
		return nil
	case "import":
		return importDevices(state, args[1], replace, out, errOut)
	}
	id, err := tether.ParseDeviceID(args[1])
	if err != nil {
		return usage("%q: %w", args[1], err)
	}
	switch verb {
	case "remove":
		return relay.RemoveDevice(state, id)
	case "unrevoke":
		return relay.UnrevokeDevice(state, id)
	case "rekey":
		return relay.RekeyDevice(state, id)
	case "revoke":
		added, err := relay.RevokeDevice(state, id)
		if err == nil && !added {
			fmt.Fprintf(out, "device %s was revoked already\n", id)
		}
		return err
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

// importDevices lists what a factory exported; "-" is the standard input.
func importDevices(state, file string, replace bool, out, errOut io.Writer) error {
	in := os.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	done, err := relay.ImportDevices(state, in, replace, func(lines int) { fmt.Fprintf(errOut, "%d lines read\n", lines) })
	if err != nil {
		return fmt.Errorf("nothing was imported: %w", err)
	}
	_, err = fmt.Fprintf(out, "added %d, changed %d, unchanged %d\n", done.Added, done.Changed, done.Unchanged)
	return err
}
