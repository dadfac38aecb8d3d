package factory

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// Defaults of Config.
const (
	DefaultName = "Factory"
	DefaultLife = 10 * 365 * 24 * time.Hour
	DefaultRate = 200 // requests a second from one address; a whole line may sit behind one
)

// Limits of the server.
const (
	maxConns      = 512
	maxHead       = 16 << 10 // bytes
	headTimeout   = 10 * time.Second
	bodyTimeout   = 20 * time.Second
	answerTimeout = 30 * time.Second
	idleTimeout   = 60 * time.Second
	stopWait      = 5 * time.Second

	badTokenRate  = 1 // a second from one address, after
	badTokenBurst = 20
	retryAfter    = "1" // seconds
)

// Config describes a station. Dir is required.
type Config struct {
	Dir    string        // state directory; it is made with mode 0700
	Listen string        // host:port for HTTPS; default ":15850"
	Name   string        // of the station, for people; default "Factory"
	Life   time.Duration // of device certificates; default ten years

	// CACert and CAKey are PEM files of the authority that issues device certificates, the
	// issuing certificate first. Empty: the station makes its own at first start.
	CACert, CAKey string
	// TLSCert and TLSKey are PEM files of the station's TLS certificate. Empty: the authority
	// issues one for Hosts and all addresses of this machine.
	TLSCert, TLSKey string
	Hosts           []string

	Network      provisioning.Network // the line's Wi-Fi, told to devices that have a batch token
	PagePassword string               // for the page, with any user name; empty: the page is open
	Rate         int                  // requests a second from one address; default 200

	Logger *slog.Logger // default: none
}

// Station is made by Open. Its methods are safe for concurrent use.
type Station struct {
	cfg       Config
	log       *slog.Logger
	store     *Store
	authority *devcert.Authority
	made      bool // the authority is new
	cert      *serverCert
	line      *line
	listener  net.Listener
	control   net.Listener

	requests, badTokens *throttle
	closing             sync.Once
}

// Open takes the state directory, opens what is in it and binds the addresses; nothing is
// served before Run. A station that is not run must be closed. ErrInUse if another
// process has the directory.
func Open(cfg Config) (s *Station, err error) {
	if cfg.Listen == "" {
		cfg.Listen = fmt.Sprintf(":%d", provisioning.DefaultPort)
	}
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.Life == 0 {
		cfg.Life = DefaultLife
	}
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s = &Station{
		cfg: cfg, log: cfg.Logger,
		requests: newThrottle(float64(cfg.Rate), float64(5*cfg.Rate)), badTokens: newThrottle(badTokenRate, badTokenBurst),
	}
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	if err := prepareDir(cfg.Dir); err != nil {
		return s, err
	}
	if s.store, err = OpenStore(cfg.Dir, cfg.Life); err != nil {
		return s, err
	}
	if s.authority, s.made, err = openAuthority(cfg.Dir, cfg.Name, cfg.CACert, cfg.CAKey); err != nil {
		return s, err
	}
	if s.cert, err = newServerCert(s.authority, cfg.Hosts, cfg.TLSCert, cfg.TLSKey); err != nil {
		return s, err
	}
	if s.line, err = newLine(cfg.Name, s.store); err != nil {
		return s, err
	}
	if s.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return s, fmt.Errorf("listen on %s: %w", cfg.Listen, err)
	}
	s.control, err = listenControl(cfg.Dir)
	return s, err
}

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Dir == "" {
		bad("state-dir: is missing")
	}
	if (c.CACert == "") != (c.CAKey == "") {
		bad("ca-cert, ca-key: want both or neither")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("tls-cert, tls-key: want both or neither")
	}
	if len(c.Name) > MaxBatchName || c.Name != provisioning.Clean(c.Name, MaxBatchName) {
		bad("name: want at most %d bytes of text", MaxBatchName)
	}
	if c.Life < 0 || c.Rate < 0 {
		bad("life, rate: want more than 0")
	}
	if len(c.Hosts) > maxNames/2 {
		bad("host: want at most %d", maxNames/2)
	}
	if err := c.Network.Validate(); err != nil {
		bad("wifi: %w", err)
	}
	return errors.Join(errs...)
}

// Addr is where the station listens.
func (s *Station) Addr() *net.TCPAddr { return s.listener.Addr().(*net.TCPAddr) }

