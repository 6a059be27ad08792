package namespace

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	mib       = int64(1) << 20
	testLimit = 2 * time.Minute
	imageSize = 64 * mib
	mount     = "cs" // of each node, in its own mount namespace
)

func TestMain(m *testing.M) { labtest.Main(m) }

// limit bounds a test; those of make namespace-test take longer.
func limit() time.Duration {
	if os.Getenv("LUNAR_LONG") != "" {
		return 20 * time.Minute
	}
	return testLimit
}

// bench is a cluster of three nodes with one volume, which each shows.
type bench struct {
	*lab.Cluster
	t   *testing.T
	ctx context.Context //nolint:containedctx // of the test, whose helpers all need it
	lab *lab.Lab

	disk bool // the LUN lies on the disk, not in memory
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchOn(t, false)
}

func newBenchOn(t *testing.T, disk bool) *bench {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	ctx, l := labtest.Open(t, limit(), "qemu-io", "qemu-img", "fio", "mkfs.xfs", "xfs_repair", "ip")
	b := &bench{t: t, ctx: ctx, lab: l, disk: disk}
	var err error
	b.Cluster, err = l.Cluster(ctx, lab.ClusterConfig{Disk: disk, Extra: fmt.Sprintf("\n[namespace]\nmount = %q\n", l.Path(mount))})
	check(t, err)
	check(t, b.Serve(ctx, imageSize))
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// at is a path of the volume at a node, whose mounts only its own processes see.
func (b *bench) at(n *lab.ClusterNode, path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", n.PID()), b.lab.Path(mount), lab.ClusterVolume, path)
}

// roles are the coordinator and the others.
func (b *bench) roles() (coordinator *lab.ClusterNode, others []*lab.ClusterNode) {
	b.t.Helper()
	c, err := b.Coordinator(b.ctx)
	check(b.t, err)
	return c, b.Others(c)
}

// clean takes everything off line and looks at the file system.
func (b *bench) clean() {
	b.t.Helper()
	check(b.t, b.Eject(b.ctx))
	check(b.t, b.Stop())
	check(b.t, b.Repair(b.ctx))
}

func (b *bench) run(argv ...string) string {
	b.t.Helper()
	out, err := lab.Run(b.ctx, argv...)
	if err != nil {
		b.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return out
}
