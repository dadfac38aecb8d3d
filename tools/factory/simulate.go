package factory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/devcert"
	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// Limits of a simulation.
const (
	MaxUnits    = 100_000
	MaxParallel = 64

	attempts      = 20               // of one unit, before it counts as lost
	attemptWait   = 15 * time.Second // of one attempt
	stationWait   = 15 * time.Second // for a station process to come up
	batchLife     = 24 * time.Hour
	restarts      = 3  // station processes after the first one
	maxProblems   = 20 // that are told
	duplicatePart = 4  // one in so many faulty units is also claimed by another board, and so on
)

// SimConfig is a simulated production line.
type SimConfig struct {
	Units    int
	Parallel int     // units at work at once
	Faults   float64 // 0 to 1: part of the connections and of the runs that fail

	// Station starts a station process when it is followed by "--listen ADDR --state-dir DIR":
	// the simulation makes, kills and restarts it. Empty: URL, CA and Token name one that runs.
	Station []string
	URL     *url.URL
	CA      string // PEM file
	Token   string // batch token for at least Units units

	Dir      string // for the state of station and devices; it is made and left there. Empty: a temporary one
	Progress func(done, units int)
	Logger   *slog.Logger // takes the devices' log; nil: none
}

// SimResult is how it went. The line is good if Problems is empty.
type SimResult struct {
	Units      int            `json:"units"`      // asked for
	Identities int            `json:"identities"` // distinct: by ID, key and certificate
	Records    int            `json:"records"`    // of the station; -1 when it cannot be asked
	Orphans    int            `json:"orphans"`    // of these, not confirmed or not what the device has
	Runs       int            `json:"runs"`       // of the device's code
	Restarts   int            `json:"station_restarts"`
	Faults     map[string]int `json:"faults"` // injected, by kind
	Seconds    float64        `json:"seconds"`
	PerHour    int            `json:"per_hour"`
	Problems   []string       `json:"problems,omitempty"`
}

// simulation is one run of Simulate.
type simulation struct {
	SimConfig
	dir     string // where the state is
	station string // state directory of our own station
	port    int    // of the station
	line    *faultyLine
	url     *url.URL // what devices are told
	process *exec.Cmd
	ended   chan struct{} // closed when the process has

	runs, done atomic.Int64

	mu       sync.Mutex // guards the fields below
	faults   map[string]int
	results  map[tether.DeviceID]unitResult
	rivals   map[tether.DeviceID]bool // IDs that another board has claimed too
	problems []string
	hidden   int // problems not kept
}

type unitResult struct {
	gateway.ProvisionResult
	dir string
}

