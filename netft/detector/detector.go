package detector

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Options are what New needs.
type Options struct {
	Profile Profile
	// Tick is how often Judge is called; 0 is the profile's.
	Tick time.Duration
}

// Detector judges. See the package comment for the caller's duties.
type Detector struct {
	profile Profile
	ear     ear
	paths   map[Path]*path
	peers   []*peer // by number
	known   map[uint16]*peer
	left    rule // left out by the simulation
	out     []Verdict
}

// rule is one that the simulation can leave out, to see that it finds out.
type rule uint16

const (
	ruleGrace      rule = 1 << iota // nothing gets worse within a period of a late tick
	ruleUnobserved                  // what nobody observed is no silence
	ruleDaemon                      // answers do not show that a daemon lives
	ruleBothWays                    // a path passes in both directions or not at all
	ruleHold                        // a path that was lost proves itself first
	ruleAllPaths                    // a node lives while one path does
	ruleBounded                     // grace ends though every tick is late
	ruleKeepSeen                    // a path that goes takes nothing off what was heard
)

func (d *Detector) holds(r rule) bool { return d.left&r == 0 }

// New returns a Detector that watches nobody yet.
func New(o Options) (*Detector, error) {
	if err := o.Profile.Validate(); err != nil {
		return nil, err
	}
	if o.Tick == 0 {
		o.Tick = o.Profile.Tick()
	}
	if o.Tick < 0 || o.Tick > o.Profile.Period {
		return nil, fmt.Errorf("%w: a tick of %v: give more than 0, at most the period, %v", ErrProfile, o.Tick, o.Profile.Period)
	}
	return &Detector{
		profile: o.Profile,
		ear: ear{
			period: o.Profile.Period, limit: o.Profile.Threshold(),
			late: o.Tick + o.Profile.Interval/2,
		},
		paths: map[Path]*path{}, known: map[uint16]*peer{},
	}, nil
}

// Watch replaces the peers and the paths to judge. What was known of those that stay is kept; a path whose peer is not
// among the peers is left out.
func (d *Detector) Watch(now time.Duration, peers []uint16, paths []Watched) {
	known := make(map[uint16]*peer, len(peers))
	d.peers = d.peers[:0]
	for _, number := range peers {
		p := d.known[number]
		if p == nil {
			p = &peer{number: number, since: now}
		}
		if known[number] == nil {
			p.paths, known[number] = nil, p
			d.peers = append(d.peers, p)
		}
	}
	slices.SortFunc(d.peers, func(a, b *peer) int { return cmp.Compare(a.number, b.number) })
	d.known = known
	if d.ear.last == 0 {
		d.ear.last = now
	}
	d.watchPaths(now, paths)
}

func (d *Detector) watchPaths(now time.Duration, paths []Watched) {
	before := d.paths
	d.paths = make(map[Path]*path, len(paths))
	for _, w := range paths {
		owner := d.known[w.Peer]
		if owner == nil || d.paths[w.Path] != nil {
			continue
		}
		p := before[w.Path]
		if p == nil {
			p = &path{stamp: Stamp{Path: w.Path}, since: now, state: Unproven}
		}
		p.Watched = w
		d.paths[w.Path] = p
		owner.paths = append(owner.paths, p)
	}
	for _, p := range d.peers {
		slices.SortFunc(p.paths, func(a, b *path) int {
			return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Family, b.Family))
		})
		p.index()
	}
}

// Judge takes the stamps as they are now and returns what changed, in the order in which it follows from each other.
// Stamps of paths that are not watched are ignored.
func (d *Detector) Judge(t Tick, stamps []Stamp) []Verdict {
	grace := d.ear.listen(t, d.holds(ruleBounded)) && d.holds(ruleGrace)
	for i := range stamps {
		if p := d.paths[stamps[i].Path]; p != nil {
			d.take(p, &stamps[i], t.Now)
		}
	}
	for _, g := range t.Gone {
		d.gone(g, t.Now)
	}
	for _, p := range d.peers {
		d.judge(p, t.Now, grace)
	}
	out := d.out
	d.out = nil
	return out
}

// take brings a stamp's news to the path and its peer.
func (d *Detector) take(p *path, s *Stamp, now time.Duration) {
	have := &p.stamp
	have.Seen, have.Heard = max(have.Seen, min(s.Seen, now)), max(have.Heard, min(s.Heard, now))
	have.Daemon, have.Gaps = max(have.Daemon, min(s.Daemon, now)), s.Gaps
	have.Incarnation = max(have.Incarnation, s.Incarnation)
	owner := d.known[p.Peer]
	owner.seen, owner.daemon = max(owner.seen, have.Seen), max(owner.daemon, have.Daemon)
	if !d.holds(ruleDaemon) {
		owner.daemon = owner.seen
	}
	if have.Incarnation > owner.incarnation {
		before := owner.incarnation
		owner.incarnation = have.Incarnation
		if before != 0 {
			d.say(Verdict{Kind: NodeRestarted, Path: Path{Peer: p.Peer}}, owner, now)
		}
	}
}

// gone takes a peer's word: its paths there are Lost until heartbeats come that it sent later. Half of what makes a path
// Suspect is enough for those that were under way.
func (d *Detector) gone(g Gone, now time.Duration) {
	if p := d.known[g.Peer]; p != nil {
		for _, way := range p.paths {
			if way.Network == g.Network {
				way.gone = now + d.profile.Leave()/2
			}
		}
	}
}

