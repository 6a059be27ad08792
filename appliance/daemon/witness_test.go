package daemon

import (
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/config"
)

// A witness votes, and has neither volumes nor targets of the cluster.
func TestWitness(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 1)
	defer c.stop()
	first := c.all[0]
	_, err := first.client.CreateTarget(t.Context(), iqn)
	must(t, err)

	w := newBench(t)
	w.config.Node.Name = "w"
	w.config.Cluster = first.config.Cluster
	w.config.Cluster.Address += "9" // 127.0.x.19
	w.config.Cluster.Role = config.RoleWitness
	token, err := first.client.NewToken(t.Context(), api.NewToken{})
	must(t, err)
	_, err = w.start().JoinCluster(t.Context(), api.Join{Address: first.config.Cluster.Address, Token: token.Token})
	must(t, err)
	defer w.stop()
	time.Sleep(time.Second) // long enough for a node to take the target over
	if all, err := w.client.Targets(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("targets %+v, %v", all, err)
	}
}
