package netft

import (
	"context"
	"net/netip"
	"time"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/detector"
	"lunar/netft/heartbeat"
	"lunar/netft/network"
	"lunar/netft/route"
)

// maxWaiting bounds the verdicts that wait for the worker; the oldest go first.
const maxWaiting = 4096

// run does what verdicts and changes ask for, one after the other.
func (f *Fabric) run(ctx context.Context) {
	defer close(f.done)
	var retry <-chan time.Time // nil: nothing has to be tried again
	wait := pauseAfterError
	for {
		again := false
		select {
		case <-ctx.Done():
			return
		case <-f.kick:
		case <-retry:
			again = true
		}
		switch {
		case f.step(ctx, again):
			retry, wait = nil, pauseAfterError
		case retry == nil || again:
			retry, wait = time.After(wait), min(2*wait, longestPause)
		}
	}
}

// step returns false if something has to be tried again; again tells to try what failed.
func (f *Fabric) step(ctx context.Context, again bool) bool {
	ok := f.follow(again)
	verdicts := f.take()
	if !f.reroute() {
		ok = false
	}
	f.tell(ctx, verdicts)
	return ok
}

// follow makes networks and paths of the interfaces, peers and settings, if one of these changed.
func (f *Fabric) follow(again bool) bool {
	f.mu.Lock()
	changed := f.changed
	if !changed && (!again || !f.unset) {
		f.mu.Unlock()
		return !f.unset
	}
	f.changed = false
	nodes := []network.Node{{Number: f.o.Number, Name: f.o.Name, Interfaces: f.own}}
	peers := f.peers
	for _, p := range peers {
		nodes = append(nodes, network.Node{Number: p.Number, Name: p.Name, Interfaces: p.Interfaces})
	}
	settings, last := f.settings, f.plan
	f.mu.Unlock()

	view := network.Group(nodes, settings)
	p := makePlan(f.o.Number, view.Networks, peers)
	f.mu.Lock()
	f.view, f.plan = view, p
	f.mu.Unlock()
	f.complain(last.mistakes, p.mistakes)
	err := f.heart.Set(p.interfaces, p.targets)
	f.unset = err != nil
	f.warn("heartbeats do not go over all paths", err)
	f.watch(peers, p)
	for _, id := range newlyDown(last, p) {
		f.heart.Gone(id)
	}
	if changed && f.o.Changed != nil {
		f.o.Changed()
	}
	return err == nil
}

// warn logs an error once, until it is another one; nil ends it.
func (f *Fabric) warn(what string, err error) {
	if err == nil {
		delete(f.said, what)
		return
	}
	if f.said[what] != err.Error() {
		f.said[what] = err.Error()
		f.log.Warn(what, "error", err)
	}
}

func (f *Fabric) complain(before, now []string) {
	known := map[string]bool{}
	for _, m := range before {
		known[m] = true
	}
	for _, m := range now {
		if !known[m] {
			f.log.Warn(m)
		}
	}
}

func (f *Fabric) watch(peers []Peer, p plan) {
	numbers := make([]uint16, 0, len(peers))
	for _, peer := range peers {
		numbers = append(numbers, peer.Number)
	}
	f.judging.Lock()
	defer f.judging.Unlock()
	f.detector.Watch(heartbeat.Now(), numbers, p.watched)
}

// judge is called by the heartbeats' thread: it leaves to the worker what takes longer.
func (f *Fabric) judge(t detector.Tick, stamps []kernel.Stamp) {
	f.judging.Lock()
	defer f.judging.Unlock()
	f.stamps = f.stamps[:0]
	for i := range stamps {
		f.stamps = append(f.stamps, heartbeat.Judged(&stamps[i]))
	}
	verdicts := f.detector.Judge(t, f.stamps)
	if len(verdicts) == 0 {
		return
	}
	f.waiting = append(f.waiting, verdicts...)
	if over := len(f.waiting) - maxWaiting; over > 0 {
		f.waiting = f.waiting[over:]
		f.lost += over
	}
	f.wake()
}

