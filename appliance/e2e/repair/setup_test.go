package repair

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
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
	limit     = 4 * time.Minute // against a hang; a busy machine needs some
	nodes     = 3
	imageSize = 256 * mib
	pieces    = 64        // of the fragmented part
	partBegin = 128 * mib // of it; the writers are before it
)

// runs is how often something is repeated: once in CI.
func runs() int {
	if n, err := strconv.Atoi(os.Getenv("LUNAR_RUNS")); err == nil {
		return n
	}
	return 1
}

// slack is what CI's machine, which may be busy with other things, may take longer.
func slack() time.Duration {
	if os.Getenv("LUNAR_RUNS") != "" {
		return time.Second
	}
	return 10 * time.Second
}

func TestMain(m *testing.M) { labtest.Main(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench is a cluster with one image.
type bench struct {
	*lab.Cluster
	t     *testing.T
	ctx   context.Context //nolint:containedctx // of the test, whose helpers all need it
	lab   *lab.Lab
	fleet *load.Fleet
	asked time.Time // when event was asked last
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ctx, l := labtest.Open(t, time.Duration(runs())*limit, "qemu-io", "mkfs.xfs", "xfs_repair", "xfs_db", "ip")
	b := &bench{t: t, ctx: ctx, lab: l}
	t.Cleanup(func() {
		if b.fleet != nil {
			b.fleet.Abandon()
		}
	})
	var err error
	b.Cluster, err = l.Cluster(ctx, lab.ClusterConfig{Nodes: nodes})
	check(t, err)
	check(t, b.Serve(ctx, imageSize))
	return b
}

// load starts writers through all nodes, which check what they read.
func (b *bench) load() {
	b.t.Helper()
	var err error
	b.fleet, err = load.StartFleet(b.ctx, b.Cluster)
	check(b.t, err)
}

// finish stops the writers, and reads through every node all that was acknowledged.
func (b *bench) finish() {
	b.t.Helper()
	b.fleet.Finish(b.ctx)
	for _, err := range b.fleet.Record.Errors() {
		b.t.Error(err)
	}
	b.t.Log(b.fleet)
}

// working waits until the writers have written some more.
func (b *bench) working() {
	b.t.Helper()
	before := b.fleet.Acknowledged()
	check(b.t, lab.Poll(time.Minute, func() error {
		if n := b.fleet.Acknowledged(); n < before+200 {
			return fmt.Errorf("%d records were acknowledged, of 200", n-before)
		}
		return nil
	}))
}

// value is what each byte of a piece of the fragmented part has.
func value(piece int) int { return piece%250 + 1 }

// fragment writes a part of the image in another order than it is read.
func (b *bench) fragment() {
	b.t.Helper()
	var commands []string
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(pieces) {
		commands = append(commands, fmt.Sprintf("write -P %d %d %d", value(i), partBegin+int64(i)*mib, mib))
	}
	_, err := lab.QemuIO(b.ctx, b.Nodes[0].URL(lab.ClusterTarget), commands...)
	check(b.t, err)
}

// fragmented checks that part through a node.
func (b *bench) fragmented(n *lab.ClusterNode) {
	b.t.Helper()
	var commands []string
	for i := range pieces {
		commands = append(commands, fmt.Sprintf("read -P %d %d %d", value(i), partBegin+int64(i)*mib, mib))
	}
	out, err := lab.QemuIO(b.ctx, n.URL(lab.ClusterTarget), commands...)
	check(b.t, err)
	if bytes.Contains([]byte(out), []byte("verification failed")) {
		b.t.Errorf("through %s: %s", n.Name, out)
	}
}

// damage stops all nodes, flips bits of the volume's metadata, and starts them again.
func (b *bench) damage() {
	b.t.Helper()
	check(b.t, b.Stop())
	check(b.t, b.Repair(b.ctx))
	out, err := lab.Run(b.ctx, "xfs_db", "-x", "-c", "agi 3", "-c", "write -d freecount 3", b.Device.Path)
	if err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	if b.Repair(b.ctx) == nil {
		b.t.Fatal("xfs_repair -n finds nothing after the bits were flipped")
	}
	errs := make(chan error, nodes)
	for _, n := range b.Nodes { // together: one alone has no majority
		go func() { errs <- n.Restart(b.ctx) }()
	}
	for range nodes {
		check(b.t, <-errs)
	}
}

// repair has a node repair the volume; step sees the progress.
func (b *bench) repair(n *lab.ClusterNode, r api.Repair, step func(api.RepairStep)) (api.RepairResult, error) {
	return n.API.RepairVolume(b.ctx, lab.ClusterVolume, r, step)
}