// Simulate runs a production line and judges it: every unit must end with an identity of
// its own that the station has as confirmed, however the faults fell. The error is for
// what keeps the simulation itself from running.
func Simulate(ctx context.Context, c SimConfig) (SimResult, error) {
	if c.Units < 1 || c.Units > MaxUnits || c.Parallel < 1 || c.Parallel > MaxParallel || c.Faults < 0 || c.Faults > 1 {
		return SimResult{}, fmt.Errorf("simulate: want 1 to %d units, 1 to %d in parallel and a part of faults from 0 to 1", MaxUnits, MaxParallel)
	}
	if len(c.Station) == 0 && (c.URL == nil || c.CA == "" || c.Token == "") {
		return SimResult{}, errors.New("simulate: want a station to start, or the URL, authority and token of one")
	}
	s := &simulation{SimConfig: c, dir: c.Dir, faults: map[string]int{}, results: map[tether.DeviceID]unitResult{}, rivals: map[tether.DeviceID]bool{}}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "factory-*")
		if err != nil {
			return SimResult{}, err
		}
		defer os.RemoveAll(dir)
		s.dir = dir
	} else if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return SimResult{}, err
	}
	to := ""
	if len(c.Station) > 0 {
		s.station = filepath.Join(s.dir, "station")
		if err := s.prepareStation(ctx); err != nil {
			return SimResult{}, err
		}
		defer s.kill()
		to = fmt.Sprintf("127.0.0.1:%d", s.port)
		s.url = &url.URL{Scheme: "https", Host: to}
	} else {
		s.url, to = c.URL, c.URL.Host
		if c.URL.Port() == "" {
			to = net.JoinHostPort(c.URL.Hostname(), "443")
		}
	}
	inner, end := context.WithCancel(ctx)
	defer end()
	// The faulty line is on loopback, which only our own station's certificate names.
	if c.Faults > 0 && s.station != "" {
		var err error
		if s.line, err = newFaultyLine(to, c.Faults); err != nil {
			return SimResult{}, err
		}
		s.url = &url.URL{Scheme: "https", Host: s.line.l.Addr().String()}
		ended := make(chan struct{})
		go func() { s.line.run(inner); close(ended) }()
		defer func() { end(); <-ended }()
	}

	began := time.Now()
	restarted, err := s.produce(ctx)
	if err != nil {
		return SimResult{}, err
	}
	took := time.Since(began)
	r := SimResult{Units: c.Units, Runs: int(s.runs.Load()), Restarts: restarted, Seconds: took.Seconds(), Records: -1}
	if took > 0 {
		r.PerHour = int(float64(c.Units) * float64(time.Hour) / float64(took))
	}
	if err := s.judge(ctx, &r); err != nil {
		return SimResult{}, err
	}
	if s.line != nil {
		for kind, name := range []string{"cut before the station", "cut within a request", "answer lost"} {
			s.faults[name] = int(s.line.cuts[kind].Load())
		}
	}
	r.Faults, r.Problems = s.faults, s.problems
	if s.hidden > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("and %d more", s.hidden))
	}
	return r, nil
}

// prepareStation chooses a port, starts the first station process and makes a batch that
// has room for exactly these units.
func (s *simulation) prepareStation(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	if err := s.start(ctx); err != nil {
		return err
	}
	c, err := Connect(ctx, s.station)
	if err != nil {
		return err
	}
	defer c.Close()
	s.CA = filepath.Join(s.station, AuthorityFile)
	_, s.Token, err = c.NewBatch(ctx, "simulated line", s.Units, batchLife)
	return err
}

// start runs a station process and waits until it takes orders.
func (s *simulation) start(ctx context.Context) error {
	var out bytes.Buffer
	args := append(slices.Clone(s.Station[1:]), "--listen", fmt.Sprintf("127.0.0.1:%d", s.port), "--state-dir", s.station)
	s.process = exec.CommandContext(ctx, s.Station[0], args...)
	s.process.Stdout, s.process.Stderr = &out, &out
	if err := s.process.Start(); err != nil {
		s.process = nil
		return fmt.Errorf("start a station: %w", err)
	}
	process, ended := s.process, make(chan struct{})
	s.ended = ended
	go func() { process.Wait(); close(ended) }()
	limit := time.Now().Add(stationWait)
	for {
		if conn, err := net.DialTimeout("unix", filepath.Join(s.station, controlFile), time.Second); err == nil {
			conn.Close()
			return nil
		}
		over := ctx.Err() != nil || time.Now().After(limit)
		select {
		case <-ended:
			over = true
		case <-time.After(20 * time.Millisecond):
		}
		if over {
			s.kill() // its output is complete then
			return fmt.Errorf("the station does not come up: %s", provisioning.Clean(out.String(), provisioning.MaxMessage))
		}
	}
}

// kill ends the station process as a power cut would.
func (s *simulation) kill() {
	if s.process != nil {
		s.process.Process.Kill()
		<-s.ended
		s.process = nil
	}
}

