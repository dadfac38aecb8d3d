// Command piimage makes an SD card image for the Raspberry Pi: with gokrazy a read-only
// root file system with the gateway and the maker's service, for the first models (ARMv6)
// the same as one initial RAM file system; no shell, no ssh, two slots for updates. It also
// updates such a device over the LAN. README.md tells the rest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `Makes an SD card image for a Raspberry Pi, with the gateway and a maker's service, and
updates devices that were made with it.

  piimage build                             images/cloudrest-pi.img: Raspberry Pi 3, 4, 5, Zero 2 W
  piimage build --board zero-w              images/cloudrest-pi-zero-w.img: Zero W, Zero, 1 B+ (ARMv6)
  piimage build --origin-binary ./myservice --relay wss://relay.example --update-key pub.pem
  piimage pair garden.local                 a QR code that pairs the first phone
  piimage sign --key key.pem --image new.img   an update that the devices with pub.pem take: new.update
  piimage update garden.local --bundle new.update
  piimage update garden.local --image new.img  for devices that were built without --update-key
  piimage switch-back garden.local          the version before the last update
  piimage state garden.local                which version runs, and what it would take
  piimage log garden.local                  what a program printed last (--update-key, zero-w)

"piimage COMMAND --help" lists the options.
`

// The exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

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
	var s signer
	program := ""
	switch command {
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
		f.StringVar(&c.image, "image", boards[0].out, "the new image, `file`")
		f.BoolVar(&c.kernel, "with-kernel", false, "update the boot partition too: kernel and firmware. It has no second slot: "+
			"a power cut while it is written needs the SD card to be written anew")
		f.StringVar(&c.bundle, "bundle", "", "a signed update that piimage sign made, `file`, instead of --image")
		do = func() error {
			if c.bundle != "" {
				return c.updateSigned(ctx, stdout)
			}
			return c.update(ctx, stdout)
		}
	case "sign":
		s.declare(f)
		do = func() error { return s.sign(stdout) }
	case "state":
		device = true
		c.declare(f)
		do = func() error { return c.showState(ctx, stdout) }
	case "log":
		device = true
		c.declare(f)
		f.StringVar(&program, "program", "cloudrestd", "cloudrestd, origin, wifi, ntp or \"dhcp usb0\"; `name`")
		do = func() error { return c.showLog(ctx, stdout, url.QueryEscape(program)) }
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
