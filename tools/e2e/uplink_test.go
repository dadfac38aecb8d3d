package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tools/netns"
)

// roles are what copies of this test binary do inside namespaces.
var roles = map[string]netns.Role{"client": clientRole, "lan": lanRole}

// clientRole makes one request for each line "<url> <token or ->", and answers with a
// line of JSON. "events <url> <token>" begins to print events, each as a line.
func clientRole(ctx context.Context, caFile string, in <-chan string, out io.Writer) error {
	client, err := dialer(caFile)
	if err != nil {
		return err
	}
	lines := make(chan []byte) // one writer at a time
	go func() {
		for b := range lines {
			out.Write(append(b, '\n'))
		}
	}()
	say := func(v any) {
		b, _ := json.Marshal(v) // plain fields
		lines <- b
	}
	request := func(url, token string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			return nil, err
		}
		if token != "-" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		return client.Do(r)
	}
	for line := range in {
		words := strings.Fields(line)
		if words[0] == "events" {
			resp, err := request(words[1], words[2])
			if err != nil {
				return err
			}
			go func() {
				defer resp.Body.Close()
				for rd := sse.NewReader(resp.Body); ; {
					e, err := rd.Next()
					if err != nil {
						return
					}
					say(answer{Event: string(e.Data), ID: e.ID})
				}
			}()
			say(answer{Status: resp.StatusCode})
			continue
		}
		begin := time.Now()
		a := answer{}
		if resp, err := request(words[0], words[1]); err != nil {
			a.Err = err.Error()
		} else {
			b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			resp.Body.Close()
			if a.Status, a.Body = resp.StatusCode, string(b); err != nil {
				a.Err = err.Error()
			}
		}
		a.Took = time.Since(begin)
		say(a)
	}
	return nil
}

type answer struct {
	Status    int
	Body, Err string
	Took      time.Duration
	Event, ID string
}

// ask has the actor make one request.
func ask(t *testing.T, a *netns.Actor, url, token string) answer {
	t.Helper()
	if err := a.Say(url + " " + token); err != nil {
		t.Fatal(err)
	}
	line, err := a.Expect("{", 2*patience)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	var got answer
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// The uplink is cut by taking the link down, so that no FIN or RST tells anybody. The
// phone on the LAN must not notice; the relay must come to know; and when the link is
// back, the device is, with every notification.
func TestUplinkCut(t *testing.T) {
	lab := netns.Test(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	space := func(name string) *netns.Space {
		s, err := lab.Space(name)
		must(err)
		return s
	}
	home, phone, cloud := space("home"), space("phone"), space("cloud")
	must(lab.Join(netns.Port{Space: home, Dev: "lan0", Addrs: []string{"192.168.77.1/24"}}, netns.Port{Space: phone, Dev: "wlan0", Addrs: []string{"192.168.77.2/24"}}))
	must(lab.Join(netns.Port{Space: home, Dev: "wan0", Addrs: []string{"10.77.0.2/24"}}, netns.Port{Space: cloud, Dev: "eth0", Addrs: []string{"10.77.0.1/24"}}))
	dir := t.TempDir()
	hosts := filepath.Join(dir, "hosts")
	must(os.WriteFile(hosts, []byte("127.0.0.1 localhost\n10.77.0.1 relay.test\n"), 0o644))
	for _, s := range []*netns.Space{home, cloud} {
		_, err := s.Run("mount", "--bind", hosts, "/etc/hosts")
		must(err)
	}
	ca, cert, key := authority(t, dir, []string{"relay.test"}, net.IPv4(10, 77, 0, 1))
	s := &stack{t: t, dir: dir, caFile: ca, fifo: filepath.Join(dir, "notify")}
	s.token = s.newToken()
	daemon := func(space *netns.Space, name string, args ...string) *netns.Daemon {
		t.Helper()
		d, err := space.Daemon(filepath.Join(bin, name), args...)
		must(err)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("output of %s:\n%s", name, d.Log())
			}
		})
		return d
	}
	daemon(cloud, "cloudrelay", "--listen", "10.77.0.1:8443", "--tls-cert", cert, "--tls-key", key, "--domain", "relay.test",
		"--state-dir", s.relayState(), "--metrics", "off")
	daemon(home, "irrigation", "--listen", "127.0.0.1:8080")
	daemon(home, "cloudrestd", "--origin", "http://127.0.0.1:8080", "--access", "origin", "--uid-source", "random", "--https", "192.168.77.1:443", "--http", "off", "--state-dir", filepath.Join(dir, "gateway"),
		"--relay", "wss://relay.test:8443", "--relay-ca", ca, "--fifo", s.fifo, "--notify-socket", s.fifo+".sock")
	actor := func(space *netns.Space) *netns.Actor {
		a, err := space.Actor("client", ca)
		must(err)
		return a
	}
	onLAN, away := actor(phone), actor(cloud)

	var status struct{ ID string }
	eventually(t, "the LAN path", func() error {
		a := ask(t, onLAN, "https://192.168.77.1/.cloudrest/v1/status", "-")
		if a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Err)
		}
		return json.Unmarshal([]byte(a.Body), &status)
	})
	remote := "https://relay.test:8443/d/" + status.ID + "/zones"
	eventually(t, "the remote path", func() error {
		if a := ask(t, away, remote, s.token); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Err)
		}
		return nil
	})
	listener := actor(cloud)
	must(listener.Say("events https://relay.test:8443/v1/devices/" + status.ID + "/events " + s.token))
	if line, err := listener.Expect(`"Status":200`, patience); err != nil {
		t.Fatalf("events: %q, %v", line, err)
	}

	must(home.Down("wan0"))
	// The LAN: every request while the tether finds out that it is dead, until the relay knows too.
	const hang = 5 * time.Second // a request that takes this long waited for something it must not need
	served, offline := 0, false
	probe := actor(cloud)
	must(probe.Say(remote + " " + s.token))
	for deadline := time.Now().Add(2 * patience); time.Now().Before(deadline) && !(offline && served >= 100); {
		a := ask(t, onLAN, "https://192.168.77.1/zones", "-")
		if a.Status != 200 || a.Took > hang {
			t.Fatalf("LAN without an uplink: %d %s after %v", a.Status, a.Err, a.Took)
		}
		served++
		time.Sleep(50 * time.Millisecond)
		if offline {
			continue
		}
		line, err := probe.Next(10 * time.Millisecond)
		if err != nil {
			continue // no answer yet
		}
		var got answer
		must(json.Unmarshal([]byte(line), &got))
		switch got.Status {
		case 503:
			offline = true
		case 502, 504: // the request that found out
			must(probe.Say(remote + " " + s.token))
		default:
			t.Fatalf("the relay without the device: %d %s %s", got.Status, got.Err, got.Body)
		}
	}
	if !offline {
		t.Error("the relay does not come to know that the device is offline")
	}
	s.notify("while the uplink was cut")

	must(home.Up("wan0"))
	eventually(t, "the remote path after the cut", func() error {
		if a := ask(t, away, remote, s.token); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Err)
		}
		return nil
	})
	if line, err := listener.Expect("while the uplink was cut", patience); err != nil {
		t.Errorf("the notification from during the cut: %q, %v", line, err)
	}
}
