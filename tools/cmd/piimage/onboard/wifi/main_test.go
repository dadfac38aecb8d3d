package main

import (
	"bytes"
	"context"
	"errors"
	"log"
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
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			(&joiner{a, device.WiFi{SSID: "Garden", PSK: "correct horse"}}).run(ctx)
		}()
		time.Sleep(time.Minute)
		a.do(func() {
			if a.joins != 0 {
				t.Errorf("%d attempts without a radio, want none", a.joins)
			}
			a.there = true // but the router is off
		})
		time.Sleep(time.Hour)
		a.do(func() {
			if a.joins < 20 || a.joins > 40 {
				t.Errorf("%d attempts in an hour, want about 27: a pause of at most %v", a.joins, maxPause)
			}
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
			a.on = false // lost
		})
		time.Sleep(lookEvery + joinWait)
		a.do(func() {
			if !a.on {
				t.Error("not connected again")
			}
		})
		cancel()
		<-ended
		if said := text.String(); strings.Contains(said, "horse") || strings.Count(said, "\n") > 6 {
			t.Errorf("logged %q: want changes only, and no passphrase", said)
		}
	})
}
