// Package provision is the device's part of the factory (paper, "Device Factory
// Provisioning"; D10): it waits for the maker's service, has it join the factory's network,
// claims the device's identity at the station, checks and keeps the certificate, confirms,
// and gives up the right to claim. The words are those of package tether/provisioning.
//
// It may be cut off anywhere, by a power cut too, and run again: what was done is seen and
// not done twice. The order makes that so. The certificate is on the flash before the
// station hears of it, the mark "done" is written after the station has it, and the token
// is removed last.
//
// Package provision also keeps the certificate later on: Open reads it for the tether and
// serves its renewal.
package provision

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/describe"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// Step is how far a run has come, for an LED and for people.
type Step string

// Steps, in their order.
const (
	StepService Step = "service" // waiting for GET /device
	StepNetwork Step = "network" // the service joins the factory's network
	StepStation Step = "station" // waiting for the station
	StepClaim   Step = "claim"
	StepStore   Step = "store"
	StepConfirm Step = "confirm"
	StepDone    Step = "done"
	StepFailed  Step = "failed"
)

// Times and limits.
const (
	firstRetry     = 100 * time.Millisecond // after a failure, doubled up to
	longestRetry   = 5 * time.Second        // and the longest Retry-After that is heeded
	connectTimeout = 15 * time.Second       // with the TLS handshake, which takes a second on a router
	answerTimeout  = 20 * time.Second
	reportTimeout  = 3 * time.Second // to tell the station of a failure
	askNetwork     = 2 * time.Second // to ask the station for its Wi-Fi, which is only there if we need none
	maxMessage     = 300             // bytes of the service's refusal that are shown
)

// Error is why provisioning failed. Reason is for programs, the text for people.
type Error struct {
	Reason provisioning.Reason
	Err    error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func failed(reason provisioning.Reason, format string, args ...any) error {
	return &Error{reason, fmt.Errorf(format, args...)}
}

// Config is one device that is to be provisioned. All but Network, LANPin, LabelSecret,
// UIDSource, Progress and Logger is required.
type Config struct {
	Dir       string // state directory, prepared and locked by the caller
	ID        tether.DeviceID
	UID       []byte
	UIDSource string
	Key       crypto.Signer // of the device

	Origin    describe.Origin // the maker's service
	Station   *url.URL        // https://host[:port]
	Authority []byte          // PEM: the factory's authorities, for the station and for device certificates
	TokenFile string          // holds the batch token; removed at the end
	Network   provisioning.Network

	LANPin      string // of the device's own authority
	LabelSecret string // for the device's label
	Version     string // of the daemon

	Earliest time.Time     // no clock is believed that shows an earlier time
	Wait     time.Duration // for everything together
	Progress func(Step)
	Logger   *slog.Logger
}

// Result is what a device has been given. Its JSON form is printed by cloudrestd.
type Result struct {
	Device  tether.DeviceID `json:"device"`
	Already bool            `json:"already,omitempty"` // it had been provisioned before, nothing was done
	Serial  string          `json:"serial"`            // of the certificate, hex
	Expires time.Time       `json:"expires"`           // of the certificate
	Batch   string          `json:"batch,omitempty"`
	Station string          `json:"station,omitempty"`
}

type run struct {
	Config
	roots   *x509.CertPool
	token   string
	station *station
}

// Run provisions the device, or finds that it has been. Errors are *Error, or the cause of
// ctx when that ended.
func Run(ctx context.Context, c Config) (Result, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(Step) {}
	}
	r := &run{Config: c}
	limited, cancel := context.WithTimeoutCause(ctx, c.Wait, errWait)
	defer cancel()
	result, err := r.run(limited)
	if r.station != nil {
		r.tell(ctx, err)
	}
	switch {
	case err == nil:
		c.Progress(StepDone)
	case ctx.Err() != nil:
		return Result{}, fmt.Errorf("provision: %w", context.Cause(ctx))
	default:
		c.Progress(StepFailed)
	}
	return result, err
}

var errWait = errors.New("the time to wait is over")

