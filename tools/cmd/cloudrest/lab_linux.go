package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// The private LAN of the demo: two network namespaces, the device's and the phone's,
// joined by a veth pair. They vanish with the processes in them.
const (
	labDevice  = "demo-device" // hidden commands that this program runs itself as
	labPhone   = "demo-phone"
	labLink    = "lan0"
	labAddress = "192.168.77.1/24"
	labPhoneAt = "192.168.77.20/24"
)

// tied makes a child end with us, and in a group of its own, so that Ctrl-C reaches only
// us and the children are ended in order.
func tied() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// terminate asks the group of p to end; kill ends it.
func terminate(p *os.Process) { syscall.Kill(-p.Pid, syscall.SIGTERM) }
func kill(p *os.Process)      { syscall.Kill(-p.Pid, syscall.SIGKILL) }

// report is what the device's side of the private LAN prints at its end.
type report struct {
	Device  device `json:"device"`
	LeftOut string `json:"left_out,omitempty"`
	Error   string `json:"error,omitempty"`
}

// privateLAN runs a second gateway in a private LAN and a phone that looks for it.
func (d *demo) privateLAN(ctx context.Context) (device, error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return device{}, &leftOut{"the program ip is not installed (Debian: iproute2)"}
	}
	exe, err := os.Executable()
	if err != nil {
		return device{}, err
	}
	var out, errs bytes.Buffer
	begin := func(flags uintptr) (*exec.Cmd, error) {
		cmd := exec.CommandContext(ctx, exe, labDevice, "--bin", d.bin, "--state-dir", d.path("private"))
		cmd.Env, cmd.Stdout, cmd.Stderr = cleanEnv(), &out, &errs
		cmd.SysProcAttr = tied()
		cmd.SysProcAttr.Cloneflags = flags
		if flags&syscall.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends its children
		cmd.WaitDelay = grace
		return cmd, cmd.Start()
	}
	cmd, err := begin(syscall.CLONE_NEWNET) // as root
	if err != nil {
		cmd, err = begin(syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER) // as everyone else
	}
	if err != nil {
		return device{}, &leftOut{fmt.Sprintf("this system allows no private network (%v); make demo LAN=1 uses the real one", err)}
	}
	err = cmd.Wait()
	var r report
	if jsonErr := json.Unmarshal(out.Bytes(), &r); jsonErr != nil {
		return device{}, fmt.Errorf("private network: %w: %s", errors.Join(err, ctx.Err()), clip(strings.TrimSpace(errs.String()), 500))
	}
	switch {
	case r.LeftOut != "":
		return device{}, &leftOut{r.LeftOut + "; make demo LAN=1 uses the real one"}
	case r.Error != "":
		return device{}, errors.New(r.Error)
	}
	return r.Device, nil
}

// labCommands are the two sides of the private LAN.
func labCommands(env environment) []*settings.Command {
	var bin, dir string
	return []*settings.Command{{
		Name: labDevice, Hidden: true, Summary: "the device's side of the demo's private network",
		Declare: func(s *settings.Set) {
			s.Path(&bin, "bin", "folder with the programs", settings.Required())
			s.Path(&dir, "state-dir", "folder for state and logs", settings.Required())
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			found, err := labDeviceSide(ctx, bin, dir)
			r := report{Device: found}
			if left, ok := errors.AsType[*leftOut](err); ok {
				r.LeftOut = left.why
			} else if err != nil {
				r.Error = err.Error()
			}
			return json.NewEncoder(out).Encode(r)
		},
	}, {
		Name: labPhone, Hidden: true, Summary: "the phone's side of the demo's private network",
		Declare: func(s *settings.Set) {
			s.Path(&dir, "state-dir", "folder for state", settings.Required())
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			found, err := labPhoneSide(ctx, env, dir)
			r := report{Device: found}
			if err != nil {
				r.Error = err.Error()
			}
			return json.NewEncoder(out).Encode(r)
		},
	}}
}

