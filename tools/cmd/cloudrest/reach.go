package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"github.com/cloudrest/cloudrest/tether/trust"
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
	s.Path(&r.pinsFile, "pins", "file that remembers devices, their keys and your tokens; default: pins.json in your configuration folder")
	s.File(&r.ca, "ca", "for a URL: certificate authority of the server (PEM)")
	s.String(&r.fingerprint, "fingerprint", "the pin of the device, in hex: what its label, `cloudrestd identity` and `cloudrest discover --json` tell")
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
	if r.fingerprint == "" && r.ca != "" {
		if conf.RootCAs, err = readCA(r.ca); err != nil {
			return nil, err
		}
	} else if e, err := r.deviceAt(u); err != nil {
		return nil, err
	} else if e.Pin != "" {
		m := lanRemote(u, e)
		m.base, m.events, m.name = u, "", u.Host // the URL is meant as it stands
		return m, nil
	}
	token := ""
	if r.relay != nil && httpURL(r.relay).Host == u.Host && u.Scheme == "https" {
		if token, err = r.readToken(); err != nil {
			return nil, err
		}
	}
	return &remote{base: u, name: u.Host, client: clientFor(conf), token: token}, nil
}

// deviceAt is what is expected of a device that is named by its URL: the pin that the user
// gives, or that of the device which was there last; and the token for it. The zero pin:
// nothing is known.
func (r *reach) deviceAt(u *url.URL) (pin, error) {
	p, err := openPins(r.pinsFile)
	if err != nil {
		return pin{}, cannot("%w", err)
	}
	if r.fingerprint != "" {
		want, err := r.wanted()
		if i := slices.IndexFunc(p.list, func(e pin) bool { return e.Pin == want }); err == nil && i >= 0 {
			return p.list[i], nil
		}
		return pin{Pin: want}, err
	}
	for _, e := range p.list {
		if known, err := url.Parse(e.URL); err == nil && u.Scheme == "https" && known.Scheme == u.Scheme && known.Host == u.Host {
			if e.Pin == "" {
				return pin{}, outdated(e)
			}
			return e, nil
		}
	}
	return pin{}, nil
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

// wanted is the pin that --fingerprint gives, with or without colons.
func (r *reach) wanted() (string, error) {
	want := strings.ToLower(strings.ReplaceAll(r.fingerprint, ":", ""))
	if !trust.ValidPin(want) {
		return "", cannot("--fingerprint: want 64 hex digits, as `cloudrest discover --json` prints them")
	}
	return want, nil
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
		if known[0].Pin == "" {
			return nil, outdated(known[0])
		}
		if err := r.check(known[0]); err != nil {
			return nil, err
		}
		if u, err := url.Parse(known[0].URL); err == nil {
			if _, err := probe(ctx, u.Host, known[0].Pin); err == nil {
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
	e := pin{ID: d.ID, Name: d.Name, Pin: d.Fingerprint, Since: time.Now().UTC().Truncate(time.Second)}
	first := true
	if old := p.find(string(d.ID)); len(old) == 1 {
		if old[0].Pin == "" {
			return nil, outdated(old[0])
		}
		if trust.ValidPin(d.Fingerprint) && old[0].Pin != d.Fingerprint {
			return nil, changed(old[0], &trust.PinError{Want: old[0].Pin, Got: d.Fingerprint})
		}
		e.Pin, e.Since, e.Token, first = old[0].Pin, old[0].Since, old[0].Token, false
	} else if !trust.ValidPin(e.Pin) {
		return nil, cannot("%q announces no pin: use its URL with --fingerprint: %s", printable(d.Name), printable(d.URL))
	}
	if err := r.check(e); err != nil {
		return nil, err
	}
	if first {
		fmt.Fprintf(r.notes, "first contact with %s (%s), pin %s: remembered in %s\n", printable(d.Name), d.ID.Short(), e.Pin, p.path)
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
		_, err := probe(ctx, host, e.Pin)
		if err == nil {
			at := *u
			at.Host = host
			e.URL = at.String()
			if err := p.put(e); err != nil {
				return nil, cannot("%w", err)
			}
			return lanRemote(&at, e), nil
		}
		if pe, ok := errors.AsType[*trust.PinError](err); ok {
			return nil, changed(e, pe)
		}
		errs = append(errs, fmt.Errorf("%s: %w", host, err))
	}
	return nil, cannot("%s was found but cannot be reached: %w", printable(d.Name), errors.Join(errs...))
}

// check compares a device with the pin that the user gave, if he did.
func (r *reach) check(e pin) error {
	if r.fingerprint == "" {
		return nil
	}
	want, err := r.wanted()
	if err == nil && want != e.Pin {
		err = cannot("%s (%s) has the pin\n  %s, not\n  %s, which --fingerprint gives", printable(e.Name), e.ID.Short(), e.Pin, want)
	}
	return err
}

// changed says why a device is refused, and what a person can do about it.
func changed(e pin, pe *trust.PinError) error {
	now := pe.Got
	if now == "" {
		now = "none: " + pe.Err.Error()
	}
	return cannot("%s (%s) does not show the key that was expected:\n  pin expected %s\n  pin now      %s\n%s",
		printable(e.Name), e.ID.Short(), e.Pin, now, adviseForget(e.ID.Short()))
}

// outdated refuses a device that only an older version remembered.
func outdated(e pin) error {
	return cannot("%s (%s) was remembered by an older version, by a certificate that devices do not show any more.\n%s",
		printable(e.Name), e.ID.Short(), adviseForget(e.ID.Short()))
}

func adviseForget(device string) string {
	return "A device keeps its key for life, unless its storage was erased or damaged, or the device was replaced. If none of that\n" +
		"happened, someone else may be answering in its place. Compare the pin with the device's label, or with what\n" +
		"`cloudrestd identity` prints on the device itself. Only if it is the same:  cloudrest forget " + device
}

// probe opens a TLS connection and closes it again.
func probe(ctx context.Context, host, pin string) (netip.AddrPort, error) {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	d := tls.Dialer{Config: trust.Client(pin)}
	c, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	at, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // zero when odd
	return at, c.Close()
}

// identify asks the gateway at host:port who it is, whatever key it has, and returns its
// pin. It is for a first contact only.
func identify(ctx context.Context, host string) (s status, pin string, err error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) (err error) {
		pin, err = trust.PinOf(&cs)
		return err
	}}
	m := &remote{base: &url.URL{Scheme: "https", Host: host}, name: host, client: clientFor(conf)}
	defer m.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err := m.call(ctx, http.MethodGet, tether.OwnPrefix+"v1/status", "", &s); err != nil {
		return status{}, "", err
	}
	if _, err := tether.ParseDeviceID(string(s.ID)); err != nil || s.Certificate != "" && s.Certificate != pin {
		return status{}, "", fmt.Errorf("its status tells ID %q and pin %q, which do not fit (it shows %s)", clip(string(s.ID), 64), clip(s.Certificate, 64), pin)
	}
	return s, pin, nil
}

func lanRemote(u *url.URL, e pin) *remote {
	base := *u
	base.Path = strings.TrimSuffix(base.Path, "/")
	client := clientFor(trust.Client(e.Pin))
	if e.Token != "" {
		client.Transport = &bearer{client.Transport, e.Token}
	}
	return &remote{base: &base, events: tether.OwnPrefix + "v1/events", name: printable(e.Name), client: client}
}

// bearer sends the token of a paired client. The pin of the connection below it makes
// sure that nobody else than the device gets it.
type bearer struct {
	http.RoundTripper
	token string
}

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	if _, own := req.Header[tokenField]; !own {
		req = req.Clone(req.Context())                      // a RoundTripper leaves the request as it is
		if _, taken := req.Header["Authorization"]; taken { // the user speaks to the maker's service
			req.Header.Set(tokenField, b.token)
		} else {
			req.Header.Set("Authorization", "Bearer "+b.token)
		}
	}
	return b.RoundTripper.RoundTrip(req)
}

// CloseIdleConnections is what http.Client looks for.
func (b *bearer) CloseIdleConnections() { b.RoundTripper.(*http.Transport).CloseIdleConnections() }

// tokenField is the field for tokens of gateway and relay when Authorization belongs to
// the maker's service, in canonical form.
const tokenField = "X-Cloudrest-Token"

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
		req.Header.Set(tokenField, m.token) // leaves Authorization to the device
	}
	return req, nil
}

// connectError says what to do about a request that got no answer.
func connectError(m *remote, err error) error {
	advice := ""
	if _, ok := errors.AsType[*trust.PinError](err); ok {
		advice = "\n" + adviseForget("DEVICE")
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
