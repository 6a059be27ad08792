package datapath

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

// holding is a coordinator that knows the holder that attached last.
type holding struct {
	*coordinator.Coordinator
	holder protocol.Holder
}

func (h *holding) Attach(ctx context.Context, node protocol.NodeID, path string, holder protocol.Holder) (protocol.Grant, protocol.HolderID, error) {
	h.holder = holder
	return h.Coordinator.Attach(ctx, node, path, holder)
}

// TestWaitsAreBounded has more I/O wait for a range than may, and all of it end.
func TestWaitsAreBounded(t *testing.T) {
	var held *holding
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1, func(n *node) {
		held = &holding{Coordinator: n.coord}
		n.options.Redirected, n.options.Coordinator = 300*time.Millisecond, held
	})
	im := n.create("a", 16*mib)
	recall := protocol.Recall{Call: protocol.Call{Image: im.ID(), Epoch: 1}, Number: 1 << 40, Range: layout.Range{Len: 4096}}
	if err := held.holder.Recall(ctx, recall); err != nil {
		t.Fatal(err)
	}
	const many = volume.MaxParked + 100
	results := make(chan error, many)
	p := n.engine.Pool().Get(4096)
	defer n.engine.Pool().Put(p)
	if err := n.engine.Ring(0).Post(func() {
		for range many {
			im.Read(0, p, 0, func(err error) { results <- err })
		}
	}); err != nil {
		t.Fatal(err)
	}
	busy, waited := 0, 0
	for range many {
		switch err := <-results; {
		case errors.Is(err, volume.ErrBusy):
			busy++
		case errors.Is(err, volume.ErrWaited):
			waited++
		}
	}
	if busy != 100 || waited != volume.MaxParked || n.vol.Status().Waiting != 0 {
		t.Fatalf("%d were refused, %d waited, %d wait still", busy, waited, n.vol.Status().Waiting)
	}
}

// fullLane is a lane whose mailbox refuses work while full is set.
type fullLane struct {
	*uring.Ring
	full *atomic.Bool
	seen *atomic.Int64
}

func (l fullLane) Post(fn func()) error {
	if l.full.Load() {
		l.seen.Add(1)
		return fmt.Errorf("post: %w: %w", uring.ErrQueueFull, unix.EAGAIN)
	}
	return l.Ring.Post(fn)
}

// TestAnswersWaitForAFullLane: an answer belongs on its lane's thread, also when the mailbox is full.
func TestAnswersWaitForAFullLane(t *testing.T) {
	var full atomic.Bool
	var seen atomic.Int64
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1,
		lanes(func(_ int, r *uring.Ring) volume.Lane { return fullLane{r, &full, &seen} }))
	im := n.create("a", 16*mib)
	p := n.engine.Pool().Get(4096)
	defer n.engine.Pool().Put(p)
	results := make(chan error, 2)
	if err := n.vol.Redirect(ctx, volume.UserRequest, true); err != nil {
		t.Fatal(err)
	}
	write(t, im, pattern(4096, 1), 0)
	full.Store(true)
	if err := n.engine.Ring(0).Post(func() {
		im.Read(0, p, 0, func(err error) { results <- err })
		im.Unmap(0, 4096, 4096, func(err error) { results <- err })
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lane is full", func() bool { return seen.Load() > 0 })
	time.Sleep(50 * time.Millisecond)
	if len(results) > 0 {
		t.Error("answered on another thread")
	}
	full.Store(false)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestShrunkDeviceIsAPathError cuts this node's path by making the device small for it: a write there
// says ENOSPC, which must not reach the initiator as a full volume.
func TestShrunkDeviceIsAPathError(t *testing.T) {
	var cut atomic.Bool
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1,
		lanes(func(_ int, r *uring.Ring) volume.Lane { return shrunkLane{r, &cut} }))
	im := n.create("a", 16*mib)
	write(t, im, pattern(mib, 1), 0)
	cut.Store(true)
	write(t, im, pattern(4096, 2), 4096)
}

// shrunkLane is a lane whose device has become smaller than what is written.
type shrunkLane struct {
	*uring.Ring
	cut *atomic.Bool
}

func (l shrunkLane) Submit(op *uring.Op) {
	if !l.cut.Load() || op.Code != uring.Write {
		l.Ring.Submit(op)
		return
	}
	_ = l.Post(func() {
		op.Err = &uring.OpError{Code: op.Code, Offset: op.Offset, Errno: unix.ENOSPC, Kind: uring.ErrIO}
		op.Done(op)
	})
}
