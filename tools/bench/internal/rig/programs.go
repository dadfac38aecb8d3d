package rig

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cloudrest/cloudrest/firmware/gateway"
)

// host is the relay's name: devices prove themselves to the name that they dial.
const host = "localhost"

// Relay is a running cloudrelay.
type Relay struct {
	*Server
	URL     string // of devices: wss://localhost:port, or ws without TLS
	Metrics string // host:port
	Token   string // for clients
}

// Relay starts the real cloudrelay, with more options if any.
func (r *Rig) Relay(ctx context.Context, name string, tls bool, options ...string) (*Relay, error) {
	program, err := r.Program(ctx, "cloud/cmd/cloudrelay")
	if err != nil {
		return nil, err
	}
	state := filepath.Join(r.Dir, name)
	out, err := exec.CommandContext(ctx, program, "token", "--state-dir", state).Output()
	if err != nil {
		return nil, fmt.Errorf("cloudrelay token: %w", err)
	}
	rl := &Relay{}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "crt_") {
			rl.Token = word
		}
	}
	args := []string{"--domain", host, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--state-dir", state, "--log-format", "json"}
	scheme := "wss"
	if tls {
		args = append(args, "--tls-cert", r.Cert, "--tls-key", r.Key)
	} else {
		args = append(args, "--tls", "off")
		scheme = "ws"
	}
	var ready struct{ Listen, Metrics logged }
	if rl.Server, err = r.Logged(ctx, "cloudrelay", exec.Command(program, append(args, options...)...), "relay listens", &ready); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(string(ready.Listen))
	if err != nil {
		return nil, err
	}
	rl.Addr, rl.Metrics = net.JoinHostPort(host, port), string(ready.Metrics)
	rl.URL = scheme + "://" + rl.Addr
	return rl, nil
}

// logged is an address in a record: text, or a net.TCPAddr as slog writes it in JSON.
type logged string

func (l *logged) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, (*string)(l)) == nil {
		return nil
	}
	var a net.TCPAddr
	if err := json.Unmarshal(b, &a); err != nil {
		return err
	}
	*l = logged(a.String())
	return nil
}

// Gateway is a running gateway.
type Gateway struct {
	*Server
	ID    string         // of the device
	Roots *x509.CertPool // with its LAN certificate
}

// certFile is where a gateway keeps its LAN authority, below its state directory.
const certFile = "lan-ca.pem"

// Gateway starts the real cloudrestd in front of origin, with more options if any; relay may be
// nil. As many requests may be in the origin as there are connections: queues are not measured here.
func (r *Rig) Gateway(ctx context.Context, origin *Server, relay *Relay, conns int, options ...string) (*Gateway, error) {
	program, err := r.Program(ctx, "firmware/cmd/cloudrestd")
	if err != nil {
		return nil, err
	}
	state := filepath.Join(r.Dir, "cloudrestd"+strconv.Itoa(len(r.servers)))
	args := []string{"--origin", "http://" + origin.Addr, "--https", "127.0.0.1:0", "--http", "off", "--state-dir", state,
		"--fifo", "off", "--notify-socket", "off", "--mdns", "off", "--udp-discovery", "off", "--access", "origin", "--uid-source", "random", "--origin-concurrency", strconv.Itoa(conns), "--log-format", "json"}
	if relay != nil {
		args = append(args, "--relay", relay.URL, "--relay-ca", r.Cert)
	}
	var ready struct{ HTTPS, Device string }
	s, err := r.Logged(ctx, "cloudrestd", exec.Command(program, append(args, options...)...), "the gateway is ready", &ready)
	if err != nil {
		return nil, err
	}
	s.Addr = ready.HTTPS
	pool, err := Roots(filepath.Join(state, certFile))
	return &Gateway{Server: s, ID: ready.Device, Roots: pool}, err
}

// RoleEmbedded is the gateway as a package, with the maker's service as a handler in the
// same process (D15).
const RoleEmbedded = "embedded"

// Embedded starts it; relay may be nil.
func (r *Rig) Embedded(ctx context.Context, relay *Relay, l Load) (*Gateway, error) {
	state := filepath.Join(r.Dir, RoleEmbedded)
	args := []string{state, strconv.Itoa(l.Size), strconv.Itoa(l.Conns)}
	if relay != nil {
		args = append(args, relay.URL, r.Cert)
	}
	s, err := r.Again(ctx, "gateway package, in-memory handler", RoleEmbedded, args...)
	if err != nil {
		return nil, err
	}
	g := &Gateway{Server: s}
	s.Addr, g.ID, _ = strings.Cut(s.Addr, " ")
	g.Roots, err = Roots(filepath.Join(state, certFile))
	return g, err
}

// ServeEmbedded is that role. It prints its address and its ID.
func ServeEmbedded(ctx context.Context, args []string) error {
	size, err1 := strconv.Atoi(args[1])
	conns, err2 := strconv.Atoi(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	cfg := gateway.Config{StateDir: args[0], HTTPS: "127.0.0.1:0", Access: gateway.AccessOrigin, OriginConcurrency: conns, OriginHandler: Answer(size)}
	if len(args) > 4 {
		u, err := url.Parse(args[3])
		if err != nil {
			return err
		}
		cfg.Relays, cfg.RelayCA = []*url.URL{u}, args[4]
	}
	g, err := gateway.New(cfg)
	if err != nil {
		return err
	}
	go func() {
		<-g.Ready()
		fmt.Fprintln(os.Stdout, g.Addresses().HTTPS, g.ID())
	}()
	return g.Run(ctx)
}
