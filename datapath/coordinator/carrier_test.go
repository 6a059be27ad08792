package coordinator_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/uring"
)

// gate is a lane that holds operations back while it is shut, and may let them go wrong.
type gate struct {
	*uring.Ring
	to      uring.Submitter // the ring, or what makes faults
	mu      sync.Mutex      // guards shut and waiting
	shut    bool
	waiting []*uring.Op
}

func (g *gate) Submit(op *uring.Op) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		g.waiting = append(g.waiting, op)
		return
	}
	g.to.Submit(op)
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	all := g.waiting
	g.waiting = nil
	_ = g.Post(func() {
		for _, op := range all {
			g.to.Submit(op)
		}
	})
}

func (g *gate) held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting)
}

// carrying is an image of a coordinator that has an engine, all written, and a Carrier.
type carrying struct {
	*open
	gate *gate
	k    *coordinator.Carrier
	back chan *protocol.Transfer
}

const carriedSize = 8 * mib

func newCarrying(t *testing.T, fs coordinator.FSType, o coordinator.Options, plan *uring.Plan) *carrying {
	t.Helper()
	engine, err := uring.Open(uring.Options{PoolBytes: mib, Deadline: 100 * time.Millisecond, Grace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	g := &gate{Ring: engine.Ring(0), to: engine.Ring(0)}
	if plan != nil {
		if g.to, err = uring.NewFaulty(engine.Ring(0), *plan); err != nil {
			t.Fatal(err)
		}
	}
	o.Epoch, o.Quiet, o.Engine, o.Lanes = 1, time.Millisecond, engine, []coordinator.Lane{g}
	v := mountWith(t, format(t, fs, 400*mib, loopdev.Options{}), o)
	x := &carrying{open: v.image(t, "disk", carriedSize), gate: g, back: make(chan *protocol.Transfer, 1024)}
	x.write(t, make([]byte, carriedSize), 0)
	x.k = v.Carrier(x.call, func(all []*protocol.Transfer) {
		for _, tr := range all {
			x.back <- tr
		}
	})
	return x
}

// aligned is a buffer for direct I/O with p's bytes.
func aligned(p []byte) []byte {
	b := make([]byte, len(p)+4096)
	b = b[-uintptr(unsafe.Pointer(unsafe.SliceData(b)))&4095:][:len(p)]
	copy(b, p)
	return b
}

func ranges(off, n int64) []layout.Range { return []layout.Range{{Off: off, Len: n}} }

func storing(p []byte, off int64) *protocol.Transfer {
	return &protocol.Transfer{Buf: aligned(p), Off: off, Write: true, FUA: off&4096 != 0}
}

// await collects n transfers.
func (x *carrying) await(t *testing.T, n int, done bool) {
	t.Helper()
	for range n {
		select {
		case tr := <-x.back:
			if tr.Done != done {
				t.Errorf("at %d: done is %v", tr.Off, tr.Done)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a transfer does not come back")
		}
	}
}

func TestCarrierMovesData(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) {
			x := newCarrying(t, fs, coordinator.Options{}, nil)
			want := make([]byte, carriedSize)
			rng := rand.New(rand.NewPCG(1, 2))
			for round := range 16 {
				var batch []*protocol.Transfer
				for _, block := range rng.Perm(carriedSize >> 14)[:32] { // of 16 KiB, so that none overlap
					p, off := pattern(512*(1+rng.IntN(32)), byte(round)), int64(block)<<14
					copy(want[off:], p)
					batch = append(batch, storing(p, off))
				}
				if rest := x.k.Start(batch); len(rest) != 0 {
					t.Fatal(len(rest), "were not begun")
				}
				x.await(t, 32, true)
			}
			if !bytes.Equal(x.read(t, 0, carriedSize), want) {
				t.Error("the blocking way reads something else")
			}
			tr := &protocol.Transfer{Buf: aligned(make([]byte, mib)), Off: mib}
			if len(x.k.Start([]*protocol.Transfer{tr})) != 0 {
				t.Fatal("not begun")
			}
			x.await(t, 1, true)
			if !bytes.Equal(tr.Buf, want[mib:2*mib]) {
				t.Error("the Carrier reads something else")
			}
		})
	}
}