func (r *run) run(ctx context.Context) (Result, error) {
	var err error
	if r.roots, err = devcert.ParseRoots(r.Authority); err != nil {
		return Result{}, failed(provisioning.ReasonState, "read the factory's authority: %w", err)
	}
	mark, leaf, err := r.stored()
	if err != nil {
		return Result{}, err
	}
	if leaf != nil && mark.Done {
		r.Logger.Info("this device has been provisioned", "device", r.ID, "batch", mark.Batch)
		res := r.result(leaf, mark)
		res.Already = true
		return res, r.giveUpToken()
	}
	if err := r.readToken(); err != nil && leaf == nil {
		return Result{}, err // with a certificate only the confirmation is missing, which needs no token
	}
	if r.station, err = newStation(r.Station, r.roots, r.Earliest, r.token); err != nil {
		return Result{}, failed(provisioning.ReasonStation, "%w", err)
	}
	descriptor, err := r.service(ctx)
	if err != nil {
		return Result{}, err
	}
	if err := r.join(ctx, descriptor); err != nil {
		return Result{}, err
	}
	r.step(StepStation)
	if _, err := r.ask(ctx, "GET", provisioning.InfoPath, nil); err != nil {
		return Result{}, err
	}
	for again := false; ; again = true {
		if leaf == nil {
			if leaf, mark, err = r.claim(ctx, descriptor); err != nil {
				return Result{}, err
			}
		}
		err := r.confirm(ctx, leaf)
		if e, ok := errors.AsType[*Error](err); ok && e.Reason == provisioning.ReasonUnknown && !again && r.token != "" {
			// Another station granted it and this one has not heard of it, or it was released
			// for a new claim.
			r.Logger.Warn("the station does not know what this device was granted, it claims anew", "device", r.ID, "err", err)
			leaf = nil
			continue
		}
		if err != nil {
			return Result{}, err
		}
		break
	}
	mark.Done, mark.Station = true, r.Station.String()
	if err := mark.write(r.Dir); err != nil {
		return Result{}, failed(provisioning.ReasonState, "note that the device is provisioned: %w", err)
	}
	r.Logger.Info("the device is provisioned", "device", r.ID, "batch", mark.Batch, "certificate_until", leaf.NotAfter)
	return r.result(leaf, mark), r.giveUpToken()
}

func (r *run) step(s Step) {
	r.Logger.Debug("provisioning goes on", "step", s)
	r.Progress(s)
}

func (r *run) result(leaf *x509.Certificate, m mark) Result {
	return Result{Device: r.ID, Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()), Expires: leaf.NotAfter.UTC(), Batch: m.Batch, Station: m.Station}
}

// stored is what an earlier run has left: leaf is nil unless there is a certificate that
// is good for this device and this factory.
func (r *run) stored() (mark, *x509.Certificate, error) {
	m, err := readMark(r.Dir)
	if err != nil {
		return mark{}, nil, failed(provisioning.ReasonState, "%w", err)
	}
	chain, _, err := Load(r.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, nil, nil
	}
	var leaf *x509.Certificate
	if err == nil {
		leaf, err = r.check(chain)
	}
	if errors.Is(err, devcert.ErrExpired) && m.Done {
		return mark{}, nil, failed(provisioning.ReasonState, "this device has been provisioned, but %w: its relay renews it, or a factory does once %s is removed", err, MarkFile)
	}
	if err != nil {
		r.Logger.Warn("what this device had from a factory is of no use here, it claims anew", "err", err)
		return mark{}, nil, nil
	}
	return m, leaf, nil
}

// check finds out whether chain is this device's, from this factory.
func (r *run) check(chain [][]byte) (*x509.Certificate, error) {
	return checkChain(chain, r.roots, r.ID, r.Key.Public(), r.Earliest)
}

func (r *run) readToken() error {
	f, err := os.Open(r.TokenFile)
	if err != nil {
		return failed(provisioning.ReasonToken, "read the batch token: %w", err)
	}
	defer f.Close()
	b := make([]byte, 256)
	n, _ := f.Read(b)
	token := strings.TrimSpace(string(b[:n]))
	if !provisioning.ValidToken(token) {
		return failed(provisioning.ReasonToken, "%s does not hold a batch token: want %s and 43 more characters", r.TokenFile, provisioning.TokenPrefix)
	}
	r.token = token
	return nil
}

// giveUpToken removes the right to claim.
func (r *run) giveUpToken() error {
	if err := os.Remove(r.TokenFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed(provisioning.ReasonState, "the device is provisioned, but its batch token must be removed: %w", err)
	}
	return nil
}

