package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"lunar/appliance/api"
)

// HeartbeatStats are the numbers of heartbeats and of what was made of them.
type HeartbeatStats struct {
	Kernel    bool                // the kernel stamps them
	Paths     []api.HeartbeatPath // none: none are sent
	Refused   map[string]uint64   // datagrams of no path, by reason
	LateTicks uint64
	Verdicts  map[string]uint64 // by kind
}

var (
	pathLabels  = []string{"peer", "network", "family"}
	beatAge     = desc("heartbeat_age_seconds", "Time since the last sign of life on a path; absent if there was none.", pathLabels...)
	beatUp      = desc("heartbeat_path_up", "1 while heartbeats pass in both directions.", pathLabels...)
	beatRoute   = desc("heartbeat_path_route", "1 where the cluster's traffic to the peer goes.", pathLabels...)
	beatJitter  = desc("heartbeat_jitter_seconds", "How much the heartbeats' spacing varies.", pathLabels...)
	beatTotal   = desc("heartbeats_total", "Heartbeats by what became of them.", append([]string{"what"}, pathLabels...)...)
	beatRTT     = desc("heartbeat_rtt_seconds", "Round trips of heartbeats.", pathLabels...)
	beatRefused = desc("heartbeats_refused_total", "Datagrams to the heartbeats' port that are of no path.", "reason")
	beatLate    = desc("heartbeat_late_ticks_total", "Times that this machine stood still, or did not let lunard look at the heartbeats.")
	beatKernel  = desc("heartbeat_kernel", "1 if the kernel stamps heartbeats, 0 if the sockets do.")
	beatVerdict = desc("network_verdicts_total", "What was concluded from heartbeats, by kind.", "verdict")
	beatDescs   = []*prometheus.Desc{
		beatAge, beatUp, beatRoute, beatJitter, beatTotal, beatRTT, beatRefused, beatLate, beatKernel, beatVerdict,
	}
)

func collectHeartbeats(ch chan<- prometheus.Metric, h *HeartbeatStats) {
	if h == nil {
		return
	}
	for i := range h.Paths {
		collectPath(ch, &h.Paths[i])
	}
	for reason, n := range h.Refused {
		ch <- prometheus.MustNewConstMetric(beatRefused, prometheus.CounterValue, float64(n), reason)
	}
	for verdict, n := range h.Verdicts {
		ch <- prometheus.MustNewConstMetric(beatVerdict, prometheus.CounterValue, float64(n), verdict)
	}
	ch <- prometheus.MustNewConstMetric(beatLate, prometheus.CounterValue, float64(h.LateTicks))
	ch <- prometheus.MustNewConstMetric(beatKernel, prometheus.GaugeValue, truth(h.Kernel))
}

func collectPath(ch chan<- prometheus.Metric, p *api.HeartbeatPath) {
	labels := []string{p.Peer, p.Network, p.Family}
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if p.Last >= 0 {
		gauge(beatAge, p.Last.Seconds())
	}
	gauge(beatUp, truth(p.State == "up"))
	gauge(beatRoute, truth(p.Route))
	gauge(beatJitter, p.Jitter.Seconds())
	for _, c := range []struct {
		what string
		n    uint64
	}{
		{"sent", p.Sent}, {"received", p.Beats}, {"answered", p.Answers}, {"missing", p.Gaps}, {"reordered", p.Reordered},
		{"duplicate", p.Duplicates}, {"replayed", p.Replayed}, {"forged", p.Forged},
	} {
		ch <- prometheus.MustNewConstMetric(beatTotal, prometheus.CounterValue, float64(c.n), append([]string{c.what}, labels...)...)
	}
	count, sum, buckets := roundTrips(p)
	ch <- prometheus.MustNewConstHistogram(beatRTT, count, sum, buckets, labels...)
}

// The classes of round trips that metrics have: from 2^lowest ns; shorter ones are in the first. Each second one is told.
const lowest, step = 10, 2

// roundTrips makes a histogram; the sum takes the middle of each class, since the kernel keeps none.
func roundTrips(p *api.HeartbeatPath) (count uint64, sum float64, buckets map[float64]uint64) {
	buckets = map[float64]uint64{}
	for i, n := range p.RTT {
		count += uint64(n)
		edge := float64(uint64(1)<<(i+1)) / 1e9
		sum += float64(n) * edge * 3 / 4
		if i >= lowest && (i-lowest)%step == 0 {
			buckets[edge] = count
		}
	}
	return count, sum, buckets
}
