package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloudrest/cloudrest/tether/trust"
)

// unit is one device with people: a gateway that lets paired clients in, its state, and a
// board whose UID is in a file.
type unit struct {
	t          *testing.T
	name, dir  string
	uid, state string // file and directory
	origin     string
	port       int
	run        *process
}

// newUnit makes a device that was never started.
func newUnit(t *testing.T, name, origin string) *unit {
	t.Helper()
	u := &unit{t: t, name: name, dir: t.TempDir(), origin: origin, port: freePort(t)}
	u.uid, u.state = filepath.Join(u.dir, "uid"), filepath.Join(u.dir, "state")
	uid := make([]byte, 8)
	rand.Read(uid)
	u.board(hex.EncodeToString(uid))
	return u
}

// board puts the device's storage on the board with that UID.
func (u *unit) board(uid string) {
	u.t.Helper()
	if err := os.WriteFile(u.uid, []byte(uid+"\n"), 0o600); err != nil {
		u.t.Fatal(err)
	}
}

// sampleOrigin is a maker's service, which many units may have.
func sampleOrigin(t *testing.T) string {
	t.Helper()
	s := &stack{t: t, originPort: freePort(t)}
	s.startOrigin()
	url := fmt.Sprintf("http://127.0.0.1:%d", s.originPort)
	eventually(t, "the maker's service", func() error {
		resp, err := http.Get(url + "/device")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	return url
}

// launch starts the gateway, which may refuse.
func (u *unit) launch(more ...string) {
	u.t.Helper()
	u.run = start(u.t, u.name, append([]string{filepath.Join(bin, "cloudrestd"), "--origin", u.origin, "--access", "paired", "--uid-source", "file=" + u.uid,
		"--https", fmt.Sprintf("127.0.0.1:%d", u.port), "--http", "off", "--state-dir", u.state, "--udp-discovery", "off", "--mdns", "off",
		"--fifo", filepath.Join(u.dir, "notify"), "--log-level", "debug"}, more...)...)
}

// start starts the gateway and waits until it answers.
func (u *unit) start(more ...string) {
	u.t.Helper()
	u.launch(more...)
	u.eventually("answers on the LAN", func(unitStatus) error { return nil })
}

func (u *unit) base() string { return fmt.Sprintf("https://127.0.0.1:%d", u.port) }

// command runs cloudrestd beside the gateway.
func (u *unit) command(name string, args ...string) (code int, said string) {
	u.t.Helper()
	return program(u.t, "cloudrestd", append([]string{name, "--state-dir", u.state}, args...)...)
}

// unitStatus is what a unit tells everybody.
type unitStatus struct {
	ID     string
	Pin    string `json:"certificate_sha256"`
	Tether struct{ State, Session, Error string }
	Device struct{ State string }

	Pairing struct {
		Paired, Open bool
		Generation   uint32
	}
	Identity struct {
		Verified bool
		Factory  string `json:"factory_certificate_until"`
	}
}

// eventually waits until the unit's status pleases check.
func (u *unit) eventually(what string, check func(unitStatus) error) (st unitStatus) {
	u.t.Helper()
	p := stranger(u.t, u)
	eventually(u.t, u.name+": "+what, func() error {
		if err := u.run.running(); err != nil {
			return &fatalError{err}
		}
		st = unitStatus{}
		r, err := p.try("GET", "/.cloudrest/v1/status", "")
		if err == nil {
			err = r.into(200, &st)
		}
		if err != nil {
			return err
		}
		return check(st)
	})
	return st
}

// online waits until the unit is at a relay.
func (u *unit) online() unitStatus {
	u.t.Helper()
	return u.eventually("is at the relay", func(st unitStatus) error {
		if st.Tether.State != "up" {
			return fmt.Errorf("the tether is %+v", st.Tether)
		}
		return nil
	})
}

// person is a client of one address, with one connection at a time.
type person struct {
	t      *testing.T
	base   string
	client *http.Client
	token  string // with each request, if it has one
}

// newPerson takes any certificate if conf is nil; from is its own address, "" any.
func newPerson(t *testing.T, base string, conf *tls.Config, from string) *person {
	t.Helper()
	if conf == nil {
		conf = &tls.Config{InsecureSkipVerify: true}
	}
	d := &tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}
	if from != "" {
		d.NetDialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	p := &person{t: t, base: base, client: &http.Client{Timeout: patience, Transport: &http.Transport{DialTLSContext: d.DialContext}}}
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// stranger knows nothing about the unit but its address.
func stranger(t *testing.T, u *unit) *person { return newPerson(t, u.base(), nil, "") }

// reply is an answer that was read whole.
type reply struct {
	*http.Response
	body []byte
	TLS  *tls.ConnectionState
}

func (r *reply) String() string { return fmt.Sprintf("%s %.400s", r.Status, r.body) }

// into reads the body of an answer with that status as JSON.
func (r *reply) into(status int, v any) error {
	if r.StatusCode != status {
		return fmt.Errorf("%v, want %d", r, status)
	}
	return json.Unmarshal(r.body, v)
}

func (p *person) request(ctx context.Context, method, path, body string, fields ...string) *http.Request {
	p.t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, p.base+path, bytes.NewReader([]byte(body)))
	if err != nil {
		p.t.Fatal(err)
	}
	if p.token != "" {
		r.Header.Set("Authorization", "Bearer "+p.token)
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	return r
}

// try makes a request; fields are names and values.
func (p *person) try(method, path, body string, fields ...string) (*reply, error) {
	p.t.Helper()
	resp, err := p.client.Do(p.request(p.t.Context(), method, path, body, fields...))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &reply{resp, text, resp.TLS}, err
}

// do is try, which has to work.
func (p *person) do(method, path, body string, fields ...string) *reply {
	p.t.Helper()
	r, err := p.try(method, path, body, fields...)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

// want makes a request and compares the status.
func (p *person) want(status int, method, path, body string, fields ...string) *reply {
	p.t.Helper()
	r := p.do(method, path, body, fields...)
	if r.StatusCode != status {
		p.t.Errorf("%s %s = %v, want %d", method, path, r, status)
	}
	return r
}

const pairPath = "/.cloudrest/v1/pair"

// pairAnswer is what POST and GET below /pair answer.
type pairAnswer struct {
	State, Request, Token, Code, Nonce, Pin, Message string
	Client                                           struct{ ID, Name, Role, Way string }
}

// ask does the exchange of SPEC.md §11.3 and returns the last answer with the code that
// this end has computed by itself.
func (p *person) ask(name string) (a pairAnswer, status int, code string, err error) {
	var own [trust.NonceSize]byte
	rand.Read(own[:])
	b64 := base64.RawURLEncoding
	body := func(v map[string]string) string { b, _ := json.Marshal(v); return string(b) }
	first, err := p.try("POST", pairPath, body(map[string]string{"name": name, "commitment": b64.EncodeToString(trust.Commit(own[:]))}))
	if err != nil {
		return a, 0, "", err
	}
	if err := json.Unmarshal(first.body, &a); err != nil || first.StatusCode != 202 || a.State != "nonce" {
		return a, first.StatusCode, "", err
	}
	theirs, err := b64.DecodeString(a.Nonce)
	if err != nil {
		return a, 0, "", err
	}
	second, err := p.try("POST", pairPath+"/"+a.Request, body(map[string]string{"nonce": b64.EncodeToString(own[:])}))
	if err != nil {
		return a, 0, "", err
	}
	request := a.Request
	a = pairAnswer{}
	if err := json.Unmarshal(second.body, &a); err != nil {
		return a, second.StatusCode, "", err
	}
	if a.Request == "" {
		a.Request = request
	}
	pin, err := trust.PinOf(second.TLS)
	if err != nil {
		return a, 0, "", err
	}
	export, err := trust.Exporter(second.TLS)
	return a, second.StatusCode, trust.Code(pin, export, own[:], theirs), err
}

// decided waits until somebody has decided about a request.
func (p *person) decided(request string) (a pairAnswer, status int) {
	p.t.Helper()
	eventually(p.t, "a decision about the request", func() error {
		r, err := p.try("GET", pairPath+"/"+request, "") // answers after 25 s at the latest
		if err != nil {
			return &fatalError{err}
		}
		a, status = pairAnswer{}, r.StatusCode
		if err := json.Unmarshal(r.body, &a); err != nil {
			return &fatalError{fmt.Errorf("%v: %w", r, err)}
		}
		if status == 202 {
			return errNotYet
		}
		return nil
	})
	return a, status
}

// terminal makes a pseudo terminal: what a person has before them, and what a program is
// given as its standard input.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this machine has no pseudo terminals")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}