// service waits until the maker's service has said who it is. A service that answers but
// has no descriptor will do; it cannot be asked to join a network.
func (r *run) service(ctx context.Context) (tether.Descriptor, error) {
	r.step(StepService)
	w, err := describe.New(describe.Config{Origin: r.Origin, Logger: r.Logger})
	if err != nil {
		return tether.Descriptor{}, err
	}
	b := backoff{}
	for {
		err := w.Read(ctx)
		if d, ok := w.Current(); err == nil && ok {
			return d, nil
		}
		if errors.Is(err, describe.ErrNone) {
			r.Logger.Warn("the REST service has no GET /device: nothing is known about this device but its ID")
			return tether.Descriptor{}, nil
		}
		if !b.wait(ctx, 0) {
			return tether.Descriptor{}, failed(provisioning.ReasonService, "wait for the REST service: %w", err)
		}
	}
}

// join has the service join the factory's network, if it can.
func (r *run) join(ctx context.Context, d tether.Descriptor) error {
	if d.APIFactoryConnect == "" {
		return nil
	}
	r.step(StepNetwork)
	target, err := joinTarget(d.APIFactoryConnect)
	if err != nil {
		return failed(provisioning.ReasonNetwork, "%w", err)
	}
	network := r.Network
	if network == (provisioning.Network{}) {
		network = r.askNetwork(ctx)
	}
	body, err := json.Marshal(provisioning.Join{Network: network, Station: r.Station.String()})
	if err != nil {
		return err
	}
	b := backoff{}
	for {
		status, text, err := post(ctx, r.Origin, target, body)
		switch {
		case err != nil:
		case status == 200 || status == 202 || status == 204:
			return nil // whether it worked shows when the station is asked
		default:
			err = fmt.Errorf("POST %s answers %d: %s", target, status, provisioning.Clean(text, maxMessage))
			if status != 409 && status != 425 && status != 429 && status < 500 || status == 501 {
				return failed(provisioning.ReasonNetwork, "join the factory's network: %w", err)
			}
		}
		if !b.wait(ctx, 0) {
			return failed(provisioning.ReasonNetwork, "join the factory's network: %w", err)
		}
	}
}

// joinTarget makes a request target of the descriptor's field: a path of the service
// itself, with or without a slash at its start.
func joinTarget(path string) (string, error) {
	u, err := url.Parse(path)
	odd := strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' })
	if err != nil || odd || u.IsAbs() || u.Host != "" || u.Fragment != "" {
		return "", fmt.Errorf("the service's apiFactoryConnect %.60q is not a path", path)
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path, u.RawPath = "/"+u.Path, ""
	}
	return u.RequestURI(), nil
}

// askNetwork asks the station for its Wi-Fi. That works where the device has a cable or is
// in the Wi-Fi already; anywhere else the service must know the network by itself.
func (r *run) askNetwork(ctx context.Context) provisioning.Network {
	ctx, cancel := context.WithTimeout(ctx, askNetwork)
	defer cancel()
	status, body, err := r.station.ask(ctx, "GET", provisioning.NetworkPath, nil)
	if err == nil && status == 200 {
		if n, err := provisioning.ParseNetwork(body); err == nil {
			return n
		}
	}
	return provisioning.Network{}
}

// claim asks for the certificate and stores it.
func (r *run) claim(ctx context.Context, d tether.Descriptor) (*x509.Certificate, mark, error) {
	r.step(StepClaim)
	csr, err := devcert.Request(r.ID, r.Key)
	if err != nil {
		return nil, mark{}, failed(provisioning.ReasonState, "%w", err)
	}
	body, err := json.Marshal(provisioning.Claim{
		UID: hex.EncodeToString(r.UID), UIDSource: r.UIDSource, CSR: csr, Descriptor: d.Raw,
		Daemon: r.Version, LANPin: r.LANPin, LabelSecret: r.LabelSecret,
	})
	if err != nil {
		return nil, mark{}, failed(provisioning.ReasonState, "write the claim: %w", err)
	}
	answer, err := r.ask(ctx, "POST", provisioning.ClaimPath, body)
	if err != nil {
		return nil, mark{}, err
	}
	grant, err := provisioning.ParseGrant(answer)
	if err != nil {
		return nil, mark{}, failed(provisioning.ReasonStation, "read the station's answer: %w", err)
	}
	if grant.ID != r.ID {
		return nil, mark{}, failed(provisioning.ReasonStation, "the station answers for device %s, this one is %s", grant.ID.Short(), r.ID.Short())
	}
	leaf, err := r.check(grant.Chain)
	if err != nil {
		return nil, mark{}, failed(provisioning.ReasonStation, "the station's certificate is of no use: %w", err)
	}
	r.step(StepStore)
	m := mark{Batch: grant.Batch}
	if err := store(r.Dir, grant.Chain, r.Authority, m); err != nil {
		return nil, mark{}, failed(provisioning.ReasonState, "keep the certificate: %w", err)
	}
	return leaf, m, nil
}

