package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
)

// inCluster gives a bench an address for other nodes.
func (b *bench) inCluster() *bench {
	b.config.Cluster.Address = fmt.Sprintf("127.0.%d.1", os.Getpid()%250+1)
	b.config.ISCSI.Portals = []string{b.config.Cluster.Address + ":0"}
	return b
}

func TestClusterOfNone(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	s, err := c.Cluster(ctx)
	must(t, err)
	if s.ID != "" || s.Node != "n1" || len(s.Nodes) != 1 || s.Nodes[0].State != api.NodeUp {
		t.Fatalf("cluster %+v", s)
	}
	_, err = c.JoinCluster(ctx, api.Join{Address: "127.0.0.1", Token: "x"})
	refused(t, err, api.Invalid, "token")
	_, err = c.SetNetwork(ctx, "Network1", api.SetNetwork{})
	refused(t, err, api.NotFound, "no cluster")
	refused(t, c.LeaveCluster(ctx, api.Leave{}), api.NotFound, "no cluster", "cluster init")
	_, err = c.NewToken(ctx, api.NewToken{})
	refused(t, err, api.NotFound, "cluster init")
	_, err = c.DrainNode(ctx, "n1")
	refused(t, err, api.NotFound, "no cluster")
	_, err = c.EvictNode(ctx, "n1", true)
	refused(t, err, api.NotFound, "no cluster")
	if d, err := c.Node(ctx, "n1"); err != nil || !d.Present || d.State != api.NodeUp {
		t.Fatalf("node %+v, %v", d, err)
	}
	_, err = c.Node(ctx, "n2")
	refused(t, err, api.NotFound, "node list")
}

// loggedOut waits until a node has taken notice that its initiators are gone.
func loggedOut(t *testing.T, c *api.Client) {
	t.Helper()
	eventually(t, 30*time.Second, "the initiators are logged out", func() bool {
		s, err := c.Sessions(t.Context())
		return err == nil && len(s.Sessions) == 0
	})
}

func TestInitKeepsWhatIsExported(t *testing.T) {
	b := newBench(t).inCluster()
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	before, err := c.Targets(ctx)
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "write -P 7 1M 64k", "flush"))
	loggedOut(t, c)

	s, err := c.InitCluster(ctx)
	must(t, err)
	if s.ID == "" || s.Voters != 1 || s.Living != 1 || s.Leader != "n1" || len(s.Nodes) != 1 || s.Nodes[0].Number != 1 || s.Nodes[0].Coordinates != 1 {
		t.Fatalf("cluster %+v", s)
	}
	after, err := c.Targets(ctx)
	must(t, err)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Fatalf("targets before %+v\nafter %+v", before, after)
	}
	must(t, qemuIO(t, b.portal(), "", "read -P 7 1M 64k", "write -P 8 2M 64k"))
	loggedOut(t, c)
	_, err = c.InitCluster(ctx)
	refused(t, err, api.Exists, "in a cluster already")
	refused(t, c.LeaveCluster(ctx, api.Leave{}), api.Busy, "last node", "--force")
	must(t, qemuIO(t, b.portal(), "", "read -P 8 2M 64k"))
	loggedOut(t, c)

	m, err := c.MoveVolume(ctx, "Volume1", "n1")
	if err != nil || m.Node != "n1" {
		t.Fatalf("move %+v, %v", m, err)
	}
	_, err = c.MoveVolume(ctx, "Volume1", "")
	refused(t, err, api.Unavailable, "no other node")
	d, err := c.DrainNode(ctx, "n1")
	must(t, err)
	if len(d.Moved) != 0 || len(d.Stay) != 1 || d.Stay[0] != "Volume1" {
		t.Fatalf("drained %+v", d)
	}
	if n, err := c.Node(ctx, "n1"); err != nil || n.State != api.NodeDraining || !n.Volumes[0].Path || !n.Volumes[0].Coordinates {
		t.Fatalf("node %+v, %v", n, err)
	}
	must(t, c.ResumeNode(ctx, "n1"))
	_, err = c.EvictNode(ctx, "n1", true)
	refused(t, err, api.Invalid, "cluster leave")

	must(t, c.LeaveCluster(ctx, api.Leave{Force: true}))
	if v, err := c.Volumes(ctx); err != nil || len(v) != 0 {
		t.Fatalf("volumes %+v, %v", v, err)
	}
	if s, err := c.Cluster(ctx); err != nil || s.ID != "" {
		t.Fatalf("cluster %+v, %v", s, err)
	}
}

