package main

import (
	"bufio"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
	"github.com/cloudrest/cloudrest/tools/cmd/piimage/onboard/device"
	"github.com/gokrazy/updater"
)

// client talks to a device that an image of ours runs on.
type client struct {
	address     string // host or host:port
	secretsFile string
	noSecrets   bool   // of an image without; then nobody knows its certificate
	image       string // of gokrazy, unsigned
	bundle      string // signed
	kernel      bool

	http *http.Client
	base string // https://host:port/
}

func (c *client) declare(f *flag.FlagSet) {
	f.StringVar(&c.secretsFile, "secrets", secretsBeside(boards[0].out), "the `file` that was made with the image")
	f.BoolVar(&c.noSecrets, "no-secrets", false, "the image was made with --no-secrets")
}

// errOther means that somebody else answers, or that the secrets are of another image.
var errOther = errors.New("the device's certificate is not the one of the secrets")

// open prepares the connection: TLS to exactly the certificate of the image.
func (c *client) open() error {
	var want []byte
	password := ""
	if !c.noSecrets {
		s, err := readSecrets(c.secretsFile)
		if err != nil {
			return err
		}
		if want, err = s.certificate(); err != nil {
			return err
		}
		password = s.Password
	}
	host, port := c.address, updatePort
	if h, p, err := net.SplitHostPort(c.address); err == nil {
		host, port = h, p
	}
	c.base = "https://" + net.JoinHostPort(strings.Trim(host, "[]"), port) + "/"
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	c.http = &http.Client{Jar: jar, Transport: &authorized{password, &http.Transport{
		TLSHandshakeTimeout: 30 * time.Second, IdleConnTimeout: 10 * time.Second,
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, // the certificate is compared as a whole below
			VerifyConnection: func(cs tls.ConnectionState) error {
				if c.noSecrets { // what is sent is public and signed, what is read is not believed
					return nil
				}
				if len(cs.PeerCertificates) == 0 || subtle.ConstantTimeCompare(cs.PeerCertificates[0].Raw, want) != 1 {
					return errOther
				}
				return nil
			},
		},
	}}}
	return nil
}

// authorized adds the password, which so is in no URL and in no error.
type authorized struct {
	password string
	next     http.RoundTripper
}

func (a *authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.password != "" {
		r = r.Clone(r.Context())
		r.SetBasicAuth(device.User, a.password)
	}
	return a.next.RoundTrip(r)
}

const (
	askTimeout = 30 * time.Second
	maxAnswer  = 4 << 20 // bytes
)

// call makes one request and returns the body.
func (c *client) call(ctx context.Context, method, path string, form url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err == nil && res.StatusCode != http.StatusOK {
		err = &statusError{method, path, res.Status, string(text)}
	}
	return text, err
}

// overview is what init tells about the device.
type overview struct {
	BuildTimestamp string // names the version of the image
	Hostname       string
	Model          string
	Services       []struct{ Path, StartTime string }

	slot string // which root runs: A or B; empty: an older image does not say
}

// same reports whether the version that ran before runs. Two builds of one commit have the
// same time stamp, so the slot counts where it is known.
func (o overview) same(before overview) bool {
	if o.slot != "" && before.slot != "" {
		return o.slot == before.slot
	}
	return o.BuildTimestamp == before.BuildTimestamp
}

func (c *client) overview(ctx context.Context) (o overview, err error) {
	text, err := c.call(ctx, http.MethodGet, "", nil)
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(text, &o)
}

// boot names one start of the device: when it started the guard, to the nanosecond. Empty
// if it has not yet.
func (o overview) boot() string {
	for _, s := range o.Services {
		if s.Path == guardProgram && !strings.HasPrefix(s.StartTime, "0001-") {
			return s.StartTime
		}
	}
	return ""
}

// idle is how long the log of a program must be silent to be taken as read.
const idle = time.Second

// lines reads the log of a program up to a line for which last is true, or to where it is
// silent.
func (c *client) lines(ctx context.Context, path string, last func(string) bool) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"log?stream=stdout&path="+url.QueryEscape(path), nil)
	if err != nil {
		return nil, err
	}
	// Headers come with the first line only, so silence may already be here.
	silence := time.AfterFunc(idle, cancel)
	defer silence.Stop()
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the log of %s: %s", path, res.Status)
	}
	var all []string
	in := bufio.NewScanner(io.LimitReader(res.Body, maxAnswer))
	for in.Scan() {
		silence.Reset(idle)
		all = append(all, in.Text())
		if last(in.Text()) {
			break
		}
	}
	return all, nil
}

func never(string) bool { return false }

const pairProgram = "/user/pair"

