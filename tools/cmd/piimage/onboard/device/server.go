package device

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
)

// Port is where the server listens.
const Port = "10443"

// State is what GET /v1/state tells everybody.
type State struct {
	API      int    `json:"api"`  // 1
	Boot     string `json:"boot"` // names this start of the device
	Board    string `json:"board"`
	Model    string `json:"model"`
	Hostname string `json:"hostname"`
	Version  string `json:"version"`
	Sequence int64  `json:"sequence"`
	Newest   int64  `json:"newest_sequence"`   // no update below is taken
	Phase    string `json:"phase"`             // Normal or Trial
	Updates  bool   `json:"updates"`           // signed ones are taken
	Failed   string `json:"failed,omitempty"`  // why the last update did not stay
	Problem  string `json:"problem,omitempty"` // what is wrong now
}

// The phases.
const (
	Normal = "normal"
	Trial  = "trial"
)

// Machine is the board.
type Machine interface {
	update.Store
	// State fills in what the board knows: Boot, Model, Phase, Problem.
	State(*State)
	// Try makes the next start one of the slot that does not run, on trial.
	Try() error
	// Restart ends everything and starts again, after Soon: the answer goes out first.
	Restart()
	// Run runs a command and returns what it printed.
	Run(ctx context.Context, argv []string) ([]byte, error)
	// Log returns the last that a program printed.
	Log(ctx context.Context, program string) ([]byte, error)
}

// Soon is how long a restart waits for answers to go out.
const Soon = 2 * time.Second

// Server lets people on the LAN look at the device and update it.
type Server struct {
	Info    *Info
	Memory  Memory
	Machine Machine

	busy sync.Mutex // held by the one update or way back at a time
}

const (
	// updateLimit bounds one update, over a slow network onto a slow card.
	updateLimit = 30 * time.Minute
	// signatureLimit is for the beginning of it, a few KB.
	signatureLimit = 30 * time.Second
	maxRest        = 1 << 30 // bytes of an update that is refused; callLimit is less
	callLimit      = time.Minute
	maxCalls       = 8 // connections at a time; more wait
)

// Run serves until ctx is done.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	cert, err := s.certificate()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: updateLimit, WriteTimeout: updateLimit + callLimit,
		IdleTimeout: callLimit, MaxHeaderBytes: 16 << 10,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13},
		ErrorLog:  log.New(io.Discard, "", 0), // whatever scans the LAN
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err = server.ServeTLS(&bounded{Listener: l, slots: make(chan struct{}, maxCalls)}, "", "")
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// bounded accepts so many connections at a time.
type bounded struct {
	net.Listener
	slots chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	b.slots <- struct{}{}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &slotConn{Conn: c, free: sync.OnceFunc(func() { <-b.slots })}, nil
}

type slotConn struct {
	net.Conn
	free func()
}

func (c *slotConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// certificate is that of the secrets. Without them it is made anew at each start: nobody
// could know it, and an update bears its own signature.
func (s *Server) certificate() (tls.Certificate, error) {
	if a := s.Info.Admin; a != nil {
		return tls.X509KeyPair([]byte(a.Certificate), []byte(a.Key))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{s.Info.Hostname}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Handler is the server without network.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/state", s.state)
	mux.HandleFunc("POST /v1/update", s.update)
	mux.HandleFunc("POST /v1/check", s.check)
	mux.HandleFunc("GET /v1/log", s.admin(s.log))
	mux.HandleFunc("POST /v1/pair", s.admin(s.pair))
	mux.HandleFunc("POST /v1/back", s.admin(s.back))
	mux.HandleFunc("POST /v1/restart", s.admin(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "restarting\n")
		s.Machine.Restart()
	}))
	return mux
}

// User is the name that goes with the password: gokrazy's, so that a client need not know
// whose server it is.
const User = "gokrazy"

func (s *Server) authorized(r *http.Request) bool {
	a := s.Info.Admin
	if a == nil || a.Password == "" {
		return false
	}
	user, password, _ := r.BasicAuth()
	got, want := sha256.Sum256([]byte(password)), sha256.Sum256([]byte(a.Password))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && user == User
}

