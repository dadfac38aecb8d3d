package factory

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// stationEnv makes the test's program a station, for simulated lines.
const stationEnv = "FACTORY_TEST_STATION"

func TestMain(m *testing.M) {
	if os.Getenv(stationEnv) == "" {
		os.Exit(m.Run())
	}
	// serve --listen ADDR --state-dir DIR
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	s, err := Open(Config{Listen: os.Args[len(os.Args)-3], Dir: os.Args[len(os.Args)-1], Rate: 100_000})
	if err == nil {
		err = s.Run(ctx)
	}
	stop()
	if err != nil {
		io.WriteString(os.Stderr, err.Error()+"\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// The line of the issue: 500 units with faults, and not one identity too many or too few.
func TestSimulatedLine(t *testing.T) {
	units := 500
	if testing.Short() {
		units = 50
	}
	t.Setenv(stationEnv, "1")
	var told atomic.Int64
	r, err := Simulate(t.Context(), SimConfig{
		Units: units, Parallel: 8, Faults: 0.2, Station: []string{os.Args[0], "serve"}, Dir: stateDir(t),
		Progress: func(int, int) { told.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + r.Text())
	if r.Identities != units || r.Records != units || r.Orphans != 0 || len(r.Problems) > 0 || told.Load() != int64(units) {
		t.Errorf("%d units, %d identities, %d records, %d orphans, %d told, problems %q", units, r.Identities, r.Records, r.Orphans, told.Load(), r.Problems)
	}
	if r.Restarts != restarts {
		t.Errorf("the station was restarted %d times, want %d", r.Restarts, restarts)
	}
	if !testing.Short() {
		for _, kind := range []string{"service not ready", "device restarted", "two processes on one device", "same UID, another key", "copied flash",
			"cut before the station", "cut within a request", "answer lost"} {
			if r.Faults[kind] == 0 {
				t.Errorf("no fault %q in %d units: the simulation shows less than it says", kind, units)
			}
		}
	}
}

// A simulation must be able to fail: here all units are to share one right to claim too few.
func TestSimulationFinds(t *testing.T) {
	r := start(t, Config{})
	c, err := Connect(t.Context(), r.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, token, err := c.NewBatch(t.Context(), "too small", 3, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	file, _ := r.Authority()
	cfg := SimConfig{Units: 4, Parallel: 2, URL: testURL(t, r.url), CA: file, Token: token, Dir: t.TempDir()}
	res, err := Simulate(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if res.Identities != 3 || len(res.Problems) == 0 || res.Records != -1 {
		t.Errorf("%+v, want 3 identities and problems", res)
	}
	if st, err := c.State(t.Context()); err != nil || st.Failing != 1 || st.Troubles[0].Reason != provisioning.ReasonToken {
		t.Errorf("the operator sees %+v, %v", st.Troubles, err)
	}
	for _, bad := range []SimConfig{{}, {Units: 1, Parallel: 1}, {Units: 1, Parallel: 1, Faults: 2, Station: []string{"x"}}, {Units: MaxUnits + 1, Parallel: 1, Station: []string{"x"}}} {
		if _, err := Simulate(t.Context(), bad); err == nil {
			t.Errorf("taken: %+v", bad)
		}
	}
	if _, err := Simulate(t.Context(), SimConfig{Units: 1, Parallel: 1, Station: []string{"/bin/false"}, Dir: t.TempDir()}); err == nil && !errors.Is(err, context.Canceled) {
		t.Error("a station that does not come up is no error")
	}
}

// Two stations at once, each with its own store and one authority: a unit that turned from
// one to the other in the middle has one identity, and one key at both.
func TestTwoStations(t *testing.T) {
	first := start(t, Config{})
	ca := filepath.Join(first.cfg.Dir, keyFile)
	second := start(t, Config{CACert: ca, CAKey: ca})
	tokens := make([]string, 2)
	for i, r := range []*running{first, second} {
		c, err := Connect(t.Context(), r.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, tokens[i], err = c.NewBatch(t.Context(), "", 1, time.Hour); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	file, _ := first.Authority()
	s := &simulation{SimConfig: SimConfig{CA: file, Token: tokens[0]}, dir: t.TempDir(), faults: map[string]int{}, url: testURL(t, first.url)}
	cfg, err := s.newBoard("unit", simBoard("a unit that moves"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cfg.Progress = func(step gateway.ProvisionStep) {
		if step == gateway.ProvisionStore { // claimed, but not confirmed
			cancel(errPlug)
		}
	}
	if _, err := gateway.Provision(ctx, cfg); !errors.Is(err, errPlug) {
		t.Fatal(err)
	}
	cfg.Progress, cfg.Station = nil, testURL(t, second.url)
	if err := os.WriteFile(cfg.TokenFile, []byte(tokens[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := gateway.Provision(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := first.store.Unit(res.Device)
	b, errB := second.store.Unit(res.Device)
	if errA != nil || errB != nil || string(a.Key) != string(b.Key) || b.Confirmed.IsZero() || b.Serial != res.Serial {
		t.Errorf("first %v %v, second %v %v, one key %v", a.Confirmed, errA, b.Confirmed, errB, string(a.Key) == string(b.Key))
	}
}

func testURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
