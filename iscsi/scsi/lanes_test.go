package scsi

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// lanes are threads as the host has them: functions run one after another on each.
type lanes struct {
	queues []chan func()
	wait   sync.WaitGroup
}

func startLanes(t *testing.T, n int) *lanes {
	l := &lanes{}
	for range n {
		queue := make(chan func(), 4096)
		l.queues = append(l.queues, queue)
		l.wait.Go(func() {
			for fn := range queue {
				fn()
			}
		})
	}
	t.Cleanup(func() {
		for _, q := range l.queues {
			close(q)
		}
		l.wait.Wait()
		goleak.VerifyNone(t)
	})
	return l
}

func (l *lanes) Post(lane int, fn func()) error {
	l.queues[lane] <- fn
	return nil
}

// do runs fn on a lane and waits for it.
func (l *lanes) do(lane int, fn func(done func())) {
	finished := make(chan struct{})
	l.queues[lane] <- func() { fn(func() { close(finished) }) }
	<-finished
}

// laneBackend completes on the lane, later.
type laneBackend struct {
	nullBackend
	lanes    *lanes
	inFlight atomic.Int32
}

func (b *laneBackend) later(lane int, done func(error)) {
	b.inFlight.Add(1)
	_ = b.lanes.Post(lane, func() {
		b.inFlight.Add(-1)
		done(nil)
	})
}

func (b *laneBackend) Read(lane int, _ []byte, _ int64, done func(error)) { b.later(lane, done) }

func (b *laneBackend) Write(lane int, _ []byte, _ int64, _ bool, done func(error)) {
	b.later(lane, done)
}

// laneInitiator keeps commands in flight on one lane until it is stopped.
type laneInitiator struct {
	target  *Target
	nexus   *Nexus
	lane    int
	left    int
	running int
	rng     *rand.Rand
	idle    func()
}

func (i *laneInitiator) submit(c *Command) {
	if i.left == 0 {
		if i.running--; i.running == 0 {
			i.idle()
		}
		return
	}
	i.left--
	c.CDB, c.Attr, c.Tag = read10(uint32(i.left), 8), Simple, uint32(i.left)
	if i.rng.IntN(8) == 0 {
		c.CDB, c.Attr = write10(0, 8), Ordered
	}
	c.Lane, c.Nexus, c.Expected = i.lane, i.nexus, 8*blockSize
	i.target.Decode(c)
	c.Data = c.Data[:min(cap(c.Data), c.Length)]
	i.target.Execute(c)
}

// run executes commands, depth at a time; each Done submits the next from the lane's queue.
func (i *laneInitiator) run(l *lanes, depth int, idle func()) {
	i.idle, i.running = idle, depth
	for range depth {
		c := &Command{Data: make([]byte, 8*blockSize)}
		c.Done = func(c *Command) { _ = l.Post(i.lane, func() { i.submit(c) }) }
		i.submit(c)
	}
}

// TestTaskManagementAcrossLanes: resets, aborts, LUN changes and logins run while initiators on
// other lanes have commands in flight; every command ends once, and so does every function.
func TestTaskManagementAcrossLanes(t *testing.T) {
	const initiators = 4
	l := startLanes(t, 2)
	backend := &laneBackend{nullBackend: nullBackend{size: 1 << 30}, lanes: l}
	lu, err := NewLogicalUnit(backend, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	target := NewTarget("iqn.2026-01.org.example:lanes", TargetOptions{Post: l.Post})
	if err := target.Map(0, lu); err != nil {
		t.Fatal(err)
	}
	var busy sync.WaitGroup
	for k := range initiators {
		busy.Add(1)
		lane := k % 2
		i := &laneInitiator{target: target, lane: lane, left: 3000, rng: rand.New(rand.NewPCG(1, uint64(k)))}
		i.nexus = target.NewNexus(fmt.Sprint("host", k), 1)
		_ = l.Post(lane, func() {
			i.run(l, 16, func() { i.nexus.Close(); busy.Done() })
		})
	}
	finished := make(chan struct{})
	go func() { busy.Wait(); close(finished) }()
	disturb(t, l, target, lu, finished)
	if n := backend.inFlight.Load(); n != 0 || len(lu.itls) != 0 {
		t.Errorf("%d in the backend, %d I_T_L nexuses left", n, len(lu.itls))
	}
}

func disturb(t *testing.T, l *lanes, target *Target, lu *LogicalUnit, finished chan struct{}) {
	n := target.NewNexus("manager", 1)
	functions := []func(done func(ManagementResponse)){
		func(done func(ManagementResponse)) { target.LUNReset(n, 0, 0, done) },
		func(done func(ManagementResponse)) { target.ClearTaskSet(n, 0, 0, done) },
		func(done func(ManagementResponse)) { target.TargetReset(n, 0, done) },
		func(done func(ManagementResponse)) { target.AbortTaskSet(n, 0, 0, done) },
	}
	timeout := time.After(30 * time.Second)
	for i := 0; ; i++ {
		select {
		case <-finished:
			l.do(0, func(done func()) { n.Close(); done() })
			return
		case <-timeout:
			t.Fatal("commands hang")
		default:
		}
		l.do(0, func(done func()) {
			functions[i%len(functions)](func(ManagementResponse) { done() })
		})
		if err := target.Map(uint16(1+i%3), lu); err == nil && i%2 == 0 {
			_ = target.Unmap(uint16(1 + i%3))
		}
		lu.CapacityChanged()
	}
}
