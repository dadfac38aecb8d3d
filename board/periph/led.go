package periph

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"periph.io/x/conn/v3/gpio"

	"github.com/cloudrest/cloudrest/board"
)

// leds is where the kernel shows its LEDs (Documentation/ABI/testing/sysfs-class-led).
const leds = "/sys/class/leds"

// OpenLED opens an LED: "green:status" is one of the kernel's, /sys/class/leds/green:status;
// "gpio=GPIO27" is on a GPIO line that lights it when high, "gpio=GPIO27,active-low" when low.
func OpenLED(spec string) (board.LED, error) {
	line, ok := strings.CutPrefix(spec, "gpio=")
	if !ok {
		return openKernelLED(leds, spec)
	}
	name, low, err := option(line, "active-low")
	if err != nil {
		return nil, fmt.Errorf("LED %w", err)
	}
	pin, err := openPin(name)
	if err != nil {
		return nil, fmt.Errorf("open LED: %w", err)
	}
	return NewLED(pin, low)
}

// pinLED is an LED on a GPIO line.
type pinLED struct {
	pin gpio.PinOut
	low bool
}

// NewLED returns the LED on an output line, off.
func NewLED(pin gpio.PinOut, activeLow bool) (board.LED, error) {
	l := &pinLED{pin, activeLow}
	return l, l.Set(false)
}

func (l *pinLED) Set(on bool) error {
	if err := l.pin.Out(gpio.Level(on != l.low)); err != nil {
		return fmt.Errorf("set LED %s: %w", l.pin, err)
	}
	return nil
}

func (l *pinLED) Close() error { return errors.Join(l.Set(false), l.pin.Halt()) }

// kernelLED is an LED of the kernel. periph's own would leave the trigger on, and a blinking
// "heartbeat" would go on beneath ours.
type kernelLED struct {
	dir     string
	max     []byte
	trigger string // the one to restore
}

func openKernelLED(root, name string) (*kernelLED, error) {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return nil, fmt.Errorf("open LED %q: want a name from %s", name, leds)
	}
	l := &kernelLED{dir: filepath.Join(root, name)}
	max, err := os.ReadFile(filepath.Join(l.dir, "max_brightness"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open LED %s: %w: %w", name, board.ErrAbsent, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open LED %s: %w", name, err)
	}
	l.max = bytes.TrimSpace(max)
	// "none timer [heartbeat] default-on": the one in brackets is at work.
	if triggers, err := os.ReadFile(filepath.Join(l.dir, "trigger")); err == nil {
		_, rest, _ := strings.Cut(string(triggers), "[")
		l.trigger, _, _ = strings.Cut(rest, "]")
		if err := l.write("trigger", []byte("none")); err != nil {
			return nil, err
		}
	}
	return l, l.Set(false)
}

func (l *kernelLED) Set(on bool) error {
	if on {
		return l.write("brightness", l.max)
	}
	return l.write("brightness", []byte("0"))
}

func (l *kernelLED) Close() error {
	err := l.Set(false)
	if l.trigger != "" && l.trigger != "none" {
		err = errors.Join(err, l.write("trigger", []byte(l.trigger)))
	}
	return err
}

func (l *kernelLED) write(file string, b []byte) error {
	f, err := os.OpenFile(filepath.Join(l.dir, file), os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set LED %s: %w", filepath.Base(l.dir), err)
	}
	return nil
}
