//go:build !(mips || mipsle || mips64 || mips64le || ppc64 || ppc64le)

package periph

// Registers the driver for /dev/gpiochip*, which sets pull-ups and outlives /sys/class/gpio.
import _ "periph.io/x/host/v3/gpioioctl"