// pairWait is how long the device may take to make an invitation.
const pairWait = time.Minute

// pair has the device print an invitation.
func (c *client) pair(ctx context.Context, out io.Writer) error {
	if err := c.open(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pairWait)
	defer cancel()
	switch s, err := c.ours(ctx); {
	case err != nil:
		return err
	case s != nil:
		text, err := c.call(ctx, http.MethodPost, "v1/pair", nil)
		if err == nil {
			_, err = out.Write(text)
		}
		return err
	}
	// First, so that the log comes over a connection that is there: what it has must be seen
	// before it counts as silent.
	if _, err := c.overview(ctx); err != nil {
		return err
	}
	const begin, end = "-- begin ", "-- end "
	old, err := c.lines(ctx, pairProgram, never)
	if err != nil {
		return err
	}
	if err := c.start(ctx, pairProgram); err != nil {
		return err
	}
	for {
		all, err := c.lines(ctx, pairProgram, never)
		if err != nil {
			return err
		}
		for i := len(all) - 1; i >= 0; i-- {
			mark, ok := strings.CutPrefix(all[i], begin)
			if !ok {
				continue
			}
			new := all[i+1:]
			if contains(old, begin+mark) || !contains(new, end+mark) {
				break
			}
			_, err := fmt.Fprintln(out, strings.Join(new[:len(new)-1], "\n"))
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for an invitation: %w", ctx.Err())
		case <-time.After(idle):
		}
	}
}

func contains(lines []string, line string) bool {
	for _, l := range lines {
		if l == line {
			return true
		}
	}
	return false
}

// start starts a program that does not run by itself.
func (c *client) start(ctx context.Context, path string) error {
	query := "status?path=" + url.QueryEscape(path)
	if _, err := c.call(ctx, http.MethodGet, query, nil); err != nil {
		return err
	}
	u, err := url.Parse(c.base)
	if err != nil {
		return err
	}
	// init compares a cookie with a field of the form.
	token := ""
	for _, k := range c.http.Jar.Cookies(u) {
		if k.Name == "gokrazy_xsrf" {
			token = k.Value
		}
	}
	_, err = c.call(ctx, http.MethodPost, "restart", url.Values{"path": {path}, "supervise": {"once"}, "xsrftoken": {token}})
	return err
}

// progress tells how far a transfer is, at every tenth.
type progress struct {
	out         io.Writer
	what        string
	total, done int64
}

func (p *progress) Write(b []byte) (int, error) {
	before := p.done * 10 / p.total
	p.done += int64(len(b))
	if now := p.done * 10 / p.total; now != before {
		fmt.Fprintf(p.out, "piimage: %s %3d %%\n", p.what, now*10)
	}
	return len(b), nil
}

func (c *client) send(ctx context.Context, t *updater.Target, out io.Writer, what, dest string, r io.Reader, n int64) error {
	body := io.TeeReader(io.LimitReader(r, n), &progress{out: out, what: what, total: n})
	if err := t.StreamTo(ctx, dest, body); err != nil {
		return fmt.Errorf("send %s: %w", what, err)
	}
	return nil
}

// errBack means that the new version did not prove good and the one before is back.
var errBack = errors.New("the new version did not prove good: the version before is back")

// update puts the first slot of an image into the slot of the device that does not run,
// starts it on trial and waits for the verdict of the guard on the device.
func (c *client) update(ctx context.Context, out io.Writer) error {
	f, err := os.Open(c.image)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := rootSize(f)
	if err != nil {
		return fmt.Errorf("%s: %w", c.image, err)
	}
	if err := c.open(); err != nil {
		return err
	}
	switch s, err := c.ours(ctx); {
	case err != nil:
		return err
	case s != nil:
		return errors.New("this device takes signed updates only: piimage sign, then piimage update --bundle FILE")
	}
	before, t, err := c.target(ctx, out)
	if err != nil {
		return err
	}
	if c.kernel {
		boot := io.NewSectionReader(f, bootpart.BootStart, bootpart.BootSize)
		// bootonly: the root that runs stays the one that the next boot takes.
		if err := c.send(ctx, t, out, "kernel", "bootonly", boot, bootpart.BootSize); err != nil {
			return err
		}
	}
	if err := c.send(ctx, t, out, "root", "root", io.NewSectionReader(f, bootpart.RootStart, root), root); err != nil {
		return err
	}
	if err := t.Testboot(ctx); err != nil {
		return fmt.Errorf("ask for a trial: %w", err)
	}
	fmt.Fprintln(out, "piimage: the device restarts into the new version, on trial")
	if err := c.restart(ctx, t); err != nil {
		return err
	}
	last := ""
	return c.poll(ctx, before, func(now overview, state string) (bool, error) {
		if say := now.BuildTimestamp + " " + state; say != last {
			last = say
			fmt.Fprintf(out, "piimage: the device runs the version of %s, state: %s\n", now.BuildTimestamp, state)
		}
		switch {
		case state != guardNormal: // on trial, or about to restart
			return false, nil
		case now.same(before):
			return true, errBack
		}
		fmt.Fprintln(out, "piimage: the new version stays")
		return true, nil
	})
}

