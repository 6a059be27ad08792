package datapath

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

// flushGate is a coordinator whose flushes wait, or fail, before they begin.
type flushGate struct {
	*coordinator.Coordinator
	arrived chan struct{}
	pass    chan error
}

func (g *flushGate) Flush(ctx context.Context, call protocol.Call) error {
	g.arrived <- struct{}{}
	if err := <-g.pass; err != nil {
		return err
	}
	return g.Coordinator.Flush(ctx, call)
}

func gated(gate **flushGate) setting {
	return func(n *node) {
		*gate = &flushGate{n.coord, make(chan struct{}, 8), make(chan error, 8)}
		n.options.Coordinator = *gate
	}
}

func inBackground(fn func() error) chan error {
	ended := make(chan error, 1)
	go func() { ended <- fn() }()
	return ended
}

// TestFlushWaitsForTheOneUnderWay has a flush come while another one makes an unmap durable: it may
// not be acknowledged before the unmap is (Durable).
func TestFlushWaitsForTheOneUnderWay(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 320*mib)
		var gate *flushGate
		n := start(t, loop.Path, 1, gated(&gate))
		im := n.create("a", 16*mib)
		write(t, im, pattern(4*mib, 1), 0)
		gate.pass <- nil
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		<-gate.arrived
		if err := im.Discard(mib, mib); err != nil {
			t.Fatal(err)
		}
		first := inBackground(im.Sync)
		<-gate.arrived
		second := inBackground(im.Sync)
		acknowledged := false
		select {
		case err := <-second:
			acknowledged = err == nil
		case <-time.After(200 * time.Millisecond):
		}
		if err := n.coord.Shutdown(); err != nil {
			t.Fatal(err)
		}
		gate.pass <- nil
		gate.pass <- nil
		<-first
		if !acknowledged {
			<-second
		}
		gate.pass <- nil
		n.stopAfterPowerFailure(im)
		again := start(t, loop.Path, 2)
		if got := read(t, again.open("a"), mib, mib); acknowledged && !bytes.Equal(got, make([]byte, mib)) {
			t.Fatal("Durable: a flush was acknowledged, the unmap before it came back")
		}
	})
}

// TestFailedFlushIsNotForgotten lets the coordinator's flush fail once: the next one must try again.
func TestFailedFlushIsNotForgotten(t *testing.T) {
	var gate *flushGate
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1, gated(&gate))
	im := n.create("a", 16*mib)
	write(t, im, pattern(4096, 1), 0)
	gate.pass <- unix.EIO
	if err := im.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	gate.pass <- nil
	if err := im.Sync(); err != nil || len(gate.arrived) != 2 {
		t.Fatalf("%v, %d flushes reached the coordinator", err, len(gate.arrived))
	}
	if err := im.Sync(); err != nil || len(gate.arrived) != 2 {
		t.Fatalf("a flush with nothing redirected before it: %v, %d", err, len(gate.arrived))
	}
}

// slowFlush is a lane that fails device flushes, each when it is let go.
type slowFlush struct {
	*uring.Ring
	on   *atomic.Bool
	held chan func()
}

func (l slowFlush) Submit(op *uring.Op) {
	if op.Code != uring.Flush || !l.on.Load() {
		l.Ring.Submit(op)
		return
	}
	l.held <- func() {
		_ = l.Post(func() {
			op.Err = &uring.OpError{Code: op.Code, Errno: unix.EIO, Kind: uring.ErrIO}
			op.Done(op)
		})
	}
}

// TestCloseWaitsForAFlush closes an image while the device executes a flush that then fails, and so
// goes to the coordinator.
func TestCloseWaitsForAFlush(t *testing.T) {
	var on atomic.Bool
	held := make(chan func(), 1)
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1,
		lanes(func(_ int, r *uring.Ring) volume.Lane { return slowFlush{r, &on, held} }))
	im := n.create("a", 16*mib)
	on.Store(true)
	flushed := inBackground(im.Sync)
	fail := <-held
	closed := inBackground(func() error { return im.Close(ctx) })
	select {
	case <-closed:
		t.Fatal("closed with a flush under way")
	case <-time.After(100 * time.Millisecond):
	}
	fail()
	if err := errors.Join(<-flushed, <-closed); err != nil {
		t.Fatal(err)
	}
}
