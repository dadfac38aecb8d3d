package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cloudrest/cloudrest/board/uid"
	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// boardOptions say what the hardware is.
type boardOptions struct {
	uidSource   []string
	button, led string
}

// declareUID names the setting that all commands share which need the identity.
func (o *boardOptions) declareUID(s *settings.Set) {
	o.uidSource = nil
	s.Strings(&o.uidSource, "uid-source", "where the UID of the board is looked for, in this order, at the very first start; without it: machine_udid, device-tree, "+
		"nvmem, mtd-otp, emmc, mac, random. Also spi=BUS.CS, file=PATH, machine-id", settings.Example("spi=0.0,random"), settings.What("WORD"))
}

func (o *boardOptions) declare(s *settings.Set) {
	s.Group("The board")
	o.declareUID(s)
	o.button, o.led = "", ""
	s.String(&o.button, "button", "the GPIO line of the button that opens pairing and, held for 10 s, resets the device", settings.Example("GPIO17"), settings.What("LINE"))
	s.String(&o.led, "led", "the LED that shows the pairing window: one of the kernel's, or gpio=LINE", settings.Example("green:status"), settings.What("LED"))
}

// hardware is the reader of the UID.
func (o *boardOptions) hardware(log *slog.Logger) (*uid.Reader, error) {
	sources, err := uid.Env{Flash: flashUID}.Parse(o.uidSource)
	if err != nil {
		return nil, &gateway.ConfigError{Key: "uid-source", Problem: err.Error()}
	}
	return uid.New(sources, log), nil
}

// open puts the real board into cfg. What does not open is said and left out: a gateway
// without its button still serves the LAN.
func (o *boardOptions) open(cfg *gateway.Config) (release func(), err error) {
	release = func() {}
	hw, err := o.hardware(cfg.Logger)
	if err != nil {
		return release, err
	}
	cfg.Hardware = hw
	for key, asked := range map[string]string{"button": o.button, "led": o.led} {
		if asked != "" && !features.Board {
			return release, &gateway.ConfigError{Key: key, Problem: features.Missing("board").Error()}
		}
	}
	if o.button != "" {
		b, err := openButton(o.button)
		if err != nil {
			cfg.Logger.Error("the button does not work", "button", o.button, "err", err)
		} else {
			cfg.Button = b
		}
	}
	if o.led != "" {
		l, err := openLED(o.led)
		if err != nil {
			cfg.Logger.Error("the LED does not work", "led", o.led, "err", err)
		} else {
			cfg.LED = l
			release = func() { _ = l.Close() }
		}
	}
	return release, nil
}

// usage is a mistake in the settings.
func usage(format string, args ...any) error {
	return &settings.ExitError{Code: settings.ExitUsage, Err: fmt.Errorf(format, args...)}
}

var errNoIdentity = errors.New("this device has no identity yet: it gets one at the first start of cloudrestd, or in the factory by cloudrestd provision")