// Authority is the path of the file that devices and relays need; made tells whether its
// authority is new.
func (s *Station) Authority() (file string, made bool) {
	return filepath.Join(s.cfg.Dir, AuthorityFile), s.made
}

// Close gives everything back that Open took. Run does it by itself.
func (s *Station) Close() error {
	var errs []error
	s.closing.Do(func() {
		for _, l := range []net.Listener{s.listener, s.control} {
			if l != nil {
				errs = append(errs, l.Close())
			}
		}
		if s.store != nil {
			errs = append(errs, s.store.Close())
		}
	})
	return errors.Join(errs...)
}

// Run serves until ctx is done, lets requests under way finish, and returns nil.
func (s *Station) Run(ctx context.Context) error {
	defer s.Close()
	group, ctx := errgroup.WithContext(ctx)
	public := &http.Server{
		Handler:           s.handler(ctx.Done()),
		ReadHeaderTimeout: headTimeout, ReadTimeout: bodyTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHead,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // mostly scanners and cut connections
	}
	listener := tls.NewListener(netutil.LimitListener(s.listener, maxConns), &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: s.cert.GetCertificate, NextProtos: []string{"http/1.1"},
	})
	orders := &http.Server{Handler: orders(s.store, s.line), ReadHeaderTimeout: headTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHead}
	for server, l := range map[*http.Server]net.Listener{public: listener, orders: s.control} {
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
			defer cancel()
			if server.Shutdown(grace) != nil {
				server.Close()
			}
			return nil
		})
	}
	group.Go(func() error { s.line.run(ctx); return nil })
	file, _ := s.Authority()
	s.log.Info("the station is ready", "listen", s.Addr().String(), "authority", file, "page_password", s.cfg.PagePassword != "")
	return group.Wait()
}

