package rig

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain lets this program be the servers that the tests start.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		Main("rig", Peers(), nil)
		return
	}
	os.Exit(m.Run())
}

func TestMedianAndRatio(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}} {
		if got := Median(c.v); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.v, got, c.want)
		}
	}
	if got := Ratio([]float64{2, 8, 4}, []float64{1, 2, 100}); got != 2 {
		t.Errorf("Ratio = %v, want 4/2", got)
	}
	if got := Ratio([]float64{2}, nil); got != 0 {
		t.Errorf("Ratio to nothing = %v, want 0", got)
	}
}

func TestTotalAddsServersBlockByBlock(t *testing.T) {
	s := Subject{Rate: []float64{1, 1}, Micros: [][]float64{{10, 20}, {1, 2}}}
	if got := s.Total(); len(got) != 2 || got[0] != 11 || got[1] != 22 {
		t.Errorf("Total = %v, want [11 22]", got)
	}
}

func TestGoalAndTable(t *testing.T) {
	var out strings.Builder
	r := Report{What: "w", Machine: "m", Head: []string{"server", "us"}, Lines: [][]string{{"a long name", "5"}, {"b", "123"}},
		Goals: []Goal{AtMost("x", 1.6, 1.6), AtMost("y", 0.35, 2)}}
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	want := "w; m\n  server        us\n  a long name    5\n  b            123\ngoal: x at most 1.6: 1.60, met\ngoal: y at most 0.35: 2.00, missed\n"
	if got := out.String(); got != want {
		t.Errorf("table:\n%q, want\n%q", got, want)
	}
}

func TestRunMeasuresServers(t *testing.T) {
	r, err := New("test", "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l := Load{Requests: 40, Blocks: 2, Conns: 2, Size: 100}
	origin, err := r.Origin(t.Context(), l.Size)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := r.ReverseProxy(t.Context(), origin)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Connect(t.Context(), Target{Addr: proxy.Addr, Roots: r.Roots}, l)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := &Subject{Name: "proxy", Servers: []*Server{proxy, origin}, Driver: d}
	switch err := Run(t.Context(), l, []*Subject{s}); {
	case err != nil && strings.Contains(err.Error(), "only read on Linux"):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	if len(s.Micros) != 2 || len(s.Micros[0]) != 2 || len(s.Micros[1]) != 2 || len(s.Rate) != 2 || len(s.Memory) != 2 {
		t.Fatalf("blocks = %v, rates %v, memory %v, want two of each", s.Micros, s.Rate, s.Memory)
	}
	for _, v := range append(s.Total(), s.Rate...) {
		if v <= 0 {
			t.Errorf("measured %v, want more than 0", v)
		}
	}
	if s.Memory[0].RSS < s.Memory[0].Anon || s.Memory[0].Anon < 1<<20 {
		t.Errorf("memory = %+v, want more than 1 MiB, most of it anonymous", s.Memory[0])
	}

	d.size++ // another answer than expected is an error, not a measurement
	err = d.Run(t.Context(), 1)
	if e, ok := errors.AsType[*StatusError](err); !ok || e.Status != 200 || e.Bytes != int64(l.Size) {
		t.Errorf("run = %v, want a StatusError with 200 and %d bytes", err, l.Size)
	}
}

func TestStartTellsWhatAServerSaid(t *testing.T) {
	r, err := New("test", "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var ready struct{}
	_, err = r.Logged(t.Context(), "sh", exec.Command("sh", "-c", "echo the port is taken >&2"), "ready", &ready)
	if err == nil || !strings.Contains(err.Error(), "the port is taken") {
		t.Errorf("start = %v, want what it said", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	s, err := r.Logged(ctx, "sleep", exec.Command("sleep", "600"), "ready", &ready)
	if s != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start = %v, %v, want the context's end", s, err)
	}
}

func TestParseMetrics(t *testing.T) {
	m, err := parseMetrics(strings.NewReader("# HELP a is a\n# TYPE a gauge\na 17\nb{code=\"2xx\"} 3\nc 1.5e+06\n"))
	if err != nil || len(m) != 2 || m["a"] != 17 || m["c"] != 1.5e6 {
		t.Errorf("parseMetrics = %v, %v, want a=17 and c=1.5e6", m, err)
	}
	if _, err := parseMetrics(strings.NewReader("a x\n")); err == nil {
		t.Error("parseMetrics took a value that is no number")
	}
}
