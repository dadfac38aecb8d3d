package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// reach says how to get to a device; the commands that talk to one share it.
type reach struct {
	via         string // "auto", "lan", "relay"
	relay       *url.URL
	relayCA     string
	token       string
	tokenFile   string
	pinsFile    string
	ca          string
	fingerprint string
	wait        time.Duration
	interfaces  []string

	notes io.Writer // remarks for people, never results
	// discover starts a search; tests put their own in.
	discover func(ctx context.Context, interfaces []string) <-chan sighting
}

func (r *reach) declare(s *settings.Set) {
	*r = reach{via: "auto", wait: 3 * time.Second}
	s.Group("How to reach the device")
	s.Enum(&r.via, "via", []string{"auto", "lan", "relay"}, "auto: through the relay when one is given, else over the LAN")
	s.URL(&r.relay, "relay", "https,wss,http,ws", "the relay to go through", settings.Example("https://relay.example"))
	s.File(&r.relayCA, "relay-ca", "certificate authority of the relay (PEM), when it is not a public one")
	s.File(&r.tokenFile, "token-file", "file with the relay's operator token")
	s.String(&r.token, "token", "the operator token itself: better in the environment or a file, others can see command lines", settings.Secret())
	s.Duration(&r.wait, "wait", 100*time.Millisecond, time.Minute, "how long to look for the device on the LAN")
	s.Strings(&r.interfaces, "interfaces", interfacesHelp, settings.What("NAME"))
	s.Path(&r.pinsFile, "pins", "file that remembers devices and their certificates; default: pins.json in your configuration folder")
	s.File(&r.ca, "ca", "for a URL: certificate authority of the server (PEM)")
	s.String(&r.fingerprint, "fingerprint", "for a URL: SHA-256 of the server's certificate, in hex")
}

const interfacesHelp = "network interfaces to look on; default: those of local networks"

// remote is where requests go.
type remote struct {
	base   *url.URL // paths are appended to its path
	events string   // path of the device's notifications, below base's host
	name   string   // for people
	client *http.Client
	token  string // for the relay; "" on the LAN
}

// Exit codes of the commands that send a request.
const (
	exitStatus  = 1 // the answer is 4xx or 5xx
	exitConnect = 2 // there is no answer
)

func cannot(format string, args ...any) error {
	return &settings.ExitError{Code: exitConnect, Err: fmt.Errorf(format, args...)}
}

// find turns the words of the command line, URL or DEVICE, into a place.
func (r *reach) find(ctx context.Context, word string) (*remote, error) {
	if strings.Contains(word, "://") {
		return r.byURL(word)
	}
	switch {
	case r.via == "relay" && r.relay == nil:
		return nil, cannot("--via relay needs to know which: give --relay URL or set %s", settings.EnvName("relay"))
	case r.relay != nil && r.via != "lan":
		return r.byRelay(ctx, word)
	}
	return r.byLAN(ctx, word)
}

const (
	dialTimeout = 10 * time.Second
	// probeTimeout bounds the try of one address of a device.
	probeTimeout = 3 * time.Second
	userAgent    = "cloudrest"
)

