package repair

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
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

var programs string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if testing.Short() || os.Geteuid() != 0 {
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
	dir   string
	fleet *load.Fleet
	asked time.Time // when event was asked last
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("end-to-end tests need root and time: network namespaces, loop devices, mounts")
	}
	for _, tool := range []string{"qemu-io", "mkfs.xfs", "xfs_repair", "xfs_db", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: run appliance/e2e/packages.sh client", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(runs())*limit)
	dir, err := os.MkdirTemp("", "e2e")
	check(t, err)
	l, err := lab.Open(dir, programs)
	check(t, err)
	b := &bench{t: t, ctx: ctx, dir: dir}
	t.Cleanup(func() {
		if b.fleet != nil {
			b.fleet.Abandon()
		}
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if t.Failed() {
			b.showLogs()
		}
		_ = os.RemoveAll(dir)
	})
	b.Cluster, err = l.Cluster(ctx, lab.ClusterConfig{Nodes: nodes})
	check(t, err)
	check(t, b.Serve(ctx, imageSize))
	return b
}

// showLogs prints the end of each daemon's output.
func (b *bench) showLogs() {
	const most = 12 << 10
	paths, _ := filepath.Glob(filepath.Join(b.dir, "*.log"))
	for _, path := range paths {
		text, _ := os.ReadFile(path)
		b.t.Logf("%s:\n%s", filepath.Base(path), text[max(0, len(text)-most):])
	}
}

// load starts writers through all nodes, which check what they read.
func (b *bench) load() {
	b.t.Helper()
	fill := fmt.Sprintf("write -P 0 0 %d", load.Allocated(nodes))
	_, err := lab.QemuIO(b.ctx, b.Nodes[0].URL(lab.ClusterTarget), fill)
	check(b.t, err)
	var paths []load.Path
	for _, n := range b.Nodes {
		paths = append(paths, load.Path{Name: n.Name, Portal: n.Portal()})
	}
	b.fleet = load.NewFleet(lab.ClusterTarget, paths...)
	b.fleet.Start(b.ctx)
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
