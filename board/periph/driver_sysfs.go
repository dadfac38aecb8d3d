//go:build mips || mipsle || mips64 || mips64le || ppc64 || ppc64le

package periph

import "periph.io/x/conn/v3/driver/driverreg"

// noIoctl stands in for the driver of /dev/gpiochip*. In periph v3.8.5 that driver has the
// request codes of machines with two direction bits; MIPS and PowerPC have three, so that
// every request would fail. But the driver for /sys/class/gpio does not load without one of
// this name.
type noIoctl struct{}

func (noIoctl) String() string          { return "ioctl-gpio" }
func (noIoctl) Prerequisites() []string { return nil }
func (noIoctl) After() []string         { return nil }
func (noIoctl) Init() (bool, error)     { return true, nil }

func init() { driverreg.MustRegister(noIoctl{}) }
