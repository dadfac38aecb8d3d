// Package fleet simulates many devices in one process: each has its own key and ID and
// its own tether by the project's own code, and answers requests from memory. What a
// device does when its tether breaks follows the rules for real ones (SPEC.md, reconnect);
// discovery, journal and proxy are left out.
package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/session"
)

const (
	// MaxDevices is the largest fleet: one address has no more ports toward one relay.
	MaxDevices = 60_000

	defaultRate   = 200
	defaultAnswer = 256
	// maxAnswer bounds ?size=, in bytes.
	maxAnswer = 1 << 30

	// How long to wait after a failed attempt: random(0, min(maxDelay, baseDelay·2^n)).
	baseDelay, maxDelay = time.Second, 120 * time.Second
	// closeGone is the WebSocket close code of an end that goes away (RFC 6455 §7.4.1).
	closeGone = 1001
	// defaultSpread is the spread when ACCEPT gave none.
	defaultSpread = 10 * time.Second
)

// Config describes a fleet.
type Config struct {
	Devices int         // how many, 1 to MaxDevices
	Relay   *url.URL    // wss, or ws without TLS
	TLS     *tls.Config // nil: the system's roots
	// Seed decides all keys and IDs: the same seed gives the same devices.
	Seed string
	// Rate is how many connections are begun per second, over the whole fleet; default
	// 200, negative: no limit.
	Rate float64
	// Answer is the size of an answer in bytes; default 256.
	Answer int
	// Handler answers for device i, instead of the built-in origin; nil: built-in.
	Handler func(i int) http.Handler
	Logger  *slog.Logger // nil: silent
}

// Stats counts what happened so far; Connected is the present number.
type Stats struct {
	Devices    int   `json:"devices"`
	Connected  int64 `json:"connected"`
	Connects   int64 `json:"connects"`   // tethers that opened
	Reconnects int64 `json:"reconnects"` // those that were not a device's first
	Failures   int64 `json:"failures"`   // attempts without a tether
	Lost       int64 `json:"lost"`       // tethers that ended, not by us
	Requests   int64 `json:"requests"`   // that were answered
	Bytes      int64 `json:"bytes"`      // of bodies sent by the built-in origin
}

// Fleet is a set of simulated devices.
type Fleet struct {
	cfg  Config
	log  *slog.Logger
	body []byte

	connected, connects, reconnects, failures, lost, requests, bytes atomic.Int64

	mu   sync.Mutex // guards next
	next time.Time  // when the next connection may begin
}

// New checks cfg and returns a fleet that Run starts.
func New(cfg Config) (*Fleet, error) {
	switch {
	case cfg.Devices < 1 || cfg.Devices > MaxDevices:
		return nil, fmt.Errorf("fleet: %d devices: want 1 to %d", cfg.Devices, MaxDevices)
	case cfg.Relay == nil || cfg.Relay.Scheme != "wss" && cfg.Relay.Scheme != "ws":
		return nil, errors.New("fleet: the relay must be a wss or ws URL")
	}
	if cfg.Rate == 0 {
		cfg.Rate = defaultRate
	}
	if cfg.Answer == 0 {
		cfg.Answer = defaultAnswer
	}
	f := &Fleet{cfg: cfg, log: cfg.Logger}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.body = make([]byte, max(cfg.Answer, 0))
	for i := range f.body {
		f.body[i] = byte('a' + i%26)
	}
	return f, nil
}

// ID is the ID of device i of a seed.
func ID(seed string, i int) tether.DeviceID {
	return tether.NewDeviceID([]byte("cloudrest fleet " + seed + " " + strconv.Itoa(i)))
}

// Key is the key of device i of a seed. It is no secret to whoever knows the seed.
func Key(seed string, i int) ed25519.PrivateKey {
	sum := sha256.Sum256([]byte("cloudrest fleet key " + seed + " " + strconv.Itoa(i)))
	return ed25519.NewKeyFromSeed(sum[:])
}

// Stats may be called at any time.
func (f *Fleet) Stats() Stats {
	return Stats{
		f.cfg.Devices, f.connected.Load(), f.connects.Load(), f.reconnects.Load(), f.failures.Load(), f.lost.Load(), f.requests.Load(), f.bytes.Load(),
	}
}

// Run keeps all devices connected until ctx is done; it returns nil then, after all
// tethers have ended.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i := range f.cfg.Devices {
		wg.Go(func() { f.device(ctx, i) })
	}
	wg.Wait()
	return nil
}

