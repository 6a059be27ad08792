package protocol

import (
	"slices"
	"testing"
	"time"

	"lunar/datapath/layout"
)

func TestKeptRangesAreWithheld(t *testing.T) {
	var table Table
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	table.Keep(layout.Range{Off: 10, Len: 10}, at(1))
	table.Keep(layout.Range{Off: 15, Len: 10}, at(2))
	table.Keep(layout.Range{Off: 40, Len: 5}, at(3))
	got := table.Grantable([]layout.Extent{
		{FileOff: 0, DevOff: 100, Len: 18, State: layout.Written},
		{FileOff: 18, DevOff: 500, Len: 24, State: layout.Shared},
		{FileOff: 42, Len: 8, State: layout.Hole}})
	want := []layout.Extent{
		{FileOff: 0, DevOff: 100, Len: 10, State: layout.Written}, {FileOff: 10, Len: 8}, {FileOff: 18, Len: 2}, {FileOff: 20, Len: 5},
		{FileOff: 25, DevOff: 507, Len: 15, State: layout.Shared}, {FileOff: 40, Len: 2}, {FileOff: 42, Len: 3},
		{FileOff: 45, Len: 5, State: layout.Hole}}
	if !slices.Equal(got, want) {
		t.Fatalf("%v\nwant %v", got, want)
	}
	for r, want := range map[layout.Range]bool{{Off: 10, Len: 15}: true, {Off: 10, Len: 16}: false, {Off: 9, Len: 2}: false, {Off: 41, Len: 2}: true} {
		if table.Kept(r) != want {
			t.Errorf("%v kept: %v", r, !want)
		}
	}
	if r, ok := table.Quiet(at(0)); ok {
		t.Errorf("%v is let go of too early", r)
	}
	table.Keep(layout.Range{Off: 12, Len: 2}, at(4)) // uses the first
	if r, ok := table.Quiet(at(2)); !ok || r.Off != 15 {
		t.Errorf("oldest: %v, %v", r, ok)
	}
	if table.Release(layout.Range{Off: 10, Len: 10}, at(3)) || !table.Release(layout.Range{Off: 15, Len: 10}, at(3)) {
		t.Error("released what was used meanwhile, or kept what was not")
	}
}

func TestKeptRangesAreBounded(t *testing.T) {
	var table Table
	for i := range MaxKept + 1 {
		table.Keep(layout.Range{Off: int64(i), Len: 1}, time.Unix(int64(i), 0))
	}
	r, ok := table.Quiet(time.Time{})
	if !ok || r.Off != 0 || !table.Release(r, time.Time{}) {
		t.Fatalf("%v, %v", r, ok)
	}
	if r, ok := table.Quiet(time.Time{}); ok {
		t.Fatalf("%v too", r)
	}
}

// TestKeptRangesNeedNoRecall has a change where no holder has anything.
func TestKeptRangesNeedNoRecall(t *testing.T) {
	var table Table
	table.Join(1)
	first, second := &Op{Range: layout.Range{Len: 8}, Change: true}, &Op{Range: layout.Range{Len: 4}, Change: true}
	table.Begin(first)
	if first.Runnable() || !table.Returned(first, 1) {
		t.Fatal("the first needs a recall")
	}
	table.Keep(first.Range, time.Unix(1, 0))
	table.Begin(second)
	if second.Runnable() {
		t.Fatal("two changes at once")
	}
	if table.End(first); !second.Runnable() {
		t.Fatal("recalled what is kept")
	}
}
