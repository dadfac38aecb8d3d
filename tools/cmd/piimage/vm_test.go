package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

// vm is a computer that runs an image in QEMU. Like the Raspberry Pi's firmware, it takes
// the kernel and its command line from the boot partition at every start.
type vm struct {
	t             *testing.T
	machine       machine
	image         string
	https, update int // ports on 127.0.0.1

	mu      sync.Mutex
	cmd     *exec.Cmd // nil: it is off
	off     chan struct{}
	console bytes.Buffer
	starts  int
}

// machine is what QEMU emulates.
type machine struct {
	qemu           string // the program
	zero           bool   // what boots is in config.txt
	args           []string
	drive, network string // devices: the disk (empty: an SD card), the network card
	cmdline        string // what the emulation needs besides the command line of the image
}

var virt = machine{
	qemu:    qemu,
	args:    []string{"-machine", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "512"},
	drive:   "virtio-blk-pci,drive=d0",
	network: "virtio-net-pci,netdev=n0,romfile=",
}

// pi3 is a Raspberry Pi 3 with a USB network adapter. Its watchdog restarts QEMU at once.
func pi3(dtb string) machine {
	return machine{
		qemu:    qemu,
		args:    []string{"-machine", "raspi3b", "-dtb", dtb, "-serial", "null"},
		network: "usb-net,netdev=n0",
		cmdline: " initcall_blacklist=bcm2835_wdt_driver_init console=ttyAMA1,115200",
	}
}

// pi0 is a Raspberry Pi Zero W with a USB network adapter. QEMU has no power domains. Its
// time goes with what it computes: on a busy machine it would have no time for anything but
// the USB controller's interrupts, 8,000 in a second.
var pi0 = machine{
	qemu:    qemuARM,
	zero:    true,
	args:    []string{"-machine", "raspi0", "-icount", "shift=3,sleep=on"},
	network: "usb-net,netdev=n0",
	cmdline: " " + zerodisk.NoWatchdog + " console=ttyAMA0,115200 initcall_blacklist=bcm2835_power_driver_init,raspberrypi_power_driver_init",
}

const (
	qemu    = "qemu-system-aarch64"
	qemuARM = "qemu-system-arm"
)

// firmware does what that of a Raspberry Pi does before the kernel starts: it reads the
// boot partition. It returns arguments for QEMU and the kernel's command line.
func (m machine) firmware(f *os.File, dir string) (args []string, cmdline string, err error) {
	start, size := int64(bootpart.BootStart), int64(bootpart.BootSize)
	kernel, initrd, lines := "vmlinuz", "", bootpart.Cmdline
	if m.zero {
		start, size = zerodisk.BootStart, zerodisk.BootSize
		if kernel, initrd, lines, err = zerodisk.Booted(io.NewSectionReader(f, start, size)); err != nil {
			return nil, "", err
		}
	}
	boot := io.NewSectionReader(f, start, size)
	take := func(flag, name, dos string) error {
		offset, size, err := bootpart.File(boot, dos)
		if err != nil {
			return err
		}
		to, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer to.Close()
		args = append(args, flag, to.Name())
		_, err = io.Copy(to, io.NewSectionReader(boot, offset, size))
		return err
	}
	if err := take("-kernel", "kernel", kernel); err != nil {
		return nil, "", err
	}
	if initrd != "" {
		if err := take("-initrd", "initrd", initrd); err != nil {
			return nil, "", err
		}
	}
	if m.zero {
		// Its name is a long one: 8.3 is what FAT made of the third one with this beginning.
		if err := take("-dtb", "dtb", "BCM283~3.DTB"); err != nil {
			return nil, "", err
		}
	}
	offset, n, err := bootpart.File(boot, lines)
	if err != nil {
		return nil, "", err
	}
	line := make([]byte, n)
	if _, err := boot.ReadAt(line, offset); err != nil {
		return nil, "", err
	}
	return args, strings.TrimSpace(string(line)), nil
}

