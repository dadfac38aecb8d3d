// Command admin runs in an image of gokrazy that takes signed updates only. gokrazy's own
// update interface writes whatever somebody with its password sends; in such an image it
// listens on a UNIX socket only, and admin is what listens on the network.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/gokr"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
)

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Print(err)
		time.Sleep(2 * time.Second)
		os.Exit(1) // gokrazy starts it again
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	info, err := device.ReadInfo(device.InfoFile)
	if err != nil {
		return err
	}
	disk, err := gokr.FindDisk()
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":"+device.Port)
	if err != nil {
		return err
	}
	defer l.Close()
	s := &device.Server{Info: info, Memory: device.Folder, Machine: &machine{disk, strings.TrimSpace(string(boot))}}
	return s.Run(ctx, l)
}

// machine implements device.Machine.
type machine struct {
	disk gokr.Disk
	boot string
}

// The parts of a version: the root file system, and perhaps the boot partition.
const (
	rootPart = "root"
	bootPart = "boot"
)

func (m *machine) Room(part string) int64 {
	switch part {
	case rootPart:
		return bootpart.RootSize
	case bootPart:
		return bootpart.BootSize
	}
	return 0
}

func (m *machine) Complete(parts []string) bool { return slices.Contains(parts, rootPart) }

func (m *machine) Put(part string, size int64, r io.Reader) error {
	if part == bootPart {
		return gokr.PutBoot(r, size)
	}
	return gokr.PutRoot(r, size)
}

func (m *machine) Verify(part string, size int64, sum [sha256.Size]byte) error {
	name := m.disk.Other
	if part == bootPart {
		return nil // init keeps its choice of the root in it, so it has other bytes by now
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, size)); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), sum[:]) {
		return update.ErrDigest
	}
	return nil
}

func (m *machine) State(st *device.State) {
	st.Boot, st.Phase = m.boot, device.Normal
	if m.disk.Trial {
		st.Phase = device.Trial
	}
	model, _ := os.ReadFile("/proc/device-tree/model")
	st.Model = strings.TrimRight(string(model), "\x00\n")
}

func (m *machine) Try() error { return gokr.Ask(gokr.Testboot) }

func (m *machine) Restart() {
	time.AfterFunc(device.Soon, func() {
		if err := gokr.Ask(gokr.Reboot); err != nil {
			log.Print("restart: ", err)
		}
	})
}

func (m *machine) Run(ctx context.Context, argv []string) ([]byte, error) {
	return exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
}

// listen is how long to wait for what a program printed.
const listen = time.Second

func (m *machine) Log(ctx context.Context, program string) ([]byte, error) {
	if program == "" || strings.ContainsAny(program, "/?&") {
		return nil, errors.New("there is no such program")
	}
	var all []byte
	for _, stream := range []string{"stdout", "stderr"} {
		ctx, cancel := context.WithTimeout(ctx, listen)
		text, err := gokr.Log(ctx, url.QueryEscape("/user/"+program), stream)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		all = append(all, text...)
	}
	return all, nil
}
