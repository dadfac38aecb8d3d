// Command piimage makes an SD card image for the Raspberry Pi with gokrazy: a read-only
// root file system with the gateway and the maker's service, no shell, no ssh, two slots
// for updates. It also updates such a device over the LAN. README.md tells the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/gokrazy/tools/gok"
)

const usage = `Makes an SD card image for Raspberry Pi 3, 4, 5 and Zero 2 W, and updates devices that
were made with it.

  piimage build                             images/cloudrest-pi.img, with the sample service
  piimage build --origin-binary ./myservice --relay wss://relay.example
  piimage pair garden.local                 a QR code that pairs the first phone
  piimage update garden.local --image new.img
  piimage switch-back garden.local          the version before the last update

"piimage COMMAND --help" lists the options.
`

// The exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// gokCommand is how piimage starts itself as gok, gokrazy's builder, which changes the
// working directory and ends the process at will.
const gokCommand = "gok"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command := "build"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	f := flag.NewFlagSet("piimage "+command, flag.ContinueOnError)
	f.SetOutput(stderr)
	var do func() error
	device := false // takes the address of a device
	var o options
	var c client
	switch command {
	case gokCommand:
		if err := (gok.Context{Args: args}).Execute(ctx); err != nil {
			fmt.Fprintln(stderr, err)
			return exitFailed
		}
		return exitOK
	case "build":
		o.declare(f)
		do = func() error { return o.build(ctx, stdout) }
	case "pair":
		device = true
		c.declare(f)
		do = func() error { return c.pair(ctx, stdout) }
	case "update":
		device = true
		c.declare(f)
		f.StringVar(&c.image, "image", defaultOut, "the new image, `file`")
		f.BoolVar(&c.kernel, "with-kernel", false, "update the boot partition too: kernel and firmware. It has no second slot: "+
			"a power cut while it is written needs the SD card to be written anew")
		do = func() error { return c.update(ctx, stdout) }
	case "switch-back":
		device = true
		c.declare(f)
		do = func() error { return c.switchBack(ctx, stdout) }
	case "help":
		io.WriteString(stdout, usage)
		return exitOK
	default:
		fmt.Fprintf(stderr, "piimage: unknown command %q\n\n%s", command, usage)
		return exitUsage
	}
	f.Usage = func() {
		fmt.Fprintf(stderr, "%s\nOptions of %s:\n", usage, f.Name())
		f.PrintDefaults()
	}
	// The device's address may stand before the flags or after them.
	if device && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		c.address, args = args[0], args[1:]
	}
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	rest := f.Args()
	if device && c.address == "" && len(rest) > 0 {
		c.address, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 || device && c.address == "" {
		fmt.Fprintf(stderr, "piimage: %s\n", argumentMistake(rest))
		return exitUsage
	}
	if err := do(); err != nil {
		fmt.Fprintf(stderr, "piimage: %v\n", err)
		if _, ok := errors.AsType[*usageError](err); ok {
			return exitUsage
		}
		return exitFailed
	}
	return exitOK
}

func argumentMistake(rest []string) string {
	if len(rest) > 0 {
		return fmt.Sprintf("unexpected argument %q; see piimage --help", rest[0])
	}
	return "name the device: its address on the LAN"
}

// usageError is a mistake in what the caller asked for.
type usageError struct{ problem string }

func (e *usageError) Error() string { return e.problem }

func mistake(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }
