package coordinator_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// TestCompareAndWriteOnce makes calls again whose answers were lost: nothing that came meanwhile is undone or
// taken for their work.
func TestCompareAndWriteOnce(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	a, b := pattern(1024, 1), pattern(1024, 2)
	try := func(serial uint64, retry bool, want int) {
		t.Helper()
		call := o.call
		call.Retry, call.Once = retry, protocol.Once{Node: "n1", Slot: 3, Serial: serial}
		if at, err := v.CompareAndWrite(ctx, call, a, b, 8192, false); err != nil || at != want {
			t.Fatal(at, err)
		}
	}
	content := func(want []byte) {
		t.Helper()
		if !bytes.Equal(o.read(t, 8192, 1024), want) {
			t.Fatal("wrong content")
		}
	}
	o.write(t, a, 8192)
	try(1, false, -1)
	content(b)
	try(1, true, -1)
	o.write(t, a, 8192)
	try(1, true, -1)
	content(a)

	other := append(a[:512:512], pattern(512, 7)...)
	o.write(t, other, 8192)
	try(2, false, 512)
	o.write(t, b, 8192)
	try(2, true, 512)
	o.write(t, a, 8192)
	try(2, true, 512)
	content(a)

	try(3, true, -1) // the first try never came
	content(b)
}

// TestCompareAndWriteThatCannotBeKnown: what no answer is kept of is not done.
func TestCompareAndWriteThatCannotBeKnown(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	o.write(t, pattern(512, 1), 0)
	named := func(node protocol.NodeID, slot uint32, serial uint64) protocol.Call {
		call := o.call
		call.Retry, call.Once = true, protocol.Once{Node: node, Slot: slot, Serial: serial}
		return call
	}
	swap := func(call protocol.Call) error {
		_, err := v.CompareAndWrite(ctx, call, pattern(512, 1), pattern(512, 1), 0, false)
		return err
	}
	nameless, old := named("", 0, 0), named("n1", 0, 9)
	old.Epoch--
	for _, node := range []protocol.NodeID{"n2", "n3"} {
		if err := v.Hello(ctx, node, 1); err != nil {
			t.Fatal(err)
		}
		if err := swap(named(node, 0, 7)); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Hello(ctx, "n3", 2); err != nil {
		t.Fatal(err)
	}
	v.Expel("n2")
	for name, c := range map[string]struct {
		call protocol.Call
		want error
	}{
		"without a name":               {nameless, protocol.ErrOutcome},
		"of an older term":             {old, coordinator.ErrStaleEpoch},
		"above the slots":              {named("n1", protocol.MaxSlots, 1), unix.EINVAL},
		"of an expelled node":          {named("n2", 0, 7), coordinator.ErrStaleEpoch},
		"of a later process":           {named("n3", 0, 1), nil},
		"older than the slot's, there": {named("n3", 0, 0), protocol.ErrOutcome},
	} {
		if err := swap(c.call); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if err := swap(named("n1", 1, 2)); err != nil {
		t.Fatal(err)
	}
	if err := swap(named("n1", 1, 1)); !errors.Is(err, coordinator.ErrStaleEpoch) {
		t.Error("an older one than the slot's:", err)
	}
}

// TestTriesAtOnce has the tries of one call meet: it is executed once, and each gets its result.
func TestTriesAtOnce(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	o.write(t, pattern(512, 1), 0)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			call := o.call
			call.Retry, call.Once = true, protocol.Once{Node: "n1", Serial: 5}
			if at, err := v.CompareAndWrite(ctx, call, pattern(512, 1), pattern(512, 2), 0, false); at >= 0 || err != nil {
				t.Error(at, err)
			}
		})
	}
	all.Wait()
}

// TestUndecidedTryIsMadeAgain: a try that ended before it compared is no answer.
func TestUndecidedTryIsMadeAgain(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	o.write(t, pattern(512, 1), 0)
	call := o.call
	call.Once = protocol.Once{Node: "n1", Serial: 5}
	refuse := func(err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.refuse = err
	}
	refuse(unix.EBUSY)
	if _, err := v.CompareAndWrite(ctx, call, pattern(512, 1), pattern(512, 2), 0, false); !errors.Is(err, coordinator.ErrRecall) {
		t.Fatal("it did not wait for the holder:", err)
	}
	refuse(nil)
	call.Retry = true
	if at, err := v.CompareAndWrite(ctx, call, pattern(512, 1), pattern(512, 2), 0, false); at >= 0 || err != nil {
		t.Fatal(at, err)
	}
	if !bytes.Equal(o.read(t, 0, 512), pattern(512, 2)) {
		t.Error("not written")
	}
}
