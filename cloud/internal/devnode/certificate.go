package devnode

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/session"
)

// Factory says whose devices may come (SPEC.md §4.11).
type Factory struct {
	Roots func() *x509.CertPool // the authorities that count now
	// Issuer renews certificates over the tether; nil: devices whose certificate ends soon
	// are only warned about. It must lead to one of Roots.
	Issuer *devcert.Authority
	Now    func() time.Time // nil: time.Now
}

func (f *Factory) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now()
}

// clockSkew is how far a factory's clock may be ahead of the relay's.
const clockSkew = time.Hour

// lifetime is what is kept of a certificate while its device is connected.
type lifetime struct{ from, to time.Time }

// renewPart of a certificate's life is left when it is renewed: a third.
const renewPart = 3

// live keeps the times; the zero lifetime means that there is no certificate.
func (p *proven) live(l lifetime) {
	if l.to.IsZero() {
		return
	}
	p.end.Store(seconds(l.to))
	p.renew.Store(seconds(l.to.Add(-l.to.Sub(l.from) / renewPart)))
}

// seconds is a Unix time in 32 bits, good until 2106.
func seconds(t time.Time) uint32 { return uint32(min(max(t.Unix(), 1), 1<<32-1)) }

// moment is the time that a field of proven holds.
func moment(v *atomic.Uint32) time.Time { return time.Unix(int64(v.Load()), 0) }

// certified checks the certificate of a device whose proof was good.
func (n *Node) certified(p *session.Peer) (lifetime, error) {
	c := &n.count
	deny := func(count *atomic.Uint64, event string, kind error, text string, err error) (lifetime, error) {
		return lifetime{}, n.deny(p, count, event, &session.DeniedError{Err: kind, Text: text}, err)
	}
	if len(p.Chain) == 0 {
		return deny(&c.certMissing, "device_certificate_missing", session.ErrUnknown, "certificate missing: this relay takes only devices with a factory certificate", nil)
	}
	now := n.cfg.Factory.now()
	leaf, id, err := devcert.Verify(p.Chain, n.cfg.Factory.Roots(), now)
	if errors.Is(err, devcert.ErrExpired) {
		// What is not valid yet may be so by the clock of its factory.
		if l, i, e := devcert.Verify(p.Chain, n.cfg.Factory.Roots(), now.Add(clockSkew)); e == nil {
			leaf, id, err = l, i, nil
		}
	}
	switch {
	case errors.Is(err, devcert.ErrExpired):
		return deny(&c.certExpired, "device_certificate_expired", session.ErrKey, expired(p.Chain, now), err)
	case errors.Is(err, devcert.ErrIssuer):
		return deny(&c.certForeign, "device_certificate_foreign", session.ErrUnknown, "certificate foreign: its factory is not one that this relay knows", err)
	case err != nil:
		return deny(&c.certForeign, "device_certificate_foreign", session.ErrUnknown, "certificate foreign: it has not the form of a device certificate", err)
	case id != p.ID:
		return deny(&c.certMismatch, "device_certificate_mismatch", session.ErrKey, "certificate mismatch: it is for another device", nil)
	case !devcert.SameKey(leaf.PublicKey, p.Public):
		return deny(&c.certMismatch, "device_certificate_mismatch", session.ErrKey, "certificate mismatch: it is for another key than the one that signed", nil)
	case p.ClientCert != nil && !devcert.SameKey(p.ClientCert.PublicKey, p.Public):
		return deny(&c.certMismatch, "device_certificate_mismatch", session.ErrKey, "certificate mismatch: TLS was shown one with another key", nil)
	}
	return lifetime{leaf.NotBefore, leaf.NotAfter}, nil
}

// expired words why the time of a certificate is not now.
func expired(chain [][]byte, now time.Time) string {
	const day = "2006-01-02"
	leaf, _, err := devcert.Parse(chain)
	switch {
	case err == nil && now.After(leaf.NotAfter):
		return fmt.Sprintf("certificate expired %s: ask the maker for a renewal", leaf.NotAfter.UTC().Format(day))
	case err == nil && now.Before(leaf.NotBefore):
		return fmt.Sprintf("certificate not valid before %s: a clock is wrong, the relay has %s", leaf.NotBefore.UTC().Format(day), now.UTC().Format(day))
	}
	return "certificate expired: the time of the authority that issued it is over, ask the maker for a renewal"
}