func TestInitRefusesWithInitiators(t *testing.T) {
	b := newBench(t).inCluster()
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	login(t, b.portal(), initiatorName, iqn)
	_, err := c.InitCluster(ctx)
	refused(t, err, api.Busy, "logged in", "session list")
	if s, err := c.Sessions(ctx); err != nil || len(s.Sessions) != 1 || s.Sessions[0].Node != "n1" {
		t.Fatalf("sessions %+v, %v", s, err)
	}
}

func TestFailedSwitchLeavesTheNodeWorking(t *testing.T) {
	b := newBench(t).inCluster()
	c, ctx := b.start(), t.Context()
	b.served(b.disk())
	_, err := c.JoinCluster(ctx, api.Join{Address: "127.0.0.1:1", Token: "lunar-nonsense"})
	refused(t, err, api.Invalid, "join token")
	must(t, qemuIO(t, b.portal(), "", "write -P 7 1M 64k", "read -P 7 1M 64k"))
}

func TestSaveAndRestore(t *testing.T) {
	b := newBench(t).inCluster()
	c, ctx := b.start(), t.Context()
	_, err := c.InitCluster(ctx)
	must(t, err)
	_, err = c.CreateTarget(ctx, iqn)
	must(t, err)
	var saved bytes.Buffer
	about, err := c.SaveCluster(ctx, &saved)
	must(t, err)
	if about.Node != "n1" || about.Bytes != int64(saved.Len()) || about.Cluster == "" {
		t.Fatalf("saved %+v, %d bytes", about, saved.Len())
	}
	must(t, c.DeleteTarget(ctx, iqn, false))
	file := filepath.Join(t.TempDir(), "saved")
	must(t, os.WriteFile(file, saved.Bytes(), 0o600))

	var out, complaint bytes.Buffer
	if code := restoreFile(ctx, b.config, file, false, &out, &complaint); code != exitFailed || !strings.Contains(complaint.String(), "systemctl stop") {
		t.Fatalf("exit %d: %s", code, &complaint)
	}
	b.stop()
	if code := restoreFile(ctx, b.config, file, false, &out, &complaint); code != exitOK {
		t.Fatalf("exit %d: %s", code, &complaint)
	}
	var restored api.Saved
	must(t, json.Unmarshal(out.Bytes(), &restored))
	c = b.start()
	if all, err := c.Targets(ctx); err != nil || len(all) != 1 {
		t.Fatalf("targets %+v, %v", all, err)
	}
	left, err := os.ReadDir(b.config.StateDir)
	must(t, err)
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "save-") {
			t.Errorf("%s was left", e.Name())
		}
	}
}

func TestNodesAskEachOther(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 2)
	ctx, one, two := t.Context(), c.all[0].client, c.all[1].client
	c.share(t)

	login(t, c.all[1].portal(), initiatorName, iqn)
	s, err := one.Sessions(ctx)
	if err != nil || len(s.Sessions) != 1 || s.Sessions[0].Node != "n2" || len(s.Silent) != 0 {
		t.Fatalf("sessions %+v, %v", s, err)
	}
	refused(t, one.DeleteTarget(ctx, iqn, false), api.Refused, "on node n2", "--force")
	v, err := one.Volume(ctx, "Volume1")
	must(t, err)
	if len(v.Nodes) != 2 || v.Nodes[0].Node != "n1" || v.Nodes[1].Node != "n2" || v.Nodes[1].State != api.Direct {
		t.Fatalf("volume %+v", v)
	}
	refused(t, two.LeaveCluster(ctx, api.Leave{}), api.Busy, "logged in")

	m, err := one.MoveVolume(ctx, "Volume1", "n2")
	if err != nil || m.Node != "n2" {
		t.Fatalf("moved %+v, %v", m, err)
	}
	d, err := one.DrainNode(ctx, "n2")
	if err != nil || len(d.Moved) != 1 || len(d.Stay) != 0 {
		t.Fatalf("drained %+v, %v", d, err)
	}
	if n, err := two.Node(ctx, "n2"); err != nil || n.State != api.NodeDrained {
		t.Fatalf("node %+v, %v", n, err)
	}
	must(t, two.ResumeNode(ctx, "n2"))
	_, err = one.EvictNode(ctx, "n2", false)
	refused(t, err, api.Refused, "alive", "cluster leave")
}