func refuse(w http.ResponseWriter, status int, err error) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="piimage"`)
	}
	http.Error(w, err.Error(), status)
}

var (
	errPassword = errors.New("the update password is wrong or missing")
	errNoAdmin  = errors.New("this image was built without an update password: only signed updates are taken")
)

func (s *Server) admin(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.Info.Admin == nil:
			refuse(w, http.StatusForbidden, errNoAdmin)
		case !s.authorized(r):
			refuse(w, http.StatusUnauthorized, errPassword)
		default:
			next(w, r)
		}
	}
}

func (s *Server) now() State {
	st := State{API: 1, Board: s.Info.Board, Hostname: s.Info.Hostname, Version: s.Info.Version, Sequence: s.Info.Sequence, Updates: len(s.Info.UpdateKey) > 0}
	var err error
	if st.Newest, err = s.Memory.Newest(s.Info.Sequence); err != nil {
		st.Problem = err.Error()
	}
	s.Machine.State(&st)
	if st.Phase == Normal {
		st.Failed = s.Memory.Failed()
	}
	return st
}

func (s *Server) state(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(s.now())
}

var (
	errBusy   = errors.New("another update is under way")
	errTrial  = errors.New("the device is on trial after an update: wait until that is decided")
	errNoKey  = errors.New("this image was built without --update-key: it takes no updates over the network")
	errNoBack = errors.New("the other slot holds no whole version")
)

// only one at a time, and not on trial: the slot that does not run is then the way back.
func (s *Server) only() error {
	if !s.busy.TryLock() {
		return errBusy
	}
	if s.now().Phase != Normal {
		s.busy.Unlock()
		return errTrial
	}
	return nil
}

// offer is what both begin with: who asks, and what an update must fit. It answers itself
// where ok is false.
func (s *Server) offer(w http.ResponseWriter, r *http.Request) (d update.Device, ok bool) {
	switch {
	case len(s.Info.UpdateKey) == 0:
		refuse(w, http.StatusForbidden, errNoKey)
		return d, false
	case s.Info.Admin != nil && !s.authorized(r):
		refuse(w, http.StatusUnauthorized, errPassword)
		return d, false
	}
	newest, err := s.Memory.Newest(s.Info.Sequence)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return d, false
	}
	return update.Device{Key: s.Info.UpdateKey, Board: s.Info.Board, Sequence: newest, Newer: s.Info.Admin == nil}, true
}

// wrong is the status for what Receive and Check return.
func wrong(err error) int {
	switch {
	case errors.Is(err, errBusy), errors.Is(err, errTrial):
		return http.StatusConflict
	case errors.Is(err, update.ErrSignature), errors.Is(err, update.ErrOther), errors.Is(err, update.ErrOlder), errors.Is(err, update.ErrDigest):
		return http.StatusUnprocessableEntity
	}
	return http.StatusInternalServerError
}

// check says what update would, from the beginning of a bundle: nobody need send it all to
// learn that it is refused.
func (s *Server) check(w http.ResponseWriter, r *http.Request) {
	d, ok := s.offer(w, r)
	if !ok {
		return
	}
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(signatureLimit))
	if m, err := update.Check(r.Body, d); err != nil {
		refuse(w, wrong(err), err)
	} else {
		fmt.Fprintf(w, "%s may be sent\n", m.Version)
	}
}

func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	d, ok := s.offer(w, r)
	if !ok {
		return
	}
	// Whoever has no signature to show cannot keep others waiting.
	patience := http.NewResponseController(w)
	patience.SetReadDeadline(time.Now().Add(signatureLimit))
	ours := false
	m, err := update.Receive(r.Body, d, s.Machine, func(m *update.Manifest) error {
		if err := s.only(); err != nil {
			return err
		}
		ours = true
		patience.SetReadDeadline(time.Now().Add(updateLimit))
		log.Printf("update: taking %s, sequence %d; this is %s, the newest was %d", m.Version, m.Sequence, s.Info.Version, d.Sequence)
		return s.Memory.Begin()
	})
	if err == nil {
		err = s.Memory.Complete(m.Sequence)
	}
	if err == nil {
		err = s.Machine.Try()
	}
	if err != nil {
		log.Printf("update: refused: %v", err)
		if ours {
			s.busy.Unlock()
		}
		// Read the rest, so that the answer is not lost to somebody who is still sending.
		patience.SetReadDeadline(time.Now().Add(callLimit))
		io.Copy(io.Discard, io.LimitReader(r.Body, maxRest))
		refuse(w, wrong(err), err)
		return
	}
	log.Printf("update: %s starts, on trial", m.Version)
	fmt.Fprintf(w, "%s starts, on trial\n", m.Version)
	// Still busy: what is about to start must not be written over.
	s.Machine.Restart()
}

func (s *Server) back(w http.ResponseWriter, r *http.Request) {
	if err := s.only(); err != nil {
		refuse(w, http.StatusConflict, err)
		return
	}
	if s.Memory.Incomplete() {
		s.busy.Unlock()
		refuse(w, http.StatusConflict, errNoBack)
		return
	}
	// On trial too: perhaps it is a version that was given up.
	if err := s.Machine.Try(); err != nil {
		s.busy.Unlock()
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	io.WriteString(w, "the version before starts, on trial\n") // and is busy until then
	s.Machine.Restart()
}

func (s *Server) pair(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	defer cancel()
	out, err := s.Machine.Run(ctx, s.Info.Pair)
	if err != nil {
		refuse(w, http.StatusInternalServerError, fmt.Errorf("make an invitation: %w: %s", err, out))
		return
	}
	w.Write(out)
}

func (s *Server) log(w http.ResponseWriter, r *http.Request) {
	out, err := s.Machine.Log(r.Context(), r.URL.Query().Get("program"))
	if err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(out)
}
