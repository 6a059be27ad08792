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
	"lunar/datapath/uring"
	"lunar/datapath/volume"
)

// cutLane is a lane whose disk path can be cut, which fails every operation with EIO.
type cutLane struct {
	*uring.Ring
	cut *atomic.Bool
}

func (l cutLane) Submit(op *uring.Op) {
	if !l.cut.Load() {
		l.Ring.Submit(op)
		return
	}
	_ = l.Post(func() {
		op.Err = &uring.OpError{Code: op.Code, Offset: op.Offset, Errno: unix.EIO, Kind: uring.ErrIO}
		op.Done(op)
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("not in time: ", what)
		}
	}
}

// TestPathLostIsRedirectedWithoutAnError cuts this node's own path, while the coordinator's stays.
func TestPathLostIsRedirectedWithoutAnError(t *testing.T) {
	var cut atomic.Bool
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1,
		lanes(func(_ int, r *uring.Ring) volume.Lane { return cutLane{r, &cut} }))
	im := n.create("a", 16*mib)
	write(t, im, pattern(mib, 1), 0)
	cut.Store(true)
	write(t, im, pattern(4096, 2), 4096)
	if !bytes.Equal(read(t, im, 4096, 4096), pattern(4096, 2)) || im.Sync() != nil {
		t.Fatal("wrong content")
	}
	eventually(t, "Redirected for NoDiskConnectivity", func() bool {
		s := n.vol.Status()
		return s.State == volume.Redirected && s.Reason == volume.NoDiskConnectivity
	})
	write(t, im, pattern(4096, 3), 8192)
	cut.Store(false)
	eventually(t, "Direct", func() bool { return n.vol.Status().State == volume.Direct })
	before := n.vol.Status().DirectRead.IOs
	if !bytes.Equal(read(t, im, 4096, 8192), append(pattern(4096, 2), pattern(4096, 3)...)) {
		t.Fatal("wrong content")
	}
	if n.vol.Status().DirectRead.IOs == before {
		t.Fatal("still not direct")
	}
}

// TestFaultsAreInvisible has the engine's twin fail, delay, shorten and drop direct I/O.
func TestFaultsAreInvisible(t *testing.T) {
	plan := uring.Plan{Seed: 7}
	for _, k := range []uring.FaultKind{uring.FaultFail, uring.FaultLateFail, uring.FaultShort, uring.FaultDelay, uring.FaultTransient} {
		plan.Rate[k] = 0.08
	}
	plan.Rate[uring.FaultDrop] = 0.02
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1,
		func(n *node) { n.options.Deadline = 100 * time.Millisecond },
		lanes(func(_ int, r *uring.Ring) volume.Lane {
			f, err := uring.NewFaulty(r, plan)
			if err != nil {
				t.Fatal(err)
			}
			return faultyLane{r, f}
		}))
	im := n.create("a", 8*mib)
	for i := range 150 {
		off := int64(i*i%500) * 4096
		write(t, im, pattern(16384, byte(i)), off)
		if !bytes.Equal(read(t, im, off, 16384), pattern(16384, byte(i))) {
			t.Fatal("wrong content after write", i)
		}
	}
}

type faultyLane struct {
	*uring.Ring
	faulty *uring.Faulty
}

func (l faultyLane) Submit(op *uring.Op) { l.faulty.Submit(op) }

