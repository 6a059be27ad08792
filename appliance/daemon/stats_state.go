package daemon

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"lunar/appliance/cluster"
	"lunar/appliance/server"
)

// statsLimit bounds what a scrape asks others; without an answer those metrics are left out.
const statsLimit = 2 * time.Second

// tallies count what happened on this node since its start.
type tallies struct {
	mu     sync.Mutex // guards what follows
	events map[string]uint64
	fenced map[string]uint64 // by outcome
	took   time.Duration     // of the proven ones
}

func (t *tallies) event(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.events == nil {
		t.events = map[string]uint64{}
	}
	t.events[kind]++
}

func (t *tallies) fencing(took time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fenced == nil {
		t.fenced = map[string]uint64{}
	}
	if err != nil {
		t.fenced["failed"]++
		return
	}
	t.fenced["proven"]++
	t.took += took
}

func (t *tallies) tell(s *server.Stats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.Events, s.Fencings = map[string]uint64{}, map[string]uint64{}
	for kind, n := range t.events {
		s.Events[kind] = n
	}
	for outcome, n := range t.fenced {
		s.Fencings[outcome] = n
	}
	s.FencingSeconds = t.took.Seconds()
}

// stateStats adds how things are to the snapshot for the metrics.
func (n *Node) stateStats(s *server.Stats) {
	n.tallies.tell(s)
	s.Repairs = n.repairs.count()
	s.Backups = n.backups.stats()
	s.Initiators = n.initiatorStats()
	s.EachLUN = n.lunStats()
	s.Web = n.web.stats()
	ctx, cancel := context.WithTimeout(context.Background(), statsLimit)
	defer cancel()
	s.Commands = n.commandStats(ctx)
	if n.db.InCluster() == "" {
		return
	}
	s.Cluster = n.clusterStats(ctx)
	s.Networks = n.networkStats()
}

func (n *Node) initiatorStats() []server.InitiatorStats {
	counts := map[[2]string]int{}
	for _, s := range n.front.Sessions() {
		counts[[2]string{s.Initiator, s.Target}]++
	}
	out := make([]server.InitiatorStats, 0, len(counts))
	for k, c := range counts {
		out = append(out, server.InitiatorStats{Initiator: k[0], Target: k[1], Sessions: c})
	}
	return out
}

func (n *Node) lunStats() []server.LUNStats {
	names := n.volumeNames()
	n.mu.RLock()
	defer n.mu.RUnlock()
	var out []server.LUNStats
	for _, t := range n.targets {
		for number, l := range t.luns {
			one := server.LUNStats{Target: t.name, Number: number, Image: names[l.record.VolumeID] + "/" + l.record.Path, Available: l.unit != nil}
			if l.unit != nil {
				one.Size = l.unit.size.Load()
			}
			out = append(out, one)
		}
	}
	slices.SortFunc(out, func(a, b server.LUNStats) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Number, b.Number))
	})
	return out
}

// volumeNames are those of all volumes, by ID.
func (n *Node) volumeNames() map[string]string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	out := map[string]string{}
	for id, v := range n.volumes {
		out[id] = v.record.Name
	}
	return out
}

// clusterStats is nil where nothing is known within ctx.
func (n *Node) clusterStats(ctx context.Context) *server.ClusterStats {
	st, err := n.db.Status(ctx)
	if err != nil && !errors.Is(err, cluster.ErrUnavailable) {
		return nil
	}
	view := &cluster.View{}
	if m := n.membership.Load(); m != nil {
		if last := m.view.Load(); last != nil {
			view = last
		}
	}
	out := &server.ClusterStats{Voters: st.Voters, Living: st.Living, Leads: st.Leader == n.name, Full: st.Full}
	for _, one := range n.describeNodes(&st, view) {
		out.Nodes = append(out.Nodes, server.NodeStats{Name: one.Name, State: one.State, Coordinates: one.Coordinates})
	}
	return out
}

func (n *Node) networkStats() []server.NetworkStats {
	k, running := n.networks.Load(), n.fabric.running()
	if k == nil || running == nil {
		return nil
	}
	paths := running.Paths()
	var out []server.NetworkStats
	for i := range k.view.Networks {
		w := describeNetwork(&k.view.Networks[i], n.db.Number(), paths)
		out = append(out, server.NetworkStats{Name: w.Name, Role: w.Role, Metric: w.Metric, State: w.State, Members: w.Members})
	}
	return out
}

// count is how many repairs are under way.
func (r *repairs) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.running)
}

// stats are those of the backups that this node serves.
func (b *backups) stats() (out []server.BackupStats) {
	for _, one := range b.list() {
		d := one.describe()
		s := server.BackupStats{Volume: d.Volume, Age: time.Since(d.Begun).Seconds()}
		for i := range d.Images {
			s.Read += d.Images[i].Read
		}
		out = append(out, s)
	}
	return out
}

// stats is nil while the console does not listen.
func (w *webConsole) stats() *server.WebStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at == nil {
		return nil
	}
	return &server.WebStats{Sessions: w.site.Sessions(), SignInsFailed: w.site.SignInsFailed()}
}
