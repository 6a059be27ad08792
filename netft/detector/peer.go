package detector

import "time"

// peer is what is known of a node.
type peer struct {
	number       uint16
	since        time.Duration // watched
	seen, daemon time.Duration // the latest of all paths, also of those that are gone
	incarnation  uint64
	node         State // None until it is judged, Up or Lost
	daemonState  State // None or Unproven, Up, Lost
	paths        []*path
	networks     []networkState
}

type networkState struct {
	number uint16
	state  State
}

// index makes the list of networks anew, by the sorted paths; the states of those that stay are kept.
func (p *peer) index() {
	before := p.networks
	p.networks = nil
	for i, way := range p.paths {
		if i > 0 && p.paths[i-1].Network == way.Network {
			continue
		}
		n := networkState{number: way.Network}
		for _, b := range before {
			if b.number == n.number {
				n.state = b.state
			}
		}
		p.networks = append(p.networks, n)
	}
}

// best is the best state of the network's paths.
func (p *peer) best(network uint16) State {
	best := None
	for _, way := range p.paths {
		if way.Network == network {
			best = max(best, way.state)
		}
	}
	return best
}

// seenNow is the last sign of life on the paths that are watched now.
func (p *peer) seenNow() time.Duration {
	var seen time.Duration
	for _, way := range p.paths {
		if way.Down == "" {
			seen = max(seen, way.stamp.Seen)
		}
	}
	return seen
}

func (p *peer) anyLost() bool {
	for _, way := range p.paths {
		if way.state == Lost {
			return true
		}
	}
	return false
}
