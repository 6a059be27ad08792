package netft

import (
	"fmt"
	"net/netip"
	"slices"

	"lunar/netft/detector"
	"lunar/netft/heartbeat"
	"lunar/netft/network"
)

// plan is what follows from the networks: over which interfaces and paths heartbeats go.
type plan struct {
	interfaces []heartbeat.Interface
	targets    []heartbeat.Target
	watched    []detector.Watched
	locals     map[detector.Path]netip.Addr
	names      map[uint16]string // of networks, by their number in heartbeats
	numbers    map[string]uint16
	mistakes   []string
}

// makePlan is for the node of that number. Networks that are not enabled for the cluster have no heartbeats.
func makePlan(number uint16, networks []network.Network, peers []Peer) plan {
	p := plan{locals: map[detector.Path]netip.Addr{}, names: map[uint16]string{}, numbers: map[string]uint16{}}
	for _, n := range networks {
		own, here := n.Member(number)
		if !n.Role.Enabled() || !here {
			continue
		}
		id := fold(n.ID())
		if other, taken := p.names[id]; taken {
			p.mistakes = append(p.mistakes, fmt.Sprintf("networks %s and %s get one number in heartbeats, so %s has none: rename it", other, n.Name, n.Name))
			continue
		}
		p.names[id], p.numbers[n.Name] = n.Name, id
		p.join(own.Interface, id, n, peers)
	}
	return p
}

// join adds the paths over one network.
func (p *plan) join(own network.Interface, id uint16, n network.Network, peers []Peer) {
	p.interfaces = append(p.interfaces, heartbeat.Interface{
		Index: own.Index, Name: own.Name, Network: id,
		IPv4: own.Address4().IsValid(), IPv6: !own.IPv6Disabled && own.Address6().IsValid(),
	})
	down := ""
	if !own.Running() {
		down = own.Name + " has no carrier"
		if !own.Up {
			down = own.Name + " is set down"
		}
	}
	for _, peer := range peers {
		member, there := n.Member(peer.Number)
		if !there {
			continue
		}
		for _, family := range []detector.Family{detector.IPv4, detector.IPv6} {
			local, remote := ends(own, member.Interface, family)
			if !local.IsValid() || !remote.IsValid() {
				continue
			}
			path := detector.Path{Peer: peer.Number, Network: id, Family: family}
			p.locals[path] = local
			p.targets = append(p.targets, heartbeat.Target{Path: path, Interface: own.Index, Remote: remote})
			p.watched = append(p.watched, detector.Watched{Path: path, Down: down})
		}
	}
}

// ends are the addresses of a path. By IPv6 these are the link-local ones where both have them: they stay when an
// interface is set down and up again.
func ends(own, peer network.Interface, family detector.Family) (local, remote netip.Addr) {
	if family == detector.IPv4 {
		return own.Address4(), peer.Address4()
	}
	if own.IPv6Disabled {
		return netip.Addr{}, netip.Addr{}
	}
	if a, b := own.LinkLocal(), peer.LinkLocal(); a.IsValid() && b.IsValid() {
		return a, b
	}
	return own.Address6(), peer.Address6()
}

// fold brings a network's number to the 16 bits of a heartbeat.
func fold(id uint32) uint16 { return max(1, uint16(id>>16)^uint16(id)) }

// newlyDown are the networks on which this node had a carrier and has none now. That its addresses are gone says so, too.
func newlyDown(before, now plan) []uint16 {
	works := map[uint16]bool{}
	for _, w := range now.watched {
		works[w.Network] = works[w.Network] || w.Down == ""
	}
	var down []uint16
	for _, w := range before.watched {
		if w.Down == "" && !works[w.Network] && !slices.Contains(down, w.Network) {
			down = append(down, w.Network)
		}
	}
	return down
}
