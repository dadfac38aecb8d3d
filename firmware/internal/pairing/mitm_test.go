package pairing

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	service "github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy"
	"github.com/cloudrest/cloudrest/firmware/internal/proxy/edge"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// serveTLS runs the gateway's own server on loopback until the test ends.
func serveTLS(t *testing.T, h http.Handler, cert tls.Certificate) (addr string) {
	t.Helper()
	s, err := edge.New(edge.Config{Handler: h, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// onWire is a device behind its real server.
func onWire(t *testing.T) (d *device, addr, pin string) {
	cert, pin := authority(t)
	d = open(t, &memory{}, func(c *Config) { c.Pin = func() string { return pin } })
	return d, serveTLS(t, d.Handler(), cert), pin
}

// app is a client as it should be: it commits, and compares what it saw of its own connection.
type app struct {
	http *http.Client
	base string
}

func newApp(t *testing.T, addr string, conf *tls.Config) *app {
	t.Helper()
	conf.ClientSessionCache = nil
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: len(conf.NextProtos) == 0 || conf.NextProtos[0] == "h2", MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	return &app{http: &http.Client{Transport: tr}, base: "https://" + addr + "/.cloudrest/v1/"}
}

// send is one request; it returns the answer and the connection it came over.
func (a *app) send(ctx context.Context, method, path, body string) (reply, *tls.ConnectionState, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, strings.NewReader(body))
	if err != nil {
		return reply{}, nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return reply{}, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	g := reply{status: resp.StatusCode, text: string(text), header: resp.Header}
	_ = json.Unmarshal(text, &g.body)
	return g, resp.TLS, err
}

// pair goes through both steps and returns the code that the app shows, computed by itself.
func (a *app) pair(ctx context.Context, name string) (g reply, code string, err error) {
	first, second, nonce := commitment(name)
	g, _, err = a.send(ctx, "POST", "pair", first)
	if err != nil || g.status != http.StatusAccepted {
		return g, "", err
	}
	deviceNonce, err := base64.RawURLEncoding.DecodeString(g.body.Nonce)
	if err != nil {
		return g, "", err
	}
	g, cs, err := a.send(ctx, "POST", "pair/"+g.body.Request, second)
	if err != nil {
		return g, "", err
	}
	pin, err := trust.PinOf(cs)
	if err != nil {
		return g, "", err
	}
	exporter, err := trust.Exporter(cs)
	return g, trust.Code(pin, exporter, nonce, deviceNonce), err
}

// The exporter of the project's server is the client's, over each protocol and version.
func TestCodeOnTheWire(t *testing.T) {
	for name, change := range map[string]func(c *tls.Config){
		"HTTP/1.1, TLS 1.3": func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} },
		"HTTP/1.1, TLS 1.2": func(c *tls.Config) { c.NextProtos, c.MaxVersion = []string{"http/1.1"}, tls.VersionTLS12 },
		"HTTP/2, TLS 1.3":   func(c *tls.Config) { c.NextProtos = []string{"h2"} },
		"HTTP/2, TLS 1.2":   func(c *tls.Config) { c.NextProtos, c.MaxVersion = []string{"h2"}, tls.VersionTLS12 },
	} {
		t.Run(name, func(t *testing.T) {
			d, addr, pin := onWire(t)
			conf := trust.Client(pin)
			change(conf)
			a := newApp(t, addr, conf)
			d.Open(WayButton, OpenOptions{})
			g, code, err := a.pair(t.Context(), "app")
			if err != nil || g.status != 200 {
				t.Fatalf("pair: %v, %v", g, err)
			}
			if c := d.Clients()[0]; c.Code != code || g.body.Code != code || g.body.Pin != pin {
				t.Errorf("codes: device %s, answer %s, app %s; want one", c.Code, g.body.Code, code)
			}
			// With confirmation, by long poll.
			d.Open(WayCLI, OpenOptions{})
			g, code, err = a.pair(t.Context(), "second")
			if err != nil || g.body.State != "waiting" {
				t.Fatalf("pair: %v, %v", g, err)
			}
			list, _ := d.waiting(actor{local: true, role: Owner})
			if len(list) != 1 || list[0].code != code {
				t.Fatalf("waiting = %+v, want one with code %s", list, code)
			}
			key := list[0].key
			var wg sync.WaitGroup
			wg.Go(func() {
				g, _, err := a.send(t.Context(), "GET", "pair/"+key, "")
				if err != nil || g.status != 200 || g.body.Token == "" {
					t.Errorf("long poll: %v, %v", g, err)
				}
			})
			if _, err := d.decide(actor{local: true, role: Owner}, list[0].id, true, ""); err != nil {
				t.Error(err)
			}
			wg.Wait()
		})
	}
}

// relay is a man in the middle with a certificate of his own. He passes everything on over a TLS connection of his own
// and may change what goes by.
func relay(t *testing.T, device string, change func(*http.Response)) (addr string) {
	t.Helper()
	cert, _ := authority(t)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	rp := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: device})
	rp.Transport = tr
	rp.ModifyResponse = func(r *http.Response) error {
		if change != nil {
			change(r)
		}
		return nil
	}
	return serveTLS(t, rp, cert)
}

