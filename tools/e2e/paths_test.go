package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tools/sample"
)

const (
	gib = 1 << 30
	mib = 1 << 20
)

// A gigabyte each way through the relay leaves neither process larger than before by
// more than this (TRUST: 16 MiB for the daemon; the relay holds two windows of 1 MiB).
const bulkGrowth = 16 * mib

func TestBulkThroughRelay(t *testing.T) {
	s := newStack(t)
	// Warm up, so that what is compared is the same code and pools without and with bulk.
	for range 20 {
		if _, _, err := s.get(s.remote("/zones")); err != nil {
			t.Fatal(err)
		}
	}
	gateway, relay := s.gateway.peakMemory(), s.relay.peakMemory()

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	want := sha256.New()
	if _, err := io.Copy(want, sample.Firmware(gib)); err != nil {
		t.Fatal(err)
	}
	t.Run("download", func(t *testing.T) {
		resp, err := s.client.Do(s.request(ctx, "GET", s.remote(fmt.Sprintf("/firmware?size=%d", gib)), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ContentLength != gib {
			t.Errorf("Content-Length = %d, want %d", resp.ContentLength, gib)
		}
		got := sha256.New()
		n, err := io.Copy(got, resp.Body)
		if err != nil || n != gib || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Fatalf("download = %d bytes, %v, hash equal %v; want %d bytes unchanged", n, err, bytes.Equal(got.Sum(nil), want.Sum(nil)), gib)
		}
	})
	t.Run("upload", func(t *testing.T) {
		// Without Content-Length: the size is found out only at the end.
		resp, err := s.client.Do(s.request(ctx, "POST", s.remote("/upload"), io.MultiReader(sample.Firmware(gib))))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var got struct {
			Bytes  int64
			SHA256 string
		}
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Bytes != gib || got.SHA256 != hex.EncodeToString(want.Sum(nil)) {
			t.Errorf("the origin got %+v, want %d bytes with hash %x", got, gib, want.Sum(nil))
		}
	})
	if grown := s.gateway.peakMemory() - gateway; grown > bulkGrowth {
		t.Errorf("the gateway's peak memory grew by %d KiB, want at most %d", grown>>10, bulkGrowth>>10)
	}
	if grown := s.relay.peakMemory() - relay; grown > bulkGrowth {
		t.Errorf("the relay's peak memory grew by %d KiB, want at most %d", grown>>10, bulkGrowth>>10)
	}
}

// 200 requests at once are answered while one client has asked for 50 MB and does not read.
func TestParallelBesideStalled(t *testing.T) {
	s := newStack(t)
	for _, path := range []struct {
		name string
		url  func(string) string
	}{{"LAN", s.lan}, {"relay", s.remote}} {
		t.Run(path.name, func(t *testing.T) {
			relay, gateway := s.relay.peakMemory(), s.gateway.peakMemory()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			stalled, err := s.client.Do(s.request(ctx, "GET", path.url("/firmware?size=50000000"), nil))
			if err != nil {
				t.Fatal(err)
			}
			defer stalled.Body.Close()
			if _, err := io.ReadFull(stalled.Body, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			const parallel = 200
			var wg sync.WaitGroup
			failures := make(chan error, parallel)
			for i := range parallel {
				wg.Go(func() {
					// Each asks until it is let in: with a bounded queue some are told to come
					// again, which is an answer too, but it must be 503 with Retry-After.
					for {
						resp, body, err := s.get(path.url(fmt.Sprintf("/echo?n=%d", i)))
						switch {
						case err != nil:
							failures <- err
							return
						case resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "":
							time.Sleep(100 * time.Millisecond)
							continue
						case resp.StatusCode != 200:
							failures <- fmt.Errorf("request %d: %s %.200q", i, resp.Status, body)
							return
						}
						var got sample.Echo
						if err := json.Unmarshal(body, &got); err != nil || got.Path != fmt.Sprintf("/echo?n=%d", i) {
							failures <- fmt.Errorf("request %d got the answer of %q, %v", i, got.Path, err)
						}
						return
					}
				})
			}
			wg.Wait()
			close(failures)
			for err := range failures {
				t.Error(err)
			}
			if grown := s.relay.peakMemory() - relay; grown > 32*mib {
				t.Errorf("the relay's peak memory grew by %d KiB beside a stalled reader", grown>>10)
			}
			if grown := s.gateway.peakMemory() - gateway; grown > 32*mib {
				t.Errorf("the gateway's peak memory grew by %d KiB beside a stalled reader", grown>>10)
			}
		})
	}
}

func TestWebSocketEcho(t *testing.T) {
	s := newStack(t)
	for name, url := range map[string]string{"LAN": s.lan("/ws"), "relay": s.remote("/ws")} {
		t.Run(name, func(t *testing.T) {
			d := websocket.Dialer{NetDialTLSContext: s.client.Transport.(*http.Transport).DialTLSContext, HandshakeTimeout: patience}
			r := s.request(t.Context(), "GET", url, nil)
			conn, resp, err := d.DialContext(t.Context(), "wss"+strings.TrimPrefix(url, "https"), http.Header{"Authorization": r.Header["Authorization"]})
			if err != nil {
				t.Fatalf("dial: %v (%v)", err, resp)
			}
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(patience))
			for _, size := range []int{0, 1, 125, 126, 4096, 70_000, 500_000} {
				want := bytes.Repeat([]byte{'x'}, size)
				if err := conn.WriteMessage(websocket.BinaryMessage, want); err != nil {
					t.Fatal(err)
				}
				kind, got, err := conn.ReadMessage()
				if err != nil || kind != websocket.BinaryMessage || !bytes.Equal(got, want) {
					t.Fatalf("echo of %d bytes = kind %d, %d bytes, %v", size, kind, len(got), err)
				}
			}
			if err := conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "bye")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("after the close: %v, want a close with code 1000", err)
			}
		})
	}
}

