package coordinator_test

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// TestCompareAndWriteKeepsItsRange on two nodes: no holder has the range until it has been quiet, and
// a second compare and write recalls nothing.
func TestCompareAndWriteKeepsItsRange(t *testing.T) {
	for _, fs := range fileSystems {
		v := mountWith(t, format(t, fs, 400*mib, loopdev.Options{}), coordinator.Options{Epoch: 1, Quiet: 300 * time.Millisecond})
		first := v.image(t, "a", 4*mib)
		first.write(t, pattern(8192, 1), 0)
		second := v.attach(t, "a")
		swap := func(o *open, from, to byte) {
			t.Helper()
			at, err := v.CompareAndWrite(ctx, o.call, pattern(512, from), pattern(512, to), 4608, false)
			if err != nil || at >= 0 {
				t.Fatal(at, err)
			}
		}
		first.write(t, pattern(512, 2), 4608)
		swap(first, 2, 3)
		third := v.attach(t, "a")
		kept := layout.Range{Off: 4096, Len: 4096}
		withheld := func(s layout.State) bool { return s == layout.Withheld }
		for i, o := range []*open{first, second, third} {
			if l := o.layout(); !l.Is(kept, withheld) || l.Bytes(layout.Withheld) != kept.Len {
				t.Fatalf("holder %d: %v", i, l.Extents())
			}
		}
		recalls := len(second.recalls)
		swap(second, 3, 4)
		if len(second.recalls) != recalls {
			t.Error("recalled what no holder had")
		}
		if !bytes.Equal(third.read(t, 4608, 512), pattern(512, 4)) {
			t.Error("ReadAfterWrite")
		}
		for _, o := range []*open{first, second, third} {
			if l := o.granted(t, 4608); !l.Is(kept, layout.State.Writable) {
				t.Errorf("after the quiet: %v", l.Extents())
			}
		}
		if len(second.recalls) != recalls {
			t.Error("recalled to grant more")
		}
		swap(first, 4, 5)
		if len(second.recalls) != recalls+1 {
			t.Error("not recalled anew")
		}
	}
}

// TestKeptRangesAreFew: the oldest is let go of.
func TestKeptRangesAreFew(t *testing.T) {
	v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{Epoch: 1, Quiet: time.Hour})
	o := v.image(t, "a", 4*mib)
	o.write(t, make([]byte, mib), 0)
	for i := range int64(protocol.MaxKept + 3) {
		if at, err := v.CompareAndWrite(ctx, o.call, make([]byte, 512), make([]byte, 512), i*4096, false); at >= 0 || err != nil {
			t.Fatal(at, err)
		}
	}
	l := o.layout()
	if l.Bytes(layout.Withheld) != protocol.MaxKept*4096 || !l.Is(layout.Range{Len: 3 * 4096}, layout.State.Writable) {
		t.Fatalf("%v", l.Extents())
	}
}

// TestCompareAndWriteCounts has nodes count by compare and write, while ranges come and go.
func TestCompareAndWriteCounts(t *testing.T) {
	v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{Epoch: 1, Quiet: time.Millisecond})
	o := v.image(t, "a", 4*mib)
	o.write(t, make([]byte, mib), 0)
	const nodes, turns = 3, 30
	number := func(n uint64) []byte { return binary.LittleEndian.AppendUint64(make([]byte, 504), n) }
	var all sync.WaitGroup
	for range nodes {
		n := v.attach(t, "a")
		all.Go(func() {
			for done := 0; done < turns; {
				p := make([]byte, 512)
				if err := v.Read(ctx, n.call, p, 0); err != nil {
					t.Error(err)
					return
				}
				at, err := v.CompareAndWrite(ctx, n.call, p, number(binary.LittleEndian.Uint64(p[504:])+1), 0, false)
				if err != nil {
					t.Error(err)
					return
				}
				if at < 0 {
					if done++; done%8 == 0 {
						time.Sleep(3 * time.Millisecond)
					}
				}
			}
		})
	}
	all.Wait()
	if got := o.read(t, 0, 512); !bytes.Equal(got, number(nodes*turns)) {
		t.Fatalf("counted to %d of %d", binary.LittleEndian.Uint64(got[504:]), nodes*turns)
	}
}

// TestRetriedCompareAndWrite finds the work of an earlier try, whole or cut off after a sector.
func TestRetriedCompareAndWrite(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	was, now := pattern(1024, 1), pattern(1024, 2)
	for cut := range 3 {
		o.write(t, was, 8192)
		o.write(t, now[:cut*512], 8192)
		if cut > 0 {
			if at, err := v.CompareAndWrite(ctx, o.call, was, now, 8192, false); at < 0 || err != nil {
				t.Fatal("no retry", at, err)
			}
		}
		again := o.call
		again.Retry = true
		if at, err := v.CompareAndWrite(ctx, again, was, now, 8192, false); at >= 0 || err != nil {
			t.Fatal(cut, at, err)
		}
		if !bytes.Equal(o.read(t, 8192, 1024), now) {
			t.Fatal(cut)
		}
	}
}
