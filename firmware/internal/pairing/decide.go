package pairing

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// winnerTime is how long the loser of a race is told who won.
const winnerTime = 60 * time.Second

// winner is who paired last in a window without confirmation.
type winner struct {
	name, id string
	until    time.Time
}

// lost tells the loser of a race. p.mu is held.
func (p *Pairing) lost() *refusal {
	return refuse(http.StatusConflict, "%q has paired in this window already, and the window is closed; "+howToUndo, p.winner.name, p.winner.id, p.winner.id)
}

// roleFor is the role an asker gets if nobody says otherwise. p.mu is held.
func (p *Pairing) roleFor(a *ask) Role {
	given := Owner
	switch w := a.window; {
	case w == nil:
		if a.invite != nil {
			given = a.invite.role
		} else if p.clients.Load().owners() == 0 {
			return Owner
		}
	case w.role != "":
		given = w.role
	case p.clients.Load().owners() == 0:
		return Owner // a device needs one
	}
	if a.asked == "" {
		return given
	}
	return lesser(given, a.asked)
}

// pair makes the asker a client. On an error the asker got nothing and nothing is stored. p.mu is held.
func (p *Pairing) pair(a *ask, role Role, now time.Time) error {
	err := p.tryPair(a, role, now)
	if err != nil && a.undecided() {
		r, ok := errors.AsType[*refusal](err)
		if !ok {
			r = refuse(http.StatusServiceUnavailable, "the pairing %v: try again later", err)
			r.wait = WindowTime
			err = r
		}
		a.finish(r)
		p.refusedAsk(a, r.message)
	}
	return err
}

func (p *Pairing) tryPair(a *ask, role Role, now time.Time) error {
	way := WayLabel
	changes, undo := map[string][]byte{}, map[string][]byte{}
	switch { // a secret may have been used or withdrawn since the asker came with it
	case a.window != nil:
		way = a.window.way
	case a.invite != nil && slices.Contains(p.invites, a.invite):
		way = WayInvitation
	case a.invite != nil, p.labelUsed:
		return errSecret
	default:
		changes[labelKey], undo[labelKey] = mustJSON(mark{Generation: p.cfg.Generation}), nil
	}
	t := *p.clients.Load()
	var expired *record
	if len(t) >= MaxClients {
		for _, r := range t.list() {
			if !r.Expires.IsZero() && !now.Before(r.Expires) {
				expired = r
				break
			}
		}
		if expired == nil {
			return refuse(http.StatusInsufficientStorage, "%d clients have paired, which is all there is room for: remove one first", MaxClients)
		}
		changes[clientKey+expired.ID], undo[clientKey+expired.ID] = nil, expired.encode(p.cfg.Generation)
	}
	token, hash := newToken()
	r := newRecord(Client{ID: newID(), Name: a.name, Role: role, Created: now.UTC().Truncate(time.Second), Code: a.code, Way: way}, hash)
	changes[clientKey+r.ID], undo[clientKey+r.ID] = r.encode(p.cfg.Generation), nil
	err := p.commit(changes, true, undo, SecurityEvent{Event: EventPaired, Client: r.ID, From: a.from,
		Detail: fmt.Sprintf("%q as %s by %s, code %s", r.Name, role, way, a.code)})
	if err != nil {
		return err
	}
	p.swap(func(t table) {
		if expired != nil {
			delete(t, expired.hash)
		}
		t[hash] = r
	})
	a.step, a.token, a.client = stepPaired, token, r.Client
	close(a.done)
	switch {
	case a.invite != nil:
		p.dropInvite(slices.Index(p.invites, a.invite))
	case a.window == nil:
		p.labelUsed = true
	}
	if w := a.window; w != nil {
		p.winner = winner{r.Name, r.ID, now.Add(winnerTime)}
		for _, b := range p.asks {
			if b.window == w && b.undecided() {
				b.finish(p.lost())
				p.refusedAsk(b, "another was faster")
			}
		}
		if p.win == w {
			p.closeWindow("", "a client has paired", a.code)
		}
	}
	if w := p.win; w != nil && w.way == WayFirstStart {
		p.closeWindow(EventWindowClosed, "a client has paired", a.code)
	}
	return nil
}

// take hands the token out, once. p.mu is held.
func (p *Pairing) take(a *ask) string {
	token := a.token
	a.token = ""
	a.refusal = gone("the token was fetched already")
	a.step = stepOver
	return token
}

// refusedAsk counts and records an asker that was refused. p.mu is held.
func (p *Pairing) refusedAsk(a *ask, why string) {
	p.refused.Add(1)
	p.record(SecurityEvent{Event: EventRefused, From: a.from, Detail: fmt.Sprintf("%q: %s", a.name, why)})
}

// mayDecide reports whether who may let a in: an owner, or the member that opened the window for it.
func (a *ask) mayDecide(who actor) bool {
	return who.role == Owner || a.window != nil && a.window.by != "" && a.window.by == who.id && who.role == Member
}

// waiting lists who waits for a decision that who may make.
func (p *Pairing) waiting(who actor) (list []*ask, err error) {
	p.begin()
	defer p.end()
	allowed := who.role == Owner || p.win != nil && p.win.by != "" && p.win.by == who.id
	for _, a := range p.asks {
		if a.mayDecide(who) {
			allowed = true
			if a.step == stepWaiting {
				list = append(list, a)
			}
		}
	}
	if !allowed {
		return nil, errOwner
	}
	return list, nil
}

// decide lets the asker with that id in, or not. role "" is the one of the window.
func (p *Pairing) decide(who actor, id string, approve bool, role Role) (Client, error) {
	now := p.begin()
	defer p.end()
	if err := p.still(who); err != nil {
		return Client{}, err
	}
	i := slices.IndexFunc(p.asks, func(a *ask) bool { return a.id == id })
	if i < 0 || !p.asks[i].mayDecide(who) {
		if who.role != Owner {
			return Client{}, errOwner
		}
		return Client{}, refuse(http.StatusNotFound, "nobody with that id waits to be let in")
	}
	a := p.asks[i]
	if a.step != stepWaiting {
		return Client{}, refuse(http.StatusConflict, "that client does not wait for a decision")
	}
	if !approve {
		a.finish(refuse(http.StatusForbidden, "you were not let in"))
		p.refusedAsk(a, "refused by "+who.String())
		return Client{}, nil
	}
	if role == "" {
		role = lesser(p.roleFor(a), who.role)
	}
	if role.rank() == 0 {
		return Client{}, refuse(http.StatusBadRequest, "role is %.20q, want owner, member or guest", string(role))
	}
	if role.rank() > who.role.rank() || role.rank() > a.window.ceiling.rank() {
		return Client{}, refuse(http.StatusForbidden, "in this window nobody becomes %s", role)
	}
	if err := p.pair(a, role, now); err != nil {
		return Client{}, err
	}
	a.until = now.Add(askTime)
	return a.client, nil
}