func TestCarrierLeavesTheRest(t *testing.T) {
	x := newCarrying(t, coordinator.XFS, coordinator.Options{}, nil)
	if err := x.v.Unmap(ctx, x.call, ranges(mib, mib)); err != nil {
		t.Fatal(err)
	}
	p := pattern(4096, 1)
	if err := x.v.Clone(ctx, x.v.meta(), "disk", "copy"); err != nil {
		t.Fatal(err)
	}
	kept := x.v.image(t, "own", mib) // not shared, nothing written
	for what, tr := range map[string]*protocol.Transfer{
		"a hole": storing(p, mib), "shared": storing(p, 0), "half a sector": storing(p[:256], 0),
		"beyond the end": storing(p, carriedSize-512), "negative": storing(p, -4096), "nothing": storing(nil, 0),
		"two extents": {Buf: aligned(make([]byte, 8192)), Off: mib - 4096},
		"misaligned":  {Buf: aligned(make([]byte, 8192))[8:4104], Off: 0},
	} {
		if rest := x.k.Start([]*protocol.Transfer{tr}); len(rest) != 1 || rest[0] != tr {
			t.Errorf("%s: begun", what)
			x.await(t, 1, true)
		}
	}
	if k := x.v.Carrier(protocol.Call{Image: kept.call.Image, Epoch: 2}, nil); len(k.Start([]*protocol.Transfer{storing(p, 0)})) != 1 {
		t.Error("begun in another epoch")
	}
	if k := x.v.Carrier(protocol.Call{Image: 1 << 60, Epoch: 1}, nil); len(k.Start([]*protocol.Transfer{storing(p, 0)})) != 1 {
		t.Error("begun on an image that is not open")
	}
	if rest := x.k.Start([]*protocol.Transfer{{Buf: aligned(p)}}); len(rest) != 0 {
		t.Error("a shared extent is not read")
	} else {
		x.await(t, 1, true)
	}
}

