package network

import (
	"cmp"
	"net/netip"
	"slices"
)

// Path is a way between two nodes: one network, with the interface of each.
type Path struct {
	Network       string
	Local, Remote Member
	// Metric is the sum of what the network costs each of the two. Both ends of a host route lie in
	// one network, so it is twice the network's.
	Metric uint64
}

// Choice is what two nodes talk over.
type Choice struct {
	// Cluster carries cluster and volume traffic: the path with the lowest metric.
	Cluster Path
	// Migration are the paths for live migration, best first: from the second lowest metric on, and
	// the cluster's own last. Never empty.
	Migration []Path
}

// Paths returns every way between two nodes over networks that are enabled for the cluster, the
// lowest metric first. It does not ask whether they work. None when local is peer.
func Paths(networks []Network, local, peer uint16) []Path {
	var out []Path
	for _, n := range networks {
		a, hasA := n.Member(local)
		b, hasB := n.Member(peer)
		if local == peer || !hasA || !hasB || !n.Role.Enabled() {
			continue
		}
		out = append(out, Path{Network: n.Name, Local: a, Remote: b, Metric: 2 * uint64(n.Metric)})
	}
	byRank := make(map[string]Network, len(networks))
	for _, n := range networks {
		byRank[n.Name] = n
	}
	slices.SortFunc(out, func(a, b Path) int {
		return cmp.Or(cmp.Compare(a.Metric, b.Metric), compareRank(byRank[a.Network], byRank[b.Network]))
	})
	return out
}

// Choose picks the network for two nodes among those over which passes says that heartbeats get
// through. It returns false when there is none: the caller then leaves its route as it is.
func Choose(networks []Network, local, peer uint16, passes func(network string) bool) (Choice, bool) {
	paths := slices.DeleteFunc(Paths(networks, local, peer), func(p Path) bool { return !passes(p.Network) })
	if len(paths) == 0 {
		return Choice{}, false
	}
	return Choice{Cluster: paths[0], Migration: append(slices.Clone(paths[1:]), paths[0])}, true
}

// NextHop is the peer's address on the network by which a host route reaches its cluster address,
// of the same family if it can be; false when the two have none in common. An IPv6 cluster address
// needs IPv6 on both interfaces, a link-local address is enough. An IPv4 one is reached over either
// family.
func (p Path) NextHop(cluster netip.Addr) (netip.Addr, bool) {
	local, remote := p.Local.Interface, p.Remote.Interface
	if cluster.Is4() && local.Address4().IsValid() && remote.Address4().IsValid() {
		return remote.Address4(), true
	}
	if local.IPv6Disabled || !local.Address6().IsValid() {
		return netip.Addr{}, false
	}
	if a := remote.LinkLocal(); a.IsValid() {
		return a, true
	}
	return remote.Address6(), remote.Address6().IsValid()
}

// compareRank orders networks of one metric: set by hand before automatic, then the faster, then by name.
func compareRank(a, b Network) int {
	return cmp.Or(compareBool(b.Manual, a.Manual), cmp.Compare(b.Speed, a.Speed), compareNames(a.Name, b.Name))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
