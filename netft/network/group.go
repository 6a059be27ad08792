package network

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Group puts the nodes' interfaces into networks, names them by settings and gives them metrics.
// It changes nothing of what it is given, and its result does not depend on the order of either.
func Group(nodes []Node, settings []Setting) View {
	g := &grouping{}
	g.collect(nodes)
	g.segments = g.bySubnet()
	g.byLinkLocal()
	names := g.name(g.keep(settings))
	v := View{Networks: make([]Network, 0, len(g.segments)), Settings: names.settings}
	for i, s := range g.segments {
		v.Networks = append(v.Networks, s.network(names.of[i]))
		g.warnOfCells(names.of[i].Name, s)
	}
	slices.SortFunc(v.Networks, func(a, b Network) int { return compareNames(a.Name, b.Name) })
	giveMetrics(v.Networks)
	g.warnOfAddresses()
	g.warnOfNetworks(v.Networks)
	slices.SortFunc(g.warnings, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.Problem, b.Problem), cmp.Compare(a.Message, b.Message))
	})
	v.Warnings = g.warnings
	return v
}

// grouping is the work of one call of Group.
type grouping struct {
	nodes    []Node // by number, with the interfaces that count, by name
	segments []*segment
	warnings []Warning
}

func (g *grouping) warn(p Problem, networks []string, format string, args ...any) {
	g.warnings = append(g.warnings, Warning{Problem: p, Message: fmt.Sprintf(format, args...), Networks: networks})
}

// collect copies the nodes in order, without the interfaces that belong to no network.
func (g *grouping) collect(nodes []Node) {
	sorted := slices.Clone(nodes)
	slices.SortFunc(sorted, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Name, b.Name),
			cmp.Compare(fmt.Sprint(a.Interfaces), fmt.Sprint(b.Interfaces)))
	})
	for _, n := range sorted {
		if k := len(g.nodes); k > 0 && g.nodes[k-1].Number == n.Number {
			g.warn(ProblemSameNumber, nil, "nodes %s and %s both have the number %d: only %s is used",
				g.nodes[k-1].Name, n.Name, n.Number, g.nodes[k-1].Name)
			continue
		}
		n.Interfaces = slices.DeleteFunc(slices.Clone(n.Interfaces), func(i Interface) bool {
			return i.Name == "" || i.Name == ClusterInterface || len(i.subnets()) == 0 && !i.linkLocalOnly()
		})
		slices.SortFunc(n.Interfaces, func(a, b Interface) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Index, b.Index))
		})
		g.nodes = append(g.nodes, n)
	}
}

// warnOfAddresses names addresses that two nodes have, or that the kernel found on another machine.
func (g *grouping) warnOfAddresses() {
	owner := map[string]string{}
	for _, n := range g.nodes {
		for _, i := range n.Interfaces {
			g.warnOfDuplicates(owner, n, i)
		}
	}
}

func (g *grouping) warnOfDuplicates(owner map[string]string, n Node, i Interface) {
	for _, p := range i.Duplicates {
		g.warn(ProblemDuplicate, nil, "%s on %s of node %s is also the address of another machine, and the kernel does not "+
			"use it: change one of them", p.Addr(), i.Name, n.Name)
	}
	for _, p := range i.Addresses {
		a := p.Addr()
		if a.IsLinkLocalUnicast() {
			continue
		}
		if other, taken := owner[a.String()]; taken && other != n.Name {
			g.warn(ProblemDuplicate, nil, "nodes %s and %s both have the address %s: change one of them", other, n.Name, a)
		}
		owner[a.String()] = n.Name
	}
}

// warnOfNetworks names what is odd about the networks as a whole.
func (g *grouping) warnOfNetworks(networks []Network) {
	for _, n := range networks {
		if low, high := mtus(n); low != high {
			g.warn(ProblemMTU, []string{n.Name}, "the MTUs on network %s go from %d to %d: give all its interfaces one MTU",
				n.Name, low, high)
		}
	}
	if len(networks) > 0 && !slices.ContainsFunc(networks, func(n Network) bool { return n.Role.Enabled() }) {
		g.warn(ProblemNoNetwork, nil, "no network is enabled for the cluster: give one the role cluster with "+
			"'lunarctl network set NAME --role cluster'")
	}
	g.warnOfMetrics(networks)
}

// warnOfCells names nodes with more than one interface in a network.
func (g *grouping) warnOfCells(name string, s *segment) {
	for _, m := range s.members() {
		var others []string
		for _, c := range s.cells {
			if c.number == m.Number && c.iface.Name != m.Interface.Name {
				others = append(others, c.iface.Name)
			}
		}
		if len(others) > 0 {
			g.warn(ProblemTwoInOne, []string{name}, "node %s has more than one interface on network %s: %s is used, and %s not; bond "+
				"them, or put them into different subnets", m.Node, name, m.Interface.Name, strings.Join(others, ", "))
		}
	}
}

func (g *grouping) warnOfMetrics(networks []Network) {
	sorted := slices.DeleteFunc(slices.Clone(networks), func(n Network) bool { return !n.Role.Enabled() })
	slices.SortFunc(sorted, func(a, b Network) int { return cmp.Or(cmp.Compare(a.Metric, b.Metric), compareRank(a, b)) })
	for i := 1; i < len(sorted); i++ {
		a, b := sorted[i-1], sorted[i]
		if a.Metric != b.Metric {
			continue
		}
		g.warn(ProblemSameMetric, []string{a.Name, b.Name}, "networks %s and %s both have the metric %d: %s goes first, as a "+
			"metric set by hand goes before an automatic one, then the faster link, then the name; give one of them another metric",
			a.Name, b.Name, a.Metric, a.Name)
	}
}

func mtus(n Network) (low, high int) {
	for _, m := range n.Members {
		mtu := m.Interface.MTU
		if mtu == 0 {
			continue
		}
		high = max(high, mtu)
		if low == 0 || mtu < low {
			low = mtu
		}
	}
	return low, high
}
