package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/sse"
)

// listener follows one stream of events, as a phone does: after a break it comes back
// with the last id it saw.
type listener struct {
	mu   sync.Mutex
	seen []sse.Event // guarded by mu; without heartbeats
}

// listen runs until the test ends.
func (s *stack) listen(t *testing.T, url string) *listener {
	t.Helper()
	l := &listener{}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	ready := make(chan struct{})
	wg.Go(func() {
		last := ""
		var once sync.Once
		for ctx.Err() == nil {
			r := s.request(ctx, "GET", url, nil)
			if last != "" {
				r.Header.Set("Last-Event-ID", last)
			}
			if resp, err := s.client.Do(r); err == nil {
				if resp.StatusCode == 200 {
					once.Do(func() { close(ready) })
					for rd := sse.NewReader(resp.Body); ; {
						e, err := rd.Next()
						if err != nil {
							break
						}
						l.mu.Lock()
						l.seen = append(l.seen, e)
						l.mu.Unlock()
						last = rd.LastID()
					}
				}
				resp.Body.Close()
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatalf("no stream of events from %s", url)
	}
	return l
}

// lines maps each notification's text to its id, and fails on a text or id seen twice
// or a reset.
func (l *listener) lines() (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	byLine, byID := map[string]string{}, map[string]string{}
	for _, e := range l.seen {
		if e.Name == "reset" {
			return nil, &fatalError{fmt.Errorf("the stream was reset: %s", e.Data)}
		}
		line := string(e.Data)
		if old, ok := byID[e.ID]; ok {
			return nil, &fatalError{fmt.Errorf("id %s came twice, with %q and %q", e.ID, old, line)}
		}
		if old, ok := byLine[line]; ok {
			return nil, &fatalError{fmt.Errorf("line %q came twice, as %s and %s", line, old, e.ID)}
		}
		byLine[line], byID[e.ID] = e.ID, line
	}
	return byLine, nil
}

// has waits until every line was seen.
func (l *listener) has(t *testing.T, what string, want ...string) map[string]string {
	t.Helper()
	var got map[string]string
	eventually(t, what, func() (err error) {
		if got, err = l.lines(); err != nil {
			return err
		}
		for _, line := range want {
			if got[line] == "" {
				return fmt.Errorf("line %q is missing; %d lines came", line, len(got))
			}
		}
		return nil
	})
	return got
}

func (s *stack) notify(lines ...string) {
	s.t.Helper()
	f, err := os.OpenFile(s.fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for _, line := range lines {
		if _, err := io.WriteString(f, line+"\n"); err != nil {
			s.t.Fatal(err)
		}
	}
}

// One line in the pipe reaches listeners on both paths under the same id.
func TestNotificationOnBothPaths(t *testing.T) {
	s := newStack(t)
	lan := s.listen(t, s.lan("/.cloudrest/v1/events"))
	relay := s.listen(t, s.relayURL("/v1/devices/"+s.device+"/events"))
	s.notify("zone 1 started", "zone 1 stopped")
	a := lan.has(t, "events on the LAN", "zone 1 started", "zone 1 stopped")
	b := relay.has(t, "events through the relay", "zone 1 started", "zone 1 stopped")
	if len(a) != 2 || len(b) != 2 {
		t.Errorf("%d and %d events, want 2 and 2", len(a), len(b))
	}
	for line, id := range a {
		if b[line] != id {
			t.Errorf("%q is %s on the LAN and %s through the relay", line, id, b[line])
		}
	}
}

// kill -9 of the relay: the LAN does not notice, the device comes back, and no
// notification is lost or doubled, from before, during and after.
func TestRelayKilled(t *testing.T) {
	s := newStack(t)
	lan := s.listen(t, s.lan("/.cloudrest/v1/events"))
	relay := s.listen(t, s.relayURL("/v1/devices/"+s.device+"/events"))
	s.notify("before")
	relay.has(t, "event before the kill", "before")

	s.relay.stop(syscall.SIGKILL)
	s.notify("during")
	lan.has(t, "events on the LAN without a relay", "before", "during")
	if err := s.alive(s.lan("/zones")); err != nil {
		t.Errorf("LAN without a relay: %v", err)
	}

	s.startRelay()
	eventually(t, "remote path after the relay came back", func() error { return s.alive(s.remote("/zones"), s.gateway, s.relay) })
	s.notify("after")
	relay.has(t, "events after the relay came back", "before", "during", "after")
}

// kill -9 of the gateway: the relay says 503 and since when; after the start the device
// is back under the same id, and what the journal took is still there.
func TestGatewayKilled(t *testing.T) {
	s := newStack(t)
	relay := s.listen(t, s.relayURL("/v1/devices/"+s.device+"/events"))
	lan := s.listen(t, s.lan("/.cloudrest/v1/events"))
	s.notify("before")
	before := lan.has(t, "event before the kill", "before")["before"]
	relay.has(t, "event before the kill, remote", "before")

	s.gateway.stop(syscall.SIGKILL)
	eventually(t, "the relay's word that the device is offline", func() error {
		resp, body, err := s.get(s.remote("/zones"))
		if err != nil {
			return err
		}
		var offline struct {
			Error          int
			Message, Since string
		}
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || json.Unmarshal(body, &offline) != nil || offline.Error != 503 {
			return fmt.Errorf("%s %q, %w", resp.Status, body, errNotYet)
		}
		if since, err := time.Parse(time.RFC3339, offline.Since); err != nil || time.Since(since) > patience || time.Until(since) > time.Second {
			return &fatalError{fmt.Errorf("offline since %q, want a moment ago", offline.Since)}
		}
		return nil
	})

	s.startGateway()
	eventually(t, "remote path after the gateway came back", func() error { return s.alive(s.remote("/zones"), s.gateway, s.relay) })
	s.notify("after")
	got := lan.has(t, "events after the gateway came back", "before", "after")
	if got["before"] != before {
		t.Errorf("the event from before is %s now, was %s", got["before"], before)
	}
	relay.has(t, "events through the relay after the gateway came back", "before", "after")
}

// The origin goes away and comes back: 502 on both paths meanwhile, nothing else.
func TestOriginRestarted(t *testing.T) {
	s := newStack(t)
	s.origin.stop(syscall.SIGKILL)
	for name, url := range map[string]string{"LAN": s.lan("/zones"), "relay": s.remote("/zones")} {
		resp, body, err := s.get(url)
		if err != nil || resp.StatusCode != 502 {
			t.Errorf("%s without an origin: %v %q %v, want 502", name, resp, body, err)
		}
	}
	if err := s.alive(s.lan("/.cloudrest/v1/status"), s.gateway); err != nil {
		t.Errorf("the gateway's own page without an origin: %v", err)
	}
	s.startOrigin()
	eventually(t, "LAN after the origin came back", func() error { return s.alive(s.lan("/zones"), s.gateway, s.origin) })
	eventually(t, "relay after the origin came back", func() error { return s.alive(s.remote("/zones"), s.gateway, s.origin) })
}

// SIGTERM of the relay: requests in flight finish, then it ends with code 0.
func TestRelayDrains(t *testing.T) {
	s := newStack(t)
	type result struct {
		status int
		err    error
	}
	results := make(chan result, 1)
	go func() {
		resp, _, err := s.get(s.remote("/diagnostics")) // takes some seconds
		if err != nil {
			results <- result{0, err}
			return
		}
		results <- result{resp.StatusCode, nil}
	}()
	eventually(t, "the slow request to reach the gateway", func() error {
		var status struct {
			Origin struct {
				InOrigin int `json:"in_origin"`
			}
		}
		s.getJSON(s.lan("/.cloudrest/v1/status"), &status)
		if status.Origin.InOrigin == 0 {
			return errNotYet
		}
		return nil
	})
	if err := s.relay.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := <-results; r.status != 200 {
		t.Errorf("a request in flight at SIGTERM = %d, %v, want 200", r.status, r.err)
	}
	select {
	case <-s.relay.done:
		if code := s.relay.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit code = %d, want 0", code)
		}
	case <-time.After(patience):
		t.Error("the relay does not end")
	}
}

// A 1.5 GB body that is cut by the client frees everything: the next request is served.
func TestClientGoesAway(t *testing.T) {
	s := newStack(t)
	for name, url := range map[string]string{"LAN": s.lan("/firmware?size=1500000000"), "relay": s.remote("/firmware?size=1500000000")} {
		for range 20 { // more than there are places in the origin and on the tether
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := s.client.Do(s.request(ctx, "GET", url, nil))
			if err != nil {
				cancel()
				t.Fatal(err)
			}
			if resp.StatusCode == http.StatusOK {
				if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", name, err)
				}
			}
			cancel()
			resp.Body.Close()
		}
		short := strings.Replace(url, "1500000000", "1000", 1)
		eventually(t, name+" after clients that went away", func() error { return s.alive(short, s.gateway, s.relay) })
	}
}