func (f *Fabric) take() []detector.Verdict {
	f.judging.Lock()
	verdicts, lost := f.waiting, f.lost
	f.waiting, f.lost = nil, 0
	f.judging.Unlock()
	if lost > 0 {
		f.log.Error("verdicts came faster than they were taken; the oldest are lost", "count", lost)
	}
	return verdicts
}

// reroute chooses the network for each peer, and sets the routes.
func (f *Fabric) reroute() bool {
	f.mu.Lock()
	view, p, peers, before := f.view, f.plan, f.peers, f.chosen
	f.mu.Unlock()
	chosen := make(map[uint16]network.Choice, len(peers))
	var routes []route.Route
	for _, peer := range peers {
		c, ok := f.choose(view.Networks, p, peer)
		if !ok {
			if c, ok = before[peer.Number], before[peer.Number].Cluster.Network != ""; !ok {
				continue
			}
		}
		chosen[peer.Number] = c
		if r, ok := f.routeTo(peer, c.Cluster, p); ok {
			routes = append(routes, r)
		}
		if was := before[peer.Number].Cluster.Network; was != c.Cluster.Network {
			f.log.Info("cluster traffic goes over another network", "node", peer.Name, "network", c.Cluster.Network, "before", was)
		}
	}
	f.mu.Lock()
	f.chosen = chosen
	f.mu.Unlock()
	return f.setRoutes(routes, p)
}

func (f *Fabric) setRoutes(routes []route.Route, p plan) bool {
	if f.routes == nil {
		return true
	}
	var names []string
	for _, i := range p.interfaces {
		names = append(names, i.Name)
	}
	err := f.routes.Set(routes, names)
	f.warn("a route to a peer could not be set", err)
	return err == nil
}

// choose picks the best network over which heartbeats pass; without one, the best that is not given up.
func (f *Fabric) choose(networks []network.Network, p plan, peer Peer) (network.Choice, bool) {
	for _, least := range []detector.State{detector.Up, detector.Unproven} {
		c, ok := network.Choose(networks, f.o.Number, peer.Number, func(name string) bool {
			return f.state(networks, name, p, peer) >= least
		})
		if ok {
			return c, true
		}
	}
	return network.Choice{}, false
}

// state is that of the path by which a route over the network would go. An interface without a carrier is down at
// once, whatever the detector knows.
func (f *Fabric) state(networks []network.Network, name string, p plan, peer Peer) detector.State {
	for _, way := range network.Paths(networks, f.o.Number, peer.Number) {
		if way.Network != name {
			continue
		}
		if !way.Local.Interface.Running() {
			return detector.Lost
		}
		return f.judged(peer, way, p.numbers[name])
	}
	return detector.None
}

func (f *Fabric) judged(peer Peer, way network.Path, number uint16) detector.State {
	f.judging.Lock()
	defer f.judging.Unlock()
	if !peer.Cluster.IsValid() {
		return f.detector.Network(peer.Number, number)
	}
	hop, ok := way.NextHop(peer.Cluster)
	if !ok {
		return detector.Lost
	}
	return f.detector.Path(detector.Path{Peer: peer.Number, Network: number, Family: familyOf(hop)})
}

func familyOf(a netip.Addr) detector.Family {
	if a.Is4() {
		return detector.IPv4
	}
	return detector.IPv6
}

func (f *Fabric) routeTo(peer Peer, way network.Path, p plan) (route.Route, bool) {
	if f.routes == nil || !peer.Cluster.IsValid() {
		return route.Route{}, false
	}
	hop, ok := way.NextHop(peer.Cluster)
	if !ok {
		return route.Route{}, false
	}
	path := detector.Path{Peer: peer.Number, Network: p.numbers[way.Network], Family: familyOf(hop)}
	if learnt := f.remote(path); learnt.IsValid() {
		hop = learnt
	}
	return route.Route{Peer: peer.Cluster, Via: hop, Index: way.Local.Interface.Index, Metric: uint32(way.Metric / 2)}, true
}
