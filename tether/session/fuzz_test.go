package session

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
	"github.com/cloudrest/cloudrest/tether/proof"
)

// script is a carrier that says what it was told, and nothing after it.
type script struct {
	messages [][]byte
	wrote    [][]byte
}

func (s *script) Read(f func([]byte) error) error {
	if len(s.messages) == 0 {
		return io.EOF
	}
	m := s.messages[0]
	s.messages = s.messages[1:]
	return f(m)
}

func (s *script) Write(m []byte) error {
	s.wrote = append(s.wrote, append([]byte(nil), m...))
	return nil
}
func (s *script) Close(int, string) error          { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) TLS() (tls.ConnectionState, bool) { return tls.ConnectionState{}, false }

// FuzzHandshake feeds either side: nobody gets in without a proof, nothing is signed for
// another host, the relay answers only CHALLENGE and GOAWAY.
func FuzzHandshake(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	hello := frame.Hello{Version: 1, Device: string(tether.NewDeviceID(nil)), Window: 20000, Streams: 1}
	proof.Sign(&hello, key, &frame.Challenge{}, nil) // for a challenge that is never given
	b, err := frame.AppendHello(nil, &hello)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	hello.Chain, hello.Generation = [][]byte{{0x30, 0x80}, {0x30}}, 7
	if b, err = frame.AppendHello(nil, &hello); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(frame.AppendChallenge(nil, &frame.Challenge{Relay: "relay.example"}))
	f.Add(frame.AppendChallenge(nil, &frame.Challenge{Relay: "other.example", Binding: frame.BindExporter}))
	f.Add(frame.AppendGoAway(nil, &frame.GoAway{Code: 5}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		rl := &Relay{Names: []string{"relay.example"}, Verify: func(context.Context, *Peer) error { return nil }}
		c := &script{messages: [][]byte{msg}}
		_, err := rl.handshake(t.Context(), c, "relay.example", nil, "peer", func(*mux.Session, *Peer) mux.Handlers {
			t.Error("a session without a proof")
			return mux.Handlers{}
		})
		if err == nil {
			t.Error("no error")
		}
		for i, m := range c.wrote {
			if fr, _, err := frame.Next(m); err != nil || (fr.Type != frame.TypeChallenge || i > 0) && fr.Type != frame.TypeGoAway {
				t.Errorf("the relay wrote %v, %v", fr.Type, err)
			}
		}
		d := &Device{ID: tether.NewDeviceID(nil), Key: key}
		c = &script{messages: [][]byte{msg, frame.AppendAccept(nil, &frame.Accept{Version: 1})}}
		if _, _, _, err := d.handshake(c, "relay.example", nil); err != nil && len(c.wrote) > 0 && errors.Is(err, ErrRelayName) {
			t.Error("signed for another relay")
		}
	})
}
