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

// Stats is a snapshot for the metrics.
type Stats struct {
	Volumes     []VolumeStats
	Sessions    int // full feature phase
	PoolBuffers int // handed out
	PoolBytes   int64
	Lanes       int
	DatabaseUp  bool // the cluster database answers
	Targets     int
	LUNs        int
}

// VolumeStats are one volume's counters on this node.
type VolumeStats struct {
	Name  string
	State api.State
	api.Counters
}

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
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapeLimit}))
	return mux
}

// collector reads a snapshot at each scrape, so that the data path counts in its own way.
type collector struct{ stats func() Stats }

var (
	volumeLabels = []string{"volume", "path", "operation"}
	volumeIOs    = desc("volume_ios_total", "I/Os on a volume: direct to the LUN, redirected through the coordinator, or metadata.", volumeLabels...)
	volumeBytes  = desc("volume_io_bytes_total", "Bytes of those I/Os.", volumeLabels...)
	volumeState  = desc("volume_state", "1 for the state that the volume is in on this node.", "volume", "state")
	sessions     = desc("iscsi_sessions", "iSCSI sessions that are logged in.")
	targets      = desc("iscsi_targets", "iSCSI targets that are offered.")
	luns         = desc("iscsi_luns", "LUNs that are exported.")
	poolBuffers  = desc("buffer_pool_buffers_in_use", "Buffers of the I/O pool that are handed out.")
	poolBytes    = desc("buffer_pool_size_bytes", "Size of the I/O buffer pool.")
	databaseUp   = desc("cluster_database_up", "1 while the cluster database answers; I/O goes on without it, changes do not.")
	lanes        = desc("lanes", "I/O threads.")
	states       = []api.State{api.Direct, api.Redirected, api.Paused, api.StateAbsent}
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{volumeIOs, volumeBytes, volumeState, sessions, targets, luns, poolBuffers, poolBytes, lanes, databaseUp} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	gauges := []struct {
		desc  *prometheus.Desc
		value float64
	}{
		{sessions, float64(s.Sessions)}, {targets, float64(s.Targets)}, {luns, float64(s.LUNs)},
		{poolBuffers, float64(s.PoolBuffers)}, {poolBytes, float64(s.PoolBytes)}, {lanes, float64(s.Lanes)},
		{databaseUp, truth(s.DatabaseUp)},
	}
	for _, g := range gauges {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value)
	}
	for i := range s.Volumes {
		collectVolume(ch, &s.Volumes[i])
	}
}

func collectVolume(ch chan<- prometheus.Metric, v *VolumeStats) {
	rows := []struct {
		path, operation string
		api.Count
	}{
		{"direct", "read", v.DirectRead}, {"direct", "write", v.DirectWrite},
		{"redirected", "read", v.RedirectedRead}, {"redirected", "write", v.RedirectedWrite},
		{"metadata", "metadata", v.Metadata},
	}
	for _, r := range rows {
		ch <- prometheus.MustNewConstMetric(volumeIOs, prometheus.CounterValue, float64(r.IOs), v.Name, r.path, r.operation)
		ch <- prometheus.MustNewConstMetric(volumeBytes, prometheus.CounterValue, float64(r.Bytes), v.Name, r.path, r.operation)
	}
	for _, s := range states {
		ch <- prometheus.MustNewConstMetric(volumeState, prometheus.GaugeValue, truth(s == v.State), v.Name, string(s))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
