// Package describe keeps what the maker's REST service says of itself at GET /device
// (D1): it waits patiently while the service is not up yet, notices changes, and says
// in the log what is wrong with it, once. What to do with the descriptor is for others.
package describe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

// Path is where the service describes itself (paper, "Device Descriptor").
const Path = "/device"

// Times between two readings.
const (
	FirstRetry   = 250 * time.Millisecond // after a failure, doubled up to
	LongestRetry = 5 * time.Second
	Refresh      = 15 * time.Second // after a success
	RetryNone    = 30 * time.Second // after 404: a service without a descriptor

	askTimeout = 10 * time.Second // for one reading, answer included
)

// Origin is the client of the maker's service. The watcher asks one thing at a time and
// does not go through admission: a full queue must not make the device look absent.
type Origin interface {
	Do(ctx context.Context, q *origin.Request) (*origin.Response, error)
}

// Config describes a Watcher.
type Config struct {
	Origin Origin // required
	Logger *slog.Logger
}

// Watcher reads the descriptor again and again. Its methods may be called from any
// goroutine.
type Watcher struct {
	origin Origin
	log    *slog.Logger

	mu      sync.Mutex // guards the fields below
	current tether.Descriptor
	known   bool
	changed chan struct{}
	asked   bool  // once at least
	last    error // of the last reading

	// Of Run alone.
	etag, modified string
	trouble        string
}

// New makes a watcher. It starts nothing.
func New(c Config) (*Watcher, error) {
	if c.Origin == nil {
		return nil, errors.New("describe: no origin")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Watcher{origin: c.Origin, log: c.Logger, changed: make(chan struct{})}, nil
}

// Current returns the descriptor read last, and false before the first one. It stays
// when the service goes away: the device has not become another one.
func (w *Watcher) Current() (tether.Descriptor, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current, w.known
}

// Changed returns a channel that is closed when the descriptor next changes. Take it
// before Current, so as not to miss a change in between.
func (w *Watcher) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Last tells how the last reading went: up is whether the service answered at all, err
// what was wrong. asked is false before the first one.
func (w *Watcher) Last() (asked, up bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	down := errors.Is(w.last, origin.ErrUnreachable) || errors.Is(w.last, origin.ErrTimeout)
	return w.asked, w.asked && !down, w.last
}

// Run reads the descriptor until ctx is done, then returns nil. One Run at a time.
func (w *Watcher) Run(ctx context.Context) error {
	retry := FirstRetry
	for {
		pause := Refresh
		err := w.Read(ctx)
		if ctx.Err() == nil {
			w.mu.Lock()
			w.asked, w.last = true, err
			w.mu.Unlock()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			retry = FirstRetry
			if w.trouble != "" {
				w.trouble = ""
				w.log.Info("device descriptor can be read again")
			}
		case errors.Is(err, ErrNone):
			pause, retry = RetryNone, FirstRetry
			w.report(slog.LevelWarn, "the service has no GET /device, phones will see only the device ID: see the paper's device descriptor", err)
		default:
			pause, retry = retry, min(2*retry, LongestRetry)
			if errors.Is(err, origin.ErrUnreachable) {
				w.report(slog.LevelInfo, "waiting for the service", err)
			} else {
				w.report(slog.LevelWarn, "device descriptor cannot be read", err)
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// report logs a failure when it begins and when it becomes another one.
func (w *Watcher) report(level slog.Level, message string, err error) {
	kind := message
	if !errors.Is(err, origin.ErrUnreachable) && !errors.Is(err, origin.ErrTimeout) {
		kind += err.Error()
	}
	if kind == w.trouble {
		return
	}
	w.trouble = kind
	w.log.Log(context.Background(), level, message, "err", err)
}

// ErrNone means that the service answers, but has no descriptor.
var ErrNone = errors.New("GET /device answers 404")

// Read asks once, for who does not Run: provisioning. The two are not for use at one time.
func (w *Watcher) Read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	q := &origin.Request{Method: "GET", Target: Path, Fields: []origin.Field{{Name: "Accept", Value: "application/json"}}}
	if w.etag != "" {
		q.Fields = append(q.Fields, origin.Field{Name: "If-None-Match", Value: w.etag})
	}
	if w.modified != "" {
		q.Fields = append(q.Fields, origin.Field{Name: "If-Modified-Since", Value: w.modified})
	}
	r, err := w.origin.Do(ctx, q)
	if err != nil {
		return fmt.Errorf("read the device descriptor: %w", err)
	}
	defer r.Close()
	switch {
	case r.Status == 304 && (w.etag != "" || w.modified != ""):
		return nil // RFC 9110 §15.4.5
	case r.Status == 404 || r.Status == 410:
		return ErrNone
	case r.Status != 200:
		return fmt.Errorf("GET %s answers %d, want 200", Path, r.Status)
	}
	var body []byte
	for {
		b, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the device descriptor: %w", err)
		}
		if body = append(body, b...); len(body) > tether.MaxDescriptor {
			return fmt.Errorf("%w: over %d bytes", tether.ErrDescriptor, tether.MaxDescriptor)
		}
	}
	var etag, modified string
	for _, f := range r.Fields {
		switch f.Name {
		case "Etag":
			etag = f.Value
		case "Last-Modified":
			modified = f.Value
		}
	}
	if err := w.take(body); err != nil {
		// Without validators the next reading brings the body again.
		w.etag, w.modified = "", ""
		return err
	}
	w.etag, w.modified = etag, modified
	return nil
}

// take makes body the current descriptor.
func (w *Watcher) take(body []byte) error {
	w.mu.Lock()
	same := w.known && bytes.Equal(w.current.Raw, body)
	w.mu.Unlock()
	if same {
		return nil
	}
	d, err := tether.ParseDescriptor(bytes.Clone(body))
	if err != nil {
		return err
	}
	w.mu.Lock()
	first := !w.known
	w.current, w.known = d, true
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	message := "device descriptor changed"
	if first {
		message = "device descriptor read"
	}
	w.log.Info(message, "name", d.Name, "manufacturer", d.Manufacturer, "version", d.Version, "api", d.API, "bytes", len(d.Raw))
	if len(d.Warnings) > 0 {
		w.log.Warn("device descriptor has mistakes", "warnings", strings.Join(d.Warnings, "; "))
	}
	return nil
}
