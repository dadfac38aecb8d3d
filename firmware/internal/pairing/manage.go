package pairing

import (
	"fmt"
	"net/http"
	"time"
)

var errLastOwner = refuse(http.StatusConflict, "this is the last owner: make somebody else an owner first, or do it on the device (\"cloudrestd pair\") or by factory reset")

// target finds the client that who wants to manage. p.mu is held.
func (p *Pairing) target(who actor, id string, self bool) (*record, error) {
	if err := p.still(who); err != nil {
		return nil, err
	}
	if who.role != Owner && !(self && id == who.id) {
		return nil, errOwner
	}
	r := p.clients.Load().byID(id)
	if r == nil {
		return nil, refuse(http.StatusNotFound, "there is no client with this id")
	}
	return r, nil
}

// remove revokes a client; one may always remove oneself, but for the last owner.
func (p *Pairing) remove(who actor, id string) error {
	p.begin()
	defer p.end()
	r, err := p.target(who, id, true)
	if err != nil {
		return err
	}
	if !who.local && p.clients.Load().lastOwner(r) {
		return errLastOwner
	}
	return p.revoke(r, SecurityEvent{Event: EventRevoked, Client: r.ID, Detail: fmt.Sprintf("%q by %s", r.Name, who)})
}

// Remove revokes a client for the device's own programs. When the store fails (ErrStore)
// the client is out all the same, and the store is tried again.
func (p *Pairing) Remove(id string) error { return p.remove(actor{local: true, role: Owner}, id) }

// change gives a client another name, role or end; nil leaves each as it is.
func (p *Pairing) change(who actor, id string, name *string, role *Role, expires *time.Time) (Client, error) {
	p.begin()
	defer p.end()
	old, err := p.target(who, id, false)
	if err != nil {
		return Client{}, err
	}
	c := old.client()
	what := ""
	if name != nil {
		c.Name = cleanName(*name)
		what += fmt.Sprintf(", name %q", c.Name)
	}
	if role != nil {
		if c.Role = *role; c.Role.rank() == 0 {
			return Client{}, refuse(http.StatusBadRequest, "role is %.20q, want owner, member or guest", string(*role))
		}
		what += ", role " + string(c.Role)
	}
	if expires != nil {
		c.Expires = *expires
		what += ", until " + stamp(c.Expires)
		if c.Expires.IsZero() {
			what += "ever"
		}
	}
	if what == "" {
		return c, nil
	}
	r := newRecord(c, old.hash)
	r.last, r.savedLast = old.last, old.savedLast // a use in this moment counts for both
	same := c.Role == old.Role && expires == nil
	if same {
		r.life, r.end = old.life, old.end
	}
	if !who.local && p.clients.Load().lastOwner(old) && !r.keepsDevice() {
		return Client{}, errLastOwner
	}
	err = p.commit(map[string][]byte{clientKey + r.ID: r.encode(p.cfg.Generation)}, true,
		map[string][]byte{clientKey + r.ID: old.encode(p.cfg.Generation)},
		SecurityEvent{Event: EventChanged, Client: r.ID, Detail: fmt.Sprintf("%q%s by %s", old.Name, what, who)})
	if err != nil {
		return Client{}, err
	}
	p.swap(func(t table) { t[r.hash] = r })
	if !same {
		old.end()
		p.dropOf(r.ID)
	}
	return r.client(), nil
}
