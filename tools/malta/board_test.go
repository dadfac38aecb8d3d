//go:build linux

package malta

import (
	"bufio"
	"bytes"
	"errors"
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

	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20

	// The flash: as in a router with 16 MB, without its boot loader and calibration data.
	rootfsSize = 10 * mib
	dataSize   = 5 * mib
	eraseSize  = 64 << 10 // bytes, of most SPI NOR chips
	flashSize  = 16 * mib

	// QEMU puts the initial RAM file system at the upper end of what it takes for memory, so
	// this much of the real memory lies behind the flash.
	upperSize = 8 * mib

	// patience bounds a wait for what must happen: the board is slow, and so may be the machine.
	patience = 5 * time.Minute

	portTries = 3
)

// board is an emulated router. Its flash outlives power cuts; its memory does not.
type board struct {
	t     *testing.T
	parts parts
	ram   int64  // bytes
	chips string // the file that is memory and flash
	https int    // port on 127.0.0.1, another after each power cut
	other int    // another, through which clients seem to come from another address
	lan   *lan   // what else is on its network

	began   time.Time
	cmd     *exec.Cmd // nil: it is off
	off     chan struct{}
	control net.Conn
	answers *bufio.Reader

	mu      sync.Mutex // guards console and start
	console bytes.Buffer
	start   int // where in it the present life of the board begins
}

// newBoard makes a board with that much memory, whose data partition is erased. It is off.
func newBoard(t *testing.T, p parts, ram int64) *board {
	t.Helper()
	b := &board{t: t, parts: p, ram: ram, chips: filepath.Join(t.TempDir(), "chips"), lan: newLAN(t), began: time.Now()}
	rootfs := readFile(t, p.rootfs)
	if len(rootfs) > rootfsSize {
		t.Fatalf("the root file system has %d bytes, at most %d", len(rootfs), rootfsSize)
	}
	f, err := os.Create(b.chips)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = errors.Join(f.Truncate(ram+flashSize), writeAt(f, rootfs, b.flash()), writeAt(f, bytes.Repeat([]byte{0xff}, dataSize), b.flash()+rootfsSize))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.cut()
		if t.Failed() {
			t.Logf("console, the last of it:\n%s", b.said()[max(0, len(b.said())-12000):])
		}
	})
	return b
}

// flash is where it lies, in bytes from the beginning of the memory.
func (b *board) flash() int64 { return b.ram - upperSize }