// switchBack takes the slot that does not run: the version before the last update.
func (c *client) switchBack(ctx context.Context, out io.Writer) error {
	if err := c.open(); err != nil {
		return err
	}
	switch s, err := c.ours(ctx); {
	case err != nil:
		return err
	case s != nil:
		return c.backSigned(ctx, out, s)
	}
	before, t, err := c.target(ctx, out)
	if err != nil {
		return err
	}
	if err := t.Switch(ctx); err != nil {
		return fmt.Errorf("switch to the other slot: %w", err)
	}
	fmt.Fprintln(out, "piimage: the device restarts into the version before")
	if err := c.restart(ctx, t); err != nil {
		return err
	}
	return c.poll(ctx, before, func(now overview, state string) (bool, error) {
		if state != guardNormal || now.same(before) {
			return false, nil
		}
		fmt.Fprintf(out, "piimage: the device runs the version of %s\n", now.BuildTimestamp)
		return true, nil
	})
}

// target connects, tells what is there, and refuses a device that is on trial: for init
// the slot that runs is then the free one.
func (c *client) target(ctx context.Context, out io.Writer) (overview, *updater.Target, error) {
	var none overview
	if err := c.open(); err != nil {
		return none, nil, err
	}
	now, state, err := c.both(ctx)
	for try := 1; try < stateTries && (err == nil && state == "" || errors.Is(err, errRestarted)); try++ {
		time.Sleep(pollEvery) // it has only just started
		now, state, err = c.both(ctx)
	}
	if err != nil {
		return none, nil, err
	}
	fmt.Fprintf(out, "piimage: %s is a %s and runs the version of %s\n", now.Hostname, now.Model, now.BuildTimestamp)
	if state != guardNormal {
		return none, nil, fmt.Errorf("the device is on trial after an update (state: %s): wait until that is decided", cmpOr(state, "unknown"))
	}
	t, err := updater.NewTarget(ctx, c.base, c.http)
	return now, t, err
}

const guardProgram = "/user/guard"

// What the guard says; see onboard/guard.
const (
	guardSays   = "state "
	guardSlot   = "slot "
	guardNormal = "normal"
)

// state is what the guard said last, and the slot that runs; empty before it has said anything.
func (c *client) state(ctx context.Context) (state, slot string, err error) {
	all, err := c.lines(ctx, guardProgram, never)
	for _, l := range all {
		if s, ok := strings.CutPrefix(l, guardSays); ok {
			state = s
		} else if s, ok := strings.CutPrefix(l, guardSlot); ok {
			slot = s
		}
	}
	return state, slot, err
}

func (c *client) restart(ctx context.Context, t *updater.Target) error {
	// Asynchronous: with a device that ends its programs slowly, the answer would come late
	// or never.
	if err := t.Reboot(ctx, updater.WithAsync(true)); err != nil {
		return fmt.Errorf("restart the device: %w", err)
	}
	return nil
}

const (
	pollEvery  = 2 * time.Second
	stateTries = 5
	// pollLimit is for two restarts and the patience of the guard.
	pollLimit = 10 * time.Minute
)

// poll asks the device until verdict is reached. Only what it says after a restart counts:
// it may be back before anybody notices that it was away.
func (c *client) poll(ctx context.Context, before overview, verdict func(overview, string) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	for {
		now, state, err := c.both(ctx)
		if err == nil && now.boot() != before.boot() {
			if done, err := verdict(now, state); done || err != nil {
				return err
			}
		}
		if errors.Is(err, errOther) {
			return err
		}
		if err != nil {
			c.http.CloseIdleConnections()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the device to restart (last: %v): %w", err, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// errRestarted means that the device restarted between two questions.
var errRestarted = errors.New("the device restarts")

// both asks for the overview and the state of one and the same start.
func (c *client) both(ctx context.Context) (overview, string, error) {
	first, err := c.overview(ctx)
	if err != nil {
		return first, "", err
	}
	state, slot, err := c.state(ctx)
	if err != nil {
		return first, "", err
	}
	again, err := c.overview(ctx)
	if err == nil && (again.boot() == "" || again.boot() != first.boot()) {
		err = errRestarted
	}
	again.slot = slot
	return again, state, err
}
