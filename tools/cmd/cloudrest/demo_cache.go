package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// What a storm of pollers is in the demo.
const (
	stormClients = 50
	stormPause   = 100 * time.Millisecond // of one client between two requests
	stormTime    = 2 * time.Second        // with the cache, and again past it
	absorbed     = 4                      // times as many requests reach the service without the cache, at least
)

// storm is what came of one.
type storm struct {
	answers  int64  // 200
	admitted uint64 // requests that reached the service
	took     time.Duration
}

func (s storm) perSecond(n float64) float64 { return n / s.took.Seconds() }

// pollStorm has many clients poll a slow resource: past the cache, as if there were none, and
// with it.
func (d *demo) pollStorm(ctx context.Context) (string, error) {
	p, err := openPins(d.path("pins.json"))
	if err != nil {
		return "", err
	}
	known := p.find(string(d.id))
	if len(known) != 1 {
		return "", errors.New("the device is not remembered")
	}
	clients := make([]*remote, stormClients)
	for i := range clients { // each with a connection of its own
		clients[i] = lanRemote(d.lanPath.base, known[0])
		defer clients[i].client.CloseIdleConnections()
	}
	without, err := d.poll(ctx, clients, "no-store")
	if err != nil {
		return "", err
	}
	with, err := d.poll(ctx, clients, "")
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%d clients: %.0f requests a second at the service without the cache, %.1f with it; %.0f answers a second, then %.0f",
		stormClients, without.perSecond(float64(without.admitted)), with.perSecond(float64(with.admitted)), without.perSecond(float64(without.answers)), with.perSecond(float64(with.answers)))
	// Few or many, no exact number: on a busy machine requests of the first storm are still
	// let in while the second has begun, and answers are stored late.
	if with.admitted*absorbed > without.admitted {
		return "", fmt.Errorf("the cache does not absorb the storm, want at most a %dth of the requests at the service: %s", absorbed, text)
	}
	return text, nil
}

// poll polls for stormTime. control is the clients' Cache-Control.
func (d *demo) poll(ctx context.Context, clients []*remote, control string) (s storm, err error) {
	admitted := func() (uint64, error) {
		var st struct{ Origin struct{ Admitted uint64 } }
		err := d.lanPath.call(ctx, http.MethodGet, tether.OwnPrefix+"v1/status", "", &st)
		return st.Origin.Admitted, err
	}
	before, err := admitted()
	if err != nil {
		return s, err
	}
	begin := time.Now()
	stormy, cancel := context.WithTimeout(ctx, stormTime)
	defer cancel()
	var wg sync.WaitGroup
	var answers atomic.Int64
	failed := make(chan error, len(clients)) // at most one of each
	for _, m := range clients {
		wg.Go(func() {
			for stormy.Err() == nil {
				code, err := m.look(stormy, control)
				switch {
				case stormy.Err() != nil:
					return
				case err == nil && code == http.StatusOK:
					answers.Add(1)
				case err == nil && code == http.StatusServiceUnavailable: // the queue before the service is full
				default:
					failed <- fmt.Errorf("GET %s: status %d: %w", sample.WeatherPath, code, err)
					return
				}
				select {
				case <-stormy.Done():
				case <-time.After(stormPause):
				}
			}
		})
	}
	wg.Wait()
	s.took = time.Since(begin)
	select {
	case err := <-failed:
		return s, err
	default:
	}
	after, err := admitted()
	s.answers, s.admitted = answers.Load(), after-before
	return s, err
}

// look asks for the weather once.
func (m *remote) look(ctx context.Context, control string) (status int, err error) {
	req, err := m.request(ctx, http.MethodGet, sample.WeatherPath, nil)
	if err != nil {
		return 0, err
	}
	if control != "" {
		req.Header.Set("Cache-Control", control)
	}
	res, err := m.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}
