// Package lancert is the device's own certificate authority for the LAN. The authority's
// key is made at first boot and kept for life: clients pin it (SPEC.md §11.1). It signs a
// leaf for the names and addresses that the device has now, and a new one when they change,
// when a third of its life is left, or when the clock was set. The leaf is kept for the next
// start, but written at most once an hour, so that an address which comes and goes wears out
// no flash. Who listens and who watches the addresses is the gateway's matter.
package lancert

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
)

const (
	// File is the name of the file with the authority's certificate and key in the state
	// directory.
	File = "lan-ca.pem"
	// LeafFile is that of the leaf and its key. It may be removed: there will be another.
	LeafFile = "lan-leaf.pem"
	// FirstStart is why an authority is made when none was there.
	FirstStart = "first start"

	// oldFile is the self-signed certificate of versions before the authority. Nobody who
	// pins the authority trusts it, and a private key that nobody needs is a risk.
	oldFile = "lan-cert.pem"
)

const (
	day        = 24 * time.Hour
	caYears    = 50        // longer than the device
	leafLife   = 397 * day // what browsers take of public certificates (CA/Browser Forum BR §6.3.2)
	renewLeft  = leafLife / 3
	slack      = day         // clients' clocks may be behind ours
	checkEvery = time.Minute // of the clock; the wall clock may jump, so no timer can know
	saveEvery  = time.Hour   // of the leaf, at most
	serialBits = 127
)

// floor is the earliest time that can be true, for builds that do not know theirs. Boards
// without a clock start in 1970.
var floor = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// Config says whom the certificates name.
type Config struct {
	Dir      string          // state directory, must exist
	ID       tether.DeviceID // for the name cloudrest-<first 8 digits>.local
	HostName string          // of the machine; may be empty
	Addrs    []netip.Addr    // present addresses; see Update
	Floor    time.Time       // build time; zero: a constant
	Now      func() time.Time
	Logger   *slog.Logger // nil: none
}

// Authority is the device's authority with its present leaf. It is safe for concurrent use.
type Authority struct {
	log   *slog.Logger
	now   func() time.Time
	id    tether.DeviceID
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	pin   string
	floor time.Time // clocks before it are wrong
	leaf  atomic.Pointer[tls.Certificate]
	file  string // of the leaf

	mu    sync.Mutex   // guards what follows, and is held while a leaf is made
	host  string       // as given last
	addrs []netip.Addr // likewise
	timed bool         // the leaf was made by a clock that can be right
	saved time.Time    // when the leaf was written last
}

// Open reads the authority from the state directory, or makes it, and makes a leaf. made is
// why a new authority was made, in words for the log; empty if it was not. Anything else
// than FirstStart means that every client which pinned the old one will refuse the device: a
// damaged file is kept as <File>.damaged, but the LAN must stay reachable. A certificate
// of before there were authorities is removed.
func Open(cfg Config) (a *Authority, made string, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Floor.Before(floor) {
		cfg.Floor = floor
	}
	cfg.Floor = cfg.Floor.UTC().Truncate(time.Second)
	a = &Authority{log: cfg.Logger, now: cfg.Now, id: cfg.ID}
	name := filepath.Join(cfg.Dir, File)
	content, err := statefile.Read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made = FirstStart
	case err != nil:
		return nil, "", fmt.Errorf("read the LAN authority: %w", err)
	default:
		if a.ca, a.key, err = parse(content); err != nil {
			made = "the old one is damaged: " + err.Error()
			if err := statefile.Write(name+".damaged", content); err != nil {
				return nil, "", fmt.Errorf("set the damaged LAN authority aside: %w", err)
			}
		}
	}
	if made != "" {
		if content, err = create(cfg); err != nil {
			return nil, "", fmt.Errorf("make the LAN authority: %w", err)
		}
		if err := statefile.Write(name, content); err != nil {
			return nil, "", fmt.Errorf("keep the LAN authority: %w", err)
		}
		if a.ca, a.key, err = parse(content); err != nil {
			return nil, "", fmt.Errorf("make the LAN authority: %w", err)
		}
	}
	os.Remove(filepath.Join(cfg.Dir, oldFile)) // usually absent; one that cannot be removed harms nobody
	a.pin = trust.Pin(a.ca)
	a.floor = cfg.Floor
	if begin := a.ca.NotBefore.Add(slack); begin.After(a.floor) { // a newer build made it
		a.floor = begin
	}
	a.file = filepath.Join(cfg.Dir, LeafFile)
	a.load()
	_, err = a.Update(cfg.HostName, cfg.Addrs)
	return a, made, err
}

// Pin is what clients know the device by: trust.Pin of the authority.
func (a *Authority) Pin() string { return a.pin }

// Leaf is the present leaf; it is not to be changed.
func (a *Authority) Leaf() *x509.Certificate { return a.leaf.Load().Leaf }

// CA is the authority's certificate, for those who install it in a client; it is not to be
// changed.
func (a *Authority) CA() *x509.Certificate { return a.ca }

// GetCertificate fits tls.Config: the present leaf, and the authority after it. Connections
// keep the leaf that they began with.
func (a *Authority) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return a.leaf.Load(), nil
}

// Update tells the machine's host name and addresses of now. If the leaf lacks one of those
// that the authority may sign for, a new leaf is made and why says the reason; otherwise
// why is empty. What is gone stays in the leaf until there is a new one.
func (a *Authority) Update(host string, addrs []netip.Addr) (why string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.host, a.addrs = host, addrs
	return a.renew()
}

