package networks

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	testLimit = 2 * time.Minute
	imageSize = 256 << 20
	settle    = 20 * time.Second // for networks to be found and heartbeats to pass
)

func TestMain(m *testing.M) {
	if role := os.Getenv(plainRole); role != "" {
		bePlain(role)
	}
	labtest.Main(m)
}

// bench is three nodes with two networks each, and one image.
type bench struct {
	*lab.Cluster
	t   *testing.T
	ctx context.Context //nolint:containedctx // of the test, whose helpers all need it
}

func newBench(t *testing.T, extra string) *bench {
	t.Helper()
	return newBenchOf(t, lab.ClusterConfig{Nodes: 3, Second: true, Extra: extra})
}

// long skips what takes too long for each change: make networks-test runs it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("LUNAR_LONG") == "" {
		t.Skip("make networks-test runs it")
	}
}

func newBenchOf(t *testing.T, c lab.ClusterConfig) *bench {
	t.Helper()
	ctx, l := labtest.Open(t, testLimit, "qemu-io", "mkfs.xfs", "xfs_repair", "ip", "bridge", "ss")
	b := &bench{t: t, ctx: ctx}
	var err error
	b.Cluster, err = l.Cluster(ctx, c)
	check(t, err)
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// network is a network of the cluster, by its segment.
func (b *bench) network(n *lab.ClusterNode, segment *lab.Network) (api.Network, error) {
	all, err := n.API.Networks(b.ctx)
	if err != nil {
		return api.Network{}, err
	}
	for i := range all.Networks {
		for _, s := range all.Networks[i].Subnets {
			if s == segment.Subnet.String() {
				return all.Networks[i], nil
			}
		}
	}
	return api.Network{}, fmt.Errorf("node %s knows no network %s in %+v", n.Name, segment.Subnet, all.Networks)
}

// awaitNetwork waits until each node has a network in that state.
func (b *bench) awaitNetwork(segment *lab.Network, want api.NetworkState, nodes ...*lab.ClusterNode) {
	b.t.Helper()
	for _, n := range nodes {
		check(b.t, lab.Poll(settle, func() error {
			w, err := b.network(n, segment)
			if err == nil && (w.State != want || len(w.Members) != len(b.Nodes)) {
				err = fmt.Errorf("node %s: network %s is %s with %d members, not %s", n.Name, w.Name, w.State, len(w.Members), want)
			}
			return err
		}))
	}
}

// prefer makes a network that which carries the cluster's traffic, and waits until it does.
func (b *bench) prefer(segment *lab.Network) string {
	b.t.Helper()
	w, err := b.network(b.Nodes[0], segment)
	check(b.t, err)
	if _, err := b.Nodes[0].Ctl(b.ctx, "network", "set", w.Name, "--metric", "100"); err != nil {
		b.t.Fatal(err)
	}
	b.awaitRoutes(w.Name, b.Nodes...)
	return w.Name
}

// awaitRoutes waits until the nodes' traffic goes over the network.
func (b *bench) awaitRoutes(network string, nodes ...*lab.ClusterNode) {
	b.t.Helper()
	for _, n := range nodes {
		check(b.t, lab.Poll(settle, func() error { return b.over(network, n) }))
	}
}

// over is an error unless all of a node's traffic goes over the network.
func (b *bench) over(network string, n *lab.ClusterNode) error {
	h, err := n.API.Heartbeats(b.ctx)
	if err != nil {
		return err
	}
	over := map[string]bool{}
	for i := range h.Paths {
		if p := &h.Paths[i]; p.Route && p.Network == network {
			over[p.Peer] = true
		}
	}
	if len(over) != len(b.Nodes)-1 {
		return fmt.Errorf("node %s reaches %d nodes over %s: %+v", n.Name, len(over), network, h.Paths)
	}
	return nil
}

// connections are the node's established ones to others' cluster addresses, as ss tells both ends, with the socket's inode. What nobody has
// accepted yet has none.
func (b *bench) connections(n *lab.ClusterNode) map[string]bool {
	b.t.Helper()
	text, err := n.Host.Run(b.ctx, "ss", "-tneH", "state", "established")
	check(b.t, err)
	out := map[string]bool{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		inode := slices.IndexFunc(f, func(w string) bool { return strings.HasPrefix(w, "ino:") })
		if len(f) >= 4 && inode > 0 && f[inode] != "ino:0" && isCluster(f[2]) && isCluster(f[3]) {
			out[f[2]+" "+f[3]+" "+f[inode]] = true
		}
	}
	return out
}

// isCluster tells a cluster address of those of the networks.
func isCluster(endpoint string) bool {
	return strings.HasPrefix(endpoint, "[fd") || strings.HasPrefix(endpoint, "169.254.")
}

// lasting are the ports of connections that nothing but a failure ends: the database's clients, layouts, redirected I/O.
// The database's members open and close some between each other as they see fit.
var lasting = []string{":2379", ":3345", ":10809"}

// keep fails for each lasting connection of before that is gone.
func (b *bench) keep(n *lab.ClusterNode, before map[string]bool) {
	b.t.Helper()
	now := b.connections(n)
	kept := 0
	for c := range before {
		if slices.ContainsFunc(lasting, func(port string) bool { return strings.Contains(c+" ", port+" ") }) {
			kept++
			if !now[c] {
				b.t.Errorf("node %s has lost the connection %s", n.Name, c)
			}
		}
	}
	if kept == 0 {
		b.t.Errorf("node %s had no connection over cluster addresses: %v", n.Name, before)
	}
	b.t.Logf("node %s kept %d connections", n.Name, kept)
}

// sessions are the nodes' incarnations in the cluster and who leads the database: a network's loss changes none.
func (b *bench) sessions() string {
	b.t.Helper()
	st, err := b.Nodes[0].API.Cluster(b.ctx)
	check(b.t, err)
	text := "leader " + st.Leader
	for i := range st.Nodes {
		text += fmt.Sprintf(", %s %d", st.Nodes[i].Name, st.Nodes[i].Incarnation)
	}
	return text
}

func (b *bench) fleet() *load.Fleet {
	b.t.Helper()
	f, err := load.StartFleet(b.ctx, b.Cluster)
	check(b.t, err)
	b.t.Cleanup(f.Abandon)
	return f
}

// validation is `cluster validate --json` of a node; the exit code has to fit.
func (b *bench) validation(n *lab.ClusterNode) api.Validation {
	b.t.Helper()
	text, failed := n.Ctl(b.ctx, "cluster", "validate", "--json")
	var v api.Validation
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&v); err != nil {
		b.t.Fatalf("cluster validate: %v, %v: %s", failed, err, text)
	}
	if (failed != nil) != (v.Count(api.Failure) > 0) {
		b.t.Errorf("cluster validate ends with %v and %d failures", failed, v.Count(api.Failure))
	}
	return v
}

// outcome is the worst of a check.
func outcome(v *api.Validation, name string) (worst api.Outcome, texts []string) {
	rank := map[api.Outcome]int{"": 0, api.Pass: 1, api.Warning: 2, api.Failure: 3}
	for i := range v.Checks {
		if c := &v.Checks[i]; c.Name == name {
			texts = append(texts, c.Found)
			if rank[c.Outcome] > rank[worst] {
				worst = c.Outcome
			}
		}
	}
	return worst, texts
}
