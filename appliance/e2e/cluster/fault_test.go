package cluster

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/appliance/fence/guard"
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
	powerSlack  = 2 * time.Second // in CI, for a machine that runs other things beside
)

// TestCoordinatorDies ends the coordinator in three ways, and has it back each time.
func TestCoordinatorDies(t *testing.T) {
	b := newBench(t, 3)
	b.load()
	for _, death := range []struct {
		name string
		end  func(*lab.ClusterNode) error
		back func(*lab.ClusterNode) error
		bar  time.Duration
	}{
		{"kill -9", func(n *lab.ClusterNode) error { n.Kill(); return nil }, func(n *lab.ClusterNode) error { return n.Restart(b.ctx) }, failoverBar},
		{"machine off", func(n *lab.ClusterNode) error { return n.PowerOff(b.ctx) }, func(n *lab.ClusterNode) error { return n.PowerOn(b.ctx) }, failoverBar + powerSlack},
		{"SIGSTOP", func(n *lab.ClusterNode) error { n.Freeze(); return nil }, b.thaw, failoverBar},
	} {
		b.fleet.GoHome()
		time.Sleep(time.Second)
		dead, err := b.Coordinator(b.ctx)
		check(t, err)
		w := b.open()
		check(t, death.end(dead))
		b.successor(dead)
		t.Logf("%s of coordinator %s: another one after %v", death.name, dead.Name, time.Since(w.from).Round(time.Millisecond))
		time.Sleep(time.Second)
		w.bar(load.Direct, directBar, not(dead))
		w.bar(load.Redirected, death.bar, not(dead))
		check(t, death.back(dead))
		t.Logf("%s: %s is back %v after its end", death.name, dead.Name, time.Since(w.from).Round(time.Millisecond))
	}
	b.finish()
	b.clean()
}

// TestMachineOff takes the coordinator's machine away together with the leader of the cluster's database: no guard is
// left to prove its end, and what the database knows of it has to be found out by others. LUNAR_RUNS is how often; the
// bar holds without slack then.
func TestMachineOff(t *testing.T) {
	runs, bar := 1, failoverBar+powerSlack
	if n, err := strconv.Atoi(os.Getenv("LUNAR_RUNS")); err == nil && n > 0 {
		runs, bar = n, failoverBar
	}
	b := newBenchFor(t, 3, testLimit+time.Duration(runs)*20*time.Second)
	b.load()
	for range runs {
		b.fleet.GoHome()
		time.Sleep(time.Second)
		dead, err := b.LeaderCoordinates(b.ctx)
		check(t, err)
		time.Sleep(time.Second)
		w := b.open()
		check(t, dead.PowerOff(b.ctx))
		b.successor(dead)
		t.Logf("%s, coordinator and leader, is off: another coordinator after %v", dead.Name, time.Since(w.from).Round(time.Millisecond))
		time.Sleep(time.Second)
		w.bar(load.Direct, directBar, not(dead))
		w.bar(load.Redirected, bar, not(dead))
		check(t, dead.PowerOn(b.ctx))
	}
	b.finish()
	b.clean()
}

// TestGuardDies kills the coordinator's guard process: the daemon starts another one, which knows its mounts and
// devices. That one has to end the daemon when it is stopped, and to prove so.
func TestGuardDies(t *testing.T) {
	b := newBench(t, 3)
	b.load()
	time.Sleep(time.Second)
	coordinator, err := b.Coordinator(b.ctx)
	check(t, err)
	w := b.open()
	check(t, coordinator.KillGuard())
	check(t, lab.Poll(10*time.Second, func() error { // the new one answers
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(coordinator.Address, strconv.Itoa(guard.Port)), time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err
	}))
	w.bar(load.Redirected, failoverBar, nil)
	w = b.open()
	coordinator.Kill()
	next := b.successor(coordinator)
	t.Logf("kill -9 under the new guard: another coordinator after %v", time.Since(w.from).Round(time.Millisecond))
	proof := ""
	check(t, lab.Poll(10*time.Second, func() error {
		err := next.API.Log(b.ctx, "", false, func(e api.Event) error {
			if e.Kind == "node.fenced" && strings.Contains(e.Text, "node "+coordinator.Name+" ") {
				proof = e.Text
			}
			return nil
		})
		if err == nil && proof == "" {
			err = errors.New("the log does not tell of the fencing")
		}
		return err
	}))
	if proved := strings.Contains(proof, "its guard proved it"); !proved && slack() == 0 {
		t.Errorf("the new guard proved nothing: %s", proof)
	} else if !proved {
		t.Log("the lease ended before the new guard's proof: ", proof) // a busy machine
	}
	check(t, coordinator.Restart(b.ctx))
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
	return n.Revive(b.ctx, 2*time.Second)
}

