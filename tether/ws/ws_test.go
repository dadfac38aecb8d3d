package ws_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/ws"
)

// serve gives the relay's ends of connections to a TLS server.
func serve(t *testing.T) (*httptest.Server, chan *ws.Conn) {
	t.Helper()
	conns := make(chan *ws.Conn, 4)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := ws.Upgrade(w, r); err == nil {
			conns <- c
		}
	}))
	t.Cleanup(srv.Close)
	return srv, conns
}

func config(srv *httptest.Server) ws.DialConfig {
	u, _ := url.Parse(strings.Replace(srv.URL, "http", "ws", 1))
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return ws.DialConfig{URL: u, TLS: &tls.Config{RootCAs: roots}}
}

func pair(t *testing.T) (relay, device *ws.Conn) {
	t.Helper()
	srv, conns := serve(t)
	device, err := ws.Dial(t.Context(), config(srv))
	if err != nil {
		t.Fatal(err)
	}
	relay = <-conns
	t.Cleanup(func() { relay.Close(0, ""); device.Close(0, "") })
	return relay, device
}

func TestMessagesOfAllSizes(t *testing.T) {
	relay, device := pair(t)
	if _, ok := relay.TLS(); !ok {
		t.Error("no TLS state")
	}
	for _, size := range []int{0, 1, 125, 126, 16 << 10, 17 << 10, 17<<10 + 1, 65535, 65536, 100_000, frame.MaxMessage} {
		want := bytes.Repeat([]byte{byte(size), 2, 3}, size/3+1)[:size]
		for _, dir := range [][2]*ws.Conn{{relay, device}, {device, relay}} {
			wrote := make(chan error, 1)
			go func() { wrote <- dir[0].Write(want) }()
			if err := dir[1].Read(func(got []byte) error {
				if !bytes.Equal(got, want) {
					return fmt.Errorf("got %d bytes, want %d", len(got), size)
				}
				return nil
			}); err != nil {
				t.Errorf("size %d: %v", size, err)
			}
			if err := <-wrote; err != nil {
				t.Error(err)
			}
		}
	}
	// One byte more ends the connection.
	go device.Write(make([]byte, frame.MaxMessage+1))
	if err := relay.Read(func([]byte) error { return nil }); !errors.Is(err, websocket.ErrReadLimit) {
		t.Errorf("a message over the limit = %v", err)
	}
	if err := device.Read(func([]byte) error { return nil }); ws.CloseCode(err) != 1009 {
		t.Errorf("the sender heard %v, want 1009", err)
	}
}

func TestClose(t *testing.T) {
	relay, device := pair(t)
	relay.Close(ws.CloseGoingAway, strings.Repeat("long ", 100))
	if err := device.Read(func([]byte) error { return nil }); ws.CloseCode(err) != ws.CloseGoingAway {
		t.Errorf("Read after Close = %v", err)
	}
	if err := relay.Write([]byte("x")); err == nil {
		t.Error("Write after Close succeeded")
	}
}

func TestDeadline(t *testing.T) {
	relay, _ := pair(t)
	relay.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	err := relay.Read(func([]byte) error { return nil })
	if n, ok := errors.AsType[net.Error](err); !ok || !n.Timeout() {
		t.Errorf("Read past its deadline = %v", err)
	}
}

func TestFragmentsAreOneMessage(t *testing.T) {
	srv, conns := serve(t)
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: config(srv).TLS.RootCAs}, Subprotocols: []string{tether.Subprotocol}, WriteBufferSize: 16}
	c, _, err := d.Dial(config(srv).URL.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := strings.Repeat("fragment ", 50)
	if err := c.WriteMessage(websocket.BinaryMessage, []byte(want)); err != nil {
		t.Fatal(err)
	}
	relay := <-conns
	if err := relay.Read(func(got []byte) error {
		if string(got) != want {
			t.Errorf("got %q", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	c.WriteMessage(websocket.TextMessage, []byte("text"))
	if err := relay.Read(func([]byte) error { t.Error("a text message was taken"); return nil }); !errors.Is(err, ws.ErrText) {
		t.Errorf("text = %v", err)
	}
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 1003) {
		t.Errorf("the sender of text heard %v", err)
	}
}

func TestBrowserIsRefused(t *testing.T) {
	srv, _ := serve(t)
	cfg := config(srv)
	cfg.Header = http.Header{"Origin": {srv.URL}}
	if _, err := ws.Dial(t.Context(), cfg); err == nil {
		t.Error("a page may open a tether")
	} else if h, ok := errors.AsType[*ws.HTTPError](err); !ok || h.Status != http.StatusForbidden {
		t.Errorf("Dial = %v, want 403", err)
	}
}

func TestOwnAddress(t *testing.T) {
	srv, conns := serve(t)
	cfg := config(srv)
	cfg.Addr = cfg.URL.Host
	cfg.URL.Host = "example.com" // httptest's certificate holds it
	c, err := ws.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(0, "")
	defer (<-conns).Close(0, "")
	cfg.URL.Host = "other.example"
	if _, err := ws.Dial(t.Context(), cfg); err == nil {
		t.Error("a certificate of another name was taken")
	}
}

func TestThroughAProxy(t *testing.T) {
	srv, conns := serve(t)
	cfg := config(srv)
	var asked atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		out, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		in, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(out, in); out.Close() }()
		go func() { io.Copy(in, out); in.Close() }()
	}))
	defer proxy.Close()
	p, _ := url.Parse(proxy.URL)
	cfg.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Scheme != "https" {
			t.Errorf("the proxy was chosen for %v", r.URL)
		}
		return p, nil
	}
	cfg.URL.Host, cfg.Addr = "example.com:443", "192.0.2.1:1" // the proxy resolves, not we
	c, err := ws.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(0, "")
	defer (<-conns).Close(0, "")
	if asked.Load() != "CONNECT example.com:443" {
		t.Errorf("the proxy was asked %v", asked.Load())
	}
}

func TestDialEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts and says nothing
	u, _ := url.Parse("ws://" + l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ws.Dial(ctx, ws.DialConfig{URL: u}); err == nil {
		t.Error("Dial of a silent server succeeded")
	}
}
