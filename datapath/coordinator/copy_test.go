package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// copyTo copies r of o to off of the image t.
func (o *open) copyTo(t *open, off int64, r layout.Range) error {
	return o.v.Copy(ctx, t.call, off, o.call, r)
}

func isShared(s layout.State) bool { return s == layout.Shared }

// sharesWith tells whether two ranges lie on the same blocks, by what FIEMAP says.
func (o *open) sharesWith(other *open, r layout.Range, at int64) bool {
	for e := range o.layout().In(r) {
		off := e.FileOff - r.Off + at
		for f := range other.layout().In(layout.Range{Off: off, Len: e.Len}) {
			if f.State != layout.Shared || e.State != layout.Shared || f.DevOff-f.FileOff+off != e.DevOff {
				return false
			}
		}
	}
	return true
}

func TestCopySharesBlocksUntilTheyAreWritten(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", 16*mib), v.image(t, "b", 16*mib)
	data, old := pattern(4*mib, 1), pattern(8*mib, 2)
	a.write(t, data, mib)
	b.write(t, old, 0)
	if err := a.copyTo(b, 2*mib, layout.Range{Off: mib, Len: 3 * mib}); err != nil {
		t.Fatal(err)
	}
	copy(old[2*mib:], data[:3*mib])
	if !bytes.Equal(b.read(t, 0, 8*mib), old) {
		t.Fatal("not copied")
	}
	if !a.sharesWith(b, layout.Range{Off: mib, Len: 3 * mib}, 2*mib) {
		t.Fatalf("the blocks are not shared: %v, %v", a.layout().Extents(), b.layout().Extents())
	}
	if a.view.Recalls() != 0 || b.view.Recalls() != 0 {
		t.Fatal("a recall was not ended")
	}
	a.write(t, pattern(8192, 3), mib)
	b.write(t, pattern(8192, 4), 2*mib+8192)
	copy(data, pattern(8192, 3))
	copy(old[2*mib+8192:], pattern(8192, 4))
	if !bytes.Equal(a.read(t, mib, 4*mib), data) || !bytes.Equal(b.read(t, 0, 8*mib), old) {
		t.Fatal("a write to one image changed the other")
	}
	if e, _ := a.layout().At(mib); e.State != layout.Written {
		t.Fatalf("what was written is not granted again: %v", e)
	}
}

// A copy of a hole makes one.
func TestCopyOfHole(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", 4*mib), v.image(t, "b", 4*mib)
	b.write(t, pattern(4*mib, 1), 0)
	if err := a.copyTo(b, mib, layout.Range{Len: mib}); err != nil {
		t.Fatal(err)
	}
	if !b.layout().Is(layout.Range{Off: mib, Len: mib}, layout.State.Zero) || !bytes.Equal(b.read(t, mib, mib), make([]byte, mib)) {
		t.Fatalf("no hole: %v", b.layout().Extents())
	}
}

func TestCopyWithinImage(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a := v.image(t, "a", 16*mib)
	data := pattern(2*mib, 1)
	for _, at := range []struct{ from, to int64 }{{0, 8 * mib}, {12 * mib, 2 * mib}} {
		a.write(t, data, at.from)
		if err := a.copyTo(a, at.to, layout.Range{Off: at.from, Len: 2 * mib}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.read(t, at.to, 2*mib), data) || !a.layout().Is(layout.Range{Off: at.to, Len: 2 * mib}, isShared) {
			t.Fatalf("%v: not shared: %v", at, a.layout().Extents())
		}
	}
	a.write(t, pattern(4096, 9), 8*mib)
	if !bytes.Equal(a.read(t, 0, 2*mib), data) {
		t.Fatal("a write to the copy changed the source")
	}
}

// What cannot be shared is refused before anything is recalled.
func TestCopyRefusesWithoutChange(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", 4*mib), v.image(t, "b", 4*mib)
	a.write(t, pattern(mib, 1), 0)
	recalls := len(a.recalls)
	for _, c := range []struct {
		to  *open
		off int64
		r   layout.Range
	}{
		{b, 512, layout.Range{Len: 4096}},
		{b, 0, layout.Range{Off: 512, Len: 4096}},
		{b, 0, layout.Range{Len: 4608}},
		{a, 4096, layout.Range{Len: 8192}},
		{b, 4 * mib, layout.Range{Len: 4096}},
		{b, 0, layout.Range{Off: 4*mib - 4096, Len: 8192}},
	} {
		if err := a.copyTo(c.to, c.off, c.r); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%v to %d: %v", c.r, c.off, err)
		}
	}
	if err := a.copyTo(b, 0, layout.Range{}); err != nil {
		t.Errorf("nothing to copy: %v", err)
	}
	if len(a.recalls) != recalls || len(b.recalls) != 0 || b.layout().Allocated() != 0 {
		t.Error("a refused copy recalled or changed something")
	}
}

func TestCopyIsNotSupportedByExt4(t *testing.T) {
	v := scratch(t, coordinator.Ext4)
	a, b := v.image(t, "a", 4*mib), v.image(t, "b", 4*mib)
	a.write(t, pattern(mib, 1), 0)
	for range 3 {
		if err := a.copyTo(b, 0, layout.Range{Len: mib}); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Fatal(err)
		}
	}
	if len(b.recalls) != 1 || b.view.Recalls() != 0 || a.view.Recalls() != 0 {
		t.Errorf("%d recalls for what the file system cannot do, open %d", len(b.recalls), b.view.Recalls())
	}
}

// Copies both ways, within an image and beside clones, opens and writes must not wait in a circle.
func TestCopiesDoNotWaitInACircle(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", 16*mib), v.image(t, "b", 16*mib)
	a.write(t, pattern(4*mib, 1), 0)
	b.write(t, pattern(4*mib, 2), 0)
	var all sync.WaitGroup
	run := func(what string, fn func(i int) error) {
		all.Go(func() {
			for i := range 20 {
				if err := fn(i); err != nil {
					t.Errorf("%s %d: %v", what, i, err)
				}
			}
		})
	}
	run("a to b", func(i int) error { return a.copyTo(b, 8*mib, layout.Range{Len: 2 * mib}) })
	run("b to a", func(i int) error { return b.copyTo(a, 8*mib, layout.Range{Len: 2 * mib}) })
	run("a to a", func(i int) error { return a.copyTo(a, 12*mib, layout.Range{Off: 2 * mib, Len: mib}) })
	run("resize", func(i int) error { return v.Resize(ctx, v.meta(), "b", 16*mib+int64(i+1)*4096, false) })
	run("open", func(int) error {
		g, id, err := v.Attach(ctx, "n1", "b", forgetful{})
		if err == nil {
			err = v.Detach(ctx, g.Call, id)
		}
		return err
	})
	run("write", func(i int) error { return v.Write(ctx, a.call, pattern(4096, byte(i)), 3*mib, false) })
	all.Wait()
}

// forgetful is a holder that does no I/O.
type forgetful struct{}

func (forgetful) Recall(context.Context, protocol.Recall) error { return nil }
func (forgetful) Publish(protocol.Grant)                        {}