// ip runs ip(8) once for each line.
func ip(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func labDeviceSide(ctx context.Context, bin, dir string) (found device, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return device{}, err
	}
	d := &demo{demoOptions: demoOptions{bin: bin, dir: dir}}
	defer d.stop()
	exe, err := os.Executable()
	if err != nil {
		return device{}, err
	}
	phone := exec.CommandContext(ctx, exe, labPhone, "--state-dir", dir)
	phone.Env, phone.Stderr = cleanEnv(), os.Stderr
	phone.SysProcAttr = tied()
	phone.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	say, err := phone.StdinPipe()
	if err != nil {
		return device{}, err
	}
	hear, err := phone.StdoutPipe()
	if err != nil {
		return device{}, err
	}
	if err := phone.Start(); err != nil {
		return device{}, &leftOut{fmt.Sprintf("this system allows no private network (%v)", err)}
	}
	defer func() {
		phone.Process.Kill()
		phone.Wait()
	}()
	if err := ip(ctx, "link set lo up",
		fmt.Sprintf("link add %s type veth peer name %s netns %d", labLink, labLink, phone.Process.Pid),
		"addr add "+labAddress+" brd + dev "+labLink, "link set "+labLink+" up"); err != nil {
		return device{}, &leftOut{fmt.Sprintf("this system allows no private network (%v)", err)}
	}
	if _, err := d.start("irrigation", "--listen", "127.0.0.1:8080"); err != nil {
		return device{}, err
	}
	gateway, err := d.start("cloudrestd", "run", "--origin", "http://127.0.0.1:8080", "--access", "origin", "--uid-source", "random", "--https", ":443", "--http", "off", "--state-dir", filepath.Join(dir, "gateway"),
		"--fifo", "off", "--mdns", "on", "--udp-discovery", "on")
	if err != nil {
		return device{}, err
	}
	err = eventually(ctx, gateway, func() error {
		s, _, err := identify(ctx, "127.0.0.1:443")
		if err == nil && s.Device.State != "known" {
			err = errors.New("the gateway does not know the service yet")
		}
		return err
	})
	if err != nil {
		return device{}, fmt.Errorf("private network: %w\n%s", err, gateway.log.last())
	}
	if _, err := io.WriteString(say, "the link is there\n"); err != nil {
		return device{}, err
	}
	line, err := bufio.NewReader(hear).ReadBytes('\n')
	if err != nil {
		return device{}, fmt.Errorf("private network: the phone ended: %w", err)
	}
	var r report
	if err := json.Unmarshal(line, &r); err != nil {
		return device{}, fmt.Errorf("private network: %w", err)
	}
	if r.Error != "" {
		return device{}, fmt.Errorf("private network: %s\n%s", r.Error, gateway.log.last())
	}
	return r.Device, nil
}

// labPhoneSide waits for the link, looks for the device, and talks to it.
func labPhoneSide(ctx context.Context, env environment, dir string) (device, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	if _, err := bufio.NewReader(env.stdin).ReadString('\n'); err != nil {
		return device{}, fmt.Errorf("wait for the link: %w", err)
	}
	if err := ip(ctx, "link set lo up", "addr add "+labPhoneAt+" brd + dev "+labLink, "link set "+labLink+" up"); err != nil {
		return device{}, err
	}
	found, err := findBoth(ctx, env.discover, func(e device) bool { return e.ID != "" && e.Name == sample.Name })
	if err != nil {
		return device{}, err
	}
	r := reach{pinsFile: filepath.Join(dir, "pins.json"), wait: 5 * time.Second, notes: io.Discard, discover: env.discover}
	p, err := openPins(r.pinsFile)
	if err != nil {
		return device{}, err
	}
	m, err := r.settle(ctx, p, found)
	if err != nil {
		return device{}, err
	}
	var zones []sample.Zone
	if err := m.call(ctx, http.MethodGet, "/zones", "", &zones); err != nil {
		return device{}, err
	}
	if len(zones) != sample.Zones {
		return device{}, fmt.Errorf("%d zones came, want %d", len(zones), sample.Zones)
	}
	return found, nil
}
