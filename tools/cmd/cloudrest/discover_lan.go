package main

import (
	"context"
	"sync"

	"github.com/cloudrest/cloudrest/firmware/discovery/beacon"
)

// discoverLAN looks by both ways at once until ctx is done; then the channel is closed.
// One way that does not work here does not stop the other.
func discoverLAN(ctx context.Context, interfaces []string) <-chan sighting {
	heard := make(chan sighting, 16)
	tell := func(s sighting) {
		select {
		case heard <- s:
		case <-ctx.Done():
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { byUDP(ctx, interfaces, tell) })
	go func() {
		wg.Wait()
		<-ctx.Done()
		close(heard)
	}()
	return heard
}

func byUDP(ctx context.Context, interfaces []string, tell func(sighting)) {
	answers, err := beacon.Ask(ctx, beacon.AskConfig{Interfaces: interfaces})
	if err != nil {
		tell(sighting{way: "udp", trouble: err})
		return
	}
	for a := range answers {
		tell(sighting{way: "udp", name: a.Name, mac: a.MAC, url: a.URL})
	}
}
