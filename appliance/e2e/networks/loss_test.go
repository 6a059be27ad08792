package networks

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// hands is through how many processes and threads a command goes: each may be as late as this machine's own timers.
const hands = 4

// loss is a way to lose a network, and the bar of the longest stall, beyond what this machine itself was late.
type loss struct {
	name      string
	cut, mend func(*bench, *lab.ClusterNode) error
	bar       time.Duration
	told      string // in the log of the cluster
}

var losses = []loss{
	{
		"silent in one direction",
		func(b *bench, n *lab.ClusterNode) error { return n.Host.Deafen(b.ctx, b.Second) },
		func(b *bench, n *lab.ClusterNode) error { return n.Host.Listen(b.ctx, b.Second) },
		time.Second, "network.network-down",
	},
	{
		"carrier gone",
		func(b *bench, n *lab.ClusterNode) error { return n.Host.Cut(b.ctx, b.Second) },
		func(b *bench, n *lab.ClusterNode) error { return n.Host.Mend(b.ctx, b.Second) },
		300 * time.Millisecond, "network.network-down",
	},
}

// work is I/O on all nodes while networks are lost; Second carries the cluster's traffic.
type work struct {
	*bench
	fleet         *load.Fleet
	first, second string // the networks' names
	nodes         string // as sessions tells
}

// begin has all nodes do I/O: layout traffic and redirected I/O.
func (b *bench) begin() *work {
	b.t.Helper()
	b.awaitNetwork(b.Network, api.NetworkUp, b.Nodes...)
	b.awaitNetwork(b.Second, api.NetworkUp, b.Nodes...)
	w := &work{bench: b, second: b.prefer(b.Second)}
	first, err := b.network(b.Nodes[0], b.Network)
	check(b.t, err)
	w.first = first.Name
	check(b.t, b.Serve(b.ctx, imageSize))
	w.fleet = b.fleet()
	check(b.t, lab.Poll(settle, func() error {
		for _, k := range []load.Kind{load.Direct, load.Redirected} {
			if w.fleet.Record.Count(k) < 100 {
				return fmt.Errorf("%d %s operations", w.fleet.Record.Count(k), k)
			}
		}
		return nil
	}))
	w.nodes = b.sessions()
	return w
}

// stalls tells the longest operation since began of each kind, and fails for one above the bar; 0 is no bar.
func (w *work) stalls(what string, began time.Time, bar time.Duration) {
	w.t.Helper()
	late := w.fleet.Record.Longest(load.Machine, began, time.Now(), nil).Took
	var texts []string
	for _, kind := range []load.Kind{load.Direct, load.Redirected, load.Moved} {
		o := w.fleet.Record.Longest(kind, began, time.Now(), nil)
		texts = append(texts, fmt.Sprintf("%s %v", kind, o.Took.Round(time.Millisecond)))
		if bar > 0 && o.Took > bar+hands*late {
			w.t.Errorf("%s: %s operation took %v through %s; bar %v", what, kind, o.Took, o.Path, bar)
		}
	}
	w.t.Logf("%s: longest %s; bar %v; this machine late by up to %v", what, strings.Join(texts, ", "), bar, late.Round(time.Millisecond))
}

// through is one loss and its mend; the node's traffic leaves the network and comes back, and its connections stay.
func (w *work) through(cut *lab.ClusterNode, l loss) {
	w.t.Helper()
	before := map[*lab.ClusterNode]map[string]bool{}
	for _, n := range w.Nodes {
		before[n] = w.connections(n)
	}
	began := time.Now()
	check(w.t, l.cut(w.bench, cut))
	w.awaitRoutes(w.first, cut)
	w.t.Logf("%s: node %s goes over %s %v after it", l.name, cut.Name, w.first, time.Since(began).Round(time.Millisecond))
	time.Sleep(time.Until(began.Add(2 * time.Second)))
	w.stalls(l.name, began, l.bar)
	for _, n := range w.Nodes {
		w.keep(n, before[n])
	}
	check(w.t, l.mend(w.bench, cut))
	w.awaitNetwork(w.Second, api.NetworkUp, w.Nodes...)
	w.awaitRoutes(w.second, w.Nodes...)
	w.stalls(l.name+", and mended", began, l.bar)
	for _, n := range w.Nodes {
		w.keep(n, before[n])
	}
	w.logTells(cut.Name, l.told)
}

// finish reads all back, and wants that no node was out of the cluster for a moment.
func (w *work) finish() {
	w.t.Helper()
	w.same()
	w.fleet.Finish(w.ctx)
	for _, err := range w.fleet.Record.Errors() {
		w.t.Error(err)
	}
	check(w.t, w.Eject(w.ctx))
	check(w.t, w.Stop())
	check(w.t, w.Repair(w.ctx))
	w.nothingLeft()
}

func (w *work) same() {
	w.t.Helper()
	if now := w.bench.sessions(); now != w.nodes {
		w.t.Errorf("sessions before %s, after %s", w.nodes, now)
	}
}

