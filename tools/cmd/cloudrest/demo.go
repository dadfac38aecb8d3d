package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
	"github.com/cloudrest/cloudrest/tether/settings"
	"github.com/cloudrest/cloudrest/tether/sse"
	"github.com/cloudrest/cloudrest/tools/sample"
)

type demoOptions struct {
	once, lan, json bool
	bin, dir        string
}

func demoCommand(env environment) *settings.Command {
	var o demoOptions
	return &settings.Command{
		Name: "demo", Summary: "watch all of CloudREST on this machine: a maker's service, the gateway, a relay",
		Long: "Starts the real programs on free loopback ports, with a certificate authority made on the spot, goes through the " +
			"story step by step, and leaves everything running until Ctrl-C. Nothing leaves the machine: broadcast and " +
			"multicast happen in a private network. Exit code 1 when a step failed.",
		Samples: []settings.Sample{
			{Says: "from the source folder, building everything first", Line: "make demo"},
			{Says: "only the story, for an automatic test", Line: "cloudrest demo --once"},
			{Says: "so that phones in this network find the device too", Line: "cloudrest demo --lan"},
		},
		Declare: func(s *settings.Set) {
			o = demoOptions{}
			s.Switch(&o.once, "once", "stop at the end of the story")
			s.Switch(&o.lan, "lan", "announce the device in the real network, on the default ports, and listen on all interfaces")
			s.Switch(&o.json, "json", "one JSON object per step")
			s.Path(&o.bin, "bin", "folder with cloudrestd, cloudrelay and irrigation; default: where cloudrest itself is")
			s.Path(&o.dir, "state-dir", "folder for state and logs, kept at the end; default: a temporary one, removed at the end")
		},
		Run: func(ctx context.Context, _ *settings.Parsed, out io.Writer) error {
			d := &demo{demoOptions: o, out: screenOf(out), discover: env.discover}
			return d.run(ctx)
		},
	}
}

// demo is one run of the story.
type demo struct {
	demoOptions
	out      *screen
	discover func(context.Context, []string) <-chan sighting
	procs    []*proc
	steps    int
	failed   int

	origin  string // URL of the maker's service
	https   string // host:port of the gateway
	id      tether.DeviceID
	device  string // name
	fifo    string
	lanPath *remote
	relay   string // host:port
	metrics string // host:port
	viaRel  *remote
	lanURL  string // what discovery in the real LAN told
}

// stepTime bounds one step: long, since a small board or a busy machine is slow.
const stepTime = 45 * time.Second

// leftOut means that a step cannot be done here; it is told, but is no failure.
type leftOut struct{ why string }

func (e *leftOut) Error() string { return e.why }

// errAbandoned means that an earlier step failed and the rest makes no sense.
var errAbandoned = errors.New("the demo ended early")

func (d *demo) run(ctx context.Context) (err error) {
	if d.bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the programs: %w: say where they are with --bin", err)
		}
		d.bin = filepath.Dir(exe)
	}
	for _, name := range []string{"cloudrestd", "cloudrelay", "irrigation", "factory"} {
		if _, err := exec.LookPath(filepath.Join(d.bin, name)); err != nil {
			return fmt.Errorf("find %s in %s: it is not there: run `make demo` in the source folder, or say --bin", name, d.bin)
		}
	}
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "cloudrest-demo-"); err != nil {
			return fmt.Errorf("make a folder for state: %w", err)
		}
		defer os.RemoveAll(d.dir)
	} else if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	} else if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("make a folder for state: %w", err)
	}
	defer d.stop()

	if !d.json {
		fmt.Fprintf(d.out, "%s\n\n  phone ── https ──> cloudrestd ── http ──> the maker's service\n    └──── https ──> cloudrelay ── tether ──┘ (cloudrestd dials out)\n\n",
			d.out.paint(bold, buildinfo.String("CloudREST")))
	}
	err = d.story(ctx)
	if ctx.Err() != nil {
		return &settings.ExitError{Code: 130} // Ctrl-C
	}
	if d.failed > 0 {
		d.showLogs()
		return fmt.Errorf("%d of %d steps failed", d.failed, d.steps)
	}
	if err != nil {
		return err
	}
	if d.once {
		return nil
	}
	if !d.json {
		d.showURLs()
	}
	return d.supervise(ctx)
}

