package backup

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
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
	gib       = int64(1) << 30
	limit     = 10 * time.Minute
	patience  = 30 * time.Second // of one command of an initiator
	nodes     = 3
	writers   = nodes
	images    = 4
	imageSize = 32 * mib
	slots     = 64                     // of each writer in each image: older records are overwritten
	region    = slots * load.Block * 4 // bytes of a writer in each image
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

// writer writes numbered records through one node: each is durable before the next begins, in the next image.
type writer struct {
	id       int
	sessions []*load.Session // one per image
	last     atomic.Int64    // record that was acknowledged
	slowest  time.Duration
}

func newWriter(ctx context.Context, id int, n *lab.ClusterNode) (*writer, error) {
	w := &writer{id: id}
	for i := range images {
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
	return int64(writer)*region + n/images%slots*load.Block*4
}

func content(writer int, n int64) []byte {
	p := make([]byte, load.Block)
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
		if err := write(w.sessions[n%images], place(w.id, n), content(w.id, n)); err != nil {
			return fmt.Errorf("writer %d, record %d: %w", w.id, n, err)
		}
		w.slowest = max(w.slowest, time.Since(began))
		w.last.Store(n)
	}
}

// write repeats what a unit attention has interrupted.
func write(s *load.Session, off int64, data []byte) error {
	for try := 0; ; try++ {
		a, err := s.Do(load.Write(off, int64(len(data)), true), data, 0)
		if err != nil {
			return err
		}
		if err := a.Err(); err == nil || a.Key() != 6 || try > 8 {
			return err
		}
	}
}

// judge looks for records in copies of all images whose predecessor is missing.
func judge(writer int, copies [][]byte) (last int64, err error) {
	at := func(n int64) int64 { return int64(binary.LittleEndian.Uint64(copies[n%images][place(writer, n)+16:])) }
	const all = int64(images * slots)
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

// writing are writers that run.
type writing struct {
	all    []*writer
	finish func()
}

func startWriters(ctx context.Context, t *testing.T, on []*lab.ClusterNode) *writing {
	t.Helper()
	out := &writing{}
	for i := range writers {
		w, err := newWriter(ctx, i, on[i%len(on)])
		check(t, err)
		out.all = append(out.all, w)
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range out.all {
		running.Go(func() {
			if err := w.run(stop); err != nil {
				t.Error(err)
			}
		})
	}
	out.finish = sync.OnceFunc(func() {
		close(stop)
		running.Wait()
		for _, w := range out.all {
			for _, s := range w.sessions {
				s.Close()
			}
		}
	})
	t.Cleanup(out.finish)
	return out
}

// goOn waits until each writer has written so many more records.
func (w *writing) goOn(t *testing.T, more int64) {
	t.Helper()
	var from []int64
	for _, one := range w.all {
		from = append(from, one.last.Load())
	}
	check(t, lab.Poll(time.Minute, func() error {
		for i, one := range w.all {
			if got := one.last.Load() - from[i]; got < more {
				return fmt.Errorf("writer %d has written %d records of %d", i, got, more)
			}
		}
		return nil
	}))
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
