package coordinator_test

import (
	"bytes"
	"testing"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
)

// written is how much of an image is granted for writing.
func (o *open) written() int64 { return o.layout().Bytes(layout.Written) }

// Writes that gather are unshared ahead, so that the next are direct; scattered ones take no more than
// their own blocks.
func TestSharedRangesAreUnsharedWhereWritesGather(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 64*mib)
	data := pattern(64*mib, 1)
	o.write(t, data, 0)
	v.take(t, "s", "a")
	for off := 32 * mib; off < 64*mib; off += mib { // scattered
		o.write(t, pattern(4096, 2), int64(off))
	}
	if n := o.written(); n != 32*4096 {
		t.Fatalf("%d bytes unshared for 32 blocks that were written", n)
	}
	redirected := 0
	for off := int64(0); off < 8*mib; off += 4096 { // one after the other
		if e, _ := o.layout().At(off); e.State != layout.Written {
			redirected++
			o.write(t, pattern(4096, 3), off)
		}
	}
	if redirected > 40 {
		t.Errorf("%d of 2048 sequential writes were redirected", redirected)
	}
	for _, at := range []int64{0, 3, 9, 6} { // in one region, not in order
		o.write(t, pattern(4096, 4), 20*mib+at*4096)
	}
	if !o.layout().Is(layout.Range{Off: 20 * mib, Len: 64 << 10}, layout.State.Writable) {
		t.Errorf("a warm region is still shared: %v", o.layout().Extents())
	}
	if !bytes.Equal(v.content(t, "s", "a", 64*mib), data) {
		t.Error("SnapshotFixed: the snapshot changed")
	}
	copy(data[20*mib:], data[20*mib:20*mib+4096])
	if got := o.read(t, 21*mib, mib); !bytes.Equal(got, data[21*mib:22*mib]) {
		t.Error("what was unshared ahead has another content")
	}
}

// A part of a block is unshared by the page cache, which does not see what holders write.
func TestUnsharingPartOfABlockKeepsWhatHoldersWrote(t *testing.T) {
	v := mountAt(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{BlockSize: 512}), 1)
	o := v.image(t, "a", mib)
	want := pattern(mib, 1)
	o.write(t, want, 0)
	for i := range 3 {
		v.take(t, string(rune('a'+i)), "a")
		part := pattern(512, byte(10+i))
		o.write(t, part, int64(i)*512) // unshares the block
		copy(want[i*512:], part)
		e, _ := o.layout().At(0)
		if e.State != layout.Written {
			t.Fatal(e)
		}
		direct := pattern(512, byte(20+i))
		if _, err := v.dev.WriteAt(aligned(direct), e.DevOff+2048); err != nil { // as a holder does
			t.Fatal(err)
		}
		copy(want[2048:], direct)
	}
	if got := o.read(t, 0, mib); !bytes.Equal(got, want) {
		t.Fatal("a holder's write was lost")
	}
}
