// Package metrics turns the relay's counters into Prometheus' text form and serves them
// on a listener of their own. The parts count in plain atomics and know nothing of it.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const prefix = "cloudrelay_"

// Set is the metrics of one relay.
type Set struct {
	reg     *prometheus.Registry
	classes [6]prometheus.Counter // answers by hundreds of the status; 0: none
	head    prometheus.Histogram
}

// New returns a Set with the metrics of the process and the Go runtime, and those of
// Observe.
func New() *Set {
	s := &Set{reg: prometheus.NewRegistry()}
	s.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "requests_total", Help: "Answers to clients, by class of the status.",
	}, []string{"code"})
	s.head = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: prefix + "request_head_seconds", Help: "Time from the request to the head of its answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
	s.reg.MustRegister(requests, s.head)
	for i := 1; i < len(s.classes); i++ {
		s.classes[i] = requests.WithLabelValues(strconv.Itoa(i) + "xx")
	}
	return s
}

// Observe counts one answer; took is the time to its head.
func (s *Set) Observe(status int, took time.Duration) {
	if i := status / 100; i > 0 && i < len(s.classes) {
		s.classes[i].Inc()
	}
	s.head.Observe(took.Seconds())
}

// Gauge adds a value that goes up and down, read at each scrape. Labels come in pairs.
func (s *Set) Gauge(name, help string, read func() float64, labels ...string) {
	s.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help, ConstLabels: pairs(labels)}, read))
}

// Counter adds a value that only rises, read at each scrape. Labels come in pairs.
func (s *Set) Counter(name, help string, read func() uint64, labels ...string) {
	s.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + name, Help: help, ConstLabels: pairs(labels)},
		func() float64 { return float64(read()) }))
}

func pairs(labels []string) prometheus.Labels {
	m := prometheus.Labels{}
	for i := 0; i+1 < len(labels); i += 2 {
		m[labels[i]] = labels[i+1]
	}
	return m
}

// Handler serves the text form.
func (s *Set) Handler() http.Handler {
	return promhttp.HandlerFor(s.reg, promhttp.HandlerOpts{Timeout: 10 * time.Second, MaxRequestsInFlight: 4})
}
