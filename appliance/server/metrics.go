package server

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"lunar/appliance/api"
)

const namespace = "lunar"

// scrapeLimit bounds the scrapes that run at once.
const scrapeLimit = 4

type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
}

func newMetrics(stats func() Stats, v api.Version) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "api", Name: "call_duration_seconds",
			Help:    "Time that control API calls took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}, []string{"call", "status"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the labels tell the build.",
		ConstLabels: prometheus.Labels{"version": v.Version, "commit": v.Commit, "go": v.Go, "node": v.Node},
	})
	info.Set(1)
	m.registry.MustRegister(m.calls, info, &collector{stats}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) observe(call string, status int, took time.Duration) {
	m.calls.WithLabelValues(call, strconv.Itoa(status)).Observe(took.Seconds())
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapeLimit, EnableOpenMetrics: true}))
	return mux
}
