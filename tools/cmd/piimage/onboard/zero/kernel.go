package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The SD card, the only one there is.
const (
	bootDevice = "/dev/mmcblk0p1"
	permDevice = "/dev/mmcblk0p2"
	permFolder = "/perm"
)

// mountKernel mounts what the kernel shows.
func mountKernel() error {
	for _, m := range []struct {
		folder, kind string
		flags        uintptr
		options      string
	}{
		{"/proc", "proc", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"/sys", "sysfs", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, ""},
		{"/dev", "devtmpfs", syscall.MS_NOSUID, ""},
		{"/run", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC, "mode=0755,size=16m"},
		{"/tmp", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=1777,size=64m"},
	} {
		if err := syscall.Mount(m.kind, m.folder, m.kind, m.flags, m.options); err != nil && err != syscall.EBUSY {
			return fmt.Errorf("mount %s: %w", m.folder, err)
		}
	}
	return os.MkdirAll("/run/cloudrest", 0o750)
}

func cmdline() map[string]bool {
	text, _ := os.ReadFile("/proc/cmdline")
	words := map[string]bool{}
	for _, w := range strings.Fields(string(text)) {
		words[w] = true
	}
	return words
}

func waitFor(limit time.Duration, paths ...string) error {
	end := time.Now().Add(limit)
	for _, p := range paths {
		for {
			_, err := os.Stat(p)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("wait for the SD card: %w", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

func mountState() error {
	if err := os.MkdirAll(permFolder, 0o755); err != nil {
		return err
	}
	// The journal makes a whole file system of what a power cut left.
	if err := syscall.Mount(permDevice, permFolder, "ext4", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOATIME, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount %s: %w", permFolder, err)
	}
	return nil
}

func unmountState() error {
	err := syscall.Unmount(permFolder, 0)
	if errors.Is(err, syscall.EBUSY) {
		err = syscall.Mount("", permFolder, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", permFolder, err)
	}
	return nil
}

// loopback switches the interface lo on; the kernel gives it its addresses.
func loopback() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var ifreq struct { // netdevice(7)
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(ifreq.name[:], "lo")
	ifreq.flags = syscall.IFF_UP
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&ifreq))); errno != 0 {
		return fmt.Errorf("switch lo on: %w", errno)
	}
	return nil
}

const (
	watchdogDevice = "/dev/watchdog"
	// feedEvery is well below the 15 s that the chip's watchdog can count.
	feedEvery = 4 * time.Second
)

// feed keeps the watchdog from restarting the board, as long as this program runs. It is
// never closed: the watchdog also ends a restart that hangs.
func feed() {
	f, err := os.OpenFile(watchdogDevice, os.O_WRONLY, 0)
	if err != nil {
		log.Print("watchdog: ", err)
		return
	}
	for {
		if _, err := f.Write([]byte{0}); err != nil {
			log.Print("feed the watchdog: ", err)
			return
		}
		time.Sleep(feedEvery)
	}
}

// The board has no clock. timeFile remembers about when it last ran.
const (
	timeFile  = "/perm/cloudrest-image/time"
	timeEvery = time.Hour
)

// floor sets the clock to the latest time that is surely over: that of the version, or
// when the board last ran. NTP does the rest.
func floor(version time.Time) {
	latest := version
	if st, err := os.Stat(timeFile); err == nil && st.ModTime().After(latest) {
		latest = st.ModTime()
	}
	if !time.Now().Before(latest) {
		return
	}
	tv := syscall.NsecToTimeval(latest.UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		log.Print("set the clock: ", err)
	}
}

func keepTime(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(timeEvery):
			saveTime()
		}
	}
}

// saveTime loses at most the file's content, which is none, in a power cut.
func saveTime() {
	if f, err := os.OpenFile(timeFile, os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		f.Close()
		now := time.Now()
		err = os.Chtimes(timeFile, now, now)
		if err != nil {
			log.Print("save the time: ", err)
		}
	}
}