// turn waits for this device's turn to connect, and reports whether it came.
func (f *Fleet) turn(ctx context.Context) bool {
	if f.cfg.Rate < 0 {
		return ctx.Err() == nil
	}
	f.mu.Lock()
	now := time.Now()
	at := f.next
	if at.Before(now) {
		at = now
	}
	f.next = at.Add(time.Duration(float64(time.Second) / f.cfg.Rate))
	f.mu.Unlock()
	return sleep(ctx, at.Sub(now))
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// upTo is a random wait below d: full jitter.
func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

func ms(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }

func (f *Fleet) device(ctx context.Context, i int) {
	info, _ := json.Marshal(map[string]any{"name": "Simulated " + strconv.Itoa(i), "manufacturer": "CloudREST fleet", "version": "1", "api": "v1"})
	goAway := make(chan frame.GoAway, 1)
	d := &session.Device{
		ID: ID(f.cfg.Seed, i), Key: Key(f.cfg.Seed, i), TLS: f.cfg.TLS, Info: func() []byte { return info },
		Epoch: rand.Uint64() | 1, Handler: f.handler(i, info), Logger: f.log,
		OnGoAway: func(g frame.GoAway) {
			select {
			case goAway <- g:
			default: // one is enough to make us move
			}
		},
	}
	var old sync.WaitGroup // tethers that a new one replaces
	defer old.Wait()
	first, failed := true, 0
	for f.turn(ctx) {
		s, accept, err := d.Connect(ctx, f.cfg.Relay, "")
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			f.failures.Add(1)
			f.log.Info("tether failed", "device", d.ID, "err", err)
			wait := upTo(min(maxDelay, baseDelay<<min(failed, 10)))
			failed++
			if r, ok := errors.AsType[*session.Refused](err); ok {
				wait = ms(r.RetryAfter) + upTo(ms(r.Spread))
			} else if h, ok := errors.AsType[*session.HTTPError](err); ok && h.RetryAfter > 0 {
				wait = h.RetryAfter + upTo(defaultSpread)
			}
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		f.connects.Add(1)
		f.connected.Add(1)
		if !first {
			f.reconnects.Add(1)
		}
		first, failed = false, 0
		spread := time.Duration(accept.Spread) * time.Second
		if spread == 0 {
			spread = defaultSpread
		}
		select {
		case <-ctx.Done():
			s.Close(closeGone, "bye")
			<-s.Done()
			f.connected.Add(-1)
			return
		case <-s.Done():
			f.connected.Add(-1)
			f.lost.Add(1)
			f.log.Info("tether lost", "device", d.ID, "err", s.Err())
			if !sleep(ctx, upTo(spread)) {
				return
			}
		case g := <-goAway:
			// Requests in flight go on; the old tether ends when the relay closes it, or
			// with us, while the new one is made.
			old.Go(func() {
				select {
				case <-s.Done():
				case <-ctx.Done():
					s.Close(closeGone, "bye")
					<-s.Done()
				}
				f.connected.Add(-1)
			})
			f.log.Info("relay says go away", "device", d.ID, "code", g.Code, "text", g.Text)
			if !sleep(ctx, ms(g.RetryAfter)+upTo(ms(g.Spread))) {
				return
			}
		}
		select { // one that came with the end of the old tether is not the new one's
		case <-goAway:
		default:
		}
	}
}

// handler counts and answers the requests of device i.
func (f *Fleet) handler(i int, info []byte) http.Handler {
	h := http.Handler(&origin{f, info})
	if f.cfg.Handler != nil {
		h = f.cfg.Handler(i)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.requests.Add(1)
		h.ServeHTTP(w, r)
	})
}

// origin answers from memory: GET /device, anything else with Config.Answer bytes, or
// with ?size= bytes; a request body is read and counted.
type origin struct {
	f    *Fleet
	info []byte
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, kind, size := o.f.body, "text/plain", int64(len(o.f.body))
	if r.URL.Path == "/device" {
		body, kind, size = o.info, "application/json", int64(len(o.info))
	} else if s := r.URL.Query().Get("size"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 || n > maxAnswer {
			http.Error(w, fmt.Sprintf("size: want 0 to %d", maxAnswer), http.StatusBadRequest)
			return
		}
		size = n
	}
	if r.Body != nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	for size > 0 {
		n := min(size, int64(len(body)))
		if n == 0 {
			body = pattern[:]
			continue
		}
		if _, err := w.Write(body[:n]); err != nil {
			return
		}
		size -= n
		o.f.bytes.Add(n)
		body = pattern[:] // larger pieces for the rest
	}
}

// pattern fills answers that are larger than Config.Answer.
var pattern = func() (p [16 << 10]byte) {
	for i := range p {
		p[i] = byte('a' + i%26)
	}
	return p
}()
