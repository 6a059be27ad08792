package coordinator_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
)

// While zeroes are written to a new image all others can be used, and it cannot be seen.
func TestThickCreationHoldsNobodyUp(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	v.image(t, "a", mib)
	var told []int64
	err := v.Create(ctx, v.meta(), "thick", protocol.CreateOptions{Size: 160 * mib, Eager: true, Progress: func(n int64) {
		if told = append(told, n); len(told) > 1 {
			return
		}
		v.image(t, "b", mib).write(t, pattern(4096, 1), 0)
		v.attach(t, "a")
		if _, err := v.Stat(ctx, "thick"); !errors.Is(err, coordinator.ErrNotFound) {
			t.Errorf("half an image can be seen: %v", err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []int64{64 * mib, 128 * mib, 160 * mib}) {
		t.Errorf("progress %v", told)
	}
	if l := v.attach(t, "thick").layout(); !l.Is(layout.Range{Len: 160 * mib}, layout.State.Writable) {
		t.Errorf("not all of it is granted for writing: %v", l.Extents())
	}
}

func TestThickCreationGivenUpLeavesNothing(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	before, _ := v.Space(ctx)
	limited, cancel := context.WithCancel(ctx)
	err := v.Create(limited, v.meta(), "thick", protocol.CreateOptions{Size: 160 * mib, Eager: true, Progress: func(int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if found, _ := v.List(ctx); len(found) != 0 {
		t.Errorf("left: %v", found)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // XFS frees later
		after, _ := v.Space(ctx)
		if before.Free-after.Free < mib {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are not given back", before.Free-after.Free)
		}
	}
}
