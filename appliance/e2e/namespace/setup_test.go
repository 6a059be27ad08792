package namespace

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

const (
	mib       = int64(1) << 20
	testLimit = 2 * time.Minute
	imageSize = 64 * mib
	mount     = "cs" // of each node, in its own mount namespace
)

// programs is the folder of lunard and lunarctl; TestMain sets it.
var programs string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	dir, done, err := lab.Programs(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer done()
	programs = dir
	return m.Run()
}

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
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("end-to-end tests need root and time: network namespaces, loop devices, mounts")
	}
	for _, tool := range []string{"qemu-io", "qemu-img", "fio", "mkfs.xfs", "xfs_repair", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run appliance/e2e/packages.sh client", err)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit())
	dir, err := os.MkdirTemp("", "e2e")
	check(t, err)
	l, err := lab.Open(dir, programs)
	check(t, err)
	b := &bench{t: t, ctx: ctx, lab: l}
	t.Cleanup(func() { b.close(cancel) })
	b.Cluster, err = l.Cluster(ctx, lab.ClusterConfig{Extra: fmt.Sprintf("\n[namespace]\nmount = %q\n", l.Path(mount))})
	check(t, err)
	check(t, b.Serve(ctx, imageSize))
	return b
}

func (b *bench) close(cancel func()) {
	cancel()
	if err := b.lab.Close(); err != nil {
		b.t.Errorf("clean up: %v", err)
	}
	if b.t.Failed() {
		logs, _ := filepath.Glob(b.lab.Path("*.log"))
		for _, path := range logs {
			text, _ := os.ReadFile(path)
			const most = 6 << 10
			b.t.Logf("%s:\n%s", filepath.Base(path), text[max(0, len(text)-most):])
		}
	}
	_ = os.RemoveAll(b.lab.Dir)
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
