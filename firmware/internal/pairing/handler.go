package pairing

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of the HTTP API.
const (
	maxBody  = 4 << 10 // bytes
	longPoll = 25 * time.Second
)

// Serves reports whether Handler is the one for a path.
func Serves(path string) bool {
	rest, ok := own(path)
	first, _, _ := strings.Cut(rest, "/")
	switch first {
	case "pair", "clients", "invitations", "session", "security":
		return ok
	}
	return false
}

// Handler serves /.cloudrest/v1/pair, clients, invitations, session and security (tether/SPEC.md, "LAN trust and
// pairing"). It decides itself who may do what, so it must not stand behind Guard. Requests of the control socket and of
// the tether must be marked with Local and Remote.
func (p *Pairing) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, _ := own(r.URL.Path)
		v, err := p.serve(w, r, strings.Split(rest, "/"))
		if err != nil {
			if why, ok := errors.AsType[*refusal](err); ok {
				writeRefusal(w, r, why)
			} else if errors.Is(err, ErrStore) {
				writeRefusal(w, r, &refusal{http.StatusServiceUnavailable, "the change " + ErrStore.Error() + ": is the device's storage full?", WindowTime})
			} else {
				refuseAccess(w, r, err)
			}
			return
		}
		status := http.StatusOK
		if a, ok := v.(answer); ok {
			status = a.status
		}
		if v == nil {
			header(w)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		writeJSON(w, r, status, v)
	})
}

// serve does what is asked and returns what is to be answered, nil: nothing.
func (p *Pairing) serve(w http.ResponseWriter, r *http.Request, path []string) (any, error) {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !get && !IsLocal(r) {
		// Also without a cookie: a page of another site is not to pair, or to make its visitor somebody else here.
		if same, said := sameOrigin(r); said && !same {
			return nil, ErrCrossSite
		}
	}
	at := func(method string, pattern ...string) bool {
		if method != r.Method && !(method == http.MethodGet && get) || len(pattern) != len(path) {
			return false
		}
		for i, s := range pattern {
			if !matches(s, path[i]) {
				return false
			}
		}
		return true
	}
	switch {
	case at("GET", "pair"):
		return p.state(), nil
	case at("POST", "pair"):
		return p.postPair(w, r)
	case at("POST", "pair", "window"):
		return p.postWindow(r)
	case at("DELETE", "pair", "window"):
		return p.as(r, func(who actor) (any, error) { return nil, p.closeBy(who) })
	case at("GET", "pair", "requests"):
		return p.as(r, p.requests)
	case at("GET", "pair", "*"):
		return p.getPair(w, r, path[1])
	case at("POST", "pair", "*"):
		return p.postNonce(w, r, path[1])
	case at("POST", "pair", "*", "approve"), at("POST", "pair", "*", "refuse"):
		return p.postDecision(r, path[1], path[2] == "approve")
	case at("GET", "clients"):
		return p.as(r, p.getClients)
	case at("PATCH", "clients", "*"):
		return p.patchClient(r, path[1])
	case at("DELETE", "clients", "*"):
		return p.as(r, func(who actor) (any, error) { return nil, p.remove(who, path[1]) })
	case at("POST", "invitations"):
		return p.postInvitation(r)
	case at("DELETE", "invitations"):
		return p.as(r, func(who actor) (any, error) { return nil, p.withdraw(who) })
	case at("GET", "session"):
		return p.as(r, p.session)
	case at("POST", "session"):
		return p.postSession(w, r)
	case at("DELETE", "session"):
		setCookie(w, "", -time.Second)
		return nil, nil
	case at("GET", "security"):
		return p.as(r, func(who actor) (any, error) {
			if who.role != Owner {
				return nil, errOwner
			}
			return p.Events(), nil
		})
	}
	return nil, p.notHere(w, path)
}

// matches compares a word of a pattern and one of a path; "*" is an id.
func matches(pattern, word string) bool {
	return pattern == word || pattern == "*" && word != "" && word != "window" && word != "requests"
}

