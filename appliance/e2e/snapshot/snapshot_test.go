package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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
	slots     = 64                     // of each writer in each image: older records are overwritten
	region    = slots * load.Block * 4 // bytes of a writer in each image
	record    = "RECORD"
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

// writer writes numbered records through one node: each is durable before the next begins, in the next image.
type writer struct {
	id       int
	sessions []*load.Session // one per image
	last     atomic.Int64    // record that was acknowledged
	slowest  time.Duration
}

func newWriter(ctx context.Context, id int, n *lab.ClusterNode) (*writer, error) {
	w := &writer{id: id}
	for i := range images() {
		s, err := load.Login(ctx, n.Portal(), target(i), fmt.Sprintf("iqn.2026-01.lunar.test:writer-%d", id), uint32(id*1000+i+1), patience)
		if err != nil {
			return w, err
		}
		w.sessions = append(w.sessions, s)
	}
	return w, nil
}

// place is where a writer's record lies in its image.
func place(writer int, n int64) int64 {
	return int64(writer)*region + n/int64(images())%slots*load.Block*4
}

func content(writer int, n int64) []byte {
	p := make([]byte, load.Block)
	copy(p, record)
	binary.LittleEndian.PutUint64(p[8:], uint64(writer))
	binary.LittleEndian.PutUint64(p[16:], uint64(n))
	return p
}

func (w *writer) run(stop <-chan struct{}) error {
	for n := int64(1); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		began := time.Now()
		if err := w.write(n); err != nil {
			return fmt.Errorf("writer %d, record %d: %w", w.id, n, err)
		}
		w.slowest = max(w.slowest, time.Since(began))
		w.last.Store(n)
	}
}

func (w *writer) write(n int64) error {
	s := w.sessions[n%int64(images())]
	return do(s, load.Write(place(w.id, n), load.Block, true), content(w.id, n))
}

// do repeats what a unit attention has interrupted.
func do(s *load.Session, cdb, out []byte) error {
	for try := 0; ; try++ {
		a, err := s.Do(cdb, out, 0)
		if err != nil {
			return err
		}
		if err := a.Err(); err == nil || a.Key() != 6 || try > 8 {
			return err
		}
	}
}

// judge looks for records in the images of a snapshot whose predecessor is missing.
func judge(writer int, content [][]byte) (last int64, err error) {
	at := func(n int64) int64 {
		return int64(binary.LittleEndian.Uint64(content[n%int64(images())][place(writer, n)+16:]))
	}
	all := int64(images() * slots)
	for n := range all {
		last = max(last, at(n))
	}
	for n := last; n > max(0, last-all); n-- {
		if got := at(n); got != n {
			return last, fmt.Errorf("writer %d: record %d is there, and its predecessor %d is not: %d", writer, last, n, got)
		}
	}
	return last, nil
}

// TestSnapshotsUnderLoad takes snapshots of several images while initiators write through all nodes.
func TestSnapshotsUnderLoad(t *testing.T) {
	ctx, c := newCluster(t)
	var names []string
	for i := range images() {
		check(t, c.Export(ctx, image(i), target(i), imageSize))
		names = append(names, image(i))
	}
	all, finish := startWriters(ctx, t, c)
	var holds []time.Duration
	const taken = 3
	for s := range taken {
		awaitRecords(t, all, int64(images()*10*(s+1)))
		set, err := c.Nodes[s%nodes].API.CreateSnapshot(ctx, api.CreateSnapshot{Images: names, Name: fmt.Sprint("s", s)})
		check(t, err)
		holds = append(holds, time.Duration(set.HoldNS))
	}
	awaitRecords(t, all, int64(images()*10*(taken+1)))
	finish()
	slices.Sort(holds)
	t.Logf("%d images, %d writers on %d nodes: I/O was held for %v (bar %v)", images(), writers, nodes, holds, bar())
	if worst := holds[len(holds)-1]; worst > bar() {
		t.Errorf("I/O was held for %v", worst)
	}
	for _, w := range all {
		t.Logf("writer %d: %d records, the slowest took %v", w.id, w.last.Load(), w.slowest)
	}
	for s := range taken {
		judgeSnapshot(ctx, t, c, s)
	}
	judgeThroughFailover(ctx, t, c)
	finishClean(ctx, t, c)
}

func startWriters(ctx context.Context, t *testing.T, c *lab.Cluster) (all []*writer, finish func()) {
	t.Helper()
	for i := range writers {
		w, err := newWriter(ctx, i, c.Nodes[i%nodes])
		check(t, err)
		all = append(all, w)
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range all {
		running.Go(func() {
			if err := w.run(stop); err != nil {
				t.Error(err)
			}
		})
	}
	end := sync.OnceFunc(func() {
		close(stop)
		running.Wait()
		for _, w := range all {
			for _, s := range w.sessions {
				s.Close()
			}
		}
	})
	t.Cleanup(end)
	return all, end
}

func awaitRecords(t *testing.T, all []*writer, more int64) {
	t.Helper()
	check(t, lab.Poll(time.Minute, func() error {
		for _, w := range all {
			if w.last.Load() < more {
				return fmt.Errorf("writer %d: %d records, not %d", w.id, w.last.Load(), more)
			}
		}
		return nil
	}))
}

// judgeSnapshot reads a snapshot's images through a node, by clones.
func judgeSnapshot(ctx context.Context, t *testing.T, c *lab.Cluster, s int) {
	t.Helper()
	var all [][]byte
	for i := range images() {
		data, err := readClone(ctx, c.Nodes[(s+1)%nodes], fmt.Sprintf("%s@s%d", image(i), s), fmt.Sprintf("%s/s%d-%d.img", lab.ClusterVolume, s, i),
			fmt.Sprintf("iqn.2026-01.lunar.test:s%d-%d", s, i))
		check(t, err)
		all = append(all, data)
	}
	for w := range writers {
		last, err := judge(w, all)
		if err != nil {
			t.Errorf("snapshot s%d: %v", s, err)
		}
		if last == 0 {
			t.Errorf("snapshot s%d has no record of writer %d", s, w)
		}
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
	for off := int64(0); off < writers*region; off += part {
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
