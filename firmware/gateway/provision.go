package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/identity"
	"github.com/cloudrest/cloudrest/firmware/internal/lancert"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/firmware/internal/provision"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
	"github.com/cloudrest/cloudrest/tether/buildinfo"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// DefaultProvisionWait is how long Provision waits for everything together.
const DefaultProvisionWait = 5 * time.Minute

// ProvisionConfig is what a device needs in the factory. Station, StationCA, TokenFile,
// StateDir and one of Origin and OriginHandler are required.
type ProvisionConfig struct {
	// Origin is the maker's REST service, or OriginHandler is, as in Config.
	Origin        *url.URL
	OriginHandler http.Handler
	// StateDir is where the identity is kept; no gateway may be running in it.
	StateDir string
	// Station is the factory station's https URL.
	Station *url.URL
	// StationCA is a PEM file of the factory's authorities. The station's certificate and the
	// device's must come from them; it is kept to judge renewals.
	StationCA string
	// TokenFile holds the batch token. It is removed when the device is provisioned.
	TokenFile string
	// Network is the factory's Wi-Fi, for the service's apiFactoryConnect. Empty: the station
	// is asked, if it can be reached before.
	Network provisioning.Network
	// Hardware gives the UID. Nil: random.
	Hardware identity.Hardware
	// Wait is for everything together. Default 5 min.
	Wait time.Duration
	// Progress is told of every step as it begins, for an LED; the last one is StepDone or
	// StepFailed, unless ctx ended.
	Progress func(ProvisionStep)
	// Logger takes the log. Default: none.
	Logger *slog.Logger
}

// ProvisionResult, ProvisionStep and ProvisionError are those of the device's part of the
// factory: what was given, how far it came and why it failed (its Reason is for programs).
type (
	ProvisionResult = provision.Result
	ProvisionStep   = provision.Step
	ProvisionError  = provision.Error
)

// Steps of Provision.
const (
	ProvisionService = provision.StepService // waiting for the REST service
	ProvisionNetwork = provision.StepNetwork // the service joins the factory's network
	ProvisionStation = provision.StepStation // waiting for the station
	ProvisionClaim   = provision.StepClaim
	ProvisionStore   = provision.StepStore
	ProvisionConfirm = provision.StepConfirm
	ProvisionDone    = provision.StepDone
	ProvisionFailed  = provision.StepFailed
)

// Provision gives a device its identity certificate from the factory's station. It can be
// repeated after any failure, and does nothing on a device that has been provisioned.
// Errors are *ProvisionError, the joined *ConfigError of cfg, or the cause of ctx.
func Provision(ctx context.Context, cfg ProvisionConfig) (ProvisionResult, error) {
	if err := cfg.Validate(); err != nil {
		return ProvisionResult{}, err
	}
	setDefault(&cfg.Wait, DefaultProvisionWait)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	tell := cfg.Progress
	if tell == nil {
		tell = func(ProvisionStep) {}
	}
	fail := func(reason provisioning.Reason, err error) (ProvisionResult, error) {
		tell(ProvisionFailed)
		return ProvisionResult{}, &ProvisionError{Reason: reason, Err: err}
	}
	authority, err := os.ReadFile(cfg.StationCA)
	if err != nil {
		return fail(provisioning.ReasonState, fmt.Errorf("read the factory's authority: %w", err))
	}
	if err := statefile.Prepare(cfg.StateDir); err != nil {
		return fail(provisioning.ReasonState, err)
	}
	unlock, err := statefile.Lock(cfg.StateDir)
	if errors.Is(err, statefile.ErrLocked) {
		return fail(provisioning.ReasonLocked, err)
	}
	if err != nil {
		return fail(provisioning.ReasonState, err)
	}
	defer unlock()
	id, _, err := identity.Open(ctx, cfg.StateDir, cfg.Hardware)
	if errors.Is(err, identity.ErrClone) {
		return fail(provisioning.ReasonClone, err)
	}
	if err != nil {
		return fail(provisioning.ReasonState, err)
	}
	if !id.Verified {
		cfg.Logger.Warn("the UID of this device is not bound to its board", "device", id.ID, "source", id.Source, "reason", id.Reason)
	}
	label, err := provision.MakeLabel(cfg.StateDir)
	if err != nil {
		return fail(provisioning.ReasonState, err)
	}
	lan, _, err := lancert.Open(lancert.Config{Dir: cfg.StateDir, ID: id.ID, Floor: buildinfo.BuildTime(), Logger: cfg.Logger})
	if err != nil {
		return fail(provisioning.ReasonState, err)
	}
	oc := origin.Config{URL: cfg.Origin, Handler: cfg.OriginHandler, Logger: cfg.Logger, MaxIdle: 1}
	if oc.Handler != nil {
		oc.URL = nil
	}
	service, err := origin.New(oc)
	if err != nil {
		return ProvisionResult{}, fmt.Errorf("prepare the origin: %w", err)
	}
	defer service.Close()
	return provision.Run(ctx, provision.Config{
		Dir: cfg.StateDir, ID: id.ID, UID: id.UID(), UIDSource: id.Source, Key: id.Key(),
		Origin: service, Station: cfg.Station, Authority: authority, TokenFile: cfg.TokenFile, Network: cfg.Network,
		LANPin: lan.Pin(), LabelSecret: label, Version: buildinfo.Version(), Earliest: buildinfo.BuildTime(),
		Wait: cfg.Wait, Progress: tell, Logger: cfg.Logger,
	})
}

// Validate reports every mistake at once, each as a *ConfigError with the name of the
// setting as cloudrestd spells it.
func (c ProvisionConfig) Validate() error {
	var errs []error
	bad := func(key, problem string) { errs = append(errs, &ConfigError{key, problem}) }
	if c.Origin == nil && c.OriginHandler == nil {
		bad("origin", "is missing: want the URL of the REST service, such as http://127.0.0.1:8080")
	}
	if c.StateDir == "" {
		bad("state-dir", "is missing: want a directory that survives restarts")
	}
	if c.Station == nil || c.Station.Scheme != "https" || c.Station.Hostname() == "" || c.Station.Path != "" && c.Station.Path != "/" || c.Station.RawQuery != "" {
		bad("factory", "want the station's URL without a path, such as https://station:15850")
	}
	if c.StationCA == "" {
		bad("factory-ca", "is missing: want the PEM file of the factory's authority; the station names it when it starts")
	}
	if c.TokenFile == "" {
		bad("batch-token-file", "is missing: want a file with a batch token; factory token new makes one")
	}
	if err := c.Network.Validate(); err != nil {
		bad("factory-wifi", err.Error())
	}
	if c.Wait < 0 {
		bad("wait", "want no time or more")
	}
	return errors.Join(errs...)
}
