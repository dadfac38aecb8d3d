//go:build linux

package malta

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tether/trust"
)

const own = "/.cloudrest/v1/"

// status is the part of the gateway's that the tests look at.
type status struct {
	ID            string
	Pin           string `json:"certificate_sha256"`
	Uptime        int64  `json:"uptime_s"`
	Pairing       struct{ Paired, Open bool }
	Discovery     struct{ UDP, MDNS, Host string }
	Origin        struct{ State string }
	Notifications struct {
		Durability   string
		Appended     uint64
		Kept         int
		FIFOError    string `json:"fifo_error"`
		JournalError string `json:"journal_error"`
	}
}

// phone is a client of the gateway, with one connection.
type phone struct {
	b     *board
	http  *http.Client
	id    string // as a paired client; "" none
	token string
}

// newPhone trusts the device with that pin, or everybody if it is "".
func newPhone(b *board, pin string) *phone {
	conf := &tls.Config{InsecureSkipVerify: true}
	if pin != "" {
		conf = trust.Client(pin)
	}
	d := &tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}
	p := &phone{b: b, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialTLSContext: d.DialContext, MaxConnsPerHost: 1}}}
	b.t.Cleanup(p.http.CloseIdleConnections)
	return p
}

func (p *phone) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://127.0.0.1:%d%s", p.b.https, path), body)
	if err == nil && p.token != "" {
		r.Header.Set("Authorization", "Bearer "+p.token)
	}
	return r, err
}

// do makes a request with in as JSON, if it is not nil, and reads the answer into out, if
// that is not nil. Anything but a status below 300 is a *statusError.
func (p *phone) do(method, path string, in, out any) (*tls.ConnectionState, error) {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	r, err := p.request(p.b.t.Context(), method, path, body)
	if err != nil {
		return nil, err
	}
	res, err := p.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 4*mib))
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		return nil, &statusError{res.StatusCode, fmt.Sprintf("%s %s: %s: %.300s", method, path, res.Status, text)}
	}
	if out != nil {
		err = json.Unmarshal(text, out)
	}
	return res.TLS, err
}

type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// up waits for the gateway, the service behind it, and discovery.
func (p *phone) up() (st status) {
	p.b.t.Helper()
	eventually(p.b.t, "the gateway and the service", func() error {
		st = status{}
		if _, err := p.do("GET", own+"status", nil, &st); err != nil {
			return err
		}
		if st.Origin.State != "up" || st.Discovery.UDP != "on" || st.Discovery.MDNS != "on" {
			return fmt.Errorf("not yet: %+v", st)
		}
		return nil
	})
	return st
}

// pair does the exchange of SPEC.md §11.3: in an open window, or with the secret of an invitation.
func (p *phone) pair(name, secret string) error {
	var a struct {
		State, Request, Token, Code, Nonce string
		Client                             struct{ ID, Role string }
	}
	var nonce [trust.NonceSize]byte
	rand.Read(nonce[:])
	b64 := base64.RawURLEncoding
	ask := map[string]string{"name": name, "commitment": b64.EncodeToString(trust.Commit(nonce[:]))}
	if secret != "" {
		ask["secret"] = secret
	}
	if _, err := p.do("POST", own+"pair", ask, &a); err != nil {
		return err
	}
	theirs, err := b64.DecodeString(a.Nonce)
	if err != nil {
		return err
	}
	conn, err := p.do("POST", own+"pair/"+a.Request, map[string]string{"nonce": b64.EncodeToString(nonce[:])}, &a)
	if err != nil {
		return err
	}
	if a.State != "paired" || a.Token == "" {
		return fmt.Errorf("pair %s: the answer is %q, want paired", name, a.State)
	}
	pin, err := trust.PinOf(conn)
	if err != nil {
		return err
	}
	export, err := trust.Exporter(conn)
	if err != nil {
		return err
	}
	if code := trust.Code(pin, export, nonce[:], theirs); a.Code != code {
		return fmt.Errorf("pair %s: code %s, want %s", name, a.Code, code)
	}
	p.id, p.token = a.Client.ID, a.Token
	return nil
}

// invite returns the secret of an invitation.
func (p *phone) invite() (secret string, err error) {
	var inv struct{ URL string }
	if _, err := p.do("POST", own+"invitations", map[string]any{"role": "guest", "minutes": 60}, &inv); err != nil {
		return "", err
	}
	i, err := trust.ParseInvitation(inv.URL)
	return i.Secret, err
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// events returns the notifications that the gateway keeps, up to the one whose text is last.
func (p *phone) events(last string) (texts []string, err error) {
	ctx, cancel := context.WithTimeout(p.b.t.Context(), patience)
	defer cancel()
	r, err := p.request(ctx, "GET", own+"events", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Last-Event-ID", "none") // unknown: all that is kept comes
	client := *p.http
	client.Timeout = 0
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("events: %s", res.Status)
	}
	for stream := sse.NewReader(res.Body); ; {
		e, err := stream.Next()
		if err != nil {
			return texts, fmt.Errorf("events, after %d: %w", len(texts), err)
		}
		if e.Name == sse.ResetName {
			continue
		}
		texts = append(texts, string(e.Data))
		if string(e.Data) == last {
			return texts, nil
		}
	}
}
