package protocol

import (
	"testing"

	"lunar/datapath/layout"
)

func TestDrainWaitsForWhatBeganBeforeInItsRange(t *testing.T) {
	var fs Flights
	var before, beside, after Flight
	r := layout.Range{Off: 100, Len: 100}
	fs.Begin(&before, layout.Range{Off: 150, Len: 100})
	fs.Begin(&beside, layout.Range{Off: 200, Len: 100})
	drained := 0
	fs.Drain(r, func() { drained++ })
	fs.Begin(&after, layout.Range{Off: 100, Len: 10})
	fs.End(&beside)
	fs.End(&after)
	if drained != 0 {
		t.Fatal("drained although an I/O is under way in the range")
	}
	fs.End(&before)
	if drained != 1 || fs.Count() != 0 {
		t.Fatalf("drained %d times, %d under way", drained, fs.Count())
	}
	fs.Drain(Everywhere, func() { drained++ })
	if drained != 2 {
		t.Fatal("an empty lane is drained at once")
	}
}

func TestDrainMayDrainAgain(t *testing.T) {
	var fs Flights
	var a, b Flight
	fs.Begin(&a, layout.Range{Len: 1})
	fs.Begin(&b, layout.Range{Off: 5, Len: 1})
	again := false
	fs.Drain(layout.Range{Len: 1}, func() { fs.Drain(layout.Range{Off: 5, Len: 1}, func() { again = true }) })
	fs.End(&a)
	if again {
		t.Fatal("too early")
	}
	fs.End(&b)
	if !again {
		t.Fatal("lost")
	}
}

func TestFlightsDoNotAllocate(t *testing.T) {
	var fs Flights
	var f Flight
	if n := testing.AllocsPerRun(100, func() {
		fs.Begin(&f, layout.Range{Len: 4096})
		fs.End(&f)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestHoldOutlivesGrants(t *testing.T) {
	v, err := NewView(Grant{Generation: 1, Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	r := layout.Range{Off: 10, Len: 10}
	v = v.Held(7, r)
	next, err := v.Granted(Grant{Generation: 2, Size: 100, Ends: 7})
	if err != nil || !next.Waits(r) {
		t.Fatal("a grant ended a hold", err)
	}
	if next.LetGo(7).Waits(r) {
		t.Fatal("still held")
	}
}

func TestLeaveLetsAChangeRun(t *testing.T) {
	var table Table
	table.Join(1)
	table.Join(2)
	op := &Op{Range: Everywhere, Change: true}
	if table.Begin(op); len(op.Awaited()) != 2 || table.Returned(op, 1) || table.Returned(op, 1) {
		t.Fatal("two holders are awaited")
	}
	if runnable := table.Leave(2); len(runnable) != 1 || !op.Runnable() {
		t.Fatal("the last holder left")
	}
}
