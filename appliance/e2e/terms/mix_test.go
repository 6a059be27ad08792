package terms

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

var (
	mixSeed = flag.Uint64("mixseed", 1, "seed of TestMix")
	mixFor  = flag.Duration("mixfor", 3*time.Second, "how long TestMix goes on")
)

// faultyLane lets direct I/O go wrong below the engine.
type faultyLane struct {
	*uring.Ring
	faulty *uring.Faulty
}

func (l faultyLane) Submit(op *uring.Op) { l.faulty.Submit(op) }

func faulty(t testing.TB, seed uint64) setting {
	return func(n *node) {
		plan := uring.Plan{Seed: seed, MaxDelay: 5 * time.Millisecond}
		for k, rate := range map[uring.FaultKind]float64{uring.FaultFail: 0.01, uring.FaultLateFail: 0.01, uring.FaultShort: 0.02,
			uring.FaultDelay: 0.02, uring.FaultTransient: 0.02, uring.FaultDrop: 0.002} {
			plan.Rate[k] = rate
		}
		f, err := uring.NewFaulty(n.engine.Ring(0), plan)
		if err != nil {
			t.Fatal(err)
		}
		n.options.Lanes = []volume.Lane{faultyLane{n.engine.Ring(0), f}}
		n.options.Deadline = 200 * time.Millisecond
	}
}

// TestMix has coordinators die and hand over, paths cut, nodes suspended, calls, answers and direct
// I/O lost, in a seeded order, while all nodes write, unmap, swap, and change the name space.
func TestMix(t *testing.T) {
	s := newSAN(t, 3, coordinator.XFS, func(n *node) { faulty(t, *mixSeed+uint64(len(n.name)))(n) })
	var lost atomic.Int64
	x := &mix{s: s, rng: rand.New(rand.NewPCG(*mixSeed, 3)), wrap: s.losing(0.02, &lost)}
	s.elect(0)
	s.follow(x.wrap)
	s.nodes[0].create("thin", 16*mib)
	w := s.start(&writers{ims: s.openAll("thin"), mixed: true}, 2)
	stop := make(chan struct{})
	var names sync.WaitGroup
	var changes atomic.Int64
	failed := make(chan error, len(s.nodes))
	for _, n := range s.nodes {
		names.Go(func() { failed <- n.rename(stop, &changes) })
	}
	for until := time.Now().Add(*mixFor); time.Now().Before(until) && !t.Failed(); {
		x.step()
	}
	close(stop)
	names.Wait()
	for range s.nodes {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	w.stop()
	t.Logf("seed %d: %v; %d calls or answers lost; %d operations, %d changes of names", *mixSeed, x.did, lost.Load(), w.count.Load(), changes.Load())
}

// mix is what happens to the cluster.
type mix struct {
	s    *san
	rng  *rand.Rand
	wrap func(volume.Coordinator) volume.Coordinator
	did  [4]int // deaths, hand-overs, cuts, suspensions
}

func (x *mix) step() {
	time.Sleep(time.Duration(20+x.rng.IntN(100)) * time.Millisecond)
	kind, s := x.rng.IntN(4), x.s
	x.did[kind]++
	switch kind {
	case 0:
		s.kill()
		x.next()
	case 1:
		for _, n := range s.nodes {
			n.vol.Orphan()
		}
		s.must(s.lead.Handover(ctx))
		x.next()
	case 2:
		x.cut(s.nodes[x.rng.IntN(len(s.nodes))])
	case 3:
		n := s.nodes[x.rng.IntN(len(s.nodes))]
		s.must(n.vol.Suspend(ctx, volume.LeaseLost))
		time.Sleep(10 * time.Millisecond)
		n.vol.Resume(volume.LeaseLost)
	}
}

func (x *mix) next() {
	time.Sleep(time.Duration(x.rng.IntN(30)) * time.Millisecond)
	x.s.elect(x.rng.IntN(len(x.s.nodes)))
	x.s.follow(x.wrap)
}

// cut takes a node's path away for a while. When that node is the coordinator, the volume moves.
func (x *mix) cut(n *node) {
	s := x.s
	s.must(n.loop.Limit(cutAt))
	time.Sleep(time.Duration(20+x.rng.IntN(150)) * time.Millisecond)
	if s.nodes[s.lead.on] == n {
		for _, n := range s.nodes {
			n.vol.Orphan()
		}
		_ = s.lead.Shutdown() // as a fence would
		s.bury()
		for on := range s.nodes {
			if s.nodes[on] != n {
				s.elect(on)
				break
			}
		}
		s.follow(x.wrap)
	}
	s.must(n.loop.Limit(0))
}

// rename makes images of its own, resizes, clones, renames and deletes them, and wants to find each
// change done once.
func (n *node) rename(stop chan struct{}, changes *atomic.Int64) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		a, b, c := fmt.Sprintf("%s/a%d", n.name, i), fmt.Sprintf("%s/b%d", n.name, i), fmt.Sprintf("%s/c%d", n.name, i)
		for _, change := range []func() error{
			func() error { return n.vol.Create(ctx, a, protocol.CreateOptions{Size: mib}) },
			func() error { return n.vol.Resize(ctx, a, 2*mib, false) },
			func() error { return n.vol.Clone(ctx, a, b) },
			func() error { return n.vol.Rename(ctx, b, c) },
			func() error { return n.vol.Delete(ctx, a) },
			func() error { return n.has(c, 2*mib, a, b) },
			func() error { return n.vol.Delete(ctx, c) },
		} {
			if err := change(); err != nil {
				return fmt.Errorf("%s: Once: %w", n.name, err)
			}
			changes.Add(1)
		}
	}
}

// has wants an image of that size, and the others gone.
func (n *node) has(path string, size int64, gone ...string) error {
	st, err := n.vol.Stat(ctx, path)
	if err != nil || st.Size != size {
		return fmt.Errorf("%s has %d bytes, not %d: %w", path, st.Size, size, err)
	}
	for _, p := range gone {
		if _, err := n.vol.Stat(ctx, p); !errors.Is(err, coordinator.ErrNotFound) {
			return fmt.Errorf("%s is still there: %w", p, err)
		}
	}
	return nil
}