// TestDeadDeviceIsACleanError lets the whole device end early: neither way is left.
func TestDeadDeviceIsACleanError(t *testing.T) {
	loop := scratchDevice(t, coordinator.Ext4, 400*mib)
	n := start(t, loop.Path, 1)
	im := n.create("a", 16*mib)
	write(t, im, pattern(mib, 1), 0)
	if err := loop.Limit(4096); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, rerr := im.ReadAt(make([]byte, 4096), 0)
	_, werr := im.WriteAt(make([]byte, 4096), 0)
	_, aerr := im.WriteAt(make([]byte, 4096), 8*mib)
	for _, err := range []error{rerr, werr, aerr} {
		if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EROFS) {
			t.Errorf("a dead device: %v", err)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if err := loop.Limit(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "direct reads work again", func() bool {
		p := make([]byte, mib)
		_, err := im.ReadAt(p, 0)
		return err == nil && bytes.Equal(p, pattern(mib, 1))
	})
	im.Close(ctx)
	n.t = ignoreErrors{t} // the file system may have shut itself down
	n.stop()
}

// TestLateWriteKeepsItsRange loses a write in the kernel: until it comes back nothing may be done in
// its range, and no recall of it may succeed.
func TestLateWriteKeepsItsRange(t *testing.T) {
	var faulty [2]*uring.Faulty
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1,
		func(n *node) { n.options.Deadline, n.options.Redirected = 50*time.Millisecond, 4*time.Second },
		lanes(func(i int, r *uring.Ring) volume.Lane {
			var err error
			if faulty[i], err = uring.NewFaulty(r, uring.Plan{Rate: loseAll()}); err != nil {
				t.Fatal(err)
			}
			return switchLane{r, faulty[i], &losing}
		}))
	losing.Store(false)
	im := n.create("a", 16*mib)
	write(t, im, pattern(mib, 1), 0)
	losing.Store(true)
	_, err := im.WriteAt(pattern(4096, 2), 8192)
	losing.Store(false)
	if !errors.Is(err, unix.ETIMEDOUT) {
		t.Fatalf("a lost write: %v", err)
	}
	if _, err := im.ReadAt(make([]byte, 4096), 8192); !errors.Is(err, volume.ErrWaited) {
		t.Fatalf("NoLateWrite: the range was read: %v", err)
	}
	if !bytes.Equal(read(t, im, 16384, 4096), pattern(mib, 1)[16384:20480]) {
		t.Fatal("other ranges go on")
	}
	began := time.Now()
	if err := im.Discard(0, mib); !errors.Is(err, volume.ErrWaited) || time.Since(began) > 3*time.Second {
		t.Fatalf("NoLateWrite: the range was freed, or a worker waited for it: %v after %v", err, time.Since(began))
	}
	limit, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := n.vol.Clone(limit, "a", "b"); !errors.Is(err, coordinator.ErrRecall) {
		t.Fatalf("NoLateWrite: the range was shared: %v", err)
	}
	for i, f := range faulty {
		done := make(chan struct{})
		if err := n.engine.Ring(i).Post(func() { f.Release(); close(done) }); err != nil {
			t.Fatal(err)
		}
		<-done
	}
	eventually(t, "the range is let go", func() bool {
		_, err := im.ReadAt(make([]byte, 4096), 8192)
		return err == nil
	})
	if err := im.Discard(0, mib); err != nil {
		t.Fatal(err)
	}
}

var losing atomic.Bool

func loseAll() (rate [7]float64) {
	rate[uring.FaultLose] = 1
	return rate
}

// switchLane loses what is submitted while losing is set.
type switchLane struct {
	*uring.Ring
	faulty *uring.Faulty
	losing *atomic.Bool
}

func (l switchLane) Submit(op *uring.Op) {
	if l.losing.Load() {
		l.faulty.Submit(op)
		return
	}
	l.Ring.Submit(op)
}

// TestRecallAgainstSubmission recalls ranges by unmap while other goroutines write them, on a volume
// that is otherwise full: the freed blocks go to another image, which must never see a stray write
// (RecallBeforeChange, NoLateWrite).
func TestRecallAgainstSubmission(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1, lateLanes(t))
	a, b := n.create("a", 16*mib), n.create("b", 16*mib)
	write(t, a, pattern(mib, 1), 0)
	fillVolume(t, n.create("rest", 1<<30))
	stop := make(chan struct{})
	ended := make(chan error, 4)
	for w := range 4 {
		go func() { ended <- scribble(a, w, stop) }()
	}
	p, got := bytes.Repeat([]byte{0xBB}, 64<<10), 0
	for until := time.Now().Add(20 * time.Second); got < 20 && time.Now().Before(until); {
		if err := a.Discard(0, mib); err != nil {
			t.Fatal(err)
		}
		if _, err := b.WriteAt(p, 0); err == nil {
			got++
			time.Sleep(10 * time.Millisecond) // for what is late
			if !bytes.Equal(read(t, b, 0, len(p)), p) {
				t.Fatal("NoLateWrite: the other image was overwritten")
			}
		} else if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if err := b.Discard(0, int64(len(p))); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	for range 4 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if got == 0 {
		t.Fatal("the other image never got a block")
	}
}

// lateLanes let every other direct I/O begin some milliseconds late, as a busy device would.
func lateLanes(t *testing.T) setting {
	plan := uring.Plan{Seed: 3, MaxDelay: 20 * time.Millisecond}
	plan.Rate[uring.FaultDelay] = 0.5
	return lanes(func(_ int, r *uring.Ring) volume.Lane {
		f, err := uring.NewFaulty(r, plan)
		if err != nil {
			t.Fatal(err)
		}
		return faultyLane{r, f}
	})
}

// scribble writes to the first MiB of an image until told to stop; there may be no space for it.
func scribble(im *volume.Image, w int, stop chan struct{}) error {
	p := bytes.Repeat([]byte{0xAA}, 65536)
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := im.WriteAt(p, int64((i*7+w*3)%16)*65536); err != nil && !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
}

// fillVolume writes to an image until nothing is left.
func fillVolume(t *testing.T, im *volume.Image) {
	t.Helper()
	for step := mib; step >= 4096; step /= 4 {
		p := make([]byte, step)
		for off := im.Size() - int64(step); off >= 0; off -= int64(step) {
			if mapped, _ := im.Mapped(off); mapped {
				continue
			}
			if _, err := im.WriteAt(p, off); errors.Is(err, unix.ENOSPC) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}