// reconnect kills every connection between the nodes, at both ends at once, which is the least that a reconnect costs.
func (w *work) reconnect() {
	w.t.Helper()
	began, killed := time.Now(), 0
	for _, n := range w.Nodes {
		before := len(w.connections(n))
		_, err := n.Host.Run(w.ctx, "ss", "-K", "-tn", "state", "established",
			"( sport = :10809 or dport = :10809 or sport = :3345 or dport = :3345 or sport = :2379 or dport = :2379 )")
		check(w.t, err)
		killed += before
	}
	time.Sleep(time.Until(began.Add(3 * time.Second)))
	w.stalls(fmt.Sprintf("reconnect of %d ends of connections", killed), began, 0)
}

// TestNetworkLost loses the network over which the cluster's traffic goes, while all nodes do I/O.
func TestNetworkLost(t *testing.T) {
	b := newBench(t, "")
	for _, n := range b.Nodes {
		st, err := n.API.Cluster(b.ctx)
		check(t, err)
		a, err := netip.ParseAddr(st.Address)
		if err != nil || !a.Is6() || !a.IsPrivate() {
			t.Fatalf("node %s has the cluster address %q", n.Name, st.Address)
		}
	}
	w := b.begin()
	for _, l := range losses {
		w.through(b.Nodes[0], l)
	}
	w.same()
	w.reconnect()
	w.nodes = b.sessions()
	w.finish()
}

// TestOneFamily is a cluster of nodes that have but one IP version.
func TestOneFamily(t *testing.T) {
	for _, family := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			long(t)
			b := newBenchOf(t, lab.ClusterConfig{Nodes: 2, Second: true, Family: family})
			st, err := b.Nodes[0].API.Cluster(b.ctx)
			check(t, err)
			a, err := netip.ParseAddr(st.Address)
			if err != nil || a.Is4() != (family == lab.IPv4) || !a.IsPrivate() && !a.IsLinkLocalUnicast() {
				t.Fatalf("cluster address %q", st.Address)
			}
			w := b.begin()
			for _, l := range losses {
				w.through(b.Nodes[1], l)
			}
			w.finish()
		})
	}
}

// calm is the longest time for which a path that flapped has to prove itself, and some.
const calm = 75 * time.Second

// TestFlapping pulls and plugs a cable all the time: the traffic stays away from it, and comes back when it is quiet.
func TestFlapping(t *testing.T) {
	long(t)
	b := newBench(t, "")
	w := b.begin()
	flapping, before := b.Nodes[0], map[*lab.ClusterNode]map[string]bool{}
	moves := map[*lab.ClusterNode]int{}
	for _, n := range b.Nodes {
		before[n], moves[n] = b.connections(n), moved(n)
	}
	began := time.Now()
	flaps := 0
	for ; time.Since(began) < 6*time.Second; flaps++ {
		check(t, flapping.Host.Cut(b.ctx, b.Second))
		time.Sleep(150 * time.Millisecond)
		check(t, flapping.Host.Mend(b.ctx, b.Second))
		time.Sleep(350 * time.Millisecond)
	}
	w.stalls(fmt.Sprintf("a cable pulled %d times", flaps), began, time.Second)
	check(t, lab.Poll(calm, func() error { return b.over(w.second, b.Nodes[1]) }))
	b.awaitRoutes(w.second, b.Nodes...)
	t.Logf("back over %s %v after the last", w.second, time.Since(began).Round(time.Millisecond)-6*time.Second)
	for _, n := range b.Nodes {
		b.keep(n, before[n])
		t.Logf("node %s moved traffic %d times", n.Name, moved(n)-moves[n])
		if got, most := moved(n)-moves[n], len(b.Nodes)*4; got > most {
			t.Errorf("node %s moved its traffic %d times, more than %d", n.Name, got, most)
		}
	}
	w.finish()
}

// moved is how often a node has moved its traffic to another network, as it logged.
func moved(n *lab.ClusterNode) int {
	return strings.Count(n.Log(), "cluster traffic goes over another network")
}

// TestWithoutRoutes is what the cluster does without: the nodes' addresses are by hand on a network, which is cut.
func TestWithoutRoutes(t *testing.T) {
	long(t)
	b := newBenchOf(t, lab.ClusterConfig{Nodes: 3})
	check(t, b.Serve(b.ctx, imageSize))
	fleet := b.fleet()
	time.Sleep(time.Second)
	cut, err := b.Coordinator(b.ctx)
	check(t, err)
	began := time.Now()
	check(t, cut.CutNetwork(b.ctx))
	time.Sleep(8 * time.Second)
	t.Logf("a network cut under addresses set by hand: %s", fleet.Record.Within(began, time.Now(), func(path string) bool { return path != cut.Name }))
	check(t, cut.MendNetwork(b.ctx))
	fleet.Abandon()
	b.awaitPresent(cut, true)
	check(t, b.Eject(b.ctx))
	check(t, b.Stop())
}