// Programs that end are started again, as systemd or procd would, so that people can kill
// one and watch the rest; but not more than maxRestarts times in all.
const (
	restartWait = 3 * time.Second
	maxRestarts = 20
)

func (d *demo) supervise(ctx context.Context) error {
	for n := 1; ; n++ {
		var p *proc
		select {
		case <-ctx.Done():
			return nil
		case p = <-d.firstEnd():
		}
		if n > maxRestarts {
			d.showLogs()
			return fmt.Errorf("%s ended by itself: %v", p.name, p.err)
		}
		if !d.json {
			fmt.Fprintf(d.out, "%s ended (%v), it is started again in %v\n", p.name, p.err, restartWait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartWait):
		}
		d.procs = slices.DeleteFunc(d.procs, func(o *proc) bool { return o == p })
		args := p.cmd.Args[1:]
		if p.name == "irrigation" { // where the gateway expects it
			args = append(slices.Clone(args), "--listen", strings.TrimPrefix(d.origin, "http://"))
		}
		if _, err := d.start(p.name, args...); err != nil {
			return err
		}
	}
}

// step does one thing and shows how it went. It returns false when it failed.
func (d *demo) step(ctx context.Context, title string, act func(ctx context.Context) (string, error)) bool {
	if ctx.Err() != nil {
		return false // Ctrl-C
	}
	d.steps++
	stopped := ctx
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	begin := time.Now()
	if d.out.width > 0 && !d.json {
		fmt.Fprintf(d.out, "%3d  …  %s", d.steps, title)
	}
	result, err := act(ctx)
	took := time.Since(begin)
	if err != nil && stopped.Err() != nil {
		return false // not the step's fault
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("not within %v: %w", stepTime, err)
	}
	word, mark, code := "ok", "✓", green
	left, isLeft := errors.AsType[*leftOut](err)
	switch {
	case isLeft:
		word, mark, code, result = "left out", "–", dim, "left out: "+left.why
	case err != nil:
		word, mark, code, result = "failed", "✗", red, err.Error()
		d.failed++
	}
	if d.json {
		json.NewEncoder(d.out).Encode(struct {
			Step   int    `json:"step"`
			Title  string `json:"title"`
			State  string `json:"state"` // "ok", "failed", "left out"
			Result string `json:"result"`
			Millis int64  `json:"ms"`
		}{d.steps, title, word, result, took.Milliseconds()})
		return err == nil || isLeft
	}
	const titleWidth = 47
	if d.out.width == 0 {
		mark = map[string]string{"ok": "ok      ", "failed": "FAILED  ", "left out": "left out"}[word]
	} else {
		fmt.Fprint(d.out, "\r\x1b[K")
	}
	fmt.Fprintf(d.out, "%3d  %s  %s %s  %s\n", d.steps, d.out.paint(code, mark), pad(title, titleWidth), d.out.paint(dim, fmt.Sprintf("%6d ms", took.Milliseconds())), printable(result))
	return err == nil || isLeft
}

// story is all steps in order. It ends early when what follows would only repeat a failure.
func (d *demo) story(ctx context.Context) error {
	must := func(title string, act func(context.Context) (string, error)) bool {
		return d.step(ctx, title, act) && ctx.Err() == nil
	}
	if !must("start the maker's REST service (plain HTTP)", d.startOrigin) ||
		!must("factory: the device gets its identity", d.provisionDevice) ||
		!must("start a relay that wants the factory's devices", d.startRelay) ||
		!must("start the gateway in front of the service", d.startGateway) {
		return errAbandoned
	}
	if d.lan {
		d.step(ctx, "find the device by mDNS and UDP in the real LAN", d.findOnLAN)
	} else {
		d.step(ctx, "find the device by mDNS and UDP (private LAN)", d.findPrivately)
	}
	d.step(ctx, "LAN: who is not paired stays outside", d.unpaired)
	if !must("LAN: a phone pairs, both ends show one code", d.pairPhone) {
		return errAbandoned
	}
	d.step(ctx, "LAN: GET /zones with the token", func(ctx context.Context) (string, error) { return d.getZones(ctx, d.lanPath) })
	d.step(ctx, "LAN: PUT /zones/2", func(ctx context.Context) (string, error) { return d.putZone(ctx, d.lanPath, d.lanPath, 21) })
	if !must("the relay knows that the device is online", d.online) {
		return errAbandoned
	}
	d.step(ctx, "relay: an impostor with the device's ID is refused", d.impostor)
	d.step(ctx, "relay: GET /zones", func(ctx context.Context) (string, error) { return d.getZones(ctx, d.viaRel) })
	d.step(ctx, "relay: PUT /zones/2, and the LAN sees it", func(ctx context.Context) (string, error) { return d.putZone(ctx, d.viaRel, d.lanPath, 34) })
	d.step(ctx, "relay: without a token nobody comes in", d.noToken)
	d.step(ctx, "a slow answer holds nobody up, on both paths", d.slow)
	d.step(ctx, "LAN: the cache takes a storm of pollers", d.pollStorm)
	d.step(ctx, "the service's own event stream, on both paths", d.stream)
	d.step(ctx, "a line in the named pipe arrives on both paths", d.notification)
	d.step(ctx, "relay: 8 MiB come through unchanged", d.download)
	return nil
}