// judge brings a peer's paths, networks, node and daemon to their states, in this order.
func (d *Detector) judge(p *peer, now time.Duration, grace bool) {
	for _, way := range p.paths {
		d.judgePath(p, way, now, grace)
	}
	for i := range p.networks {
		d.judgeNetwork(p, &p.networks[i], now)
	}
	d.judgeNode(p, now, grace)
	d.judgeDaemon(p, now, grace)
}

func (d *Detector) judgeNetwork(p *peer, n *networkState, now time.Duration) {
	was := n.state
	n.state = p.best(n.number)
	switch {
	case n.state == Up && was != Up:
		d.say(Verdict{Kind: NetworkUp, Path: Path{Peer: p.number, Network: n.number}}, p, now)
	case n.state != Up && was == Up:
		d.say(Verdict{Kind: NetworkDown, Path: Path{Peer: p.number, Network: n.number}}, p, now)
	}
}

func (d *Detector) judgeNode(p *peer, now time.Duration, grace bool) {
	seen := p.seen
	if !d.holds(ruleKeepSeen) {
		seen = p.seenNow()
	}
	silence, unobserved := d.silence(max(seen, p.since), now)
	threshold := d.nodeThreshold(p)
	v := Verdict{Path: Path{Peer: p.number}, Silence: silence, Unobserved: unobserved, Threshold: threshold}
	silent := silence >= threshold
	if !d.holds(ruleAllPaths) {
		silent = silent || p.anyLost()
	}
	switch {
	case silent && p.node != Lost && !grace:
		p.node, v.Kind = Lost, NodeLost
	case !silent && seen != 0 && p.node != Up:
		p.node, v.Kind = Up, NodeAlive
	default:
		return
	}
	d.say(v, p, now)
}

func (d *Detector) judgeDaemon(p *peer, now time.Duration, grace bool) {
	if p.node != Up {
		p.daemonState = Unproven
		return
	}
	silence, unobserved := d.silence(max(p.daemon, p.since), now)
	threshold := d.profile.Threshold()
	v := Verdict{Path: Path{Peer: p.number}, Silence: silence, Unobserved: unobserved, Threshold: threshold}
	stalled := silence >= threshold
	if quiet, _ := d.silence(p.seen, now); stalled && quiet > d.profile.Leave() {
		return // the node may be dying
	}
	switch {
	case stalled && p.daemonState != Lost && !grace:
		p.daemonState, v.Kind = Lost, DaemonStalled
	case !stalled && p.daemon != 0 && p.daemonState != Up:
		p.daemonState, v.Kind = Up, DaemonAlive
	default:
		return
	}
	d.say(v, p, now)
}

// nodeThreshold is the longest of the peer's paths that may work.
func (d *Detector) nodeThreshold(p *peer) time.Duration {
	threshold := d.profile.Threshold()
	for _, way := range p.paths {
		if way.Down == "" {
			threshold = max(threshold, d.threshold(way))
		}
	}
	return threshold
}

func (d *Detector) threshold(p *path) time.Duration {
	if p.Routed {
		return d.profile.RoutedThreshold()
	}
	return d.profile.Threshold()
}

// silence is how much of the time from from to now was observed, and how much was not.
func (d *Detector) silence(from, now time.Duration) (silence, unobserved time.Duration) {
	return d.without(d.ear.unseen, from, now)
}

// unheard is silence for the answers to our heartbeats.
func (d *Detector) unheard(from, now time.Duration) (unheard, unobserved time.Duration) {
	return d.without(d.ear.unasked, from, now)
}

func (d *Detector) without(blind spans, from, now time.Duration) (observed, unobserved time.Duration) {
	raw := max(now-from, 0)
	if raw == 0 || !d.holds(ruleUnobserved) {
		return raw, 0
	}
	unobserved = blind.within(from, now)
	return raw - unobserved, unobserved
}

func (d *Detector) say(v Verdict, p *peer, now time.Duration) {
	v.At, v.Incarnation = now, p.incarnation
	v.Evidence = make([]Evidence, 0, len(p.paths))
	for _, way := range p.paths {
		e := Evidence{Stamp: way.stamp, State: way.state, Threshold: d.threshold(way), Down: way.Down}
		e.Silence, _ = d.silence(max(e.Seen, way.since), now)
		e.Unheard, _ = d.unheard(max(e.Heard, way.since), now)
		v.Evidence = append(v.Evidence, e)
	}
	d.out = append(d.out, v)
}

// Network is the best state of the network's paths to the peer.
func (d *Detector) Network(number, network uint16) State {
	if p := d.known[number]; p != nil {
		return p.best(network)
	}
	return None
}

// Path is the state of a path.
func (d *Detector) Path(p Path) State {
	if way := d.paths[p]; way != nil {
		return way.state
	}
	return None
}

// Peer is the health of a peer; Unknown also when it is not watched.
func (d *Detector) Peer(number uint16) Health {
	p := d.known[number]
	switch {
	case p == nil, p.node == None:
		return Unknown
	case p.node == Lost:
		return Dead
	case p.daemonState == Lost:
		return Stalled
	case p.daemonState == Up:
		return Healthy
	}
	return Unknown
}
