package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/qrcode"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tether/trust"
)

type pairOptions struct {
	reach
	name, role   string
	list, invite bool
	revoke       string
	minutes      int
}

func pairCommand(env environment) *settings.Command {
	var o pairOptions
	return &settings.Command{
		Name: "pair", Summary: "pair with a device on the LAN, or manage who is paired", Args: "DEVICE | URL | INVITATION", MinArgs: 1, MaxArgs: 1,
		Long: "Without more, asks the device to be let in: its pairing window must be open (its button, `cloudrestd pair --open` on it, or " +
			"somebody who is paired), and the six digits must be the same at both ends. An invitation, the link in a QR code, needs no window. " +
			"The token is kept beside the pin of the device, and the other commands use it.",
		Samples: []settings.Sample{
			{Says: "after a press on the device's button", Line: "cloudrest pair \"Garden irrigation\""},
			{Says: "with the link of a QR code", Line: "cloudrest pair 'https://cloudrest-3f2a91bc.local/.cloudrest/#c=…'"},
			{Says: "let somebody else in, as an owner", Line: "cloudrest pair \"Garden irrigation\" --invite --role guest"},
			{Says: "who is paired, and no longer", Line: "cloudrest pair \"Garden irrigation\" --list;  cloudrest pair \"Garden irrigation\" --revoke 5f2e91d0a3b7c468"},
		},
		Declare: func(s *settings.Set) {
			o = pairOptions{minutes: 10}
			s.Group("Pairing")
			s.String(&o.name, "name", "what the device calls this program; default: user and machine", settings.Example("Ann's laptop"))
			s.Enum(&o.role, "role", []string{"owner", "member", "guest"}, "what to be allowed, or to allow: all (owner), use (member), look (guest)")
			s.Group("For owners")
			s.Switch(&o.list, "list", "list who is paired")
			s.String(&o.revoke, "revoke", "take the rights of one away", settings.What("ID"))
			s.Switch(&o.invite, "invite", "print a QR code and a link that pair one phone")
			s.Int(&o.minutes, "minutes", 1, 24*60, "how long the invitation is good")
			o.declare(s)
		},
		Run: func(ctx context.Context, in *settings.Parsed, out io.Writer) error {
			o.notes, o.discover = env.stderr, env.discover
			return o.run(ctx, in.Args[0], screenOf(out))
		},
	}
}

func (o *pairOptions) run(ctx context.Context, word string, out *screen) error {
	switch {
	case o.list || o.revoke != "" || o.invite:
		return o.manage(ctx, word, out)
	case o.name == "":
		host, _ := os.Hostname()
		o.name = strings.Trim(os.Getenv("USER")+"@"+host, "@")
	}
	e, secret, err := o.target(ctx, word)
	if err != nil {
		return err
	}
	p, err := openPins(o.pinsFile)
	if err != nil {
		return cannot("%w", err)
	}
	if old := p.find(string(e.ID)); len(old) == 1 && old[0].Pin != e.Pin {
		return changed(old[0], &trust.PinError{Want: old[0].Pin, Got: e.Pin})
	}
	a := asker{pin: e, name: o.name, role: o.role, secret: secret, say: func(text string) { fmt.Fprintln(o.notes, text) }}
	client, err := a.pair(ctx)
	if err != nil {
		return err
	}
	if err := p.put(a.pin); err != nil {
		return cannot("%w", err)
	}
	fmt.Fprintf(out, "paired with %s (%s) as %s; the token is in %s\n", printable(a.pin.Name), a.pin.ID.Short(), client.Role, p.path)
	return nil
}