// methods of each resource, for 405.
var methods = []struct {
	path, allow string
}{
	{"pair/window", "POST, DELETE"}, {"pair/requests", "GET, HEAD"}, {"pair/*/approve", "POST"}, {"pair/*/refuse", "POST"},
	{"pair/*", "GET, HEAD, POST"}, {"pair", "GET, HEAD, POST"}, {"clients/*", "PATCH, DELETE"}, {"clients", "GET, HEAD"},
	{"invitations", "POST, DELETE"}, {"session", "GET, HEAD, POST, DELETE"}, {"security", "GET, HEAD"},
}

func (p *Pairing) notHere(w http.ResponseWriter, path []string) error {
	for _, m := range methods {
		pattern := strings.Split(m.path, "/")
		if slices.EqualFunc(pattern, path, matches) {
			w.Header().Set("Allow", m.allow)
			return refuse(http.StatusMethodNotAllowed, "this takes %s", m.allow)
		}
	}
	return refuse(http.StatusNotFound, "there is nothing at this path")
}

// as does f for who makes the request.
func (p *Pairing) as(r *http.Request, f func(actor) (any, error)) (any, error) {
	who, err := p.who(r)
	if err != nil {
		return nil, err
	}
	return f(who)
}

type stateView struct {
	Open    bool   `json:"open"`
	Until   string `json:"until,omitempty"`
	Confirm bool   `json:"confirm"`
	Paired  bool   `json:"paired"`
	Fresh   bool   `json:"fresh"`
}

func (p *Pairing) state() stateView {
	win := p.Window()
	return stateView{win.Open, stamp(win.Until), win.Confirm, len(*p.clients.Load()) > 0, win.Fresh}
}

// answer is about one asker.
type answer struct {
	status  int
	State   string      `json:"state"` // "nonce", "waiting", "paired"
	Request string      `json:"request,omitempty"`
	Token   string      `json:"token,omitempty"`
	Client  *clientView `json:"client,omitempty"`
	Code    string      `json:"code,omitempty"`
	Nonce   string      `json:"nonce,omitempty"`
	Pin     string      `json:"pin,omitempty"`
}

// answerTo says where the asker stands. When it has paired, the token goes out here, and only once.
func (p *Pairing) answerTo(w http.ResponseWriter, a *ask) (any, error) {
	p.begin()
	defer p.end()
	v := answer{status: http.StatusAccepted, Request: a.key, Code: a.code, Nonce: base64.RawURLEncoding.EncodeToString(a.nonce), Pin: p.cfg.Pin()}
	switch a.step {
	case stepNonce:
		v.State = "nonce"
	case stepWaiting:
		v.State = "waiting"
	case stepPaired:
		c := viewOf(a.client, a.client.ID)
		v.status, v.State, v.Request, v.Client = http.StatusOK, "paired", "", &c
		token := p.take(a)
		if a.cookie {
			setCookie(w, token, cookieAge) // and nowhere a script could read it
		} else {
			v.Token = token
		}
	default:
		return nil, a.refusal
	}
	return v, nil
}

// onLAN reports why a request may not pair here.
func onLAN(r *http.Request) error {
	switch {
	case IsRemote(r):
		return refuse(http.StatusForbidden, "pairing works on the LAN only: nobody pairs from afar")
	case IsLocal(r), r.TLS == nil:
		return refuse(http.StatusForbidden, "pairing needs a TLS connection, which its code is bound to")
	}
	return nil
}

func (p *Pairing) postPair(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := onLAN(r); err != nil {
		return nil, err
	}
	var q asking
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	a, err := p.ask(q, r.TLS, r.RemoteAddr)
	if err != nil {
		return nil, err
	}
	return p.answerTo(w, a)
}

func (p *Pairing) postNonce(w http.ResponseWriter, r *http.Request, key string) (any, error) {
	if err := onLAN(r); err != nil {
		return nil, err
	}
	var q struct {
		Nonce string `json:"nonce"`
	}
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	a, err := p.reveal(key, q.Nonce, r.TLS)
	if err != nil {
		return nil, err
	}
	return p.answerTo(w, a)
}

