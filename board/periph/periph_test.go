package periph

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"periph.io/x/conn/v3"
	"periph.io/x/conn/v3/conntest"
	"periph.io/x/conn/v3/driver/driverreg"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"
	"periph.io/x/conn/v3/spi"
	"periph.io/x/conn/v3/spi/spireg"
	"periph.io/x/conn/v3/spi/spitest"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/board/uid"
)

// line is a fake GPIO line. Setting it up does not change its level, as a button would not.
type line struct {
	gpiotest.Pin
	noPull bool  // as /sys/class/gpio: no pull resistors
	gone   error // what In returns
	ins    int
}

func (l *line) In(pull gpio.Pull, edge gpio.Edge) error {
	l.Lock()
	defer l.Unlock()
	l.ins++
	switch {
	case l.gone != nil:
		return l.gone
	case l.noPull && pull != gpio.PullNoChange && pull != gpio.Float:
		return errors.New("no pull resistors")
	case edge != gpio.NoEdge && l.EdgesChan == nil:
		return errors.New("no edges")
	}
	l.P = pull
	return nil
}

// watch runs a button on l, does what the test wants, and returns the presses.
func watch(t *testing.T, l *line, high bool, do func()) (presses []board.Press, err error) {
	t.Helper()
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = NewButton(l, high).Watch(ctx, func(p board.Press) {
			mu.Lock()
			defer mu.Unlock()
			presses = append(presses, p)
		})
	}()
	time.Sleep(time.Second)
	do()
	time.Sleep(time.Second)
	ended := time.Now()
	cancel()
	<-done
	if took := time.Since(ended); took > idleWait+sample {
		t.Errorf("Watch returned %v after its context, want at most %v", took, idleWait+sample)
	}
	return presses, err
}

func TestButton(t *testing.T) {
	const up, down = gpio.High, gpio.Low
	for _, c := range []struct {
		name  string
		start gpio.Level
		do    func(set func(gpio.Level))
		want  []board.Press
	}{
		{"nothing", up, func(set func(gpio.Level)) { time.Sleep(time.Minute) }, nil},
		{"short", up, func(set func(gpio.Level)) { set(down); time.Sleep(time.Second); set(up) }, []board.Press{board.Short}},
		{"just short", up, func(set func(gpio.Level)) { set(down); time.Sleep(board.LongPress - sample); set(up) }, []board.Press{board.Short}},
		{"long, while still down", up, func(set func(gpio.Level)) { set(down); time.Sleep(board.LongPress + 2*sample) }, []board.Press{board.Long}},
		{"long, no short at its end", up, func(set func(gpio.Level)) { set(down); time.Sleep(time.Minute); set(up) }, []board.Press{board.Long}},
		{"long, then short", up, func(set func(gpio.Level)) {
			set(down)
			time.Sleep(2 * board.LongPress)
			set(up)
			time.Sleep(time.Second)
			set(down)
			time.Sleep(time.Second)
			set(up)
		}, []board.Press{board.Long, board.Short}},
		{"bouncing contact", up, func(set func(gpio.Level)) {
			for range 4 {
				set(down)
				time.Sleep(sample / 5)
				set(up)
				time.Sleep(sample / 9)
			}
			set(down)
			time.Sleep(time.Second)
			for range 4 {
				set(up)
				time.Sleep(sample / 5)
				set(down)
				time.Sleep(sample / 9)
			}
			set(up)
		}, []board.Press{board.Short}},
		{"a spike", up, func(set func(gpio.Level)) { set(down); time.Sleep(sample); set(up); time.Sleep(time.Minute) }, nil},
		{"bounces do not restart the ten seconds", up, func(set func(gpio.Level)) {
			set(down)
			for range 600 { // bounces once in 25 ms
				set(up)
				time.Sleep(sample / 2)
				set(down)
				time.Sleep(2 * sample)
			}
		}, []board.Press{board.Long}},
		{"down from the start", down, func(set func(gpio.Level)) { time.Sleep(time.Minute) }, nil},
		{"down from the start, then pressed", down, func(set func(gpio.Level)) {
			time.Sleep(time.Minute)
			set(up)
			time.Sleep(time.Second)
			set(down)
			time.Sleep(time.Minute)
		}, []board.Press{board.Long}},
	} {
		for kind, l := range map[string]*line{
			"polled": {}, "active high": {}, "with edges": {}, "no pull": {noPull: true},
		} {
			t.Run(c.name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if kind == "with edges" {
						l.EdgesChan = make(chan gpio.Level)
					}
					high := kind == "active high"
					l.L = c.start != gpio.Level(high)
					got, err := watch(t, l, high, func() {
						c.do(func(to gpio.Level) {
							to = to != gpio.Level(high)
							if l.EdgesChan != nil {
								select { // only who waits sees the edge
								case l.EdgesChan <- to:
									return
								default:
								}
							}
							l.Out(to)
						})
					})
					if err != nil || !reflect.DeepEqual(got, c.want) {
						t.Errorf("presses = %v, %v, want %v", got, err, c.want)
					}
				})
			})
		}
	}
}

func TestButtonPull(t *testing.T) {
	for _, c := range []struct {
		l    *line
		high bool
		want gpio.Pull
	}{{&line{}, false, gpio.PullUp}, {&line{}, true, gpio.PullDown}, {&line{noPull: true}, false, gpio.PullNoChange}} {
		synctest.Test(t, func(t *testing.T) {
			c.l.L = gpio.Level(!c.high)
			if _, err := watch(t, c.l, c.high, func() {}); err != nil || c.l.P != c.want {
				t.Errorf("pull = %v, %v, want %v", c.l.P, err, c.want)
			}
		})
	}
}

