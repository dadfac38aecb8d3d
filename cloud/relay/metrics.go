package relay

import (
	"net/http"
	"time"

	"github.com/cloudrest/cloudrest/cloud/internal/boltdb"
	"github.com/cloudrest/cloudrest/cloud/internal/devnode"
	"github.com/cloudrest/cloudrest/cloud/internal/front"
	"github.com/cloudrest/cloudrest/tether/httpcache/shared"
)

// describe names the parts' counters for Prometheus.
func (r *Relay) describe() {
	s := r.set
	node := func(f func(devnode.Stats) uint64) func() uint64 {
		return func() uint64 { return f(r.node.Stats()) }
	}
	store := func(f func(boltdb.Stats) uint64) func() uint64 {
		return func() uint64 { return f(r.db.Stats()) }
	}
	edge := func(f func(front.Stats) uint64) func() uint64 {
		return func() uint64 { return f(r.front.Stats()) }
	}
	s.Gauge("devices_online", "Devices whose tether is open and whose end answers.", func() float64 { return float64(r.node.Stats().Online) })
	s.Gauge("handshakes", "Tether handshakes under way.", func() float64 { return float64(r.node.Stats().Handshakes) })
	s.Gauge("queued_bytes", "Body bytes that wait for slow readers.", func() float64 { return float64(r.node.Stats().Queued) })
	s.Gauge("requests_in_flight", "Requests to devices under way, tunnels included.", func() float64 { return float64(r.front.Stats().InFlight) })
	s.Gauge("event_listeners", "Listeners to notifications.", func() float64 { return float64(r.front.Stats().Listeners) })
	s.Gauge("connections", "Connections of clients, and devices that shake hands.", func() float64 { return float64(r.gate.Conns()) })
	s.Gauge("store_queue_bytes", "Writes that wait for their transaction.", func() float64 { return float64(r.db.Stats().QueueBytes) })

	if r.cache != nil {
		cache := func(f func(shared.Stats) uint64) func() uint64 {
			return func() uint64 { return f(r.cache.Stats()) }
		}
		s.Gauge("cache_bytes", "Memory of stored answers.", func() float64 { return float64(r.cache.Stats().Bytes) })
		s.Gauge("cache_entries", "Stored answers.", func() float64 { return float64(r.cache.Stats().Entries) })
		for result, f := range map[string]func(shared.Stats) uint64{
			"hit":       func(c shared.Stats) uint64 { return c.Hits },
			"validated": func(c shared.Stats) uint64 { return c.Validated },
			"miss":      func(c shared.Stats) uint64 { return c.Misses },
		} {
			s.Counter("cache_requests_total", "GET and HEAD by how they were answered: from the store, from there after the device said that it holds, by the device.", cache(f), "result", result)
		}
		s.Counter("cache_saved_bytes_total", "Bytes of bodies that did not come over a tether.", cache(func(c shared.Stats) uint64 { return c.Saved }))
		s.Counter("cache_invalidated_total", "Stored answers dropped because of a write.", cache(func(c shared.Stats) uint64 { return c.Invalidated }))
		s.Counter("cache_evicted_total", "Stored answers dropped for want of room.", cache(func(c shared.Stats) uint64 { return c.Evictions }))
	}
	s.Counter("sessions_opened_total", "Tethers opened.", node(func(n devnode.Stats) uint64 { return n.Opened }))
	s.Counter("sessions_replaced_total", "Tethers replaced by a newer one of the same device.", node(func(n devnode.Stats) uint64 { return n.Replaced }))
	s.Counter("sessions_closed_total", "Tethers ended, whatever the reason.", node(func(n devnode.Stats) uint64 { return n.Lost }))
	s.Counter("sessions_silent_total", "Tethers ended because the device's end did not answer.", node(func(n devnode.Stats) uint64 { return n.Silent }))
	for reason, f := range map[string]func(devnode.Stats) uint64{
		"gate":      func(n devnode.Stats) uint64 { return n.RefusedGate },
		"auth":      func(n devnode.Stats) uint64 { return n.RefusedAuth },
		"unknown":   func(n devnode.Stats) uint64 { return n.RefusedUnknown },
		"full":      func(n devnode.Stats) uint64 { return n.RefusedFull },
		"throttled": func(n devnode.Stats) uint64 { return n.RefusedThrottled },
		"protocol":  func(n devnode.Stats) uint64 { return n.RefusedProtocol },

		"revoked":              func(n devnode.Stats) uint64 { return n.RefusedRevoked },
		"certificate_expired":  func(n devnode.Stats) uint64 { return n.CertExpired },
		"certificate_foreign":  func(n devnode.Stats) uint64 { return n.CertForeign },
		"certificate_missing":  func(n devnode.Stats) uint64 { return n.CertMissing },
		"certificate_mismatch": func(n devnode.Stats) uint64 { return n.CertMismatch },
	} {
		s.Counter("sessions_refused_total", "Devices turned away, by reason.", node(f), "reason", reason)
	}
	if r.roots != nil {
		s.Gauge("certificates_ending", "Connected devices whose certificate ends within 30 days.", func() float64 { return float64(r.node.EndingCertificates()) })
		s.Counter("certificate_renewals_total", "Certificates renewed over the tether, or not, by result.", node(func(n devnode.Stats) uint64 { return n.Renewed }), "result", "ok")
		s.Counter("certificate_renewals_total", "Certificates renewed over the tether, or not, by result.", node(func(n devnode.Stats) uint64 { return n.RenewFailed }), "result", "failed")
	}
	s.Counter("notifications_received_total", "Notifications that devices sent.", node(func(n devnode.Stats) uint64 { return n.Notified }))
	s.Counter("notifications_refused_total", "Notifications the store could not take; their devices send them again.", node(func(n devnode.Stats) uint64 { return n.Overloaded }))
	s.Counter("notifications_stored_total", "Notifications on disk.", store(func(d boltdb.Stats) uint64 { return d.Events }))
	s.Counter("notifications_duplicate_total", "Notifications that were on disk already.", store(func(d boltdb.Stats) uint64 { return d.Duplicates }))
	s.Counter("notifications_dropped_total", "Old notifications that left a full ring.", store(func(d boltdb.Stats) uint64 { return d.Dropped }))
	s.Counter("store_commits_total", "Transactions.", store(func(d boltdb.Stats) uint64 { return d.Commits }))
	s.Counter("store_failures_total", "Transactions that failed and were tried again.", store(func(d boltdb.Stats) uint64 { return d.Failures }))
	s.Counter("auth_failures_total", "Wrong operator tokens.", edge(func(f front.Stats) uint64 { return f.AuthFailures }))
	s.Counter("requests_over_limit_total", "Requests refused because too many were in flight.", edge(func(f front.Stats) uint64 { return f.OverLimit }))
	s.Counter("event_listeners_refused_total", "Listeners refused because there were too many.", edge(func(f front.Stats) uint64 { return f.ListenersDenied }))
	s.Counter("connections_refused_total", "Connections closed at the accept gate.", func() uint64 { return r.gate.Refused() })
}

// metricsServer serves /metrics, and the health checks for whoever cannot reach the
// other listener.
func (r *Relay) metricsServer() *http.Server {
	m := http.NewServeMux()
	m.Handle("GET /metrics", r.set.Handler())
	m.HandleFunc("GET /healthz", r.front.ServeHTTP)
	m.HandleFunc("GET /readyz", r.front.ServeHTTP)
	return &http.Server{Handler: m, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: 30 * time.Second, IdleTimeout: idleTimeout, MaxHeaderBytes: 8 << 10}
}