// getPair waits until the asker's request is decided.
func (p *Pairing) getPair(w http.ResponseWriter, r *http.Request, key string) (any, error) {
	if err := onLAN(r); err != nil {
		return nil, err
	}
	now := p.begin()
	a, err := p.find(key)
	wait := time.Duration(0)
	if err == nil && a.step == stepWaiting && r.Method == http.MethodGet {
		wait = min(longPoll, a.until.Sub(now))
	}
	p.end()
	if err != nil {
		return nil, err
	}
	if r.Method == http.MethodHead {
		return nil, nil // it must not use the token up
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-a.done:
		case <-t.C:
		case <-r.Context().Done():
			return nil, gone("you went away") // the token stays for the next try
		}
	}
	return p.answerTo(w, a)
}

func (p *Pairing) postWindow(r *http.Request) (any, error) {
	who, err := p.who(r)
	if err != nil {
		return nil, err
	}
	var q struct {
		Role Role `json:"role"`
	}
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	way, by := WayCLI, Client{}
	if !who.local {
		way, by = WayClient, who.rec.Client
	}
	switch _, err = p.Open(way, OpenOptions{Role: q.Role, Confirm: true, By: by}); {
	case errors.Is(err, ErrRole) && q.Role != "" && q.Role.rank() == 0:
		return nil, refuse(http.StatusBadRequest, "role is %.20q, want owner, member or guest", string(q.Role))
	case errors.Is(err, ErrRole):
		return nil, refuse(http.StatusForbidden, "a %s may not open a window for this role", who.role)
	case errors.Is(err, ErrWindow):
		return nil, refuse(http.StatusConflict, "%v: wait until it closes", err)
	case err != nil:
		return nil, err
	}
	return p.state(), nil
}

type requestView struct {
	Request string `json:"request"`
	Name    string `json:"name"`
	Role    Role   `json:"role"` // what it gets unless you say otherwise
	Code    string `json:"code"`
	From    string `json:"from"`
	Asked   string `json:"asked"`
}

func (p *Pairing) requests(who actor) (any, error) {
	asks, err := p.waiting(who)
	if err != nil {
		return nil, err
	}
	p.begin()
	defer p.end()
	list := []requestView{}
	for _, a := range asks {
		list = append(list, requestView{a.id, a.name, lesser(p.roleFor(a), who.role), a.code, a.from, stamp(a.at)})
	}
	return list, nil
}

func (p *Pairing) postDecision(r *http.Request, id string, approve bool) (any, error) {
	who, err := p.who(r)
	if err != nil {
		return nil, err
	}
	var q struct {
		Role Role `json:"role"`
	}
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	c, err := p.decide(who, id, approve, q.Role)
	if err != nil || !approve {
		return nil, err
	}
	return map[string]clientView{"client": viewOf(c, who.id)}, nil
}

type clientView struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Role     Role   `json:"role"`
	Created  string `json:"created"`
	Expires  string `json:"expires,omitempty"`
	LastUsed string `json:"last_used,omitempty"`
	Code     string `json:"code,omitempty"`
	Way      string `json:"way"`
	You      bool   `json:"you"`
}

func viewOf(c Client, you string) clientView {
	return clientView{c.ID, c.Name, c.Role, stamp(c.Created), stamp(c.Expires), stamp(c.LastUsed), c.Code, c.Way, c.ID == you}
}

// stamp is "" for the zero time.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func (p *Pairing) getClients(who actor) (any, error) {
	list := []clientView{}
	for _, c := range p.Clients() {
		if who.role == Owner || c.ID == who.id {
			list = append(list, viewOf(c, who.id))
		}
	}
	return map[string][]clientView{"clients": list}, nil
}

func (p *Pairing) patchClient(r *http.Request, id string) (any, error) {
	who, err := p.who(r)
	if err != nil {
		return nil, err
	}
	var q struct {
		Name    *string         `json:"name"`
		Role    *Role           `json:"role"`
		Expires json.RawMessage `json:"expires"` // RFC 3339; null or "": never
	}
	var expires *time.Time
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	if q.Expires != nil {
		if expires, err = parseExpires(q.Expires); err != nil {
			return nil, err
		}
	}
	c, err := p.change(who, id, q.Name, q.Role, expires)
	if err != nil {
		return nil, err
	}
	return map[string]clientView{"client": viewOf(c, who.id)}, nil
}