func (d *demo) startOrigin(ctx context.Context) (string, error) {
	d.fifo = filepath.Join(d.dir, "notify")
	p, err := d.start("irrigation", "--listen", "127.0.0.1:0", "--fifo", d.fifo, "--slow", "2s", "--minute", "2s")
	if err != nil {
		return "", err
	}
	err = eventually(ctx, p, func() error {
		_, address, ok := strings.Cut(p.log.first(), "listening on ")
		if d.origin = strings.TrimSpace(address); !ok {
			return errors.New("it does not say where it listens")
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	u, err := url.Parse(d.origin)
	if err != nil {
		return "", err
	}
	var about struct{ Name, Manufacturer string }
	err = (&remote{base: u, client: clientFor(nil)}).call(ctx, http.MethodGet, "/device", "", &about)
	d.device = about.Name
	return fmt.Sprintf("%s by %s, on %s", about.Name, about.Manufacturer, d.origin), err
}

func (d *demo) startRelay(ctx context.Context) (string, error) {
	ca, err := newAuthority(d.dir)
	if err != nil {
		return "", err
	}
	if err := ca.issue("relay", "localhost", "*.localhost"); err != nil {
		return "", err
	}
	if d.relay, err = freeAddress("localhost"); err != nil {
		return "", err
	}
	if d.metrics, err = freeAddress("127.0.0.1"); err != nil {
		return "", err
	}
	state := filepath.Join(d.dir, "relay")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(d.relay)
	p, err := d.start("cloudrelay", "--role", "all", "--listen", "127.0.0.1:"+port, "--tls-cert", d.path("relay.pem"), "--tls-key", d.path("relay.key"),
		"--domain", "localhost", "--state-dir", state, "--metrics", d.metrics, "--enroll", "factory", "--factory-ca", d.factoryCA())
	if err != nil {
		return "", err
	}
	// The token goes from the program into a file that only we can read.
	out, err := d.command(ctx, "cloudrelay", "token", "--state-dir", state).Output()
	if err != nil {
		return "", fmt.Errorf("cloudrelay token: %w", withStderr(err))
	}
	token := ""
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "crt_") {
			token = word
		}
	}
	if token == "" {
		return "", errors.New("cloudrelay token printed no token")
	}
	if err := os.WriteFile(d.path("token"), []byte(token+"\n"), 0o600); err != nil {
		return "", err
	}
	relayURL := &url.URL{Scheme: "https", Host: d.relay}
	r := reach{relay: relayURL, relayCA: d.path("ca.pem"), tokenFile: d.path("token")}
	any := tether.NewDeviceID(nil)
	m, err := r.byRelay(ctx, string(any)) // the real ID comes with the gateway
	if err != nil {
		return "", err
	}
	plain := &remote{base: relayURL, name: "relay", client: m.client}
	return relayURL.String(), eventually(ctx, p, func() error { return plain.call(ctx, http.MethodGet, "/readyz", "", nil) })
}

// status is what the demo reads of the gateway's own status.
type status struct {
	ID          tether.DeviceID `json:"id"`
	Name        string          `json:"name"`
	Certificate string          `json:"certificate_sha256"`
	Device      struct {
		State string `json:"state"`
	} `json:"device"`
}

func (d *demo) startGateway(ctx context.Context) (string, error) {
	host, discovery := "127.0.0.1", "off"
	if d.lan {
		host, discovery = "", "on"
	}
	address, err := freeAddress("127.0.0.1")
	if err != nil {
		return "", err
	}
	d.https = address
	_, port, _ := net.SplitHostPort(address)
	p, err := d.start("cloudrestd", "run", "--uid-source", "file="+d.path("uid"), "--origin", d.origin, "--https", net.JoinHostPort(host, port), "--http", "off", "--state-dir", d.path("gateway"),
		"--relay", "wss://"+d.relay, "--relay-ca", d.path("ca.pem"), "--mdns", discovery, "--udp-discovery", discovery,
		"--fifo", d.fifo, "--notify-socket", d.fifo+".sock")
	if err != nil {
		return "", err
	}
	var s status
	fingerprint := ""
	err = eventually(ctx, p, func() (err error) {
		s, fingerprint, err = identify(ctx, address)
		if err == nil && s.Device.State != "known" {
			err = errors.New("it does not know the service yet")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	d.id = s.ID
	// As a phone does: the device's pin is remembered at first contact.
	pinsFile, err := openPins(d.path("pins.json"))
	if err != nil {
		return "", err
	}
	e := pin{ID: s.ID, Name: s.Name, Pin: fingerprint, URL: "https://" + address, Since: time.Now().UTC().Truncate(time.Second)}
	if err := pinsFile.put(e); err != nil {
		return "", err
	}
	d.lanPath = lanRemote(&url.URL{Scheme: "https", Host: address}, e)
	r := reach{relay: &url.URL{Scheme: "https", Host: d.relay}, relayCA: d.path("ca.pem"), tokenFile: d.path("token")}
	if d.viaRel, err = r.byRelay(ctx, string(d.id)); err != nil {
		return "", err
	}
	return fmt.Sprintf("device %s, pin %s…", d.id.Short(), fingerprint[:16]), nil
}

// findOnLAN looks around as `cloudrest discover` does, until both ways found the device.
func (d *demo) findOnLAN(ctx context.Context) (string, error) {
	found, err := findBoth(ctx, d.discover, func(e device) bool { return e.ID == d.id && e.Name == d.device })
	if err != nil {
		return "", err
	}
	d.lanURL = found.URL
	return foundText(found), nil
}

func (d *demo) findPrivately(ctx context.Context) (string, error) {
	found, err := d.privateLAN(ctx)
	if err != nil {
		return "", err
	}
	return foundText(found), nil
}

func foundText(e device) string {
	return fmt.Sprintf("%s by %s: %s, MAC %s", e.Name, strings.Join(e.Ways, " and "), e.URL, e.MAC)
}

// bothTime is how long both ways of discovery may take; they need about a second.
const bothTime = 20 * time.Second

// findBoth waits until mDNS and UDP both have found the device that is wanted.
func findBoth(ctx context.Context, discover func(context.Context, []string) <-chan sighting, wanted func(device) bool) (device, error) {
	ctx, cancel := context.WithTimeout(ctx, bothTime)
	defer cancel()
	var t table
	for s := range discover(ctx, nil) {
		t.add(s)
		for _, e := range t.devices() {
			if wanted(e) && len(e.Ways) == 2 {
				return e, nil
			}
		}
	}
	var ways []string
	for _, e := range t.devices() {
		ways = append(ways, fmt.Sprintf("%s by %s", e.Name, strings.Join(e.Ways, "+")))
	}
	return device{}, fmt.Errorf("not found by both mDNS and UDP in %v; found: %s", bothTime, strings.Join(ways, ", "))
}

func (d *demo) getZones(ctx context.Context, m *remote) (string, error) {
	var zones []sample.Zone
	if err := m.call(ctx, http.MethodGet, "/zones", "", &zones); err != nil {
		return "", err
	}
	if len(zones) != sample.Zones {
		return "", fmt.Errorf("%d zones came, want %d", len(zones), sample.Zones)
	}
	return fmt.Sprintf("%d zones, the first is %q", len(zones), zones[0].Name), nil
}

// putZone changes a zone over one path and reads it over another.
func (d *demo) putZone(ctx context.Context, to, from *remote, minutes int) (string, error) {
	if err := to.call(ctx, http.MethodPut, "/zones/2", fmt.Sprintf(`{"minutes":%d}`, minutes), nil); err != nil {
		return "", err
	}
	var z sample.Zone
	if err := from.call(ctx, http.MethodGet, "/zones/2", "", &z); err != nil {
		return "", err
	}
	if z.Minutes != minutes {
		return "", fmt.Errorf("minutes are %d afterwards, want %d", z.Minutes, minutes)
	}
	return fmt.Sprintf("%s is watered %d minutes now", z.Name, minutes), nil
}

func (d *demo) online(ctx context.Context) (string, error) {
	top := &remote{base: &url.URL{Scheme: "https", Host: d.relay}, name: "relay", client: d.viaRel.client, token: d.viaRel.token}
	var list struct{ Devices []listed }
	err := eventually(ctx, nil, func() error {
		if err := top.call(ctx, http.MethodGet, "/v1/devices/list", "", &list); err != nil {
			return err
		}
		for _, e := range list.Devices {
			if e.ID == d.id && e.Online {
				return nil
			}
		}
		return fmt.Errorf("device %s is not online", d.id.Short())
	})
	return fmt.Sprintf("%d device in its list, over one outgoing WebSocket", len(list.Devices)), err
}

func (d *demo) noToken(ctx context.Context) (string, error) {
	m := *d.viaRel
	m.token = ""
	err := m.call(ctx, http.MethodGet, "/zones", "", nil)
	if se, ok := errors.AsType[*statusError](err); ok && se.code == http.StatusUnauthorized {
		return "401 Unauthorized", nil
	}
	return "", fmt.Errorf("got %v, want 401 Unauthorized", err)
}

// slow keeps one slow request going on each path and asks quick ones beside it.
func (d *demo) slow(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	paths := []*remote{d.lanPath, d.viaRel}
	ended := make(chan error, len(paths))
	for _, m := range paths {
		go func() { ended <- m.call(ctx, http.MethodGet, "/diagnostics", "", nil) }()
	}
	n := 0
	for waiting := len(paths); waiting > 0; {
		select {
		case err := <-ended:
			if waiting--; err != nil {
				return "", fmt.Errorf("GET /diagnostics: %w", err)
			}
		default:
			for _, m := range paths {
				if err := m.call(ctx, http.MethodGet, "/zones/1", "", nil); err != nil {
					return "", err
				}
				n++
			}
		}
	}
	if n == 0 {
		return "", errors.New("no quick request was answered meanwhile")
	}
	return fmt.Sprintf("%d quick requests were answered meanwhile", n), nil
}

// stream watches GET /events on both paths while a zone is started.
func (d *demo) stream(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var both [2]<-chan heardEvent
	for i, m := range []*remote{d.lanPath, d.viaRel} {
		var err error
		if both[i], err = m.listen(ctx, "/events"); err != nil {
			return "", err
		}
	}
	if err := d.lanPath.call(ctx, http.MethodPost, "/zones/4/start", `{"minutes":1}`, nil); err != nil {
		return "", err
	}
	for _, c := range both {
		if _, err := await(ctx, c, func(e sse.Event) bool {
			var z sample.Zone
			return json.Unmarshal(e.Data, &z) == nil && z.ID == 4 && z.State == "watering"
		}); err != nil {
			return "", err
		}
	}
	return "zone 4 began to be watered, both saw it", nil
}

// notification listens on both paths and writes a line into the pipe, as a script would.
func (d *demo) notification(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	top := *d.viaRel
	top.base = &url.URL{Scheme: "https", Host: d.relay}
	lan, err := d.lanPath.listen(ctx, d.lanPath.events)
	if err != nil {
		return "", err
	}
	rel, err := top.listen(ctx, d.viaRel.events)
	if err != nil {
		return "", err
	}
	line := fmt.Sprintf("tank is at %d percent", 20+time.Now().Second())
	f, err := openFIFO(d.fifo)
	if err != nil {
		return "", err
	}
	if err := errors.Join(writeLines(f, strings.NewReader(line)), f.Close()); err != nil {
		return "", err
	}
	ours := func(e sse.Event) bool { return strings.Contains(string(e.Data), line) }
	a, err := await(ctx, lan, ours)
	if err != nil {
		return "", fmt.Errorf("on the LAN: %w", err)
	}
	b, err := await(ctx, rel, ours)
	if err != nil {
		return "", fmt.Errorf("through the relay: %w", err)
	}
	if a.ID != b.ID || a.ID == "" {
		return "", fmt.Errorf("its id is %q on the LAN and %q through the relay, want the same", a.ID, b.ID)
	}
	return fmt.Sprintf("%q, id %s on both", line, a.ID), nil
}

func (d *demo) download(ctx context.Context) (string, error) {
	const size = 8 << 20
	req, err := d.viaRel.request(ctx, http.MethodGet, fmt.Sprintf("/firmware?size=%d", size), nil)
	if err != nil {
		return "", err
	}
	res, err := d.viaRel.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	same, err := equal(res.Body, sample.Firmware(size))
	if err != nil || !same || res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s, same bytes: %v, %v", res.Status, same, err)
	}
	return "same bytes at both ends", nil
}

// equal compares two streams to their ends.
func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if n != m || string(x[:n]) != string(y[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			end := func(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }
			if end(errA) && end(errB) {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

func (d *demo) showURLs() {
	self := filepath.Join(d.bin, "cloudrest")
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, self); err == nil && !strings.HasPrefix(rel, "..") {
			self = rel
		}
	}
	relayURL := "https://" + d.relay
	p := func(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }
	h := func(s string) string { return d.out.paint(bold, s) }
	p("\nIt goes on until Ctrl-C. Try, in another terminal:\n")
	p("  %s", h("over the LAN"))
	p("    in a browser         https://%s%s   (its certificate is its own: accept it)", d.https, tether.OwnPrefix)
	p("    pair that browser    %s pair --invite --state-dir %s", strings.TrimSuffix(self, "cloudrest")+"cloudrestd", d.path("gateway"))
	if d.lanURL != "" {
		p("    from other machines  %s", d.lanURL)
	}
	p("    %s get %q /zones --pins %s", self, d.device, d.path("pins.json"))
	p("    curl -k https://%s%sv1/status", d.https, tether.OwnPrefix)
	p("  %s", h("through the relay"))
	p("    curl --cacert %s -H \"Authorization: Bearer $(cat %s)\" %s/d/%s/zones", d.path("ca.pem"), d.path("token"), relayURL, d.id)
	p("    export CLOUDREST_RELAY=%s CLOUDREST_RELAY_CA=%s CLOUDREST_TOKEN_FILE=%s", relayURL, d.path("ca.pem"), d.path("token"))
	p("    %s get %s /zones", self, d.id.Short())
	p("    %s events %s", self, d.id.Short())
	p("  %s", h("notify"))
	p("    echo \"the tank is empty\" > %s", d.fifo)
	p("  %s", h("more"))
	p("    the maker's service itself  %s/", d.origin)
	p("    the relay's metrics         http://%s/metrics", d.metrics)
	p("    logs                        %s/*.log", d.dir)
	p("    kill one of the programs    it is started again, watch the others cope")
	if !d.lan {
		p("    phones in this network      make demo LAN=1")
	}
	p("")
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// showLogs prints the end of each program's log, for a step that failed.
func (d *demo) showLogs() {
	if d.json {
		return
	}
	for _, p := range d.procs {
		fmt.Fprintf(d.out, "\n%s\n%s\n", d.out.paint(bold, "last words of "+p.name+":"), p.log.last())
	}
}

// proc is a program that the demo started.
type proc struct {
	name string
	cmd  *exec.Cmd
	log  *logFile
	done chan struct{}
	err  error // once done is closed
}

// command is one of our programs, which ends with us and reads none of the settings in
// our environment.
func (d *demo) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, name), args...)
	cmd.Env = cleanEnv()
	cmd.SysProcAttr = tied()
	return cmd
}

func cleanEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, settings.EnvPrefix) {
			env = append(env, e)
		}
	}
	return env
}

