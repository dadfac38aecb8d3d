// Package gokr is what our programs in an image of gokrazy need of it: which partition runs,
// and gokrazy's own init, which writes the other one.
package gokr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
)

// The numbers of gokrazy's partitions.
const (
	bootNumber = 1
	rootA      = 2
	rootB      = 3
)

// Disk is the disk that runs.
type Disk struct {
	Boot  string // device file of the boot partition
	Other string // device file of the root that does not run
	Slot  string // the root that runs: A or B
	Trial bool   // the other root runs, for this boot only
}

var rootFlag = regexp.MustCompile(`root=PARTUUID=[0-9a-fA-F-]+/PARTNROFF=([0-9]+)`)

// FindDisk looks at the kernel's command line and at what is mounted.
func FindDisk() (Disk, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Disk{}, err
	}
	m := rootFlag.FindSubmatch(cmdline)
	if m == nil {
		return Disk{}, errors.New("the kernel's command line names no root partition of gokrazy")
	}
	offset, _ := strconv.Atoi(string(m[1]))
	var st syscall.Stat_t
	if err := syscall.Stat("/", &st); err != nil {
		return Disk{}, fmt.Errorf("look at /: %w", err)
	}
	major, minor := st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&^0xff
	folder, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return Disk{}, fmt.Errorf("find the root partition: %w", err)
	}
	number := func(folder string) int {
		text, _ := os.ReadFile(filepath.Join(folder, "partition"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	running := number(folder)
	all, err := filepath.Glob(filepath.Join(filepath.Dir(folder), "*"))
	if err != nil {
		return Disk{}, err
	}
	d := Disk{
		Slot: string(rune('A' + running - rootA)),
		// Where the trial could not even start, init goes on with the old root.
		Trial: strings.Contains(string(cmdline), bootpart.TrialFlag) && running != bootNumber+offset,
	}
	for _, p := range all {
		switch n := number(p); {
		case n == bootNumber:
			d.Boot = "/dev/" + filepath.Base(p)
		case n == rootA+rootB-running:
			d.Other = "/dev/" + filepath.Base(p)
		}
	}
	if d.Boot == "" || d.Other == "" {
		return Disk{}, fmt.Errorf("no boot partition or no other root beside %s", folder)
	}
	return d, nil
}

// Tidy takes the traces of earlier trials off the kernel's command line.
func (d Disk) Tidy() error {
	f, err := os.OpenFile(d.Boot, os.O_RDWR|syscall.O_SYNC, 0)
	if err != nil {
		return fmt.Errorf("open boot partition: %w", err)
	}
	defer f.Close()
	_, err = bootpart.Tidy(f)
	return err
}

// What init is asked.
const (
	Reboot     = "reboot"
	Switch     = "update/switch"   // the other root is the one to boot from now on
	Testboot   = "update/testboot" // ... at the next boot only
	updateRoot = "update/root"     // writes the other root
	updateBoot = "update/bootonly" // writes the boot partition
)

const maxAnswer = 1 << 20 // bytes

// Ask posts to gokrazy's init on its UNIX socket.
func Ask(path string) error {
	query := ""
	if path == Reboot {
		// Init ends all services first, this one too: it must not wait for the answer.
		query = "?async=true&wait_per_signal=15s"
	}
	_, err := do(context.Background(), http.MethodPost, path+query, nil, -1)
	return err
}

// PutRoot writes the root that does not run, PutBoot the boot partition.
func PutRoot(r io.Reader, size int64) error { return put(updateRoot, r, size) }

// PutBoot writes the boot partition, which has no second one.
func PutBoot(r io.Reader, size int64) error { return put(updateBoot, r, size) }

func put(path string, r io.Reader, size int64) error {
	_, err := do(context.Background(), http.MethodPut, path, io.LimitReader(r, size), size)
	return err
}

// Log reads what a program of the image printed, until ctx is done: init goes on sending.
func Log(ctx context.Context, path, stream string) ([]byte, error) {
	text, err := do(ctx, http.MethodGet, "log?stream="+stream+"&path="+path, nil, -1)
	if ctx.Err() != nil {
		err = nil
	}
	return text, err
}

func do(ctx context.Context, method, path string, body io.Reader, size int64) ([]byte, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", "/run/gokrazy-http.sock")
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://init/"+path, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = max(size, 0)
	// An image without a password has no file, and its init asks for none here.
	password, err := os.ReadFile("/etc/gokr-pw.txt")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	req.SetBasicAuth("gokrazy", strings.TrimSpace(string(password)))
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask init to %s: %w", path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask init to %s: %s: %s", path, res.Status, bytes.TrimSpace(text))
	}
	return text, err
}
