package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	mib       = int64(1) << 20
	imageSize = 32 * mib
	limit     = 3 * time.Minute
	patience  = 30 * time.Second // of one command
	nodes     = 3
	writers   = 2 * nodes
	region    = writers * load.ChainRegion // of each image: what the writers use
)

// bar is for how long a snapshot may hold I/O; CI may be busy with other things, and only finds what hangs.
func bar() time.Duration {
	if os.Getenv("LUNAR_RUNS") != "" {
		return 200 * time.Millisecond
	}
	return 5 * time.Second
}

// images is how many there are: few in CI, LUNAR_IMAGES to measure.
func images() int {
	if n, err := strconv.Atoi(os.Getenv("LUNAR_IMAGES")); err == nil {
		return n
	}
	return 4
}

func TestMain(m *testing.M) { labtest.Main(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newCluster(t *testing.T) (context.Context, *lab.Cluster) {
	t.Helper()
	ctx, l := labtest.Open(t, limit, "mkfs.xfs", "xfs_repair", "ip")
	c, err := l.Cluster(ctx, lab.ClusterConfig{Nodes: nodes})
	check(t, err)
	_, err = c.Nodes[0].API.AddVolume(ctx, api.AddVolume{Device: c.Nodes[0].Path.Path, Name: lab.ClusterVolume, Format: "xfs", AllowUnfenced: true})
	check(t, err)
	return ctx, c
}

func image(i int) string  { return fmt.Sprintf("%s/i%d.img", lab.ClusterVolume, i) }
func target(i int) string { return fmt.Sprintf("iqn.2026-01.lunar.test:i%d", i) }

// TestSnapshotsUnderLoad takes snapshots of several images while initiators write through all nodes.
func TestSnapshotsUnderLoad(t *testing.T) {
	ctx, c := newCluster(t)
	var names []string
	for i := range images() {
		check(t, c.Export(ctx, image(i), target(i), imageSize))
		names = append(names, image(i))
	}
	w := startChains(ctx, t, c)
	var holds []time.Duration
	const taken = 3
	for s := range taken {
		check(t, w.GoOn(int64(images()*10)))
		set, err := c.Nodes[s%nodes].API.CreateSnapshot(ctx, api.CreateSnapshot{Images: names, Name: fmt.Sprint("s", s)})
		check(t, err)
		holds = append(holds, time.Duration(set.HoldNS))
	}
	check(t, w.GoOn(int64(images()*10)))
	check(t, w.Finish())
	slices.Sort(holds)
	t.Logf("%d images, %d writers on %d nodes: I/O was held for %v (bar %v)", images(), writers, nodes, holds, bar())
	if worst := holds[len(holds)-1]; worst > bar() {
		t.Errorf("I/O was held for %v", worst)
	}
	t.Log(w)
	for s := range taken {
		judgeSnapshot(ctx, t, c, w, s)
	}
	judgeThroughFailover(ctx, t, c)
	finishClean(ctx, t, c)
}

func startChains(ctx context.Context, t *testing.T, c *lab.Cluster) *load.Chains {
	t.Helper()
	var targets []string
	for i := range images() {
		targets = append(targets, target(i))
	}
	w, err := load.StartChains(ctx, writers, targets, c.Nodes...)
	check(t, err)
	t.Cleanup(func() { _ = w.Finish() })
	return w
}

// judgeSnapshot reads a snapshot's images through a node, by clones.
func judgeSnapshot(ctx context.Context, t *testing.T, c *lab.Cluster, w *load.Chains, s int) {
	t.Helper()
	var all [][]byte
	for i := range images() {
		data, err := readClone(ctx, c.Nodes[(s+1)%nodes], fmt.Sprintf("%s@s%d", image(i), s), fmt.Sprintf("%s/s%d-%d.img", lab.ClusterVolume, s, i),
			fmt.Sprintf("iqn.2026-01.lunar.test:s%d-%d", s, i))
		check(t, err)
		all = append(all, data)
	}
	if err := w.Judge(all); err != nil {
		t.Errorf("snapshot s%d: %v", s, err)
	}
}

// judgeThroughFailover reads an image of a snapshot by a LUN of its own, which is read-only, also after its coordinator
// was killed, and wants the snapshot to stay meanwhile.
func judgeThroughFailover(ctx context.Context, t *testing.T, c *lab.Cluster) {
	t.Helper()
	const name = "iqn.2026-01.lunar.test:snapshot"
	coordinator, err := c.Coordinator(ctx)
	check(t, err)
	n := c.Others(coordinator)[0]
	_, err = n.API.CreateTarget(ctx, name)
	check(t, err)
	lun, err := n.API.Map(ctx, name, api.Map{Image: image(0) + "@s1"})
	check(t, err)
	if !lun.ReadOnly {
		t.Errorf("%+v", lun)
	}
	before, err := read(ctx, n, name)
	check(t, err)
	coordinator.Kill()
	after, err := read(ctx, n, name)
	check(t, err)
	if len(before) == 0 || !bytes.Equal(before, after) {
		t.Error("the snapshot changed with the coordinator")
	}
	check(t, coordinator.Start(ctx))
	check(t, coordinator.AwaitLUN(ctx, name))
	again, err := read(ctx, coordinator, name)
	check(t, err)
	if !bytes.Equal(before, again) {
		t.Error("the node that was killed reads another content")
	}
	for _, n := range c.Nodes {
		if err := n.API.DeleteSnapshot(ctx, lab.ClusterVolume+"@s1", true); api.CodeOf(err) != api.Busy {
			t.Errorf("node %s deletes a snapshot that is mapped: %v", n.Name, err)
		}
	}
	check(t, n.API.DeleteTarget(ctx, name, true))
}

func readClone(ctx context.Context, n *lab.ClusterNode, from, to, target string) (data []byte, err error) {
	if _, err := n.API.CreateImage(ctx, api.CreateImage{From: from, Image: to}); err != nil {
		return nil, err
	}
	if _, err := n.API.CreateTarget(ctx, target); err != nil {
		return nil, err
	}
	if _, err := n.API.Map(ctx, target, api.Map{Image: to}); err != nil {
		return nil, err
	}
	return read(ctx, n, target)
}

// read reads what the writers have written, by a target's LUN 0.
func read(ctx context.Context, n *lab.ClusterNode, target string) (data []byte, err error) {
	if err := n.AwaitLUN(ctx, target); err != nil {
		return nil, err
	}
	s, err := load.Login(ctx, n.Portal(), target, "iqn.2026-01.lunar.test:reader", 1, patience)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	const part = 64 << 10
	for off := int64(0); off < region; off += part {
		var a load.Answer
		for try := 0; try < 8; try++ {
			if a, err = s.Do(load.Read(off, part), nil, part); err != nil || a.Key() != 6 {
				break
			}
		}
		if err := errors.Join(err, a.Err()); err != nil {
			return nil, err
		}
		data = append(data, a.Data...)
	}
	return data, nil
}

// finishClean deletes what there is, and looks at the file system.
func finishClean(ctx context.Context, t *testing.T, c *lab.Cluster) {
	t.Helper()
	for s := range 2 {
		check(t, c.Nodes[s].API.DeleteSnapshot(ctx, fmt.Sprintf("%s@s%d", lab.ClusterVolume, s), true))
	}
	left, err := c.Nodes[2].API.Snapshots(ctx, lab.ClusterVolume)
	check(t, err)
	if len(left) != images() {
		t.Errorf("%d snapshots are left of %d", len(left), images())
	}
	check(t, c.Eject(ctx))
	check(t, c.Stop())
	check(t, c.Repair(ctx))
}
