package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// segment is a network before it has a name: subnets, and each node's interfaces in them.
type segment struct {
	subnets []netip.Prefix // sorted; none with link-local addresses alone
	link    string         // the interfaces' name, with link-local addresses alone
	cells   []cell         // by node, then by interface name
}

// cell is one interface of one node.
type cell struct {
	number uint16
	node   string
	iface  Interface
}

func (c cell) same(o cell) bool { return c.number == o.number && c.iface.Name == o.iface.Name }

func compareCells(a, b cell) int {
	return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.iface.Name, b.iface.Name))
}

// bySubnet makes a segment of each subnet and joins those that are one network.
func (g *grouping) bySubnet() []*segment {
	of := map[netip.Prefix]*segment{}
	var subnets []netip.Prefix
	for _, n := range g.nodes {
		for _, i := range n.Interfaces {
			for _, s := range i.subnets() {
				if of[s] == nil {
					of[s] = &segment{subnets: []netip.Prefix{s}}
					subnets = append(subnets, s)
				}
				of[s].cells = append(of[s].cells, cell{n.Number, n.Name, i})
			}
		}
	}
	slices.SortFunc(subnets, compareSubnets)
	for _, p := range g.onOneInterface() {
		g.joinAlike(of, p)
	}
	for _, p := range overlapping(subnets) {
		g.joinOverlapping(of, p)
	}
	var out []*segment
	for _, s := range subnets {
		if !slices.Contains(out, of[s]) {
			out = append(out, of[s])
		}
	}
	return out
}

// pair is two subnets that look like one network, the lower first.
type pair struct{ s, t netip.Prefix }

func comparePairs(a, b pair) int {
	return cmp.Or(compareSubnets(a.s, b.s), compareSubnets(a.t, b.t))
}

// onOneInterface returns the pairs that some interface has both of, sorted, each once.
func (g *grouping) onOneInterface() []pair {
	var out []pair
	for _, n := range g.nodes {
		for _, i := range n.Interfaces {
			on := i.subnets()
			for k, s := range on {
				for _, t := range on[k+1:] {
					out = append(out, pair{s, t})
				}
			}
		}
	}
	slices.SortFunc(out, comparePairs)
	return slices.Compact(out)
}

// overlapping returns the pairs that share addresses.
func overlapping(subnets []netip.Prefix) []pair {
	var out []pair
	for i, s := range subnets {
		for _, t := range subnets[i+1:] {
			if s.Overlaps(t) {
				out = append(out, pair{s, t})
			}
		}
	}
	return out
}

func (g *grouping) joinAlike(of map[netip.Prefix]*segment, p pair) {
	a, b := of[p.s], of[p.t]
	if a == b {
		return
	}
	if refusal := apart(a, b); refusal != "" {
		g.warn(ProblemSplit, nil, "%s and %s are on one interface of some nodes, but %s: they are two networks; lay them out alike "+
			"on all nodes", p.s, p.t, refusal)
		return
	}
	join(of, a, b)
}

func (g *grouping) joinOverlapping(of map[netip.Prefix]*segment, p pair) {
	a, b := of[p.s], of[p.t]
	x, y := a.bearer(p.s), b.bearer(p.t)
	outcome := "they are taken as one network"
	if refusal := apart(a, b); a != b && refusal != "" {
		outcome = refusal + ", so they are two networks, and addresses in both are reached over the smaller subnet only"
	} else if a != b {
		join(of, a, b)
	}
	g.warn(ProblemOverlap, nil, "subnets %s (%s of node %s) and %s (%s of node %s) overlap: %s; give all nodes of a network "+
		"the same prefix length", p.s, x.iface.Name, x.node, p.t, y.iface.Name, y.node, outcome)
}

func join(of map[netip.Prefix]*segment, a, b *segment) {
	a.merge(b)
	for _, moved := range b.subnets {
		of[moved] = a
	}
}

// bearer is the first interface in the subnet.
func (s *segment) bearer(subnet netip.Prefix) cell {
	return s.cells[slices.IndexFunc(s.cells, func(c cell) bool { return slices.Contains(c.iface.subnets(), subnet) })]
}

