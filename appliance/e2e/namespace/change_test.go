package namespace

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/appliance/e2e/lab"
)

// changeLimit bounds the wait for what a change of the layouts brings.
const changeLimit = 20 * time.Second

// TestUnderChange writes and checks on a node that does not coordinate, 32 I/Os at once, while all that can happen to
// its layouts does: redirected mode on and off, a snapshot, which recalls and shares every extent, a cut path, another
// coordinator. No I/O fails, and all nodes have the same bytes.
func TestUnderChange(t *testing.T) {
	b := newBench(t)
	coordinator, others := b.roles()
	user, third := others[0], others[1]
	w := b.load(user, "disk.img")
	b.grows(user, directWrites)
	check(t, user.API.RedirectVolume(b.ctx, lab.ClusterVolume, true))
	b.grows(user, redirectedWrites)
	check(t, user.API.RedirectVolume(b.ctx, lab.ClusterVolume, false))
	b.grows(user, directWrites)
	_, err := coordinator.API.CreateSnapshot(b.ctx, api.CreateSnapshot{Images: []string{lab.ClusterImage}, Name: "s"})
	check(t, err)
	b.grows(user, directWrites)
	check(t, user.Path.Limit(uint64(mib)))
	b.grows(user, redirectedWrites)
	check(t, user.Path.Limit(0))
	b.grows(user, directWrites)
	_, err = user.API.MoveVolume(b.ctx, lab.ClusterVolume, third.Name)
	check(t, err)
	b.grows(user, directWrites)
	want := w.stop()
	for _, n := range b.Nodes {
		got := make([]byte, len(want))
		fd, err := unix.Open(b.at(n, "disk.img"), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		check(t, err)
		read, err := unix.Pread(fd, got, 0)
		check(t, err)
		check(t, unix.Close(fd))
		if !bytes.Equal(got[:read], want) {
			t.Errorf("node %s has other bytes", n.Name)
		}
	}
	b.clean()
}

func directWrites(c *api.Counters) uint64     { return c.DirectWrite.IOs }
func redirectedWrites(c *api.Counters) uint64 { return c.RedirectedWrite.IOs }

// grows waits until a node has done more I/O of a kind than when it was called.
func (b *bench) grows(n *lab.ClusterNode, of func(*api.Counters) uint64) {
	b.t.Helper()
	const more = 200
	count := func() (uint64, error) {
		v, err := n.API.Volume(b.ctx, lab.ClusterVolume)
		for i := range v.Nodes {
			if v.Nodes[i].Node == n.Name {
				return of(&v.Nodes[i].Counters), err
			}
		}
		return 0, fmt.Errorf("node %s is not listed: %w", n.Name, err)
	}
	first, err := count()
	check(b.t, err)
	check(b.t, lab.Poll(changeLimit, func() error {
		now, err := count()
		if err == nil && now < first+more {
			err = fmt.Errorf("%d writes, %d before", now, first)
		}
		return err
	}))
}

// load is programs that write and check, each its own part of an image.
type load struct {
	t     *testing.T
	fd    int
	bytes []byte // what the image has to have
	ended atomic.Bool
	all   sync.WaitGroup
}

const (
	loadJobs = 32
	loadPart = 16 << 10 // bytes of one job
	loadUnit = 512
)

func (b *bench) load(n *lab.ClusterNode, path string) *load {
	b.t.Helper()
	fd, err := unix.Open(b.at(n, path), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	check(b.t, err)
	w := &load{t: b.t, fd: fd, bytes: make([]byte, loadJobs*loadPart)}
	b.t.Cleanup(func() { w.ended.Store(true); w.all.Wait() })
	for i := range loadJobs {
		w.all.Go(func() { w.job(i) })
	}
	return w
}

// job writes some sectors, and reads its whole part.
func (w *load) job(i int) {
	random := rand.New(rand.NewPCG(uint64(i), 1))
	part, got := w.bytes[i*loadPart:][:loadPart], make([]byte, loadPart)
	for !w.ended.Load() {
		from := random.IntN(loadPart/loadUnit) * loadUnit
		data := part[from:][:loadUnit+random.IntN((loadPart-from)/loadUnit)*loadUnit]
		for j := range data {
			data[j] = byte(random.Uint32())
		}
		if n, err := unix.Pwrite(w.fd, data, int64(i*loadPart+from)); n != len(data) || err != nil {
			w.t.Errorf("job %d: wrote %d of %d bytes: %v", i, n, len(data), err)
			return
		}
		if n, err := unix.Pread(w.fd, got, int64(i*loadPart)); n != len(got) || err != nil {
			w.t.Errorf("job %d: read %d bytes: %v", i, n, err)
			return
		}
		if !bytes.Equal(got, part) {
			w.t.Errorf("job %d: read other bytes than it wrote", i)
			return
		}
	}
}

// stop ends the jobs, and returns what the image has to begin with.
func (w *load) stop() []byte {
	w.ended.Store(true)
	w.all.Wait()
	check(w.t, unix.Close(w.fd))
	return w.bytes
}