// TestManInTheMiddle: two clients race, one of them through a man in the middle. Whatever he does, the code that his
// victim shows is not the one that the device shows, and the loser sees who won.
func TestManInTheMiddle(t *testing.T) {
	t.Run("with confirmation", func(t *testing.T) {
		d, addr, pin := onWire(t)
		trap := relay(t, addr, nil)
		d.Open(WayCLI, OpenOptions{})
		honest := newApp(t, addr, trust.Client(pin))
		victim := newApp(t, trap, &tls.Config{InsecureSkipVerify: true})
		codes := map[string]string{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for name, a := range map[string]*app{"honest": honest, "victim": victim} {
			wg.Go(func() {
				g, code, err := a.pair(t.Context(), name)
				if err != nil || g.body.State != "waiting" {
					t.Errorf("%s: %v, %v", name, g, err)
				}
				mu.Lock()
				defer mu.Unlock()
				codes[name] = code
			})
		}
		wg.Wait()
		list, _ := d.waiting(actor{local: true, role: Owner})
		if len(list) != 2 {
			t.Fatalf("waiting = %+v, want two", list)
		}
		for _, a := range list {
			if same := a.code == codes[a.name]; same != (a.name == "honest") {
				t.Errorf("%s: the device shows %s, the client %s", a.name, a.code, codes[a.name])
			}
		}
		// The person confirms the one whose codes agree; the other, and the man in the middle with it, gets nothing.
		var key string
		for _, a := range list {
			if a.name == "honest" {
				if _, err := d.decide(actor{local: true, role: Owner}, a.id, true, ""); err != nil {
					t.Fatal(err)
				}
			} else {
				key = a.key
			}
		}
		g, _, err := victim.send(t.Context(), "GET", "pair/"+key, "")
		if err != nil || g.status != 409 || !strings.Contains(g.body.Message, "honest") || g.body.Token != "" {
			t.Errorf("the loser: %v, %v, want 409 that names the winner", g, err)
		}
	})

	t.Run("without confirmation", func(t *testing.T) {
		d, addr, _ := onWire(t)
		trap := relay(t, addr, nil)
		d.Open(WayButton, OpenOptions{})
		victim := newApp(t, trap, &tls.Config{InsecureSkipVerify: true})
		g, code, err := victim.pair(t.Context(), "victim")
		if err != nil || g.status != 200 {
			t.Fatalf("pair: %v, %v", g, err)
		}
		if c := d.Clients()[0]; c.Code == code {
			t.Errorf("both ends show %s, so nobody sees the man in the middle", code)
		}
	})

	t.Run("he lies about code, nonce and pin", func(t *testing.T) {
		d, addr, _ := onWire(t)
		trap := relay(t, addr, func(r *http.Response) {
			var m map[string]any
			if json.NewDecoder(r.Body).Decode(&m) != nil {
				return
			}
			if m["nonce"] != nil {
				m["nonce"] = b64(randomBytes(trust.NonceSize))
			}
			b, _ := json.Marshal(m)
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(string(b))), int64(len(b))
			r.Header.Del("Content-Length")
		})
		d.Open(WayButton, OpenOptions{})
		victim := newApp(t, trap, &tls.Config{InsecureSkipVerify: true})
		g, code, err := victim.pair(t.Context(), "victim")
		if err != nil || g.status != 200 {
			t.Fatalf("pair: %v, %v", g, err)
		}
		if c := d.Clients()[0]; c.Code == code {
			t.Errorf("both ends show %s", code)
		}
	})

	t.Run("his nonces cannot be chosen", func(t *testing.T) {
		// He commits for himself toward the device before he knows its nonce, so all that is left to him is one
		// guess of six digits; other nonces than the one committed to are refused.
		d, addr, pin := onWire(t)
		d.Open(WayButton, OpenOptions{})
		a := newApp(t, addr, trust.Client(pin))
		first, _, _ := commitment("man")
		g, _, err := a.send(t.Context(), "POST", "pair", first)
		if err != nil || g.status != 202 {
			t.Fatalf("first: %v, %v", g, err)
		}
		for range 3 {
			_, other, _ := commitment("man")
			r, _, err := a.send(t.Context(), "POST", "pair/"+g.body.Request, other)
			if err != nil || r.status != 403 {
				t.Fatalf("another nonce: %v, %v, want 403", r, err)
			}
		}
	})

	t.Run("a pinned client does not even speak to him", func(t *testing.T) {
		_, addr, pin := onWire(t)
		var seen atomic.Int32
		trap := relay(t, addr, func(*http.Response) { seen.Add(1) })
		a := newApp(t, trap, trust.Client(pin))
		_, _, err := a.send(t.Context(), "GET", "pair", "")
		if _, ok := errors.AsType[*trust.PinError](err); !ok || seen.Load() != 0 {
			t.Errorf("err = %v with %d requests passed on, want a *trust.PinError and none", err, seen.Load())
		}
	})
}