// apart tells which node has the two on different interfaces only, "" when there is none.
func apart(a, b *segment) string {
	for _, x := range a.cells {
		var other *cell
		both := false
		for i, y := range b.cells {
			if y.number == x.number {
				other = &b.cells[i]
				both = both || slices.ContainsFunc(a.cells, y.same)
			}
		}
		if other != nil && !both {
			return fmt.Sprintf("node %s has them on %s and %s", x.node, x.iface.Name, other.iface.Name)
		}
	}
	return ""
}

func (s *segment) merge(o *segment) {
	s.subnets = append(s.subnets, o.subnets...)
	slices.SortFunc(s.subnets, compareSubnets)
	s.add(o.cells...)
}

func (s *segment) add(cells ...cell) {
	for _, c := range cells {
		if !slices.ContainsFunc(s.cells, c.same) {
			s.cells = append(s.cells, c)
		}
	}
	slices.SortFunc(s.cells, compareCells)
}

func (s *segment) has(number uint16) bool {
	return slices.ContainsFunc(s.cells, func(c cell) bool { return c.number == number })
}

// commonName returns the name that all its interfaces bear, "" when they differ.
func (s *segment) commonName() string {
	name := s.cells[0].iface.Name
	if slices.ContainsFunc(s.cells, func(c cell) bool { return c.iface.Name != name }) {
		return ""
	}
	return name
}

// byLinkLocal places the interfaces that have link-local addresses only, by their names.
func (g *grouping) byLinkLocal() {
	loose := map[string][]cell{}
	for _, n := range g.nodes {
		for _, i := range n.Interfaces {
			if i.linkLocalOnly() {
				loose[i.Name] = append(loose[i.Name], cell{n.Number, n.Name, i})
			}
		}
	}
	known := map[string][]*segment{}
	for _, s := range g.segments {
		known[s.commonName()] = append(known[s.commonName()], s)
	}
	names := make([]string, 0, len(loose))
	for name := range loose {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		left := loose[name]
		if in := known[name]; len(in) == 1 {
			left = in[0].takeIn(left)
		}
		if len(left) > 1 {
			g.segments = append(g.segments, &segment{link: name, cells: left})
		}
	}
}

// takeIn adds the interfaces of nodes that have none in it and returns the others.
func (s *segment) takeIn(cells []cell) []cell {
	var left []cell
	for _, c := range cells {
		if s.has(c.number) {
			left = append(left, c)
			continue
		}
		s.add(c)
	}
	return left
}

// network is the segment with its name and what the setting says.
func (s *segment) network(set Setting) Network {
	n := Network{Name: set.Name, Subnets: s.subnets}
	if set.Validate() == nil {
		n.Role, n.Manual = set.Role, set.Manual
	}
	if n.Manual {
		n.Metric = set.Metric
	}
	for _, c := range s.cells {
		n.Gateway = n.Gateway || c.iface.Gateway()
		if s.link != "" {
			n.Subnets = append(n.Subnets, linkLocalSubnets(c.iface)...)
		}
	}
	if s.link != "" {
		slices.SortFunc(n.Subnets, compareSubnets)
		n.Subnets = slices.Compact(n.Subnets)
	}
	n.Members = s.members()
	n.MTU, _ = mtus(n)
	for _, m := range n.Members {
		if v := m.Interface.Speed; v != 0 && (n.Speed == 0 || v < n.Speed) {
			n.Speed = v
		}
	}
	if n.Role == RoleAuto {
		n.Role = autoRole(n.Gateway)
	}
	return n
}

func linkLocalSubnets(i Interface) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range i.Addresses {
		if p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Masked())
		}
	}
	return out
}

func autoRole(gateway bool) Role {
	if gateway {
		return RoleClusterAndClient
	}
	return RoleCluster
}

// members takes one interface of each node: one that runs, then the fastest, then by name.
func (s *segment) members() []Member {
	sorted := slices.Clone(s.cells)
	slices.SortFunc(sorted, func(a, b cell) int {
		return cmp.Or(cmp.Compare(a.number, b.number), compareBool(b.iface.Running(), a.iface.Running()),
			cmp.Compare(b.iface.Speed, a.iface.Speed), compareNames(a.iface.Name, b.iface.Name))
	})
	var out []Member
	for _, c := range sorted {
		if len(out) == 0 || out[len(out)-1].Number != c.number {
			out = append(out, Member{Number: c.number, Node: c.node, Interface: c.iface})
		}
	}
	return out
}
