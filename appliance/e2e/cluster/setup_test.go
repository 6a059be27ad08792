package cluster

import (
	"context"
	"os"
	"syscall"
	"testing"
	"time"

	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/e2e/lab/labtest"
)

const (
	mib       = int64(1) << 20
	testLimit = 6 * time.Minute // against a hang; a busy machine needs some
	imageSize = 256 * mib
)

func TestMain(m *testing.M) { labtest.Main(m) }

// bench is a cluster with one image, and writers through all its nodes.
type bench struct {
	*lab.Cluster
	t       *testing.T
	ctx     context.Context //nolint:containedctx // of the test, whose helpers all need it
	lab     *lab.Lab
	fleet   *load.Fleet
	exports []*lab.Process
}

func newBench(t *testing.T, nodes int) *bench {
	t.Helper()
	return newBenchFor(t, nodes, testLimit)
}

func newBenchFor(t *testing.T, nodes int, limit time.Duration) *bench {
	t.Helper()
	ctx, l := labtest.Open(t, limit, "qemu-io", "qemu-storage-daemon", "fio", "mkfs.xfs", "xfs_repair", "ip")
	b := &bench{t: t, ctx: ctx, lab: l}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("LUNAR_KEEP") != "" {
			b.dump()
		}
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

// dump has each daemon write its stacks to its log, and die.
func (b *bench) dump() {
	for _, n := range b.Nodes {
		_ = syscall.Kill(n.PID(), syscall.SIGQUIT)
	}
	time.Sleep(time.Second)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// load starts the fleet.
func (b *bench) load() {
	b.t.Helper()
	var err error
	b.fleet, err = load.StartFleet(b.ctx, b.Cluster)
	check(b.t, err)
}

// finish stops the writers in order, and reads through every node all that was acknowledged.
func (b *bench) finish() {
	b.t.Helper()
	b.fleet.Finish(b.ctx)
	for _, err := range b.fleet.Record.Errors() {
		b.t.Error(err)
	}
	b.t.Log(b.fleet)
}

// clean takes everything off line and looks at the file system.
func (b *bench) clean() {
	b.t.Helper()
	check(b.t, b.Eject(b.ctx))
	check(b.t, b.Stop())
	check(b.t, b.Repair(b.ctx))
}

// window is a stretch of time in which something happened.
type window struct {
	b    *bench
	from time.Time
}

func (b *bench) open() window { return window{b, time.Now()} }

// not keeps the paths of other nodes.
func not(n *lab.ClusterNode) func(string) bool {
	return func(path string) bool { return path != n.Name }
}

// hands is how many processes and threads a command goes through, each of which this machine may let wait.
const hands = 4

// slack is added to each bar. Nothing with LUNAR_RUNS, which measures, as `make demo` does; in CI the machine may be busy
// with other things, whose writes hold the disk up as well, and a bar only finds what hangs.
func slack() time.Duration {
	if os.Getenv("LUNAR_RUNS") != "" {
		return 0
	}
	return 5 * time.Second
}

// bar fails the test if an operation of a kind took longer than limit, beyond what this machine itself was
// late, and the slack.
func (w window) bar(kind load.Kind, limit time.Duration, keep func(string) bool) {
	w.b.t.Helper()
	now := time.Now()
	o := w.b.fleet.Record.Longest(kind, w.from, now, keep)
	late := w.b.fleet.Record.Longest(load.Machine, w.from, now, nil).Took
	w.b.t.Logf("%s: longest %v (through %s, %v after the event); bar %v; this machine late by up to %v", kind, o.Took.Round(time.Millisecond),
		o.Path, o.Start.Sub(w.from).Round(time.Millisecond), limit, late.Round(time.Millisecond))
	if o.Took > limit+hands*late+slack() {
		w.b.t.Errorf("%s operation took %v, the bar is %v", kind, o.Took, limit)
	}
}
