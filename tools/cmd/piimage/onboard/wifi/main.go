// Command wifi runs in an image for a board with a radio and keeps it on one network: an
// open one, or one with a passphrase (WPA2-PSK). There is no supplicant: the radio's own
// firmware does the handshake, as those of Broadcom do (nl80211, 4WAY_HANDSHAKE_STA_PSK).
// Where init is not ours, it also loads the radio's driver (-load) and keeps a DHCP client
// running while there is a connection (-dhcp).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/mdlayher/wifi"
	"golang.org/x/sys/unix"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("wifi: ")
	load := flag.Bool("load", false, "load the kernel's modules that the image names")
	client := flag.String("dhcp", "", "DHCP client, `program`, to run while there is a connection; without, somebody else gets an address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *load, *client); err != nil {
		log.Print(err)
		os.Exit(1) // init starts it again
	}
}

func run(ctx context.Context, load bool, client string) error {
	info, err := device.ReadInfo(device.InfoFile)
	if err != nil {
		return err
	}
	if info.WiFi == nil {
		return errors.New("the image names no network")
	}
	if load {
		loadModules(info.Modules)
	}
	c, err := wifi.New()
	if err != nil {
		return fmt.Errorf("talk to nl80211: %w", err)
	}
	defer c.Close()
	j := &joiner{radio: nl80211{c}, network: *info.WiFi}
	if client != "" {
		j.address = dhcp(client).run
	}
	j.run(ctx)
	return nil
}

// loadModules says what does not work and goes on: a board without a radio works without,
// and a driver of another kernel than the one that runs is worth a line in the log only.
func loadModules(paths []string) {
	for _, path := range paths {
		if err := loadModule(path); err != nil && !errors.Is(err, unix.EEXIST) {
			log.Printf("load %s: %v", path, err)
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// radio is what a joiner needs.
type radio interface {
	// find returns the name of the adapter, switched on; errNone while there is none.
	find() (string, error)
	connected(name string) bool
	join(name string, n device.WiFi) error
}

var errNone = errors.New("no radio yet")

const (
	lookEvery = 5 * time.Second  // while connected, and until there is a radio
	joinWait  = 15 * time.Second // for one attempt: a scan of all channels and the handshake
	maxPause  = 2 * time.Minute  // between attempts
)

// joiner keeps the radio on the network.
type joiner struct {
	radio   radio
	network device.WiFi
	// address gets the adapter an IP address and keeps it, until ctx is done; nil: somebody
	// else does. It runs once for each connection: the next one may be to another router.
	address func(ctx context.Context, name string)
}

// run works until ctx is done. Logged are changes, and never the passphrase.
func (j *joiner) run(ctx context.Context) {
	wait := func(d time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	said := ""
	say := func(text string) {
		if text != said {
			said = text
			log.Print(text)
		}
	}
	release := func() {} // ends the job of address, and waits for it
	defer func() { release() }()
	on := false
	pause := lookEvery
	for ctx.Err() == nil {
		name, err := j.radio.find()
		connected := err == nil && j.radio.connected(name)
		if connected != on {
			release()
			release = func() {}
			if on = connected; on && j.address != nil {
				release = start(ctx, name, j.address)
			}
		}
		switch {
		case err != nil:
			say(err.Error())
			wait(lookEvery)
			continue
		case connected:
			say(fmt.Sprintf("%s is on %q", name, j.network.SSID))
			pause = lookEvery
			wait(lookEvery)
			continue
		}
		if err := j.radio.join(name, j.network); err != nil {
			say(fmt.Sprintf("join %q with %s: %v", j.network.SSID, name, err))
		} else if wait(joinWait); j.radio.connected(name) {
			continue
		} else {
			say(fmt.Sprintf("%q does not answer %s, or the passphrase is wrong", j.network.SSID, name))
		}
		wait(pause)
		pause = min(2*pause, maxPause)
	}
}

// start runs f until release, which waits for its end and may be called again.
func start(ctx context.Context, name string, f func(context.Context, string)) (release func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f(ctx, name)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// dhcp is the DHCP client's file. It ends whenever nobody answers it.
type dhcp string

const (
	firstPause = time.Second // before the client runs again, doubled up to maxPause
	endWait    = 5 * time.Second
)

func (d dhcp) run(ctx context.Context, name string) {
	// The client is to end with us, which the kernel sees to by the thread that started it.
	runtime.LockOSThread()
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, maxPause) {
		cmd := exec.CommandContext(ctx, string(d), "-interface="+name)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = endWait
		begin := time.Now()
		err := cmd.Run()
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > maxPause {
			pause = firstPause // it had an address
		}
		log.Printf("%s: %v; again in %v", d, err, pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// nl80211 is the kernel's radio.
type nl80211 struct{ c *wifi.Client }

func (n nl80211) adapter() (*wifi.Interface, error) {
	all, err := n.c.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list radios: %w", err)
	}
	for _, i := range all {
		if i.Type == wifi.InterfaceTypeStation && i.Name != "" {
			return i, nil
		}
	}
	return nil, errNone
}

func (n nl80211) find() (string, error) {
	i, err := n.adapter()
	if err != nil {
		return "", err
	}
	return i.Name, up(i.Name)
}

func (n nl80211) connected(string) bool {
	i, err := n.adapter()
	if err != nil {
		return false
	}
	bss, err := n.c.BSS(i)
	return err == nil && bss.Status == wifi.BSSStatusAssociated
}

func (n nl80211) join(_ string, network device.WiFi) error {
	i, err := n.adapter()
	if err != nil {
		return err
	}
	if network.PSK == "" {
		return n.c.Connect(i, network.SSID)
	}
	return n.c.ConnectWPAPSK(i, network.SSID, network.PSK)
}

// up switches an interface on (netdevice(7)).
func up(name string) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var ifreq struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(ifreq.name[:syscall.IFNAMSIZ-1], name)
	for _, step := range []uintptr{syscall.SIOCGIFFLAGS, syscall.SIOCSIFFLAGS} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), step, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
			return fmt.Errorf("switch %s on: %w", name, errno)
		}
		if ifreq.flags&syscall.IFF_UP != 0 {
			return nil
		}
		ifreq.flags |= syscall.IFF_UP
	}
	return nil
}