// parseExpires reads the end of a client's time; the zero time is never.
func parseExpires(raw []byte) (*time.Time, error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return nil, refuse(http.StatusBadRequest, "expires: want a time such as 2030-01-31T12:00:00Z, or null")
	}
	if text == "" {
		return new(time.Time), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || t.Unix() <= 0 || t.Year() > 9999 {
		return nil, refuse(http.StatusBadRequest, "expires is %.40q, want a time such as 2030-01-31T12:00:00Z", text)
	}
	t = t.UTC().Truncate(time.Second)
	return &t, nil
}

type inviteView struct {
	URL     string `json:"url"`
	SVG     string `json:"svg,omitempty"`
	Expires string `json:"expires"`
}

func (p *Pairing) postInvitation(r *http.Request) (any, error) {
	who, err := p.who(r)
	if err != nil {
		return nil, err
	}
	var q struct {
		Role    Role `json:"role"`
		Minutes int  `json:"minutes"`
	}
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	i, until, err := p.invite(who, q.Role, q.Minutes)
	if err != nil {
		return nil, err
	}
	v := inviteView{URL: i.String(), Expires: stamp(until)}
	if p.cfg.QR != nil {
		v.SVG = string(p.cfg.QR(v.URL))
	}
	return v, nil
}

func (p *Pairing) session(who actor) (any, error) {
	if who.local {
		return map[string]any{"local": true, "role": Owner}, nil
	}
	return map[string]clientView{"client": viewOf(who.rec.client(), who.id)}, nil
}

// postSession turns a token into the page's cookie.
func (p *Pairing) postSession(w http.ResponseWriter, r *http.Request) (any, error) {
	var q struct {
		Token string `json:"token"`
	}
	if err := readJSON(r, &q); err != nil {
		return nil, err
	}
	rec, err := p.check(r, q.Token, inField)
	if err != nil {
		return nil, err
	}
	age := cookieAge
	if !rec.Expires.IsZero() {
		age = min(age, rec.Expires.Sub(p.cfg.Now()))
	}
	setCookie(w, q.Token, age)
	return map[string]clientView{"client": viewOf(rec.client(), rec.ID)}, nil
}

// readJSON reads the body into v; no body is an empty object.
func readJSON(r *http.Request, v any) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return refuse(http.StatusBadRequest, "the body was cut short")
	case len(body) > maxBody:
		return refuse(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", maxBody)
	case len(body) == 0:
		return nil
	}
	return decodeJSON(body, v)
}

func decodeJSON(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return refuse(http.StatusBadRequest, "the body is not the JSON that this takes")
	}
	return nil
}

// decodeBase64 reads base64url without padding of exactly n bytes.
func decodeBase64(s string, n int) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != n || len(s) != base64.RawURLEncoding.EncodedLen(n) {
		return nil, fmt.Errorf("want %d bytes in base64url", n)
	}
	return b, nil
}

// refusal is an answer other than success, in HTTP's terms.
type refusal struct {
	status  int
	message string
	wait    time.Duration // Retry-After
}

func (r *refusal) Error() string { return r.message }

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, message: fmt.Sprintf(format, args...)}
}

func gone(message string) *refusal { return refuse(http.StatusGone, "%s", message) }

func busy(message string) *refusal {
	return &refusal{http.StatusTooManyRequests, message, WindowTime}
}

// header sets the fields of all answers.
func header(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}

func writeJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	body := append(mustJSON(v), '\n')
	header(w)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that is gone needs no answer
	}
}

func writeError(w http.ResponseWriter, r *http.Request, status int, message string) {
	writeJSON(w, r, status, struct {
		Error   int    `json:"error"`
		Message string `json:"message"`
	}{status, message})
}

func writeRefusal(w http.ResponseWriter, r *http.Request, why *refusal) {
	if why.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(seconds(why.wait)))
	}
	writeError(w, r, why.status, why.message)
}
