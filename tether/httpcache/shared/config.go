package shared

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/cloudrest/cloudrest/tether/httpcache"
)

// Defaults of Config.
const (
	DefaultName         = "cloudrest"
	DefaultMaxBytes     = 4 << 20
	DefaultMaxEntries   = 4096
	DefaultMaxBody      = 256 << 10
	DefaultBackground   = 4
	DefaultCollapseWait = 10 * time.Second

	// backgroundTime bounds one validation in the background.
	backgroundTime = 30 * time.Second
	// maxVariants bounds the answers kept for one target: hosts, principals and what they
	// vary by, together.
	maxVariants = 64
	// passTime is how long requests for a target whose answer was of no use to others do
	// not wait for each other. So many bytes of the memory at most remember such targets, or
	// the given part of it.
	passTime  = 2 * time.Minute
	passBytes = 64 << 10
	passPart  = 64
)

// Next answers a request that the cache does not. An error means that nothing was written;
// Serve returns it unless a stored answer may be used instead.
type Next func(w http.ResponseWriter, r *http.Request) error

// Config is the policy of a Cache. Zero values mean the defaults above, or no.
type Config struct {
	Name       string // in Cache-Status (RFC 9211): a token
	MaxBytes   int64  // all memory, in bytes
	MaxEntries int
	MaxBody    int64 // of one answer, in bytes

	// Targeted are the fields, in canonical form, that take the place of Cache-Control for
	// this cache (RFC 9213).
	Targeted []string
	// Rules are the maker's; the first that matches a path holds.
	Rules []httpcache.Rule
	// Announce tells the caches further out what only a rule says, in CDN-Cache-Control.
	Announce bool
	// StaleOnError is how long after its lifetime an answer may be used when the origin
	// cannot be reached (RFC 9111 §4.2.4), unless the origin forbids it.
	StaleOnError time.Duration
	// TagMax is up to how many bytes a body gets a strong ETag if its answer has no
	// validator; 0: none do.
	TagMax int
	// Preconditions has If-Match and If-Unmodified-Since on writes checked here, where that
	// is safe: see Cache.Serve.
	Preconditions bool

	// Fresh reports whether what is stored for a space may be given out without asking the
	// origin, and the answers to requests that began earlier. It is called once at most for a
	// request, after that began, only when there is such an answer, and may wait in bounded
	// time. When it says no the answer must be validated first, but may still be used as a
	// stale one. nil: always yes.
	Fresh func(ctx context.Context, space string) bool
	// Stamp gives the field that is added to an answer from the store: its name in canonical form,
	// and a value without control characters.
	Stamp func(r *http.Request) (name, value string)
	// Changed is told of each write that may have changed something, after what is stored
	// here is gone and before the write's answer is released. everything means that the
	// targets are not known. It may wait, in bounded time.
	Changed func(ctx context.Context, space string, uris []string, everything bool)

	// Keeper keeps answers over a restart that stay fresh for KeepFrom; nil: nobody does.
	Keeper   Keeper
	KeepFrom time.Duration

	Background   int           // validations in the background at once
	CollapseWait time.Duration // how long a request waits for another one's answer
	Logger       *slog.Logger
}

// Validate reports every mistake at once.
func (c *Config) Validate() error {
	var errs []error
	if c.MaxBytes < 0 || c.MaxEntries < 0 || c.MaxBody < 0 || c.TagMax < 0 || c.Background < 0 {
		errs = append(errs, errors.New("cache: a limit is negative"))
	}
	if c.StaleOnError < 0 || c.CollapseWait < 0 {
		errs = append(errs, errors.New("cache: a time is negative"))
	}
	for i := range c.Rules {
		if err := c.Rules[i].Validate(); err != nil {
			errs = append(errs, fmt.Errorf("cache: rule %d: %w", i+1, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) fill() {
	set := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxBody == 0 {
		c.MaxBody = DefaultMaxBody
	}
	c.MaxBody = min(c.MaxBody, c.MaxBytes)
	if c.CollapseWait == 0 {
		c.CollapseWait = DefaultCollapseWait
	}
	set(&c.MaxEntries, DefaultMaxEntries)
	set(&c.Background, DefaultBackground)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}
