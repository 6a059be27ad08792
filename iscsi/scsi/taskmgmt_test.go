package scsi

import (
	"slices"
	"testing"
)

func (b *testbed) pending(n *Nexus) (codes []uint16) {
	b.t.Helper()
	for range 2 * attentionCount {
		c := b.run(n, cdb(0x00), nil, 0)
		if c.Status == Good {
			return codes
		}
		key, code := senseOf(c)
		if key != unitAttention {
			b.t.Fatalf("sense % X", c.Sense)
		}
		codes = append(codes, code)
	}
	b.t.Fatalf("unit attentions without end: %04X", codes)
	return nil
}

func TestUnitAttentionsByPrecedence(t *testing.T) {
	b := newTestbed(t, 64, nil)
	for a := range attentionCount {
		b.unit.attention(attentionCount-1-a, nil)
		b.unit.attention(attentionCount-1-a, nil)
	}
	if got := b.pending(b.nexus); !slices.Equal(got, attentionCodes[:]) {
		t.Errorf("%04X", got)
	}
}

func TestWhatPassesAUnitAttention(t *testing.T) {
	b := newTestbed(t, 64, nil)
	b.unit.CapacityChanged()
	b.good(cdb(0x12, 0, 0, 0, 36), nil, 36)
	b.good(cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16), nil, 16)
	if c := b.good(cdb(0x03, 0, 0, 0, 18), nil, 18); c.Data[2] != 6 || be16(c.Data[12:]) != 0x2A09 {
		t.Errorf("REQUEST SENSE % X", c.Data)
	}
	b.good(cdb(0x00), nil, 0) // REQUEST SENSE took it
	b.unit.CapacityChanged()
	b.bad(cdb(0xFF), nil, 0, unitAttention, 0x2A09) // before the opcode is looked at
}