// TestChangesWaitForTransfers has a write under way when changes of its range come, and a change under
// way when a write comes.
func TestChangesWaitForTransfers(t *testing.T) {
	changes := map[string]func(x *carrying) error{
		"unmap": func(x *carrying) error { return x.v.Unmap(ctx, x.call, ranges(0, mib)) },
		"compare and write": func(x *carrying) error {
			at, err := x.v.CompareAndWrite(ctx, x.call, pattern(512, 1), pattern(512, 2), 0, false)
			if at >= 0 {
				err = errors.New("the write had not ended")
			}
			return err
		},
		"clone":  func(x *carrying) error { return x.v.Clone(ctx, x.v.meta(), "disk", "copy") },
		"detach": func(x *carrying) error { return x.v.Detach(ctx, x.call, x.id) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			x := newCarrying(t, coordinator.XFS, coordinator.Options{}, nil)
			x.gate.set(true)
			if len(x.k.Start([]*protocol.Transfer{storing(pattern(4096, 1), 0), storing(pattern(4096, 1), carriedSize-4096)})) != 0 {
				t.Fatal("not begun")
			}
			ended := make(chan error, 1)
			go func() { ended <- change(x) }()
			select {
			case err := <-ended:
				t.Fatal("the change did not wait:", err)
			case <-time.After(50 * time.Millisecond):
			}
			if len(x.k.Start([]*protocol.Transfer{storing(pattern(4096, 3), 8192)})) != 1 && name != "compare and write" {
				t.Error("begun beside a change") // that waits
			}
			x.gate.set(false)
			x.await(t, 2, true)
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func checksum(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// TestNoTransferAfterHandover hands over with 32 writes under way: Handover waits for them, refuses new
// ones, and nothing changes on the device any more once it has returned.
func TestNoTransferAfterHandover(t *testing.T) {
	x := newCarrying(t, coordinator.XFS, coordinator.Options{}, nil)
	x.gate.set(true)
	var batch []*protocol.Transfer
	for i := range 32 {
		batch = append(batch, storing(pattern(4096, byte(i)), int64(i)<<16))
	}
	if len(x.k.Start(batch)) != 0 {
		t.Fatal("not begun")
	}
	eventually(t, "all wait", func() bool { return x.gate.held() == 32 })
	ended := make(chan error, 1)
	go func() { ended <- x.v.Handover(ctx) }()
	eventually(t, "the term's end", func() bool { _, err := x.v.Layout(x.call); return errors.Is(err, coordinator.ErrStaleEpoch) })
	if len(x.k.Start([]*protocol.Transfer{storing(pattern(4096, 1), 0)})) != 1 {
		t.Error("begun after the term")
	}
	select {
	case err := <-ended:
		t.Fatal("Handover did not wait:", err)
	case <-time.After(100 * time.Millisecond):
	}
	x.gate.set(false)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	before := checksum(t, x.v.path)
	x.await(t, 32, true)
	time.Sleep(50 * time.Millisecond)
	if checksum(t, x.v.path) != before {
		t.Error("the device changed after Handover")
	}
	next := mountAt(t, x.v.dev, 2).attach(t, "disk")
	for i := range 32 {
		if !bytes.Equal(next.read(t, int64(i)<<16, 4096), pattern(4096, byte(i))) {
			t.Errorf("transfer %d was done, and is not there", i)
		}
	}
}

// TestHandoverUnderLoad does the same with a stream of transfers that nothing holds back.
func TestHandoverUnderLoad(t *testing.T) {
	x := newCarrying(t, coordinator.XFS, coordinator.Options{}, nil)
	stop := make(chan struct{})
	done := make(chan map[int64]byte)
	go func() {
		last := map[int64]byte{}
		defer func() { done <- last }()
		for n := byte(0); ; n++ {
			var batch []*protocol.Transfer
			for i := range 32 {
				batch = append(batch, storing(pattern(4096, n+byte(i)), int64(i)<<16))
			}
			begun := len(batch) - len(x.k.Start(batch))
			for range begun {
				if tr := <-x.back; tr.Done {
					last[tr.Off] = tr.Buf[0]
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	if err := x.v.Handover(ctx); err != nil {
		t.Fatal(err)
	}
	before := checksum(t, x.v.path)
	time.Sleep(50 * time.Millisecond)
	close(stop)
	last := <-done
	if checksum(t, x.v.path) != before {
		t.Error("the device changed after Handover")
	}
	next := mountAt(t, x.v.dev, 2).attach(t, "disk")
	for off, first := range last {
		if got := next.read(t, off, 4096)[0]; got != first {
			t.Errorf("at %d: %d, acknowledged was %d", off, got, first)
		}
	}
	if len(last) != 32 {
		t.Error("nothing was under way:", len(last))
	}
}

// TestNothingAfterShutdown shuts the volume down while writes are on their way to the lane.
func TestNothingAfterShutdown(t *testing.T) {
	x := newCarrying(t, coordinator.XFS, coordinator.Options{}, nil)
	block, entered := make(chan struct{}), make(chan struct{})
	if err := x.gate.Post(func() { close(entered); <-block }); err != nil {
		t.Fatal(err)
	}
	<-entered
	if len(x.k.Start([]*protocol.Transfer{storing(pattern(4096, 1), 0)})) != 0 {
		t.Fatal("not begun")
	}
	if err := x.v.Shutdown(); err != nil {
		t.Fatal(err)
	}
	before := checksum(t, x.v.path)
	close(block)
	x.await(t, 1, false)
	if len(x.k.Start([]*protocol.Transfer{storing(pattern(4096, 1), 0)})) != 1 {
		t.Error("begun after Shutdown")
	}
	if checksum(t, x.v.path) != before {
		t.Error("the device changed after Shutdown")
	}
}

// TestCarrierFaults lets the device fail, answer late, in pieces, or not before the deadline: every
// transfer comes back, and what is said to be done is there.
func TestCarrierFaults(t *testing.T) {
	var failed failures
	plan := uring.Plan{Seed: 7}
	plan.Rate[uring.FaultFail], plan.Rate[uring.FaultLateFail], plan.Rate[uring.FaultShort] = 0.1, 0.1, 0.1
	plan.Rate[uring.FaultDelay], plan.Rate[uring.FaultTransient], plan.Rate[uring.FaultDrop] = 0.1, 0.1, 0.02
	x := newCarrying(t, coordinator.XFS, coordinator.Options{Failed: failed.failed}, &plan)
	want := make([]byte, carriedSize)
	undone := 0
	for round := range 8 {
		var batch []*protocol.Transfer
		for i := range 32 {
			batch = append(batch, storing(pattern(16384, byte(round*32+i)), int64(i)<<16))
		}
		if len(x.k.Start(batch)) != 0 {
			t.Fatal("not begun")
		}
		for range batch {
			tr := <-x.back
			copy(want[tr.Off:], tr.Buf)
			if !tr.Done {
				undone++
				x.write(t, tr.Buf, tr.Off)
			}
		}
	}
	if !bytes.Equal(x.read(t, 0, carriedSize), want) {
		t.Error("something else is there")
	}
	if undone == 0 || undone == 8*32 {
		t.Error("the plan made no faults, or nothing else:", undone)
	}
	if failed.n.Load() != 0 {
		t.Error("a transfer's error, which the blocking way did not have, ended the term:", failed.last.Load())
	}
}

// TestHeldTransfer loses a write in the kernel: it stays a call under way, with its range, until the
// kernel has let go.
func TestHeldTransfer(t *testing.T) {
	plan := uring.Plan{Seed: 7}
	plan.Rate[uring.FaultLose] = 1
	x := newCarrying(t, coordinator.XFS, coordinator.Options{}, &plan)
	if len(x.k.Start([]*protocol.Transfer{storing(pattern(4096, 1), 0)})) != 0 {
		t.Fatal("not begun")
	}
	select {
	case <-x.back:
		t.Error("came back while the kernel had it")
	case <-time.After(400 * time.Millisecond): // over Deadline and Grace
	}
	limit, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := x.v.Unmap(limit, x.call, ranges(0, mib)); err == nil {
		t.Error("its range was changed")
	}
	faulty := x.gate.to.(*uring.Faulty)
	if err := x.gate.Post(func() { faulty.Release() }); err != nil {
		t.Fatal(err)
	}
	x.await(t, 1, false)
	if err := x.v.Unmap(ctx, x.call, ranges(0, mib)); err != nil {
		t.Error(err)
	}
}

// TestImageClosedBeneathACall has a write wait for the barrier while the image's last holder leaves.
func TestImageClosedBeneathACall(t *testing.T) {
	v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{Epoch: 1, Members: []protocol.NodeID{"n1"}})
	if err := v.Create(ctx, v.meta(), "disk", protocol.CreateOptions{Size: mib}); err != nil {
		t.Fatal(err)
	}
	x := v.attach(t, "disk")
	ended := make(chan error, 1)
	go func() { ended <- v.Write(ctx, x.call, pattern(4096, 1), 0, false) }()
	time.Sleep(50 * time.Millisecond)
	if err := v.Detach(ctx, x.call, x.id); err != nil {
		t.Fatal(err)
	}
	if err := v.Acknowledge(ctx, "n1", 1); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, coordinator.ErrNotFound) {
		t.Error(err)
	}
}