// handler serves devices and the page; stop ends the page's streams.
func (s *Station) handler(stop <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+provisioning.InfoPath, s.info)
	mux.HandleFunc("GET "+provisioning.NetworkPath, s.network)
	mux.HandleFunc("POST "+provisioning.ClaimPath, s.claim)
	mux.HandleFunc("POST "+provisioning.ConfirmPath, s.confirm)
	mux.HandleFunc("POST "+provisioning.FailurePath, s.failure)
	mux.Handle("/", s.password(s.line.page(stop)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if !s.requests.allow(address(r.RemoteAddr), 1) {
			refuse(w, &Refusal{http.StatusTooManyRequests, provisioning.ReasonBusy, "too many requests from this address"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *Station) info(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, provisioning.Info{Station: s.cfg.Name, Version: provisioning.Version})
}

func (s *Station) network(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.authorized(w, r); !ok {
		return
	}
	if s.cfg.Network == (provisioning.Network{}) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, http.StatusOK, s.cfg.Network)
}

// authorized returns the batch token of r when it is valid now, or answers r.
func (s *Station) authorized(w http.ResponseWriter, r *http.Request) (token string, ok bool) {
	from := address(r.RemoteAddr)
	if !s.badTokens.allow(from, 0) {
		refuse(w, &Refusal{http.StatusTooManyRequests, provisioning.ReasonBusy, "too many wrong tokens from this address"})
		return "", false
	}
	token, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	_, err := s.store.CheckToken(token)
	if err == nil {
		return token, true
	}
	if e, known := errors.AsType[*Refusal](err); known && e.Status == http.StatusUnauthorized {
		s.badTokens.allow(from, 1)
		w.Header().Set("WWW-Authenticate", `Bearer realm="batch token"`)
	}
	s.line.stranger(from.String(), err)
	s.fail(w, err)
	return "", false
}

func (s *Station) claim(w http.ResponseWriter, r *http.Request) {
	token, ok := s.authorized(w, r)
	if !ok {
		return
	}
	body, ok := read(w, r)
	if !ok {
		return
	}
	c, id, key, err := provisioning.ParseClaim(body)
	if err != nil {
		s.line.stranger(address(r.RemoteAddr).String(), err)
		refuse(w, &Refusal{http.StatusBadRequest, provisioning.ReasonMalformed, err.Error()})
		return
	}
	grant, err := s.store.Claim(s.authority, token, c, id, key, address(r.RemoteAddr).String())
	if e, ok := errors.AsType[*Refusal](err); ok {
		s.log.Warn("a claim is refused", "device", id, "peer", r.RemoteAddr, "reason", e.Reason, "err", e)
		if e.Reason != provisioning.ReasonConflict { // those have a list of their own
			if err := s.store.Fail(Trouble{ID: id, Reason: e.Reason, Message: provisioning.Clean(e.Message, provisioning.MaxMessage)}); err != nil {
				s.log.Error("the station cannot write", "err", err)
			}
		}
		s.line.failed(id, string(e.Reason), e.Message)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	s.log.Info("a unit is claimed", "device", id, "batch", grant.Batch)
	s.line.claimed(id, grant.Confirmed)
	answer(w, http.StatusOK, grant)
}

func (s *Station) confirm(w http.ResponseWriter, r *http.Request) {
	body, ok := read(w, r)
	if !ok {
		return
	}
	c, err := provisioning.ParseConfirmation(body)
	if err != nil {
		refuse(w, &Refusal{http.StatusBadRequest, provisioning.ReasonMalformed, err.Error()})
		return
	}
	u, first, err := s.store.Confirm(c)
	if err != nil {
		s.fail(w, err)
		return
	}
	if first {
		s.log.Info("a unit is done", "device", u.ID, "batch", u.Batch)
		s.line.confirmed(u)
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Station) failure(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.authorized(w, r); !ok {
		return
	}
	body, ok := read(w, r)
	if !ok {
		return
	}
	f, id, err := provisioning.ParseFailure(body)
	if err != nil {
		refuse(w, &Refusal{http.StatusBadRequest, provisioning.ReasonMalformed, err.Error()})
		return
	}
	if u, err := s.store.Unit(id); err == nil && !u.Confirmed.IsZero() && f.Reason != provisioning.ReasonConflict {
		w.WriteHeader(http.StatusNoContent) // a late report of what was mended
		return
	}
	if f.Reason != provisioning.ReasonConflict { // that one the station has seen itself
		if err := s.store.Fail(Trouble{ID: id, Reason: f.Reason, Message: f.Message}); err != nil {
			s.fail(w, err)
			return
		}
		s.log.Warn("a unit cannot go on", "device", id, "reason", f.Reason, "err", f.Message)
		s.line.failed(id, string(f.Reason), f.Message)
	}
	w.WriteHeader(http.StatusNoContent)
}

// password guards the page.
func (s *Station) password(next http.Handler) http.Handler {
	if s.cfg.PagePassword == "" {
		return next
	}
	want := sha256.Sum256([]byte(s.cfg.PagePassword))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := address(r.RemoteAddr)
		if !s.badTokens.allow(from, 0) {
			refuse(w, &Refusal{http.StatusTooManyRequests, provisioning.ReasonBusy, "too many wrong passwords from this address"})
			return
		}
		_, password, given := r.BasicAuth()
		got := sha256.Sum256([]byte(password)) // equal lengths, whatever was typed
		if subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			next.ServeHTTP(w, r)
			return
		}
		if given {
			s.badTokens.allow(from, 1)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="CloudREST factory", charset="UTF-8"`)
		http.Error(w, "this page needs its password", http.StatusUnauthorized)
	})
}

// fail answers with err: a *Refusal as it is, anything else as the station's own trouble.
func (s *Station) fail(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Refusal](err)
	if !ok {
		s.log.Error("the station cannot go on with a request", "err", err)
		e = &Refusal{http.StatusServiceUnavailable, provisioning.ReasonBusy, "the station has a problem of its own, its log tells more"}
	}
	refuse(w, e)
}

func refuse(w http.ResponseWriter, e *Refusal) {
	if e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	answer(w, e.Status, provisioning.Error{Status: e.Status, Reason: e.Reason, Message: e.Message})
}

// read reads the body of a request, or answers it.
func read(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, provisioning.MaxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		refuse(w, &Refusal{http.StatusRequestEntityTooLarge, provisioning.ReasonMalformed, fmt.Sprintf("at most %d bytes are read", provisioning.MaxBody)})
	}
	return body, err == nil
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("factory: " + err.Error()) // types of our own
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// listenControl binds the socket for orders. What a killed station left of it is removed:
// the caller has the store, so no other station is running.
func listenControl(dir string) (net.Listener, error) {
	name := filepath.Join(dir, controlFile)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old control socket: %w", err)
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket (its path may have about 100 bytes): %w", err)
	}
	if err := os.Chmod(name, 0o600); err != nil { // the directory keeps others out until here
		l.Close()
		return nil, fmt.Errorf("protect the control socket: %w", err)
	}
	return l, nil
}
