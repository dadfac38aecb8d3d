// Package periph opens the real ports of a board through periph.io: the flash on a SPI port,
// a button on a GPIO line, an LED of the kernel or on a GPIO line. What the bytes and the
// presses mean is not its business.
//
// GPIO lines are opened by name ("GPIO17" on a Raspberry Pi; on a router the kernel's number,
// "GPIO17" too) through the character device where periph's request codes for it are right,
// else through /sys/class/gpio: see driver_sysfs.go. OpenWrt gives the lines of a router's own
// buttons to its kernel module gpio-button-hotplug, and nobody else can have them; there a
// script in /etc/rc.button calls cloudrestd instead of this package.
//
// It does not import periph.io/x/host/v3, which would probe for every board there is.
package periph

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"periph.io/x/conn/v3/driver/driverreg"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpioreg"
	"periph.io/x/conn/v3/physic"
	"periph.io/x/conn/v3/spi"
	"periph.io/x/conn/v3/spi/spireg"
	"periph.io/x/host/v3/sysfs"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/board/flashuid"
)

// spiClock is slow for any flash and any wiring, and 26 bytes are all we read. Mode 0 is what
// every SPI NOR flash speaks, and the only mode that periph v3.8.5 sets right on big-endian
// machines.
const (
	spiClock = 1 * physic.MegaHertz
	spiBits  = 8
)

// OpenSPI opens a SPI port: "0.0" is bus 0, chip select 0, /dev/spidev0.0. Any other name must
// be known to periph's spireg, for makers who load drivers of their own.
func OpenSPI(name string) (spi.PortCloser, error) {
	if bus, cs, ok := busAndSelect(name); ok {
		// Known already is fine: then another driver opens it.
		name = fmt.Sprintf("/dev/spidev%d.%d", bus, cs)
		_ = spireg.Register(name, nil, -1, func() (spi.PortCloser, error) { return sysfs.NewSPI(bus, cs) })
	}
	if name == "" { // would be the first port that is there, with whatever is on it
		return nil, errors.New("open SPI port: no name")
	}
	port, err := spireg.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open SPI port %s: %w", name, err)
	}
	return port, nil
}

func busAndSelect(name string) (bus, cs int, ok bool) {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "/dev/spidev"), "SPI")
	b, c, _ := strings.Cut(name, ".")
	bus, err := strconv.Atoi(b)
	cs, err2 := strconv.Atoi(c)
	return bus, cs, err == nil && err2 == nil && bus >= 0 && cs >= 0
}

// FlashUID reads the unique ID of the flash on a SPI port; it fits uid.Env.Flash. The flash
// that the system boots from has no such port: the kernel keeps it for itself.
func FlashUID(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	port, err := OpenSPI(name)
	if err != nil {
		// periph drops the error's type on the way, hence the text.
		if errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "no such file") {
			err = fmt.Errorf("%w: %w", board.ErrAbsent, err)
		}
		return nil, err
	}
	defer port.Close()
	c, err := port.Connect(spiClock, spi.Mode0, spiBits)
	if err != nil {
		return nil, fmt.Errorf("set up SPI port %s: %w", name, err)
	}
	uid, _, err := flashuid.Read(c)
	return uid, err
}

// initDrivers loads the few drivers that this package links.
var initDrivers = sync.OnceValue(func() error {
	_, err := driverreg.Init()
	return err
})

// openPin finds a GPIO line by its name.
func openPin(name string) (gpio.PinIO, error) {
	if err := initDrivers(); err != nil {
		return nil, fmt.Errorf("load GPIO drivers: %w", err)
	}
	pin := gpioreg.ByName(name)
	if pin == nil {
		return nil, fmt.Errorf("GPIO line %q: %w", name, board.ErrAbsent)
	}
	return pin, nil
}

// option splits ",active-high" or so off a name.
func option(spec, want string) (name string, set bool, err error) {
	name, opt, found := strings.Cut(spec, ",")
	if found && opt != want || name == "" {
		return "", false, fmt.Errorf("%q: want a name, or name,%s", spec, want)
	}
	return name, found, nil
}
