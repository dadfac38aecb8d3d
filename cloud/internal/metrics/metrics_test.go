package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestText(t *testing.T) {
	s := New()
	s.Gauge("devices_online", "Devices.", func() float64 { return 7 })
	s.Counter("sessions_refused_total", "Refused.", func() uint64 { return 3 }, "reason", "auth")
	s.Counter("sessions_refused_total", "Refused.", func() uint64 { return 4 }, "reason", "unknown")
	s.Observe(204, time.Millisecond)
	s.Observe(503, time.Second)
	s.Observe(42, time.Second) // nonsense is not a class
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"cloudrelay_devices_online 7\n",
		`cloudrelay_sessions_refused_total{reason="auth"} 3`,
		`cloudrelay_sessions_refused_total{reason="unknown"} 4`,
		`cloudrelay_requests_total{code="2xx"} 1`,
		`cloudrelay_requests_total{code="5xx"} 1`,
		"cloudrelay_request_head_seconds_count 3",
		"process_open_fds", "go_goroutines",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the text lacks %q", want)
		}
	}
}
