package device

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	askEvery = 2 * time.Second
	askLimit = 5 * time.Second
	// goodInARow is how many good answers, askEvery apart, make a version good: a gateway
	// that crashes and is restarted answers now and then.
	goodInARow = 5
)

// StatusURL is where the gateway tells its state.
const StatusURL = "https://127.0.0.1/.cloudrest/v1/status"

// Wait returns nil when everything has answered well for a while, or what was wrong when
// patience is over.
func Wait(ctx context.Context, patience time.Duration, url string) error {
	// The certificate is the gateway's own and this is loopback.
	client := &http.Client{Timeout: askLimit, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	end := time.Now().Add(patience) // monotonic: the clock may be set meanwhile
	good := 0
	for {
		err := healthy(ctx, client, url)
		if err == nil {
			if good++; good == goodInARow {
				return nil
			}
		} else {
			good = 0
			if time.Now().After(end) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(askEvery):
		}
	}
}

const maxStatus = 1 << 20 // bytes of the gateway's answer

func healthy(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the gateway answers %s", res.Status)
	}
	var s struct {
		Origin struct{ State string }
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxStatus)).Decode(&s); err != nil {
		return fmt.Errorf("read the gateway's status: %w", err)
	}
	if s.Origin.State != "up" {
		return fmt.Errorf("the maker's service is %s", s.Origin.State)
	}
	return nil
}
