package devnode

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/exchange"
)

// Renewal over the tether (SPEC.md §4.11).
const (
	renewEvery   = 10 * time.Second    // between two looks at the certificates
	renewJitter  = 10 * time.Minute    // over which devices that came together are asked, at most
	renewRetry   = 24 * time.Hour      // after a failure, give or take a tenth, at most
	jitterPart   = 8                   // of what is left of a certificate's life is the most that the first may take
	retryPart    = 2                   // likewise the second
	renewAtOnce  = 4                   // devices
	renewTimeout = 30 * time.Second    // for each of the two requests
	endsSoon     = 30 * 24 * time.Hour // without an issuer: warned about
	warnEvery    = 24 * time.Hour
	warnMost     = 20 // devices named in one round of warnings

	pathRequest     = tether.OwnPrefix + "v1/certificate/request"
	pathCertificate = tether.OwnPrefix + "v1/certificate"
)

// Renew keeps the certificates of connected devices from ending, until ctx is done: it
// renews them where there is an issuer, and warns the operator where there is none.
func (n *Node) Renew(ctx context.Context) error {
	if n.cfg.Factory == nil {
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(renewEvery)
	defer t.Stop()
	next := map[tether.DeviceID]time.Time{} // when a device that is due is asked: only those are in it
	var warned time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := n.cfg.Factory.now()
		switch {
		case n.cfg.Factory.Issuer != nil:
			n.renewDue(ctx, now, next)
		case now.Sub(warned) >= warnEvery:
			warned = now
			n.warnEnding(now)
		}
	}
}

// ending returns the connected devices whose certificate fits, each by the time that
// counts for it.
func (n *Node) ending(fits func(*proven) bool) (list []*conn) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, c := range n.conns {
		if c.proven.end.Load() != 0 && !c.leaving.Load() && fits(&c.proven) {
			list = append(list, c)
		}
	}
	return list
}

// EndingCertificates counts the connected devices whose certificate ends within 30 days.
func (n *Node) EndingCertificates() int {
	if n.cfg.Factory == nil {
		return 0
	}
	at := seconds(n.cfg.Factory.now().Add(endsSoon))
	return len(n.ending(func(p *proven) bool { return p.end.Load() <= at }))
}

func (n *Node) warnEnding(now time.Time) {
	at := seconds(now.Add(endsSoon))
	list := n.ending(func(p *proven) bool { return p.end.Load() <= at })
	for _, c := range list[:min(len(list), warnMost)] {
		n.log.Warn("certificate ends soon and this relay cannot renew it", "security", "device_certificate_ending", "device", c.id, "not_after", moment(&c.proven.end).UTC())
	}
	if len(list) > warnMost {
		n.log.Warn("more certificates end soon", "security", "device_certificate_ending", "devices", len(list))
	}
}

// soon is d, or the part that a certificate has of its life, so that one that lasts for an
// hour does not end meanwhile. One that has ended has no part.
func soon(d, part time.Duration) time.Duration {
	if part > 0 {
		d = min(d, part)
	}
	return max(d, renewEvery)
}