func (r *run) confirm(ctx context.Context, leaf *x509.Certificate) error {
	r.step(StepConfirm)
	c, err := provisioning.Sign(r.ID, leaf.Raw, r.Key)
	if err != nil {
		return failed(provisioning.ReasonState, "%w", err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = r.ask(ctx, "POST", provisioning.ConfirmPath, body)
	return err
}

// ask asks the station until it answers for good. Every request of this package may be
// repeated. The body is returned with 2xx; anything else is an *Error.
func (r *run) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	b := backoff{}
	for {
		status, answer, err := r.station.ask(ctx, method, path, body)
		var pause time.Duration
		reason := provisioning.ReasonUnreachable
		switch {
		case errors.Is(err, errStranger):
			return nil, failed(provisioning.ReasonStation, "ask %s: %w", r.Station.Host, err)
		case err != nil:
			err = fmt.Errorf("ask %s: %w", r.Station.Host, err)
		case status >= 200 && status < 300:
			return answer, nil
		default:
			e := provisioning.ParseError(status, answer)
			err = fmt.Errorf("%s refuses: %s (%d)", r.Station.Host, e.Message, status)
			if status != 429 && status < 500 {
				if e.Reason == "" {
					return nil, failed(provisioning.ReasonStation, "%s %s at %s answers %d: is this a station?", method, path, r.Station.Host, status)
				}
				return nil, failed(e.Reason, "%w", err)
			}
			reason, pause = provisioning.ReasonBusy, r.station.retryAfter
		}
		r.Logger.Debug("the station is asked again", "err", err)
		if !b.wait(ctx, pause) {
			return nil, failed(reason, "%w", err)
		}
	}
}

// tell reports a failure to the station, for the operator's page, as well as it can.
func (r *run) tell(ctx context.Context, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok || r.token == "" || e.Reason == provisioning.ReasonUnreachable || e.Reason == provisioning.ReasonBusy {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	body, err := json.Marshal(provisioning.Failure{UID: hex.EncodeToString(r.UID), Reason: e.Reason, Message: provisioning.Clean(e.Error(), provisioning.MaxMessage)})
	if err == nil {
		_, _, _ = r.station.ask(ctx, "POST", provisioning.FailurePath, body)
	}
}

// backoff spaces attempts, spread so that a line whose station comes back does not ask as one.
type backoff struct{ last time.Duration }

// wait returns false when ctx ends first.
func (b *backoff) wait(ctx context.Context, atLeast time.Duration) bool {
	b.last = min(max(2*b.last, firstRetry), longestRetry)
	pause := max(b.last/2+rand.N(b.last), atLeast)
	if end, ok := ctx.Deadline(); ok && time.Until(end) < pause {
		return false // the end would come first anyway: say now what is wrong
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// newSecret is what goes on a label: 120 bits, 20 characters of base64url.
func newSecret() string {
	b := make([]byte, 15)
	readRandom(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func post(ctx context.Context, o describe.Origin, target string, body []byte) (status int, text string, err error) {
	resp, err := o.Do(ctx, &origin.Request{Method: "POST", Target: target, Payload: body,
		Fields: []origin.Field{{Name: "Content-Type", Value: "application/json"}, {Name: "Accept", Value: "application/json"}}})
	if err != nil {
		return 0, "", err
	}
	defer resp.Close()
	b, err := readAll(resp, provisioning.MaxBody)
	return resp.Status, string(b), err
}