// Run looks at the clock every minute until ctx is done, and makes a new leaf when it is
// time to. It returns nil.
func (a *Authority) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.mu.Lock()
		_, err := a.renew()
		a.mu.Unlock()
		if err != nil && !failed {
			a.log.Error("no new LAN certificate could be made, the old one stays", "err", err, "retry_in", checkEvery)
		}
		failed = err != nil
	}
}

// renew makes a new leaf if there is a reason, and returns it. mu is held.
func (a *Authority) renew() (why string, err error) {
	names, ips := a.names(), a.addresses()
	from, to, timed := a.span()
	if why = a.reason(names, ips, timed); why == "" {
		return "", nil
	}
	leaf, err := a.issue(names, ips, from, to)
	if err != nil {
		return why, fmt.Errorf("make the LAN certificate: %w", err)
	}
	a.leaf.Store(leaf)
	a.timed = timed
	a.save(leaf)
	a.log.Info("the LAN certificate is new", "reason", why, "names", names, "addresses", ips, "until", to)
	return why, nil
}

// load takes the leaf of an earlier start, so that a browser which was told to accept it
// does not ask again after each. Whether it still does is for reason to say.
func (a *Authority) load() {
	content, err := statefile.Read(a.file)
	if err != nil {
		return // there will be a new one
	}
	kept, err := tls.X509KeyPair(content, content)
	if err != nil {
		return
	}
	leaf, err := x509.ParseCertificate(kept.Certificate[0])
	if err != nil || leaf.IsCA || leaf.Subject.CommonName != LocalName(a.id) || leaf.CheckSignatureFrom(a.ca) != nil {
		return
	}
	kept.Certificate, kept.Leaf = [][]byte{leaf.Raw, a.ca.Raw}, leaf
	a.leaf.Store(&kept)
	a.timed = !leaf.NotAfter.Equal(a.ca.NotAfter)
}

// save keeps the leaf for the next start, at most once in saveEvery: an address that comes
// and goes shall not wear the flash out. It is a courtesy, and a full disk no reason to stop.
// mu is held.
func (a *Authority) save(leaf *tls.Certificate) {
	now := time.Now() // its monotonic part: the clock may jump
	if !a.saved.IsZero() && now.Sub(a.saved) < saveEvery {
		return
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err == nil {
		err = statefile.Write(a.file, pair(leaf.Certificate[0], key))
	}
	if err != nil {
		a.log.Warn("the LAN certificate is not kept, the next start makes another", "err", err)
	}
	a.saved = now
}

// span is the life of a leaf that is made now. By a clock that cannot be right it is as
// long as can be: clients, whose clocks are right, shall not refuse it meanwhile.
func (a *Authority) span() (from, to time.Time, timed bool) {
	now := a.now().UTC().Truncate(time.Second)
	if now.Before(a.floor) || now.After(a.ca.NotAfter.Add(-leafLife)) {
		return a.floor.Add(-slack), a.ca.NotAfter, false
	}
	from = now.Add(-slack)
	return from, from.Add(leafLife), true
}

// reason is why the present leaf does not do; empty if it does.
func (a *Authority) reason(names []string, ips []netip.Addr, timed bool) string {
	old := a.leaf.Load()
	if old == nil {
		return "start"
	}
	if what := missing(old.Leaf, names, ips); what != "" {
		return what + " is new"
	}
	now := a.now()
	switch {
	case timed && !a.timed:
		return "the clock is right now"
	case !timed && a.timed:
		return "the clock is wrong now"
	case timed && now.Before(old.Leaf.NotBefore):
		return "the clock was set back"
	case timed && now.After(old.Leaf.NotAfter.Add(-renewLeft)):
		return "the old one ends soon"
	}
	return ""
}

func (a *Authority) issue(names []string, ips []netip.Addr, from, to time.Time) (*tls.Certificate, error) {
	key, serial, err := draw()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: LocalName(a.id)}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: names,
	}
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// create makes an authority in PEM form: the certificate, then the key.
func create(cfg Config) ([]byte, error) {
	key, serial, err := draw()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "CloudREST device " + cfg.ID.Short(), Organization: []string{"CloudREST"}},
		// Not by the clock, which may be wrong: a wrong life would be for life.
		NotBefore: cfg.Floor.Add(-slack), NotAfter: cfg.Floor.AddDate(caYears, 0, 0),
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	constrain(template, cfg.HostName)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pair(der, keyDER), nil
}

// pair is a certificate and its key in PEM form.
func pair(cert, key []byte) []byte {
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	return append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
}

// draw makes a key and a serial number.
func draw() (*ecdsa.PrivateKey, *big.Int, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, nil, err
	}
	return key, serial.Add(serial, big.NewInt(1)), nil // RFC 5280 §4.1.2.2: positive
}

// ReadPin returns the pin of the authority in a state directory without opening it. There
// may be none yet: fs.ErrNotExist.
func ReadPin(dir string) (string, error) {
	content, err := statefile.Read(filepath.Join(dir, File))
	if err != nil {
		return "", fmt.Errorf("read the LAN authority: %w", err)
	}
	ca, _, err := parse(content)
	if err != nil {
		return "", fmt.Errorf("%s: %w", File, err)
	}
	return trust.Pin(ca), nil
}

func parse(content []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.X509KeyPair(content, content) // checks that they belong together
	if err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !ca.IsCA {
		return nil, nil, errors.New("it is no authority with an ECDSA key")
	}
	return ca, key, nil
}
