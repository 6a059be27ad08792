package network

import (
	"cmp"
	"slices"
)

// The series of automatic metrics, as Windows Server has them.
const (
	metricCluster = 1000  // enabled for the cluster, no default gateway
	metricGateway = 10000 // with a default gateway; then those with role none
	metricStep    = 100
)

// giveMetrics gives every network without a metric of its own one of the series, in place: the
// faster link first, then by name.
func giveMetrics(networks []Network) {
	var auto []*Network
	for i := range networks {
		if !networks[i].Manual {
			auto = append(auto, &networks[i])
		}
	}
	slices.SortFunc(auto, func(a, b *Network) int {
		return cmp.Or(cmp.Compare(band(a), band(b)), compareRank(*a, *b))
	})
	next := [...]uint32{metricCluster, metricGateway}
	for _, n := range auto {
		series := min(band(n), 1)
		n.Metric = next[series]
		next[series] += metricStep
	}
}

// band is 0 for the first series, 1 and 2 for the two parts of the second.
func band(n *Network) int {
	switch {
	case !n.Role.Enabled():
		return 2
	case n.Gateway:
		return 1
	}
	return 0
}
