package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"lunar/appliance/api"
)

// Stats is a snapshot for the metrics; what ends in Total counts since the start.
type Stats struct {
	Volumes []VolumeStats

	Sessions, Connections                          int // full feature phase; those that log in included
	ConnectionsTotal, RefusedTotal                 uint64
	LoginsTotal, LoginFailuresTotal, RejectsTotal  uint64
	CommandsTotal, ReadBytesTotal, WriteBytesTotal uint64 // as initiators see reads and writes
	Targets, LUNs, LUNsUnavailable                 int

	PoolBuffers int // handed out
	PoolBytes   int64
	Lanes       int
	Jobs        int
	DatabaseUp  bool // the cluster database answers

	Heartbeats *HeartbeatStats // nil: the node is in no cluster

	Commands       *CommandStats // nil: commands are not timed
	EachLUN        []LUNStats    // by target and number
	Initiators     []InitiatorStats
	Cluster        *ClusterStats  // nil: the node is in no cluster, or nothing is known
	Networks       []NetworkStats // likewise
	Backups        []BackupStats
	Repairs        int
	Events         map[string]uint64 // by kind
	Fencings       map[string]uint64 // by outcome: proven, failed
	FencingSeconds float64           // of the proven ones, in all
	Web            *WebStats         // nil: there is no console
}

// VolumeStats are one volume's numbers on this node.
type VolumeStats struct {
	Name       string
	State      api.State
	Size, Free int64 // bytes, 0 while unavailable
	Images     int   // open
	Waiting    int64 // I/Os that wait for a change of the file system

	Coordinates bool   // this node coordinates it
	Epoch       uint64 // of the coordinator's term that this node knows
	api.Counters
}

// collector reads a snapshot at each scrape, so that the data path counts in its own way.
type collector struct{ stats func() Stats }

// scalar is a metric without labels.
type scalar struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Stats) float64
}

func gauge(name, help string, value func(*Stats) float64) scalar {
	return scalar{desc(name, help), prometheus.GaugeValue, value}
}

func counter(name, help string, value func(*Stats) uint64) scalar {
	return scalar{desc(name, help), prometheus.CounterValue, func(s *Stats) float64 { return float64(value(s)) }}
}

var scalars = []scalar{
	gauge("iscsi_sessions", "iSCSI sessions that are logged in.", func(s *Stats) float64 { return float64(s.Sessions) }),
	gauge("iscsi_connections", "iSCSI connections, those that log in included.", func(s *Stats) float64 { return float64(s.Connections) }),
	counter("iscsi_connections_total", "iSCSI connections that were accepted.", func(s *Stats) uint64 { return s.ConnectionsTotal }),
	counter("iscsi_connections_refused_total", "Connections beyond iscsi.max_connections or iscsi.max_pending.", func(s *Stats) uint64 { return s.RefusedTotal }),
	counter("iscsi_logins_total", "Logins that succeeded.", func(s *Stats) uint64 { return s.LoginsTotal }),
	counter("iscsi_login_failures_total", "Logins that were refused, for CHAP or an allow-list too.", func(s *Stats) uint64 { return s.LoginFailuresTotal }),
	counter("iscsi_rejects_total", "PDUs that were answered with Reject.", func(s *Stats) uint64 { return s.RejectsTotal }),
	counter("iscsi_commands_total", "SCSI commands.", func(s *Stats) uint64 { return s.CommandsTotal }),
	counter("iscsi_read_bytes_total", "Bytes that initiators read.", func(s *Stats) uint64 { return s.ReadBytesTotal }),
	counter("iscsi_written_bytes_total", "Bytes that initiators wrote.", func(s *Stats) uint64 { return s.WriteBytesTotal }),
	gauge("iscsi_targets", "iSCSI targets that are offered.", func(s *Stats) float64 { return float64(s.Targets) }),
	gauge("iscsi_luns", "LUNs that are mapped.", func(s *Stats) float64 { return float64(s.LUNs) }),
	gauge("iscsi_luns_unavailable", "LUNs whose image or volume is not available.", func(s *Stats) float64 { return float64(s.LUNsUnavailable) }),
	gauge("buffer_pool_buffers_in_use", "Buffers of the I/O pool that are handed out.", func(s *Stats) float64 { return float64(s.PoolBuffers) }),
	gauge("buffer_pool_size_bytes", "Size of the I/O buffer pool.", func(s *Stats) float64 { return float64(s.PoolBytes) }),
	gauge("lanes", "I/O threads, each with one io_uring.", func(s *Stats) float64 { return float64(s.Lanes) }),
	gauge("jobs", "Long operations that are under way.", func(s *Stats) float64 { return float64(s.Jobs) }),
	gauge("cluster_database_up", "1 while the cluster database answers; without it I/O goes on and changes do not.",
		func(s *Stats) float64 { return truth(s.DatabaseUp) }),
}

var (
	volumeLabels = []string{"volume", "path", "operation"}
	volumeIOs    = desc("volume_ios_total", "I/Os on a volume: direct to the LUN, redirected through the coordinator, or metadata.", volumeLabels...)
	volumeBytes  = desc("volume_io_bytes_total", "Bytes of those I/Os.", volumeLabels...)
	volumeState  = desc("volume_state", "1 for the state that the volume is in on this node.", "volume", "state")
	volumeSize   = desc("volume_size_bytes", "Size of the volume's file system.", "volume")
	volumeFree   = desc("volume_free_bytes", "What the volume has left.", "volume")
	volumeImages = desc("volume_images_open", "Images that are open on this node.", "volume")
	volumeWaits  = desc("volume_ios_waiting", "I/Os that wait for a change of the file system.", "volume")
	states       = []api.State{api.Direct, api.Redirected, api.Paused, api.StateAbsent}
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for i := range scalars {
		ch <- scalars[i].desc
	}
	for _, d := range []*prometheus.Desc{volumeIOs, volumeBytes, volumeState, volumeSize, volumeFree, volumeImages, volumeWaits} {
		ch <- d
	}
	for _, d := range beatDescs {
		ch <- d
	}
	for _, d := range stateDescs {
		ch <- d
	}
	for _, d := range commandDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	for i := range scalars {
		ch <- prometheus.MustNewConstMetric(scalars[i].desc, scalars[i].kind, scalars[i].value(&s))
	}
	for i := range s.Volumes {
		collectIO(ch, &s.Volumes[i])
		collectVolume(ch, &s.Volumes[i])
	}
	collectHeartbeats(ch, s.Heartbeats)
	collectState(ch, &s)
	collectCommands(ch, s.Commands)
}

func collectIO(ch chan<- prometheus.Metric, v *VolumeStats) {
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
}

func collectVolume(ch chan<- prometheus.Metric, v *VolumeStats) {
	series(ch).gauge(volumeChief, truth(v.Coordinates), v.Name)
	series(ch).gauge(volumeEpoch, float64(v.Epoch), v.Name)
	for _, s := range states {
		ch <- prometheus.MustNewConstMetric(volumeState, prometheus.GaugeValue, truth(s == v.State), v.Name, string(s))
	}
	for _, g := range []struct {
		desc  *prometheus.Desc
		value int64
	}{{volumeSize, v.Size}, {volumeFree, v.Free}, {volumeImages, int64(v.Images)}, {volumeWaits, v.Waiting}} {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, float64(g.value), v.Name)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