// produce runs all units, and restarts the station in between.
func (s *simulation) produce(ctx context.Context) (restarted int, err error) {
	group, inner := errgroup.WithContext(ctx)
	next := make(chan int)
	group.Go(func() error {
		defer close(next)
		for i := range s.Units {
			if s.station != "" && s.Faults > 0 && restarted < restarts && i > 0 && i%max(1, s.Units/(restarts+1)) == 0 {
				s.kill()
				if err := s.start(ctx); err != nil { // inner ends with the last unit, the station lives on
					return err
				}
				restarted++
			}
			select {
			case next <- i:
			case <-inner.Done():
				return context.Cause(inner)
			}
		}
		return nil
	})
	for range s.Parallel {
		group.Go(func() error {
			for i := range next {
				if err := s.unit(inner, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return restarted, group.Wait()
}

// simBoard is a board with a flash of a given UID.
type simBoard []byte

func (b simBoard) First(context.Context) (board.UID, error) {
	return board.UID{Bytes: b, Source: "simulated", Strength: board.Hardware}, nil
}

func (b simBoard) Again(ctx context.Context, _ string) (board.UID, error) { return b.First(ctx) }

// newBoard makes a board with its state directory and token file.
func (s *simulation) newBoard(name string, uid simBoard) (gateway.ProvisionConfig, error) {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return gateway.ProvisionConfig{}, err
	}
	token := filepath.Join(dir, "batch-token")
	if err := os.WriteFile(token, []byte(s.Token), 0o600); err != nil {
		return gateway.ProvisionConfig{}, err
	}
	return gateway.ProvisionConfig{
		OriginHandler: s.service(), StateDir: filepath.Join(dir, "state"), Station: s.url, StationCA: s.CA, TokenFile: token,
		Network:  provisioning.Network{SSID: "simulated line", Passphrase: "not a secret"},
		Hardware: uid, Wait: attemptWait, Logger: s.Logger,
	}, nil
}

// service is the maker's, which with faults is not ready at once.
func (s *simulation) service() http.Handler {
	service := sample.New(sample.Config{})
	notReady := atomic.Int32{}
	if s.fault(1) {
		s.count("service not ready")
		notReady.Store(1 + rand.Int32N(2))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if notReady.Add(-1) >= 0 {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		service.ServeHTTP(w, r)
	})
}

// fault draws whether a fault happens: one in so many of the faulty part.
func (s *simulation) fault(oneIn int) bool { return rand.Float64() < s.Faults/float64(oneIn) }

func (s *simulation) count(kind string) {
	s.mu.Lock()
	s.faults[kind]++
	s.mu.Unlock()
}

func (s *simulation) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.problems) == maxProblems {
		s.hidden++
		return
	}
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// unit provisions one unit, however often it takes.
func (s *simulation) unit(ctx context.Context, n int) error {
	uid := make(simBoard, 16)
	for i := range uid {
		uid[i] = byte(rand.Uint32())
	}
	id := tether.NewDeviceID(uid)
	cfg, err := s.newBoard(fmt.Sprintf("unit-%06d", n), uid)
	if err != nil {
		return err
	}
	var result gateway.ProvisionResult
	for try := 1; ; try++ {
		if s.fault(duplicatePart) {
			s.count("two processes on one device")
			result, err = s.twice(ctx, cfg)
		} else {
			result, err = s.run(ctx, cfg, true)
		}
		if err == nil || ctx.Err() != nil {
			break
		}
		e, known := errors.AsType[*gateway.ProvisionError](err)
		passing := errors.Is(err, errPlug) || known && slices.Contains([]provisioning.Reason{provisioning.ReasonUnreachable, provisioning.ReasonBusy, provisioning.ReasonLocked}, e.Reason)
		if !passing || try == attempts {
			s.problem("unit %s, attempt %d: %v", id.Short(), try, err)
			break
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		s.mu.Lock()
		s.results[result.Device] = unitResult{result, cfg.StateDir}
		s.mu.Unlock()
		if result.Device != id {
			s.problem("unit %s got the ID %s", id.Short(), result.Device.Short())
		}
		if err := s.rival(ctx, n, uid, id); err != nil {
			return err
		}
	}
	done := int(s.done.Add(1))
	if s.Progress != nil {
		s.Progress(done, s.Units)
	}
	return nil
}

var errPlug = errors.New("plug pulled")

// run runs the device's code once; with faults its power may go at any step.
func (s *simulation) run(ctx context.Context, cfg gateway.ProvisionConfig, faults bool) (gateway.ProvisionResult, error) {
	s.runs.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if faults && s.fault(1) {
		steps := []gateway.ProvisionStep{gateway.ProvisionService, gateway.ProvisionNetwork, gateway.ProvisionStation, gateway.ProvisionClaim, gateway.ProvisionStore, gateway.ProvisionConfirm}
		at := steps[rand.IntN(len(steps))]
		cfg.Progress = func(step gateway.ProvisionStep) {
			if step == at {
				s.count("device restarted")
				cancel(errPlug)
			}
		}
	}
	return gateway.Provision(ctx, cfg)
}

// twice runs two at once on one device: at most one may work, and neither may do harm.
func (s *simulation) twice(ctx context.Context, cfg gateway.ProvisionConfig) (gateway.ProvisionResult, error) {
	var results [2]gateway.ProvisionResult
	var errs [2]error
	var both sync.WaitGroup
	for i := range 2 {
		both.Go(func() { results[i], errs[i] = s.run(ctx, cfg, false) })
	}
	both.Wait()
	if errs[0] == nil && errs[1] == nil && (results[0].Serial != results[1].Serial || results[0].Already == results[1].Already) {
		s.problem("unit %s: two processes were both provisioned: %s and %s", results[0].Device.Short(), results[0].Serial, results[1].Serial)
	}
	if errs[0] == nil {
		return results[0], nil
	}
	return results[1], errs[1]
}

// rival lets a part of the units be claimed once more, by a board with the same UID and
// nothing on its flash, and by a board with a copied flash. Both must be refused.
func (s *simulation) rival(ctx context.Context, n int, uid simBoard, id tether.DeviceID) error {
	if s.fault(duplicatePart) {
		s.count("same UID, another key")
		cfg, err := s.newBoard(fmt.Sprintf("rival-%06d", n), uid)
		if err != nil {
			return err
		}
		s.expect(ctx, cfg, provisioning.ReasonConflict, "a second board with the UID of "+id.Short())
		s.mu.Lock()
		s.rivals[id] = true
		s.mu.Unlock()
	}
	if s.fault(duplicatePart) {
		s.count("copied flash")
		other := slices.Clone(uid)
		other[0] ^= 1
		cfg, err := s.newBoard(fmt.Sprintf("copy-%06d", n), other)
		if err != nil {
			return err
		}
		if err := copyState(filepath.Join(s.dir, fmt.Sprintf("unit-%06d", n), "state"), cfg.StateDir); err != nil {
			return err
		}
		s.expect(ctx, cfg, provisioning.ReasonClone, "a board with the flash of "+id.Short())
	}
	return nil
}

// copyState copies what identifies a device.
func copyState(from, to string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(from, "identity.json"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "identity.json"), b, 0o600)
}

// expect runs a board until it is refused for the reason wanted; anything else is a problem.
func (s *simulation) expect(ctx context.Context, cfg gateway.ProvisionConfig, want provisioning.Reason, who string) {
	for range attempts {
		_, err := s.run(ctx, cfg, false)
		e, ok := errors.AsType[*gateway.ProvisionError](err)
		if ok && (e.Reason == provisioning.ReasonUnreachable || e.Reason == provisioning.ReasonBusy) {
			continue
		}
		if ctx.Err() == nil && (!ok || e.Reason != want) {
			s.problem("%s: got %v, want a refusal for %s", who, err, want)
		}
		return
	}
}

// judge compares what devices and station have.
func (s *simulation) judge(ctx context.Context, r *SimResult) error {
	serials, keys := map[string]bool{}, map[string]bool{}
	chains := map[tether.DeviceID][]byte{} // leaf that the device has
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		return err
	}
	roots, err := devcert.ParseRoots(ca)
	if err != nil {
		return err
	}
	for id, u := range s.results {
		pem, err := os.ReadFile(filepath.Join(u.dir, "factory-cert.pem"))
		if err != nil {
			s.problem("unit %s has no certificate: %v", id.Short(), err)
			continue
		}
		chain, err := devcert.ParsePEM(pem)
		if err != nil {
			s.problem("unit %s: %v", id.Short(), err)
			continue
		}
		leaf, named, err := devcert.Verify(chain, roots, time.Now())
		if err != nil || named != id {
			s.problem("unit %s has a certificate for %s: %v", id.Short(), named.Short(), err)
			continue
		}
		serials[leaf.SerialNumber.String()] = true
		keys[string(leaf.RawSubjectPublicKeyInfo)] = true
		chains[id] = chain[0]
		if _, err := os.Stat(filepath.Join(filepath.Dir(u.dir), "batch-token")); !errors.Is(err, os.ErrNotExist) {
			s.problem("unit %s still has the right to claim", id.Short())
		}
	}
	r.Identities = min(len(chains), len(serials), len(keys))
	if r.Identities != s.Units {
		s.problem("%d distinct identities, %d keys and %d certificates, want %d of each", len(chains), len(keys), len(serials), s.Units)
	}
	if s.station == "" {
		return nil
	}
	c, err := Connect(ctx, s.station)
	if err != nil {
		return err
	}
	defer c.Close()
	r.Records = 0
	err = c.Units(ctx, func(u Unit) error {
		r.Records++
		if leaf, ok := chains[u.ID]; !ok || u.Confirmed.IsZero() || len(u.Chain) == 0 || !bytes.Equal(leaf, u.Chain[0]) {
			r.Orphans++
			s.problem("the station has an orphan: %s, on the line %v, confirmed %v", u.ID.Short(), ok, !u.Confirmed.IsZero())
		}
		return nil
	})
	if err != nil {
		return err
	}
	if r.Records != s.Units {
		s.problem("the station has %d units, want %d", r.Records, s.Units)
	}
	batches, err := c.Batches(ctx)
	if err != nil {
		return err
	}
	for _, b := range batches {
		if b.Claimed != s.Units || b.Confirmed != s.Units {
			s.problem("%s: %d claimed and %d confirmed, want %d", b.Name, b.Claimed, b.Confirmed, s.Units)
		}
	}
	conflicts, err := c.Conflicts(ctx)
	if err != nil {
		return err
	}
	for _, x := range conflicts {
		if !s.rivals[x.ID] {
			s.problem("the station shows a conflict of %s, which had no rival", x.ID.Short())
		}
		delete(s.rivals, x.ID)
	}
	for id := range s.rivals {
		s.problem("the station shows no conflict of %s, which had a rival", id.Short())
	}
	// The batch is used up: one more is too many.
	cfg, err := s.newBoard("one-too-many", simBoard("one unit too many"))
	if err != nil {
		return err
	}
	s.expect(ctx, cfg, provisioning.ReasonToken, "one more unit than the batch has")
	return nil
}

// Text is the result for people.
func (r SimResult) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d units: %d distinct identities, in %.1f s (%d per hour), %d runs of the device's code\n", r.Units, r.Identities, r.Seconds, r.PerHour, r.Runs)
	if r.Records >= 0 {
		fmt.Fprintf(&b, "station: %d records, %d orphans, restarted %d times\n", r.Records, r.Orphans, r.Restarts)
	}
	var kinds []string
	for kind, n := range r.Faults {
		if n > 0 {
			kinds = append(kinds, fmt.Sprintf("%d × %s", n, kind))
		}
	}
	slices.Sort(kinds)
	if len(kinds) > 0 {
		fmt.Fprintf(&b, "faults: %s\n", strings.Join(kinds, ", "))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "PROBLEM: %s\n", p)
	}
	if len(r.Problems) == 0 {
		b.WriteString("the line is good\n")
	}
	return b.String()
}
