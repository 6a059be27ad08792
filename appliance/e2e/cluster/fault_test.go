package cluster

import (
	"testing"
	"time"

	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
)

// TestMove moves the volume around, by order.
func TestMove(t *testing.T) {
	b := newBench(t, 3)
	b.load()
	time.Sleep(time.Second)
	for _, to := range []int{1, 2, 0} {
		w := b.open()
		check(t, b.Move(b.ctx, b.Nodes[to]))
		t.Logf("moved to %s within %v", b.Nodes[to].Name, time.Since(w.from).Round(time.Millisecond))
		time.Sleep(700 * time.Millisecond)
		w.bar(load.Redirected, 300*time.Millisecond, nil)
		w.bar(load.Direct, 100*time.Millisecond, nil)
	}
	b.finish()
	b.clean()
}

// The bars of a coordinator's death.
const (
	directBar   = 100 * time.Millisecond
	failoverBar = 3 * time.Second
)

// TestCoordinatorDies ends the coordinator in three ways, and has it back each time.
func TestCoordinatorDies(t *testing.T) {
	b := newBench(t, 3)
	b.load()
	for _, death := range []struct {
		name string
		end  func(*lab.ClusterNode) error
		back func(*lab.ClusterNode) error
	}{
		{"kill -9", func(n *lab.ClusterNode) error { n.Kill(); return nil }, func(n *lab.ClusterNode) error { return n.Restart(b.ctx) }},
		{"machine off", func(n *lab.ClusterNode) error { return n.PowerOff(b.ctx) }, func(n *lab.ClusterNode) error { return n.PowerOn(b.ctx) }},
		{"SIGSTOP", func(n *lab.ClusterNode) error { n.Freeze(); return nil }, b.thaw},
	} {
		time.Sleep(time.Second)
		dead, err := b.Coordinator(b.ctx)
		check(t, err)
		w := b.open()
		check(t, death.end(dead))
		b.successor(dead)
		t.Logf("%s of coordinator %s: another one after %v", death.name, dead.Name, time.Since(w.from).Round(time.Millisecond))
		time.Sleep(time.Second)
		w.bar(load.Direct, directBar, not(dead))
		w.bar(load.Redirected, failoverBar, not(dead))
		check(t, death.back(dead))
		t.Logf("%s: %s is back %v after its end", death.name, dead.Name, time.Since(w.from).Round(time.Millisecond))
	}
	b.finish()
	b.clean()
}

// successor waits until another node coordinates.
func (b *bench) successor(dead *lab.ClusterNode) *lab.ClusterNode {
	b.t.Helper()
	others := &lab.Cluster{Nodes: b.Others(dead)}
	var next *lab.ClusterNode
	check(b.t, lab.Poll(20*time.Second, func() (err error) {
		next, err = others.Coordinator(b.ctx)
		return err
	}))
	return next
}

// thaw lets a frozen node go on: its guard has killed it, or it finds out by itself that it is out.
func (b *bench) thaw(n *lab.ClusterNode) error {
	time.Sleep(time.Second)
	n.Thaw()
	select {
	case <-n.Exited():
		return n.Restart(b.ctx)
	case <-time.After(2 * time.Second):
		return n.AwaitLUN(b.ctx, lab.ClusterTarget)
	}
}
