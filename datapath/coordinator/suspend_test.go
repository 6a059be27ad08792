package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout/protocol"
)

func suspended(wait time.Duration) *coordinator.Suspension {
	return &coordinator.Suspension{ID: "b1", Why: "backup b1 of node n1", Wait: wait, Until: time.Now().Add(time.Minute), Snapshot: "mine"}
}

// changes are all changes of the name space, on the images a, b, c and d and the snapshot "old" of a.
func (v *volume) changes() map[string]func(context.Context) error {
	m := v.meta
	return map[string]func(context.Context) error{
		"create":          func(ctx context.Context) error { return v.Create(ctx, m(), "new", protocol.CreateOptions{Size: mib}) },
		"delete":          func(ctx context.Context) error { return v.Delete(ctx, m(), "b") },
		"rename":          func(ctx context.Context) error { return v.Rename(ctx, m(), "c", "moved") },
		"resize":          func(ctx context.Context) error { return v.Resize(ctx, m(), "a", 2*mib, false) },
		"clone":           func(ctx context.Context) error { return v.Clone(ctx, m(), "a", "copy") },
		"snapshot":        func(ctx context.Context) error { _, err := v.Snapshot(ctx, m(), "other", []string{"a"}); return err },
		"clone snapshot":  func(ctx context.Context) error { return v.CloneSnapshot(ctx, m(), "old", "a", "copy2") },
		"revert":          func(ctx context.Context) error { return v.Revert(ctx, m(), "old", "d") },
		"delete snapshot": func(ctx context.Context) error { return v.DeleteSnapshot(ctx, m(), "kept", "") },
	}
}

func suspendable(t *testing.T) *volume {
	v := scratch(t, coordinator.XFS)
	for _, p := range []string{"b", "c", "d"} {
		if err := v.Create(ctx, v.meta(), p, protocol.CreateOptions{Size: mib}); err != nil {
			t.Fatal(err)
		}
	}
	v.image(t, "a", mib).write(t, pattern(mib, 1), 0)
	v.take(t, "old", "a", "d")
	v.take(t, "kept", "a")
	return v
}

// TestSuspension has every change fail, wait, and go on, while I/O does not notice.
func TestSuspension(t *testing.T) {
	v := suspendable(t)
	o := v.attach(t, "a")
	v.Suspend(suspended(20 * time.Millisecond))
	if v.Suspended() != "b1" {
		t.Fatal("not suspended")
	}
	for name, change := range v.changes() {
		if err := change(ctx); !errors.Is(err, coordinator.ErrSuspended) || !strings.Contains(err.Error(), "backup b1 of node n1") {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.write(t, pattern(4096, 2), 8192) // unshares

	v.take(t, "mine", "a")
	if err := v.DeleteSnapshot(ctx, v.meta(), "mine", ""); err != nil {
		t.Errorf("its own snapshot: %v", err)
	}

	v.Suspend(suspended(time.Minute))
	limited, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := v.Delete(limited, v.meta(), "b"); !errors.Is(err, coordinator.ErrSuspended) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error("a caller who gives up:", err)
	}
	ended := make(chan error)
	for name, change := range v.changes() {
		go func() {
			if err := change(ctx); err != nil {
				ended <- fmt.Errorf("%s: %w", name, err)
			}
			ended <- nil
		}()
	}
	eventually(t, "changes that wait", func() bool { return v.SuspendedChanges() == len(v.changes()) })
	v.Suspend(nil)
	for range v.changes() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestSuspensionEnds: by its own time, with its term, and not for more changes than may wait.
func TestSuspensionEnds(t *testing.T) {
	v := suspendable(t)
	s := suspended(time.Minute)
	s.Until = time.Now().Add(50 * time.Millisecond)
	v.Suspend(s)
	if err := v.Delete(ctx, v.meta(), "b"); err != nil || v.Suspended() != "" {
		t.Fatal("after its time:", err, v.Suspended())
	}
	v.Suspend(suspended(time.Minute))
	ended := make(chan error)
	const all = 256
	for range all {
		go func() { ended <- v.Delete(ctx, v.meta(), "c") }()
	}
	eventually(t, "changes that wait", func() bool { return v.SuspendedChanges() == all })
	if err := v.Delete(ctx, v.meta(), "c"); !errors.Is(err, coordinator.ErrSuspended) {
		t.Error("one more:", err)
	}
	if err := v.Shutdown(); err != nil {
		t.Fatal(err)
	}
	_ = v.Handover(ctx)
	for range all {
		if err := <-ended; !errors.Is(err, coordinator.ErrStaleEpoch) {
			t.Fatal("after the term:", err)
		}
	}
}