func TestLUNsChange(t *testing.T) {
	b := newTestbed(t, 64, nil)
	lu, err := NewLogicalUnit(newMemory(8), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.target.Map(1, lu); err != nil {
		t.Fatal(err)
	}
	if err := b.target.Map(1, lu); err == nil {
		t.Error("a LUN was mapped twice")
	}
	if got := b.pending(b.nexus); !slices.Equal(got, []uint16{0x3F0E}) {
		t.Errorf("after Map: %04X", got)
	}
	c, _ := b.start(b.nexus, EncodeLUN(1), Simple, 1, cdb(0x00), nil, 0)
	b.wantSense(c, unitAttention, 0x2900)
	if err := b.target.Unmap(1); err != nil {
		t.Fatal(err)
	}
	if err := b.target.Unmap(1); err == nil {
		t.Error("a LUN was unmapped twice")
	}
	c, _ = b.start(b.nexus, EncodeLUN(1), Simple, 1, cdb(0x00), nil, 0)
	b.wantSense(c, illegalRequest, 0x2500)
	b.good(cdb(0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16), nil, 16)
	if got := b.pending(b.nexus); got != nil {
		t.Errorf("REPORT LUNS leaves %04X", got)
	}
	if got := b.target.LUNs(); !slices.Equal(got, []uint16{0}) {
		t.Errorf("LUNs %v", got)
	}
	b.nexus.Close()
	if len(b.unit.itls)+len(lu.itls) != 0 || len(b.target.nexuses) != 0 {
		t.Error("Close leaves something behind")
	}
}

func TestReinstatedNexus(t *testing.T) {
	b := newTestbed(t, 64, nil)
	n := b.target.NewNexus("again", 1)
	n.Reinstated()
	if got := b.pending(n); !slices.Equal(got, []uint16{0x2907}) {
		t.Errorf("%04X", got)
	}
}

// held starts a write that stays in the backend.
func (b *testbed) held(n *Nexus, attr TaskAttribute, tag uint32) (*Command, *int) {
	b.store.hold = true
	return b.start(n, 0, attr, tag, write10(tag, 1), fill(1, byte(tag)), 0)
}

// response collects what a task management function answers.
type response struct {
	count int
	last  ManagementResponse
}

func (r *response) done(m ManagementResponse) { r.count, r.last = r.count+1, m }

func TestAbortTaskWaitsForTheBackend(t *testing.T) {
	b := newTestbed(t, 64, nil)
	c, done := b.held(b.nexus, Simple, 7)
	other, otherDone := b.held(b.nexus, Simple, 8)
	var r response
	b.target.AbortTask(b.nexus, 0, 0, 7, r.done)
	if *done != 0 || r.count != 0 {
		t.Fatal("the function was complete with the task in the backend")
	}
	var again response
	b.target.AbortTask(b.nexus, 0, 0, 7, again.done)
	b.store.release()
	if *done != 1 || r.count != 1 || again.count != 1 || r.last != FunctionComplete || c.Status != TaskAborted || !c.Silent() {
		t.Errorf("done %d, answers %d %d, %v", *done, r.count, again.count, c.Status)
	}
	if *otherDone != 1 || other.Status != Good {
		t.Errorf("another task: %v", other.Status)
	}
	b.target.AbortTask(b.nexus, 0, 0, 7, r.done)
	if r.last != TaskDoesNotExist {
		t.Errorf("response %d", r.last)
	}
	b.target.AbortTask(b.nexus, 0, EncodeLUN(9), 7, r.done)
	if r.last != LUNDoesNotExist || r.count != 3 {
		t.Errorf("response %d", r.last)
	}
}

// Commands in flight on a LUN that was unmapped, and perhaps mapped again and used, are aborted and
// waited for all the same.
func TestTasksOfOldMappings(t *testing.T) {
	functions := map[string]func(b *testbed, done func(ManagementResponse)){
		"abort task":     func(b *testbed, done func(ManagementResponse)) { b.target.AbortTask(b.nexus, 0, 0, 7, done) },
		"abort task set": func(b *testbed, done func(ManagementResponse)) { b.target.AbortTaskSet(b.nexus, 0, 0, done) },
		"LUN reset":      func(b *testbed, done func(ManagementResponse)) { b.target.LUNReset(b.nexus, 0, 0, done) },
		"target reset":   func(b *testbed, done func(ManagementResponse)) { b.target.TargetReset(b.nexus, 0, done) },
		"abort nexus": func(b *testbed, done func(ManagementResponse)) {
			b.target.AbortNexus(b.nexus, 0, func() { done(FunctionComplete) })
		},
	}
	for name, abort := range functions {
		for _, again := range []bool{false, true} {
			if !again && (name == "LUN reset" || name == "abort task set") {
				continue // there is no such LUN
			}
			b := newTestbed(t, 64, nil)
			c, done := b.held(b.nexus, Simple, 7)
			if err := b.target.Unmap(0); err != nil {
				t.Fatal(err)
			}
			if again {
				if err := b.target.Map(0, b.unit); err != nil {
					t.Fatal(err)
				}
				b.start(b.nexus, 0, Simple, 8, cdb(0), nil, 0)
			}
			var r response
			abort(b, r.done)
			if r.count != 0 {
				t.Errorf("%s, mapped again %v: complete with the task in the backend", name, again)
			}
			b.store.release()
			if r.count != 1 || r.last != FunctionComplete || *done != 1 || c.Status != TaskAborted {
				t.Errorf("%s, mapped again %v: %d answers, %v, task %v", name, again, r.count, r.last, c.Status)
			}
			b.nexus.Close()
			if len(b.unit.itls) != 0 {
				t.Errorf("%s, mapped again %v: %d I_T_L nexuses are left", name, again, len(b.unit.itls))
			}
		}
	}
}

func TestAbortTaskSetLeavesOthers(t *testing.T) {
	b := newTestbed(t, 64, nil)
	other := b.login("other")
	mine, _ := b.held(b.nexus, Simple, 1)
	theirs, _ := b.held(other, Simple, 2)
	var r response
	b.target.AbortTaskSet(b.nexus, 0, 0, r.done)
	b.store.release()
	if r.count != 1 || mine.Status != TaskAborted || theirs.Status != Good {
		t.Errorf("%d %v %v", r.count, mine.Status, theirs.Status)
	}
}

func TestClearTaskSet(t *testing.T) {
	for _, tas := range []bool{false, true} {
		b := newTestbed(t, 64, nil)
		other := b.login("other")
		if tas {
			b.modeSelect(b.nexus, control(0, 0, 0x40))
			b.pending(other)
		}
		mine, _ := b.held(b.nexus, Simple, 1)
		theirs, _ := b.held(other, Simple, 2)
		var r response
		b.target.ClearTaskSet(b.nexus, 0, 0, r.done)
		if r.count != 0 {
			t.Fatal("complete too early")
		}
		b.store.release()
		b.store.hold = false
		if r.count != 1 || mine.Status != TaskAborted || theirs.Status != TaskAborted || !mine.Silent() || theirs.Silent() == tas {
			t.Errorf("TAS %v: %v %v, silent %v %v", tas, mine.Status, theirs.Status, mine.Silent(), theirs.Silent())
		}
		want := []uint16{0x2F00}
		if tas {
			want = nil
		}
		if got := b.pending(other); !slices.Equal(got, want) {
			t.Errorf("TAS %v: %04X", tas, got)
		}
		if got := b.pending(b.nexus); got != nil {
			t.Errorf("TAS %v: own attentions %04X", tas, got)
		}
	}
}

// The reset sets TAS back, but the commands that it aborts end by what TAS was.
func TestLUNResetHonoursTAS(t *testing.T) {
	b := newTestbed(t, 64, nil)
	other := b.login("other")
	b.modeSelect(b.nexus, control(0, 0, 0x40))
	b.pending(other)
	theirs, _ := b.held(other, Simple, 2)
	var r response
	b.target.LUNReset(b.nexus, 0, 0, r.done)
	b.store.release()
	if r.count != 1 || theirs.Status != TaskAborted || theirs.Silent() || b.unit.modes.Load().taskAbortedStatus {
		t.Errorf("%d answers, %v, silent %v", r.count, theirs.Status, theirs.Silent())
	}
}

func TestLUNReset(t *testing.T) {
	b := newTestbed(t, 64, nil)
	other := b.login("other")
	b.modeSelect(b.nexus, control(0, 0x08, 0))
	b.pending(other)
	b.good(cdb(0x1B, 0, 0, 0, 0), nil, 0)
	c, _ := b.start(other, 0, Simple, 3, cdb(0x1B, 0, 0, 0, 1), nil, 0)
	if c.Status != Good {
		t.Fatal(c.Status)
	}
	b.store.hold = true
	held, _ := b.start(other, 0, Simple, 4, read10(0, 1), nil, 512)
	var r response
	b.target.LUNReset(b.nexus, 0, 0, r.done)
	b.store.release()
	b.store.hold = false
	if r.count != 1 || held.Status != TaskAborted {
		t.Errorf("%d, %v", r.count, held.Status)
	}
	for _, n := range []*Nexus{b.nexus, other} {
		if got := b.pending(n); !slices.Equal(got, []uint16{0x2903}) {
			t.Errorf("%04X", got)
		}
	}
	b.good(write10(0, 1), fill(1, 1), 0)
	b.target.LUNReset(b.nexus, 0, EncodeLUN(3), r.done)
	if r.last != LUNDoesNotExist {
		t.Errorf("response %d", r.last)
	}
	b.target.TargetReset(b.nexus, 0, r.done)
	if r.count != 3 || r.last != FunctionComplete || !slices.Equal(b.pending(other), []uint16{0x2903}) {
		t.Errorf("target reset: %d answers", r.count)
	}
}

// TestLongCommandStopsWhenAborted: a WRITE SAME in many steps ends at the next step.
func TestLongCommandStopsWhenAborted(t *testing.T) {
	b := newTestbed(t, 8192, nil)
	b.store.hold = true
	c, done := b.start(b.nexus, 0, Simple, 5, cdb16(0x93, 0, 0, 8192), fill(1, 1), 0)
	var r response
	b.target.AbortTask(b.nexus, 0, 0, 5, r.done)
	b.store.release()
	if *done != 1 || r.count != 1 || c.Status != TaskAborted || b.store.data[MaxData] != 0 {
		t.Errorf("%v; the second step was written: %v", c.Status, b.store.data[MaxData] != 0)
	}
}

func TestTaskAttributes(t *testing.T) {
	b := newTestbed(t, 64, nil)
	var order []uint32
	start := func(attr TaskAttribute, tag uint32) {
		b.store.hold = true
		c := &Command{CDB: write10(tag, 1), Nexus: b.nexus, Attr: attr, Tag: tag, Expected: blockSize}
		c.Done = func(c *Command) { order = append(order, c.Tag) }
		b.target.Decode(c)
		c.Data = fill(1, byte(tag))
		b.target.Execute(c)
	}
	start(Simple, 1)
	start(Ordered, 2)
	start(Simple, 3)
	start(HeadOfQueue, 4)
	start(Ordered, 5)
	start(Untagged, 6)
	if n := len(b.store.waiting); n != 2 {
		t.Fatalf("%d tasks in the backend, want 1 and 4", n)
	}
	b.store.release()
	if !slices.Equal(order, []uint32{1, 4, 2, 3, 5, 6}) {
		t.Errorf("order %v", order)
	}
}

func TestAbortDormantTask(t *testing.T) {
	b := newTestbed(t, 64, nil)
	first, _ := b.held(b.nexus, Simple, 1)
	second, done := b.held(b.nexus, Ordered, 2)
	third, _ := b.held(b.nexus, Simple, 3)
	var r response
	b.target.AbortTask(b.nexus, 0, 0, 2, r.done)
	if *done != 1 || r.count != 1 || second.Status != TaskAborted || len(b.store.waiting) != 2 {
		t.Fatalf("%d %d %v, %d in the backend", *done, r.count, second.Status, len(b.store.waiting))
	}
	b.store.release()
	if first.Status != Good || third.Status != Good || b.store.data[2*blockSize] != 0 {
		t.Errorf("%v %v", first.Status, third.Status)
	}
	b.held(b.nexus, Simple, 4)
	b.held(b.nexus, Ordered, 5)
	finished := 0
	b.target.AbortNexus(b.nexus, 0, func() { finished++ })
	if finished != 0 {
		t.Error("the nexus still has a task in the backend")
	}
	b.store.release()
	if finished != 1 || b.store.data[5*blockSize] != 0 {
		t.Error("AbortNexus")
	}
	b.nexus.Close()
}
