package rig

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// Memory is what a process holds, in bytes.
type Memory struct {
	RSS  int64 // resident
	Anon int64 // of that, without pages of files: the programs themselves, mapped databases
}

// Load is what clients do.
type Load struct {
	Requests int // of one block
	Blocks   int // for each subject, interleaved
	Conns    int // at once, one request at a time on each
	Size     int // bytes of an answer's body
}

// Subject is one way that requests go, through one or more servers under measurement.
type Subject struct {
	Name    string
	Servers []*Server
	Driver  *Driver

	Micros [][]float64 // for each server: processor time per request in microseconds, by block
	Rate   []float64   // requests a second, by block
	Memory []Memory    // for each server, at the end
}

// Total is the processor time of all servers per request in microseconds, by block.
func (s *Subject) Total() []float64 {
	sum := make([]float64, len(s.Rate))
	for _, list := range s.Micros {
		for i, v := range list {
			sum[i] += v
		}
	}
	return sum
}

// Run warms every subject up with a quarter of a block, then measures block by block.
func Run(ctx context.Context, l Load, subjects []*Subject) error {
	for _, s := range subjects {
		s.Micros, s.Rate, s.Memory = make([][]float64, len(s.Servers)), nil, nil
		if err := s.Driver.Run(ctx, max(1, l.Requests/4)); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	for range l.Blocks {
		for _, s := range subjects {
			if err := s.block(ctx, l.Requests); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
		}
	}
	for _, s := range subjects {
		for _, server := range s.Servers {
			s.Memory = append(s.Memory, Resident(server.PID))
		}
	}
	return nil
}

func (s *Subject) block(ctx context.Context, n int) error {
	used := make([]time.Duration, len(s.Servers))
	read := func(sign time.Duration) error {
		for i, server := range s.Servers {
			t, err := CPU(server.PID)
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", server.Name, err, server.Said())
			}
			used[i] += sign * t
		}
		return nil
	}
	if err := read(-1); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.Driver.Run(ctx, n); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := read(+1); err != nil {
		return err
	}
	for i, t := range used {
		s.Micros[i] = append(s.Micros[i], float64(t.Nanoseconds())/1e3/float64(n))
	}
	s.Rate = append(s.Rate, float64(n)/took.Seconds())
	return nil
}

// Find returns the subject of that name, or nil.
func Find(subjects []*Subject, name string) *Subject {
	for _, s := range subjects {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Median of v; 0 for none.
func Median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	switch n := len(v); {
	case n == 0:
		return 0
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// Ratio is that of the medians; 0 if there is nothing to compare with.
func Ratio(v, base []float64) float64 {
	if m := Median(base); m > 0 {
		return Median(v) / m
	}
	return 0
}

// Machine is what a table says of where it was made.
func Machine() string { return fmt.Sprintf("%d cores %s", runtime.NumCPU(), runtime.GOARCH) }
