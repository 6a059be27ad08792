package server

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"lunar/appliance/api"
)

// MaxLUNSeries bounds the LUNs that have series of their own; of more the first ones by target and number have.
const MaxLUNSeries = 20_000

// LUNStats are those of one LUN on this node.
type LUNStats struct {
	Target    string
	Number    uint16
	Image     string // VOLUME/PATH
	Size      int64
	Available bool
}

// InitiatorStats count an initiator's sessions on this node.
type InitiatorStats struct {
	Initiator, Target string // Target is empty for discovery
	Sessions          int
}

// ClusterStats are the cluster as this node sees it.
type ClusterStats struct {
	Nodes          []NodeStats
	Voters, Living int
	Leads          bool // this node leads the database
	Full           bool
}

// NodeStats are one member's.
type NodeStats struct {
	Name        string
	State       api.NodeState
	Coordinates int
}

// NetworkStats are one network's.
type NetworkStats struct {
	Name, Role string
	Metric     uint32
	State      api.NetworkState
	Members    []api.NetworkMember
}

// BackupStats are one backup's that this node serves.
type BackupStats struct {
	Volume string
	Age    float64 // seconds
	Read   int64   // bytes that were served
}

// WebStats are the console's.
type WebStats struct {
	Sessions      int
	SignInsFailed uint64
}

var (
	volumeChief   = desc("volume_coordinator", "1 while this node coordinates the volume.", "volume")
	volumeEpoch   = desc("volume_epoch", "Number of the coordinator's term that this node knows.", "volume")
	lunAvailable  = desc("lun_available", "1 while the LUN's image can be used on this node.", "target", "lun", "image")
	lunSize       = desc("lun_size_bytes", "Size of the LUN.", "target", "lun", "image")
	initiators    = desc("iscsi_initiator_sessions", "Sessions of an initiator; without a target: discovery.", "initiator", "target")
	clusterNode   = desc("cluster_node_up", "1 while the member is up, as this node sees it.", "member", "state")
	clusterChief  = desc("cluster_node_coordinates", "Volumes that the member coordinates.", "member")
	clusterVoters = desc("cluster_voters", "Members that vote in the cluster's database.")
	clusterLiving = desc("cluster_voters_living", "Of these, members that answer.")
	clusterLeads  = desc("cluster_leader", "1 while this node leads the cluster's database.")
	clusterFull   = desc("cluster_database_full", "1 while the cluster's database refuses to grow.")
	networkState  = desc("network_state", "1 for the state that the network is in, as this node sees it.", "network", "state")
	networkMetric = desc("network_metric", "The network's metric; the lowest that is up carries the cluster's traffic.", "network", "role")
	networkLink   = desc("network_interface_up", "1 while the member's interface on the network has a carrier.", "network", "member", "interface")
	backupAge     = desc("backup_age_seconds", "Time since the backup that this node serves was begun.", "volume")
	backupRead    = desc("backup_read_bytes", "Bytes that the backup that this node serves has given out.", "volume")
	events        = desc("events_total", "Events that this node recorded in the cluster's log, by kind.", "kind")
	fencings      = desc("fencings_total", "Nodes that this node tried to fence.", "outcome")
	fencingTime   = desc("fencing_seconds_total", "Time that proven fencings took, in all.")
	repairs       = desc("repairs", "Volumes that this node checks or repairs now.")
	webSessions   = desc("web_sessions", "Browsers that are signed in at this node's console.")
	webFailures   = desc("web_sign_in_failures_total", "Sign-ins that were refused.")
	stateDescs    = []*prometheus.Desc{
		volumeChief, volumeEpoch, lunAvailable, lunSize, initiators, clusterNode, clusterChief, clusterVoters, clusterLiving, clusterLeads, clusterFull,
		networkState, networkMetric, networkLink, backupAge, backupRead, events, fencings, fencingTime, repairs, webSessions, webFailures,
	}
	networkStates = []api.NetworkState{api.NetworkUp, api.NetworkPartitioned, api.NetworkDown, api.NetworkUnavailable}
)

// series sends metrics of one collection.
type series chan<- prometheus.Metric

func (ch series) gauge(d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (ch series) counter(d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

// collectState sends what is known of LUNs, initiators, cluster, networks, fencing, backups and repairs.
func collectState(out chan<- prometheus.Metric, s *Stats) {
	ch := series(out)
	for i := range s.EachLUN[:min(len(s.EachLUN), MaxLUNSeries)] {
		l := &s.EachLUN[i]
		number := strconv.Itoa(int(l.Number))
		ch.gauge(lunAvailable, truth(l.Available), l.Target, number, l.Image)
		ch.gauge(lunSize, float64(l.Size), l.Target, number, l.Image)
	}
	for _, i := range s.Initiators {
		ch.gauge(initiators, float64(i.Sessions), i.Initiator, i.Target)
	}
	for _, b := range s.Backups {
		ch.gauge(backupAge, b.Age, b.Volume)
		ch.gauge(backupRead, float64(b.Read), b.Volume)
	}
	for kind, n := range s.Events {
		ch.counter(events, float64(n), kind)
	}
	for _, outcome := range []string{"proven", "failed"} {
		ch.counter(fencings, float64(s.Fencings[outcome]), outcome)
	}
	ch.counter(fencingTime, s.FencingSeconds)
	ch.gauge(repairs, float64(s.Repairs))
	if s.Web != nil {
		ch.gauge(webSessions, float64(s.Web.Sessions))
		ch.counter(webFailures, float64(s.Web.SignInsFailed))
	}
	collectCluster(ch, s.Cluster)
	collectNetworks(ch, s.Networks)
}

func collectCluster(ch series, c *ClusterStats) {
	if c == nil {
		return
	}
	for _, n := range c.Nodes {
		ch.gauge(clusterNode, truth(n.State == api.NodeUp), n.Name, string(n.State))
		ch.gauge(clusterChief, float64(n.Coordinates), n.Name)
	}
	ch.gauge(clusterVoters, float64(c.Voters))
	ch.gauge(clusterLiving, float64(c.Living))
	ch.gauge(clusterLeads, truth(c.Leads))
	ch.gauge(clusterFull, truth(c.Full))
}

func collectNetworks(ch series, all []NetworkStats) {
	for i := range all {
		n := &all[i]
		for _, s := range networkStates {
			ch.gauge(networkState, truth(s == n.State), n.Name, string(s))
		}
		ch.gauge(networkMetric, float64(n.Metric), n.Name, n.Role)
		for _, m := range n.Members {
			ch.gauge(networkLink, truth(m.Up), n.Name, m.Node, m.Interface)
		}
	}
}
