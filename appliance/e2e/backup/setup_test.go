package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	mib       = int64(1) << 20
	gib       = int64(1) << 30
	limit     = 10 * time.Minute
	nodes     = 3
	images    = 4
	imageSize = 32 * mib
)

// long asks for the sizes that docs/backup.md tells of.
var long = os.Getenv("LUNAR_LONG") != ""

func TestMain(m *testing.M) { labtest.Main(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	return labtest.Open(t, limit, "mkfs.xfs", "ip", "nbdcopy", "nbdinfo", "qemu-img", "qemu-io")
}

func newCluster(t *testing.T) (context.Context, *lab.Lab, *lab.Cluster) {
	t.Helper()
	ctx, l := openLab(t)
	c, err := l.Cluster(ctx, lab.ClusterConfig{Nodes: nodes})
	check(t, err)
	_, err = c.Nodes[0].API.AddVolume(ctx, api.AddVolume{Device: c.Nodes[0].Path.Path, Name: lab.ClusterVolume, Format: "xfs", AllowUnfenced: true})
	check(t, err)
	for i := range images {
		check(t, c.Export(ctx, image(i), target(i), imageSize))
	}
	return ctx, l, c
}

func image(i int) string  { return fmt.Sprintf("%s/i%d.img", lab.ClusterVolume, i) }
func target(i int) string { return fmt.Sprintf("iqn.2026-01.lunar.test:i%d", i) }

// startChains has a chain write through each node.
func startChains(ctx context.Context, t *testing.T, on []*lab.ClusterNode) *load.Chains {
	t.Helper()
	var targets []string
	for i := range images {
		targets = append(targets, target(i))
	}
	w, err := load.StartChains(ctx, nodes, targets, on...)
	check(t, err)
	t.Cleanup(func() { _ = w.Finish() })
	return w
}

// tool runs a program that reads a backup.
func tool(ctx context.Context, t *testing.T, argv ...string) string {
	t.Helper()
	out, err := lab.Run(ctx, argv...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// begin runs lunarctl backup begin.
func begin(ctx context.Context, t *testing.T, n *lab.Lunard, args ...string) (b api.Backup) {
	t.Helper()
	out, err := n.Ctl(ctx, append([]string{"--json", "backup", "begin", lab.ClusterVolume}, args...)...)
	check(t, err)
	check(t, json.Unmarshal([]byte(out), &b))
	return b
}

// list runs lunarctl backup list.
func list(ctx context.Context, n *lab.Lunard) (all []api.Backup, err error) {
	out, err := n.Ctl(ctx, "--json", "backup", "list")
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	return all, err
}

var errLeft = errors.New("something of the backup is left")

// awaitReleased returns when no node has anything of a backup any more, and changes can be made at once.
func awaitReleased(ctx context.Context, t *testing.T, n *lab.ClusterNode, b api.Backup) time.Duration {
	t.Helper()
	began := time.Now()
	check(t, lab.Poll(time.Minute, func() error {
		all, err := n.API.Backups(ctx)
		if err != nil || len(all) > 0 {
			return fmt.Errorf("%w: %+v, %w", errLeft, all, err)
		}
		snapshots, err := n.API.Snapshots(ctx, lab.ClusterVolume)
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			if s.Name == b.Snapshot {
				return fmt.Errorf("%w: snapshot %s", errLeft, s.Name)
			}
		}
		name := lab.ClusterVolume + "/after.img"
		_, err = n.API.CreateImage(ctx, api.CreateImage{Image: name, Size: mib})
		return errors.Join(err, n.API.DeleteImage(ctx, name, true))
	}))
	return time.Since(began).Round(time.Millisecond)
}
