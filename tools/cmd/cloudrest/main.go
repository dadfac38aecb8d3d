// Command cloudrest is the command line for people: it finds devices, talks to them over
// the LAN or through a relay, watches their events, simulates fleets, and shows the whole
// of CloudREST on one machine.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// environment is what the commands use of the process; tests put their own in.
type environment struct {
	stdin    io.Reader
	stderr   io.Writer
	discover func(ctx context.Context, interfaces []string) <-chan sighting
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	env := environment{stdin: os.Stdin, stderr: os.Stderr, discover: discoverLAN}
	code := app(env).Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func app(env environment) *settings.App {
	a := &settings.App{
		Name:      "cloudrest",
		Summary:   "Finds CloudREST devices and talks to them, over the LAN or through a relay.",
		NoDefault: true,
		Commands: []*settings.Command{
			discoverCommand(env),
			requestCommand(env, http.MethodGet, "read from a device",
				settings.Sample{Says: "over the LAN", Line: "cloudrest get \"Garden irrigation\" /zones"},
				settings.Sample{Says: "through a relay", Line: "cloudrest get 3f2a91bc /zones --relay https://relay.example --token-file token"},
				settings.Sample{Says: "with status and header", Line: "cloudrest get -i https://192.168.1.20/device --fingerprint 9f86d0…"}),
			requestCommand(env, http.MethodPost, "send something to a device",
				settings.Sample{Says: "start watering", Line: "cloudrest post \"Garden irrigation\" /zones/2/start --data '{\"minutes\": 5}'"},
				settings.Sample{Says: "a file", Line: "cloudrest post 3f2a91bc /upload --data @photo.jpg"}),
			requestCommand(env, http.MethodPut, "replace something on a device",
				settings.Sample{Says: "from standard input", Line: "cloudrest put 3f2a91bc /program --data - < program.json"}),
			requestCommand(env, http.MethodPatch, "change something on a device"),
			requestCommand(env, http.MethodDelete, "remove something from a device"),
			eventsCommand(env),
			notifyCommand(env),
			cacheCommand(env),
			pairCommand(env),
			forgetCommand(),
			fleetCommand(env),
			demoCommand(env),
			settings.VersionCommand("cloudrest"),
		},
	}
	a.Commands = append(a.Commands, labCommands(env)...)
	return a
}

func forgetCommand() *settings.Command {
	var file string
	return &settings.Command{
		Name: "forget", Summary: "forget the key of a device that was reset or replaced", Args: "DEVICE", MinArgs: 1, MaxArgs: 1,
		Samples: []settings.Sample{{Says: "by name", Line: "cloudrest forget \"Garden irrigation\""}},
		Declare: func(s *settings.Set) {
			s.Path(&file, "pins", "file that remembers devices; default: pins.json in your configuration folder")
		},
		Run: func(_ context.Context, in *settings.Parsed, out io.Writer) error {
			p, err := openPins(file)
			if err != nil {
				return cannot("%w", err)
			}
			found := p.find(in.Args[0])
			switch len(found) {
			case 0:
				return cannot("no device %q is remembered in %s", in.Args[0], p.path)
			case 1:
				if err := p.remove(found[0].ID); err != nil {
					return cannot("%w", err)
				}
				fmt.Fprintf(out, "forgot %s (%s)\n", printable(found[0].Name), found[0].ID.Short())
				return nil
			}
			return ambiguous(in.Args[0], found, func(e pin) (tether.DeviceID, string) { return e.ID, e.Name })
		},
	}
}