// target is the device that a word means, with its pin: from an invitation, which also has
// a secret, from what is remembered, or from a first contact.
func (o *pairOptions) target(ctx context.Context, word string) (e pin, secret string, err error) {
	e.Since = time.Now().UTC().Truncate(time.Second)
	if strings.Contains(word, tether.OwnPrefix+"#") {
		inv, err := trust.ParseInvitation(word)
		if err != nil {
			return e, "", cannot("%w", err)
		}
		e.ID, e.Pin, e.URL, e.Name = inv.ID, inv.Pin, inv.URL, inv.ID.Short()
		return e, inv.Secret, nil
	}
	if strings.Contains(word, "://") {
		u, err := settings.ParseURL(word, "https")
		if err != nil {
			return e, "", cannot("URL: %w", err)
		}
		if e, err := o.deviceAt(u); err != nil || e.ID != "" {
			return e, "", err
		}
		s, got, err := identify(ctx, u.Host)
		if err != nil {
			return e, "", cannot("ask %s who it is: %w", u.Host, err)
		}
		if o.fingerprint != "" && !strings.EqualFold(o.fingerprint, got) {
			return e, "", cannot("%s shows the pin %s, not the one of --fingerprint: somebody else may be answering in its place", u.Host, got)
		}
		e.ID, e.Pin, e.Name, e.URL = s.ID, got, s.Name, "https://"+u.Host
		return e, "", nil
	}
	if _, err := o.byLAN(ctx, word); err != nil {
		return e, "", err
	}
	p, err := openPins(o.pinsFile) // byLAN has remembered it
	if err != nil {
		return e, "", cannot("%w", err)
	}
	found := p.find(word)
	if len(found) != 1 {
		return e, "", ambiguous(word, found, func(e pin) (tether.DeviceID, string) { return e.ID, e.Name })
	}
	return found[0], "", nil
}

// asker pairs with one device (SPEC.md §11.3).
type asker struct {
	pin                pin // gets the token
	name, role, secret string
	say                func(text string) // for people
}

// pairAnswer is what the device says to an asker.
type pairAnswer struct {
	State   string `json:"state"` // "nonce", "waiting", "paired"
	Request string `json:"request"`
	Nonce   string `json:"nonce"`
	Code    string `json:"code"`
	Token   string `json:"token"`
	Client  struct {
		ID   string `json:"id"`
		Role string `json:"role"`
	} `json:"client"`
}

// pairTime bounds one request of the exchange; the device holds the last one for 25 s.
const pairTime = 40 * time.Second

// errInBetween means that what the device computed does not fit what this end sees.
var errInBetween = errors.New("the device's code is not the one that this connection gives: SOMEBODY IS IN BETWEEN, nothing was paired")

// pair goes through the exchange: commitment, nonces, code, and the wait for a person.
func (a *asker) pair(ctx context.Context) (answer *pairAnswerClient, err error) {
	u, err := url.Parse(a.pin.URL)
	if err != nil {
		return nil, cannot("%q is no address: %w", a.pin.URL, err)
	}
	e := a.pin
	e.Token = "" // one from an earlier time is of no use here
	m := lanRemote(u, e)
	defer m.client.CloseIdleConnections()
	if t, ok := m.client.Transport.(*http.Transport); ok {
		t.MaxConnsPerHost = 1 // the code is bound to one connection
	}
	nonce := make([]byte, trust.NonceSize)
	rand.Read(nonce)
	b64 := base64.RawURLEncoding
	ask := map[string]any{"name": a.name, "commitment": b64.EncodeToString(trust.Commit(nonce))}
	if a.secret != "" {
		ask["secret"] = a.secret
	}
	if a.role != "" {
		ask["role"] = a.role
	}
	v, _, err := a.post(ctx, m, "pair", ask)
	if err != nil {
		return nil, err
	}
	device, err := b64.DecodeString(v.Nonce)
	if err != nil || len(device) != trust.NonceSize || v.State != "nonce" {
		return nil, cannot("the device answered %q where its nonce was due", printable(v.State))
	}
	key := v.Request
	v, code, err := a.post(ctx, m, "pair/"+url.PathEscape(key), map[string]string{"nonce": b64.EncodeToString(nonce)}, nonce, device)
	if err != nil {
		return nil, err
	}
	if v.Code != code {
		return nil, cannot("%w", errInBetween)
	}
	a.say(fmt.Sprintf("code %s %s: it must be the same on the device", code[:3], code[3:]))
	for v.State == "waiting" {
		if v, err = a.wait(ctx, m, key); err != nil {
			return nil, err
		}
	}
	if v.State != "paired" || v.Token == "" {
		return nil, cannot("the device answered %q, and gave no token", printable(v.State))
	}
	a.pin.Token = v.Token
	return &pairAnswerClient{v.Client.ID, v.Client.Role, code}, nil
}

// pairAnswerClient is who one is to the device now.
type pairAnswerClient struct{ ID, Role, Code string }

// post sends one step. With two nonces it also returns the code that this end of the
// connection gives.
func (a *asker) post(ctx context.Context, m *remote, path string, v any, nonces ...[]byte) (out pairAnswer, code string, err error) {
	body, err := json.Marshal(v)
	if err != nil {
		return out, "", err
	}
	res, err := a.do(ctx, m, http.MethodPost, path, body, &out)
	if err != nil {
		return out, "", err
	}
	if len(nonces) == 2 {
		exporter, err := trust.Exporter(res.TLS)
		if err != nil {
			return out, "", cannot("%w", err)
		}
		seen, err := trust.PinOf(res.TLS)
		if err != nil {
			return out, "", cannot("%w", err)
		}
		code = trust.Code(seen, exporter, nonces[0], nonces[1])
	}
	return out, code, nil
}

func (a *asker) wait(ctx context.Context, m *remote, key string) (out pairAnswer, err error) {
	_, err = a.do(ctx, m, http.MethodGet, "pair/"+url.PathEscape(key), nil, &out)
	return out, err
}

func (a *asker) do(ctx context.Context, m *remote, method, path string, body []byte, v any) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, pairTime)
	defer cancel()
	req, err := m.request(ctx, method, tether.OwnPrefix+"v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := m.client.Do(req)
	if err != nil {
		return nil, connectError(m, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, cannot("read the device's answer: %w", err)
	}
	if res.StatusCode >= 400 {
		var e struct{ Message string }
		if json.Unmarshal(text, &e) != nil || e.Message == "" {
			e.Message = res.Status
		}
		return nil, &settings.ExitError{Code: exitStatus, Err: fmt.Errorf("%s", printable(e.Message))}
	}
	if v != nil {
		if err := json.Unmarshal(text, v); err != nil {
			return nil, cannot("read the device's answer: %w", err)
		}
	}
	return res, nil
}

// manage does what owners may do, with the token that pairing gave.
func (o *pairOptions) manage(ctx context.Context, word string, out *screen) error {
	m, err := o.find(ctx, word)
	if err != nil {
		return err
	}
	a := asker{}
	switch {
	case o.revoke != "":
		if _, err := a.do(ctx, m, http.MethodDelete, "clients/"+url.PathEscape(o.revoke), nil, nil); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is no longer paired\n", printable(o.revoke))
		return nil
	case o.invite:
		role := o.role
		if role == "" {
			role = "member"
		}
		body, err := json.Marshal(map[string]any{"role": role, "minutes": o.minutes})
		if err != nil {
			return err
		}
		var inv struct {
			URL     string    `json:"url"`
			Expires time.Time `json:"expires"`
		}
		if _, err := a.do(ctx, m, http.MethodPost, "invitations", body, &inv); err != nil {
			return err
		}
		if err := qrcode.Terminal(out, inv.URL); err != nil {
			return cannot("draw the QR code: %w", err)
		}
		fmt.Fprintf(out, "\n%s\n\nPairs one phone as %s, until %s. Whoever sees it can use it.\n", printable(inv.URL), role, inv.Expires.Local().Format("15:04"))
		return nil
	}
	var list struct {
		Clients []struct {
			ID, Name, Role, Way string
			Created             time.Time
			You                 bool
		}
	}
	if _, err := a.do(ctx, m, http.MethodGet, "clients", nil, &list); err != nil {
		return err
	}
	for _, c := range list.Clients {
		you := ""
		if c.You {
			you = "  (you)"
		}
		fmt.Fprintf(out, "%s  %-6s  %s  %-11s  %s%s\n", printable(c.ID), printable(c.Role), c.Created.Local().Format("2006-01-02"), printable(c.Way), printable(c.Name), you)
	}
	return nil
}