// renewDue asks those whose time has come, a few at once, and waits for all of them.
func (n *Node) renewDue(ctx context.Context, now time.Time, next map[tether.DeviceID]time.Time) {
	for id, at := range next {
		if now.Sub(at) > 2*renewRetry { // it left, or has been renewed otherwise
			delete(next, id)
		}
	}
	work := make(chan *conn)
	var mu sync.Mutex // guards next while the workers run
	var wg sync.WaitGroup
	for range renewAtOnce {
		wg.Go(func() {
			for c := range work {
				err := n.renew(ctx, c)
				mu.Lock()
				if err == nil {
					delete(next, c.id)
				} else {
					retry := soon(renewRetry, moment(&c.proven.end).Sub(now)/retryPart)
					next[c.id] = now.Add(retry - retry/10 + rand.N(retry/5))
				}
				retry := next[c.id]
				mu.Unlock()
				if err == nil {
					n.count.renewed.Add(1)
					n.log.Info("certificate renewed", "security", "device_certificate_renewed", "device", c.id, "not_after", moment(&c.proven.end).UTC())
					continue
				}
				n.count.renewFailed.Add(1)
				n.log.Warn("certificate not renewed", "device", c.id, "not_after", moment(&c.proven.end).UTC(), "err", err, "retry_in", retry.Sub(now).Round(time.Minute))
			}
		})
	}
	s := seconds(now)
	for _, c := range n.ending(func(p *proven) bool { return p.renew.Load() <= s }) {
		mu.Lock()
		at, known := next[c.id]
		if !known {
			next[c.id] = now.Add(rand.N(soon(renewJitter, moment(&c.proven.end).Sub(now)/jitterPart)))
		}
		mu.Unlock()
		if !known || at.After(now) {
			continue
		}
		select {
		case work <- c:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
}

// renew has one device ask for a certificate like the one it has, and hands it over.
func (n *Node) renew(ctx context.Context, c *conn) error {
	csr, err := n.ask(ctx, c, http.MethodGet, pathRequest, "", nil, devcert.MaxRequest)
	if err != nil {
		return fmt.Errorf("ask for a certificate request: %w", err)
	}
	id, pub, err := devcert.ParseRequest(csr)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	if id != c.id || keyHash(der) != c.proven.key {
		return errors.New("the request is for another device or key")
	}
	if n.cfg.List.Revoked(id) {
		return errors.New("the device is revoked")
	}
	now := n.cfg.Factory.now()
	end := moment(&c.proven.end)
	life := renewPart * end.Sub(moment(&c.proven.renew))
	chain, err := n.cfg.Factory.Issuer.Issue(id, pub, now.Add(-clockSkew), now.Add(life))
	if err != nil {
		return err
	}
	leaf, _, err := devcert.Verify(chain, n.cfg.Factory.Roots(), now) // as the device will
	if err != nil {
		return fmt.Errorf("check the new certificate: %w", err)
	}
	if !leaf.NotAfter.After(end) {
		return fmt.Errorf("the authority that renews ends %v, before the certificate does", leaf.NotAfter.UTC())
	}
	_, err = n.ask(ctx, c, http.MethodPut, pathCertificate, "application/pem-certificate-chain", devcert.AppendPEM(nil, chain), 0)
	if err != nil {
		return fmt.Errorf("hand over the certificate: %w", err)
	}
	c.proven.live(lifetime{leaf.NotBefore, leaf.NotAfter})
	return nil
}

// ask sends a request of the relay's own to a device and returns the body of a 2xx; with
// most 0 the body does not matter.
func (n *Node) ask(ctx context.Context, c *conn, method, path, kind string, body []byte, most int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Host = n.cfg.Names[0]
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	w := &bodyWriter{header: http.Header{}, most: most}
	err = forwardOwn(w, r, c, exchange.Options{Path: path, Client: "127.0.0.1:0", HeadTimeout: renewTimeout})
	switch {
	case w.status > 0 && w.status/100 != 2:
		return nil, fmt.Errorf("the device answered HTTP %d", w.status)
	case w.over:
		return nil, fmt.Errorf("the device answered more than %d bytes", most)
	case err != nil:
		return nil, err
	case w.status == 0:
		return nil, errors.New("the device did not answer")
	}
	return w.body, nil
}

// bodyWriter keeps a small answer.
type bodyWriter struct {
	header http.Header
	status int
	body   []byte
	most   int
	over   bool
}

func (w *bodyWriter) Header() http.Header { return w.header }

func (w *bodyWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

func (w *bodyWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.most == 0 || w.status/100 != 2:
		return len(b), nil
	case len(w.body)+len(b) > w.most:
		w.over = true
		return 0, io.ErrShortBuffer
	}
	w.body = append(w.body, b...)
	return len(b), nil
}

func (w *bodyWriter) Flush() {}
