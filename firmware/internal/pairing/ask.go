package pairing

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"net/http"
	"slices"
	"time"

	"github.com/cloudrest/cloudrest/tether/trust"
)

// Bounds of askers.
const (
	maxAttempts = 8                // in one window
	maxWaiting  = 4                // undecided at once
	maxAsks     = 16               // kept at once, decided ones too
	askTime     = 60 * time.Second // from asking to the decision, and from there until the token is fetched
)

// ask is one asker on its way to a token.
type ask struct {
	key      string // only the asker knows it
	id       string // names it to those who confirm
	name     string
	asked    Role
	cookie   bool
	from     string
	at       time.Time
	until    time.Time
	window   *window     // nil: it came with a secret
	invite   *invitation // of that secret; nil: it is the label's
	step     askStep
	commit   []byte // the client's commitment
	exporter []byte // of the connection it asked over
	nonce    []byte // the device's
	code     string
	done     chan struct{} // closed when it is decided
	refusal  *refusal      // how it was decided, if not in favour
	token    string        // "" once fetched
	client   Client
}

type askStep uint8

const (
	stepNonce   askStep = iota // the client's nonce is awaited
	stepWaiting                // a person's decision is awaited
	stepPaired
	stepOver
)

// finish decides against the asker. Deciding twice does nothing.
func (a *ask) finish(why *refusal) {
	if a.step == stepOver {
		return
	}
	if a.step != stepPaired {
		close(a.done)
	}
	a.step, a.refusal, a.token = stepOver, why, ""
}

// again reports whether b is the asker of a, whose first answer got lost: it says the same over the same connection.
func (a *ask) again(b *ask) bool {
	return a.step == stepNonce && b.commit != nil && subtle.ConstantTimeCompare(a.commit, b.commit) == 1 && subtle.ConstantTimeCompare(a.exporter, b.exporter) == 1
}

func (a *ask) undecided() bool { return a.step == stepNonce || a.step == stepWaiting }

// asking is what POST /pair carries.
type asking struct {
	Name       string `json:"name"`
	Commitment string `json:"commitment"`
	Secret     string `json:"secret"`
	Role       Role   `json:"role"`
	Cookie     bool   `json:"cookie"`
}

// ask takes an asker in. cs is the connection it came over, from its address.
func (p *Pairing) ask(q asking, cs *tls.ConnectionState, from string) (*ask, error) {
	exporter, err := trust.Exporter(cs)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if q.Role != "" && q.Role.rank() == 0 {
		return nil, refuse(http.StatusBadRequest, "role is %.20q, want owner, member or guest", string(q.Role))
	}
	a := &ask{
		key: random(16), id: newID(), name: cleanName(q.Name), asked: q.Role, cookie: q.Cookie, from: hostOf(from),
		exporter: exporter, done: make(chan struct{}), nonce: randomBytes(trust.NonceSize),
	}
	if q.Commitment != "" {
		if a.commit, err = decodeBase64(q.Commitment, sha256.Size); err != nil {
			return nil, refuse(http.StatusBadRequest, "commitment: %v", err)
		}
	}
	now := p.begin()
	defer p.end()
	a.at, a.until = now, now.Add(askTime)
	if len(p.asks) >= maxAsks {
		return nil, busy("too many have asked to pair: try again in a minute")
	}
	if q.Secret != "" {
		return p.askWithSecret(a, q.Secret, now)
	}
	w := p.win
	if w == nil {
		if p.winner.id != "" && now.Before(p.winner.until) {
			return nil, p.lost()
		}
		return nil, refuse(http.StatusForbidden, "pairing is not open: %s", howToOpen)
	}
	if a.commit != nil {
		for _, b := range p.asks { // the answer was lost and the same client asks again
			if b.window == w && b.again(a) {
				return b, nil
			}
		}
	}
	if w.attempts >= maxAttempts {
		return nil, busy("too many attempts in this pairing window: wait for the next one")
	}
	w.attempts++
	waiting := 0
	for _, b := range p.asks {
		if b.undecided() {
			waiting++
		}
	}
	if !w.confirm {
		for _, b := range p.asks {
			if b.window != w || !b.undecided() {
				continue
			}
			// Nobody is there to choose, and one of the two is not who the person means.
			why := refuse(http.StatusConflict, "two clients asked to pair at the same time, so neither was let in and the window is closed: %q from %s and %q from %s. Somebody in your network may want to get in first: open a window again and look at the security events, or confirm with \"cloudrestd pair --open\"",
				b.name, b.from, a.name, a.from)
			b.finish(why)
			p.refusedAsk(b, "two clients asked at the same time")
			p.refusedAsk(a, "two clients asked at the same time")
			p.closeWindow(EventWindowClosed, "two clients asked at the same time", "")
			return nil, why
		}
	}
	if waiting >= maxWaiting {
		p.refusedAsk(a, "too many are waiting")
		return nil, busy("too many are waiting to be let in: try again in a minute")
	}
	a.window = w
	return a, p.proceed(a, now)
}

// proceed does the first step of an asker that is let in. p.mu is held.
func (p *Pairing) proceed(a *ask, now time.Time) error {
	if a.commit != nil {
		p.asks = append(p.asks, a)
		return nil
	}
	return p.compared(a, nil, now)
}

// compared goes on once the comparison code is known. p.mu is held.
func (p *Pairing) compared(a *ask, nonce []byte, now time.Time) error {
	a.code = trust.Code(p.cfg.Pin(), a.exporter, nonce, a.nonce)
	if a.window != nil && a.window.confirm {
		a.step = stepWaiting
		if !slices.Contains(p.asks, a) {
			p.asks = append(p.asks, a)
		}
		p.tellWindow(p.win == a.window, a.code)
		return nil
	}
	role := p.roleFor(a)
	return p.pair(a, role, now)
}

// reveal takes the nonce that the client committed to, over the connection cs.
func (p *Pairing) reveal(key, nonce string, cs *tls.ConnectionState) (*ask, error) {
	exporter, err := trust.Exporter(cs)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	n, err := decodeBase64(nonce, trust.NonceSize)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "nonce: %v", err)
	}
	now := p.begin()
	defer p.end()
	a, err := p.find(key)
	if err != nil {
		return nil, err
	}
	switch {
	case a.step == stepOver:
		return nil, a.refusal
	case a.step != stepNonce:
		return nil, refuse(http.StatusConflict, "the nonce was given already")
	case subtle.ConstantTimeCompare(a.exporter, exporter) != 1:
		// Who could choose among connections would find one that gives the code he wants (SPEC.md §11.3).
		why := refuse(http.StatusConflict, "the second step came over another connection than the first: begin anew")
		a.finish(why)
		p.refusedAsk(a, "the second step came over another connection")
		return nil, why
	case !trust.Committed(a.commit, n):
		why := refuse(http.StatusForbidden, "the nonce is not the one committed to")
		a.finish(why)
		p.refusedAsk(a, "the nonce is not the one committed to")
		return nil, why
	}
	return a, p.compared(a, n, now)
}

// find returns the request with the asker's key. p.mu is held.
func (p *Pairing) find(key string) (*ask, error) {
	var found *ask
	for _, a := range p.asks {
		if subtle.ConstantTimeCompare([]byte(a.key), []byte(key)) == 1 {
			found = a
		}
	}
	if found == nil {
		return nil, gone("there is no such request, or it is over: ask again")
	}
	return found, nil
}
