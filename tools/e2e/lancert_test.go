package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/netns"
)

// lanRole is a phone that keeps its connections. "dial NAME HOST:PORT" opens one, "verify
// NAME CA-FILE HOST" compares the chain it was shown with an authority, by the rules of
// crypto/x509, "get NAME PATH" uses it. Each is answered with a line of JSON.
func lanRole(ctx context.Context, _ string, in <-chan string, out io.Writer) error {
	type line struct {
		client *http.Client
		base   string
		state  tls.ConnectionState
	}
	open := map[string]*line{}
	act := func(words []string) (*lanAnswer, error) {
		l := open[words[1]]
		switch words[0] {
		case "dial":
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // verify looks at it
			c, err := d.DialContext(ctx, "tcp", words[2])
			if err != nil {
				return nil, err
			}
			conns := make(chan net.Conn, 1)
			conns <- c
			l = &line{base: "https://" + words[2], state: c.(*tls.Conn).ConnectionState(), client: &http.Client{Timeout: patience, Transport: &http.Transport{
				DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
					select {
					case c := <-conns:
						return c, nil
					default:
						return nil, fmt.Errorf("the connection %s is over", words[1])
					}
				},
			}}}
			open[words[1]] = l
			pin, err := trust.PinOf(&l.state)
			return &lanAnswer{Pin: pin}, err
		case "verify":
			text, err := os.ReadFile(words[2])
			if err != nil {
				return nil, err
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(text)
			_, err = l.state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: words[3]})
			return &lanAnswer{}, err
		}
		resp, err := l.client.Get(l.base + words[2])
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body) // else the connection cannot be used again
		return &lanAnswer{Status: resp.StatusCode}, err
	}
	for text := range in {
		a, err := act(strings.Fields(text))
		if err != nil {
			a = &lanAnswer{Err: err.Error()}
		}
		b, _ := json.Marshal(a) // plain fields
		fmt.Fprintf(out, "%s\n", b)
	}
	return nil
}

type lanAnswer struct {
	Status   int
	Pin, Err string
}

// The LAN certificate follows the addresses of the running gateway; who is connected
// notices nothing, and its authority stays.
func TestLANCertificateFollowsAddresses(t *testing.T) {
	t.Parallel()
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
	home, phone := space("home"), space("phone")
	must(lab.Join(netns.Port{Space: home, Dev: "lan0", Addrs: []string{"192.168.78.1/24"}}, netns.Port{Space: phone, Dev: "wlan0", Addrs: []string{"192.168.78.2/24"}}))
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	daemon := func(name string, args ...string) {
		t.Helper()
		d, err := home.Daemon(filepath.Join(bin, name), args...)
		must(err)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("output of %s:\n%s", name, d.Log())
			}
		})
	}
	daemon("irrigation", "--listen", "127.0.0.1:8080")
	daemon("cloudrestd", "--origin", "http://127.0.0.1:8080", "--uid-source", "random", "--http", "off", "--state-dir", state,
		"--mdns", "off", "--udp-discovery", "off", "--fifo", filepath.Join(dir, "notify"))
	a, err := phone.Actor("lan", "")
	must(err)
	say := func(format string, args ...any) (got lanAnswer) {
		t.Helper()
		must(a.Say(fmt.Sprintf(format, args...)))
		line, err := a.Expect("{", 2*patience)
		if err == nil {
			err = json.Unmarshal([]byte(line), &got)
		}
		must(err)
		return got
	}
	ca := filepath.Join(state, "lan-ca.pem")
	dial := func(name, addr string) (pin string) {
		t.Helper()
		eventually(t, "a connection to "+addr+" with a certificate for it", func() error {
			got := say("dial %s %s:443", name, addr)
			if got.Err != "" {
				return fmt.Errorf("dial: %s", got.Err)
			}
			pin = got.Pin
			if got = say("verify %s %s %s", name, ca, addr); got.Err != "" {
				return fmt.Errorf("verify: %s", got.Err)
			}
			return nil
		})
		return pin
	}
	use := func(name string) {
		t.Helper()
		if got := say("get %s /device", name); got.Status != 200 {
			t.Errorf("on the connection %s: %+v, want 200", name, got)
		}
	}

	pin := dial("before", "192.168.78.1")
	use("before")
	if got := say("verify before %s 192.168.78.9", ca); got.Err == "" {
		t.Error("the certificate is good for an address that the device does not have yet")
	}
	for i, addr := range []string{"192.168.78.9", "192.168.78.10"} {
		must(home.AddAddr("lan0", addr+"/24"))
		name := fmt.Sprint("after", i)
		if got := dial(name, addr); got != pin {
			t.Errorf("at %s the device's pin is %s, before %s", addr, got, pin)
		}
		use(name)
		use("before")
	}
	if got := dial("again", "192.168.78.1"); got != pin {
		t.Errorf("at its first address the device's pin is %s, before %s", got, pin)
	}
	must(home.DelAddr("lan0", "192.168.78.10/24"))
	use("before")
	use("after0")
}