// What the origin is told about the client is the truth, whatever the client says.
func TestForwardedTruth(t *testing.T) {
	s := newStack(t)
	for name, url := range map[string]string{"LAN": s.lan("/echo?a=%2F&b"), "relay": s.remote("/echo?a=%2F&b")} {
		t.Run(name, func(t *testing.T) {
			r := s.request(t.Context(), "POST", url, strings.NewReader("body"))
			lie := "9.9.9.9"
			for _, name := range []string{"X-Forwarded-For", "X-Real-Ip", "X-Forwarded-Host"} {
				r.Header.Set(name, lie)
			}
			r.Header.Set("Forwarded", "for="+lie)
			r.Header.Set("X-Forwarded-Proto", "gopher")
			r.Header.Set("Connection", "X-Secret")
			r.Header.Set("X-Secret", "hop")
			r.Header.Set("X-Cloudrest-Id", "mine")
			r.Header.Set("X-Cloudrest-Sequence-Id", "seq-7")
			resp, err := s.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var got sample.Echo
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(got.Header)
			if strings.Contains(text, "for="+lie) || got.Header.Get("X-Forwarded-For") == lie || got.Header.Get("X-Forwarded-Host") == lie ||
				got.Header.Get("X-Forwarded-Proto") != "https" || !strings.Contains(got.Header.Get("X-Forwarded-For"), "127.0.0.1") {
				t.Errorf("the origin was told %v", text)
			}
			if got.Header.Get("X-Secret") != "" {
				t.Error("a field that Connection named reached the origin")
			}
			if got.Header.Get("Authorization") != "" {
				t.Errorf("the operator token reached the origin: %q", got.Header.Get("Authorization"))
			}
			id := resp.Header.Get("X-Cloudrest-Id")
			if len(id) != 36 || id == "mine" || got.Header.Get("X-Cloudrest-Id") != id {
				t.Errorf("x-cloudrest-id: the origin saw %q, the client %q, want one UUID", got.Header.Get("X-Cloudrest-Id"), id)
			}
			if got.Header.Get("X-Cloudrest-Sequence-Id") != "seq-7" || resp.Header.Get("X-Cloudrest-Sequence-Id") != "seq-7" {
				t.Errorf("x-cloudrest-sequence-id: the origin saw %q, the client %q, want seq-7 on both",
					got.Header.Get("X-Cloudrest-Sequence-Id"), resp.Header.Get("X-Cloudrest-Sequence-Id"))
			}
			if got.Path != "/echo?a=%2F&b" || got.Method != "POST" || got.Body != "body" {
				t.Errorf("the origin saw %s %s %q", got.Method, got.Path, got.Body)
			}
		})
	}
}

// Nothing on the relay is open: no token, no answer about any device.
func TestRelayNeedsToken(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{"/d/" + s.device + "/device", "/v1/devices/list", "/v1/devices/" + s.device + "/events"} {
		for _, auth := range []string{"", "Bearer crt_wrong", "Bearer " + s.token + "x", "Basic " + s.token} {
			r, err := http.NewRequestWithContext(t.Context(), "GET", s.relayURL(path), nil)
			if err != nil {
				t.Fatal(err)
			}
			if auth != "" {
				r.Header.Set("Authorization", auth)
			}
			resp, err := s.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 401 && resp.StatusCode != 429 {
				t.Errorf("GET %s with %.12q = %s, want 401", path, auth, resp.Status)
			}
		}
	}
}

// The list says who is online and where it is on its LAN, and all ways to reach each device work.
func TestDevicesList(t *testing.T) {
	s := newStack(t)
	var list struct {
		Devices []struct {
			ID, Name, URL, HostURL, LANURL string
			Online                         bool
		}
	}
	eventually(t, "the list tells name and LAN address", func() error { // they may follow the handshake
		list.Devices = nil
		s.getJSON(s.relayURL("/v1/devices/list"), &list)
		if len(list.Devices) == 1 && list.Devices[0].ID == s.device && list.Devices[0].Online && list.Devices[0].Name != "" && list.Devices[0].LANURL == s.lan("/") {
			return nil
		}
		return fmt.Errorf("list = %+v, want the one device, online, with its name and lanUrl %s", list, s.lan("/"))
	})
	d := list.Devices[0]
	if _, _, err := s.get(d.LANURL + "zones/1"); err != nil {
		t.Errorf("by LAN address: %v", err)
	}
	if !strings.Contains(d.URL, "/d/"+s.device) || !strings.Contains(d.HostURL, ".localhost") {
		t.Errorf("urls = %q, %q", d.URL, d.HostURL)
	}
	// <label>.<domain>: the certificate of this test has no wildcard, so the name goes in Host alone.
	r := s.request(t.Context(), "GET", s.relayURL("/zones/1"), nil)
	r.Host = strings.TrimSuffix(strings.TrimPrefix(d.HostURL, "https://"), "/")
	resp, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var zone sample.Zone
	if err := json.NewDecoder(resp.Body).Decode(&zone); err != nil || zone.ID != 1 {
		t.Errorf("by host name: %s, %+v, %v", resp.Status, zone, err)
	}
}

var errNotYet = errors.New("not yet")