func newVM(t *testing.T, m machine, image string) *vm {
	v := &vm{t: t, machine: m, image: image, https: freePort(t), update: freePort(t)}
	v.on()
	t.Cleanup(func() {
		v.cut()
		if t.Failed() {
			v.mu.Lock()
			defer v.mu.Unlock()
			out := v.console.Bytes()
			t.Logf("console, the last of it:\n%s", out[max(0, len(out)-8000):])
		}
	})
	return v
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// on switches the computer on. It goes on when the system restarts it, until cut.
func (v *vm) on() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.start(); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) start() error {
	f, err := os.Open(v.image)
	if err != nil {
		return err
	}
	defer f.Close()
	args, cmdline, err := v.machine.firmware(f, v.t.TempDir())
	if err != nil {
		return err
	}
	v.starts++
	fmt.Fprintf(&v.console, "\n== start %d: %s\n", v.starts, cmdline)
	cmd := exec.Command(v.machine.qemu, append(args, v.machine.args...)...)
	cmd.Args = append(cmd.Args, "-display", "none", "-serial", "stdio", "-no-reboot", "-append", cmdline+v.machine.cmdline,
		"-device", v.machine.network)
	forwards := []string{fmt.Sprintf("tcp:127.0.0.1:%d-:443", v.https), fmt.Sprintf("tcp:127.0.0.1:%d-:%s", v.update, updatePort)}
	monitor := ""
	if v.machine.zero {
		// A packet that comes while the guest sets QEMU's USB network adapter up now and then
		// leaves the adapter deaf: nobody gets in before the guest is ready.
		monitor = filepath.Join(v.t.TempDir(), "monitor")
		cmd.Args = append(cmd.Args, "-netdev", "user,id=n0,restrict=on", "-monitor", "unix:"+monitor+",server,nowait")
	} else {
		cmd.Args = append(cmd.Args, "-netdev", "user,id=n0,restrict=on,hostfwd="+strings.Join(forwards, ",hostfwd="))
	}
	if v.machine.drive != "" {
		cmd.Args = append(cmd.Args, "-drive", "if=none,id=d0,format=raw,file="+v.image, "-device", v.machine.drive)
	} else {
		cmd.Args = append(cmd.Args, "-drive", "if=sd,format=raw,file="+v.image)
	}
	cmd.Stdout, cmd.Stderr = locked{&v.mu, &v.console}, locked{&v.mu, &v.console}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	off := make(chan struct{})
	v.cmd, v.off = cmd, off
	if monitor != "" {
		go v.letIn(off, monitor, forwards)
	}
	go func() {
		defer close(off)
		cmd.Wait()
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.cmd != cmd {
			return // the power was cut
		}
		v.cmd = nil
		if err := v.start(); err != nil {
			fmt.Fprintln(&v.console, "== start:", err)
		}
	}()
	return nil
}

// said reports whether the console has shown all of this since the last start.
func (v *vm) said(words ...string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	text := v.console.Bytes()
	text = text[max(0, bytes.LastIndex(text, []byte("\n== start "))):]
	for _, w := range words {
		if !bytes.Contains(text, []byte(w)) {
			return false
		}
	}
	return true
}

// letIn opens the ports once the console says that the guest has an address and answers.
func (v *vm) letIn(off chan struct{}, monitor string, forwards []string) {
	for !v.said("DHCPACK", "the gateway is ready") {
		select {
		case <-off:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
	c, err := net.Dial("unix", monitor)
	if err != nil {
		return // it is off by now
	}
	defer c.Close()
	for _, f := range forwards {
		fmt.Fprintf(c, "hostfwd_add n0 %s\n", f)
	}
	<-off
}

type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// cut is a power cut.
func (v *vm) cut() {
	v.mu.Lock()
	cmd, off := v.cmd, v.off
	v.cmd = nil
	v.mu.Unlock()
	if cmd != nil {
		cmd.Process.Kill()
		<-off
	}
}

func (v *vm) url(path string) string {
	return "https://127.0.0.1:" + strconv.Itoa(v.https) + path
}

func (v *vm) updateAddress() string { return "127.0.0.1:" + strconv.Itoa(v.update) }

// patience bounds waits for what must happen; an emulated computer on a busy machine is slow.
const patience = 10 * time.Minute

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}
