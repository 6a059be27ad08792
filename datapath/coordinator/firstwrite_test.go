package coordinator_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// firstWrites has several callers write a block each, at every step, and tells which were stored.
func (o *open) firstWrites(t testing.TB, count, step int64, block []byte) (stored []bool) {
	t.Helper()
	stored = make([]bool, count)
	var next atomic.Int64
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			p := aligned(block)
			for i := next.Add(1) - 1; i < count; i = next.Add(1) - 1 {
				switch err := o.v.Write(ctx, o.call, p, i*step, false); {
				case err == nil:
					stored[i] = true
				case !errors.Is(err, coordinator.ErrNoSpace):
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	return stored
}

// TestFirstWritesSideBySide writes to many shared blocks at once: each write is in the image, each block is granted
// for writing, what lies between is as it was, and so is the snapshot.
func TestFirstWritesSideBySide(t *testing.T) {
	const size, step = 8 * mib, 3 * 4096
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", size)
	data := pattern(size, 1)
	o.write(t, data, 0)
	v.take(t, "s", "a")
	block := pattern(4096, 2)
	o.firstWrites(t, size/step, step, block)
	want := bytes.Clone(data)
	for off := 0; off+step <= size; off += step {
		copy(want[off:], block)
		if e, _ := o.layout().At(int64(off)); e.State != layout.Written {
			t.Fatalf("at %d: %v", off, e)
		}
	}
	if !bytes.Equal(o.read(t, 0, size), want) {
		t.Error("the image is not what was written")
	}
	if !bytes.Equal(v.content(t, "s", "a", size), data) {
		t.Error("SnapshotFixed: the snapshot changed")
	}
}

// TestFirstWritesSideBySideOnAFullVolume: some find no block of their own. They fail and change nothing; what was
// acknowledged is there.
func TestFirstWritesSideBySideOnAFullVolume(t *testing.T) {
	const size, step = 16 * mib, 5 * 4096
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", size)
	data := pattern(size, 1)
	o.write(t, data, 0)
	v.take(t, "s", "a")
	v.fill(t)
	block := pattern(4096, 2)
	stored := o.firstWrites(t, size/step, step, block)
	want, failed := bytes.Clone(data), 0
	for i, ok := range stored {
		if ok {
			copy(want[i*step:], block)
		} else {
			failed++
		}
	}
	if failed == 0 {
		t.Fatal("no write found the volume full")
	}
	if !bytes.Equal(o.read(t, 0, size), want) {
		t.Error("the image is not what was acknowledged")
	}
	if !bytes.Equal(v.content(t, "s", "a", size), data) {
		t.Error("SnapshotFixed: the snapshot changed")
	}
}

// fill leaves a volume room for a few blocks.
func (v *volume) fill(t testing.TB) {
	t.Helper()
	for size, i := int64(64*mib), 0; size >= 64<<10; i++ {
		err := v.Create(ctx, v.meta(), fmt.Sprint("fill", i), protocol.CreateOptions{Size: size, Thick: true})
		switch {
		case errors.Is(err, coordinator.ErrNoSpace):
			size /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
}

// BenchmarkFirstWrites writes blocks of 4 KiB, 32 at once and scattered over all of an image, each for the first time
// after a snapshot. Run it with -benchtime 8192x.
func BenchmarkFirstWrites(b *testing.B) {
	const size, step, atOnce = 512 * mib, 61 * 4096, 32
	v := mountAt(b, format(b, coordinator.XFS, 4<<30, loopdev.Options{}), 1)
	o := v.image(b, "a", size)
	for off := int64(0); off < size; off += mib {
		o.write(b, pattern(mib, 1), off)
	}
	v.take(b, "s", "a")
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range atOnce {
		all.Go(func() {
			p := aligned(pattern(4096, 2))
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := v.Write(ctx, o.call, p, i*step%size, false); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}
