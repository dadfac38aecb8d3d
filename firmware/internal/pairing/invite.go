package pairing

import (
	"crypto/sha256"
	"crypto/subtle"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether/trust"
)

// Bounds of invitations. They live in memory only: none outlasts a restart of the daemon.
const (
	maxInvites     = 8
	inviteTime     = 10 * time.Minute
	maxInviteTime  = 24 * time.Hour
	inviteBytes    = 16 // 128 random bits
	labelExhausted = "the code on the label has been used: it pairs once, until a factory reset"
)

// invitation is a secret that pairs once.
type invitation struct {
	hash  [sha256.Size]byte
	role  Role
	by    string // ID of the client that made it; "": local
	until time.Time
}

var errSecret = refuse(http.StatusForbidden, "the secret is wrong, used up or too old: ask for a new invitation")

// inviteOf returns the invitation whose secret has that hash, or nil. p.mu is held.
func (p *Pairing) inviteOf(hash [sha256.Size]byte) (found *invitation) {
	for _, i := range p.invites {
		if subtle.ConstantTimeCompare(i.hash[:], hash[:]) == 1 {
			found = i
		}
	}
	return found
}

func (p *Pairing) dropInvite(i int) {
	if i >= 0 {
		p.invites = slices.Delete(p.invites, i, i+1)
	}
}

// askWithSecret takes in an asker that has a secret; it needs no window. p.mu is held.
func (p *Pairing) askWithSecret(a *ask, secret string, now time.Time) (*ask, error) {
	if wait := p.bad.wait(a.from, now); wait > 0 {
		p.throttled.Add(1)
		return nil, throttledRefusal(wait)
	}
	hash := sha256.Sum256([]byte(secret))
	isLabel := p.cfg.Label != "" && subtle.ConstantTimeCompare(hash[:], p.label[:]) == 1
	a.invite = p.inviteOf(hash)
	switch {
	case a.invite != nil:
	case isLabel && p.labelUsed:
		return nil, refuse(http.StatusForbidden, labelExhausted)
	case !isLabel:
		p.refused.Add(1)
		if wait := p.wrong(a.from, "a wrong secret", now); wait > 0 {
			return nil, throttledRefusal(wait)
		}
		return nil, errSecret
	}
	for _, b := range p.asks {
		if b.window == nil && b.invite == a.invite && b.step == stepNonce {
			if b.again(a) {
				return b, nil
			}
			// One of the two is not who the secret was meant for; it is worth nothing any more, except on the
			// label, which cannot be printed again.
			why := refuse(http.StatusConflict, "two clients came with the same secret, so neither was let in: ask for a new invitation")
			b.finish(why)
			p.refusedAsk(b, "two clients came with the same secret")
			p.refusedAsk(a, "two clients came with the same secret")
			p.dropInvite(slices.Index(p.invites, a.invite))
			return nil, why
		}
	}
	return a, p.proceed(a, now)
}

// wrong counts a wrong token or secret, records the first of a minute and the beginning of a block, and returns how
// long its address has to wait. p.mu is held.
func (p *Pairing) wrong(from, what string, now time.Time) time.Duration {
	p.badTokens.Add(1)
	wait, news := p.bad.fail(from, now)
	if wait > 0 {
		p.throttled.Add(1)
	}
	if news {
		if wait > 0 {
			what = "too many wrong tokens or secrets"
		}
		p.record(SecurityEvent{Event: EventBadToken, From: hostOf(from), Detail: what})
	}
	return wait
}

func throttledRefusal(wait time.Duration) *refusal {
	return &refusal{http.StatusTooManyRequests, "too many wrong tokens or secrets from your address: wait, then try again", wait}
}

// invite makes a secret for one pairing.
func (p *Pairing) invite(who actor, role Role, n int) (trust.Invitation, time.Time, error) {
	none := trust.Invitation{}
	if role == "" {
		role = Member
	}
	if role.rank() == 0 {
		return none, time.Time{}, refuse(http.StatusBadRequest, "role is %.20q, want owner, member or guest", string(role))
	}
	life, err := minutes(n, inviteTime, maxInviteTime)
	if err != nil {
		return none, time.Time{}, err
	}
	secret := random(inviteBytes)
	now := p.begin()
	defer p.end()
	if err := p.still(who); err != nil {
		return none, time.Time{}, err
	}
	if who.role != Owner {
		return none, time.Time{}, errOwner
	}
	if len(p.invites) >= maxInvites {
		return none, time.Time{}, refuse(http.StatusConflict, "%d invitations are open: use them, wait, or withdraw them with DELETE", maxInvites)
	}
	i := &invitation{sha256.Sum256([]byte(secret)), role, who.id, now.Add(life)}
	p.invites = append(p.invites, i)
	p.record(SecurityEvent{Event: EventInvited, Client: who.id, Detail: "to become " + string(role) + ", for " + life.String()})
	return trust.Invitation{URL: strings.TrimRight(p.cfg.URL(), "/"), ID: p.cfg.ID(), Pin: p.cfg.Pin(), Secret: secret}, i.until, nil
}

// withdraw ends all invitations.
func (p *Pairing) withdraw(who actor) error {
	p.begin()
	defer p.end()
	if err := p.still(who); err != nil {
		return err
	}
	if who.role != Owner {
		return errOwner
	}
	p.invites = nil
	return nil
}

// minutes reads a number of minutes, 0 being def.
func minutes(n int, def, most time.Duration) (time.Duration, error) {
	if n == 0 {
		return def, nil
	}
	if n < 0 || n > math.MaxInt32 || time.Duration(n)*time.Minute > most {
		return 0, refuse(http.StatusBadRequest, "minutes is %d, want 1 to %d", n, int(most/time.Minute))
	}
	return time.Duration(n) * time.Minute, nil
}