func TestLeaveAndComeBack(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 2)
	ctx, one, two := t.Context(), c.all[0].client, c.all[1].client
	c.share(t)
	must(t, two.LeaveCluster(ctx, api.Leave{}))
	if all, err := one.Nodes(ctx); err != nil || len(all) != 1 {
		t.Fatalf("nodes %+v, %v", all, err)
	}
	if all, err := two.Targets(ctx); err != nil || len(all) != 0 {
		t.Fatalf("targets %+v, %v", all, err)
	}
	token, err := one.NewToken(ctx, api.NewToken{Seconds: 60})
	must(t, err)
	s, err := two.JoinCluster(ctx, api.Join{Address: c.all[0].config.Cluster.Address, Token: token.Token})
	if err != nil || len(s.Nodes) != 2 {
		t.Fatalf("cluster %+v, %v", s, err)
	}
	c.served(t)
	_, err = two.JoinCluster(ctx, api.Join{Address: c.all[0].config.Cluster.Address, Token: token.Token})
	refused(t, err, api.Exists, "already")
}

func TestEvictANodeThatIsOff(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 3)
	ctx, one, last := t.Context(), c.all[0].client, c.all[2]
	c.share(t)
	last.stop()
	eventually(t, 30*time.Second, "the node is down", func() bool {
		n, err := one.Node(ctx, "n3")
		return err == nil && n.State == api.NodeDown
	})
	e, err := one.EvictNode(ctx, "n3", false)
	must(t, err)
	if len(e.Fenced) != 1 || len(e.Notes) != 0 {
		t.Fatalf("evicted %+v", e)
	}
	var out, complaint bytes.Buffer
	if code := leaveOffLine(c.all[0].config, &out, &complaint); code != exitFailed || !strings.Contains(complaint.String(), "systemctl stop") {
		t.Fatalf("exit %d: %s", code, &complaint)
	}
	if code := leaveOffLine(last.config, &out, &complaint); code != exitOK {
		t.Fatalf("exit %d: %s", code, &complaint)
	}
	if s, err := last.start().Cluster(ctx); err != nil || s.ID != "" || s.Nodes[0].State != api.NodeUp {
		t.Fatalf("cluster %+v, %v", s, err)
	}
	c.all[1].stop() // the only voter ends last
}

// TestEvictedNodeLivesOn: an eviction by order would end this process, which is the node's.
func TestEvictedNodeLivesOn(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 3)
	ctx, one := t.Context(), c.all[0].client
	c.share(t)
	must(t, c.all[0].daemon.node.db.Evict(ctx, "n3"))
	last := c.all[2]
	eventually(t, 10*time.Second, "the node knows", func() bool {
		s, err := last.client.Cluster(ctx)
		return err == nil && strings.Contains(s.Reason, "evicted")
	})
	if err := qemuIO(t, c.all[1].portal(), "", "write -P 9 1M 64k"); err != nil {
		t.Fatal(err)
	}
	must(t, last.client.LeaveCluster(ctx, api.Leave{Force: true}))
	if s, err := last.client.Cluster(ctx); err != nil || s.ID != "" {
		t.Fatalf("cluster %+v, %v", s, err)
	}
	if all, err := one.Nodes(ctx); err != nil || len(all) != 2 {
		t.Fatalf("nodes %+v, %v", all, err)
	}
	c.all[1].stop() // the only voter ends last
}

// share makes a volume with an image, exported by every node.
func (c *nodes) share(t *testing.T) {
	t.Helper()
	t.Cleanup(c.stop)
	ctx, first := t.Context(), c.all[0].client
	_, err := first.AddVolume(ctx, api.AddVolume{Device: c.loops[0].Path, Format: "xfs", AllowUnfenced: true})
	must(t, err)
	_, err = first.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 64 << 20})
	must(t, err)
	_, err = first.CreateTarget(ctx, iqn)
	must(t, err)
	_, err = first.Map(ctx, iqn, api.Map{Image: "Volume1/disk.img"})
	must(t, err)
	c.served(t)
}

// served waits until every node offers the LUN.
func (c *nodes) served(t *testing.T) {
	t.Helper()
	for _, b := range c.all {
		eventually(t, 15*time.Second, "the LUN is on every node", func() bool {
			all, err := b.client.Targets(t.Context())
			return err == nil && len(all) == 1 && len(all[0].LUNs) == 1 && all[0].LUNs[0].State == api.LUNOnline
		})
	}
}
