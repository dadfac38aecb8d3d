// Command zero is init, the first process, on a Raspberry Pi Zero W or 1: it runs from the
// initial RAM file system that is the whole system. It loads the kernel's modules, mounts
// the partition for state, runs the programs of the image and starts them again when they
// end, feeds the watchdog, takes updates and decides whether one stays. There is no shell.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/zerodisk"
)

// system is the running system.
type system struct {
	info    *device.Info
	slot    zerodisk.Slot // that runs
	boot    string        // names this start
	memory  device.Memory
	kids    *children
	restart chan struct{} // closed by Restart
	once    sync.Once

	mu    sync.Mutex // guards phase
	phase string     // see device.State
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "zero: it is init and cannot run otherwise")
		os.Exit(1)
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGINT) // the DHCP client sends the first one
	log.SetFlags(0)
	log.SetPrefix("init: ")
	s := newScreen()
	log.SetOutput(s)
	if err := run(s); err != nil {
		log.Print(err)
		// Where it fails here it fails again, but not in the other slot.
		time.Sleep(failWait)
	}
	syscall.Sync()
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	select {} // the kernel must not see init end
}

const (
	failWait = 10 * time.Second // to read what is on the screen
	diskWait = 30 * time.Second // until the SD card is there
	stopWait = 10 * time.Second // for programs to end
)

func run(console screen) error {
	if err := mountKernel(); err != nil {
		return err
	}
	words := cmdline()
	info, err := device.ReadInfo(device.InfoFile)
	if err != nil {
		return err
	}
	s := &system{info: info, memory: device.Folder, kids: newChildren(console), restart: make(chan struct{}), phase: device.Normal}
	if s.slot, err = slotOf(words); err != nil {
		return err
	}
	log.Printf("%s, slot %c", info.Version, s.slot)
	if !words[zerodisk.NoWatchdog] {
		go feed()
	}
	if err := waitFor(diskWait, bootDevice, permDevice); err != nil {
		return err
	}
	if words[zerodisk.TrialFlag] {
		// Before anything else can go wrong: the next start is one of the other slot.
		s.phase = device.Trial
		if err := s.choose(s.slot.Other(), false); err != nil {
			return err
		}
		log.Print("on trial: the next start is one of the other slot")
	}
	for _, m := range info.Modules {
		if err := loadModule(m); err != nil {
			log.Print(err) // a board without that hardware works without
		}
	}
	if err := mountState(); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(info.Hostname)); err != nil {
		log.Print("set host name: ", err)
	}
	if err := loopback(); err != nil {
		return err
	}
	floor(time.Unix(info.Sequence, 0))
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s.boot = strings.TrimSpace(string(id))

	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, p := range info.Programs {
		parts.Go(func() { s.kids.supervise(ctx, p) })
	}
	parts.Go(func() { s.network(ctx, &parts) })
	parts.Go(func() { s.serve(ctx) })
	parts.Go(func() { s.judge(ctx) })
	parts.Go(func() { keepTime(ctx) })

	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	select {
	case <-s.restart:
	case <-term:
	}
	log.Print("restarting")
	cancel()
	s.kids.stop(stopWait)
	ended := make(chan struct{})
	go func() { parts.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(stopWait):
	}
	saveTime()
	return unmountState()
}

const (
	lookEvery   = 2 * time.Second
	maxAdapters = 4
)

// network runs a DHCP client for the adapter that the image names, or for each that comes.
func (s *system) network(ctx context.Context, parts *sync.WaitGroup) {
	running := map[string]bool{}
	for ctx.Err() == nil && len(running) < maxAdapters {
		names := []string{s.info.Interface}
		if s.info.Interface == "" {
			names = nil
			found, _ := filepath.Glob("/sys/class/net/*/device") // none of the kernel's own, like lo
			for _, f := range found {
				names = append(names, filepath.Base(filepath.Dir(f)))
			}
		}
		for _, n := range names {
			if !running[n] {
				running[n] = true
				parts.Go(func() {
					s.kids.supervise(ctx, device.Program{Name: "dhcp " + n, Args: []string{"/bin/dhcp", "-interface=" + n}, Dir: "/"})
				})
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}

// slotOf reads the kernel's command line.
func slotOf(words map[string]bool) (zerodisk.Slot, error) {
	for _, s := range []zerodisk.Slot{'a', 'b'} {
		if words[zerodisk.SlotFlag+string(rune(s))] {
			return s, nil
		}
	}
	return 0, errors.New("the kernel's command line names no slot")
}

// judge decides about a version on trial.
func (s *system) judge(ctx context.Context) {
	if s.phase == device.Normal {
		if err := s.memory.Started(s.info.Sequence); err != nil {
			log.Print("remember the version: ", err)
		}
		return
	}
	err := device.Wait(ctx, s.info.Trial, device.StatusURL)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = s.memory.Settle(s.info.Sequence)
	}
	if err == nil {
		err = s.choose(s.slot, false)
	}
	if err != nil {
		log.Print("going back because ", err)
		if err := s.memory.GiveUp(err); err != nil {
			log.Print(err)
		}
		s.Restart()
		return
	}
	s.mu.Lock()
	s.phase = device.Normal
	s.mu.Unlock()
	log.Printf("%s stays", s.info.Version)
}

// serve runs the server for updates.
func (s *system) serve(ctx context.Context) {
	server := &device.Server{Info: s.info, Memory: s.memory, Machine: s}
	for ctx.Err() == nil {
		l, err := net.Listen("tcp", ":"+device.Port)
		if err == nil {
			err = server.Run(ctx, l)
			l.Close()
		}
		if err != nil {
			log.Print("serve updates: ", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// Restart implements device.Machine.
func (s *system) Restart() {
	s.once.Do(func() { time.AfterFunc(device.Soon, func() { close(s.restart) }) })
}

// Run implements device.Machine.
func (s *system) Run(ctx context.Context, argv []string) ([]byte, error) {
	var out ring
	end, err := s.kids.start(argv, "/", &out)
	if err != nil {
		return nil, err
	}
	select {
	case status := <-end.done:
		select {
		case <-end.said:
		case <-time.After(time.Second): // a child of its own has the pipe
		}
		if status != 0 {
			return out.bytes(), errors.New("it ended with status " + strconv.Itoa(int(status)))
		}
		return out.bytes(), nil
	case <-ctx.Done():
		syscall.Kill(end.pid, syscall.SIGKILL)
		<-end.done
		return out.bytes(), ctx.Err()
	}
}

// Log implements device.Machine.
func (s *system) Log(_ context.Context, program string) ([]byte, error) { return s.kids.log(program) }

// State implements device.Machine.
func (s *system) State(st *device.State) {
	s.mu.Lock()
	st.Phase = s.phase
	s.mu.Unlock()
	st.Boot = s.boot
	model, _ := os.ReadFile("/proc/device-tree/model")
	st.Model = strings.TrimRight(string(model), "\x00\n")
}
