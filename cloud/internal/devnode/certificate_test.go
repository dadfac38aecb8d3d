package devnode

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/session"
)

const day = 24 * time.Hour

// makeAuthority is one that is valid for ten years around now.
func makeAuthority(t *testing.T) *devcert.Authority {
	t.Helper()
	ca, err := devcert.NewAuthority("Factory", time.Now().Add(-5*365*day), time.Now().Add(5*365*day))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func makeKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func spki(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func issue(t *testing.T, ca *devcert.Authority, id tether.DeviceID, key crypto.Signer, from, to time.Time) [][]byte {
	t.Helper()
	chain, err := ca.Issue(id, key.Public(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// logged is a log that a test reads.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) count(what string) int { return strings.Count(l.String(), what) }

func TestCertificate(t *testing.T) {
	ca, foreign := makeAuthority(t), makeAuthority(t)
	key, other := makeKey(t), makeKey(t)
	now := time.Now()
	from, to := now.Add(-day), now.Add(365*day)
	good := issue(t, ca, dev, key, from, to)
	shown := func(key crypto.Signer) *x509.Certificate {
		c, err := x509.ParseCertificate(issue(t, foreign, dev, key, from, to)[0])
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	over := issue(t, ca, dev, key, now.Add(-2*day), now.Add(-day))
	for _, c := range []struct {
		name  string
		chain [][]byte
		tls   *x509.Certificate
		kind  error
		text  string // its begin
		event string
		count func(Stats) uint64
	}{
		{"good", good, nil, nil, "", "", nil},
		{"good, and shown to TLS", good, shown(key), nil, "", "", nil},
		{"by a clock that is ahead half an hour", issue(t, ca, dev, key, now.Add(30*time.Minute), to), nil, nil, "", "", nil},
		{"none", nil, nil, session.ErrUnknown, "certificate missing", "device_certificate_missing", func(s Stats) uint64 { return s.CertMissing }},
		{"expired", over, nil, session.ErrKey, "certificate expired " + now.Add(-day).UTC().Format("2006-01-02") + ": ask the maker", "device_certificate_expired", func(s Stats) uint64 { return s.CertExpired }},
		{"of tomorrow", issue(t, ca, dev, key, now.Add(day), to), nil, session.ErrKey, "certificate not valid before", "device_certificate_expired", func(s Stats) uint64 { return s.CertExpired }},
		{"of another factory", issue(t, foreign, dev, key, from, to), nil, session.ErrUnknown, "certificate foreign: its factory", "device_certificate_foreign", func(s Stats) uint64 { return s.CertForeign }},
		{"an authority in place of a device", [][]byte{ca.Chain[0].Raw}, nil, session.ErrUnknown, "certificate foreign: it has not the form", "device_certificate_foreign", func(s Stats) uint64 { return s.CertForeign }},
		{"rubbish", [][]byte{{0x30, 0x80}}, nil, session.ErrUnknown, "certificate foreign: it has not the form", "device_certificate_foreign", func(s Stats) uint64 { return s.CertForeign }},
		{"of another device", issue(t, ca, tether.NewDeviceID(nil), key, from, to), nil, session.ErrKey, "certificate mismatch: it is for another device", "device_certificate_mismatch", func(s Stats) uint64 { return s.CertMismatch }},
		{"stolen, with another key's proof", issue(t, ca, dev, other, from, to), nil, session.ErrKey, "certificate mismatch: it is for another key", "device_certificate_mismatch", func(s Stats) uint64 { return s.CertMismatch }},
		{"another key shown to TLS", good, shown(other), session.ErrKey, "certificate mismatch: TLS", "device_certificate_mismatch", func(s Stats) uint64 { return s.CertMismatch }},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := &logged{}
			n, store, _ := newNode(func(cfg *Config) {
				cfg.Factory = &Factory{Roots: ca.Roots}
				cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
			})
			at := &attempt{}
			err := n.verify(context.WithValue(t.Context(), attemptKey{}, at), &session.Peer{ID: dev, Public: key.Public(), PublicDER: spki(t, key), Chain: c.chain, ClientCert: c.tls, RemoteAddr: "192.0.2.1:1"})
			if c.kind == nil {
				if err != nil || store.keys[dev] == nil || at.life.to.Before(now) {
					t.Errorf("verify = %v, life %v, want it enrolled", err, at.life)
				}
				return
			}
			d, ok := errors.AsType[*session.DeniedError](err)
			if !ok || !errors.Is(err, c.kind) || !strings.HasPrefix(d.Text, c.text) || len(d.Text) > 200 {
				t.Errorf("verify = %v, want %v with %q", err, c.kind, c.text)
			}
			if log.count("security="+c.event+" device="+string(dev)) != 1 || c.count(n.Stats()) != 1 {
				t.Errorf("want one event %s, and counted once; stats %+v, log:\n%s", c.event, n.Stats(), log)
			}
			if store.keys[dev] != nil {
				t.Error("it was enrolled")
			}
		})
	}
}

// A factory's new certificate for a new key changes nothing by itself.
func TestNewKeyWithGoodCertificate(t *testing.T) {
	ca := makeAuthority(t)
	n, store, l := newNode(func(cfg *Config) { cfg.Factory = &Factory{Roots: ca.Roots} })
	come := func(key crypto.Signer) error {
		chain := issue(t, ca, dev, key, time.Now().Add(-day), time.Now().Add(day))
		return n.verify(t.Context(), &session.Peer{ID: dev, Public: key.Public(), PublicDER: spki(t, key), Chain: chain, RemoteAddr: "192.0.2.1:1"})
	}
	first, second := makeKey(t), makeKey(t)
	if err := come(first); err != nil {
		t.Fatal(err)
	}
	err := come(second)
	if d, ok := errors.AsType[*session.DeniedError](err); !ok || !errors.Is(err, session.ErrKey) || !strings.HasPrefix(d.Text, "key changed") {
		t.Errorf("another key: %v, want key changed", err)
	}
	delete(store.keys, dev) // the operator: rekey
	if err := come(second); err != nil {
		t.Errorf("after rekey: %v", err)
	}
	l.set(map[tether.DeviceID][]byte{dev: spki(t, first)}) // the operator: list
	if err := come(second); !errors.Is(err, session.ErrKey) {
		t.Errorf("another key than the list has: %v, want ErrKey", err)
	}
	if err := come(first); err != nil {
		t.Errorf("the key of the list: %v", err)
	}
}

func TestRevoked(t *testing.T) {
	log := &logged{}
	bubble(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) }, func(t *testing.T, n *Node, _ *memory, l *list) {
		id := tether.NewDeviceID([]byte("another"))
		a := join(n, dev, "k", http.HandlerFunc(ok))
		join(n, id, "k", http.HandlerFunc(ok))
		l.revoke(dev)
		began := time.Now()
		g := <-a.away
		if took := time.Since(began); took > 2*time.Second || g.Code != frame.GoAwayUnknown || !strings.HasPrefix(g.Text, "device revoked") {
			t.Errorf("told %+v after %v, want code 3 with the reason within 2 s", g, took)
		}
		<-a.Done()
		p := &session.Peer{ID: dev, PublicDER: []byte("k"), RemoteAddr: "192.0.2.1:1"}
		if err := n.verify(t.Context(), p); !errors.Is(err, session.ErrUnknown) || n.Stats().RefusedRevoked != 1 {
			t.Errorf("verify = %v, want ErrUnknown, counted once", err)
		}
		if got := log.count("security=device_certificate_revoked"); got != 2 {
			t.Errorf("%d events, want one for the end and one for the attempt:\n%s", got, log)
		}
		l.revoke()
		if err := n.verify(t.Context(), p); err != nil {
			t.Errorf("not revoked any more: %v", err)
		}
		synctest.Wait()
		if _, online := n.Seen(id); !online {
			t.Error("another device was ended too")
		}
	})
}

func TestGeneration(t *testing.T) {
	log := &logged{}
	n, store, l := newNode(func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	for _, c := range []struct {
		generation   uint32
		reset, lower int // events so far
		keeps        uint32
	}{{3, 0, 0, 3}, {3, 0, 0, 3}, {5, 1, 0, 5}, {4, 1, 1, 5}, {0, 1, 2, 5}, {6, 2, 2, 6}} {
		if err := n.verify(t.Context(), &session.Peer{ID: dev, PublicDER: []byte("k"), Generation: c.generation}); err != nil {
			t.Fatal(err)
		}
		if got := store.generations[dev]; got != c.keeps {
			t.Errorf("generation %d: kept %d, want %d", c.generation, got, c.keeps)
		}
		reset, lower := log.count("security=device_factory_reset"), log.count("security=device_generation_lower")
		if reset != c.reset || lower != c.lower {
			t.Errorf("generation %d: %d resets and %d suspicions so far, want %d and %d", c.generation, reset, lower, c.reset, c.lower)
		}
	}
	id := tether.NewDeviceID([]byte("listed"))
	l.set(map[tether.DeviceID][]byte{id: []byte("k")})
	if err := n.verify(t.Context(), &session.Peer{ID: id, PublicDER: []byte("k"), Generation: 9}); err != nil || log.count("security=device_factory_reset") != 2 {
		t.Errorf("the first contact of a listed device: %v, or called a reset", err)
	}
}

// renewing is a device that renews its certificate.
type renewing struct {
	id     tether.DeviceID
	key    crypto.Signer
	answer int // of the PUT; 0: 204
	junk   []byte

	mu    sync.Mutex
	asked int
	chain [][]byte
}

func (d *renewing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "GET /.cloudrest/v1/certificate/request":
		d.mu.Lock()
		d.asked++
		d.mu.Unlock()
		w.Header().Set("Content-Type", "application/pkcs10")
		if d.junk != nil {
			w.Write(d.junk)
			return
		}
		csr, err := devcert.Request(d.id, d.key)
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		w.Write(csr)
	case "PUT /.cloudrest/v1/certificate":
		b, _ := io.ReadAll(r.Body)
		chain, err := devcert.ParsePEM(b)
		if err != nil || r.Header.Get("Content-Type") != "application/pem-certificate-chain" {
			http.Error(w, "not a chain", 400)
			return
		}
		if d.answer != 0 {
			w.WriteHeader(d.answer)
			return
		}
		d.mu.Lock()
		d.chain = chain
		d.mu.Unlock()
		w.WriteHeader(204)
	default:
		http.NotFound(w, r)
	}
}

func (d *renewing) asks() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// renewal runs a node's Renew in a bubble; no sweep, which would tick for weeks.
func renewal(t *testing.T, issuer bool, f func(t *testing.T, n *Node, ca *devcert.Authority, log *logged)) {
	synctest.Test(t, func(t *testing.T) {
		ca := makeAuthority(t)
		log := &logged{}
		n, _, _ := newNode(func(c *Config) {
			c.Factory, c.Keepalive = &Factory{Roots: ca.Roots}, day // no PINGs for weeks
			if issuer {
				c.Factory.Issuer = ca
			}
			c.Logger = slog.New(slog.NewTextHandler(log, nil))
		})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { n.Renew(ctx) })
		f(t, n, ca, log)
		cancel()
		wg.Wait()
		n.Close()
		time.Sleep(time.Minute)
		synctest.Wait()
	})
}

// comes opens a tether for d with a certificate of that life.
func (d *renewing) comes(t *testing.T, n *Node, from, to time.Time) *end {
	t.Helper()
	return joinProven(n, d.id, keyHash(spki(t, d.key)), lifetime{from, to}, d)
}

func TestRenewal(t *testing.T) {
	renewal(t, true, func(t *testing.T, n *Node, ca *devcert.Authority, log *logged) {
		now := time.Now()
		d := &renewing{id: dev, key: makeKey(t)}
		d.comes(t, n, now, now.Add(30*day))
		time.Sleep(19 * day)
		synctest.Wait()
		if d.asks() != 0 {
			t.Error("asked before two thirds of the life were over")
		}
		time.Sleep(day + 30*time.Minute)
		synctest.Wait()
		if d.asks() != 1 || d.chain == nil || n.Stats().Renewed != 1 || log.count("security=device_certificate_renewed") != 1 {
			t.Fatalf("asked %d times, stats %+v, log:\n%s", d.asks(), n.Stats(), log)
		}
		leaf, id, err := devcert.Verify(d.chain, ca.Roots(), time.Now())
		if err != nil || id != dev || !devcert.SameKey(leaf.PublicKey, d.key.Public()) {
			t.Fatalf("the new certificate: %v, for %s", err, id)
		}
		if life := time.Until(leaf.NotAfter); life < 29*day || life > 31*day {
			t.Errorf("it lives for %v, want as long as the one before, 30 days", life)
		}
		time.Sleep(15 * day)
		synctest.Wait()
		if d.asks() != 1 {
			t.Errorf("asked %d times before the next one is due, want 1", d.asks())
		}
		time.Sleep(10 * day)
		synctest.Wait()
		if d.asks() != 2 || n.Stats().Renewed != 2 {
			t.Errorf("asked %d times, renewed %d, want the next one too", d.asks(), n.Stats().Renewed)
		}
	})
}

// Whatever a device answers, it is asked again about daily and nothing else happens to it.
func TestRenewalFails(t *testing.T) {
	other := tether.NewDeviceID([]byte("other"))
	for name, edit := range map[string]func(t *testing.T, d *renewing){
		"it does not know how":   func(_ *testing.T, d *renewing) { d.junk = []byte{} },
		"rubbish":                func(_ *testing.T, d *renewing) { d.junk = []byte("rubbish") },
		"too much":               func(_ *testing.T, d *renewing) { d.junk = make([]byte, 1<<20) },
		"a request of another":   func(t *testing.T, d *renewing) { d.junk, _ = devcert.Request(other, d.key) },
		"a request for a key":    func(t *testing.T, d *renewing) { d.junk, _ = devcert.Request(dev, makeKey(t)) },
		"it refuses the new one": func(_ *testing.T, d *renewing) { d.answer = 409 },
	} {
		t.Run(name, func(t *testing.T) {
			renewal(t, true, func(t *testing.T, n *Node, _ *devcert.Authority, log *logged) {
				now := time.Now()
				d := &renewing{id: dev, key: makeKey(t)}
				edit(t, d)
				d.comes(t, n, now.Add(-25*day), now.Add(5*day))
				time.Sleep(3*day + 12*time.Hour)
				synctest.Wait()
				if got := d.asks(); got < 3 || got > 5 {
					t.Errorf("asked %d times in three and a half days, want about once a day", got)
				}
				if s := n.Stats(); s.Renewed != 0 || s.RenewFailed < 3 || d.chain != nil {
					t.Errorf("stats %+v, certificate taken %v", s, d.chain != nil)
				}
				if _, online := n.Seen(dev); !online {
					t.Error("the device is gone")
				}
				if log.count("certificate not renewed") < 3 {
					t.Errorf("log:\n%s", log)
				}
			})
		})
	}
}

// Devices that are due together are asked over ten minutes and four at a time.
func TestRenewalIsSpread(t *testing.T) {
	renewal(t, true, func(t *testing.T, n *Node, _ *devcert.Authority, _ *logged) {
		now := time.Now()
		var mu sync.Mutex
		running, most := 0, 0
		key := makeKey(t)
		for i := range 40 {
			d := &renewing{id: tether.NewDeviceID(fmt.Append(nil, i)), key: key}
			slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(5 * time.Second)
				d.ServeHTTP(w, r)
				mu.Lock()
				running--
				mu.Unlock()
			})
			joinProven(n, d.id, keyHash(spki(t, key)), lifetime{now.Add(-25 * day), now.Add(5 * day)}, slow)
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if got := n.Stats().Renewed; got > 25 {
			t.Errorf("%d of 40 renewed in the first four minutes, want them spread over ten", got)
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if got := n.Stats().Renewed; got != 40 || most > renewAtOnce {
			t.Errorf("%d renewed, at most %d at once, want all 40 and at most %d", got, most, renewAtOnce)
		}
	})
}

// Certificates that last for an hour are renewed in their time too, at the second attempt
// if need be.
func TestRenewalOfShortLived(t *testing.T) {
	renewal(t, true, func(t *testing.T, n *Node, _ *devcert.Authority, log *logged) {
		now := time.Now()
		key := makeKey(t)
		for i := range 40 {
			d := &renewing{id: tether.NewDeviceID(fmt.Append(nil, i)), key: key}
			var asked atomic.Bool
			busy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !asked.Swap(true) {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				d.ServeHTTP(w, r)
			})
			joinProven(n, d.id, keyHash(spki(t, key)), lifetime{now.Add(-55 * time.Minute), now.Add(5 * time.Minute)}, busy)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if s := n.Stats(); s.Renewed != 40 || s.RenewFailed != 40 {
			t.Errorf("%d renewed and %d failed before the certificates end, want 40 and 40; log:\n%s", s.Renewed, s.RenewFailed, log)
		}
	})
}

// Without an issuer the operator is warned, once a day.
func TestEndingIsWarned(t *testing.T) {
	renewal(t, false, func(t *testing.T, n *Node, _ *devcert.Authority, log *logged) {
		now := time.Now()
		d := &renewing{id: dev, key: makeKey(t)}
		d.comes(t, n, now.Add(-25*day), now.Add(35*day))
		time.Sleep(4 * day)
		synctest.Wait()
		if got := n.EndingCertificates(); got != 0 || log.count("device_certificate_ending") != 0 {
			t.Errorf("31 days before its end: %d counted, %d warnings, want none", got, log.count("device_certificate_ending"))
		}
		time.Sleep(3 * day)
		synctest.Wait()
		if got, warned := n.EndingCertificates(), log.count("security=device_certificate_ending device="+string(dev)); got != 1 || warned < 2 || warned > 3 {
			t.Errorf("28 days before its end: %d counted, %d warnings, want 1 and one a day", got, warned)
		}
		if d.asks() != 0 {
			t.Error("the device was asked")
		}
	})
}