// TestPathCut cuts a node's path to the LUN and mends it, then the coordinator's.
func TestPathCut(t *testing.T) {
	b := newBench(t, 3)
	b.load()
	time.Sleep(time.Second)
	coordinator, err := b.Coordinator(b.ctx)
	check(t, err)
	victim := b.Others(coordinator)[0]
	b.cutPath(victim)
	if now, err := b.Coordinator(b.ctx); err != nil || now != coordinator {
		t.Errorf("the coordinator was %s and is %v (%v): its path was not the one cut", coordinator.Name, now, err)
	}
	time.Sleep(time.Second)
	w := b.open()
	check(t, coordinator.CutPath())
	next := b.successor(coordinator)
	check(t, coordinator.AwaitState(b.ctx, api.Redirected, 5*time.Second))
	t.Logf("path of coordinator %s cut: %s coordinates, and it is redirected, after %v", coordinator.Name, next.Name, time.Since(w.from).Round(time.Millisecond))
	time.Sleep(time.Second)
	w.bar(load.Direct, directBar, not(coordinator))
	w.bar(load.Redirected, failoverBar, nil)
	b.mendPath(coordinator)
	b.finish()
	b.clean()
}

// cutPath proves that a node without a path is redirected alone, and direct again soon after.
func (b *bench) cutPath(victim *lab.ClusterNode) {
	b.t.Helper()
	w := b.open()
	check(b.t, victim.CutPath())
	check(b.t, victim.AwaitState(b.ctx, api.Redirected, 5*time.Second))
	_, reason, err := victim.State(b.ctx)
	check(b.t, err)
	if !strings.Contains(reason, "NoDiskConnectivity") {
		b.t.Errorf("node %s is redirected for reason %q", victim.Name, reason)
	}
	b.t.Logf("path of %s cut: redirected (%s) after %v", victim.Name, reason, time.Since(w.from).Round(time.Millisecond))
	time.Sleep(500 * time.Millisecond)
	for _, n := range b.Others(victim) {
		if state, reason, err := n.State(b.ctx); err != nil || state != api.Direct && state != api.Paused { // for a change of the file system
			b.t.Errorf("node %s, whose path is whole: %s (%s), %v", n.Name, state, reason, err)
		}
	}
	w.bar(load.Direct, directBar, not(victim))
	w.bar(load.Direct, time.Second, nil) // the victim's own, re-issued through the coordinator
	b.mendPath(victim)
}

const mendBar = 2 * time.Second

func (b *bench) mendPath(n *lab.ClusterNode) {
	b.t.Helper()
	w := b.open()
	check(b.t, n.MendPath())
	check(b.t, n.AwaitState(b.ctx, api.Direct, 2*mendBar))
	took := time.Since(w.from)
	late := b.fleet.Record.Longest(load.Machine, w.from, time.Now(), nil).Took
	b.t.Logf("path of %s back: direct after %v; bar %v", n.Name, took.Round(time.Millisecond), mendBar)
	if took > mendBar+late+slack() {
		b.t.Errorf("node %s was direct only %v after its path was back", n.Name, took)
	}
}

// TestFollowerLosesNetwork cuts a node that is not the coordinator off until it is counted out, and has it back:
// its daemon lives on, under another session, and does all that it did before.
func TestFollowerLosesNetwork(t *testing.T) {
	b := newBench(t, 3)
	b.load()
	time.Sleep(time.Second)
	coordinator, err := b.Coordinator(b.ctx)
	check(t, err)
	victim := b.Others(coordinator)[0]
	w := b.open()
	check(t, victim.CutNetwork(b.ctx))
	time.Sleep(4500 * time.Millisecond)
	w.bar(load.Direct, directBar, not(victim))
	check(t, victim.MendNetwork(b.ctx))
	w = b.open()
	check(t, victim.Revive(b.ctx, 2*time.Second))
	check(t, victim.AwaitState(b.ctx, api.Direct, 5*time.Second))
	_, err = victim.API.CreateImage(b.ctx, api.CreateImage{Image: lab.ClusterVolume + "/by-" + victim.Name, Size: mib})
	check(t, err)
	took := time.Since(w.from)
	t.Logf("%s: direct, and did as it was told, %v after its network was back", victim.Name, took.Round(time.Millisecond))
	if took > 8*time.Second+2*slack() {
		t.Errorf("%s was of use only %v after its network was back", victim.Name, took)
	}
	b.fleet.GoHome()
	time.Sleep(time.Second)
	b.finish()
	b.clean()
}
