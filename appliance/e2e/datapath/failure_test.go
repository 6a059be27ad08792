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

// TestNothingStaysRecalledAfterAFailure has the file system end in front of every kind of change:
// each fails in time, grants nothing that is not committed, and leaves no range recalled.
func TestNothingStaysRecalledAfterAFailure(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		n := start(t, scratchDevice(t, fs, 320*mib).Path, 1)
		im := n.create("a", 16*mib)
		write(t, im, pattern(2*mib, 1), 0)
		if err := n.coord.Shutdown(); err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func() error{
			"allocate": func() error { _, err := im.WriteAt(make([]byte, 4096), 8*mib); return err },
			"unmap":    func() error { return im.Discard(mib, 8192) },
			"grow":     func() error { return n.vol.Resize(ctx, "a", 32*mib, false) },
			"swap":     func() error { return swap(n, im, 0) },
		} {
			began := time.Now()
			if err := change(); err == nil || time.Since(began) > 15*time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
		}
		for off := int64(0); off < im.Size(); off += mib {
			p, began := make([]byte, mib), time.Now()
			if _, err := im.ReadAt(p, off); errors.Is(err, volume.ErrWaited) || time.Since(began) > 15*time.Second {
				t.Errorf("at %d: %v after %v", off, err, time.Since(began))
			}
		}
		if e, ok := im.Layout().At(8 * mib); !ok || e.State.Writable() {
			t.Errorf("CommitBeforeGrant: %v", e)
		}
		n.stopAfterPowerFailure(im)
	})
}

// swap compares a sector with its pattern and writes it.
func swap(n *node, im *volume.Image, off int64) error {
	result := make(chan error, 1)
	p := bytes.Clone(pattern(2*mib, 1)[off : off+512])
	err := n.engine.Ring(0).Post(func() {
		im.CompareAndWrite(0, p, p, off, false, func(_ int, err error) { result <- err })
	})
	return errors.Join(err, <-result)
}

// deafToWrites is a lane and a coordinator that fail writes alone.
type deafToWrites struct {
	*uring.Ring
	on *atomic.Bool
}

func (l deafToWrites) Submit(op *uring.Op) {
	if op.Code != uring.Write || !l.on.Load() {
		l.Ring.Submit(op)
		return
	}
	_ = l.Post(func() {
		op.Err = &uring.OpError{Code: op.Code, Errno: unix.EIO, Kind: uring.ErrIO}
		op.Done(op)
	})
}

type failingWrites struct {
	*coordinator.Coordinator
	on *atomic.Bool
}

func (c failingWrites) Write(ctx context.Context, call protocol.Call, p []byte, off int64, fua bool) error {
	if c.on.Load() {
		return unix.EIO
	}
	return c.Coordinator.Write(ctx, call, p, off, fua)
}

// TestDeviceThatOnlyReadsIsUnavailable: a probe, which reads, must not call such a device sound.
func TestDeviceThatOnlyReadsIsUnavailable(t *testing.T) {
	var on atomic.Bool
	n := start(t, scratchDevice(t, coordinator.XFS, 320*mib).Path, 1,
		func(n *node) { n.options.Coordinator = failingWrites{n.coord, &on} },
		lanes(func(_ int, r *uring.Ring) volume.Lane { return deafToWrites{r, &on} }))
	im := n.create("a", 16*mib)
	write(t, im, pattern(mib, 1), 0)
	on.Store(true)
	if _, err := im.WriteAt(make([]byte, 4096), 0); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	eventually(t, "Unavailable", func() bool { return n.vol.Status().State == volume.Unavailable })
	time.Sleep(200 * time.Millisecond) // some probes
	if s := n.vol.Status(); s.State != volume.Unavailable {
		t.Fatalf("%+v", s)
	}
	on.Store(false)
	write(t, im, pattern(4096, 2), 0)
	eventually(t, "Direct", func() bool { return n.vol.Status().State == volume.Direct })
}