func writeAt(f *os.File, b []byte, at int64) error {
	_, err := f.WriteAt(b, at)
	return err
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// note tells what goes on, with the time since the board was made.
func (b *board) note(format string, args ...any) {
	b.t.Helper()
	b.t.Logf("%5.1f s  %s", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// on switches the board on and waits until its second serial line takes commands.
func (b *board) on() {
	b.t.Helper()
	err := b.power()
	// Another program may have taken a port meanwhile.
	for try := 1; err != nil && try < portTries && strings.Contains(b.since(), "host forwarding"); try++ {
		b.cut()
		err = b.power()
	}
	if err != nil {
		b.t.Fatalf("the board does not start: %v", err)
	}
}

func (b *board) power() error {
	b.https, b.other = freePort(b.t), freePort(b.t)
	// What was in the memory is lost.
	f, err := os.OpenFile(b.chips, os.O_RDWR, 0)
	if err == nil {
		const clear = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		err = errors.Join(unix.Fallocate(int(f.Fd()), clear, 0, b.flash()), unix.Fallocate(int(f.Fd()), clear, b.flash()+flashSize, upperSize), f.Close())
	}
	if err != nil {
		return fmt.Errorf("clear the memory: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	cmd := exec.Command("nice", "-n", "5", "qemu-system-mipsel", "-M", "malta,memory-backend=chips", "-cpu", "24Kc",
		"-m", strconv.FormatInt((b.ram+flashSize)/mib, 10),
		"-object", fmt.Sprintf("memory-backend-file,id=chips,share=on,mem-path=%s,size=%d", b.chips, b.ram+flashSize),
		"-display", "none", "-vga", "none", "-monitor", "none", "-serial", "stdio", "-serial", "tcp:"+l.Addr().String(), "-no-reboot",
		"-kernel", b.parts.kernel, "-initrd", b.parts.initramfs,
		"-append", fmt.Sprintf("console=ttyS0 loglevel=5 panic=1 mem=%d mem=%d@%d ROOTFS=rootfs,%#x,%#x,%#x ROOTFS_DATA=rootfs_data,%#x,%#x,%#x",
			b.flash(), upperSize, b.flash()+flashSize, b.flash(), rootfsSize, eraseSize, b.flash()+rootfsSize, dataSize, eraseSize),
		"-netdev", fmt.Sprintf("user,id=host,restrict=on,hostfwd=tcp:127.0.0.1:%d-10.0.2.15:8443", b.https),
		"-netdev", fmt.Sprintf("user,id=other,net=10.0.3.0/24,restrict=on,hostfwd=tcp:127.0.0.1:%d-10.0.3.15:8443", b.other),
		"-netdev", b.lan.netdev("lan"), "-netdev", "hubport,hubid=0,id=h0,netdev=host", "-netdev", "hubport,hubid=0,id=h1,netdev=lan",
		"-netdev", "hubport,hubid=0,id=h2", "-device", "pcnet,netdev=h2,romfile=", "-device", "pcnet,netdev=other,romfile=")
	cmd.Stdout, cmd.Stderr = console{b}, console{b}
	b.mu.Lock()
	b.start = b.console.Len()
	b.mu.Unlock()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	off := make(chan struct{})
	b.cmd, b.off = cmd, off
	go func() {
		defer close(off)
		cmd.Wait()
		l.Close()
	}()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	if b.control, err = l.Accept(); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	b.answers = bufio.NewReader(b.control)
	b.control.SetDeadline(time.Now().Add(patience))
	for {
		line, err := b.answers.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.TrimSpace(line) == "@ready" {
			return nil
		}
	}
}

// sh runs a line of shell on the board and returns what it prints. It has to succeed.
func (b *board) sh(line string) string {
	b.t.Helper()
	out, err := b.try(line)
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func (b *board) try(line string) (string, error) {
	b.control.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(b.control, line+"\n"); err != nil {
		return "", err
	}
	var out strings.Builder
	for {
		l, err := b.answers.ReadString('\n')
		if err != nil {
			return out.String(), err
		}
		if code, ok := strings.CutPrefix(l, "@"); ok {
			if code = strings.TrimSpace(code); code != "0" {
				return out.String(), fmt.Errorf("exit code %s", code)
			}
			return strings.TrimSpace(out.String()), nil
		}
		out.WriteString(strings.TrimRight(l, "\r\n") + "\n")
	}
}

// cut is a power cut.
func (b *board) cut() {
	if b.cmd == nil {
		return
	}
	b.cmd.Process.Kill()
	<-b.off
	b.cmd = nil
	if b.control != nil {
		b.control.Close()
	}
}

// shutDown stops the gateway and the board in good order.
func (b *board) shutDown() {
	b.t.Helper()
	b.sh("/etc/init.d/cloudrest stop; sync")
	io.WriteString(b.control, "mount -o remount,ro /overlay; reboot -f\n")
	select {
	case <-b.off:
	case <-time.After(patience):
		b.t.Fatal("the board does not reboot")
	}
	b.cut()
}

// send starts a line of shell and does not wait: the power is cut before it ends.
func (b *board) send(line string) {
	b.t.Helper()
	if _, err := io.WriteString(b.control, line+"\n"); err != nil {
		b.t.Fatal(err)
	}
}

// since is what came on the console since the board was switched on.
func (b *board) since() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.console.Bytes()[b.start:])
}

// said is what came on the console.
func (b *board) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.console.String()
}

type console struct{ b *board }

func (c console) Write(p []byte) (int, error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	return c.b.console.Write(p)
}
