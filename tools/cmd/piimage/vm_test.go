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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
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
	args           []string
	drive, network string // devices: the disk (empty: an SD card), the network card
	cmdline        string // what the emulation needs besides the command line of the image
}

var virt = machine{
	args:    []string{"-machine", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "512"},
	drive:   "virtio-blk-pci,drive=d0",
	network: "virtio-net-pci,netdev=n0,romfile=",
}

// pi3 is a Raspberry Pi 3 with a USB network adapter. Its watchdog restarts QEMU at once.
func pi3(dtb string) machine {
	return machine{
		args:    []string{"-machine", "raspi3b", "-dtb", dtb, "-serial", "null"},
		network: "usb-net,netdev=n0",
		cmdline: " initcall_blacklist=bcm2835_wdt_driver_init console=ttyAMA1,115200",
	}
}

const qemu = "qemu-system-aarch64"

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
	boot := io.NewSectionReader(f, bootpart.BootStart, bootpart.BootSize)
	cmdline, err := bootpart.ReadCmdline(boot)
	if err != nil {
		return err
	}
	offset, size, err := bootpart.File(boot, "vmlinuz")
	if err != nil {
		return err
	}
	kernel, err := os.Create(filepath.Join(v.t.TempDir(), "vmlinuz"))
	if err != nil {
		return err
	}
	defer kernel.Close()
	if _, err := io.Copy(kernel, io.NewSectionReader(boot, offset, size)); err != nil {
		return err
	}
	v.starts++
	fmt.Fprintf(&v.console, "\n== start %d: %s\n", v.starts, cmdline)
	cmd := exec.Command(qemu, v.machine.args...)
	cmd.Args = append(cmd.Args, "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel.Name(), "-append", cmdline+v.machine.cmdline,
		"-netdev", fmt.Sprintf("user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:%d-:443,hostfwd=tcp:127.0.0.1:%d-:%s", v.https, v.update, updatePort),
		"-device", v.machine.network)
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
const patience = 5 * time.Minute

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
