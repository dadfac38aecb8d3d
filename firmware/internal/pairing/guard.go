package pairing

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
)

// Errors of Authenticate; there is *ThrottledError too.
var (
	ErrNoToken   = errors.New("no token")
	ErrBadToken  = errors.New("the token is not one of this device")
	ErrExpired   = errors.New("the token's time is over")
	ErrCrossSite = errors.New("a page of another site made this request")
)

type ctxKey uint8

const (
	keyClient ctxKey = iota
	keyWay
)

// wayIn is how a request came, if not from the LAN.
type wayIn uint8

const (
	viaLAN wayIn = iota
	viaSocket
	viaTether
)

// Local marks a request of the control socket, which has the rights of an owner: only who may read the state
// directory can open it.
func Local(r *http.Request) *http.Request { return via(r, viaSocket) }

// IsLocal reports whether Local marked r.
func IsLocal(r *http.Request) bool { return r.Context().Value(keyWay) == viaSocket }

// Remote marks a request that came over the tether: nobody pairs from afar.
func Remote(r *http.Request) *http.Request { return via(r, viaTether) }

// IsRemote reports whether Remote marked r.
func IsRemote(r *http.Request) bool { return r.Context().Value(keyWay) == viaTether }

func via(r *http.Request, w wayIn) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), keyWay, w))
}

// ClientOf returns the client that Guard let through, for caches and logs that tell principals apart. Its ID never
// names another client; there is none where no token was needed.
func ClientOf(ctx context.Context) (Client, bool) {
	r, ok := ctx.Value(keyClient).(*record)
	if !ok {
		return Client{}, false
	}
	return r.client(), true
}

// Authenticate finds out which client makes the request, by its token, and notes the use. It takes no lock. Errors:
// ErrNoToken, ErrBadToken, ErrExpired, ErrCrossSite (only with the page's cookie), *ThrottledError in place of
// ErrBadToken when the address gave too many wrong tokens; a right one is always taken.
func (p *Pairing) Authenticate(r *http.Request) (Client, error) {
	rec, err := p.authenticate(r)
	if err != nil {
		return Client{}, err
	}
	return rec.client(), nil
}

func (p *Pairing) authenticate(r *http.Request) (*record, error) {
	token, where := tokenOf(r)
	if where == nowhere {
		return nil, ErrNoToken
	}
	return p.check(r, token, where)
}

// check is authenticate with the token that was found in, or came with, r.
func (p *Pairing) check(r *http.Request, token string, where place) (*record, error) {
	now := p.cfg.Now()
	rec := p.clients.Load().find(token)
	if rec == nil {
		p.begin()
		wait := p.wrong(r.RemoteAddr, "a wrong token", now)
		p.end()
		if wait > 0 {
			return nil, &ThrottledError{wait}
		}
		return nil, ErrBadToken
	}
	if rec.expired(now) {
		return nil, ErrExpired
	}
	if where == inCookie && !reads(r) {
		if same, _ := sameOrigin(r); !same {
			return nil, ErrCrossSite
		}
	}
	if s := now.Unix(); rec.last.Load() != s {
		rec.last.Store(s)
	}
	return rec, nil
}

// devicePath is open to all: it says what the device is, which discovery says too.
const devicePath = "/device"

// howToPair is what a client without a token is told.
const howToPair = "this device answers paired clients only: pair with POST /.cloudrest/v1/pair while a pairing window is open (or open https://<device>/.cloudrest/ in a browser; \"cloudrest pair\" does it for programs), then send the token as Authorization: Bearer crp_... or X-CloudREST-Token. To open a window, " + howToOpen

// Guard lets through to next whom the device's people let in (--access paired): clients with a token according to their
// role, and GET and HEAD of /device for all. What was for the gateway only is taken out of the request: it is not to be
// used by others any more. An exchange ends when its client is revoked, changes its role or expires.
func (p *Pairing) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if IsLocal(r) {
			next.ServeHTTP(w, r)
			return
		}
		reading := reads(r)
		open := reading && isDevice(r)
		rec, err := p.authenticate(r)
		if err != nil && !open {
			refuseAccess(w, r, err)
			return
		}
		strip(r.Header)
		if err != nil {
			noOverride(r.Header)
			next.ServeHTTP(w, r)
			return
		}
		if rec.Role.rank() < Member.rank() {
			if !reading {
				writeError(w, r, http.StatusForbidden, "a guest may look (GET, HEAD) and change nothing: ask an owner of the device for more")
				return
			}
			noOverride(r.Header)
		}
		ctx, cancel := context.WithCancel(context.WithValue(r.Context(), keyClient, rec))
		defer cancel()
		defer context.AfterFunc(rec.life, cancel)()
		if !rec.Expires.IsZero() {
			defer time.AfterFunc(rec.Expires.Sub(p.cfg.Now()), cancel).Stop()
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// isDevice reports whether the target is /device as it stands: an encoded or dotted form may mean another resource to
// the origin.
func isDevice(r *http.Request) bool {
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") {
		target = r.URL.EscapedPath()
	}
	target, _, _ = strings.Cut(target, "?")
	return target == devicePath && r.URL.Path == devicePath
}

// noOverride takes out what makes some services treat a GET as another method.
func noOverride(h http.Header) {
	for name := range h {
		switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
		case "x-http-method-override", "x-http-method", "x-method-override":
			delete(h, name)
		}
	}
}

// refuseAccess answers for an error of authenticate.
func refuseAccess(w http.ResponseWriter, r *http.Request, err error) {
	if t, ok := errors.AsType[*ThrottledError](err); ok {
		writeRefusal(w, r, throttledRefusal(t.RetryAfter))
		return
	}
	status, message := http.StatusUnauthorized, howToPair
	switch {
	case errors.Is(err, ErrCrossSite):
		status, message = http.StatusForbidden, "a page of another site may not use this device with your cookie"
	case errors.Is(err, ErrExpired):
		message = "the time of this token is over: ask an owner of the device to renew it, or pair again"
	case errors.Is(err, ErrBadToken):
		message = "the token is not one of this device: it may have been revoked, or be another device's. " + howToPair
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="cloudrest"`)
	}
	writeError(w, r, status, message)
}

// actor is who makes a request of the management.
type actor struct {
	local bool
	id    string
	role  Role // Owner if local
	rec   *record
}

// String is for events.
func (a actor) String() string {
	if a.local {
		return "the device itself"
	}
	return a.id
}

// who finds the actor of a request.
func (p *Pairing) who(r *http.Request) (actor, error) {
	if IsLocal(r) {
		return actor{local: true, role: Owner}, nil
	}
	rec, err := p.authenticate(r)
	if err != nil {
		return actor{}, err
	}
	return actor{id: rec.ID, role: rec.Role, rec: rec}, nil
}

// still reports whether the actor has what it had when the request came: it may have been revoked since. p.mu is held.
func (p *Pairing) still(who actor) error {
	if who.local {
		return nil
	}
	if who.rec == nil || (*p.clients.Load())[who.rec.hash] != who.rec || who.rec.expired(p.cfg.Now()) {
		return errOwner
	}
	return nil
}

var errOwner = refuse(http.StatusForbidden, "only an owner of the device may do this")

// own reports whether a path is one of this package.
func own(path string) (rest string, ok bool) {
	return strings.CutPrefix(path, tether.OwnPrefix+"v1/")
}

// seconds rounds up, for Retry-After (RFC 9110 §10.2.3).
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
