package trace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// at once runs what is posted, as a lane that has nothing else to do.
func atOnce(_ int, fn func()) error { fn(); return nil }

func cdb(opcode byte) (c [16]byte) { c[0] = opcode; return c }

// run makes a command pass its stages; each step is a method of the lane.
func run(l *Lane, series uint32, opcode byte, steps ...func(mark uint32)) {
	c := cdb(opcode)
	mark := l.Begin(series, l.Now(), &c, 4096, opcode == 0x2A)
	l.Start(mark)
	for _, s := range steps {
		s(mark)
	}
	l.Executed(mark, 0)
	l.Left()
	l.Sent()
	l.End(mark)
	l.Resumed()
}

func watch(t *testing.T, tr *Tracer) *Watch {
	t.Helper()
	w, err := tr.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func take(t *testing.T, w *Watch) Seen {
	t.Helper()
	seen, err := w.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

func newOn(lanes int) *Tracer {
	t := New(lanes, atOnce)
	t.Switch(true)
	return t
}

// direct is the way of a read or write to the device, which takes so long.
func direct(l *Lane, took time.Duration) func(uint32) {
	return func(mark uint32) {
		l.Take()
		l.Queued(mark)
		l.Issued(mark)
		l.Entered()
		time.Sleep(took)
		l.Reaped()
		l.Completed(mark)
	}
}

func redirected(l *Lane, took time.Duration) func(uint32) {
	return func(mark uint32) {
		l.Redirected(l.Take())
		time.Sleep(took)
	}
}

// TestStages: a delay is in its stage, and the stages add up to the command's time.
func TestStages(t *testing.T) {
	const delay = 5 * time.Millisecond
	slept := func(uint32) { time.Sleep(delay) }
	tr := newOn(1)
	l := tr.Lane(0)
	w := watch(t, tr)
	n := l.Open("iqn.i", "iqn.t", 3<<48)
	for _, c := range []struct {
		name   string
		opcode byte
		steps  []func(uint32)
		want   Stage
		op     Op
	}{
		{"device", 0x28, []func(uint32){direct(l, delay)}, Device, Read},
		{"layout", 0x88, []func(uint32){func(uint32) { l.Left() }, slept, direct(l, 0)}, Layout, Read},
		{"redirect", 0x2A, []func(uint32){redirected(l, delay)}, Redirect, Write},
		{"answer", 0x28, []func(uint32){direct(l, 0), slept}, Answer, Read},
		{"execute", 0x12, []func(uint32){slept}, Execute, Other},
		{"flush", 0x35, []func(uint32){direct(l, delay)}, Device, Other},
		{"several steps", 0x89, []func(uint32){direct(l, 0), slept}, Execute, Write},
	} {
		run(l, n, c.opcode, c.steps...)
		seen := take(t, w)
		counts := seen.Counts[Key{"iqn.i", "iqn.t", 3}]
		if counts == nil || len(seen.Counts) != 1 || counts.Ops[c.op].Times.Count() != 1 || counts.Ops[c.op].Bytes != 4096 {
			t.Fatalf("%s: seen %+v", c.name, seen.Counts)
		}
		var sum, most int64
		at := Stage(0)
		for s := range NumStages {
			took := counts.Stages[s].Sum
			if sum += took; took > most {
				most, at = took, s
			}
		}
		if sum != counts.Ops[c.op].Times.Sum || at != c.want || most < int64(delay) {
			t.Errorf("%s: stages add up to %d of %d ns, most of it, %d, in %s, want it in %s", c.name, sum, counts.Ops[c.op].Times.Sum, most, at, c.want)
		}
		if len(seen.Slow) != 1 || seen.Slow[0].Stages[c.want] < delay || !seen.Slow[0].Passed[c.want] || seen.Slow[0].CDB[0] != c.opcode {
			t.Errorf("%s: the slowest is %+v", c.name, seen.Slow)
		}
	}
}

// TestData: what an initiator takes to send its data is a stage of its own.
func TestData(t *testing.T) {
	tr := newOn(1)
	l := tr.Lane(0)
	w := watch(t, tr)
	n := l.Open("i", "t", 0)
	c := cdb(0x2A)
	mark := l.Begin(n, l.Now(), &c, 512, true)
	time.Sleep(2 * time.Millisecond)
	l.Start(mark)
	direct(l, 0)(mark)
	l.Executed(mark, 0)
	l.Sent()
	l.End(mark)
	counts := take(t, w).Counts[Key{"i", "t", 0}]
	if counts.Stages[Data].Sum < int64(2*time.Millisecond) || counts.Stages[Decode].Count() != 1 {
		t.Errorf("data took %d ns", counts.Stages[Data].Sum)
	}
}

// TestOff: nothing is marked while it is off, and marks of before end well.
func TestOff(t *testing.T) {
	tr := New(1, atOnce)
	l := tr.Lane(0)
	w := watch(t, tr)
	n := l.Open("i", "t", 0)
	c := cdb(0x28)
	if mark := l.Begin(n, l.Now(), &c, 0, false); mark != 0 || l.Now() != 0 {
		t.Errorf("mark %d", mark)
	}
	run(l, n, 0x28, direct(l, 0))
	tr.Switch(true)
	mark := l.Begin(n, l.Now(), &c, 0, false)
	l.Start(mark)
	tr.Switch(false)
	direct(l, 0)(mark)
	l.Executed(mark, 0)
	l.Sent()
	l.End(mark)
	l.Resumed()
	if seen := take(t, w); len(seen.Counts) != 0 {
		t.Errorf("counted %+v", seen.Counts)
	}
}

// TestUnanswered: a command that ends without an answer is not counted, and its mark is used again.
func TestUnanswered(t *testing.T) {
	tr := newOn(1)
	l := tr.Lane(0)
	w := watch(t, tr)
	n := l.Open("i", "t", 0)
	c := cdb(0x28)
	first := l.Begin(n, l.Now(), &c, 0, false)
	l.Start(first)
	l.End(first)
	if second := l.Begin(n, l.Now(), &c, 0, false); second != first {
		t.Errorf("mark %d, then %d", first, second)
	}
	if seen := take(t, w); len(seen.Counts)+len(seen.Slow) != 0 {
		t.Errorf("counted %+v", seen)
	}
}

// TestSlowest keeps the slowest of many.
func TestSlowest(t *testing.T) {
	var s slowest
	for i := range 1000 {
		took := int64((i*617)%1000 + 1) // each of 1 to 1000 once
		if took > s.least {
			s.keep(&command{series: &series{}}, &passed{}, took)
		}
	}
	all := keepSlowest(nil, s.take(time.Now()))
	if len(all) != MaxSlow {
		t.Fatalf("%d kept", len(all))
	}
	for i := range all {
		if want := time.Duration(1000 - i); all[i].Took != want {
			t.Fatalf("number %d is %d, want %d", i, all[i].Took, want)
		}
	}
	if s.n != 0 || s.least != 0 {
		t.Error("it was not emptied")
	}
}

// TestManySeries: what is beyond the bound is counted together, and places of connections that are gone are used again.
func TestManySeries(t *testing.T) {
	tr := newOn(1)
	l := tr.Lane(0)
	w := watch(t, tr)
	var numbers []uint32
	for i := range MaxSeries {
		numbers = append(numbers, l.Open(fmt.Sprint("i", i), "t", 0))
	}
	last := numbers[len(numbers)-1]
	if last != overflow {
		t.Errorf("series beyond the bound have number %d", last)
	}
	for _, n := range numbers {
		run(l, n, 0x28, direct(l, 0))
	}
	seen := take(t, w)
	if len(seen.Counts) != MaxSeries-1 || seen.Counts[Key{}].Ops[Read].Times.Count() != 2 {
		t.Errorf("%d series", len(seen.Counts))
	}
	for _, n := range numbers {
		l.Close(n)
	}
	l.swept = 0
	if n := l.Open("other", "t", 0); n == overflow {
		t.Error("no place was free again")
	}
}

// TestWatches: each has all that was counted since it was opened, however often others look.
func TestWatches(t *testing.T) {
	tr := newOn(2)
	a := watch(t, tr)
	n := [2]uint32{tr.Lane(0).Open("i", "t", 0), tr.Lane(1).Open("i", "t", 0)}
	for i := range 10 {
		run(tr.Lane(i%2), n[i%2], 0x28, direct(tr.Lane(i%2), 0))
	}
	b := watch(t, tr)
	run(tr.Lane(0), n[0], 0x28, direct(tr.Lane(0), 0))
	key := Key{"i", "t", 0}
	if got := take(t, b).Counts[key].Ops[Read].Times.Count(); got != 1 {
		t.Errorf("the second watch has %d", got)
	}
	if got := take(t, a).Counts[key].Ops[Read].Times.Count(); got != 11 {
		t.Errorf("the first watch has %d", got)
	}
	if got := len(take(t, a).Counts); got != 0 {
		t.Errorf("%d series after that", got)
	}
}

// TestLanes: lanes count while others look; the race detector sees it.
func TestLanes(t *testing.T) {
	const lanes, commands = 3, 2000
	var posts [lanes]chan func()
	for i := range posts {
		posts[i] = make(chan func())
	}
	tr := New(lanes, func(i int, fn func()) error { posts[i] <- fn; return nil })
	tr.Switch(true)
	var all, working sync.WaitGroup
	over := make(chan struct{})
	for i := range lanes {
		working.Add(1)
		all.Go(func() { lane(tr.Lane(i), posts[i], commands, over, working.Done) })
	}
	w := watch(t, tr)
	var sum uint64
	count := func() {
		for _, c := range take(t, w).Counts {
			sum += c.Ops[Read].Times.Count()
		}
	}
	first := make(chan struct{})
	go func() { working.Wait(); close(first) }()
	for busy := true; busy; {
		select {
		case <-first:
			busy = false
		default:
			count()
		}
	}
	count()
	close(over)
	all.Wait()
	if sum > lanes*commands || sum == 0 {
		t.Errorf("%d commands were seen of %d", sum, lanes*commands)
	}
}

// lane does reads, each on another LUN, and what is posted, until over.
func lane(l *Lane, posts <-chan func(), commands int, over <-chan struct{}, worked func()) {
	for i := range commands {
		n := l.Open("i", "t", uint64(i%100)<<48)
		run(l, n, 0x28, direct(l, 0))
		l.Close(n)
		select {
		case fn := <-posts:
			fn()
		default:
		}
	}
	worked()
	for {
		select {
		case fn := <-posts:
			fn()
		case <-over:
			return
		}
	}
}

func TestEnded(t *testing.T) {
	gone := errors.New("gone")
	tr := New(1, func(int, func()) error { return gone })
	if _, err := tr.Watch(t.Context()); !errors.Is(err, ErrClosed) || !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr = New(1, func(int, func()) error { return nil })
	if _, err := tr.Watch(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestOffset(t *testing.T) {
	c := Slow{CDB: cdb(0x28)}
	binary.BigEndian.PutUint32(c.CDB[2:], 5)
	if got := c.Offset(512); got != 2560 {
		t.Errorf("READ(10): %d", got)
	}
	c.CDB = [16]byte{0x08, 0x01, 0, 2, 1}
	if got := c.Offset(512); got != 65538*512 {
		t.Errorf("READ(6): %d", got)
	}
	c.CDB = cdb(0x8A)
	binary.BigEndian.PutUint64(c.CDB[2:], 1<<33)
	if got := c.Offset(512); got != 1<<42 {
		t.Errorf("WRITE(16): %d", got)
	}
	if got := (&Slow{CDB: cdb(0x35)}).Offset(512); got != -1 {
		t.Errorf("SYNCHRONIZE CACHE: %d", got)
	}
}

// TestNoAllocation: a command allocates nothing.
func TestNoAllocation(t *testing.T) {
	tr := newOn(1)
	l := tr.Lane(0)
	n := l.Open("i", "t", 0)
	step := direct(l, 0)
	if got := testing.AllocsPerRun(200, func() { run(l, n, 0x28, step) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}

// BenchmarkCommand is what a direct read costs, whole.
func BenchmarkCommand(b *testing.B) {
	for _, on := range []bool{true, false} {
		b.Run(fmt.Sprintf("on=%t", on), func(b *testing.B) {
			tr := New(1, atOnce)
			tr.Switch(on)
			l := tr.Lane(0)
			n := l.Open("i", "t", 0)
			c := cdb(0x28)
			for b.Loop() {
				at := l.Now()
				mark := l.Begin(n, at, &c, 4096, false)
				l.Start(mark)
				l.Take()
				l.Queued(mark)
				l.Issued(mark)
				l.Left()
				l.Entered()
				l.Reaped()
				l.Completed(mark)
				l.Executed(mark, 0)
				l.Sent()
				l.End(mark)
				l.Resumed()
			}
		})
	}
}

// BenchmarkBatch is a direct read's share of what a batch of 16 costs.
func BenchmarkBatch(b *testing.B) {
	const batch = 16
	tr := newOn(1)
	l := tr.Lane(0)
	n := l.Open("i", "t", 0)
	c := cdb(0x28)
	var marks [batch]uint32
	for i := 0; b.Loop(); i++ {
		at := i % batch
		if at != 0 {
			continue
		}
		came := l.Now()
		for j := range marks {
			marks[j] = l.Begin(n, came, &c, 4096, false)
			l.Start(marks[j])
			l.Take()
			l.Queued(marks[j])
			l.Issued(marks[j])
			l.Left()
		}
		l.Entered()
		l.Reaped()
		for _, m := range marks {
			l.Completed(m)
			l.Executed(m, 0)
		}
		l.Sent()
		for _, m := range marks {
			l.End(m)
		}
		l.Resumed()
	}
}

func BenchmarkClock(b *testing.B) {
	l := newOn(1).Lane(0)
	for b.Loop() {
		l.now()
	}
}