func clientFor(conf *tls.Config) *http.Client {
	d := net.Dialer{Timeout: dialTimeout}
	t := &http.Transport{
		DialContext: d.DialContext, TLSClientConfig: conf, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: dialTimeout, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
		DisableCompression: true, // bodies are shown and stored as they were sent
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (r *reach) byURL(text string) (*remote, error) {
	u, err := settings.ParseURL(text, "http,https")
	if err != nil {
		return nil, cannot("URL: %w", err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case r.fingerprint != "":
		fp := strings.ToLower(strings.ReplaceAll(r.fingerprint, ":", ""))
		if !isFingerprint(fp) {
			return nil, cannot("--fingerprint: want 64 hex digits, as `cloudrest discover --json` prints them")
		}
		conf = pinned(fp)
	case r.ca != "":
		if conf.RootCAs, err = readCA(r.ca); err != nil {
			return nil, err
		}
	default: // a device that is remembered may be named by its URL too
		p, err := openPins(r.pinsFile)
		if err != nil {
			return nil, cannot("%w", err)
		}
		for _, e := range p.list {
			if known, err := url.Parse(e.URL); err == nil && known.Scheme == u.Scheme && known.Host == u.Host {
				conf = pinned(e.Fingerprint)
			}
		}
	}
	token := ""
	if r.relay != nil && httpURL(r.relay).Host == u.Host && u.Scheme == "https" {
		if token, err = r.readToken(); err != nil {
			return nil, err
		}
	}
	return &remote{base: u, name: u.Host, client: clientFor(conf), token: token}, nil
}

func readCA(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, cannot("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, cannot("read certificate authority: %s holds no certificate in PEM form", path)
	}
	return pool, nil
}

// certError means that a server showed another certificate than the one expected.
type certError struct{ got, want string }

func (e *certError) Error() string {
	return fmt.Sprintf("certificate is %s…, expected %s…", e.got[:16], e.want[:16])
}

// pinned trusts exactly one certificate. Names and dates do not count: a device on the
// LAN is known by its key, its address changes and its clock may be wrong.
func pinned(fingerprint string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := fingerprintOf(cs); got != fingerprint {
				return &certError{got, fingerprint}
			}
			return nil
		},
	}
}

func fingerprintOf(cs tls.ConnectionState) string {
	sum := sha256.Sum256(cs.PeerCertificates[0].Raw) // a TLS server always shows one
	return hex.EncodeToString(sum[:])
}

// httpURL is u with the scheme that requests use.
func httpURL(u *url.URL) *url.URL {
	c := *u
	c.Scheme = map[string]string{"wss": "https", "ws": "http"}[u.Scheme]
	c.Scheme = cmp.Or(c.Scheme, u.Scheme)
	c.Path = strings.TrimSuffix(c.Path, "/")
	return &c
}

func (r *reach) readToken() (string, error) {
	if r.tokenFile == "" {
		return r.token, nil
	}
	b, err := os.ReadFile(r.tokenFile)
	if err != nil {
		return "", cannot("read token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// listed is a device in the relay's list.
type listed struct {
	ID     tether.DeviceID `json:"id"`
	Name   string          `json:"name"`
	Online bool            `json:"online"`
}

const maxList = 64 << 20 // bytes of the relay's list

func (r *reach) byRelay(ctx context.Context, word string) (*remote, error) {
	token, err := r.readToken()
	if err != nil {
		return nil, err
	}
	if token == "" {
		return nil, cannot("the relay wants an operator token: give --token-file FILE or set %s (`cloudrelay token` makes one)", settings.EnvName("token"))
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if r.relayCA != "" {
		if conf.RootCAs, err = readCA(r.relayCA); err != nil {
			return nil, err
		}
	}
	m := &remote{base: httpURL(r.relay), client: clientFor(conf), token: token}
	id, err := tether.ParseDeviceID(word)
	m.name = id.Short()
	if err != nil {
		one, err := r.listed(ctx, m, word)
		if err != nil {
			return nil, err
		}
		id, m.name = one.ID, printable(one.Name)
	}
	m.events = m.base.Path + "/v1/devices/" + string(id) + "/events"
	m.base.Path += "/d/" + string(id)
	return m, nil
}

// listed asks the relay which device word means.
func (r *reach) listed(ctx context.Context, m *remote, word string) (listed, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	req, err := m.request(ctx, http.MethodGet, "/v1/devices/list", nil)
	if err != nil {
		return listed{}, err
	}
	res, err := m.client.Do(req)
	if err != nil {
		return listed{}, connectError(m, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxList))
	if err != nil {
		return listed{}, cannot("read the relay's list of devices: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return listed{}, cannot("ask the relay for its devices: %s%s", res.Status, hint(res.StatusCode))
	}
	var list struct {
		Devices []listed `json:"devices"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return listed{}, cannot("read the relay's list of devices: %w", err)
	}
	found := match(list.Devices, word, func(d listed) (tether.DeviceID, string) { return d.ID, d.Name })
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return listed{}, cannot("the relay knows no device %q (it knows %d): give a name, an ID, or at least its first %d digits", word, len(list.Devices), minPrefix)
	}
	return listed{}, ambiguous(word, found, func(d listed) (tether.DeviceID, string) { return d.ID, d.Name })
}

func hint(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return ": the token is not one of this relay's (`cloudrelay token` makes one)"
	}
	return ""
}

func ambiguous[T any](word string, list []T, who func(T) (tether.DeviceID, string)) error {
	text := ""
	for _, e := range list[:min(len(list), 10)] {
		id, name := who(e)
		text += fmt.Sprintf("\n  %s  %s", clip(string(id), 16), printable(name))
	}
	return cannot("%q means %d devices, say more digits of the ID:%s", word, len(list), text)
}

// byLAN tries where the device was last, then looks for it.
func (r *reach) byLAN(ctx context.Context, word string) (*remote, error) {
	p, err := openPins(r.pinsFile)
	if err != nil {
		return nil, cannot("%w", err)
	}
	who := func(e pin) (tether.DeviceID, string) { return e.ID, e.Name }
	known := p.find(word)
	if len(known) > 1 {
		return nil, ambiguous(word, known, who)
	}
	if len(known) == 1 {
		if u, err := url.Parse(known[0].URL); err == nil {
			if _, err := probe(ctx, u.Host, known[0].Fingerprint); err == nil {
				return lanRemote(u, known[0]), nil
			}
		}
		word = string(known[0].ID) // the device that is remembered, not another of that name
	}
	d, err := r.search(ctx, word)
	if err != nil {
		return nil, err
	}
	return r.settle(ctx, p, d)
}

// settled is how long after the first match another one is waited for.
const settled = 700 * time.Millisecond

// search looks for word on the LAN until it is found, once.
func (r *reach) search(ctx context.Context, word string) (device, error) {
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	defer cancel()
	who := func(d device) (tether.DeviceID, string) { return d.ID, d.Name }
	var t table
	var soon <-chan time.Time
	heard := r.discover(ctx, r.interfaces)
	for open := true; open; {
		select {
		case s, ok := <-heard:
			if open = ok; ok {
				t.add(s)
			}
		case <-soon:
			open = false
		}
		found := match(t.devices(), word, who)
		// mDNS tells the ID and the fingerprint: an answer by UDP alone can wait for it.
		if len(found) > 0 && found[0].ID != "" && soon == nil {
			if _, err := tether.ParseDeviceID(word); err == nil {
				break
			}
			soon = time.After(settled)
		}
	}
	cancel()
	found := match(t.devices(), word, who)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		others := ""
		for _, d := range t.devices() {
			others += fmt.Sprintf("\n  %s  %s", clip(string(d.ID), 16), printable(d.Name))
		}
		if others != "" {
			return device{}, cannot("no device %q answered in %v; these did:%s", word, r.wait, others)
		}
		return device{}, cannot("no device answered in %v: is it on, and in the same network? `cloudrest discover` shows more, --relay URL reaches it from elsewhere", r.wait)
	}
	return device{}, ambiguous(word, found, who)
}

// settle checks the device's certificate against what is remembered, and remembers it.
func (r *reach) settle(ctx context.Context, p *pins, d device) (*remote, error) {
	u, err := url.Parse(d.URL)
	if err != nil || u.Scheme != "https" {
		return nil, cannot("the device tells %q as its address, want an https URL", printable(d.URL))
	}
	if d.ID == "" { // UDP tells neither ID nor certificate: ask the gateway itself, at first contact as good as mDNS
		s, fingerprint, err := identify(ctx, u.Host)
		if err != nil {
			return nil, cannot("%s was found by UDP, but does not tell who it is: %w", printable(d.Name), err)
		}
		d.ID, d.Fingerprint = s.ID, fingerprint
	}
	e := pin{ID: d.ID, Name: d.Name, Fingerprint: d.Fingerprint, Since: time.Now().UTC().Truncate(time.Second)}
	if old := p.find(string(d.ID)); len(old) == 1 {
		if old[0].Fingerprint != d.Fingerprint && isFingerprint(d.Fingerprint) {
			return nil, changed(old[0], d.Fingerprint)
		}
		e.Fingerprint, e.Since = old[0].Fingerprint, old[0].Since
	} else if !isFingerprint(e.Fingerprint) {
		return nil, cannot("%q announces no certificate fingerprint: use its URL with --fingerprint: %s", printable(d.Name), printable(d.URL))
	} else {
		fmt.Fprintf(r.notes, "first contact with %s (%s), certificate %s: remembered in %s\n", printable(d.Name), d.ID.Short(), e.Fingerprint, p.path)
	}

	// Addresses first: not every machine resolves the .local name in the URL.
	var places []string
	for _, a := range d.Addresses {
		places = append(places, net.JoinHostPort(a, cmp.Or(u.Port(), "443")))
	}
	if !slices.Contains(places, u.Host) {
		places = append(places, u.Host)
	}
	var errs []error
	for _, host := range places {
		_, err := probe(ctx, host, e.Fingerprint)
		if err == nil {
			at := *u
			at.Host = host
			e.URL = at.String()
			if err := p.put(e); err != nil {
				return nil, cannot("%w", err)
			}
			return lanRemote(&at, e), nil
		}
		if ce, ok := errors.AsType[*certError](err); ok {
			return nil, changed(e, ce.got)
		}
		errs = append(errs, fmt.Errorf("%s: %w", host, err))
	}
	return nil, cannot("%s was found but cannot be reached: %w", printable(d.Name), errors.Join(errs...))
}

func changed(e pin, got string) error {
	return cannot("%s (%s) shows another certificate than before:\n  remembered %s\n  now        %s\n"+
		"If it was reset or replaced:  cloudrest forget %s\nIf not, someone else may be answering in its place.",
		printable(e.Name), e.ID.Short(), e.Fingerprint, got, e.ID.Short())
}

// probe opens a TLS connection and closes it again.
func probe(ctx context.Context, host, fingerprint string) (netip.AddrPort, error) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	d := tls.Dialer{Config: pinned(fingerprint)}
	c, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	at, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // zero when odd
	return at, c.Close()
}

// identify asks the gateway at host:port who it is, whatever certificate it shows, and
// returns that certificate's fingerprint. It is for a first contact only.
func identify(ctx context.Context, host string) (s status, fingerprint string, err error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
		fingerprint = fingerprintOf(cs)
		return nil
	}}
	m := &remote{base: &url.URL{Scheme: "https", Host: host}, name: host, client: clientFor(conf)}
	defer m.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err := m.call(ctx, http.MethodGet, tether.OwnPrefix+"v1/status", "", &s); err != nil {
		return status{}, "", err
	}
	if _, err := tether.ParseDeviceID(string(s.ID)); err != nil || s.Certificate != "" && s.Certificate != fingerprint {
		return status{}, "", fmt.Errorf("its status tells ID %q and certificate %q, which do not fit (it shows %s)", clip(string(s.ID), 64), clip(s.Certificate, 64), fingerprint)
	}
	return s, fingerprint, nil
}

func lanRemote(u *url.URL, e pin) *remote {
	base := *u
	base.Path = strings.TrimSuffix(base.Path, "/")
	return &remote{base: &base, events: tether.OwnPrefix + "v1/events", name: printable(e.Name), client: clientFor(pinned(e.Fingerprint))}
}

// request makes a request for path?query below the base.
func (m *remote) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	u := *m.base
	ref, err := url.Parse(path)
	if err != nil || ref.IsAbs() || ref.Host != "" {
		return nil, cannot("%q is no path: want one such as /zones/2?full=1", path)
	}
	joined := u.EscapedPath()
	if path != "" {
		joined = strings.TrimSuffix(joined, "/") + "/" + strings.TrimPrefix(ref.EscapedPath(), "/")
		u.RawQuery = ref.RawQuery
	}
	if u.Path, err = url.PathUnescape(joined); err != nil {
		return nil, cannot("%q is no path: %w", path, err)
	}
	u.RawPath = joined
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, cannot("make request: %w", err)
	}
	req.Header.Set("User-Agent", userAgent+"/"+buildinfo.Version())
	if m.token != "" {
		req.Header.Set("X-CloudREST-Token", m.token) // leaves Authorization to the device
	}
	return req, nil
}

// connectError says what to do about a request that got no answer.
func connectError(m *remote, err error) error {
	advice := ""
	if ce, ok := errors.AsType[*certError](err); ok {
		advice = "\nIf the device was reset:  cloudrest forget DEVICE   (remembered " + ce.want + ")"
	} else if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		advice = "\nThe certificate is not from a public authority: --ca FILE or --fingerprint HEX for a URL, --relay-ca FILE for a relay."
	} else if errors.Is(err, context.DeadlineExceeded) {
		advice = "\nNothing answered in time: is it on and reachable?"
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // its method and URL are said already
	}
	return cannot("reach %s at %s: %w%s", m.name, m.base.Host, err, advice)
}
