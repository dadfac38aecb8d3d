package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// How long an optional part that failed waits before it is tried again: an interface or a
// port may come back.
const (
	retryFirst = 5 * time.Second
	retryMost  = 5 * time.Minute
)

// states tells how the optional parts are, by name.
type states struct {
	mu sync.Mutex
	m  map[string]string // guarded by mu
}

func (s *states) set(name, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]string{}
	}
	s.m[name] = state
}

// get is "off" for a part that was never started.
func (s *states) get(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, ok := s.m[name]; ok {
		return st
	}
	return "off"
}

// optional runs a part that the gateway can do without, again and again until ctx is done:
// its failures are logged at their start and change, shown in the status and end nothing else.
func optional(ctx context.Context, log *slog.Logger, st *states, name string, run func(context.Context) error) {
	wait := retryFirst
	told := ""
	for ctx.Err() == nil {
		st.set(name, "on")
		began := time.Now()
		err := run(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMost {
			wait, told = retryFirst, ""
		}
		text := "ended"
		if err != nil {
			text = err.Error()
		}
		st.set(name, "failing: "+text)
		if text != told {
			log.Warn("a part failed, the gateway goes on without it", "part", name, "err", text, "retry_in", wait)
			told = text
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
		wait = min(2*wait, retryMost)
	}
}