// A line that goes away reads as Low, which is "down". That must not erase the device.
func TestButtonGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &line{}
		l.L = gpio.High
		gone := errors.New("no such device")
		got, err := watch(t, l, false, func() {
			l.Lock()
			l.gone, l.L = gone, gpio.Low
			l.Unlock()
			time.Sleep(time.Minute)
		})
		if len(got) > 0 || !errors.Is(err, gone) {
			t.Errorf("presses = %v, %v, want none and %v", got, err, gone)
		}
	})
	if err := NewButton(&line{gone: errors.New("busy")}, false).Watch(t.Context(), nil); err == nil {
		t.Error("a line that cannot be set up: no error")
	}
}

func TestPinLED(t *testing.T) {
	for _, low := range []bool{false, true} {
		p := &gpiotest.Pin{N: "GPIO27", L: gpio.Level(!low)}
		l, err := NewLED(p, low)
		if err != nil || p.L != gpio.Level(low) {
			t.Fatalf("active low %v: at first %v, %v, want off", low, p.L, err)
		}
		if err := l.Set(true); err != nil || p.L != gpio.Level(!low) {
			t.Errorf("active low %v: on is %v, %v", low, p.L, err)
		}
		if err := l.Close(); err != nil || p.L != gpio.Level(low) {
			t.Errorf("active low %v: closed is %v, %v", low, p.L, err)
		}
	}
}

func TestKernelLED(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "green:status")
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"max_brightness": "255\n", "brightness": "77\n", "trigger": "none timer [heartbeat] default-on\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := openKernelLED(root, "green:status")
	if err != nil {
		t.Fatal(err)
	}
	if got := read("trigger") + " " + read("brightness"); got != "none 0" {
		t.Errorf("opened: %s, want none 0", got)
	}
	if err := l.Set(true); err != nil || read("brightness") != "255" {
		t.Errorf("on: %s, %v, want 255", read("brightness"), err)
	}
	if err := l.Close(); err != nil || read("trigger")+" "+read("brightness") != "heartbeat 0" {
		t.Errorf("closed: %s %s, %v, want heartbeat 0", read("trigger"), read("brightness"), err)
	}
	os.RemoveAll(dir)
	if err := l.Set(true); err == nil {
		t.Error("an LED that has gone: no error")
	}
	if _, err := openKernelLED(root, "green:status"); !errors.Is(err, board.ErrAbsent) {
		t.Errorf("missing: %v, want ErrAbsent", err)
	}
	for _, name := range []string{"", ".", "..", "../x", "gpio="} {
		if _, err := OpenLED(name); err == nil {
			t.Errorf("OpenLED(%q): no error", name)
		}
	}
}

// The drivers load on this machine, and a line that is not there is a clean error.
func TestOpenPin(t *testing.T) {
	for spec, want := range map[string]error{"GPIO-none": board.ErrAbsent, "GPIO-none,active-high": board.ErrAbsent, "": nil, "GPIO1,what": nil} {
		if _, err := OpenButton(spec); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("OpenButton(%q) = %v, want %v", spec, err, want)
		}
	}
	if _, err := OpenLED("gpio=GPIO-none,active-low"); !errors.Is(err, board.ErrAbsent) {
		t.Errorf("OpenLED = %v, want ErrAbsent", err)
	}
	state, err := driverreg.Init()
	if err != nil {
		t.Fatalf("Init = %v", err)
	}
	for _, f := range state.Failed {
		t.Logf("driver %s", f)
	}
}

// A port of another driver, found by its name in spireg, serves as a UID source.
func TestFlashUID(t *testing.T) {
	unique := []byte{0xD1, 0x62, 0x3C, 0x94, 0x0F, 0x2A, 0x51, 0x2D}
	ask := func(w []byte, r ...byte) conntest.IO {
		return conntest.IO{W: append(bytes.Clone(w), make([]byte, len(r))...), R: append(make([]byte, len(w)), r...)}
	}
	read := ask([]byte{0x4B, 0, 0, 0, 0}, unique...)
	port := &spitest.Playback{Playback: conntest.Playback{D: conn.Full, DontPanic: true, Ops: []conntest.IO{
		ask([]byte{0x9F}, 0xEF, 0x40, 0x18, 0, 0, 0), read, read,
	}}}
	if err := spireg.Register("USB.SPI", nil, -1, func() (spi.PortCloser, error) { return port, nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spireg.Unregister("USB.SPI") })
	sources, err := uid.Env{Root: t.TempDir(), Flash: FlashUID}.Parse([]string{"spi=USB.SPI"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := uid.New(sources, nil).First(t.Context())
	if err != nil || !bytes.Equal(u.Bytes, unique) {
		t.Errorf("First = %x, %v, want %x", u.Bytes, err, unique)
	}
	if err := port.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenSPI(t *testing.T) {
	for _, name := range []string{"97.3", "SPI97.3", "/dev/spidev97.3"} {
		_, err := FlashUID(t.Context(), name)
		if !errors.Is(err, board.ErrAbsent) || !strings.Contains(err.Error(), "spidev97.3") {
			t.Errorf("FlashUID(%q) = %v, want ErrAbsent and the path", name, err)
		}
	}
	for _, name := range []string{"", "0", "-1.0", "x.y", "nothing"} {
		if _, err := FlashUID(t.Context(), name); err == nil {
			t.Errorf("FlashUID(%q): no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FlashUID(ctx, "97.3"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