// TestRace: of many that ask at once, one wins or none, and each other is told.
func TestRace(t *testing.T) {
	for _, steps := range []int{1, 2} {
		d, addr, pin := onWire(t)
		d.Open(WayButton, OpenOptions{})
		var won, lost atomic.Int32
		var wg sync.WaitGroup
		const racers = 6
		for i := range racers {
			a := newApp(t, addr, trust.Client(pin))
			wg.Go(func() {
				var g reply
				var err error
				if steps == 2 {
					g, _, err = a.pair(t.Context(), fmt.Sprint("racer", i))
				} else {
					g, _, err = a.send(t.Context(), "POST", "pair", fmt.Sprintf(`{"name":"racer%d"}`, i))
				}
				switch {
				case err != nil:
					t.Error(err)
				case g.status == 200 && g.body.Token != "":
					won.Add(1)
				case g.status == 409 || g.status == 403 && steps == 2: // 403: the window was closed by two before
					lost.Add(1)
				default:
					t.Errorf("racer %d: %v", i, g)
				}
			})
		}
		wg.Wait()
		if w := int(won.Load()); w > 1 || steps == 1 && w != 1 || w != len(d.Clients()) || w+int(lost.Load()) != racers {
			t.Errorf("%d steps: %d won, %d lost, %d clients", steps, w, lost.Load(), len(d.Clients()))
		}
		if d.Window().Open {
			t.Errorf("%d steps: the window is still open", steps)
		}
	}
}

// A revoked client's WebSocket ends too, though the connection is no longer the server's.
func TestRevokeEndsWebSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // an origin that switches protocols and then says nothing
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			}
		}
	}()
	client, err := service.New(service.Config{URL: &url.URL{Scheme: "http", Host: l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p, err := proxy.New(proxy.Config{Origin: client})
	if err != nil {
		t.Fatal(err)
	}
	cert, pin := authority(t)
	d := open(t, &memory{}, nil)
	addr := serveTLS(t, d.Guard(p.For(admit.LAN)), cert)
	token, id := d.pairAs(t, Member, connection(t))
	conf := trust.Client(pin)
	conf.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /live HTTP/1.1\r\nHost: device\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer %s\r\n\r\n", token)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	if err := d.Remove(id); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the client was revoked: %d bytes, %v, want the end", n, err)
	}
}
