package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/volume"
	"lunar/iscsi/scsi"
)

var _ scsi.Copier = (*volume.Image)(nil)

// copyFrom copies on a lane and waits.
func (n *node) copyFrom(lane int, to *volume.Image, from any, srcOff, dstOff, size int64) error {
	result := make(chan error, 1)
	err := n.engine.Ring(lane).Post(func() {
		to.CopyFrom(lane, from, srcOff, dstOff, size, func(err error) { result <- err })
	})
	if err != nil {
		return err
	}
	return <-result
}

func isShared(s layout.State) bool { return s == layout.Shared }

func TestCopyIsReflink(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1)
	a, b := n.create("a", 32*mib), n.create("b", 32*mib)
	data := pattern(8*mib, 1)
	write(t, a, data, 0)
	before := n.vol.Status().DirectRead.IOs
	if err := n.copyFrom(0, b, a, 0, 16*mib, 8*mib); err != nil {
		t.Fatal(err)
	}
	source, copied := layout.Range{Len: 8 * mib}, layout.Range{Off: 16 * mib, Len: 8 * mib}
	if !a.Layout().Is(source, isShared) || !b.Layout().Is(copied, isShared) {
		t.Fatalf("not shared: %v, %v", a.Layout().Extents(), b.Layout().Extents())
	}
	if !bytes.Equal(read(t, b, 16*mib, 8*mib), data) || n.vol.Status().DirectRead.IOs == before {
		t.Fatal("the copy does not read as the source, directly")
	}
	write(t, a, pattern(4096, 2), 4096)
	write(t, b, pattern(4096, 3), 16*mib+8192)
	if !bytes.Equal(read(t, b, 16*mib, 8192), data[:8192]) || !bytes.Equal(read(t, a, 8192, mib), data[8192:8192+mib]) {
		t.Fatal("a write to one changed the other")
	}
	if e, _ := a.Layout().At(4096); e.State != layout.Written {
		t.Fatalf("after a write %v is still shared", e)
	}
}

func TestCopyThatCannotBeShared(t *testing.T) {
	n := start(t, scratchDevice(t, coordinator.Ext4, 400*mib).Path, 1)
	a, b := n.create("a", 4*mib), n.create("b", 4*mib)
	if err := n.copyFrom(0, b, a, 0, 0, mib); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("ext4: %v", err)
	}
	if err := n.copyFrom(0, b, a, 512, 0, mib); !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("sectors: %v", err)
	}
	if err := n.copyFrom(0, b, a, 4*mib, 0, mib); !errors.Is(err, unix.EINVAL) {
		t.Errorf("beyond the end: %v", err)
	}
	for _, from := range []any{nil, n, start(t, scratchDevice(t, coordinator.XFS, 400*mib).Path, 1).create("a", 4*mib)} {
		if err := n.copyFrom(0, b, from, 0, 0, mib); !errors.Is(err, unix.EXDEV) {
			t.Errorf("%T: %v", from, err)
		}
	}
}

// Copies move whole slots between two images while every slot is written, read and compared by the
// worker that it belongs to, on all lanes.
const (
	copySlot    = 64 << 10
	copySlots   = 96 // of each image
	copyWorkers = 6
	copySteps   = 120
)

func TestCopyUnderVerifiedIO(t *testing.T) {
	loop := scratchDevice(t, coordinator.XFS, 500*mib)
	n := start(t, loop.Path, 1)
	images := []*volume.Image{n.create("a", copySlot*copySlots), n.create("b", copySlot*copySlots)}
	models := [][]byte{make([]byte, copySlot*copySlots), make([]byte, copySlot*copySlots)}
	var copies atomic.Int64
	var all sync.WaitGroup
	for w := range copyWorkers {
		all.Go(func() {
			c := copyRun{n: n, images: images, models: models, w: w, rng: rand.New(rand.NewPCG(*modelSeed, uint64(w))), copies: &copies}
			if err := c.run(); err != nil {
				t.Errorf("seed %d, worker %d: %v", *modelSeed, w, err)
			}
		})
	}
	all.Wait()
	for i, im := range images {
		if !bytes.Equal(read(t, im, 0, len(models[i])), models[i]) {
			t.Errorf("image %d differs from the model", i)
		}
	}
	t.Logf("%d copies", copies.Load())
	for _, im := range images {
		if err := im.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	n.stop()
	checkFileSystem(t, loop.Path, coordinator.XFS)
}

type copyRun struct {
	n      *node
	images []*volume.Image
	models [][]byte // only the worker's slots are touched
	w      int
	rng    *rand.Rand
	copies *atomic.Int64
}

// place is a slot of this worker in one of the images.
func (c *copyRun) place() (image int, off int64) {
	return c.rng.IntN(2), int64(c.rng.IntN(copySlots/copyWorkers)*copyWorkers+c.w) * copySlot
}

func (c *copyRun) run() error {
	for step := range copySteps {
		if err := c.step(); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	return nil
}

func (c *copyRun) step() error {
	image, off := c.place()
	model := c.models[image][off : off+copySlot]
	switch c.rng.IntN(4) {
	case 0:
		return c.copyTo(image, off)
	case 1, 2:
		at := c.rng.Int64N(copySlot/512) * 512
		p := bytes.Repeat([]byte{byte(c.rng.Uint32())}, int(min(copySlot-at, 512*(1+c.rng.Int64N(24)))))
		copy(model[at:], p)
		_, err := c.images[image].WriteAt(p, off+at)
		return err
	}
	p := make([]byte, copySlot)
	if _, err := c.images[image].ReadAt(p, off); err != nil {
		return err
	}
	if !bytes.Equal(p, model) {
		return fmt.Errorf("image %d at %d: wrong content", image, off)
	}
	return nil
}

func (c *copyRun) copyTo(image int, off int64) error {
	source, from := c.place()
	if source == image && from == off {
		return nil
	}
	lane := c.rng.IntN(c.n.engine.Rings())
	if err := c.n.copyFrom(lane, c.images[image], c.images[source], from, off, copySlot); err != nil {
		return err
	}
	c.copies.Add(1)
	copy(c.models[image][off:off+copySlot], c.models[source][from:])
	return nil
}
