package coordinator_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// TestSnapshotIsAttachedReadOnly reads a snapshot as a node does, and wants no change of it to get through, nor any
// refusal to cost the term.
func TestSnapshotIsAttachedReadOnly(t *testing.T) {
	failed := make(chan error, 1)
	v := mountWith(t, format(t, coordinator.XFS, 400<<20, loopdev.Options{}), coordinator.Options{
		Epoch: 1, Quiet: time.Millisecond, Failed: func(err error) { failed <- err },
	})
	a := v.image(t, "dir/a", 16*mib)
	before := pattern(4*mib, 1)
	a.write(t, before, 0)
	v.take(t, "s1", "dir/a")
	early := v.attach(t, protocol.SnapshotPath("s1", "dir/a"))
	a.write(t, pattern(mib, 9), 0) // from now on the snapshot has these blocks alone
	s := v.attach(t, protocol.SnapshotPath("s1", "dir/a"))
	if all, _ := v.Snapshots(ctx); all[0].Exclusive != mib {
		t.Fatal("the snapshot has no blocks of its own", all)
	}
	if s.layout().Size() != 16*mib || !s.layout().Is(layout.Range{Len: 4 * mib}, isShared) {
		t.Fatal("granted for writing", s.layout().Extents())
	}
	for _, o := range []*open{early, s} {
		if got := o.read(t, 0, 4*mib); !bytes.Equal(got, before) || o.layout().Is(layout.Range{Len: 4096}, layout.State.Writable) {
			t.Fatal("not what it was, or granted for writing")
		}
	}
	_, compare := v.CompareAndWrite(ctx, s.call, before[:512], before[:512], 0, false)
	for what, err := range map[string]error{
		"write":         v.Write(ctx, s.call, before[:4096], 0, false),
		"write a hole":  v.Write(ctx, s.call, before[:4096], 8*mib, true),
		"unmap":         v.Unmap(ctx, s.call, []layout.Range{{Len: mib}}),
		"compare":       compare,
		"copy to it":    v.Copy(ctx, s.call, 0, a.call, layout.Range{Len: mib}),
		"copy a hole":   v.Copy(ctx, s.call, 0, a.call, layout.Range{Off: 8 * mib, Len: mib}),
		"copy in it":    v.Copy(ctx, s.call, 0, s.call, layout.Range{Off: 8 * mib, Len: mib}),
		"rename":        v.Rename(ctx, v.meta(), protocol.SnapshotPath("s1", "dir/a"), "b"),
		"delete as one": v.Delete(ctx, v.meta(), protocol.SnapshotPath("s1", "dir/a")),
	} {
		if !errors.Is(err, coordinator.ErrReadOnly) && !errors.Is(err, coordinator.ErrPath) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := v.Copy(ctx, a.call, 8*mib, s.call, layout.Range{Len: mib}); err != nil {
		t.Error("copy from it:", err)
	}
	if got := a.read(t, 8*mib, int(mib)); !bytes.Equal(got, before[:mib]) {
		t.Error("copied something else")
	}
	if got := s.read(t, 0, 4*mib); !bytes.Equal(got, before) {
		t.Error("it changed")
	}
	select {
	case err := <-failed:
		t.Error("a refusal ended the term:", err)
	default:
	}
}

func TestAttachedSnapshotStays(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	a, b := v.image(t, "a", mib), v.image(t, "b", mib)
	a.write(t, pattern(4096, 1), 0)
	b.write(t, pattern(4096, 2), 0)
	v.take(t, "s1", "a", "b")
	s := v.attach(t, protocol.SnapshotPath("s1", "a"))
	for _, path := range []string{"a", ""} {
		if err := v.DeleteSnapshot(ctx, v.meta(), "s1", path); !errors.Is(err, coordinator.ErrInUse) {
			t.Errorf("delete %q: %v", path, err)
		}
	}
	if err := v.DeleteSnapshot(ctx, v.meta(), "s1", "b"); err != nil {
		t.Error("the other image of it:", err)
	}
	if err := v.Detach(ctx, s.call, s.id); err != nil {
		t.Fatal(err)
	}
	if err := v.DeleteSnapshot(ctx, v.meta(), "s1", ""); err != nil {
		t.Error("when it is not open any more:", err)
	}
	for _, path := range []string{".lunar/snapshots/s1/a", ".lunar/snapshots/../../a", ".lunar/snapshots/s2/a", ".lunar/snapshots/s1/../s1/a", ".lunar/making/x"} {
		if _, _, err := v.Attach(ctx, "n1", path, &holder{}); err == nil {
			t.Errorf("attached %q", path)
		}
	}
}
