package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// TestBackupUnderLoad takes backups of all images while initiators write through all nodes, and has them end in every way.
func TestBackupUnderLoad(t *testing.T) {
	ctx, l, c := newCluster(t)
	w := startChains(ctx, t, c.Nodes)
	check(t, w.GoOn(100))
	fullBackup(ctx, t, c, w, l.Dir)
	redirectedBackup(ctx, t, c, w)
	coordinatorMoved(ctx, t, c, w)
	requesterKilled(ctx, t, l, c, w)
	toolNeverEnds(ctx, t, l, c, w)
	check(t, w.Finish())
	t.Log(w)
	servingNodeKilled(ctx, t, c)
	check(t, c.Eject(ctx))
	check(t, c.Stop())
	check(t, c.Repair(ctx))
}

// fullBackup copies all images by nbdcopy and by qemu-img, compares the copies, and looks for records that are missing.
func fullBackup(ctx context.Context, t *testing.T, c *lab.Cluster, w *load.Chains, dir string) {
	t.Helper()
	asked, serving := c.Nodes[0], c.Nodes[1]
	b := begin(ctx, t, asked.Lunard, "--node", serving.Name, "--snapshot", "full", "--wait", "30s")
	coordinator, err := c.Coordinator(ctx)
	check(t, err)
	if coordinator != serving || len(b.Images) != images {
		t.Fatalf("%s coordinates, and not %s; %d images", coordinator.Name, serving.Name, len(b.Images))
	}
	t.Logf("%d images, I/O was held for %v", len(b.Images), time.Duration(b.HoldNS))
	_, err = c.Nodes[2].Ctl(ctx, "backup", "begin", lab.ClusterVolume)
	if err == nil || !strings.Contains(err.Error(), "backed up already: backup "+b.ID+" on node "+serving.Name) {
		t.Errorf("a second backup: %v", err)
	}
	made := make(chan error, 1)
	go func() {
		_, err := c.Nodes[2].API.CreateImage(ctx, api.CreateImage{Image: lab.ClusterVolume + "/later.img", Size: mib})
		made <- err
	}()
	var copies [][]byte
	for i, im := range b.Images {
		raw, qcow := filepath.Join(dir, fmt.Sprintf("i%d.raw", i)), filepath.Join(dir, fmt.Sprintf("i%d.qcow2", i))
		tool(ctx, t, "nbdcopy", im.URI, raw)
		check(t, w.GoOn(20))
		tool(ctx, t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", im.URI, qcow)
		tool(ctx, t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, qcow)
		data, err := os.ReadFile(raw)
		check(t, err)
		copies = append(copies, data)
	}
	if err := w.Judge(copies); err != nil {
		t.Error(err)
	}
	select {
	case err := <-made:
		t.Errorf("an image was made during the backup: %v", err)
	default:
	}
	_, err = c.Nodes[2].Ctl(ctx, "backup", "end", lab.ClusterVolume)
	check(t, err)
	check(t, <-made) // it waited, and goes on
	for i, data := range copies {
		compareSnapshot(ctx, t, c.Nodes[2], fmt.Sprintf("%s@full", image(i)), data)
	}
}

// compareSnapshot reads an image of a snapshot by another way.
func compareSnapshot(ctx context.Context, t *testing.T, n *lab.ClusterNode, name string, want []byte) {
	t.Helper()
	clone := lab.ClusterVolume + "/compare.img"
	_, err := n.API.CreateImage(ctx, api.CreateImage{From: name, Image: clone})
	check(t, err)
	file := filepath.Join(t.TempDir(), "compare.raw")
	_, err = n.Ctl(ctx, "image", "export", clone, file)
	check(t, err)
	got, err := os.ReadFile(file)
	check(t, err)
	if string(got) != string(want) {
		t.Errorf("the copy of %s is not what the snapshot has", name)
	}
	check(t, n.API.DeleteImage(ctx, clone, true))
}

// redirectedBackup has all nodes' I/O go through the coordinator, with the reason, and changes fail at once.
func redirectedBackup(ctx context.Context, t *testing.T, c *lab.Cluster, w *load.Chains) {
	t.Helper()
	b := begin(ctx, t, c.Nodes[2].Lunard, "--redirect", "--wait", "0s")
	for _, n := range c.Nodes {
		check(t, n.AwaitState(ctx, api.Redirected, time.Minute))
		if _, reason, err := n.State(ctx); err != nil || reason != "Backup" {
			t.Errorf("node %s: reason %q, %v", n.Name, reason, err)
		}
	}
	check(t, w.GoOn(20))
	began := time.Now()
	_, err := c.Nodes[1].Ctl(ctx, "image", "create", lab.ClusterVolume+"/no.img", "--size", "1MiB")
	if err == nil || !strings.Contains(err.Error(), "backup "+b.ID+" on node "+b.Node) || !strings.Contains(err.Error(), "backup end") {
		t.Errorf("a change without a wait: %v", err)
	}
	t.Logf("a change that may not wait was refused after %v: %v", time.Since(began).Round(time.Millisecond), err)
	tool(ctx, t, "nbdcopy", b.Images[0].URI, "null:")
	_, err = c.Nodes[2].Ctl(ctx, "backup", "end", b.ID)
	check(t, err)
	for _, n := range c.Nodes {
		check(t, n.AwaitState(ctx, api.Direct, time.Minute))
	}
	awaitReleased(ctx, t, c.Nodes[0], b)
}

// coordinatorMoved has another node coordinate the volume: the backup goes on, and changes stay suspended.
func coordinatorMoved(ctx context.Context, t *testing.T, c *lab.Cluster, w *load.Chains) {
	t.Helper()
	b := begin(ctx, t, c.Nodes[0].Lunard, "--wait", "0s")
	before := filepath.Join(t.TempDir(), "before")
	tool(ctx, t, "nbdcopy", b.Images[1].URI, before)
	check(t, c.Move(ctx, c.Nodes[1]))
	check(t, w.GoOn(20))
	_, err := c.Nodes[2].Ctl(ctx, "image", "create", lab.ClusterVolume+"/no.img", "--size", "1MiB")
	if err == nil || !strings.Contains(err.Error(), "backup "+b.ID+" on node "+c.Nodes[0].Name) {
		t.Errorf("a change at the next coordinator: %v", err)
	}
	tool(ctx, t, "qemu-img", "compare", "-f", "raw", "-F", "raw", before, b.Images[1].URI)
	_, err = c.Nodes[1].Ctl(ctx, "backup", "end", b.ID)
	check(t, err)
	awaitReleased(ctx, t, c.Nodes[2], b)
}

// awaitBackup returns when one is under way.
func awaitBackup(ctx context.Context, t *testing.T, n *lab.Lunard) (b api.Backup) {
	t.Helper()
	check(t, lab.Poll(time.Minute, func() error {
		all, err := list(ctx, n)
		if err != nil || len(all) != 1 || len(all[0].Images) == 0 {
			return fmt.Errorf("%d backups: %w", len(all), err)
		}
		b = all[0]
		return nil
	}))
	return b
}

// requesterKilled kills the command that a backup is attached to, while another node serves it and a tool reads.
func requesterKilled(ctx context.Context, t *testing.T, l *lab.Lab, c *lab.Cluster, w *load.Chains) {
	t.Helper()
	asked := c.Nodes[0]
	p, err := l.Start(filepath.Join(l.Bin, "lunarctl"), "--socket", asked.Socket, "backup", "begin", lab.ClusterVolume, "--attached", "--node", c.Nodes[2].Name)
	check(t, err)
	b := awaitBackup(ctx, t, c.Nodes[1].Lunard)
	reader, err := l.Start("qemu-io", "-r", "-f", "raw", "-c", "sleep 60000", b.Images[0].URI)
	check(t, err)
	check(t, w.GoOn(20))
	p.Kill()
	t.Logf("requester killed: all was released after %v", awaitReleased(ctx, t, c.Nodes[1], b))
	reader.Kill()
}

// toolNeverEnds leaves a backup to its limit while a tool has it open.
func toolNeverEnds(ctx context.Context, t *testing.T, l *lab.Lab, c *lab.Cluster, w *load.Chains) {
	t.Helper()
	const last = 2 * time.Second
	b := begin(ctx, t, c.Nodes[1].Lunard, "--limit", last.String())
	began := time.Now()
	reader, err := l.Start("qemu-io", "-r", "-f", "raw", "-c", "sleep 60000", b.Images[0].URI)
	check(t, err)
	check(t, w.GoOn(20))
	awaitReleased(ctx, t, c.Nodes[0], b)
	took := time.Since(began)
	if took < last/2 {
		t.Errorf("it ended after %v", took)
	}
	t.Logf("a backup with a limit of %v was released after %v", last, took.Round(time.Millisecond))
	reader.Kill()
}

// servingNodeKilled kills the daemon that coordinates and serves. The snapshot goes although it has a name of its own.
func servingNodeKilled(ctx context.Context, t *testing.T, c *lab.Cluster) {
	t.Helper()
	b := begin(ctx, t, c.Nodes[0].Lunard, "--node", c.Nodes[2].Name, "--snapshot", "killed")
	c.Nodes[2].Kill()
	t.Logf("serving node killed: all was released after %v", awaitReleased(ctx, t, c.Nodes[0], b))
	check(t, c.Nodes[2].Start(ctx))
}
