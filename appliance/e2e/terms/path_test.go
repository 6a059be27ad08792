package terms

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

// cutAt is what is left of a path that is cut: too little for anything but its begin.
const cutAt = mib

// TestPathCut cuts the path of one node, at its loop device, while all write.
func TestPathCut(t *testing.T) {
	s := newSAN(t, 3, coordinator.XFS)
	s.begin(0)
	s.nodes[0].create("a", 16*mib)
	ims := s.openAll("a")
	w := s.writers(ims, 4)
	cut := s.nodes[2]
	time.Sleep(100 * time.Millisecond)
	s.must(cut.loop.Limit(cutAt))
	eventually(t, 2*time.Second, "NoDiskConnectivity", func() bool {
		st := cut.vol.Status()
		return st.State == volume.Redirected && st.Reason == volume.NoDiskConnectivity
	})
	time.Sleep(500 * time.Millisecond)
	for _, n := range s.nodes[:2] {
		if st := n.vol.Status(); st.State != volume.Direct && st.State != volume.Paused {
			t.Errorf("%s: %+v", n.name, st)
		}
	}
	if st := cut.vol.Status(); st.State != volume.Redirected {
		t.Errorf("flaps: %+v", st)
	}
	s.must(cut.loop.Limit(0))
	began := time.Now()
	eventually(t, 2*time.Second, "direct again", func() bool { return cut.vol.Status().Reason == 0 })
	t.Logf("direct again after %v", time.Since(began))
	before := cut.vol.Status().DirectWrite.IOs
	eventually(t, time.Second, "a direct write", func() bool { return cut.vol.Status().DirectWrite.IOs > before })
	w.stop()
	if cut.vol.Status().RedirectedWrite.IOs == 0 {
		t.Error("nothing was redirected")
	}
}

// refusedLane is a lane on which the device refuses writes by reservation, while on is set; it counts
// what reaches the device.
type refusedLane struct {
	*uring.Ring
	on        *atomic.Bool
	submitted *atomic.Int64
}

func (l refusedLane) Submit(op *uring.Op) {
	if op.Code != uring.Read || op.Offset != 0 { // not a probe
		l.submitted.Add(1)
	}
	if op.Code == uring.Read || !l.on.Load() {
		l.Ring.Submit(op)
		return
	}
	_ = l.Post(func() {
		op.Err = &uring.OpError{Code: op.Code, Offset: op.Offset, Errno: unix.EBADE, Kind: uring.ErrIO}
		op.Done(op)
	})
}

// refusing sets the lanes of a node, and its callback.
func refused(on *atomic.Bool, submitted, told *atomic.Int64) setting {
	return func(n *node) {
		n.options.Lanes = []volume.Lane{refusedLane{n.engine.Ring(0), on, submitted}}
		n.options.Fenced = func(err error) {
			if errors.Is(err, unix.EBADE) {
				told.Add(1)
			}
		}
	}
}

// TestFencedNodeSendsNothing has the device refuse a node: it waits, says so, and goes on by new
// layouts when it is let in again. A write and a flush that were refused are not lost.
func TestFencedNodeSendsNothing(t *testing.T) {
	var on atomic.Bool
	var submitted, told atomic.Int64
	s := newSAN(t, 1, coordinator.XFS, refused(&on, &submitted, &told))
	s.begin(0)
	n := s.nodes[0]
	n.create("a", mib)
	im := n.open("a")
	s.must(n.write(im, pattern(mib, 1), 0))
	s.must(im.Sync())
	on.Store(true)
	results := make(chan error, 3)
	go func() { results <- n.write(im, pattern(4096, 2), 4096) }()
	eventually(t, time.Second, "Fenced", func() bool {
		st := n.vol.Status()
		return st.State == volume.Paused && st.Reason == volume.Fenced && told.Load() == 1
	})
	before := submitted.Load()
	redirected := n.vol.Status().RedirectedWrite.IOs
	go func() { results <- n.write(im, pattern(4096, 3), 8192) }()
	go func() { results <- im.Sync() }()
	eventually(t, time.Second, "all wait", func() bool { return n.vol.Status().Waiting == 3 })
	time.Sleep(100 * time.Millisecond)
	if st := n.vol.Status(); submitted.Load() != before || st.RedirectedWrite.IOs != redirected || len(results) > 0 {
		t.Fatalf("a fenced node went on: %d submitted, %+v", submitted.Load()-before, st)
	}
	on.Store(false)
	n.vol.Resume(volume.Fenced)
	s.must(errors.Join(<-results, <-results, <-results))
	got, err := n.read(im, 0, 16384)
	want := pattern(mib, 1)[:16384]
	copy(want[4096:], pattern(4096, 2))
	copy(want[8192:], pattern(4096, 3))
	if err != nil || !bytes.Equal(got, want) || n.vol.Status().State != volume.Direct {
		t.Fatalf("%v, %+v", err, n.vol.Status())
	}
}

// TestSuspendedNodeSendsNothing: after Suspend nothing reaches the device, and what was recalled
// without the node's knowledge meanwhile is not written after Resume (NoLateWrite).
func TestSuspendedNodeSendsNothing(t *testing.T) {
	var on atomic.Bool
	var submitted, told atomic.Int64
	s := newSAN(t, 2, coordinator.XFS, func(n *node) {
		if n.name == "node1" {
			refused(&on, &submitted, &told)(n)
		}
	})
	s.begin(0)
	near, far := s.nodes[0], s.nodes[1]
	near.create("a", 16*mib)
	ims := s.openAll("a")
	s.must(far.write(ims[1], pattern(mib, 1), 0))
	var all sync.WaitGroup
	var failure atomic.Pointer[error]
	stop := make(chan struct{})
	for w := range 4 {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := far.write(ims[1], pattern(4096, byte(i)), int64(i%32*4+w)*4096); err != nil {
					failure.Store(&err)
				}
			}
		})
	}
	for round := range 5 {
		time.Sleep(20 * time.Millisecond)
		s.must(far.vol.Suspend(ctx, volume.LeaseLost))
		before := submitted.Load()
		s.lead.Expel(far.name) // the others take it for fenced
		s.must(s.lead.Hello(ctx, far.name, uint64(round+1)))
		s.must(ims[0].Discard(0, mib))
		time.Sleep(20 * time.Millisecond)
		if n := submitted.Load() - before; n != 0 {
			t.Fatalf("%d I/Os were submitted while suspended", n)
		}
		if st := far.vol.Status(); st.State != volume.Paused || st.Reason != volume.LeaseLost {
			t.Fatalf("%+v", st)
		}
		l := ims[0].Layout()
		far.vol.Resume(volume.LeaseLost)
		eventually(t, 2*time.Second, "attached anew", func() bool { return far.vol.Status().Astray == 0 })
		if e, _ := l.At(0); e.State.Writable() {
			t.Fatal("not unmapped")
		}
	}
	close(stop)
	all.Wait()
	if err := failure.Load(); err != nil {
		t.Fatal(*err)
	}
	if got, err := near.read(ims[0], 4096*128, 4096); err != nil || !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("NoLateWrite: wrong content", err)
	}
}