func (d *demo) start(name string, args ...string) (*proc, error) {
	l, err := newLogFile(d.path(name + ".log"))
	if err != nil {
		return nil, err
	}
	p := &proc{name: name, cmd: d.command(context.Background(), name, args...), log: l, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.WaitDelay = l, l, grace
	if err := p.cmd.Start(); err != nil {
		l.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	d.procs = append(d.procs, p)
	go func() {
		p.err = p.cmd.Wait()
		l.Close()
		close(p.done)
	}()
	return p, nil
}

// firstEnd tells the first program that ends.
func (d *demo) firstEnd() <-chan *proc {
	c := make(chan *proc, len(d.procs))
	for _, p := range d.procs {
		go func() {
			<-p.done
			c <- p
		}()
	}
	return c
}

// grace is how long programs have to end by themselves.
const grace = 5 * time.Second

// stop ends what was started, the last first.
func (d *demo) stop() {
	for i := len(d.procs) - 1; i >= 0; i-- {
		d.procs[i].end()
	}
}

func (p *proc) end() {
	terminate(p.cmd.Process)
	select {
	case <-p.done:
	case <-time.After(grace):
		kill(p.cmd.Process)
		<-p.done
	}
}

// logFile keeps the first line and the last ones in memory, all of it in a file.
type logFile struct {
	f    *os.File   // not embedded: its ReadFrom would go past Write
	mu   sync.Mutex // guards what follows
	text []byte
	head []byte
}

const (
	maxHead = 4 << 10
	maxTail = 4 << 10
)

func newLogFile(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make log: %w", err)
	}
	return &logFile{f: f}, nil
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = append(l.head, b[:min(len(b), maxHead-len(l.head))]...)
	if l.text = append(l.text, b...); len(l.text) > 2*maxTail {
		l.text = append(l.text[:0], l.text[len(l.text)-maxTail:]...)
	}
	return l.f.Write(b)
}

func (l *logFile) Close() error { return l.f.Close() }

// first is the beginning up to the first newline; "" before there is one.
func (l *logFile) first() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, _, ok := strings.Cut(string(l.head), "\n")
	if !ok {
		return ""
	}
	return line
}

