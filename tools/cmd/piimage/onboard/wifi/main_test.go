package main

import (
	"bytes"
	"context"
	"errors"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
)

// air is a radio in memory.
type air struct {
	mu        sync.Mutex
	there, on bool // the adapter, the connection
	open      bool // the network takes us
	joins     int
}

func (a *air) find() (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.there {
		return "", errNone
	}
	return "wlan0", nil
}
func (a *air) connected(string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.on
}

// do changes or reads something between two moves of the joiner.
func (a *air) do(f func()) {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *air) join(_ string, n device.WiFi) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.joins++
	if n.SSID != "Garden" || n.PSK != "correct horse" {
		return errors.New("another network")
	}
	a.on = a.open
	return nil
}

func TestJoiner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log.SetOutput(&text)
		defer log.SetOutput(log.Default().Writer())
		a := &air{}
		begun, ended := 0, 0 // jobs of address
		address := func(ctx context.Context, name string) {
			if name != "wlan0" {
				t.Errorf("an address for %q, want wlan0", name)
			}
			a.mu.Lock()
			begun++
			a.mu.Unlock()
			<-ctx.Done()
			time.Sleep(time.Second) // a program's end takes a while
			a.mu.Lock()
			ended++
			a.mu.Unlock()
		}
		jobs := func(when string, wantBegun, wantEnded int) { // called with a.mu
			if begun != wantBegun || ended != wantEnded {
				t.Errorf("%s: %d DHCP clients begun and %d ended, want %d and %d", when, begun, ended, wantBegun, wantEnded)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			(&joiner{a, device.WiFi{SSID: "Garden", PSK: "correct horse"}, address}).run(ctx)
		}()
		time.Sleep(time.Minute)
		a.do(func() {
			if a.joins != 0 {
				t.Errorf("%d attempts without a radio, want none", a.joins)
			}
			jobs("without a radio", 0, 0)
			a.there = true // but the router is off
		})
		time.Sleep(time.Hour)
		a.do(func() {
			if a.joins < 20 || a.joins > 40 {
				t.Errorf("%d attempts in an hour, want about 27: a pause of at most %v", a.joins, maxPause)
			}
			jobs("while the router is off", 0, 0)
			a.open = true
		})
		time.Sleep(maxPause + joinWait + lookEvery)
		tries := 0
		a.do(func() {
			if !a.on {
				t.Error("not connected after the router is on again")
			}
			tries = a.joins
		})
		time.Sleep(time.Hour)
		a.do(func() {
			if a.joins != tries {
				t.Errorf("%d attempts while connected, want none", a.joins-tries)
			}
			jobs("while connected", 1, 0)
			a.on, a.open = false, false // lost
		})
		time.Sleep(2 * lookEvery)
		a.do(func() {
			jobs("when the connection is lost", 1, 1)
			a.open = true
		})
		time.Sleep(2 * (lookEvery + joinWait))
		a.do(func() {
			if !a.on {
				t.Error("not connected again")
			}
			jobs("when it is there again", 2, 1)
			a.there = false // the adapter is gone
		})
		time.Sleep(2 * lookEvery)
		a.do(func() {
			jobs("when the radio is gone", 2, 2)
			a.there = true
		})
		time.Sleep(2 * lookEvery)
		cancel()
		<-done
		a.mu.Lock()
		jobs("at the end", 3, 3)
		a.mu.Unlock()
		if said := text.String(); strings.Contains(said, "horse") || strings.Count(said, "\n") > 9 {
			t.Errorf("logged %q: want changes only, and no passphrase", said)
		}
	})
}

// A DHCP client that ends at once is started again, after pauses that grow.
func TestDHCPClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log.SetOutput(&text)
		defer log.SetOutput(log.Default().Writer())
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		dhcp("/no such program").run(ctx, "wlan0")
		if err := ctx.Err(); err == nil {
			t.Error("it gave up")
		}
		said := text.String()
		if n := strings.Count(said, "\n"); n < 30 || n > 40 || !strings.Contains(said, "again in 1s\n") || !strings.Contains(said, "again in 2s\n") {
			t.Errorf("%d starts in an hour, want about 36: pauses of %v, then twice that, up to %v\n%s", n, firstPause, maxPause, said)
		}
	})
}

// The client is told which adapter, and ends when the connection does.
func TestDHCPClientEnds(t *testing.T) {
	dir := t.TempDir()
	program, told := filepath.Join(dir, "dhcp"), filepath.Join(dir, "told")
	// The file appears whole.
	script := "#!/bin/sh\necho \"$*\" > " + told + ".new && mv " + told + ".new " + told + " && exec sleep 1000\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	release := start(t.Context(), "wlan0", dhcp(program).run)
	defer release()
	var text []byte
	for end := time.Now().Add(time.Minute); text == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		text, _ = os.ReadFile(told)
	}
	if got, want := string(text), "-interface=wlan0\n"; got != want {
		t.Errorf("it was started with %q, want %q", got, want)
	}
	release() // returns only when it has ended
}

// Modules that cannot be loaded are worth a line each.
func TestLoadModules(t *testing.T) {
	var text bytes.Buffer
	log.SetOutput(&text)
	defer log.SetOutput(log.Default().Writer())
	loadModules([]string{"/no such/a.ko", "/no such/b.ko"})
	if said := text.String(); strings.Count(said, "\n") != 2 || !strings.Contains(said, "b.ko") {
		t.Errorf("logged %q, want both", said)
	}
}
