package session_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/session"
)

// certified gives d a certificate of a new authority.
func certified(t *testing.T, d *session.Device) [][]byte {
	t.Helper()
	now := time.Now()
	ca, err := devcert.NewAuthority("Factory", now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(d.ID, d.Key.Public(), now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d.Certificate = func() [][]byte { return chain }
	return chain
}

func TestChainAndGeneration(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, noHandler)
	chain := certified(t, d)
	d.Generation = func() uint32 { return 3 }
	connect(t, rs, d)
	p := <-rs.peers
	if !slices.EqualFunc(p.Chain, chain, bytes.Equal) || p.Generation != 3 || p.ClientCert != nil {
		t.Errorf("chain of %d, generation %d, client certificate %v, want %d, 3, none (nobody asked)", len(p.Chain), p.Generation, p.ClientCert != nil, len(chain))
	}
}

// §4.2: the certificates never give way, the descriptor does and follows.
func TestDescriptorGivesWay(t *testing.T) {
	rs := newRelay(t)
	described := make(chan string, 1)
	rs.handlers = mux.Handlers{OnDescribe: func(json []byte) { described <- string(json) }}
	d := newDevice(t, rs, noHandler)
	info := `{"name":"` + strings.Repeat("x", frame.MaxDescribe-11) + `"}`
	d.Info = func() []byte { return []byte(info) }
	d.Certificate = func() [][]byte { return [][]byte{make([]byte, frame.MaxChain-2)} }
	connect(t, rs, d)
	if p := <-rs.peers; len(p.Info) != 0 || len(p.Chain) != 1 {
		t.Errorf("HELLO came with %d bytes of descriptor and %d certificates, want 0 and 1", len(p.Info), len(p.Chain))
	}
	if got := <-described; got != info {
		t.Errorf("DESCRIBE brought %d bytes, want all %d", len(got), len(info))
	}
	d.Certificate = func() [][]byte { return [][]byte{make([]byte, frame.MaxChain-1)} }
	if _, _, err := d.Connect(t.Context(), rs.url(), ""); !errors.Is(err, frame.ErrMalformed) {
		t.Errorf("a chain over the limit: %v, want ErrMalformed", err)
	}
}

// §4.11: the certificate is shown to a relay that asks, in TLS 1.3 only.
func TestClientCertificate(t *testing.T) {
	for _, c := range []struct {
		name    string
		version uint16
		shown   bool
	}{{"TLS 1.3", tls.VersionTLS13, true}, {"TLS 1.2", tls.VersionTLS12, false}} {
		t.Run(c.name, func(t *testing.T) {
			rs := newRelay(t)
			offered := make(chan []string, 1)
			rs.TLS.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				offered <- h.SupportedProtos
				cfg := &tls.Config{Certificates: rs.TLS.Certificates, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"}}
				return cfg, nil
			}
			d := newDevice(t, rs, noHandler)
			chain := certified(t, d)
			d.TLS.MaxVersion = c.version
			relay, _ := connect(t, rs, d)
			if got, want := fmt.Sprint(<-offered), fmt.Sprint([]string{tether.ALPN, "http/1.1"}); got != want {
				t.Errorf("the device offered %v, want %v", got, want)
			}
			p := <-rs.peers
			if got := p.ClientCert != nil && bytes.Equal(p.ClientCert.Raw, chain[0]); got != c.shown {
				t.Errorf("certificate shown to TLS: %v, want %v", got, c.shown)
			}
			state, _ := relay.Carrier().(interface {
				TLS() (tls.ConnectionState, bool)
			}).TLS()
			for _, kept := range state.PeerCertificates {
				if kept != nil {
					t.Error("the idle connection keeps the certificate")
				}
			}
		})
	}
}

// A device without a certificate offers nothing new.
func TestNoClientCertificate(t *testing.T) {
	rs := newRelay(t)
	offered := make(chan []string, 1)
	rs.TLS.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		offered <- h.SupportedProtos
		return nil, nil
	}
	d := newDevice(t, rs, noHandler)
	d.Certificate = func() [][]byte { return nil }
	connect(t, rs, d)
	if got := <-offered; slices.Contains(got, tether.ALPN) {
		t.Errorf("the device offered %v", got)
	}
	if p := <-rs.peers; p.Chain != nil || p.Generation != 0 {
		t.Errorf("chain %v, generation %d, want neither", p.Chain, p.Generation)
	}
}

// What Verify has to say reaches the device, in the words meant for it.
func TestDeniedText(t *testing.T) {
	rs := newRelay(t)
	d := newDevice(t, rs, noHandler)
	for _, c := range []struct {
		err  error
		code frame.GoAwayCode
	}{{session.ErrKey, frame.GoAwayAuth}, {session.ErrUnknown, frame.GoAwayUnknown}} {
		rs.relay.Verify = func(context.Context, *session.Peer) error {
			return fmt.Errorf("inside: %w", &session.DeniedError{Err: c.err, Text: "certificate expired"})
		}
		_, _, err := d.Connect(t.Context(), rs.url(), "")
		if r, ok := errors.AsType[*session.Refused](err); !ok || r.Code != c.code || r.Text != "certificate expired" {
			t.Errorf("Connect = %v, want GOAWAY %d with the text", err, c.code)
		}
	}
}