func (l *logFile) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	tail := string(l.text[max(0, len(l.text)-maxTail):])
	text := ""
	for line := range strings.Lines(tail) {
		text += "  " + printable(strings.TrimRight(line, "\n")) + "\n"
	}
	return text
}

// eventually tries until it works, ctx ends, or p does (nil: no program to watch).
func eventually(ctx context.Context, p *proc, try func() error) error {
	ended := (<-chan struct{})(nil)
	if p != nil {
		ended = p.done
	}
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", ctx.Err(), err)
		case <-ended:
			return fmt.Errorf("%s ended: %v", p.name, p.err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// freeAddress is a port of the loopback interface that nobody used just now.
func freeAddress(host string) (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(host, port), nil
}

func withStderr(err error) error {
	if ee, ok := errors.AsType[*exec.ExitError](err); ok && len(ee.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(ee.Stderr)))
	}
	return err
}

// statusError is an answer 4xx or 5xx.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// maxAnswer bounds the answers that call reads, in bytes.
const maxAnswer = 1 << 20

// call sends a small request and reads the JSON answer into v, if v is not nil.
func (m *remote) call(ctx context.Context, method, path, body string, v any) error {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := m.request(ctx, method, path, r)
	if err != nil {
		return err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := m.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	if res.StatusCode >= 400 {
		return &statusError{res.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, res.Status, clip(strings.TrimSpace(string(b)), 200))}
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	return nil
}

type heardEvent struct {
	sse.Event
	err error
}

// listen opens an event stream; its head has come when listen returns. The channel gets
// events until ctx ends or the stream breaks, which is its last element.
func (m *remote) listen(ctx context.Context, path string) (<-chan heardEvent, error) {
	req, err := m.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := m.client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", path, res.Status)
	}
	c := make(chan heardEvent, 1)
	go func() {
		defer close(c)
		defer res.Body.Close()
		r := sse.NewReader(bufio.NewReader(res.Body))
		for {
			e, err := r.Next()
			select {
			case c <- heardEvent{e, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return c, nil
}

// await reads events until one is wanted.
func await(ctx context.Context, c <-chan heardEvent, wanted func(sse.Event) bool) (sse.Event, error) {
	for {
		select {
		case e, ok := <-c:
			switch {
			case !ok:
				return sse.Event{}, errors.New("the stream ended")
			case e.err != nil:
				return sse.Event{}, fmt.Errorf("read events: %w", e.err)
			case wanted(e.Event):
				return e.Event, nil
			}
		case <-ctx.Done():
			return sse.Event{}, fmt.Errorf("wait for an event: %w", ctx.Err())
		}
	}
}
