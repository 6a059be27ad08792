package coordinator_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// within is a context for what must not be done.
func within(t testing.TB, d time.Duration) context.Context {
	limit, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return limit
}

// TestBarrier has a term begin while two nodes may hold layouts of an older one.
func TestBarrier(t *testing.T) {
	dev := format(t, coordinator.XFS, 400*mib, loopdev.Options{})
	first := mountAt(t, dev, 1)
	o := first.image(t, "a", 4*mib)
	o.write(t, pattern(4096, 1), 0)
	if err := first.Create(ctx, first.meta(), "b", protocol.CreateOptions{Size: mib}); err != nil {
		t.Fatal(err)
	}
	if err := first.Handover(ctx); err != nil {
		t.Fatal(err)
	}
	v := mountWith(t, dev, coordinator.Options{Epoch: 2, Members: []protocol.NodeID{"n1", "n2"}})
	o = v.attach(t, "a")
	if !o.layout().Is(layout.Range{Len: mib}, layout.State.Writable) {
		t.Fatalf("nothing granted before the barrier: %v", o.layout().Extents())
	}
	o.read(t, 0, 4096)
	o.write(t, pattern(4096, 2), 8192)
	if err := v.Flush(ctx, o.call); err != nil {
		t.Fatal(err)
	}
	if err := v.Create(ctx, v.meta(), "new", protocol.CreateOptions{Size: mib}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(context.Context) error{
		"unmap":    func(c context.Context) error { return v.Unmap(c, o.call, []layout.Range{{Len: 4096}}) },
		"allocate": func(c context.Context) error { return v.Write(c, o.call, pattern(512, 2), 2*mib, false) },
		"compare": func(c context.Context) error {
			_, err := v.CompareAndWrite(c, o.call, pattern(512, 1), pattern(512, 2), 0, false)
			return err
		},
		"copy":   func(c context.Context) error { return v.Copy(c, o.call, mib, o.call, layout.Range{Len: 4096}) },
		"clone":  func(c context.Context) error { return v.Clone(c, v.meta(), "a", "c") },
		"clone2": func(c context.Context) error { return v.Clone(c, v.meta(), "b", "c") },
		"resize": func(c context.Context) error { return v.Resize(c, v.meta(), "b", 2*mib, false) },
		"delete": func(c context.Context) error { return v.Delete(c, v.meta(), "b") },
		"rename": func(c context.Context) error { return v.Rename(c, v.meta(), "b", "d") },
	} {
		if err := change(within(t, 20*time.Millisecond)); !errors.Is(err, coordinator.ErrRecall) {
			t.Errorf("%s before the barrier: %v", name, err)
		}
	}
	if err := v.Acknowledge(ctx, "n1", 1); !errors.Is(err, protocol.ErrStale) {
		t.Fatal("an older epoch", err)
	}
	if err := v.Acknowledge(ctx, "n1", 2); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() { waits <- v.Delete(ctx, v.meta(), "b") }()
	another := v.attach(t, "a") // nodes attach while a change waits
	v.Expel("n2")
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	another.write(t, pattern(4096, 3), 2*mib)
}

// TestBarrierFencesTheSilent has a member that never acknowledges.
func TestBarrierFencesTheSilent(t *testing.T) {
	var tries atomic.Int32
	v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{
		Epoch: 1, Members: []protocol.NodeID{"n1", "n2"}, RecallTimeout: 20 * time.Millisecond,
		Fence: func(_ context.Context, node protocol.NodeID) error {
			if node != "n2" {
				t.Errorf("fenced %s", node)
			}
			if tries.Add(1) < 3 {
				return errors.New("no answer")
			}
			return nil
		}})
	if err := v.Acknowledge(ctx, "n1", 1); err != nil {
		t.Fatal(err)
	}
	v.image(t, "a", mib).write(t, pattern(512, 1), 0)
	if tries.Load() != 3 {
		t.Fatal(tries.Load(), "tries")
	}
}

// silent is a holder whose node answers no recall.
type silent struct{ asked atomic.Int32 }

func (s *silent) Recall(ctx context.Context, _ protocol.Recall) error {
	s.asked.Add(1)
	<-ctx.Done()
	return ctx.Err()
}

func (s *silent) Publish(protocol.Grant) {}

// TestSilentHolderIsFenced: it is asked again, then fenced until that is proven, and then the change
// goes on; also when nobody waits for the change any more.
func TestSilentHolderIsFenced(t *testing.T) {
	for name, patience := range map[string]time.Duration{"patient": time.Minute, "gone": 10 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int32
			v := mountWith(t, format(t, coordinator.XFS, 400*mib, loopdev.Options{}), coordinator.Options{
				Epoch: 1, AnswerTimeout: 10 * time.Millisecond, RecallTimeout: 50 * time.Millisecond,
				Fence: func(_ context.Context, node protocol.NodeID) error {
					if node != "dead" {
						t.Errorf("fenced %s", node)
					}
					if tries.Add(1) < 3 {
						return errors.New("no answer")
					}
					return nil
				}})
			o := v.image(t, "a", 4*mib)
			h := &silent{}
			if _, _, err := v.Attach(ctx, "dead", "a", h); err != nil {
				t.Fatal(err)
			}
			err := v.Write(within(t, patience), o.call, pattern(512, 1), 0, false)
			if patience == time.Minute && err != nil || patience != time.Minute && !errors.Is(err, coordinator.ErrRecall) {
				t.Fatal(err)
			}
			eventually(t, "the node is fenced", func() bool { return tries.Load() == 3 })
			eventually(t, "the recall ends", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.view.Recalls() == 0 })
			if n := h.asked.Load(); n < 3 {
				t.Errorf("asked %d times", n)
			}
			if _, _, err := v.Attach(ctx, "dead", "a", h); !errors.Is(err, protocol.ErrStale) {
				t.Errorf("a fenced node came back: %v", err)
			}
			o.write(t, pattern(512, 2), 2*mib)
		})
	}
}

// TestNewProcessEndsTheOld has a node's process start again while a change waits for the old one.
func TestNewProcessEndsTheOld(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 4*mib)
	if err := v.Hello(ctx, "n2", 1); err != nil {
		t.Fatal(err)
	}
	h := &silent{}
	if _, _, err := v.Attach(ctx, "n2", "a", h); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- v.Write(ctx, o.call, pattern(512, 1), 0, false) }()
	eventually(t, "the recall", func() bool { return h.asked.Load() > 0 })
	if err := errors.Join(v.Hello(ctx, "n2", 1), v.Hello(ctx, "n2", 2)); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if err := v.Hello(ctx, "n2", 1); !errors.Is(err, protocol.ErrStale) {
		t.Fatal("an old process is heard", err)
	}
	if st, err := v.Stat(ctx, "a"); err != nil || st.Opens != 1 {
		t.Fatal(st, err)
	}
}
